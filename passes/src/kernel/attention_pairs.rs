//! Attention whose products go to the unit for matrices, as pairs of bf16.
//!
//! Invariant: a program has the queries of a head, or a block of them. It makes pairs of the head's keys and values, which stay in the second cache,
//! and of each block of queries; scores, softmax and the division are f32 and lie where [`super::attention_rows`] has them. Two numbers that
//! are a pair are 16 apart: elements of a query and a key, keys of a share and a value. Behind the last key shares and values are 0.

use super::attention::Attention;
use super::attention_rows::Nests;
use super::cuts::{Segment, block_variables, segments};
use super::emit::{Place, tile_axis};
use super::flat::{FlatNest, Stride, stride};
use super::gpu::product;
use super::matrix::{BLOCK, FEWEST_ROWS, registers};
use super::online::{Keys, Local};
use super::parts::{counted, load, loaded, stored};
use super::{Builder, COLUMN, MOST_LOCAL, single};
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::id::Id;
use kiln_ir::scalar::{BinaryOp, Code, Constant, Less, Scalar};
use kiln_ir::tile::{Factors, Multiply, Part, Stmt, TileId, TileOp};
use kiln_ir::vector::Product;

/// Pairs that the unit takes in a step.
const STEP: i64 = BLOCK / 2;

/// With fewer heads than this the blocks of queries are programs of their own, each of which makes the pairs of all keys.
const LEAST_HEADS: i64 = 4;

/// A number that is loaded: of an input, at an address.
type Loaded = (usize, Expr);

/// What the unit multiplies, with the extents of its axes.
struct Operands {
    query: Loaded,
    key: Loaded,
    value: Loaded,
    depth: i64,
    columns: i64,
    keys: i64,
}

impl Operands {
    /// Nothing where something does not lie side by side or is no multiple of what the unit takes.
    fn of(nests: &Nests) -> Option<Operands> {
        let [depth] = nests.depth.as_slice() else { return None };
        let (key, column) = (&nests.key.symbol, &nests.column.symbol);
        let two = |code: &Code| match code.node(code.result()) {
            Scalar::Binary(BinaryOp::Mul, a, b) => Some([*a, *b]),
            _ => None,
        };
        let input = |code: &Code, id: Id<Scalar>| load(code, id, DType::F32);
        let [a, b] = two(&nests.products)?.map(|id| input(&nests.products, id));
        let (a, b) = (a?, b?);
        let (query, keys) = if b.1.mentions(key) { (a, b) } else { (b, a) };
        let value = two(&nests.of_values)?.into_iter().find_map(|id| input(&nests.of_values, id))?;
        let beside = |at: &Expr, axis: &Symbol| stride(at, axis) == Stride::Known(1);
        let known = Operands {
            query,
            key: keys,
            value,
            depth: depth.known()?,
            columns: nests.column.known()?,
            keys: nests.key.known()?,
        };
        let lies = !known.query.1.mentions(key)
            && beside(&known.query.1, &depth.symbol)
            && beside(&known.key.1, key)
            && beside(&known.value.1, column);
        (lies && known.depth % BLOCK == 0 && known.columns % BLOCK == 0).then_some(known)
    }

    /// Keys in whole blocks.
    fn blocks(&self) -> i64 {
        (self.keys + BLOCK - 1) / BLOCK
    }

    /// Whole blocks of keys, and what is left.
    fn key_blocks(&self) -> impl Iterator<Item = Segment> + use<> {
        let (whole, rest) = (self.keys / BLOCK, self.keys % BLOCK);
        let rest = Segment::new(whole * BLOCK, rest, i64::from(rest > 0));
        [Segment::new(0, BLOCK, whole), rest].into_iter().filter(|s| s.count.as_const() != Some(0))
    }

    /// Pairs of all keys.
    fn pairs(&self) -> i64 {
        self.blocks() * STEP
    }
}

/// Local memory beside the scores.
struct Memory {
    queries: usize,
    keys: usize,
    values: usize,
    shares: usize,
    sums: usize,
}

