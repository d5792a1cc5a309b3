//! Models for NVIDIA GPUs: every kernel of the plan as PTX text.
//!
//! Invariant: the plan is the one that the CPU gets, but for its kernels, each of which is one or more launches whose
//! arguments are the plan's slots. What a GPU cannot do yet runs on the host, by name; nothing here needs a GPU.

pub mod emulate;
pub mod estimate;
pub mod judged;
#[cfg(feature = "cuda")]
pub mod launch;
pub mod stored;

use crate::notes::{self, Notes, Operators};
use crate::{Error, Observer, Options, compare, import_graph, optimised, within};
use kiln_frontend::onnx::model::Model;
use kiln_ir::expr::Ranges;
use kiln_ir::graph::Graph;
use kiln_ir::plan::{Plan, Step};
use kiln_ir::tile::TileProgram;
use kiln_ir::warp::WarpProgram;
use kiln_ir::{DType, Tensor};
use kiln_passes::kernel::{Gpu, Machine};
use kiln_passes::pipeline::{self, schedule};
use kiln_passes::plan::Weight;
use kiln_passes::warp;
use kiln_ptx::{Argument, Module};
use serde_json::{Value, json};
use std::path::Path;

/// A GPU architecture that code is made for: what it has decides the schedules, and the text runs on it and later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// Its name, such as `sm_80`.
    pub name: &'static str,
    /// What it is called for people.
    pub what: &'static str,
    /// Multiprocessors of the GPU that its schedules are for.
    pub multiprocessors: u16,
}

/// The architecture whose code may have products of four warps, and runs on no other.
const GROUPS: &str = "sm_90a";

impl Architecture {
    /// Whether a device of a compute capability runs its code: later ones do, but for code that is of one alone.
    pub fn runs_on(self, (major, minor): (i32, i32)) -> bool {
        let number = self.name.trim_start_matches("sm_");
        match number.strip_suffix('a') {
            Some(number) => number.parse() == Ok(10 * major + minor),
            None => number.parse().is_ok_and(|n: i32| n <= 10 * major + minor),
        }
    }

    /// Whether there are instructions that convert and multiply floats of 8 bits.
    fn has_float8(self) -> bool {
        !matches!(self.name, "sm_80" | "sm_86")
    }

    /// Whether kernels may have products of four warps.
    fn has_groups(self) -> bool {
        self.name == GROUPS
    }
}

/// The architectures that `--target` takes.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "sm_80", what: "A100", multiprocessors: 108 },
    Architecture { name: "sm_86", what: "RTX 30, A10", multiprocessors: 84 },
    Architecture { name: "sm_89", what: "RTX 40, L4", multiprocessors: 128 },
    Architecture { name: "sm_90", what: "H100", multiprocessors: 132 },
    Architecture { name: GROUPS, what: "H100 and no other, with wgmma", multiprocessors: 132 },
    Architecture { name: "sm_100", what: "B200", multiprocessors: 148 },
    Architecture { name: "sm_120", what: "RTX 50", multiprocessors: 170 },
];

/// How precisely products of f32 are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    /// By multiply-adds of f32.
    #[default]
    F32,
    /// By matrix instructions, each operand the sum of two of tf32; sums in f32.
    F32Fast,
    /// By matrix instructions, operands rounded to tf32 (11 bits), sums in f32.
    Tf32,
    /// By matrix instructions, operands rounded to f16, sums in f32.
    F16,
    /// By matrix instructions, operands rounded to bf16, sums in f32.
    BF16,
}

