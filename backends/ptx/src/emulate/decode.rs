//! Statements to instructions.
//!
//! Invariant: an instruction that was decoded can be executed without looking at names again: registers, labels,
//! variables and parameters are numbers, and every modifier has been understood. What is not supported is an error here,
//! with its line and column, and never a wrong result later.

use super::alu::{Compare, Convert, FloatOp, IntOp, Mode, Round, Ty};
use super::parse::{self, Entry, Operand, ParseError, Space as Where, Statement, Variable};
mod bulk;

pub(super) use bulk::{Bulk, GroupMma, Scale};
use std::collections::HashMap;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Src {
    Reg(usize),
    Imm(u64),
    Special(Special),
}

/// A special register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    Lane,
    Warp,
    Nwarp,
    Below,
    BelowOrEqual,
    Above,
    AboveOrEqual,
    Equal,
    Clock,
    Zero,
}

/// A state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum Space {
    Global,
    Shared,
    Local,
    Param,
    Generic,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub base: Src,
    pub offset: i64,
}

/// What an atomic operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum Atom {
    Int(IntOp),
    Float,
    Exchange,
    Cas,
    Inc,
    Dec,
}

/// An operation on three words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum Three {
    Lop3(u8),
    Prmt,
    Bfe,
    Shf {
        left: bool,
        wrap: bool,
    },
    Sad,
    MadLo,
    MadHi,
    MadWide,
    Slct,
    /// The dot product of bytes, added to; whether those of either side have a sign.
    Dot {
        left: bool,
        right: bool,
    },
}

/// Which lane a shuffle reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

/// What a vote says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

/// The types of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum Element {
    F16,
    BF16,
    TF32,
    S8,
    U8,
}

/// `mma.sync`: 16 rows, 8 columns.
#[derive(Clone, Debug)]
pub(super) struct Mma {
    pub depth: usize,
    pub a_type: Element,
    pub b_type: Element,
    /// Whether the accumulators are f16, in pairs.
    pub half: bool,
    pub d: Vec<usize>,
    pub a: Vec<Src>,
    pub b: Vec<Src>,
    pub c: Vec<Src>,
}

/// How the result of a comparison is joined with a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum Join {
    And,
    Or,
    Xor,
}

#[derive(Clone, Debug)]
pub(super) enum Op {
    Nop,
    Mov(usize, Src, u64),
    Pack(usize, Vec<Src>, u32),
    Unpack(Vec<Option<usize>>, Src, u32),
    Int(IntOp, Ty, usize, Src, Src),
    Float(FloatOp, Ty, Mode, usize, Src, Src),
    Fma(Ty, Mode, usize, Src, Src, Src),
    Three(Three, Ty, usize, Src, Src, Src),
    Bfi(Ty, usize, [Src; 4]),
    Setp {
        compare: Compare,
        ty: Ty,
        ftz: bool,
        join: Option<(Join, usize, bool)>,
        p: Option<usize>,
        q: Option<usize>,
        a: Src,
        b: Src,
    },
    Set {
        compare: Compare,
        ty: Ty,
        float: bool,
        d: usize,
        a: Src,
        b: Src,
    },
    Selp(u64, usize, Src, Src, usize, bool),
    Cvt(Ty, Ty, Convert, usize, Src),
    CvtPack(Ty, Convert, usize, Src, Src),
    Ld {
        space: Space,
        ty: Ty,
        targets: Vec<Option<usize>>,
        address: Address,
    },
    St {
        space: Space,
        ty: Ty,
        sources: Vec<Src>,
        address: Address,
    },
    Atom {
        space: Space,
        op: Atom,
        ty: Ty,
        d: Option<usize>,
        address: Address,
        b: Src,
        c: Src,
    },
    Bra(usize),
    Ret,
    Bar {
        id: Src,
        count: Option<Src>,
        arrive: bool,
    },
    WarpSync(Src),
    Shfl {
        mode: Shuffle,
        d: usize,
        p: Option<usize>,
        a: Src,
        b: Src,
        c: Src,
        members: Src,
    },
    Vote {
        mode: Vote,
        d: usize,
        a: usize,
        not: bool,
        members: Src,
    },
    Redux {
        op: IntOp,
        ty: Ty,
        d: usize,
        a: Src,
        members: Src,
    },
    Active(usize),
    Ldmatrix {
        trans: bool,
        targets: Vec<usize>,
        address: Address,
    },
    Mma(Box<Mma>),
    CpAsync {
        to: Address,
        from: Address,
        bytes: usize,
        read: Option<Src>,
        off: Option<usize>,
    },
    Commit,
    Wait(Option<u64>),
    Bulk(Box<Bulk>),
    Trap,
}

