//! Tile programs to warp programs.
//!
//! Invariant: everything that makes a kernel fast or slow is decided here and can be read in the warp program: which
//! thread holds which element (`layout`), how wide each access is (`memory`), what goes through shared memory and how
//! many copies are under way (`product`, `pipeline`). Results are those of the tile program; sums of floats are in the
//! tile program's order, but for `reduce` and for products that matrix instructions compute.
//!
//! Each part of a tile program becomes a kernel of its own, each of its programs a block.

mod arith;
mod build;
mod float8;
mod fragments;
mod index;
mod layout;
mod math;
mod memory;
mod pipeline;
mod product;
mod reduce;
mod softmax;
pub(crate) mod stream;
mod tiles;
mod unpack;

#[cfg(test)]
mod tests;

use build::Builder;
use kiln_ir::expr::{Ranges, Symbol};
use kiln_ir::scalar::BinaryOp;
use kiln_ir::tile::{Part, Stmt as TileStmt, TileId, TileOp, TileProgram};
use kiln_ir::warp::{Bulk, Op, Stmt, ValueId, WarpProgram};
use kiln_ir::{DType, Expr};
use layout::Layouts;
use std::collections::HashMap;
use stream::Stream;

/// A tile program cannot be lowered to warp programs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("kernel @{kernel} cannot be made for a GPU: {what}")]
pub struct LowerError {
    /// Name of the tile program.
    pub kernel: String,
    /// What is not supported.
    pub what: String,
}

/// How products of f32 are multiplied where matrix instructions could.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Floats {
    /// By multiply-adds.
    #[default]
    Whole,
    /// Both factors rounded to tf32, which has 11 bits.
    Tf32,
    /// Each factor as the sum of two of tf32, of whose four products the smallest is left out: 22 bits.
    Fast,
}

/// What a schedule may say about a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Threads of a block, a power of two from 32 to 1024; nothing for as many as suit the tiles.
    pub threads: Option<u32>,
    /// How many stages of a loop's product operands are in shared memory, if they fit there, of which one is read and the
    /// others are being copied; with 1, nothing is copied ahead.
    pub stages: usize,
    /// Most bytes of shared memory of a block.
    pub shared: usize,
    /// Whether the GPU has products of four warps and bulk copies (sm_90a).
    pub groups: bool,
    /// How products of f32 are multiplied.
    pub floats: Floats,
    /// Whether the GPU converts and multiplies floats of 8 bits (sm_89 and later).
    pub float8: bool,
}

impl Default for Options {
    /// Three stages, and what every GPU from sm_80 on has for each of two blocks (sm_86 has 100 KiB, of which each
    /// block takes 1).
    fn default() -> Options {
        Options { threads: None, stages: 3, shared: 49 << 10, groups: false, floats: Floats::Whole, float8: false }
    }
}

