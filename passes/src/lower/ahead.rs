//! What is read later, asked for before it.
//!
//! Invariant: only time changes.

use super::LowerError;
use super::address::lane;
use super::tiles::{Lowering, positions};
use kiln_ir::expr::{Atom, Expr, Symbol};
use kiln_ir::tile::{For, Part, Stmt, TileId, TileOp};
use kiln_ir::vector::{self, Address, Cache};

/// The bytes of a cache line.
pub(super) const LINE: i64 = 64;

/// How many bytes before its use a stream is asked for: about the time that memory takes at the speed of a product. Of 2, 4 and 8 KiB
/// the last was quickest (bert_base by 9 %, a product of 64 rows with 16 MB of weights by 21 %; Zen 5).
const PREFETCH_AHEAD: i64 = 8192;

/// Smaller buffers stay in cache, bytes.
const PREFETCH_FROM: i64 = 1 << 18;

/// Two iterations of a fold that are farther apart are no stream, elements.
const STREAM_STRIDE: i64 = 512;

/// A panel that is larger is not asked for before its program begins, bytes: the second cache would not keep it.
const MOST_PANEL: i64 = 1 << 20;

/// The loop of a fold.
pub(super) struct Folding {
    pub(super) var: Symbol,
    /// How many steps of the sum an iteration has.
    pub(super) step: i64,
    /// The elements of the largest tile that it carries.
    pub(super) elements: usize,
}

/// What each program of a part computes one after the other, such as all blocks of rows for one panel of weights.
#[derive(Default)]
pub(super) struct Blocks {
    /// The variable of the grid that differs from one program to the next.
    fastest: Option<Symbol>,
    /// The variables of its loops over blocks: those that are no folds, of a known number of iterations, and in nothing else.
    loops: Vec<Symbol>,
    /// How many blocks a program has, in all those loops.
    all: i64,
    /// How many of them are in loops that are done.
    before: i64,
    /// The variable of the loop that is open.
    var: Option<Symbol>,
}

impl Blocks {
    pub(super) fn of(part: &Part) -> Blocks {
        let counts = |s: &Stmt| if let Stmt::For(f) = s { Some((f.var.clone(), counted(f)?)) } else { None };
        let (loops, counts): (Vec<_>, Vec<_>) = part.body.iter().filter_map(counts).unzip();
        let all = counts.into_iter().fold(0, i64::saturating_add);
        let fastest = part.grid.iter().rfind(|(_, extent)| extent.as_const() != Some(1));
        Blocks { fastest: fastest.map(|(var, _)| var.clone()), loops, all, before: 0, var: None }
    }

    /// Opens a loop; how many blocks it has, where it is one over blocks.
    pub(super) fn enter(&mut self, f: &For) -> Option<i64> {
        let count = counted(f).filter(|_| self.var.is_none() && self.loops.contains(&f.var))?;
        self.var = Some(f.var.clone());
        Some(count)
    }

    /// Closes a loop of so many blocks.
    pub(super) fn leave(&mut self, blocks: Option<i64>) {
        if let Some(count) = blocks {
            self.before = self.before.saturating_add(count);
            self.var = None;
        }
    }
}

/// How many iterations a loop has that is no fold.
fn counted(f: &For) -> Option<i64> {
    let plain = f.carried.is_empty() && f.lo.as_const() == Some(0) && f.step == 1;
    f.hi.as_const().filter(|&count| plain && count > 1)
}

/// Where lines of a stream are asked for.
enum Asked {
    /// A fixed distance ahead.
    Ahead,
    /// There.
    At(Expr),
    /// By another load.
    Elsewhere,
}

impl<'a> Lowering<'a> {
    /// Asks for what a fold reads from a large buffer in one stream, such as a panel of weights, where it loads a vector of it:
    /// what the processor foresees by itself stops at the ends of pages. A single row uses each number once: it is bound by reading,
    /// keeps enough of it on its way, and only loses to more instructions (products of one row with 34 MB of weights by a quarter).
    pub(super) fn ask_for_stream(
        &mut self,
        id: TileId,
        (buffer, address): (usize, Address),
        first: &Expr,
    ) -> Result<(), LowerError> {
        let Some(fold) = &self.folding else { return Ok(()) };
        let ty = self.register_type(id);
        if fold.elements <= self.ty(id).shape.iter().product() {
            return Ok(());
        }
        let size = ty.dtype.size() as i64;
        let bytes = self.program.buffers[buffer].len.as_const().map_or(0, |n| n.saturating_mul(size));
        let step = first.coefficient(&fold.var).unwrap_or_default();
        // Vectors of 16 bytes are for Cranelift, which cannot ask; of others one for each line of the cache.
        let line = self.bytes >= 32 && size == 4 && address.offset % (LINE / size) == 0;
        if !line || bytes < PREFETCH_FROM || !(1..=STREAM_STRIDE).contains(&step) {
            return Ok(());
        }
        let asked = match self.of_next_program(first, step, LINE / size) {
            Asked::Ahead => Address { offset: address.offset.saturating_add(PREFETCH_AHEAD / size), ..address },
            Asked::At(next) => self.address(buffer, &next)?,
            Asked::Elsewhere => return Ok(()),
        };
        self.builder.push(self.builder.depth(), vector::Stmt::Prefetch(Cache::First, asked));
        Ok(())
    }

