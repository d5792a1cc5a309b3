//! Which thread holds which elements of a tile, in which register.
//!
//! Invariant: the bits of an element's position along an axis (its extent rounded up to a power of two) are each
//! given by one bit of the register's number or one bit of the thread's number, and no bit of a thread's number
//! gives two. Threads that differ only in bits that give nothing hold copies of the same elements.
//!
//! Tiles that meet in an elementwise operation form a *class* and agree: along each axis of a class there is one
//! list of bits, and a tile takes as many of them as its extent needs. So no operation but a product, a transpose and a
//! reduction ever moves an element to another thread. All-constant tiles and tiles of one element fit every layout and
//! join no classes.

use super::Floats;
use super::index::{common, divisor};
use super::memory::aligned;
use kiln_ir::scalar::Less;
use kiln_ir::tile::{For, Part, Stmt, TileId, TileOp, TileProgram, TileType, axis};
use kiln_ir::vector::Product as Elements;
use kiln_ir::warp::Factor;
use kiln_ir::{DType, Expr};
use std::collections::HashMap;

/// What gives one bit of a position along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bit {
    /// The next bit of the register's number along the axis.
    Register,
    /// A bit of the thread's number.
    Thread(u32),
}

/// The layout of a tile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Extents of the tile.
    pub shape: Vec<usize>,
    /// For each axis the bits of a position, the least first.
    pub axes: Vec<Vec<Bit>>,
}

/// `log2` of the extent rounded up to a power of two.
pub(super) fn bits_for(extent: usize) -> usize {
    extent.max(1).next_power_of_two().trailing_zeros() as usize
}

impl Layout {
    /// How many registers a thread has along an axis.
    pub fn along(&self, axis: usize) -> usize {
        1 << self.axes[axis].iter().filter(|b| **b == Bit::Register).count()
    }

    /// How many registers a thread has for the tile.
    pub fn registers(&self) -> usize {
        (0..self.axes.len()).map(|k| self.along(k)).product()
    }

    /// The register's number along each axis; the last axis runs fastest.
    pub fn coordinates(&self, register: usize) -> Vec<usize> {
        let mut rest = register;
        let mut out = vec![0; self.axes.len()];
        for k in (0..self.axes.len()).rev() {
            out[k] = rest % self.along(k);
            rest /= self.along(k);
        }
        out
    }

    /// The register of those numbers along the axes, where an axis of extent 1 has the number 0 whatever is given.
    pub fn register(&self, coordinates: &[usize]) -> usize {
        coordinates.iter().enumerate().fold(0, |r, (k, &c)| {
            let n = self.along(k);
            r * n + if n == 1 { 0 } else { c }
        })
    }

    /// What the register's number along an axis adds to the position.
    pub fn offset(&self, axis: usize, number: usize) -> i64 {
        let registers = self.axes[axis].iter().enumerate().filter(|(_, b)| **b == Bit::Register);
        registers.enumerate().map(|(n, (position, _))| ((number >> n & 1) as i64) << position).sum()
    }

    /// What the register adds to the position along each axis.
    pub fn offsets(&self, register: usize) -> Vec<i64> {
        self.coordinates(register).into_iter().enumerate().map(|(k, c)| self.offset(k, c)).collect()
    }

    /// How many of the least bits along an axis are bits of the register's number.
    pub fn run(&self, axis: usize) -> usize {
        self.axes[axis].iter().take_while(|b| **b == Bit::Register).count()
    }

    /// The bits of the thread's number that give something, as a mask.
    pub fn used(&self) -> u32 {
        self.axes.iter().flatten().fold(0, |mask, b| mask | thread_bit(*b))
    }

    /// The same, of one axis.
    pub fn used_along(&self, axis: usize) -> u32 {
        self.axes[axis].iter().fold(0, |mask, b| mask | thread_bit(*b))
    }

    /// Positions along the axis that are beyond the tile.
    pub fn is_padded(&self, axis: usize) -> bool {
        !self.shape[axis].is_power_of_two()
    }
}

fn thread_bit(bit: Bit) -> u32 {
    match bit {
        Bit::Register => 0,
        Bit::Thread(n) => 1 << n,
    }
}

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Product {
    /// Multiply-adds in every thread.
    Fma,
    /// Matrix instructions.
    Mma,
}