impl Builder<'_> {
    /// See the module. Nothing where factors are not rounded, and for forms that this does not have.
    pub(super) fn attention_of_pairs(&mut self, flats: &[FlatNest]) -> Option<()> {
        if !self.machine.matrices || !self.machine.rounds_attention {
            return None;
        }
        let a = Attention::of(flats)?;
        let keys = Keys::of(&a, self.machine, None, || Symbol::new("s"))?.in_runs(BLOCK)?;
        let mut nests = Nests::of(&a, &keys, &mut || self.symbol("x"))?;
        let operands = Operands::of(&nests)?;
        let rows = nests.row.known()?;
        let heads = product(&nests.batch).as_const()?;
        let block = rows.min(BLOCK);
        let of_row = Local::of_row(keys.stride, operands.columns, false);
        let sizes = [
            block * operands.depth / 2,
            operands.depth * operands.pairs(),
            operands.pairs() * operands.columns,
            block * operands.pairs(),
        ];
        let all = sizes.iter().sum::<i64>() + BLOCK * BLOCK + block * of_row;
        if rows % BLOCK != 0 && rows % BLOCK < FEWEST_ROWS && rows > BLOCK || block < FEWEST_ROWS || all > MOST_LOCAL {
            return None;
        }
        let (buffer, input) = (self.program.buffers.len(), self.buffers.len());
        let local = Local { input, buffer, rows: block, stride: keys.stride, columns: operands.columns };
        self.local_named("scores", DType::F32, usize::try_from(block * of_row).ok()?);
        self.buffers.push(buffer);
        self.known.push(vec![]);
        let mut named = |(n, name)| self.named(name, DType::I32, sizes[n]);
        let [queries, keys_at, values, shares] =
            [(0, "queries"), (1, "keys"), (2, "values"), (3, "shares")].map(&mut named);
        let sums = self.named("products", DType::F32, BLOCK * BLOCK);
        let memory = Memory { queries, keys: keys_at, values, shares, sums };

        let cut: Vec<_> = segments(&nests.row.extent, block, 1, &a.out.dims).into_iter().map(|s| vec![s]).collect();
        let together = heads >= LEAST_HEADS;
        for run in if together { vec![cut.concat()] } else { cut } {
            let symbol = nests.row.symbol.clone();
            let of_rows = |s: &Segment| Some((symbol.clone(), s.clone()));
            let mut grid: Vec<(Symbol, Expr)> =
                nests.batch.iter().map(|a| (a.symbol.clone(), a.extent.clone())).collect();
            if !together {
                grid.extend(run.iter().flat_map(|s| block_variables(&of_rows(s))));
            }
            let mut place = self.outermost(&a.out);
            grid.iter().for_each(|(symbol, extent)| place.enter(symbol, extent));
            nests.at_keys(&keys, &place);
            let mut body = Vec::new();
            self.paired_keys(&mut body, &nests, &operands, &place, memory.keys)?;
            self.paired_values(&mut body, &nests, &operands, &place, memory.values)?;
            for segment in run {
                let blocks = if together { of_rows(&segment) } else { None };
                self.for_blocks(&mut body, &blocks, &place, |this, inner, place| {
                    let first = segment.first(&nests.row.symbol);
                    this.block_of_queries(
                        inner,
                        &nests,
                        (&operands, &keys),
                        place,
                        (&local, &memory),
                        (&first, segment.block),
                    )
                })?;
            }
            self.program.parts.push(Part { grid, body });
        }
        Some(())
    }

    /// Loads numbers side by side, 0 where there are none, which is where an index is not below a bound.
    fn numbers(
        &mut self,
        body: &mut Vec<Stmt>,
        (input, at): (usize, Expr),
        lanes: i64,
        below: Option<Less>,
    ) -> Option<TileId> {
        let mut shape = single();
        shape[COLUMN] = usize::try_from(lanes).ok()?;
        let (mask, other) = (below.into_iter().collect(), Constant::int(DType::F32, 0));
        let load = TileOp::Load { buffer: *self.buffers.get(input)?, address: at, gathered: vec![], mask, other };
        Some(self.emitter(&[]).define(body, DType::F32, shape, load))
    }

    /// The address of a number whose axis is at an element.
    fn number_at(place: &Place, (input, address): &Loaded, at: &[(&Symbol, Expr)]) -> Loaded {
        let mut place = place.clone();
        at.iter().for_each(|(symbol, e)| _ = place.at.insert((*symbol).clone(), e.clone()));
        (*input, place.expr(address))
    }

    /// Pairs of two tiles of so many lanes, each of which `half` makes, stored side by side from an address on, in loops over variables, outermost first.
    fn paired(
        &mut self,
        body: &mut Vec<Stmt>,
        place: &Place,
        (loops, lanes): (&[(&Symbol, i64)], i64),
        (to, first): (usize, &Expr),
        half: impl Fn(&mut Self, &mut Vec<Stmt>, &Place, i64) -> Option<TileId>,
    ) -> Option<()> {
        let mut place = place.clone();
        loops.iter().for_each(|(variable, count)| place.enter(variable, &Expr::from(*count)));
        place.ranges.insert(tile_axis(COLUMN), (0, lanes - 1));
        let mut inner = Vec::new();
        let [low, high] = [half(self, &mut inner, &place, 0)?, half(self, &mut inner, &place, 1)?];
        let pair = self.emitter(&[]).binary(&mut inner, BinaryOp::Pair, low, high);
        inner.push(stored(to, first.add(&Expr::from(tile_axis(COLUMN))), pair));
        for (variable, count) in loops.iter().rev() {
            inner = vec![counted((*variable).clone(), *count, 1, inner)];
        }
        body.extend(inner);
        Some(())
    }

    /// The pairs of all keys, `[block of 32 keys][pair][key]`.
    fn paired_keys(
        &mut self,
        body: &mut Vec<Stmt>,
        nests: &Nests,
        of: &Operands,
        place: &Place,
        to: usize,
    ) -> Option<()> {
        let depth = &nests.depth.first()?.symbol;
        let along = Expr::from(tile_axis(COLUMN));
        for run in of.key_blocks() {
            let (block, step, pair) = (self.symbol("b"), self.symbol("q"), self.symbol("p"));
            let number = run.lo.floor_div(&Expr::from(BLOCK)).add(&Expr::from(&block));
            let below = (run.block < BLOCK).then(|| Less { left: along.clone(), right: Expr::from(run.block) });
            let loops = [(&block, run.count.as_const()?), (&step, of.depth / BLOCK), (&pair, STEP)];
            let row = number.scale(of.depth / 2).add(&Expr::from(&step).scale(STEP)).add(&Expr::from(&pair));
            self.paired(body, place, (&loops, BLOCK), (to, &row.scale(BLOCK)), |this, inner, place, n| {
                let element = Expr::from(&step).scale(BLOCK).add(&Expr::from(&pair)).add(&Expr::from(n * STEP));
                let at = [(depth, element), (&nests.key.symbol, number.scale(BLOCK).add(&along))];
                this.numbers(inner, Self::number_at(place, &of.key, &at), BLOCK, below.clone())
            })?;
        }
        Some(())
    }

    /// The pairs of all values, `[32 columns][pair][column]`.
    fn paired_values(
        &mut self,
        body: &mut Vec<Stmt>,
        nests: &Nests,
        of: &Operands,
        place: &Place,
        to: usize,
    ) -> Option<()> {
        // Runs of pairs of which both, the first or none is a key: the first block, how many there are, the first pair, how many of each block.
        let (whole, rest) = (of.keys / BLOCK, of.keys % BLOCK);
        let last = i64::from(rest > 0);
        let (both, one) = ((rest - STEP).max(0), rest.min(STEP));
        let runs = [
            (0, whole, 0, STEP, 2),
            (whole, last, 0, both, 2),
            (whole, last, both, one - both, 1),
            (whole, last, one, STEP - one, 0),
        ];
        for (first, blocks, begin, pairs, numbers) in runs.into_iter().filter(|run| run.1 > 0 && run.3 > 0) {
            let (block, pair, panel) = (self.symbol("b"), self.symbol("p"), self.symbol("c"));
            let number = Expr::from(&block).add(&Expr::from(first));
            let within = Expr::from(&pair).add(&Expr::from(begin));
            let loops = [(&block, blocks), (&pair, pairs), (&panel, of.columns / BLOCK)];
            let row = Expr::from(&panel).scale(of.pairs()).add(&number.scale(STEP)).add(&within);
            self.paired(body, place, (&loops, BLOCK), (to, &row.scale(BLOCK)), |this, inner, place, n| {
                if n >= numbers {
                    let none = TileOp::Const(Constant::float(DType::F32, 0.0));
                    return Some(this.emitter(&[]).define(inner, DType::F32, vec![1, BLOCK as usize, 1], none));
                }
                let key = number.scale(BLOCK).add(&within).add(&Expr::from(n * STEP));
                let column = Expr::from(&panel).scale(BLOCK).add(&Expr::from(tile_axis(COLUMN)));
                let at = [(&nests.key.symbol, key), (&nests.column.symbol, column)];
                this.numbers(inner, Self::number_at(place, &of.value, &at), BLOCK, None)
            })?;
        }
        Some(())
    }

    /// The results of a block of queries, of which there are `rows` from `first` on.
    fn block_of_queries(
        &mut self,
        body: &mut Vec<Stmt>,
        nests: &Nests,
        (of, keys): (&Operands, &Keys),
        place: &Place,
        (local, memory): (&Local, &Memory),
        (first, rows): (&Expr, i64),
    ) -> Option<()> {
        let along = Expr::from(tile_axis(COLUMN));
        let (depth, width) = (of.depth / 2, of.pairs());
        // Queries.
        let (row, step) = (self.symbol("r"), self.symbol("q"));
        let loops = [(&row, rows), (&step, of.depth / BLOCK)];
        let to = Expr::from(&row).scale(depth).add(&Expr::from(&step).scale(STEP));
        let element = &nests.depth.first()?.symbol;
        self.paired(body, place, (&loops, STEP), (memory.queries, &to), |this, inner, place, n| {
            let at = Expr::from(&step).scale(BLOCK).add(&along).add(&Expr::from(n * STEP));
            let at = [(&nests.row.symbol, first.add(&Expr::from(&row))), (element, at)];
            this.numbers(inner, Self::number_at(place, &of.query, &at), STEP, None)
        })?;

        // Scores, block of keys by block of keys.
        let inside = Expr::from(&nests.row.symbol).sub(first);
        let scored = nests.scored(local, &inside);
        self.within = Some(local.buffer);
        for run in of.key_blocks() {
            let block = self.symbol("b");
            let mut place = place.clone();
            place.enter(&block, &run.count);
            place.at.insert(nests.row.symbol.clone(), first.clone());
            let number = run.lo.floor_div(&Expr::from(BLOCK)).add(&Expr::from(&block));
            let mut inner = Vec::new();
            let panel = (memory.keys, number.scale(depth * BLOCK));
            inner.push(self.paired_product(memory, rows, (memory.queries, depth), panel));
            let lanes = self.machine.lanes as i64;
            for columns in segments(&Expr::from(run.block), BLOCK, lanes, &nests.dims) {
                let mut place = place.clone();
                place.at.insert(nests.key.symbol.clone(), number.scale(BLOCK).add(&columns.lo));
                let sums = (memory.sums, columns.lo.clone());
                let across = (&nests.key.symbol, columns.block);
                self.finish_sums(&mut inner, &scored, &place, ((&nests.row.symbol, rows), across), (&sums, BLOCK))?;
            }
            body.push(counted(block, run.count.as_const()?, 1, inner));
        }
        self.softmax_within(body, place, local, keys, rows)?;
        self.within = None;

        // Shares.
        let (row, block) = (self.symbol("r"), self.symbol("b"));
        let loops = [(&row, rows), (&block, of.blocks())];
        let to = Expr::from(&row).scale(width).add(&Expr::from(&block).scale(STEP));
        self.paired(body, place, (&loops, STEP), (memory.shares, &to), |this, inner, _, n| {
            let key = Expr::from(&block).scale(BLOCK).add(&along).add(&Expr::from(n * STEP));
            let load = loaded(local.buffer, local.score(&Expr::from(&row), &key), DType::F32);
            Some(this.emitter(&[]).define(inner, DType::F32, vec![1, STEP as usize, 1], load))
        })?;

        // Their products with the values.
        let summed = nests.summed(local, &inside)?;
        let panel = self.symbol("c");
        let mut place = place.clone();
        place.enter(&panel, &Expr::from(of.columns / BLOCK));
        place.at.insert(nests.row.symbol.clone(), first.clone());
        place.at.insert(nests.column.symbol.clone(), Expr::from(&panel).scale(BLOCK));
        let values = (memory.values, Expr::from(&panel).scale(width * BLOCK));
        let mut inner = vec![self.paired_product(memory, rows, (memory.shares, width), values)];
        let axes = ((&nests.row.symbol, rows), (&nests.column.symbol, BLOCK));
        self.finish_sums(&mut inner, &summed, &place, axes, (&(memory.sums, Expr::default()), BLOCK))?;
        body.push(counted(panel, of.columns / BLOCK, 1, inner));
        Some(())
    }

    /// The sums of rows of so many pairs with those of a panel of 32 columns.
    fn paired_product(
        &mut self,
        memory: &Memory,
        rows: i64,
        (left, pairs): (usize, i64),
        (right, panel): (usize, Expr),
    ) -> Stmt {
        let step = self.symbol("k");
        let [a0, a1] = [0, 1].map(|n| Expr::from(tile_axis(n)));
        let left = (left, a0.scale(pairs).add(&a1).add(&Expr::from(&step)));
        let right = (right, panel.add(&Expr::from(&step).add(&a0).scale(BLOCK)).add(&a1));
        Stmt::Multiply(Multiply {
            out: (memory.sums, Expr::default()),
            adds: false,
            rows: registers(rows),
            columns: registers(BLOCK),
            product: Product::Pairs,
            depth: STEP as usize,
            rounds: vec![vec![Factors { left, right }]],
            folds: vec![(step, Expr::from(pairs), STEP)],
            ahead: None,
        })
    }
}