#[derive(Clone, Debug)]
pub(super) struct Instruction {
    pub guard: Option<(usize, bool)>,
    pub op: Op,
    pub line: usize,
}

/// A kernel ready to run.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Name of the entry.
    pub name: String,
    /// Bytes of each parameter and where it begins.
    pub(super) parameters: Vec<(usize, usize)>,
    pub(super) instructions: Vec<Instruction>,
    pub(super) registers: Vec<String>,
    /// Bytes of the variables in shared memory; what the launch adds comes after them.
    pub(super) shared: usize,
    pub(super) local: usize,
    pub(super) threads: Option<[u32; 3]>,
    /// What each instruction comes from, where the text says so.
    pub(super) comments: HashMap<usize, String>,
    /// Bytes of the smallest access to shared memory.
    pub(super) granule: usize,
    /// The text of each instruction's line.
    pub(super) lines: Vec<String>,
}

impl Kernel {
    /// How many parameters the kernel takes.
    pub fn parameters(&self) -> usize {
        self.parameters.len()
    }

    /// Bytes of each parameter.
    pub fn parameter_bytes(&self) -> impl Iterator<Item = usize> + '_ {
        self.parameters.iter().map(|(_, bytes)| *bytes)
    }

    /// Whether there are products of four warps.
    pub(super) fn has_products(&self) -> bool {
        self.instructions.iter().any(|i| matches!(&i.op, Op::Bulk(bulk) if matches!(**bulk, Bulk::Mma(_))))
    }

    /// Bytes of the variables in shared memory.
    pub fn static_shared(&self) -> usize {
        self.shared
    }
}

/// Where a module's n-th variable in global or constant memory begins.
pub(super) fn variable_base(n: usize) -> u64 {
    (0x7000 + n as u64) << 40
}

/// Decodes all entries.
pub(super) fn decode(text: &str) -> Result<(Vec<Kernel>, Vec<Variable>), ParseError> {
    let parsed = parse::parse(text)?;
    let lines: Vec<&str> = text.lines().collect();
    let is_global = |v: &&Variable| matches!(v.space, Where::Global | Where::Constant);
    let globals: Vec<Variable> = parsed.variables.iter().filter(is_global).cloned().collect();
    let all: usize = globals.iter().fold(0, |sum, v| sum.saturating_add(v.bytes));
    let local = |e: &Entry| e.variables.iter().filter(|v| v.space == Where::Local).map(|v| v.bytes).sum::<usize>();
    if all > 256 << 20 || parsed.entries.iter().any(|e| local(e) > 512 << 10) {
        let spot = parse::Spot { line: 1, column: 1 };
        return Err(spot.error("more than 256 MiB of variables, or 512 KiB of local memory"));
    }
    let shared: Vec<&Variable> = parsed.variables.iter().filter(|v| v.space == Where::Shared).collect();
    let kernels =
        parsed.entries.iter().map(|e| Decoder::entry(e, &globals, &shared, &lines)).collect::<Result<_, _>>()?;
    Ok((kernels, globals))
}

struct Decoder<'a> {
    entry: &'a Entry,
    names: HashMap<String, u64>,
}

type Result1<T> = Result<T, String>;

impl<'a> Decoder<'a> {
    fn entry(
        entry: &'a Entry,
        globals: &[Variable],
        shared: &[&Variable],
        lines: &[&str],
    ) -> Result<Kernel, ParseError> {
        let mut names: HashMap<String, u64> = HashMap::new();
        for (n, v) in globals.iter().enumerate() {
            names.insert(v.name.clone(), variable_base(n));
        }
        for p in &entry.parameters {
            names.insert(p.name.clone(), p.offset as u64);
        }
        let (mut bytes, mut local) = (0usize, 0usize);
        let mut dynamic = Vec::new();
        for v in shared.iter().copied().chain(&entry.variables) {
            let place = if v.space == Where::Local { &mut local } else { &mut bytes };
            if v.bytes == 0 {
                dynamic.push(v);
                continue;
            }
            *place = place.next_multiple_of(v.align.clamp(1, 1024));
            names.insert(v.name.clone(), *place as u64);
            *place = place.saturating_add(v.bytes);
        }
        for v in dynamic {
            bytes = bytes.next_multiple_of(v.align.clamp(1, 1024));
            names.insert(v.name.clone(), bytes as u64);
        }
        let decoder = Decoder { entry, names };
        let mut instructions = Vec::with_capacity(entry.statements.len());
        for s in &entry.statements {
            let op = decoder.op(s).map_err(|message| s.spot.error(message))?;
            instructions.push(Instruction { guard: s.guard, op, line: s.spot.line });
        }
        let mut granule = 4;
        for i in &instructions {
            granule = match &i.op {
                Op::Ld { space: Space::Shared | Space::Generic, ty, .. }
                | Op::St { space: Space::Shared | Space::Generic, ty, .. } => granule.min(ty.bytes()),
                _ => granule,
            };
        }
        let line = |i: &Instruction| lines.get(i.line - 1).map_or(String::new(), |l| l.trim().to_string());
        Ok(Kernel {
            name: entry.name.clone(),
            parameters: entry.parameters.iter().map(|p| (p.offset, p.bytes)).collect(),
            lines: instructions.iter().map(line).collect(),
            instructions,
            registers: entry.registers.clone(),
            shared: bytes,
            local,
            threads: entry.threads,
            comments: entry.comments.clone(),
            granule,
        })
    }

