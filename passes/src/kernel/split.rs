//! Products whose fold is split between programs, because their results are too few to fill a GPU.
//!
//! Invariant: each program leaves the sum of its share of the fold in a buffer of its own place; a second part adds the sums
//! in the order of the shares, so that results do not depend on which program ends first.

use super::Builder;
use super::emit::Place;
use super::flat::{Axis, FlatNest};
use super::gpu::{Operands, below, by_memory, down, number, product, unravel};
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::scalar::{BinaryOp, Constant};
use kiln_ir::tile::{Buffer, Stmt, TileId, TileOp};

/// Threads of a block that adds the sums.
const THREADS: i64 = 256;

/// How a fold is split.
pub(super) struct Split {
    /// Which share a program has.
    pub symbol: Symbol,
    /// How many shares there are.
    pub count: i64,
    /// Where the sums lie: share by share, each with all elements of the result.
    pub buffer: usize,
    /// The number of an element of the result, over the nest's symbols.
    pub element: Expr,
    /// How many there are.
    pub elements: Expr,
}

impl Split {
    /// Stores the sums of a share for the elements of the result at a place.
    pub fn stored(&self, place: &Place, value: TileId) -> Stmt {
        let address = place.expr(&self.element).add(&Expr::from(&self.symbol).mul(&self.elements));
        Stmt::Store { buffer: self.buffer, address, gathered: vec![], mask: place.mask.clone(), value }
    }
}

impl Builder<'_> {
    /// Splits the fold of a product into so many shares; adds the buffer.
    pub(super) fn split(&mut self, nest: &FlatNest, o: &Operands, count: i64) -> Split {
        let axes: Vec<&Axis> = o.batch.iter().chain(&o.rows).chain(&o.columns).collect();
        let element = axes.iter().fold(Expr::default(), |e, a| e.mul(&a.extent).add(&Expr::from(&a.symbol)));
        let elements = axes.iter().fold(number(1), |n, a| n.mul(&a.extent));
        let buffer = self.program.buffers.len() - 1;
        let (dtype, len) = (nest.body.result_type(), elements.scale(count));
        self.program.buffers.insert(buffer, Buffer { name: "sums".into(), dtype, len, written: true, local: false });
        Split { symbol: self.symbol("s"), count, buffer, element, elements }
    }

    /// The second part: adds the sums, finishes and stores the result.
    pub(super) fn join_split(&mut self, nest: &FlatNest, split: &Split) -> Option<()> {
        let axes = by_memory(&nest.axes, &[&nest.store]);
        let count = product(&axes);
        let mut place = self.outermost(nest);
        let block = self.blocks(count.ceil_div(&number(THREADS)), &mut place);
        Self::shaped(&mut place, [THREADS, 1]);
        let element = block.scale(THREADS).add(&down());
        unravel(&axes, &element, &mut place.at);
        place.mask.extend(below(&element, &count, THREADS));
        let dtype = nest.body.result_type();
        let (mut body, mut sum) = (Vec::new(), None);
        for share in 0..split.count {
            let address = place.expr(&split.element.add(&split.elements.scale(share)));
            let (mask, other) = (place.mask.clone(), Constant::int(dtype, 0));
            let op = TileOp::Load { buffer: split.buffer, address, gathered: vec![], mask, other };
            let mut e = self.emitter(&[]);
            let part = e.define(&mut body, dtype, place.shape.clone(), op);
            sum = Some(match sum {
                None => part,
                Some(sum) => e.binary(&mut body, BinaryOp::Add, sum, part),
            });
        }
        let value = self.emitter(&[]).code(&mut body, &nest.finish, &place, sum)?;
        self.store(&mut body, nest, &place, value);
        self.finish_part(body);
        Some(())
    }
}
