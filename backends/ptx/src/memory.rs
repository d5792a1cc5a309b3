//! Loads, stores and copies.
//!
//! Invariant: an access is one instruction, as wide as its values together; elements of 2 bytes are moved in pairs, bools as
//! bytes, and more than four integers of 1 or 2 bytes as words that are put together and taken apart.

use crate::EmitError;
use crate::module::Emitter;
use crate::writer::{Class, immediate};
use kiln_ir::DType;
use kiln_ir::scalar::Constant;
use kiln_ir::warp::{Address, Place, ValueId};

impl Emitter<'_> {
    /// What stands between the brackets of an access.
    pub fn address(&mut self, address: &Address) -> Result<String, EmitError> {
        let (base, start, size) = match address.place {
            Place::Global(n) => {
                let base = self.buffers.get(n).cloned().unwrap_or_default();
                (base, 0, self.program.buffers.get(n).map_or(1, |b| b.dtype.size()))
            }
            Place::Shared(n) => {
                let size = self.program.shared.get(n).map_or(1, |s| s.dtype.size());
                ("shared".to_string(), self.shared.get(n).copied().unwrap_or(0), size)
            }
        };
        let bytes = i64::try_from(size).ok().and_then(|size| address.offset.checked_mul(size));
        let bytes = bytes.and_then(|b| b.checked_add(i64::try_from(start).ok()?)).filter(|b| i32::try_from(*b).is_ok());
        let Some(bytes) = bytes else {
            return Err(EmitError::Offset { program: self.program.name.clone(), offset: address.offset });
        };
        let register = match address.index {
            None => base,
            Some(index) => self.indexed(index, size, address.place, base),
        };
        Ok(if bytes == 0 { register } else { format!("{register}+{bytes}") })
    }

    /// A register that holds `base + index * size`.
    fn indexed(&mut self, index: ValueId, size: usize, place: Place, base: String) -> String {
        let of_index = self.dtype(index);
        let operand = self.register(index);
        let key = (operand.clone(), size, base.clone());
        if let Some(register) = self.addresses.iter().find_map(|known| known.get(&key)) {
            return register.clone();
        }
        let register = match place {
            Place::Shared(_) => {
                let start = self.out.temporary(Class::Word);
                let register = self.out.temporary(Class::Word);
                self.out.line(format!("mov.u32 \t{start}, {base}"));
                self.out.line(format!("mad.lo.s32 \t{register}, {operand}, {size}, {start}"));
                register
            }
            Place::Global(_) => {
                let register = self.out.temporary(Class::Double);
                let op = if of_index == DType::I32 { "mad.wide.s32" } else { "mad.lo.s64" };
                self.out.line(format!("{op} \t{register}, {operand}, {size}, {base}"));
                register
            }
        };
        if let Some(known) = self.addresses.last_mut() {
            known.insert(key, register.clone());
        }
        register
    }

    /// The type of accesses to a buffer of narrow integers.
    fn narrow(&self, place: Place) -> Option<&'static str> {
        let dtype = match place {
            Place::Global(n) => self.program.buffers.get(n)?.dtype,
            Place::Shared(n) => self.program.shared.get(n)?.dtype,
        };
        match dtype {
            DType::I8 => Some("s8"),
            DType::U8 => Some("u8"),
            DType::I16 => Some("s16"),
            DType::U16 => Some("u16"),
            _ => None,
        }
    }

    pub fn load(
        &mut self,
        ids: &[ValueId],
        address: &Address,
        condition: Option<(ValueId, Constant)>,
    ) -> Result<(), EmitError> {
        let dtype = ids.first().map_or(DType::Bool, |&id| self.dtype(id));
        let place = self.address(address)?;
        let guard = self.guard(condition.map(|(c, _)| c));
        let space = space(address.place);
        let targets: Vec<String> = ids.iter().map(|&id| self.target(id)).collect();
        if dtype == DType::Bool {
            let byte = self.out.temporary(Class::Half);
            if let Some((_, other)) = condition {
                self.out.line(format!("mov.b16 \t{byte}, {}", other.bits));
            }
            self.out.line(format!("{guard}ld.{space}.u8 \t{byte}, [{place}]"));
            for target in targets {
                self.out.line(format!("setp.ne.b16 \t{target}, {byte}, 0"));
            }
            return Ok(());
        }
        if let Some(ty) = self.narrow(address.place) {
            if targets.len() > MOST_NARROW {
                self.load_words(ty, &targets, (space, &place), &guard, condition);
                return Ok(());
            }
            if let Some(text) = condition.and_then(|(_, other)| immediate(other)) {
                for target in &targets {
                    self.out.line(format!("mov.b32 \t{target}, {text}"));
                }
            }
            let access = suffix(targets.len(), ty);
            self.out.line(format!("{guard}ld.{space}{access} \t{}, [{place}]", list(&targets)));
            return Ok(());
        }
        let pairs = dtype.size() == 2 && ids.len() > 1;
        let registers: Vec<String> =
            if pairs { targets.chunks(2).map(|_| self.out.temporary(Class::Word)).collect() } else { targets.clone() };
        let bits = if pairs { "b32" } else { Class::of(dtype).bits() };
        if let Some((_, other)) = condition
            && let Some(text) = immediate(other)
        {
            let text = if pairs { twice(other) } else { text };
            for register in &registers {
                self.out.line(format!("mov.{bits} \t{register}, {text}"));
            }
        }
        self.out.line(format!("{guard}ld.{space}{} \t{}, [{place}]", suffix(registers.len(), bits), list(&registers)));
        if pairs {
            for (register, pair) in registers.iter().zip(targets.chunks(2)) {
                self.out.line(format!("mov.b32 \t{}, {register}", list(pair)));
            }
        }
        Ok(())
    }

    pub fn store(
        &mut self,
        address: &Address,
        values: &[ValueId],
        condition: Option<ValueId>,
    ) -> Result<(), EmitError> {
        let dtype = values.first().map_or(DType::Bool, |&id| self.dtype(id));
        let place = self.address(address)?;
        let sources: Vec<String> = values.iter().map(|&id| self.register(id)).collect();
        let guard = self.guard(condition);
        let space = space(address.place);
        if dtype == DType::Bool {
            let byte = self.out.temporary(Class::Half);
            self.out.line(format!("selp.b16 \t{byte}, 1, 0, {}", list(&sources)));
            self.out.line(format!("{guard}st.{space}.u8 \t[{place}], {byte}"));
            return Ok(());
        }
        if let Some(ty) = self.narrow(address.place) {
            let ty = ty.replace('s', "u");
            if sources.len() > MOST_NARROW {
                let words = self.packed(&ty, &sources);
                let access = suffix(words.len(), "b32");
                self.out.line(format!("{guard}st.{space}{access} \t[{place}], {}", list(&words)));
                return Ok(());
            }
            let access = suffix(sources.len(), &ty);
            self.out.line(format!("{guard}st.{space}{access} \t[{place}], {}", list(&sources)));
            return Ok(());
        }
        let pairs = dtype.size() == 2 && values.len() > 1;
        let registers: Vec<String> = if pairs {
            sources
                .chunks(2)
                .map(|pair| {
                    let register = self.out.temporary(Class::Word);
                    self.out.line(format!("mov.b32 \t{register}, {}", list(pair)));
                    register
                })
                .collect()
        } else {
            sources
        };
        let bits = if pairs { "b32" } else { Class::of(dtype).bits() };
        self.out.line(format!("{guard}st.{space}{} \t[{place}], {}", suffix(registers.len(), bits), list(&registers)));
        Ok(())
    }

    /// Loads narrow integers in words of 32 bits and takes them apart.
    fn load_words(
        &mut self,
        ty: &str,
        targets: &[String],
        (space, place): (&str, &str),
        guard: &str,
        condition: Option<(ValueId, Constant)>,
    ) {
        let bits = width(ty);
        let words: Vec<String> = targets.chunks(32 / bits).map(|_| self.out.temporary(Class::Word)).collect();
        if let Some((_, other)) = condition {
            let one = other.bits & ((1 << bits) - 1);
            let all = (0..32 / bits).fold(0, |word, n| word | one << (n * bits));
            words.iter().for_each(|word| self.out.line(format!("mov.b32 \t{word}, 0x{all:08X}")));
        }
        self.out.line(format!("{guard}ld.{space}{} \t{}, [{place}]", suffix(words.len(), "b32"), list(&words)));
        let sign = ty.get(..1).unwrap_or("u");
        for (word, several) in words.iter().zip(targets.chunks(32 / bits)) {
            for (n, target) in several.iter().enumerate() {
                self.out.line(format!("bfe.{sign}32 \t{target}, {word}, {}, {bits}", n * bits));
            }
        }
    }

    /// Words of 32 bits of the low bits of so many registers.
    fn packed(&mut self, ty: &str, sources: &[String]) -> Vec<String> {
        let mut join = |low: &str, high: &str, bytes: &str| {
            let word = self.out.temporary(Class::Word);
            self.out.line(format!("prmt.b32 \t{word}, {low}, {high}, {bytes}"));
            word
        };
        let mut halves: Vec<String> = sources.to_vec();
        if width(ty) == 8 {
            halves = sources.chunks_exact(2).map(|pair| join(&pair[0], &pair[1], "0x0040")).collect();
        }
        halves.chunks_exact(2).map(|pair| join(&pair[0], &pair[1], "0x5410")).collect()
    }

    pub fn copy(
        &mut self,
        to: &Address,
        from: &Address,
        count: usize,
        condition: Option<ValueId>,
    ) -> Result<(), EmitError> {
        let size = match from.place {
            Place::Global(n) => self.program.buffers.get(n).map_or(1, |b| b.dtype.size()),
            Place::Shared(n) => self.program.shared.get(n).map_or(1, |s| s.dtype.size()),
        };
        let bytes = size * count;
        let (to, from) = (self.address(to)?, self.address(from)?);
        // 16 bytes can pass by the first-level cache; what is not read is filled with zeros.
        let cache = if bytes == 16 { "cg" } else { "ca" };
        let source = match condition {
            None => String::new(),
            Some(condition) => {
                let (condition, read) = (self.register(condition), self.out.temporary(Class::Word));
                self.out.line(format!("selp.b32 \t{read}, {bytes}, 0, {condition}"));
                format!(", {read}")
            }
        };
        self.out.line(format!("cp.async.{cache}.shared.global \t[{to}], [{from}], {bytes}{source}"));
        Ok(())
    }
}

/// Most narrow integers that PTX moves between registers of their own and memory at once.
const MOST_NARROW: usize = 4;

/// Bits of a type of narrow integers.
fn width(ty: &str) -> usize {
    if ty.ends_with('8') { 8 } else { 16 }
}

fn space(place: Place) -> &'static str {
    match place {
        Place::Global(_) => "global",
        Place::Shared(_) => "shared",
    }
}

/// `.v4.f32`
fn suffix(count: usize, bits: &str) -> String {
    if count == 1 { format!(".{bits}") } else { format!(".v{count}.{bits}") }
}

/// `{%f1, %f2}`, or the one register.
fn list(registers: &[String]) -> String {
    match registers {
        [one] => one.clone(),
        several => format!("{{{}}}", several.join(", ")),
    }
}

/// Two halves with the constant's bits.
fn twice(c: Constant) -> String {
    let mut bytes = Vec::with_capacity(4);
    c.store(&mut bytes);
    c.store(&mut bytes);
    bytes.iter().rev().fold("0x".to_string(), |text, b| format!("{text}{b:02X}"))
}