/// How the product of `a` and `b` that is summed in `c` is computed: by matrix instructions where they compute it with exact
/// products, that is for two operands of f16 or of bf16 summed in f32, or of bytes; and for f32, where these may be rounded.
fn product(of: Option<Elements>, [a, b, c]: [&TileType; 3], floats: Floats) -> Product {
    let (m, k) = (a.shape.first().copied().unwrap_or(1), a.shape.get(1).copied().unwrap_or(1));
    let n = b.shape.get(1).copied().unwrap_or(1);
    let fits = a.dtype != DType::F32 || floats != Floats::Whole;
    let factor = Factor::of([a.dtype, b.dtype], of).filter(|f| fits && c.dtype == f.sums());
    match factor {
        Some(factor) if m >= 16 && n >= 8 && k.is_multiple_of(factor.depth()) => Product::Mma,
        Some(_) | None => Product::Fma,
    }
}

/// How an operand of a product lies in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Staging {
    /// The axis along which elements are neighbours, as they are in global memory.
    pub along: usize,
    /// Whether lanes of a warp read several of its rows at once, so that they have to lie in different banks.
    pub swizzled: bool,
    /// Whether lanes also read four rows of elements of 4 bytes, eight neighbours of each.
    pub rotated: bool,
    /// Whether the rows that lanes read at once are pairs that are eight rows apart; see [`Facts::is_spread`].
    pub spread: bool,
}

/// The layouts of all tiles of a part.
pub(super) struct Layouts<'a> {
    program: &'a TileProgram,
    /// Representative of each tile's class; a tile that stands for itself is its own.
    parent: Vec<usize>,
    /// For each class (at its representative), the bits along each axis.
    bits: Vec<Vec<Vec<Bit>>>,
    /// For each class, how its products are computed.
    products: Vec<Option<Product>>,
    /// Of the operands of products.
    stagings: HashMap<TileId, Staging>,
    /// How products of f32 are multiplied.
    floats: Floats,
    /// Threads of a block, as a power of two.
    pub threads: u32,
}