    fn special(name: &str) -> Option<Special> {
        let axis = |s: &str| ["x", "y", "z"].iter().position(|a| *a == s);
        if let Some((register, part)) = name.split_once('.') {
            let axis = axis(part)?;
            return Some(match register {
                "%tid" => Special::Tid(axis),
                "%ntid" => Special::Ntid(axis),
                "%ctaid" => Special::Ctaid(axis),
                "%nctaid" => Special::Nctaid(axis),
                _ => return None,
            });
        }
        Some(match name {
            "%laneid" => Special::Lane,
            "%warpid" => Special::Warp,
            "%nwarpid" => Special::Nwarp,
            "%lanemask_lt" => Special::Below,
            "%lanemask_le" => Special::BelowOrEqual,
            "%lanemask_gt" => Special::Above,
            "%lanemask_ge" => Special::AboveOrEqual,
            "%lanemask_eq" => Special::Equal,
            "%clock" | "%clock64" | "%globaltimer" => Special::Clock,
            "%smid" | "%gridid" | "%nsmid" => Special::Zero,
            _ => return None,
        })
    }

    fn src(&self, o: &Operand) -> Result1<Src> {
        match o {
            Operand::Register(r) => Ok(Src::Reg(*r)),
            Operand::Number(n) => Ok(Src::Imm(*n)),
            Operand::Name(name) => match (Self::special(name), self.names.get(name)) {
                (Some(special), _) => Ok(Src::Special(special)),
                (None, Some(&n)) => Ok(Src::Imm(n)),
                (None, None) => Err(format!("`{}` is not declared", name.lines().next().unwrap_or(name))),
            },
            Operand::Pair(..)
            | Operand::Not(_)
            | Operand::Memory(..)
            | Operand::Tensor(..)
            | Operand::List(_)
            | Operand::Nothing => Err("a register or a number belongs here".into()),
        }
    }

    /// A source of a float type: a number with a point was read as f64.
    fn float_src(&self, ty: Ty, o: &Operand) -> Result1<Src> {
        Ok(match self.src(o)? {
            Src::Imm(n) if ty == Ty::F32 && n > u64::from(u32::MAX) => {
                Src::Imm(u64::from((f64::from_bits(n) as f32).to_bits()))
            }
            other => other,
        })
    }

    fn reg(&self, o: &Operand) -> Result1<usize> {
        match o {
            Operand::Register(r) => Ok(*r),
            _ => Err("a register belongs here".into()),
        }
    }

    fn target(&self, o: &Operand) -> Result1<Option<usize>> {
        match o {
            Operand::Nothing => Ok(None),
            other => self.reg(other).map(Some),
        }
    }

    fn list<T>(&self, o: &Operand, f: impl Fn(&Self, &Operand) -> Result1<T>) -> Result1<Vec<T>> {
        match o {
            Operand::List(items) => items.iter().map(|o| f(self, o)).collect(),
            one => Ok(vec![f(self, one)?]),
        }
    }

    fn address(&self, o: &Operand) -> Result1<Address> {
        match o {
            Operand::Memory(base, offset) => Ok(Address { base: self.src(base)?, offset: *offset }),
            _ => Err("an address in brackets belongs here".into()),
        }
    }