    /// Where in the next program's stream the line lies that this load asks for. Only the first block of a program waits for memory, which then
    /// has too little time; so the last blocks ask for what the next program reads, each for an equal share of it. Where earlier ones asked, it left the
    /// second cache again.
    fn of_next_program(&self, first: &Expr, step: i64, line: i64) -> Asked {
        let Blocks { fastest: Some(fastest), all, before, var: Some(block), .. } = &self.blocks else {
            return Asked::Ahead;
        };
        let Some(fold) = &self.folding else { return Asked::Ahead };
        let Some(length) = first.coefficient(fastest).filter(|&n| (1..=MOST_PANEL / LINE * line).contains(&n)) else {
            return Asked::Ahead;
        };
        let own = first.sub(&Expr::from(fastest).scale(length));
        let (lo, hi) = own.bounds(&self.ranges);
        // The last iteration begins so much earlier than the loop ends.
        let hi = hi.saturating_sub(step.saturating_mul(fold.step - 1));
        // Lines of an iteration, and how many of them a block asks for.
        let run = step.saturating_mul(fold.step);
        let (lines, share) = (run / line, (run / line - 1) / all + 1);
        if own.mentions(fastest)
            || own.mentions(block)
            || lo < 0
            || hi >= length
            || run % line != 0
            || 2 * share > lines
        {
            return Asked::Ahead;
        }
        let number = own.constant() % run / line;
        if number >= share {
            return Asked::Elsewhere;
        }
        let within = Expr::from(number * line);
        let (Some(own), Some(size)) =
            (scaled(&own.sub(&within), share, lines), scaled(&Expr::from(length), share, lines))
        else {
            return Asked::Ahead;
        };
        let asking = (lines - 1) / share + 1;
        let block = Expr::from(block).add(&Expr::from(before - (all - asking))).greatest(&Expr::default());
        let next = Expr::from(fastest).add(&Expr::from(1)).scale(length);
        Asked::At(next.add(&block.mul(&size)).add(&own).add(&within).simplify(&self.ranges))
    }

    /// Asks for what statements behind a loop load in vectors from large buffers, a line at a time. A fold keeps the processor busy for some
    /// hundred cycles, in which what is added to its sums comes near; the loads behind it are too far away for the processor to see by itself,
    /// and lie in pieces that no stream foresees.
    pub(super) fn ask_ahead(&mut self, behind: &'a [Stmt]) -> Result<(), LowerError> {
        // Vectors of 16 bytes are for Cranelift, which cannot ask. Within a fold nothing waits for long.
        if self.bytes < 32 || self.folding.is_some() {
            return Ok(());
        }
        for stmt in behind {
            let Stmt::Let(id, TileOp::Load { buffer, address, gathered, mask, .. }) = stmt else { continue };
            let (of, Some(home)) = (&self.program.buffers[*buffer], self.home(*id)) else { continue };
            let size = of.dtype.size() as i64;
            let bytes = of.len.as_const().map_or(0, |n| n.saturating_mul(size));
            if of.local || of.written || bytes < PREFETCH_FROM || !gathered.is_empty() || !mask.is_empty() {
                continue;
            }
            let mut asked = Vec::new();
            for at in positions(self.ty(*id), Some(home)) {
                let place = self.placed(address, &at, Some((home.axis, home.lanes)), &[]);
                if place.coefficient(&lane()) != Some(1) {
                    continue;
                }
                let address = self.address(*buffer, &place.replace(&lane(), &Expr::default()))?;
                let line = (address.index, address.offset.saturating_mul(size).div_euclid(LINE));
                if !asked.contains(&line) {
                    asked.push(line);
                    let depth = self.builder.depth();
                    self.builder.push(depth, vector::Stmt::Prefetch(Cache::First, address));
                }
            }
        }
        Ok(())
    }
}

/// `e * share / lines`, of a sum of symbols; nothing where that is not whole.
fn scaled(e: &Expr, share: i64, lines: i64) -> Option<Expr> {
    let of = |n: i64| n.checked_mul(share).filter(|n| n % lines == 0).map(|n| n / lines);
    e.terms().try_fold(Expr::from(of(e.constant())?), |sum, (atoms, coefficient)| match atoms {
        [Atom::Symbol(s)] => Some(sum.add(&Expr::from(s).scale(of(coefficient)?))),
        _ => None,
    })
}
