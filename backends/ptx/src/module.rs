//! Modules, statements and loops.
//!
//! Invariant: a value carried by a loop has one register, that of its name inside, which is assigned before the loop
//! and at its end; every other register is assigned once.

use crate::writer::{Class, Writer, immediate};
use crate::{
    Argument, BULK_TARGET, BULK_VERSION, EmitError, FLOAT8_TARGET, FLOAT8_VERSION, Launch, Module, STATIC_SHARED,
    TARGET, VERSION,
};
use kiln_ir::DType;
use kiln_ir::scalar::Constant;
use kiln_ir::warp::bulk::SWIZZLED;
use kiln_ir::warp::{Carried, Factor, For, Op, Stmt, ValueId, WarpProgram};
use std::collections::HashMap;
use std::fmt::Write;

pub(crate) struct Emitter<'a> {
    pub program: &'a WarpProgram,
    pub out: Writer,
    pub constants: HashMap<ValueId, Constant>,
    /// The value whose register a value shares.
    aliases: HashMap<ValueId, ValueId>,
    /// Registers that hold where the buffers begin.
    pub buffers: Vec<String>,
    /// Registers that hold where the maps are.
    pub maps: Vec<String>,
    /// The number of the barrier of the threads whose statements these are, and how many they are where not all.
    pub barrier: String,
    /// The register that holds where the status is.
    status: String,
    /// Bytes at which the shared buffers begin.
    pub shared: Vec<usize>,
    /// Address registers known in the open regions: by what is multiplied (the index's register), its size, and what
    /// is added.
    pub addresses: Vec<HashMap<(String, usize, String), String>>,
    /// Whether an instruction takes floats of 8 bits.
    pub floats_of_8_bits: bool,
}