    fn op(&self, s: &Statement) -> Result1<Op> {
        let name: Vec<&str> = s.name.iter().map(String::as_str).collect();
        let o = &s.operands;
        let at = |n: usize| o.get(n).ok_or_else(|| format!("operand {} is missing", n + 1));
        let unknown = || format!("`{}` is not supported", s.name.join("."));
        let last = name.last().copied().unwrap_or_default();
        let ty = Ty::parse(last);
        let typed = || ty.ok_or_else(unknown);
        let has = |m: &str| name.contains(&m);
        let round = if has("rz") {
            Round::Zero
        } else if has("rm") {
            Round::Down
        } else if has("rp") {
            Round::Up
        } else {
            Round::Nearest
        };
        let mode = |error: f32| Mode { ftz: has("ftz"), sat: has("sat"), round, error };
        let one = Src::Imm(0);
        let unary = |op: IntOp| Ok(Op::Int(op, typed()?, self.reg(at(0)?)?, self.src(at(1)?)?, one));
        let binary = |op: IntOp| Ok(Op::Int(op, typed()?, self.reg(at(0)?)?, self.src(at(1)?)?, self.src(at(2)?)?));
        let float1 = |op: FloatOp, error: f32| {
            let ty = typed()?;
            Ok(Op::Float(op, ty, mode(error), self.reg(at(0)?)?, self.float_src(ty, at(1)?)?, one))
        };
        let float2 = |op: FloatOp, error: f32| {
            let ty = typed()?;
            let (a, b) = (self.float_src(ty, at(1)?)?, self.float_src(ty, at(2)?)?);
            Ok(Op::Float(op, ty, mode(error), self.reg(at(0)?)?, a, b))
        };
        let is_float = ty.is_some_and(Ty::is_float);
        let either = |int: IntOp, float: FloatOp| if is_float { float2(float, 0.0) } else { binary(int) };
        let three = |op: Three| {
            let d = self.reg(at(0)?)?;
            Ok(Op::Three(op, typed()?, d, self.src(at(1)?)?, self.src(at(2)?)?, self.src(at(3)?)?))
        };
        let space = || {
            if has("global") {
                Space::Global
            } else if has("shared") || has("shared::cta") {
                Space::Shared
            } else if has("local") {
                Space::Local
            } else if has("param") {
                Space::Param
            } else if has("const") {
                Space::Global
            } else {
                Space::Generic
            }
        };
        let fma = || {
            let ty = typed()?;
            let [a, b, c] = [self.float_src(ty, at(1)?)?, self.float_src(ty, at(2)?)?, self.float_src(ty, at(3)?)?];
            Ok(Op::Fma(ty, mode(0.0), self.reg(at(0)?)?, a, b, c))
        };
        if let Some(bulk) = self.bulk(s, &name)? {
            return Ok(Op::Bulk(Box::new(bulk)));
        }
        match name[0] {
            "mov" => self.mov(typed()?, at(0)?, at(1)?),
            "cvta" | "isspacep" if name[0] == "cvta" => {
                let shared = has("shared") || has("shared::cta");
                let (d, a) = (self.reg(at(0)?)?, self.src(at(1)?)?);
                let parameter = has("param");
                Ok(match (shared || parameter, has("to")) {
                    (true, to) if parameter => {
                        let op = if to { IntOp::Sub } else { IntOp::Add };
                        Op::Int(op, Ty::U64, d, a, Src::Imm(super::PARAMETER_WINDOW))
                    }
                    (false, _) => Op::Mov(d, a, u64::MAX),
                    (true, true) => Op::Int(IntOp::Sub, Ty::U64, d, a, Src::Imm(super::SHARED_WINDOW)),
                    (true, false) => Op::Int(IntOp::Add, Ty::U64, d, a, Src::Imm(super::SHARED_WINDOW)),
                })
            }
            "add" if has("cc") => Err(unknown()),
            "add" => either(IntOp::Add, FloatOp::Add),
            "sub" if has("cc") => Err(unknown()),
            "sub" => either(IntOp::Sub, FloatOp::Sub),
            "mul" if is_float => float2(FloatOp::Mul, 0.0),
            "mul" if has("wide") => binary(IntOp::MulWide),
            "mul" if has("hi") => binary(IntOp::MulHi),
            "mul" | "mul24" => binary(IntOp::Mul),
            "mad" if is_float => fma(),
            "mad" if has("wide") => three(Three::MadWide),
            "mad" if has("hi") => three(Three::MadHi),
            "mad" | "mad24" => three(Three::MadLo),
            "fma" => fma(),
            "div" if is_float => float2(FloatOp::Div, if has("approx") || has("full") { 2.0 } else { 0.0 }),
            "div" => binary(IntOp::Div),
            "rem" => binary(IntOp::Rem),
            "min" if is_float && has("NaN") => float2(FloatOp::MinNan, 0.0),
            "max" if is_float && has("NaN") => float2(FloatOp::MaxNan, 0.0),
            "min" => either(IntOp::Min, FloatOp::Min),
            "max" => either(IntOp::Max, FloatOp::Max),
            "and" => binary(IntOp::And),
            "or" => binary(IntOp::Or),
            "xor" => binary(IntOp::Xor),
            "not" => unary(IntOp::Not),
            "cnot" => unary(IntOp::Cnot),
            "shl" => binary(IntOp::Shl),
            "shr" => binary(IntOp::Shr),
            "neg" if is_float => float1(FloatOp::Neg, 0.0),
            "neg" => unary(IntOp::Neg),
            "abs" if is_float => float1(FloatOp::Abs, 0.0),
            "abs" => unary(IntOp::Abs),
            "popc" => unary(IntOp::Popc),
            "clz" => unary(IntOp::Clz),
            "brev" => unary(IntOp::Brev),
            "bfind" => unary(if has("shiftamt") { IntOp::BfindShift } else { IntOp::Bfind }),
            "sqrt" => float1(FloatOp::Sqrt, if has("approx") { 1.0 } else { 0.0 }),
            "rsqrt" => float1(FloatOp::Rsqrt, 1.1),
            "rcp" => float1(FloatOp::Rcp, if has("approx") { 1.0 } else { 0.0 }),
            "ex2" => float1(FloatOp::Ex2, 2.0),
            "lg2" => float1(FloatOp::Lg2, 2.0),
            "sin" => float1(FloatOp::Sin, 4.0),
            "cos" => float1(FloatOp::Cos, 4.0),
            "tanh" => float1(FloatOp::Tanh, 4096.0),
            "copysign" => float2(FloatOp::Copysign, 0.0),
            "bfe" => three(Three::Bfe),
            "prmt" if name.len() == 2 => three(Three::Prmt),
            "sad" => three(Three::Sad),
            "slct" => three(Three::Slct),
            "shf" => three(Three::Shf { left: has("l"), wrap: has("wrap") }),
            "dp4a" => {
                let signed = |n: usize| match name.get(n) {
                    Some(&"s32") => Ok(true),
                    Some(&"u32") => Ok(false),
                    _ => Err("dp4a is of u32 or s32".to_string()),
                };
                three(Three::Dot { left: signed(1)?, right: signed(2)? })
            }
            "lop3" => {
                let Src::Imm(table) = self.src(at(4)?)? else { return Err("the table of lop3 is no number".into()) };
                three(Three::Lop3(table as u8))
            }
            "bfi" => {
                let sources = [self.src(at(1)?)?, self.src(at(2)?)?, self.src(at(3)?)?, self.src(at(4)?)?];
                Ok(Op::Bfi(typed()?, self.reg(at(0)?)?, sources))
            }
            "setp" => self.setp(s, &name),
            "set" => {
                let compare = Compare::parse(name.get(1).copied().unwrap_or_default()).ok_or_else(unknown)?;
                let float = name.get(name.len() - 2).is_some_and(|t| *t == "f32");
                Ok(Op::Set {
                    compare,
                    ty: typed()?,
                    float,
                    d: self.reg(at(0)?)?,
                    a: self.src(at(1)?)?,
                    b: self.src(at(2)?)?,
                })
            }
            "selp" => {
                let (p, not) = match at(3)? {
                    Operand::Register(p) => (*p, false),
                    Operand::Not(p) => (*p, true),
                    _ => return Err("the last operand is no predicate".into()),
                };
                let ty = typed()?;
                let (a, b) = (self.float_src(ty, at(1)?)?, self.float_src(ty, at(2)?)?);
                Ok(Op::Selp(ty.mask(), self.reg(at(0)?)?, a, b, p, not))
            }
            "cvt" => self.cvt(s, &name),
            "ld" | "ldu" => {
                let targets = self.list(at(0)?, |s, o| s.target(o))?;
                Ok(Op::Ld { space: space(), ty: typed()?, targets, address: self.address(at(1)?)? })
            }
            "st" => {
                let ty = typed()?;
                let sources = self.list(at(1)?, |s, o| s.float_src(ty, o))?;
                Ok(Op::St { space: space(), ty, sources, address: self.address(at(0)?)? })
            }
            "atom" | "red" if name[0] == "atom" || !has("async") => self.atom(s, &name, space()),
            "fence" if has("mbarrier_init") => Ok(Op::Bulk(Box::new(Bulk::ProxyFence))),
            "membar" | "fence" | "prefetch" | "prefetchu" | "nanosleep" | "discard" | "applypriority" => Ok(Op::Nop),
            "createpolicy" => Ok(Op::Mov(self.reg(at(0)?)?, Src::Imm(0), u64::MAX)),
            "griddepcontrol" => Ok(Op::Nop),
            "bra" => self.label(at(0)?).map(Op::Bra),
            "ret" | "exit" => Ok(Op::Ret),
            "trap" | "brkpt" => Ok(Op::Trap),
            "bar" | "barrier" => {
                if has("warp") {
                    return Ok(Op::WarpSync(self.src(at(0)?)?));
                }
                if has("red") || has("cluster") {
                    return Err(unknown());
                }
                let count = o.get(1).map(|c| self.src(c)).transpose()?;
                Ok(Op::Bar { id: self.src(at(0)?)?, count, arrive: has("arrive") })
            }
            "shfl" => {
                let mode = match name.get(2).or(name.get(1)).copied() {
                    Some("up") => Shuffle::Up,
                    Some("down") => Shuffle::Down,
                    Some("bfly") => Shuffle::Bfly,
                    Some("idx") => Shuffle::Idx,
                    _ => return Err(unknown()),
                };
                let (d, p) = match at(0)? {
                    Operand::Pair(d, p) => (*d, *p),
                    other => (self.reg(other)?, None),
                };
                let members = o.get(4).map_or(Ok(Src::Imm(0xffff_ffff)), |m| self.src(m))?;
                Ok(Op::Shfl { mode, d, p, a: self.src(at(1)?)?, b: self.src(at(2)?)?, c: self.src(at(3)?)?, members })
            }
            "vote" => {
                let mode = [("all", Vote::All), ("any", Vote::Any), ("uni", Vote::Uni), ("ballot", Vote::Ballot)];
                let mode = mode.iter().find(|(m, _)| has(m)).map(|(_, v)| *v).ok_or_else(unknown)?;
                let (a, not) = match at(1)? {
                    Operand::Register(p) => (*p, false),
                    Operand::Not(p) => (*p, true),
                    _ => return Err("the second operand is no predicate".into()),
                };
                let members = o.get(2).map_or(Ok(Src::Imm(0xffff_ffff)), |m| self.src(m))?;
                Ok(Op::Vote { mode, d: self.reg(at(0)?)?, a, not, members })
            }
            "redux" => {
                let ops = [
                    ("add", IntOp::Add),
                    ("min", IntOp::Min),
                    ("max", IntOp::Max),
                    ("and", IntOp::And),
                    ("or", IntOp::Or),
                    ("xor", IntOp::Xor),
                ];
                let op = ops.iter().find(|(m, _)| has(m)).map(|(_, v)| *v).ok_or_else(unknown)?;
                Ok(Op::Redux {
                    op,
                    ty: typed()?,
                    d: self.reg(at(0)?)?,
                    a: self.src(at(1)?)?,
                    members: self.src(at(2)?)?,
                })
            }
            "activemask" => Ok(Op::Active(self.reg(at(0)?)?)),
            "ldmatrix" => {
                if !has("m8n8") || last != "b16" {
                    return Err(unknown());
                }
                let targets = self.list(at(0)?, |s, o| s.reg(o))?;
                Ok(Op::Ldmatrix { trans: has("trans"), targets, address: self.address(at(1)?)? })
            }
            "mma" => self.mma(s, &name),
            "cp" => {
                if !has("async") || has("bulk") || has("mbarrier") || has("reduce") {
                    return Err(unknown());
                }
                match name.get(2).copied() {
                    Some("commit_group") => Ok(Op::Commit),
                    Some("wait_all") => Ok(Op::Wait(None)),
                    Some("wait_group") => match self.src(at(0)?)? {
                        Src::Imm(n) => Ok(Op::Wait(Some(n))),
                        _ => Err("the number of groups is no number".into()),
                    },
                    _ => {
                        let Src::Imm(bytes @ (4 | 8 | 16)) = self.src(at(2)?)? else {
                            return Err("an asynchronous copy has 4, 8 or 16 bytes".into());
                        };
                        let (read, off) = match o.get(3) {
                            None => (None, None),
                            Some(Operand::Register(r))
                                if self.entry.registers.get(*r).is_some_and(|n| n.starts_with("%p")) =>
                            {
                                (None, Some(*r))
                            }
                            Some(other) => (Some(self.src(other)?), None),
                        };
                        let (to, from) = (self.address(at(0)?)?, self.address(at(1)?)?);
                        Ok(Op::CpAsync { to, from, bytes: bytes as usize, read, off })
                    }
                }
            }
            _ => Err(unknown()),
        }
    }