impl Precision {
    /// The precision of that name.
    ///
    /// # Errors
    /// [`Error::Unsupported`].
    pub fn parse(name: &str) -> Result<Precision, Error> {
        let all = [Precision::F32, Precision::F32Fast, Precision::Tf32, Precision::F16, Precision::BF16];
        all.into_iter().find(|p| p.name() == name).ok_or_else(|| {
            let names = all.map(Precision::name).join(", ");
            Error::Unsupported(format!("the precision {name:?} is not supported on GPUs; there are {names}"))
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::F32Fast => "f32-fast",
            Precision::Tf32 => "tf32",
            Precision::F16 => "f16",
            Precision::BF16 => "bf16",
        }
    }

    /// What outputs may differ by from those of f32, relative to the largest: some roundings of operands in a row.
    pub fn tolerance(self) -> f64 {
        // The bits of tf32 are those of f16.
        crate::compare::tolerance(if self == Precision::Tf32 { Some(DType::F16) } else { self.operands() })
    }

    /// How products whose operands stay f32 are multiplied.
    fn floats(self) -> warp::Floats {
        match self {
            Precision::F32Fast => warp::Floats::Fast,
            Precision::Tf32 => warp::Floats::Tf32,
            Precision::F32 | Precision::F16 | Precision::BF16 => warp::Floats::Whole,
        }
    }

    fn operands(self) -> Option<DType> {
        match self {
            Precision::F32 | Precision::F32Fast | Precision::Tf32 => None,
            Precision::F16 => Some(DType::F16),
            Precision::BF16 => Some(DType::BF16),
        }
    }
}

impl std::str::FromStr for Architecture {
    type Err = String;

    fn from_str(name: &str) -> Result<Architecture, String> {
        let all: Vec<&str> = ARCHITECTURES.iter().map(|a| a.name).collect();
        let found = ARCHITECTURES.iter().find(|a| a.name == name).copied();
        found.ok_or_else(|| format!("no such GPU architecture; there are {}", all.join(", ")))
    }
}

/// An architecture with the precision of its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The architecture.
    pub architecture: Architecture,
    /// How its products are computed, where that is said.
    pub precision: Option<Precision>,
}

/// `sm_80`, or `sm_80:f16`.
impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let (name, precision) = text.split_once(':').map_or((text, None), |(name, p)| (name, Some(p)));
        let precision = precision.map(Precision::parse).transpose().map_err(|e| e.to_string())?;
        Ok(Target { architecture: name.parse()?, precision })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.architecture.name)?;
        self.precision.map_or(Ok(()), |precision| write!(f, ":{}", precision.name()))
    }
}

/// A model compiled for a GPU.
#[derive(Debug)]
pub struct Compiled {
    /// The optimised graph.
    pub graph: Graph,
    /// The plan.
    pub plan: Plan,
    /// What the weights section holds.
    pub weights: Vec<Weight>,
    /// For each kernel of the plan its launches, in order.
    pub kernels: Vec<Kernel>,
    /// Why steps run on the host.
    pub notes: Notes,
    /// What the code is for.
    pub architecture: Architecture,
}

/// A kernel of the plan in its stages.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The tile program.
    pub tile: TileProgram,
    /// The warp programs of its parts.
    pub warps: Vec<WarpProgram>,
    /// Their PTX modules.
    pub modules: Vec<Module>,
}

/// The launches of a tile program.
fn lowered(program: &TileProgram, dims: &Ranges, options: &warp::Options) -> Result<Kernel, String> {
    let warps = warp::lower(program, dims, options).map_err(|e| e.to_string())?;
    let modules = warps.iter().map(|w| kiln_ptx::emit(w).map_err(|e| e.to_string())).collect::<Result<_, _>>()?;
    Ok(Kernel { tile: program.clone(), warps, modules })
}

/// Compiles a model for a GPU: import, the passes on the graph, then tile, warp programs and PTX for each kernel.
///
/// # Errors
/// Those of [`crate::compile`]; [`Error::Unsupported`] where dims are free.
pub fn compile(
    model: &Model,
    options: &Options,
    (architecture, precision): (Architecture, Precision),
    observer: &mut dyn Observer,
) -> Result<Compiled, Error> {
    observer.stage("import");
    let graph = import_graph(model, options)?;
    compile_with(graph, &notes::operators(model), options, (architecture, precision), observer)
}