/// Lowers each part of a program that verifies to a kernel. `dims` are the run-time dims with their bounds; they
/// become the kernel's arguments, in their order there.
///
/// # Errors
/// The program uses a type or an operation for which there is no GPU code yet, or too much shared memory.
pub fn lower(program: &TileProgram, dims: &Ranges, options: &Options) -> Result<Vec<WarpProgram>, LowerError> {
    let error = |what: String| LowerError { kernel: program.name.clone(), what };
    let threads = match options.threads {
        Some(n) if !n.is_power_of_two() || !(32..=1024).contains(&n) => {
            return Err(error(format!("blocks of {n} threads; wants a power of two from 32 to 1024")));
        }
        n => n.map(u32::ilog2),
    };
    let types = program.buffers.iter().map(|b| b.dtype).chain(program.tiles.iter().map(|(_, t)| t.dtype));
    use DType::*;
    for dtype in types {
        let computed = matches!(dtype, Bool | I8 | U8 | I16 | U16 | I32 | U32 | I64 | U64 | F16 | BF16 | F32);
        if !computed && !dtype.is_ofp8() {
            return Err(error(format!("elements of type {dtype}")));
        }
    }
    let mut kernels = Vec::new();
    for (n, part) in program.parts.iter().enumerate() {
        float8::check(program, part, options.float8).map_err(&error)?;
        let name = if program.parts.len() == 1 { program.name.clone() } else { format!("{}_{n}", program.name) };
        let stream = if options.groups { Stream::of(program, part) } else { None };
        let with = |stages: usize| {
            let lowering = Lowering {
                program,
                options: Options { stages, ..options.clone() },
                layouts: match &stream {
                    Some(stream) => stream.layouts(program, part),
                    None => Layouts::choose(program, part, (threads, options.floats)),
                },
                code: Builder::new(),
                env: HashMap::new(),
                ranges: dims.clone(),
                multiples: HashMap::new(),
                tiles: HashMap::new(),
                staged: HashMap::new(),
                fragments: HashMap::new(),
                taken: Vec::new(),
                spare: Vec::new(),
                definitions: definitions(part),
            };
            lowering.part(name.clone(), (part, stream.as_ref()), dims)
        };
        let bytes = |kernel: &WarpProgram| kernel.shared_layout().1;
        let mut stages = options.stages;
        let mut kernel = with(stages)?;
        while stream.is_none() && bytes(&kernel) > options.shared {
            if stages <= 1 {
                let what = format!("{} bytes of shared memory; {} are allowed", bytes(&kernel), options.shared);
                return Err(error(what));
            }
            stages -= 1;
            kernel = with(stages)?;
        }
        kernels.push(kernel);
    }
    Ok(kernels)
}

/// The values of a tile in each thread.
#[derive(Clone)]
enum Tile {
    /// One value for all elements.
    Splat(ValueId),
    /// The registers of the tile's layout.
    Registers(Vec<ValueId>),
}

struct Lowering<'a> {
    program: &'a TileProgram,
    options: Options,
    layouts: Layouts<'a>,
    code: Builder,
    /// Values of symbols in scope.
    env: HashMap<Symbol, ValueId>,
    /// Bounds of symbols in scope.
    ranges: Ranges,
    /// Numbers that divide the values of symbols in scope.
    multiples: HashMap<Symbol, i64>,
    tiles: HashMap<TileId, Tile>,
    /// Product operands that are in shared memory already.
    staged: HashMap<TileId, product::Staged>,
    /// Fragments of left operands that loops around their products have in registers, by the first place of the fold.
    fragments: HashMap<(TileId, i64), Vec<fragments::Fragment>>,
    /// Shared buffers of operands that may be read still, and those that a loop has left to what follows it.
    taken: Vec<usize>,
    spare: Vec<usize>,
    /// How the part's tiles are computed.
    definitions: HashMap<TileId, &'a TileOp>,
}

/// How the tiles of a part are computed.
fn definitions(part: &Part) -> HashMap<TileId, &TileOp> {
    let mut found = HashMap::new();
    layout::each(&part.body, &mut |stmt| {
        if let TileStmt::Let(id, op) = stmt {
            found.insert(*id, op);
        }
    });
    found
}