    fn label(&self, o: &Operand) -> Result1<usize> {
        let Operand::Name(name) = o else { return Err("a label belongs here".into()) };
        // A label of the same scope comes before one outside.
        let found = name.lines().rev().find_map(|n| self.entry.labels.get(n));
        found.copied().ok_or_else(|| format!("there is no label `{}`", name.lines().next().unwrap_or(name)))
    }

    fn mov(&self, ty: Ty, d: &Operand, a: &Operand) -> Result1<Op> {
        let part = |n: usize| match 8 * ty.bytes() / n.max(1) {
            0 => Err(format!("{n} registers do not fit {} bytes", ty.bytes())),
            bits => Ok(bits as u32),
        };
        match (d, a) {
            (Operand::List(list), a) => {
                let targets = list.iter().map(|o| self.target(o)).collect::<Result1<Vec<_>>>()?;
                Ok(Op::Unpack(targets, self.src(a)?, part(list.len())?))
            }
            (d, Operand::List(list)) => {
                let sources = list.iter().map(|o| self.src(o)).collect::<Result1<Vec<_>>>()?;
                Ok(Op::Pack(self.reg(d)?, sources, part(list.len())?))
            }
            (d, Operand::Memory(base, offset)) => {
                Ok(Op::Int(IntOp::Add, ty, self.reg(d)?, self.src(base)?, Src::Imm(*offset as u64)))
            }
            (d, a) => Ok(Op::Mov(self.reg(d)?, self.float_src(ty, a)?, ty.mask())),
        }
    }