/// Compiles a graph for a GPU; see [`crate::compile_graph`].
///
/// # Errors
/// Those of [`compile`].
pub fn compile_graph(
    graph: Graph,
    options: &Options,
    (architecture, precision): (Architecture, Precision),
    observer: &mut dyn Observer,
) -> Result<Compiled, Error> {
    compile_with(graph, &Operators::new(), options, (architecture, precision), observer)
}

fn compile_with(
    graph: Graph,
    operators: &Operators,
    options: &Options,
    (architecture, precision): (Architecture, Precision),
    observer: &mut dyn Observer,
) -> Result<Compiled, Error> {
    if !graph.symbols.is_empty() {
        let names: Vec<String> = graph.symbols.keys().map(|s| format!("--bind {s}=N")).collect();
        let text = format!("code for GPUs needs fixed dims; give {}, or inputs", names.join(" "));
        return Err(Error::Unsupported(text));
    }
    let graph = optimised(graph, options, observer)?;
    let failed = |pass| move |error| Error::from(pipeline::PassError::Graph { pass, error });
    let graph = kiln_passes::rewrite::products_in_float8(&graph).map_err(failed("in-float8"))?;
    let graph = kiln_passes::rewrite::products_in_halves(&graph, precision.operands()).map_err(failed("in-halves"))?;
    observer.stage("schedule");
    let (groups, floats, float8) = (architecture.has_groups(), precision.floats(), architecture.has_float8());
    let lowering = warp::Options { groups, floats, float8, ..warp::Options::default() };
    let mut lowers = |program: &TileProgram, dims: &Ranges| lowered(program, dims, &lowering).map(|_| ());
    let multiprocessors = architecture.multiprocessors.into();
    let machine = Machine::gpu(Gpu { multiprocessors, operands: precision.operands(), floats, groups, float8 });
    let mut targets = [pipeline::Target { machine, lowers: &mut lowers, chosen: None }];
    let pipeline::Compiled { plan, weights, kernels, host_reasons, .. } = schedule(&graph, &mut targets)?;
    within(options, "weights and arena", plan.weight_bytes.saturating_add(plan.arena_bytes))?;
    observer.stage("emit");
    let dims = plan.ranges();
    let tiles = kernels.into_iter().next().unwrap_or_default();
    let code = |k: &TileProgram| {
        lowered(k, &dims, &lowering).map_err(|message| Error::Code { kernel: k.name.clone(), message })
    };
    let kernels = tiles.iter().map(code).collect::<Result<Vec<_>, _>>()?;
    observer.plan(&plan)?;
    let notes = Notes::of(&graph, &plan, &host_reasons, operators);
    Ok(Compiled { graph, plan, weights, kernels, notes, architecture })
}

/// How far the buffers that a program writes are apart, relative to the largest element.
pub fn apart<'a>(program: &TileProgram, want: &[Vec<u8>], found: impl IntoIterator<Item = &'a [u8]>) -> f64 {
    let mut most = 0f64;
    for ((b, want), found) in program.buffers.iter().zip(want).zip(found).filter(|((b, _), _)| b.written) {
        let len = want.len() / b.dtype.size().max(1);
        let of = |bytes: &[u8]| Tensor::new(b.dtype, vec![len], bytes.to_vec());
        let (Ok(want), Ok(found)) = (of(want), of(found)) else { continue };
        most = most.max(match compare::difference(&want, &found) {
            compare::Difference::Relative(d) => d,
            compare::Difference::Elements(n) => n as f64,
            compare::Difference::Type { .. } => f64::INFINITY,
        });
    }
    most
}