impl<'a> Layouts<'a> {
    /// Chooses layouts for a block of `1 << threads` threads, or of as many as seem right.
    pub fn choose(program: &'a TileProgram, part: &Part, (threads, floats): (Option<u32>, Floats)) -> Layouts<'a> {
        let mut layouts = Layouts {
            program,
            parent: (0..program.tiles.len()).collect(),
            bits: vec![Vec::new(); program.tiles.len()],
            products: Vec::new(),
            stagings: HashMap::new(),
            floats,
            threads: 0,
        };
        let mut facts = vec![Facts::default(); program.tiles.len()];
        layouts.classes(&part.body);
        layouts.gather(&part.body, &mut facts);
        layouts.operands(&part.body, &mut facts);
        // What is multiplied and folded along its rows decides alone: its warps cannot share rows.
        let folded = facts.iter().filter(|f| f.folded && f.product.is_some()).map(Facts::threads).max();
        let suitable = folded.or_else(|| facts.iter().map(Facts::threads).max()).unwrap_or(0).clamp(5, 8);
        layouts.threads = threads.unwrap_or(suitable);
        layouts.products = facts.iter().map(|f| f.product).collect();
        for (class, facts) in facts.into_iter().enumerate() {
            if layouts.parent[class] == class {
                layouts.bits[class] = facts.bits(layouts.threads as usize);
            }
        }
        layouts.spread_rows(&part.body);
        layouts
    }

    /// Gives a product and its class the registers of products of four warps: each group of four has 64 rows.
    pub fn by_groups(&mut self, id: TileId) {
        let class = self.class(id);
        let extents: Vec<usize> = self.program.tiles[id].shape.iter().map(|&e| bits_for(e)).collect();
        let &[rows, columns] = extents.as_slice() else { return };
        let (t, r) = (Bit::Thread, Bit::Register);
        let mut down = vec![t(2), t(3), t(4), r, t(5), t(6)];
        down.extend((7..).map(t).take(rows.saturating_sub(down.len())));
        let mut across = vec![r, t(0), t(1)];
        across.resize(columns.max(across.len()), r);
        self.bits[class] = vec![down, across];
    }

    /// The layout of a tile.
    pub fn of(&self, id: TileId) -> Layout {
        let shape = self.program.tiles[id].shape.clone();
        let bits = &self.bits[self.class(id)];
        let axis = |(k, &extent): (usize, &usize)| {
            bits.get(k).into_iter().flatten().take(bits_for(extent)).copied().collect::<Vec<Bit>>()
        };
        let axes = shape.iter().enumerate().map(axis).collect();
        Layout { shape, axes }
    }

    /// How the product that gives a tile is computed.
    pub fn product(&self, id: TileId) -> Product {
        self.products[self.class(id)].unwrap_or(Product::Fma)
    }

    /// Whether a product's left operand lies in the registers of the product's own layout, so that fragments of matrix
    /// instructions are made of it without shared memory.
    pub fn is_in_registers(&self, product: TileId, left: TileId) -> bool {
        let rows = self.of(left).axes.get(ACROSS).is_some_and(|bits| {
            let lanes = [Bit::Register, Bit::Thread(0), Bit::Thread(1), Bit::Register];
            bits.starts_with(&lanes) && bits.iter().skip(lanes.len()).all(|b| *b == Bit::Register)
        });
        self.product(product) == Product::Mma && self.class(product) == self.class(left) && rows
    }

    /// How an operand of a product lies in shared memory.
    pub fn staging(&self, id: TileId) -> Option<Staging> {
        self.stagings.get(&id).copied()
    }

    /// The left operand of a product without matrix instructions is swizzled where the product is so narrow that lanes which
    /// are served together read different rows of it.
    fn spread_rows(&mut self, body: &[Stmt]) {
        let mut found = Vec::new();
        each(body, &mut |stmt| {
            if let Stmt::Let(id, TileOp::Dot(_, a, ..)) = stmt {
                found.push((*id, *a));
            }
        });
        for (id, a) in found {
            let rows = self.bits[self.class(id)].first();
            let apart = rows.is_some_and(|bits| bits.iter().any(|b| matches!(b, Bit::Thread(0..3))));
            if let Some(staging) = self.stagings.get_mut(&a)
                && apart
                && staging.along == DEPTH_OF_LEFT
            {
                staging.swizzled = true;
            }
        }
    }

    /// Decides how the operands of products lie in shared memory, and what that means for the products.
    fn operands(&mut self, body: &[Stmt], facts: &mut [Facts]) {
        let mut found = Vec::new();
        each(body, &mut |stmt| {
            if let Stmt::Let(id, TileOp::Dot(_, a, b, _)) = stmt {
                found.push((*id, *a, *b));
            }
        });
        for (id, a, b) in found {
            let along = |id: TileId| facts[self.class(id)].contiguous.map_or(1, |(axis, ..)| axis.min(1));
            let (of_a, of_b) = (along(a), along(b));
            let class = self.class(id);
            // Bytes are not turned round on the way to matrix instructions.
            let turned = of_a != DEPTH_OF_LEFT || of_b != DEPTH_OF_RIGHT;
            if turned && [a, b].into_iter().any(|o| self.program.tiles[o].dtype.is_ofp8()) {
                facts[class].product = Some(Product::Fma);
            }
            let matrix = facts[class].product == Some(Product::Mma);
            facts[class].by_depth |= of_b == DEPTH_OF_RIGHT;
            let spread = facts[class].is_spread();
            // Without matrix instructions the lanes read the left operand's rows nearly all at one place, and the right
            // one's along a row; but where its rows are columns of the product, each lane reads another.
            // What was computed in the product's own layout is written by lanes of several rows.
            let computed = self.class(a) == class;
            for (id, along, rows) in [(a, of_a, matrix || computed), (b, of_b, matrix || of_b == DEPTH_OF_RIGHT)] {
                let swizzled = rows || self.stagings.get(&id).is_some_and(|s| s.swizzled);
                let rotated = matrix && self.program.tiles[id].dtype.size() == 4;
                self.stagings.insert(id, Staging { along, swizzled, rotated, spread: id == b && spread });
            }
        }
    }

    fn class(&self, id: TileId) -> usize {
        let mut at = id.index();
        while self.parent[at] != at {
            at = self.parent[at];
        }
        at
    }

    fn join(&mut self, a: TileId, b: TileId, constants: &[TileId]) {
        let single = |id: TileId| self.program.tiles[id].shape.iter().all(|&e| e == 1) || constants.contains(&id);
        if !single(a) && !single(b) {
            let (a, b) = (self.class(a), self.class(b));
            self.parent[a.max(b)] = a.min(b);
        }
    }

    fn classes(&mut self, body: &[Stmt]) {
        let mut constants = Vec::new();
        each(body, &mut |stmt| {
            if let Stmt::Let(id, TileOp::Const(_)) = stmt {
                constants.push(*id);
            }
        });
        each(body, &mut |stmt| match stmt {
            Stmt::Let(id, op) => match op {
                TileOp::Const(_) | TileOp::Index(_) | TileOp::Transpose(..) => {}
                TileOp::Load { gathered, .. } => gathered.iter().for_each(|&g| self.join(*id, g, &constants)),
                TileOp::Unary(_, a) | TileOp::Cast(_, a) | TileOp::Reduce(_, _, a) => self.join(*id, *a, &constants),
                TileOp::CheckIndex { index, .. } => self.join(*id, *index, &constants),
                TileOp::Binary(_, a, b) => [a, b].into_iter().for_each(|&a| self.join(*id, a, &constants)),
                TileOp::Fma(a, b, c) | TileOp::Select(a, b, c) => {
                    [a, b, c].into_iter().for_each(|&a| self.join(*id, a, &constants));
                }
                TileOp::Dot(_, _, _, acc) => self.join(*id, *acc, &constants),
            },
            Stmt::For(For { carried, .. }) => {
                for c in carried {
                    // What is carried may change, so a constant that begins it is no constant here.
                    [c.init, c.next, c.after].into_iter().for_each(|id| self.join(c.inside, id, &[]));
                }
            }
            Stmt::Store { .. } | Stmt::Multiply(_) | Stmt::If(_) => {}
        });
    }

    /// Collects what the choice of a class's layout depends on.
    fn gather(&self, body: &[Stmt], facts: &mut [Facts]) {
        let tiles = &self.program.tiles;
        let see = |facts: &mut [Facts], id: TileId| {
            let (class, shape) = (self.class(id), &tiles[id].shape);
            let of_class = &mut facts[class].shape;
            of_class.resize(of_class.len().max(shape.len()), 1);
            of_class.iter_mut().zip(shape).for_each(|(most, &e)| *most = e.max(*most));
            class
        };
        // Numbers that divide the loops' variables, as far as one can say before code is made.
        let mut multiples = HashMap::new();
        each(body, &mut |stmt| {
            if let Stmt::For(For { var, lo, step, .. }) = stmt {
                multiples.insert(var.clone(), common(*step, divisor(lo, &multiples)));
            }
        });
        let memory = |facts: &mut [Facts], id: TileId, address: &Expr, mask: &[Less], dtype: DType| {
            let class = see(facts, id);
            let shape = &tiles[id].shape;
            let contiguous = (0..shape.len()).find(|&k| shape[k] > 1 && address.coefficient(&axis(k)) == Some(1));
            let elements = tiles[id].elements();
            let Some(k) = contiguous else { return };
            let wide = aligned((shape, k), dtype, address, mask, &multiples);
            let held = &mut facts[class].contiguous;
            *held = match *held {
                // Accesses that are narrower than a thread's share would leave gaps between those of neighbours.
                Some((axis, most, other)) if axis == k && most == elements => Some((k, elements, wide.min(other))),
                Some((_, most, _)) if elements <= most => *held,
                Some(_) | None => Some((k, elements, wide)),
            };
        };
        each(body, &mut |stmt| match stmt {
            Stmt::Let(id, op) => match op {
                TileOp::Load { buffer, address, mask, gathered, .. } if gathered.is_empty() => {
                    memory(facts, *id, address, mask, self.program.buffers[*buffer].dtype);
                }
                TileOp::Load { .. } => {
                    see(facts, *id);
                }
                TileOp::Dot(of, a, b, _) => {
                    let class = see(facts, *id);
                    let found = product(*of, [*a, *b, *id].map(|id| &tiles[id]), self.floats);
                    // One layout serves all products of the class.
                    let mixed = facts[class].product.is_some_and(|p| p != found);
                    facts[class].product = Some(if mixed { Product::Fma } else { found });
                    facts[class].products += 1;
                    facts[class].words |= of.is_some() && tiles[*a].shape.get(DEPTH_OF_LEFT) >= Some(&LEAST_WORDS);
                }
                TileOp::Const(_) | TileOp::Index(_) | TileOp::Unary(..) | TileOp::Binary(..) | TileOp::Fma(..) => {
                    see(facts, *id);
                }
                TileOp::Reduce(_, axis, _) => {
                    let class = see(facts, *id);
                    facts[class].folded |= *axis == ACROSS;
                }
                TileOp::Select(..) | TileOp::Cast(..) | TileOp::Transpose(..) => {
                    see(facts, *id);
                }
                TileOp::CheckIndex { .. } => {
                    see(facts, *id);
                }
            },
            Stmt::For(For { carried, .. }) => {
                for c in carried {
                    [c.init, c.inside, c.next, c.after].into_iter().for_each(|id| {
                        see(facts, id);
                    });
                }
            }
            Stmt::Store { buffer, address, mask, value, .. } => {
                let dtype = self.program.buffers[*buffer].dtype;
                memory(facts, *value, address, mask, dtype);
                let wide = aligned((&tiles[*value].shape, ACROSS), dtype, address, mask, &multiples);
                let stored = &mut facts[self.class(*value)].stored;
                *stored = Some(stored.map_or(wide, |other| wide.min(other)));
            }
            Stmt::Multiply(_) | Stmt::If(_) => {}
        });
    }
}

/// Calls `f` with every statement, outer ones first.
pub(super) fn each<'s>(body: &'s [Stmt], f: &mut impl FnMut(&'s Stmt)) {
    for stmt in body {
        f(stmt);
        if let Stmt::For(For { body, .. }) = stmt {
            each(body, f);
        }
    }
}

/// What the layout of a class depends on.
#[derive(Clone, Default)]
struct Facts {
    /// The greatest extents of its tiles.
    shape: Vec<usize>,
    /// The axis along which its largest access is contiguous, the elements of that tile, and how many neighbours can be
    /// accessed at once.
    contiguous: Option<(usize, usize, usize)>,
    /// How it is accumulated into, where it is.
    product: Option<Product>,
    /// Whether a right operand of its products has neighbours along the fold.
    by_depth: bool,
    /// Whether a tile of it is folded along its rows.
    folded: bool,
    /// How many neighbouring columns can be stored at once.
    stored: Option<usize>,
    /// How many products there are.
    products: usize,
    /// Whether one is of words of bytes, of at least [`LEAST_WORDS`].
    words: bool,
}

/// Words of a fold whose rows in shared memory have pieces enough to lie in different banks for [`Facts::is_spread`].
const LEAST_WORDS: usize = 16;

/// Columns of four matrix instructions, as a power of two.
const SPREAD: usize = 5;

/// The axis of a product's left operand that is folded, and that of its right one.
const DEPTH_OF_LEFT: usize = 1;
const DEPTH_OF_RIGHT: usize = 0;

/// The axis of the columns of a product.
const ACROSS: usize = 1;

impl Facts {
    fn total(&self) -> usize {
        self.shape.iter().map(|&e| bits_for(e)).sum()
    }