    fn setp(&self, s: &Statement, name: &[&str]) -> Result1<Op> {
        let unknown = || format!("`{}` is not supported", s.name.join("."));
        let at = |n: usize| s.operands.get(n).ok_or_else(|| format!("operand {} is missing", n + 1));
        let compare = name.get(1).and_then(|n| Compare::parse(n)).ok_or_else(unknown)?;
        let ty = name.last().and_then(|n| Ty::parse(n)).ok_or_else(unknown)?;
        let join = [("and", Join::And), ("or", Join::Or), ("xor", Join::Xor)];
        let join = join.iter().find(|(n, _)| name[2..].contains(n)).map(|(_, j)| *j);
        let join = match (join, s.operands.get(3)) {
            (Some(j), Some(Operand::Register(r))) => Some((j, *r, false)),
            (Some(j), Some(Operand::Not(r))) => Some((j, *r, true)),
            (None, None) => None,
            _ => return Err("the last operand is no predicate".into()),
        };
        let (p, q) = match at(0)? {
            Operand::Pair(p, q) => (Some(*p), *q),
            other => (self.target(other)?, None),
        };
        let (a, b) = (self.float_src(ty, at(1)?)?, self.float_src(ty, at(2)?)?);
        Ok(Op::Setp { compare, ty, ftz: name.contains(&"ftz"), join, p, q, a, b })
    }