impl Lowering<'_> {
    fn unsupported(&self, what: impl Into<String>) -> LowerError {
        LowerError { kernel: self.program.name.clone(), what: what.into() }
    }

    fn part(
        mut self,
        name: String,
        (part, stream): (&Part, Option<&Stream<'_>>),
        dims: &Ranges,
    ) -> Result<WarpProgram, LowerError> {
        for (n, dim) in dims.keys().enumerate() {
            let value = self.code.op(DType::I64, Op::Dim(n));
            self.env.insert(dim.clone(), value);
        }
        self.grid(part)?;
        let (maps, threads) = match stream {
            Some(stream) => self.stream(stream)?,
            None => {
                self.region(&part.body)?;
                (Vec::new(), 1 << self.layouts.threads)
            }
        };
        let (values, shared, body) = self.code.finish();
        Ok(WarpProgram {
            name,
            buffers: self.program.buffers.iter().map(float8::as_bytes).collect(),
            dims: dims.keys().cloned().collect(),
            grid: part.programs(),
            threads,
            shared,
            maps,
            values,
            body: without_unused(body),
        })
    }

    /// Makes the grid variables from the block's number; the last runs fastest.
    fn grid(&mut self, part: &Part) -> Result<(), LowerError> {
        let mut rest = self.code.op(DType::I32, Op::Block);
        for (n, (variable, extent)) in part.grid.iter().enumerate().rev() {
            let (_, most) = extent.bounds(&self.ranges);
            let most = most.min(i64::from(i32::MAX)).saturating_sub(1).max(0);
            let value = if n == 0 {
                rest
            } else {
                let extent = self.expr(extent)?;
                let extent = self.code.cast(DType::I32, extent);
                let value = self.code.binary(BinaryOp::Rem, rest, extent);
                rest = self.code.binary(BinaryOp::Div, rest, extent);
                value
            };
            self.env.insert(variable.clone(), value);
            self.ranges.insert(variable.clone(), (0, most));
        }
        Ok(())
    }

    /// Adds a symbol for the time of `body`.
    fn with_symbol<T>(
        &mut self,
        symbol: &Symbol,
        value: ValueId,
        bounds: (i64, i64),
        body: impl FnOnce(&mut Self) -> Result<T, LowerError>,
    ) -> Result<T, LowerError> {
        self.env.insert(symbol.clone(), value);
        self.ranges.insert(symbol.clone(), bounds);
        let result = body(self);
        self.env.remove(symbol);
        self.ranges.remove(symbol);
        result
    }
}

/// The statements without operations whose values nothing uses.
fn without_unused(body: Vec<Stmt>) -> Vec<Stmt> {
    let mut used = std::collections::HashSet::new();
    let mut kept = keep(body, &mut used);
    kept.reverse();
    kept
}

/// The statements that are needed, in reverse.
fn keep(body: Vec<Stmt>, used: &mut std::collections::HashSet<ValueId>) -> Vec<Stmt> {
    let mut kept = Vec::new();
    for stmt in body.into_iter().rev() {
        match stmt {
            Stmt::Let(ids, op) => {
                if ids.iter().any(|id| used.contains(id)) {
                    op.for_each_operand(|v| {
                        used.insert(v);
                    });
                    kept.push(Stmt::Let(ids, op));
                }
            }
            Stmt::Store { .. } | Stmt::Copy { .. } => {
                let (values, addresses, condition): (&[ValueId], Vec<_>, _) = match &stmt {
                    Stmt::Store { address, values, condition } => (values, vec![*address], *condition),
                    Stmt::Copy { to, from, condition, .. } => (&[], vec![*to, *from], *condition),
                    _ => (&[], vec![], None),
                };
                used.extend(values);
                used.extend(addresses.iter().filter_map(|a| a.index));
                used.extend(condition);
                kept.push(stmt);
            }
            Stmt::Commit | Stmt::Wait(_) | Stmt::Barrier => kept.push(stmt),
            Stmt::Bulk(mut bulk) => {
                bulk.for_each_operand(|v| _ = used.insert(v));
                if let Bulk::Roles(roles) = &mut bulk {
                    for body in [&mut roles.multiply, &mut roles.fetch] {
                        let mut kept = keep(std::mem::take(body), used);
                        kept.reverse();
                        *body = kept;
                    }
                }
                kept.push(Stmt::Bulk(bulk));
            }
            Stmt::Fail { condition, .. } => {
                used.insert(condition);
                kept.push(stmt);
            }
            Stmt::For(mut counted) => {
                used.extend([counted.lo, counted.hi]);
                used.extend(counted.carried.iter().flat_map(|c| [c.init, c.next]));
                let mut body = keep(std::mem::take(&mut counted.body), used);
                body.reverse();
                counted.body = body;
                kept.push(Stmt::For(counted));
            }
        }
    }
    kept
}

/// An index expression that is a number.
fn number(n: i64) -> Expr {
    Expr::from(n)
}