/// How far the results of a kernel may be from those of its tile program, as [`apart`] counts: the tolerance of f32, and one step of the
/// type in which they are stored where that is a half. Two sums that differ in the last bit of f32 may lie on two sides of where a half
/// is rounded up.
pub fn allowed(program: &TileProgram) -> f64 {
    let step = |dtype| match dtype {
        DType::F16 => 2f64.powi(-10),
        DType::BF16 => 2f64.powi(-7),
        _ => 0.0,
    };
    let steps = program.buffers.iter().filter(|b| b.written).map(|b| step(b.dtype));
    compare::TOLERANCE + steps.fold(0.0, f64::max)
}

/// What an argument of a launch is.
fn argument(argument: &Argument) -> Value {
    match argument {
        Argument::Buffer { name, dtype, len, written } => {
            let len = len.as_const().map_or_else(|| json!(len.to_string()), |n| json!(n));
            json!({ "buffer": name, "dtype": dtype.name(), "len": len, "written": written })
        }
        Argument::Dim(symbol) => json!({ "dim": symbol.to_string(), "dtype": "i64" }),
        Argument::Status => json!({ "status": "u32" }),
        Argument::Map(map) => json!({ "map": stored::Map::from(map) }),
    }
}

impl Compiled {
    /// How the kernels are started, and with what: the contents of `launch.json`.
    pub fn launches(&self) -> Value {
        let mut launches = Vec::new();
        for (n, step) in self.plan.steps.iter().enumerate() {
            match step {
                Step::Launch { kernel, arguments, .. } => {
                    let Some(made) = self.kernels.get(*kernel) else { continue };
                    for module in &made.modules {
                        let l = &module.launch;
                        let blocks = l.blocks.as_const().map_or_else(|| json!(l.blocks.to_string()), |n| json!(n));
                        let slots: Vec<usize> = arguments.iter().map(|s| s.index()).collect();
                        let of_plan = self.plan.kernels.get(*kernel);
                        launches.push(json!({
                            "step": n, "kernel": l.entry, "entry": l.entry, "file": format!("{}.ptx", l.entry),
                            "grid": [blocks, 1, 1], "block": [l.threads, 1, 1], "shared": l.dynamic_shared,
                            "arguments": l.arguments.iter().map(argument).collect::<Vec<_>>(), "slots": slots,
                            "what": of_plan.map(|k| k.what.clone()), "origin": of_plan.map(|k| k.origin.to_string()),
                        }));
                    }
                }
                Step::Host { op, origin, .. } => {
                    launches.push(json!({ "step": n, "host": op.name(), "origin": origin.to_string() }));
                }
                Step::Refuse { origin, .. } => {
                    launches.push(json!({ "step": n, "host": "check", "origin": origin.to_string() }));
                }
                Step::If { origin, .. } => {
                    launches.push(json!({ "step": n, "host": "if", "origin": origin.to_string() }));
                }
                Step::Loop(l) => {
                    launches.push(json!({ "step": n, "host": "loop", "origin": l.origin.to_string() }));
                }
                Step::Copy { from, to } | Step::Bind { from, to, .. } => {
                    launches.push(json!({ "step": n, "copy": [from.index(), to.index()] }));
                }
            }
        }
        json!({ "target": self.architecture.name, "model": self.plan.name, "launches": launches })
    }

    /// Writes each kernel's stages and `launch.json` to a folder, which is made where it is not there.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn dump(&self, folder: &Path) -> Result<(), Error> {
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|source| Error::Write { path, source })
        };
        std::fs::create_dir_all(folder).map_err(|source| Error::Write { path: folder.into(), source })?;
        for kernel in &self.kernels {
            write(&format!("{}.kernel", kernel.tile.name), &kernel.tile.to_string())?;
            for (warp, module) in kernel.warps.iter().zip(&kernel.modules) {
                write(&format!("{}.warp", warp.name), &warp.to_string())?;
                write(&format!("{}.ptx", warp.name), &module.text)?;
            }
        }
        write("launch.json", &format!("{:#}\n", self.launches()))
    }
}