    fn cvt(&self, s: &Statement, name: &[&str]) -> Result1<Op> {
        let unknown = || format!("`{}` is not supported", s.name.join("."));
        let at = |n: usize| s.operands.get(n).ok_or_else(|| format!("operand {} is missing", n + 1));
        let has = |m: &str| name.contains(&m);
        let [.., to, from] = name else { return Err(unknown()) };
        if name.contains(&"satfinite") {
            return Err(unknown());
        }
        let d = self.reg(at(0)?)?;
        let to_int = [("rni", Round::Nearest), ("rzi", Round::Zero), ("rmi", Round::Down), ("rpi", Round::Up)];
        let round = [("rz", Round::Zero), ("rm", Round::Down), ("rp", Round::Up)];
        let find = |list: &[(&str, Round)]| list.iter().find(|(n, _)| has(n)).map(|(_, r)| *r);
        let mode = Convert {
            to_int: find(&to_int),
            round: find(&round).unwrap_or_default(),
            sat: has("sat"),
            ftz: has("ftz"),
            relu: has("relu"),
        };
        let from = Ty::parse(from).ok_or_else(unknown)?;
        if *to == "tf32" {
            // The low 13 bits are dropped after rounding, ties away from zero.
            return Ok(Op::CvtPack(Ty::F32, mode, d, self.float_src(from, at(1)?)?, Src::Imm(0)));
        }
        let to = Ty::parse(to).ok_or_else(unknown)?;
        if matches!(to, Ty::F16x2 | Ty::BF16x2) {
            let (a, b) = (self.float_src(from, at(1)?)?, self.float_src(from, at(2)?)?);
            return Ok(Op::CvtPack(to, mode, d, a, b));
        }
        Ok(Op::Cvt(to, from, mode, d, self.float_src(from, at(1)?)?))
    }

