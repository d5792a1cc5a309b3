//! Products by matrix instructions: fragments of operands, and what is made of them.
//!
//! Invariant: a fragment is what one instruction takes of an operand, in the registers that the instruction wants. Rows of 16 bytes
//! come by `ldmatrix`, whatever the elements are; elements of 4 bytes whose neighbours are not along the fold come one at a time,
//! as `ldmatrix` transposes elements of 2 bytes alone.

use super::layout::{Bit, Layout};
use super::product::{Left, Operands, Staged};
use super::{Floats, LowerError, Lowering};
use kiln_ir::scalar::BinaryOp;
use kiln_ir::tile::TileId;
use kiln_ir::vector::Product;
use kiln_ir::warp::{Factor, Op, ValueId};
use kiln_ir::{DType, Expr};

/// The parts that a fragment is the sum of, the largest first: the registers of each.
pub(super) type Fragment = Vec<Vec<ValueId>>;

/// What lanes add to the places that they read.
struct Lanes {
    /// For `ldmatrix`: the first half of the lanes and the second one go along the rows, or each half has both.
    sixteen: Expr,
    alternate: Expr,
    /// The same across: the second half of lanes, or of each half, is at the next 16 bytes.
    upper: Expr,
    second: Expr,
    /// The columns of a right operand that are rows in shared memory: eight for one instruction, or in the second half of the lanes
    /// those of the next one.
    column: Expr,
    columns: Expr,
    /// For single elements: eight neighbours of four rows.
    along: Expr,
    row: Expr,
}

/// A place of the fold as an expression and a number to add, which addresses can have for nothing.
fn known(k: &Expr) -> (Expr, i64) {
    k.as_const().map_or_else(|| (k.clone(), 0), |place| (Expr::default(), place))
}

/// Which bits of a lane's number give the column that it reads: the lowest three of one in eight, as the accumulators have them, and
/// the highest one of the next instruction's.
fn column_bits(layout: &Layout) -> impl Fn(bool) -> Vec<Bit> {
    let bits = layout.axes.get(1).cloned().unwrap_or_default();
    let place = |bit: Bit| bits.iter().position(|b| *b == bit);
    let next = bits.iter().enumerate().filter(|(_, b)| **b == Bit::Register).nth(1).map(|(n, _)| n);
    let places = [Some(0), place(Bit::Thread(0)), place(Bit::Thread(1))];
    move |both| {
        let given = places.into_iter().zip(0..).chain([(next.filter(|_| both), 4)]);
        let given: Vec<(usize, u32)> = given.filter_map(|(place, bit)| Some((place?, bit))).collect();
        let mut lanes = vec![Bit::Register; given.iter().map(|(place, _)| place + 1).max().unwrap_or(0)];
        given.into_iter().for_each(|(place, bit)| lanes[place] = Bit::Thread(bit));
        lanes
    }
}