impl<'a> Emitter<'a> {
    pub fn new(program: &'a WarpProgram) -> Emitter<'a> {
        let (shared, _) = program.shared_layout();
        Emitter {
            program,
            out: Writer::new(program.values.len()),
            constants: HashMap::new(),
            aliases: HashMap::new(),
            buffers: Vec::new(),
            maps: Vec::new(),
            barrier: "0".to_string(),
            status: String::new(),
            shared,
            addresses: vec![HashMap::new()],
            floats_of_8_bits: false,
        }
    }

    pub fn module(mut self) -> Result<Module, EmitError> {
        let WarpProgram { name, buffers, dims, threads, .. } = self.program;
        for i in 0..buffers.len() {
            let generic = self.out.temporary(Class::Double);
            let register = self.out.temporary(Class::Double);
            self.out.line(format!("ld.param.u64 \t{generic}, [{name}_{i}]"));
            self.out.line(format!("cvta.to.global.u64 \t{register}, {generic}"));
            self.buffers.push(register);
        }
        if self.program.has_checks() {
            let n = buffers.len() + dims.len();
            let generic = self.out.temporary(Class::Double);
            self.status = self.out.temporary(Class::Double);
            self.out.line(format!("ld.param.u64 \t{generic}, [{name}_{n}]"));
            self.out.line(format!("cvta.to.global.u64 \t{}, {generic}", self.status));
        }
        let first_map = buffers.len() + dims.len() + usize::from(self.program.has_checks());
        for n in 0..self.program.maps.len() {
            let (place, register) = (self.out.temporary(Class::Double), self.out.temporary(Class::Double));
            self.out.line(format!("mov.b64 \t{place}, {name}_{}", first_map + n));
            self.out.line(format!("cvta.param.u64 \t{register}, {place}"));
            self.maps.push(register);
        }
        let bulk = !self.program.maps.is_empty();
        self.region(&self.program.body)?;
        self.out.line("ret");
        let (version, target) = match (bulk, self.floats_of_8_bits) {
            (true, eight) => (if eight { FLOAT8_VERSION } else { BULK_VERSION }, BULK_TARGET),
            (false, true) => (FLOAT8_VERSION, FLOAT8_TARGET),
            (false, false) => (VERSION, TARGET),
        };
        let mut text = format!(".version {version}\n.target {target}\n.address_size 64\n\n");
        let (_, shared) = self.program.shared_layout();
        let dynamic_shared = if shared > STATIC_SHARED { shared } else { 0 };
        let align = if bulk { SWIZZLED } else { 16 };
        if dynamic_shared > 0 {
            let _ = writeln!(text, ".extern .shared .align {align} .b8 shared[];\n");
        }
        let kinds = buffers
            .iter()
            .map(|b| ("u64", format!("{}: {}[{}]{}", b.name, b.dtype, b.len, if b.written { " written" } else { "" })));
        let mut kinds: Vec<_> = kinds.chain(dims.iter().map(|d| ("s64", d.to_string()))).collect();
        if self.program.has_checks() {
            kinds.push(("u64", "status".to_string()));
        }
        kinds.extend(self.program.maps.iter().map(|map| ("b8", map.to_string())));
        let _ = writeln!(text, ".visible .entry {name}(");
        for (i, (kind, what)) in kinds.iter().enumerate() {
            let comma = if i + 1 < kinds.len() { "," } else { "" };
            let (align, array) = if *kind == "b8" { (".align 64 ", "[128]") } else { ("", "") };
            let _ = writeln!(text, "\t.param {align}.{kind} {name}_{i}{array}{comma}\t// {what}");
        }
        // Without the last line ptxas spills registers where that lets a few more blocks in.
        let _ = writeln!(text, ")\n.reqntid {threads}, 1, 1\n.minnctapersm 1\n{{");
        if shared > 0 && dynamic_shared == 0 {
            let _ = writeln!(text, "\t.shared .align {align} .b8 shared[{shared}];");
        }
        text += &self.out.finish();
        text += "}\n";
        let arguments = buffers.iter().map(|b| Argument::Buffer {
            name: b.name.clone(),
            dtype: b.dtype,
            len: b.len.clone(),
            written: b.written,
        });
        let launch = Launch {
            entry: name.clone(),
            blocks: self.program.grid.clone(),
            threads: *threads,
            dynamic_shared,
            arguments: arguments
                .chain(dims.iter().cloned().map(Argument::Dim))
                .chain(self.program.has_checks().then_some(Argument::Status))
                .chain(self.program.maps.iter().cloned().map(Argument::Map))
                .collect(),
        };
        Ok(Module { text, launch })
    }

    pub fn dtype(&self, id: ValueId) -> DType {
        self.program.values.get(id).copied().unwrap_or(DType::Bool)
    }

    /// The register that a value is assigned to.
    pub fn target(&mut self, id: ValueId) -> String {
        let dtype = self.dtype(id);
        self.out.value(id, dtype)
    }

    /// The value as a register; a constant is moved to one first.
    pub fn register(&mut self, id: ValueId) -> String {
        match self.constants.get(&id).copied() {
            Some(c) => self.constant(c),
            None => {
                let holder = self.aliases.get(&id).copied().unwrap_or(id);
                self.target(holder)
            }
        }
    }

    /// A register that holds a constant.
    pub fn constant(&mut self, c: Constant) -> String {
        let class = Class::of(c.dtype);
        let register = self.out.temporary(class);
        match immediate(c) {
            Some(text) => self.out.line(format!("mov.{} \t{register}, {text}", class.bits())),
            None => self.out.line(format!("mov.pred \t{register}, {}", c.bits)),
        }
        register
    }

    /// The value as a register, or as a constant in its place.
    pub fn operand(&mut self, id: ValueId) -> String {
        match self.constants.get(&id).and_then(|c| immediate(*c)) {
            Some(text) => text,
            None => self.register(id),
        }
    }

    /// `@%p3 `, or nothing.
    pub fn guard(&mut self, condition: Option<ValueId>) -> String {
        condition.map(|c| format!("@{} ", self.register(c))).unwrap_or_default()
    }

    fn region(&mut self, body: &[Stmt]) -> Result<(), EmitError> {
        body.iter().try_for_each(|stmt| self.stmt(stmt))
    }

    fn stmt(&mut self, stmt: &Stmt) -> Result<(), EmitError> {
        // Constants are no instructions of their own.
        if !matches!(stmt, Stmt::Let(_, Op::Const(_))) {
            self.out.from(self.program.head(stmt));
        }
        match stmt {
            Stmt::Let(ids, op) => self.define(ids, op),
            Stmt::Store { address, values, condition } => self.store(address, values, *condition),
            Stmt::Copy { to, from, count, condition } => self.copy(to, from, *count, *condition),
            Stmt::Commit => self.plain("cp.async.commit_group"),
            Stmt::Wait(groups) => self.plain(format!("cp.async.wait_group {groups}")),
            Stmt::Barrier => self.plain(format!("bar.sync \t{}", self.barrier)),
            Stmt::Fail { condition, status } => {
                let guard = self.guard(Some(*condition));
                self.plain(format!("{guard}red.global.max.u32 \t[{}], {status}", self.status))
            }
            Stmt::For(counted) => self.counted_loop(counted),
            Stmt::Bulk(bulk) => self.bulk(bulk),
        }
    }

    /// Statements whose address registers are not known outside.
    pub fn within(&mut self, body: &[Stmt]) -> Result<(), EmitError> {
        self.addresses.push(HashMap::new());
        self.region(body)?;
        self.addresses.pop();
        Ok(())
    }

    /// Gives a value the register of another one.
    pub fn share(&mut self, id: ValueId, with: ValueId) {
        let holder = self.aliases.get(&with).copied().unwrap_or(with);
        self.aliases.insert(id, holder);
    }

    /// An instruction as it stands.
    pub fn plain(&mut self, text: impl AsRef<str>) -> Result<(), EmitError> {
        self.out.line(text);
        Ok(())
    }

    fn define(&mut self, ids: &[ValueId], op: &Op) -> Result<(), EmitError> {
        let &[id, ..] = ids else { return Ok(()) };
        match op {
            Op::Const(c) => {
                self.constants.insert(id, *c);
            }
            Op::Thread | Op::Block => {
                let target = self.target(id);
                let source = if *op == Op::Thread { "%tid.x" } else { "%ctaid.x" };
                self.out.line(format!("mov.u32 \t{target}, {source}"));
            }
            Op::Dim(n) => {
                let (target, name) = (self.target(id), &self.program.name);
                let n = self.program.buffers.len() + n;
                self.out.line(format!("ld.param.s64 \t{target}, [{name}_{n}]"));
            }
            Op::Load(address, condition) => self.load(ids, address, *condition)?,
            Op::Matrix { address, transposed } => {
                let place = self.address(address)?;
                let targets: Vec<String> = ids.iter().map(|&id| self.target(id)).collect();
                let trans = if *transposed { ".trans" } else { "" };
                let (count, targets) = (ids.len(), targets.join(", "));
                let op = format!("ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16");
                self.out.line(format!("{op} \t{{{targets}}}, [{place}]"));
            }
            Op::Mma { factor, a, b, c } => {
                let mut list =
                    |ids: &[ValueId]| ids.iter().map(|&id| self.register(id)).collect::<Vec<String>>().join(", ");
                let (a, b, c) = (list(a), list(b), list(c));
                let d: Vec<String> = ids.iter().map(|&id| self.target(id)).collect();
                let (sums, left, right) = match factor {
                    Factor::F16 | Factor::BF16 | Factor::TF32 | Factor::E4M3 | Factor::E5M2 => {
                        ("f32", factor.name(), factor.name())
                    }
                    Factor::UnsignedSigned => ("s32", "u8", "s8"),
                    Factor::SignedUnsigned => ("s32", "s8", "u8"),
                    Factor::E4M3E5M2 => ("f32", "e4m3", "e5m2"),
                    Factor::E5M2E4M3 => ("f32", "e5m2", "e4m3"),
                };
                self.floats_of_8_bits |= factor.floats_of_8_bits().is_some();
                let depth = 8 * factor.numbers();
                let op = format!("mma.sync.aligned.m16n8k{depth}.row.col.{sums}.{left}.{right}.{sums}");
                self.out.line(format!("{op} \t{{{}}}, {{{a}}}, {{{b}}}, {{{c}}}", d.join(", ")));
            }
            Op::GroupMma(product) => self.group_product(ids, product)?,
            Op::Unary(..)
            | Op::Exp2(_)
            | Op::Tf32(_)
            | Op::Binary(..)
            | Op::Fma(..)
            | Op::Select(..)
            | Op::Cast(..)
            | Op::Bitcast(..)
            | Op::Pack(..)
            | Op::Unpack(..)
            | Op::Shuffle(..) => self.compute(id, op),
        }
        Ok(())
    }

    fn counted_loop(&mut self, counted: &For) -> Result<(), EmitError> {
        let For { var, lo, hi, step, carried, body } = counted;
        let number = if self.dtype(*var) == DType::I32 { "s32" } else { "s64" };
        let (first, end) = (self.operand(*lo), self.operand(*hi));
        let variable = self.target(*var);
        for c in carried {
            let init = self.operand_or_register(c.init);
            self.assign(c, &init);
        }
        self.out.line(format!("mov.{number} \t{variable}, {first}"));
        let (begin, done) = (self.out.label(), self.out.label());
        let known = |id: &ValueId| self.constants.get(id).map(|c| c.bits as i64);
        let runs = matches!((known(lo), known(hi)), (Some(lo), Some(hi)) if lo < hi);
        if !runs {
            let never = self.out.temporary(Class::Predicate);
            self.out.line(format!("setp.ge.{number} \t{never}, {variable}, {end}"));
            self.out.line(format!("@{never} bra.uni \t{done}"));
        }
        self.out.place(&begin);
        self.within(body)?;
        self.hand_on(carried);
        let again = self.out.temporary(Class::Predicate);
        self.out.line(format!("add.{number} \t{variable}, {variable}, {step}"));
        self.out.line(format!("setp.lt.{number} \t{again}, {variable}, {end}"));
        self.out.line(format!("@{again} bra.uni \t{begin}"));
        if !runs {
            self.out.place(&done);
        }
        for c in carried {
            self.aliases.insert(c.after, c.inside);
        }
        Ok(())
    }

    /// The value as what `mov` takes: predicates have no constants there.
    fn operand_or_register(&mut self, id: ValueId) -> String {
        if self.dtype(id) == DType::Bool { self.register(id) } else { self.operand(id) }
    }

    fn assign(&mut self, c: &Carried, source: &str) {
        let bits = Class::of(self.dtype(c.inside)).bits();
        let inside = self.target(c.inside);
        if inside != source {
            self.out.line(format!("mov.{bits} \t{inside}, {source}"));
        }
    }

    /// Assigns the next values, all of which are read before the first is overwritten that another one is.
    fn hand_on(&mut self, carried: &[Carried]) {
        let insides: Vec<String> = carried.iter().map(|c| self.target(c.inside)).collect();
        let mut sources: Vec<String> = carried.iter().map(|c| self.operand_or_register(c.next)).collect();
        for (i, c) in carried.iter().enumerate() {
            // A value inside that an earlier assignment overwrites.
            if insides[..i].contains(&sources[i]) {
                let class = Class::of(self.dtype(c.inside));
                let saved = self.out.temporary(class);
                self.out.line(format!("mov.{} \t{saved}, {}", class.bits(), sources[i]));
                sources[i] = saved;
            }
        }
        for (c, source) in carried.iter().zip(&sources) {
            self.assign(c, source);
        }
    }
}