    fn atom(&self, s: &Statement, name: &[&str], space: Space) -> Result1<Op> {
        let unknown = || format!("`{}` is not supported", s.name.join("."));
        let ty = name.last().and_then(|n| Ty::parse(n)).ok_or_else(unknown)?;
        let has = |m: &str| name.contains(&m);
        let ops = [
            ("add", Atom::Int(IntOp::Add)),
            ("min", Atom::Int(IntOp::Min)),
            ("max", Atom::Int(IntOp::Max)),
            ("and", Atom::Int(IntOp::And)),
            ("or", Atom::Int(IntOp::Or)),
            ("xor", Atom::Int(IntOp::Xor)),
            ("exch", Atom::Exchange),
            ("cas", Atom::Cas),
            ("inc", Atom::Inc),
            ("dec", Atom::Dec),
        ];
        let op = ops.iter().find(|(n, _)| has(n)).map(|(_, o)| *o).ok_or_else(unknown)?;
        let op = match (op, ty.is_float()) {
            (Atom::Int(IntOp::Add), true) => Atom::Float,
            (Atom::Int(_), true) => return Err(unknown()),
            (other, _) => other,
        };
        if name.iter().any(|n| matches!(*n, "v2" | "v4" | "v8")) || ty.bytes() < 2 {
            return Err(unknown());
        }
        let first = usize::from(name[0] == "atom");
        let at = |n: usize| s.operands.get(n).ok_or_else(|| format!("operand {} is missing", n + 1));
        let d = if first == 1 { self.target(at(0)?)? } else { None };
        let b = self.float_src(ty, at(first + 1)?)?;
        let c = if op == Atom::Cas { self.src(at(first + 2)?)? } else { Src::Imm(0) };
        Ok(Op::Atom { space, op, ty, d, address: self.address(at(first)?)?, b, c })
    }

    fn mma(&self, s: &Statement, name: &[&str]) -> Result1<Op> {
        let unknown = || format!("`{}` is not supported", s.name.join("."));
        let at = |n: usize| s.operands.get(n).ok_or_else(|| format!("operand {} is missing", n + 1));
        let ["mma", "sync", "aligned", shape, "row", "col", rest @ ..] = name else { return Err(unknown()) };
        let rest: Vec<&str> = rest.iter().copied().filter(|m| *m != "satfinite").collect();
        let [d_type, a_type, b_type, c_type] = rest.as_slice() else { return Err(unknown()) };
        let element = |n: &str| {
            Some(match n {
                "f16" => Element::F16,
                "bf16" => Element::BF16,
                "tf32" => Element::TF32,
                "s8" => Element::S8,
                "u8" => Element::U8,
                _ => return None,
            })
        };
        let (a_type, b_type) = (element(a_type).ok_or_else(unknown)?, element(b_type).ok_or_else(unknown)?);
        let depth = match *shape {
            "m16n8k4" => 4,
            "m16n8k8" => 8,
            "m16n8k16" => 16,
            "m16n8k32" => 32,
            _ => return Err(unknown()),
        };
        let (bits, fine) = match a_type {
            Element::F16 | Element::BF16 => (16, matches!(depth, 8 | 16)),
            Element::TF32 => (32, matches!(depth, 4 | 8)),
            Element::S8 | Element::U8 => (8, matches!(depth, 16 | 32)),
        };
        let whole = matches!(a_type, Element::S8 | Element::U8);
        let half = *d_type == "f16";
        let accumulators = if whole { *d_type == "s32" } else { half || *d_type == "f32" };
        let same = d_type == c_type && (a_type == b_type || whole && matches!(b_type, Element::S8 | Element::U8));
        if !fine || !accumulators || !same || half && a_type != Element::F16 {
            return Err(unknown());
        }
        let d = self.list(at(0)?, |s, o| s.reg(o))?;
        let [a, b, c] = [1, 2, 3].map(|n| at(n).and_then(|o| self.list(o, |s, o| s.src(o))));
        let (a, b, c) = (a?, b?, c?);
        let words = |rows: usize| rows * depth * bits / 32 / 32;
        let results = if half { 2 } else { 4 };
        if a.len() != words(16) || b.len() != words(8) || d.len() != results || c.len() != results {
            return Err(format!("`{}` has other numbers of registers", s.name.join(".")));
        }
        Ok(Op::Mma(Box::new(Mma { depth, a_type, b_type, half, d, a, b, c })))
    }
}