impl Lowering<'_> {
    /// What matrix instructions take of the operands' types.
    pub(super) fn factor(&self, operands: [TileId; 2], of: Option<Product>) -> Factor {
        Factor::of(operands.map(|o| self.program.tiles[o].dtype), of).unwrap_or(Factor::TF32)
    }

    /// How many parts a fragment has.
    pub(super) fn parts(&self, factor: Factor) -> usize {
        if factor == Factor::TF32 && self.options.floats == Floats::Fast { 2 } else { 1 }
    }

    /// The part of a position along an axis that the thread's warp gives, not its lane.
    fn warp_position(&mut self, layout: &Layout, axis: usize) -> Expr {
        let mut warps = layout.clone();
        warps.axes.iter_mut().flatten().for_each(|bit| {
            if matches!(bit, Bit::Thread(0..5)) {
                *bit = Bit::Register;
            }
        });
        self.thread_position(&warps, axis)
    }

    fn lanes(&mut self, factor: Factor, layout: &Layout) -> Lanes {
        let columns = column_bits(layout);
        let mut lane = |bits: &[Bit]| self.thread_position(&Layout { shape: vec![16], axes: vec![bits.to_vec()] }, 0);
        let (r, t) = (Bit::Register, Bit::Thread);
        // The elements of 16 bytes.
        let beyond = |n: u32| {
            let mut bits = vec![r; 2 + factor.each().ilog2() as usize];
            bits.push(t(n));
            bits
        };
        Lanes {
            sixteen: lane(&[t(0), t(1), t(2), t(3)]),
            alternate: lane(&[t(0), t(1), t(2), t(4)]),
            upper: lane(&beyond(4)),
            second: lane(&beyond(3)),
            column: lane(&columns(false)),
            columns: lane(&columns(true)),
            along: lane(&[t(2), t(3), t(4)]),
            row: lane(&[t(0), t(1)]),
        }
    }

    /// The parts of what was loaded.
    fn split(&mut self, factor: Factor, loaded: Vec<ValueId>) -> Fragment {
        if factor != Factor::TF32 {
            let bits = |v: ValueId| match self.code.ty(v) {
                DType::U32 => v,
                _ => self.code.op(DType::U32, Op::Bitcast(DType::U32, v)),
            };
            return vec![loaded.into_iter().map(bits).collect()];
        }
        let (mut large, mut small) = (Vec::new(), Vec::new());
        for bits in loaded {
            let x = if self.code.ty(bits) == DType::U32 {
                self.code.op(DType::F32, Op::Bitcast(DType::F32, bits))
            } else {
                bits
            };
            let rounded = self.code.op(DType::U32, Op::Tf32(x));
            large.push(rounded);
            if self.options.floats == Floats::Fast {
                let rounded = self.code.op(DType::F32, Op::Bitcast(DType::F32, rounded));
                let rest = self.code.binary(BinaryOp::Sub, x, rounded);
                small.push(self.code.op(DType::U32, Op::Tf32(rest)));
            }
        }
        if small.is_empty() { vec![large] } else { vec![large, small] }
    }

    /// The fragments of a left operand in shared memory for the places of the fold from `k` on: four registers for each 16 rows.
    pub(super) fn load_fragments(
        &mut self,
        factor: Factor,
        (a, left): (TileId, &Staged),
        layout: &Layout,
        k: &Expr,
    ) -> Result<Vec<Fragment>, LowerError> {
        let row = self.warp_position(layout, 0);
        let lanes = self.lanes(factor, layout);
        let (transposed, dtype) = (!self.is_by_depth(a, 0), self.program.tiles[a].dtype);
        let (k, place) = known(k);
        let mut fragments = Vec::new();
        for i in (0..layout.along(0)).step_by(2) {
            let first = layout.offset(0, i);
            let loaded = if transposed && factor.each() == 1 {
                let (row, k) = (row.add(&lanes.along), k.add(&lanes.row));
                let mut loaded = Vec::new();
                for (below, beyond) in [(0, 0), (8, 0), (0, 4), (8, 4)] {
                    let at = [(row.clone(), first + below), (k.clone(), place + beyond)];
                    let address = self.element(left, &at)?;
                    loaded.extend(self.code.load(dtype, 1, address, None));
                }
                loaded
            } else {
                let (of_row, of_depth) =
                    if transposed { (&lanes.second, &lanes.alternate) } else { (&lanes.sixteen, &lanes.upper) };
                let address = self.element(left, &[(row.add(of_row), first), (k.add(of_depth), place)])?;
                self.code.several(DType::U32, 4, Op::Matrix { address, transposed })
            };
            fragments.push(self.split(factor, loaded));
        }
        Ok(fragments)
    }

    /// The fragments of a left operand in the accumulators' registers: two neighbouring columns are a pair already, and
    /// the two 8 columns of a fragment are neighbouring registers.
    fn round_fragments(&mut self, o: &Operands, from: TileId, k: i64) -> Result<Vec<Fragment>, LowerError> {
        let dtype = self.program.tiles[o.a].dtype;
        let first = usize::try_from(k / 4).unwrap_or(0);
        let mut fragments = Vec::new();
        for i in (0..o.layout.along(0)).step_by(2) {
            let mut fragment = Vec::new();
            for (i, n) in [(i, first), (i + 1, first), (i, first + 2), (i + 1, first + 2)] {
                let (low, high) = (self.operand(from, &[i, n])?, self.operand(from, &[i, n + 1])?);
                fragment.push(self.code.op(DType::U32, Op::Pack(dtype, low, high)));
            }
            fragments.push(vec![fragment]);
        }
        Ok(fragments)
    }

    /// The fragments of a right operand for 8 columns, or for twice as many, from the n-th register of the sums on.
    fn load_columns(
        &mut self,
        o: &Operands,
        (k, n): (&Expr, usize),
        across: usize,
        (column, lanes): (&Expr, &Lanes),
    ) -> Result<Vec<Fragment>, LowerError> {
        let (factor, dtype) = (o.factor, self.program.tiles[o.b].dtype);
        let first = o.layout.offset(1, n);
        let transposed = !self.is_by_depth(o.b, 1);
        let none = Expr::default();
        let (k, place) = known(k);
        let loaded = if transposed && factor.each() == 1 {
            let mut loaded = Vec::new();
            for (right, beyond) in [(0, 0), (0, 4), (8, 0), (8, 4)].into_iter().take(across) {
                let at = [(k.add(&lanes.row), place + beyond), (column.add(&lanes.along), first + right)];
                let address = self.element(&o.right, &at)?;
                loaded.extend(self.code.load(dtype, 1, address, None));
            }
            loaded
        } else {
            let (of_depth, of_column) = match (transposed, across) {
                (true, 4) => (&lanes.sixteen, &lanes.upper),
                (true, _) => (&lanes.sixteen, &none),
                (false, 4) => (&lanes.second, &lanes.columns),
                (false, _) => (&lanes.second, &lanes.column),
            };
            let address = self.element(&o.right, &[(k.add(of_depth), place), (column.add(of_column), first)])?;
            self.code.several(DType::U32, across, Op::Matrix { address, transposed })
        };
        Ok(loaded.chunks(2).map(|two| self.split(factor, two.to_vec())).collect())
    }

    /// Adds the products of [`Factor::depth`] places of the fold to each accumulator, two columns of fragments at a time. Of
    /// factors in two parts the small products are added first, and that of the two smallest parts is left out.
    pub(super) fn matrix_multiply(
        &mut self,
        o: &Operands,
        k: &Expr,
        sums: &[ValueId],
    ) -> Result<Vec<ValueId>, LowerError> {
        let factor = o.factor;
        let place = k.as_const();
        let held = place.and_then(|k| self.fragments.get(&(o.a, k)).cloned());
        let fragments = match (held, &o.left) {
            (Some(fragments), _) => fragments,
            (None, Left::Staged(left)) => self.load_fragments(factor, (o.a, left), &o.layout, k)?,
            (None, Left::Registers(from)) => self.round_fragments(o, *from, place.unwrap_or(0))?,
        };
        let column = self.warp_position(&o.layout, 1);
        let lanes = self.lanes(factor, &o.layout);
        let mut sums = sums.to_vec();
        let across = if o.layout.along(1) >= 4 && self.parts(factor) == 1 { 4 } else { 2 };
        for n in (0..o.layout.along(1)).step_by(across) {
            let columns = self.load_columns(o, (k, n), across, (&column, &lanes))?;
            for (i, a) in fragments.iter().enumerate() {
                for (j, b) in columns.iter().enumerate() {
                    let (i, n) = (2 * i, n + 2 * j);
                    let at = [[i, n], [i, n + 1], [i + 1, n], [i + 1, n + 1]].map(|c| o.layout.register(&c));
                    for (left, right) in [(1, 0), (0, 1), (0, 0)] {
                        let (Some(a), Some(b)) = (a.get(left), b.get(right)) else { continue };
                        let c = at.map(|r| sums.get(r).copied());
                        let (&[a0, a1, a2, a3], &[b0, b1], [Some(c0), Some(c1), Some(c2), Some(c3)]) =
                            (a.as_slice(), b.as_slice(), c)
                        else {
                            continue;
                        };
                        let op = Op::Mma { factor, a: [a0, a1, a2, a3], b: [b0, b1], c: [c0, c1, c2, c3] };
                        for (r, sum) in at.into_iter().zip(self.code.several(factor.sums(), 4, op)) {
                            sums[r] = sum;
                        }
                    }
                }
            }
        }
        Ok(sums)
    }
}