    /// `log2` of the threads that suit the class: 32 accumulators, or 8 elements, for each.
    fn threads(&self) -> u32 {
        let rows = self.shape.first().map_or(0, |&e| bits_for(e));
        let threads = match (self.product, self.folded) {
            // A warp has 16 rows, or more.
            (Some(Product::Mma), true) => self.total().saturating_sub(5).min(5 + rows.saturating_sub(4)),
            (Some(Product::Fma), true) => self.total().saturating_sub(4),
            (Some(_), false) => self.total().saturating_sub(5),
            (None, _) => self.total().saturating_sub(3),
        };
        threads as u32
    }

    /// Whether four matrix instructions take pairs of columns in turns, so that a lane has eight neighbouring ones: where results are
    /// of a byte or two, and lie as they are stored. Which columns an instruction takes is free where each is a row in shared memory.
    fn is_spread(&self) -> bool {
        let wide = self.stored.is_some_and(|wide| wide >= 8);
        let columns = self.shape.get(ACROSS).is_some_and(|&n| bits_for(n) >= SPREAD);
        let alone = self.products == 1 && self.product == Some(Product::Mma) && !self.folded;
        self.words && self.by_depth && wide && columns && alone
    }

    fn bits(&self, threads: usize) -> Vec<Vec<Bit>> {
        let extents: Vec<usize> = self.shape.iter().map(|&e| bits_for(e)).collect();
        match (self.product, extents.as_slice()) {
            (Some(Product::Mma), &[m, n]) if self.is_spread() => {
                let mut bits = matrix(m, n, threads, SPREAD, false);
                if let Some(columns) = bits.get_mut(ACROSS) {
                    // The two lanes' bits, and then those of the instruction's number.
                    columns[1..SPREAD].rotate_left(2);
                }
                bits
            }
            (Some(Product::Mma), &[m, n]) => matrix(m, n, threads, 3, self.folded),
            (Some(Product::Fma), &[m, n]) => outer_product(m, n, threads, self.by_depth),
            (Some(_), _) | (None, _) => self.blocked(&extents, threads),
        }
    }

