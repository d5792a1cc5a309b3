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
use super::matrix::{BLOCK, FEWEST_ROWS, registers};
use super::online::{Keys, Local};
use super::parts::{counted, loaded, stored};
use super::{Builder, COLUMN, single};
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::id::Id;
use kiln_ir::scalar::{BinaryOp, Code, Constant, Coord, Less, Scalar, Source};
use kiln_ir::tile::{Factors, Multiply, Part, Stmt, TileId, TileOp};
use kiln_ir::vector::Product;

/// Pairs that the unit takes in a step.
const STEP: i64 = BLOCK / 2;

/// Most numbers of 4 bytes in a program's local memory: 192 KiB of its stack.
const MOST_LOCAL: i64 = 48 << 10;

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
        let input = |code: &Code, id: Id<Scalar>| match code.node(id) {
            Scalar::Load(Source::Input(n), coords) if code.dtype(id) == DType::F32 => match coords.as_slice() {
                [Coord::Index(at)] => Some((*n, at.clone())),
                _ => None,
            },
            _ => None,
        };
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
        let heads = nests.batch.iter().try_fold(1i64, |all, a| all.checked_mul(a.known()?))?;
        let block = rows.min(BLOCK);
        let of_row = Local::of_row(keys.stride, operands.columns, false);
        let sizes = [
            block * operands.depth / 2,
            operands.depth / 2 * 2 * operands.pairs(),
            operands.pairs() * operands.columns,
            block * operands.pairs(),
            BLOCK * BLOCK,
        ];
        let all = sizes.iter().sum::<i64>() + block * of_row;
        if rows % BLOCK != 0 && rows % BLOCK < FEWEST_ROWS && rows > BLOCK || block < FEWEST_ROWS || all > MOST_LOCAL {
            return None;
        }
        let (buffer, input) = (self.program.buffers.len(), self.buffers.len());
        let local = Local { input, buffer, rows: block, stride: keys.stride, columns: operands.columns };
        self.local_named("scores", DType::F32, usize::try_from(block * of_row).ok()?);
        self.buffers.push(buffer);
        self.known.push(vec![]);
        let names = ["queries", "keys", "values", "shares"].into_iter().zip(sizes);
        let mut pairs = names.map(|(name, size)| self.named(name, DType::I32, size)).collect::<Vec<_>>().into_iter();
        let memory = Memory {
            queries: pairs.next()?,
            keys: pairs.next()?,
            values: pairs.next()?,
            shares: pairs.next()?,
            sums: self.named("products", DType::F32, BLOCK * BLOCK),
        };

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

    fn pair(&mut self, body: &mut Vec<Stmt>, [low, high]: [TileId; 2], to: (usize, Expr)) {
        let pair = self.emitter(&[]).binary(body, BinaryOp::Pair, low, high);
        body.push(stored(to.0, to.1, pair));
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
        for run in of.key_blocks() {
            let (block, step, pair) = (self.symbol("b"), self.symbol("q"), self.symbol("p"));
            let mut place = place.clone();
            place.enter(&block, &run.count);
            place.enter(&step, &Expr::from(of.depth / BLOCK));
            place.enter(&pair, &Expr::from(STEP));
            place.ranges.insert(tile_axis(COLUMN), (0, BLOCK - 1));
            let along = Expr::from(tile_axis(COLUMN));
            let number = run.lo.floor_div(&Expr::from(BLOCK)).add(&Expr::from(&block));
            let below = (run.block < BLOCK).then(|| Less { left: along.clone(), right: Expr::from(run.block) });
            let mut inner = Vec::new();
            let half = |this: &mut Self, inner: &mut Vec<Stmt>, n: i64| {
                let element = Expr::from(&step).scale(BLOCK).add(&Expr::from(&pair)).add(&Expr::from(n * STEP));
                let at = [(depth, element), (&nests.key.symbol, number.scale(BLOCK).add(&along))];
                this.numbers(inner, Self::number_at(&place, &of.key, &at), BLOCK, below.clone())
            };
            let halves = [half(self, &mut inner, 0)?, half(self, &mut inner, 1)?];
            let row = number.scale(of.depth / 2).add(&Expr::from(&step).scale(STEP)).add(&Expr::from(&pair));
            self.pair(&mut inner, halves, (to, row.scale(BLOCK).add(&along)));
            let of_step = counted(pair, STEP, 1, inner);
            let of_block = counted(step, of.depth / BLOCK, 1, vec![of_step]);
            body.push(counted(block, run.count.as_const()?, 1, vec![of_block]));
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
        // Runs of pairs of which both, the first or none is a key; where they begin, how many blocks have them, how many there are of each.
        let (whole, rest) = (of.keys / BLOCK, of.keys % BLOCK);
        let (both, one) = ((rest - STEP).max(0), rest.min(STEP));
        let runs = [
            (0, whole, 0, STEP, 2),
            (whole, 1, 0, both, 2),
            (whole, 1, both, one - both, 1),
            (whole, 1, one, STEP - one, 0),
        ];
        for (first, blocks, begin, pairs, numbers) in runs {
            if blocks == 0 || pairs == 0 || first == whole && rest == 0 {
                continue;
            }
            let (block, pair, panel) = (self.symbol("b"), self.symbol("p"), self.symbol("c"));
            let mut place = place.clone();
            place.enter(&block, &Expr::from(blocks));
            place.enter(&pair, &Expr::from(pairs));
            place.enter(&panel, &Expr::from(of.columns / BLOCK));
            place.ranges.insert(tile_axis(COLUMN), (0, BLOCK - 1));
            let along = Expr::from(tile_axis(COLUMN));
            let number = Expr::from(&block).add(&Expr::from(first));
            let within = Expr::from(&pair).add(&Expr::from(begin));
            let column = Expr::from(&panel).scale(BLOCK).add(&along);
            let mut inner = Vec::new();
            let mut halves = Vec::new();
            for n in 0..2 {
                let key = number.scale(BLOCK).add(&within).add(&Expr::from(n * STEP));
                let at = Self::number_at(
                    &place,
                    &of.value,
                    &[(&nests.key.symbol, key), (&nests.column.symbol, column.clone())],
                );
                halves.push(match n < numbers {
                    true => self.numbers(&mut inner, at, BLOCK, None)?,
                    false => {
                        let none = TileOp::Const(Constant::float(DType::F32, 0.0));
                        self.emitter(&[]).define(&mut inner, DType::F32, vec![1, BLOCK as usize, 1], none)
                    }
                });
            }
            let row = Expr::from(&panel).scale(of.pairs()).add(&number.scale(STEP)).add(&within);
            self.pair(&mut inner, halves.try_into().ok()?, (to, row.scale(BLOCK).add(&along)));
            let of_pair = counted(panel, of.columns / BLOCK, 1, inner);
            let of_block = counted(pair, pairs, 1, vec![of_pair]);
            body.push(counted(block, blocks, 1, vec![of_block]));
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
        let mut at = place.clone();
        at.enter(&row, &Expr::from(rows));
        at.enter(&step, &Expr::from(of.depth / BLOCK));
        at.ranges.insert(tile_axis(COLUMN), (0, STEP - 1));
        let mut inner = Vec::new();
        let mut halves = Vec::new();
        for n in 0..2 {
            let element = Expr::from(&step).scale(BLOCK).add(&along).add(&Expr::from(n * STEP));
            let of_row = [(&nests.row.symbol, first.add(&Expr::from(&row))), (&nests.depth.first()?.symbol, element)];
            halves.push(self.numbers(&mut inner, Self::number_at(&at, &of.query, &of_row), STEP, None)?);
        }
        let to = Expr::from(&row).scale(depth).add(&Expr::from(&step).scale(STEP)).add(&along);
        self.pair(&mut inner, halves.try_into().ok()?, (memory.queries, to));
        body.push(counted(row, rows, 1, vec![counted(step, of.depth / BLOCK, 1, inner)]));

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
        let mut inner = Vec::new();
        let mut halves = Vec::new();
        for n in 0..2 {
            let key = Expr::from(&block).scale(BLOCK).add(&along).add(&Expr::from(n * STEP));
            let load = loaded(local.buffer, local.score(&Expr::from(&row), &key), DType::F32);
            halves.push(self.emitter(&[]).define(&mut inner, DType::F32, vec![1, STEP as usize, 1], load));
        }
        let to = Expr::from(&row).scale(width).add(&Expr::from(&block).scale(STEP)).add(&along);
        self.pair(&mut inner, halves.try_into().ok()?, (memory.shares, to));
        body.push(counted(row, rows, 1, vec![counted(block, of.blocks(), 1, inner)]));

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
