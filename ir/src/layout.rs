//! How a tensor's elements lie in memory.
//!
//! Invariant: a layout maps every index of the tensor to an element address below [`Layout::storage_len`], one to
//! one; it never changes what the tensor's logical dims are.

use crate::expr::{Expr, Ranges};
use std::fmt;

/// An order of axes in memory, and at most one axis cut into blocks whose elements lie innermost (padded to a whole
/// block). `[n, c, h, w]` in order `[0, 2, 3, 1]` is channels-last; `[k, n]` in order `[1, 0]` with `n` cut by 8 is
/// the panel form `[ceil(n/8)][k][8]`. Without blocks there may be gaps between the places of an axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Axes, outermost first.
    pub order: Vec<usize>,
    /// An axis and the block size that it is cut by; the position of the blocks is the axis' place in `order`.
    pub block: Option<(usize, usize)>,
    /// An axis, and how many elements are left out between what it has at one of its places and at the next (and behind the last);
    /// they hold nothing.
    pub gap: Option<(usize, usize)>,
}

impl Layout {
    /// Row-major.
    pub fn row_major(rank: usize) -> Layout {
        Layout { order: (0..rank).collect(), block: None, gap: None }
    }

    /// Channels-last: axis 1 innermost.
    pub fn channels_last(rank: usize) -> Layout {
        let mut order: Vec<usize> = (0..rank).collect();
        if rank > 2 {
            order.remove(1);
            order.push(1);
        }
        Layout { order, block: None, gap: None }
    }

    /// Whether the layout is row-major, without gaps.
    pub fn is_row_major(&self) -> bool {
        self.block.is_none() && self.gap.is_none() && self.order.iter().enumerate().all(|(i, &a)| i == a)
    }

    /// Whether the layout is one of a tensor with that many axes.
    pub fn fits(&self, rank: usize) -> bool {
        let mut seen = vec![false; rank];
        self.order.len() == rank
            && self.order.iter().all(|&a| a < rank && !std::mem::replace(&mut seen[a], true))
            && self.block.is_none_or(|(axis, size)| axis < rank && size > 0)
            && self.gap.is_none_or(|(axis, _)| axis < rank && self.block.is_none())
    }

    /// The address in elements of an index.
    pub fn address(&self, dims: &[Expr], index: &[Expr], ranges: &Ranges) -> Expr {
        let (mut address, mut stride) = (Expr::default(), Expr::from(1i64));
        if let Some((axis, size)) = self.block {
            let size = Expr::from(size);
            address = index[axis].modulo(&size).simplify(ranges);
            stride = size;
        }
        for &axis in self.order.iter().rev() {
            let (mut at, mut extent) = (index[axis].clone(), dims[axis].clone());
            if let Some((_, size)) = self.block.filter(|b| b.0 == axis) {
                let size = Expr::from(size);
                at = at.floor_div(&size).simplify(ranges);
                extent = extent.ceil_div(&size);
            }
            stride = stride.add(&self.gap_at(axis));
            address = address.add(&at.mul(&stride));
            stride = stride.mul(&extent);
        }
        address
    }

    /// The elements left out between places of an axis.
    fn gap_at(&self, axis: usize) -> Expr {
        Expr::from(self.gap.filter(|g| g.0 == axis).map_or(0, |g| g.1))
    }

    /// How many elements the storage holds, padding of the last block and gaps included.
    pub fn storage_len(&self, dims: &[Expr]) -> Expr {
        let mut len = Expr::from(1i64);
        for &axis in self.order.iter().rev() {
            let extent = match self.block {
                Some((a, size)) if a == axis => {
                    let size = Expr::from(size);
                    dims[axis].ceil_div(&size).mul(&size)
                }
                _ => dims[axis].clone(),
            };
            len = len.add(&self.gap_at(axis)).mul(&extent);
        }
        len
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.order)?;
        match (self.block, self.gap) {
            (Some((axis, size)), _) => write!(f, "/{axis}:{size}"),
            (None, Some((axis, gap))) => write!(f, "+{axis}:{gap}"),
            (None, None) => Ok(()),
        }
    }
}
