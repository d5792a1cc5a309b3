//! Statements to instructions.
//!
//! Invariant: an instruction that was decoded can be executed without looking at names again: registers, labels,
//! variables and parameters are numbers, and every modifier has been understood. What is not supported is an error here,
//! with its line and column, and never a wrong result later.
//!
//! Each family of instructions has a file: [`arith`], [`memory`], [`lanes`] and [`bulk`].

mod arith;
mod bulk;
mod instruction;
mod lanes;
mod memory;

pub(super) use bulk::{Bulk, GroupMma, Scale};
pub(super) use instruction::{
    Address, Atom, Element, Instruction, Join, Mma, Op, Shuffle, Space, Special, Src, Three, Vote,
};

use super::alu::Ty;
use super::parse::{self, Entry, Operand, ParseError, Space as Where, Statement, Variable};
use std::collections::HashMap;

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

    fn label(&self, o: &Operand) -> Result1<usize> {
        let Operand::Name(name) = o else { return Err("a label belongs here".into()) };
        // A label of the same scope comes before one outside.
        let found = name.lines().rev().find_map(|n| self.entry.labels.get(n));
        found.copied().ok_or_else(|| format!("there is no label `{}`", name.lines().next().unwrap_or(name)))
    }

    fn op(&self, s: &Statement) -> Result1<Op> {
        let w = Words { statement: s, name: s.name.iter().map(String::as_str).collect() };
        if w.name.is_empty() {
            return Err("an instruction belongs here".into());
        }
        if let Some(bulk) = self.bulk(&w)? {
            return Ok(Op::Bulk(Box::new(bulk)));
        }
        for kind in [Self::arithmetic, Self::accesses, Self::together] {
            if let Some(op) = kind(self, &w)? {
                return Ok(op);
            }
        }
        Err(w.unknown())
    }
}

/// An instruction's name and operands.
struct Words<'s> {
    statement: &'s Statement,
    /// The parts of its name, at least one.
    name: Vec<&'s str>,
}

impl<'s> Words<'s> {
    fn whole(&self) -> String {
        self.name.join(".")
    }

    fn unknown(&self) -> String {
        format!("`{}` is not supported", self.whole())
    }

    fn has(&self, modifier: &str) -> bool {
        self.name.contains(&modifier)
    }

    /// The last part of the name, which is a type where there is one.
    fn last(&self) -> &'s str {
        self.name.last().copied().unwrap_or_default()
    }

    fn typed(&self) -> Result1<Ty> {
        Ty::parse(self.last()).ok_or_else(|| self.unknown())
    }

    fn operand(&self, n: usize) -> Option<&'s Operand> {
        self.statement.operands.get(n)
    }

    fn at(&self, n: usize) -> Result1<&'s Operand> {
        self.operand(n).ok_or_else(|| format!("operand {} is missing", n + 1))
    }
}