    /// Wide accesses along the contiguous axis, lanes beside one another along it, then along the axes before it.
    fn blocked(&self, extents: &[usize], threads: usize) -> Vec<Vec<Bit>> {
        let last = extents.iter().rposition(|&e| e > 0).unwrap_or(0);
        // Where nothing is known to be beside anything, neighbours are in neighbouring lanes.
        let (contiguous, _, wide) = self.contiguous.unwrap_or((last, 0, 1));
        let total: usize = extents.iter().sum();
        let mut order: Vec<usize> = (0..extents.len()).rev().filter(|&k| k != contiguous).collect();
        if contiguous < extents.len() {
            order.insert(0, contiguous);
        }
        let mut bits: Vec<Vec<Bit>> = vec![Vec::new(); extents.len()];
        let wide = wide.max(1).ilog2() as usize;
        let mut next = 0;
        for &k in &order {
            if k == contiguous {
                bits[k] = vec![Bit::Register; wide.min(extents[k]).min(total.saturating_sub(threads))];
            }
            while bits[k].len() < extents[k] && next < threads {
                bits[k].push(Bit::Thread(next as u32));
                next += 1;
            }
            bits[k].resize(extents[k], Bit::Register);
        }
        bits
    }
}

/// A square of threads, each with four neighbouring columns and rows, then more of both. Where the right operand's
/// neighbours are along the fold, neighbouring threads have neighbouring columns, so that they read neighbouring rows.
fn outer_product(m: usize, n: usize, threads: usize, by_depth: bool) -> Vec<Vec<Bit>> {
    let columns = if by_depth { 0 } else { n.min(2) };
    let rows = m.min(2).min((m + n).saturating_sub(threads + columns));
    // Half of a warp along a row that is stored to shared memory: rows four apart meet in no bank, eight apart they would.
    let least = if by_depth { 4 } else { 0 };
    let across = (n - columns).min(threads.div_ceil(2).max(least));
    let down = (m - rows).min(threads - across);
    let across = (n - columns).min(threads - down);
    let list = |extent: usize, registers: usize, first: usize, threads: usize| {
        let mut bits = vec![Bit::Register; registers];
        bits.extend((first..first + threads).map(|b| Bit::Thread(b as u32)));
        bits.resize(extent, Bit::Register);
        bits
    };
    vec![list(m, rows, across, down), list(n, columns, 0, across)]
}

/// The accumulators of `mma.m16n8k16`: a lane holds rows `lane / 4` and 8 below, columns `2 * (lane % 4)` and the next.
/// The warps divide what is longer, so that their shares are nearly square, and have `1 << least` columns or more; where rows are
/// folded, only the rows.
fn matrix(m: usize, n: usize, threads: usize, least: usize, folded: bool) -> Vec<Vec<Bit>> {
    let (mut down, mut across) = (Vec::new(), Vec::new());
    for warp in 5..threads {
        let (rows, columns) = (m - down.len(), n - across.len());
        if rows > 4 && (rows >= columns || columns <= least || folded) {
            down.push(Bit::Thread(warp as u32));
        } else if columns > least && !folded {
            across.push(Bit::Thread(warp as u32));
        }
    }
    let list = |extent: usize, mut bits: Vec<Bit>, warps: Vec<Bit>| {
        bits.resize(extent - warps.len(), Bit::Register);
        bits.extend(warps);
        bits
    };
    let rows = vec![Bit::Thread(2), Bit::Thread(3), Bit::Thread(4), Bit::Register];
    let columns = vec![Bit::Register, Bit::Thread(0), Bit::Thread(1)];
    vec![list(m, rows, down), list(n, columns, across)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bits: &[Vec<Bit>]) -> String {
        let bit = |b: &Bit| match b {
            Bit::Register => "r".to_string(),
            Bit::Thread(n) => format!("t{n}"),
        };
        let axes: Vec<String> = bits.iter().map(|a| a.iter().map(bit).collect::<Vec<_>>().join(" ")).collect();
        axes.join(" | ")
    }

    #[test]
    fn products_are_spread_over_threads() {
        assert_eq!(text(&outer_product(7, 7, 8, false)), "r r t4 t5 t6 t7 r | r r t0 t1 t2 t3 r");
        assert_eq!(text(&outer_product(6, 6, 7, false)), "r r t4 t5 t6 r | r r t0 t1 t2 t3");
        assert_eq!(text(&outer_product(0, 10, 7, false)), " | r r t0 t1 t2 t3 t4 t5 t6 r");
        assert_eq!(text(&outer_product(7, 7, 8, true)), "r r t4 t5 t6 t7 r | t0 t1 t2 t3 r r r");
        assert_eq!(text(&outer_product(2, 2, 5, false)), "t0 t1 | r r");
        assert_eq!(text(&matrix(7, 7, 7, 3, false)), "t2 t3 t4 r r r t5 | r t0 t1 r r r t6");
        assert_eq!(text(&matrix(4, 7, 7, 3, false)), "t2 t3 t4 r | r t0 t1 r r t5 t6");
        assert_eq!(text(&matrix(4, 3, 7, 3, false)), "t2 t3 t4 r | r t0 t1");
        assert_eq!(text(&matrix(7, 6, 7, 3, true)), "t2 t3 t4 r r t5 t6 | r t0 t1 r r r");
        assert_eq!(text(&matrix(5, 6, 7, 3, true)), "t2 t3 t4 r t5 | r t0 t1 r r r");
    }

    #[test]
    fn columns_of_bytes_are_neighbours_in_a_lane() {
        let facts = Facts {
            shape: vec![64, 128],
            stored: Some(8),
            product: Some(Product::Mma),
            by_depth: true,
            products: 1,
            words: true,
            ..Facts::default()
        };
        assert_eq!(text(&facts.bits(7)), "t2 t3 t4 r r t6 | r r r t0 t1 r t5");
        // A warp has no fewer columns than four instructions.
        let narrow = Facts { shape: vec![64, 32], ..facts.clone() };
        assert_eq!(text(&narrow.bits(7)), "t2 t3 t4 r t5 t6 | r r r t0 t1");
        let whole = Facts { stored: Some(4), ..facts };
        assert_eq!(text(&whole.bits(7)), "t2 t3 t4 r r t6 | r t0 t1 r r r t5");
    }

    #[test]
    fn rows_are_spread_along_the_contiguous_axis() {
        let facts = |contiguous, shape: &[usize]| Facts { shape: shape.to_vec(), contiguous, ..Facts::default() };
        let bits = |f: Facts, threads| text(&f.bits(threads));
        assert_eq!(bits(facts(Some((1, 0, 4)), &[2, 1000]), 7), "r | r r t0 t1 t2 t3 t4 t5 t6 r");
        assert_eq!(bits(facts(Some((1, 0, 8)), &[64, 32]), 7), "t2 t3 t4 t5 t6 r | r r r t0 t1");
        assert_eq!(bits(facts(Some((0, 0, 4)), &[64, 4]), 5), "r r t0 t1 t2 t3 | t4 r");
        assert_eq!(bits(facts(None, &[4, 8]), 7), "t3 t4 | t0 t1 t2");
    }

    #[test]
    fn registers_know_their_elements() {
        let layout = Layout {
            shape: vec![4, 8],
            axes: vec![vec![Bit::Thread(1), Bit::Register], vec![Bit::Register, Bit::Thread(0), Bit::Register]],
        };
        assert_eq!(layout.registers(), 8);
        for r in 0..8 {
            assert_eq!(layout.register(&layout.coordinates(r)), r);
        }
        assert_eq!(layout.offsets(7), [2, 5]);
        assert_eq!(layout.used(), 3);
        assert_eq!(layout.run(1), 1);
    }
}
