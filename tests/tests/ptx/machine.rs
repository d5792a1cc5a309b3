//! Executes PTX text, as far as this project writes it, on plain memory.
//!
//! Invariant: what an instruction does is taken from the PTX manual, not from the backend; anything unknown panics.
//! The threads of a block go through the text together, so a branch must be taken by all of them or none, and copies
//! land at once: whether waits and barriers suffice is checked by the interpreter of warp programs.

use kiln_ir::{DType, semantics};
use std::collections::HashMap;

/// Where buffer `n` begins in the machine's address space.
fn base(n: usize) -> u64 {
    (n as u64 + 1) << 40
}

#[derive(Debug, Clone)]
enum Operand {
    Register(usize),
    Number(u64),
    /// A register or a number, and what is added.
    Memory(Box<Operand>, i64),
    List(Vec<Operand>),
    Name(String),
}

struct Instruction {
    text: String,
    guard: Option<usize>,
    op: Vec<String>,
    operands: Vec<Operand>,
}

#[derive(Default)]
struct Text {
    registers: HashMap<String, usize>,
    labels: HashMap<String, usize>,
    instructions: Vec<Instruction>,
    shared: usize,
    threads: usize,
}

impl Text {
    fn parse(text: &str) -> Text {
        let mut parsed = Text::default();
        for line in text.lines().map(|l| l.split("//").next().unwrap_or("").trim()) {
            if let Some(rest) = line.strip_prefix(".reqntid ") {
                parsed.threads = rest.split(',').next().unwrap().trim().parse().unwrap();
            } else if let Some(rest) = line.strip_prefix(".shared .align 16 .b8 shared[") {
                parsed.shared = rest.trim_end_matches("];").parse().unwrap();
            } else if let Some(label) = line.strip_suffix(':') {
                parsed.labels.insert(label.to_string(), parsed.instructions.len());
            } else if let Some(line) = line.strip_suffix(';').filter(|l| !l.starts_with('.')) {
                parsed.instruction(line);
            }
        }
        parsed
    }

    fn instruction(&mut self, text: &str) {
        let mut rest = text;
        let mut guard = None;
        if let Some(guarded) = text.strip_prefix('@') {
            let (register, after) = guarded.split_once(' ').unwrap();
            guard = Some(self.register(register));
            rest = after;
        }
        let (op, operands) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let mut operands = operands.trim();
        let mut list = Vec::new();
        while !operands.is_empty() {
            let end = if operands.starts_with('{') { operands.find('}').unwrap() + 1 } else { 0 };
            let end = operands[end..].find(',').map_or(operands.len(), |i| end + i);
            list.push(self.operand(operands[..end].trim()));
            operands = operands[end..].trim_start_matches(',').trim();
        }
        let op = op.split('.').map(str::to_string).collect();
        self.instructions.push(Instruction { text: text.to_string(), guard, op, operands: list });
    }

    fn register(&mut self, name: &str) -> usize {
        let next = self.registers.len();
        *self.registers.entry(name.to_string()).or_insert(next)
    }

    fn operand(&mut self, text: &str) -> Operand {
        if let Some(inner) = text.strip_prefix('{') {
            let items = inner.trim_end_matches('}').split(',').map(|t| self.operand(t.trim())).collect();
            Operand::List(items)
        } else if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.trim_end_matches(']');
            let (what, offset) = inner.split_once('+').unwrap_or((inner, "0"));
            Operand::Memory(Box::new(self.operand(what)), offset.parse().unwrap())
        } else if text.starts_with('%') && !text.contains('.') {
            Operand::Register(self.register(text))
        } else if let Some(float) = text.strip_prefix("0f") {
            Operand::Number(u64::from(u32::from_str_radix(float, 16).unwrap()))
        } else if let Some(hex) = text.strip_prefix("0x") {
            Operand::Number(u64::from_str_radix(hex, 16).unwrap())
        } else if let Ok(n) = text.parse::<i128>() {
            Operand::Number(n as u64)
        } else {
            Operand::Name(text.to_string())
        }
    }
}

/// Runs all blocks of the kernel. The arguments are the buffers, then the dims; a buffer of four bytes after the kernel's
/// own is where it notes its status.
pub fn run(text: &str, blocks: usize, buffers: &mut [Vec<u8>], dims: &[i64]) {
    let text = Text::parse(text);
    for block in 0..blocks {
        let mut machine = Machine {
            text: &text,
            block,
            registers: vec![vec![0; text.threads]; text.registers.len()],
            shared: vec![0xAA; text.shared],
            buffers,
            dims,
        };
        machine.block();
    }
}

struct Machine<'a> {
    text: &'a Text,
    block: usize,
    registers: Vec<Vec<u64>>,
    shared: Vec<u8>,
    buffers: &'a mut [Vec<u8>],
    dims: &'a [i64],
}

fn float(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn bits(value: f32) -> u64 {
    u64::from(value.to_bits())
}

/// The bits as an integer of the type.
fn int(ty: &str, bits: u64) -> i128 {
    match ty {
        "s32" => i128::from(bits as i32),
        "u32" | "b32" => i128::from(bits as u32),
        "s64" => i128::from(bits as i64),
        "u64" | "b64" => i128::from(bits),
        "b16" => i128::from(bits as u16),
        "pred" => i128::from(bits & 1),
        other => panic!("no integer type {other}"),
    }
}

/// The integer's low bits.
fn back(ty: &str, value: i128) -> u64 {
    match ty {
        "s32" | "u32" | "b32" => u64::from(value as u32),
        "b16" => u64::from(value as u16),
        "pred" => (value & 1) as u64,
        _ => value as u64,
    }
}

fn bytes_of(ty: &str) -> usize {
    match ty {
        "u8" => 1,
        "b16" => 2,
        "b32" | "f32" => 4,
        "b64" => 8,
        other => panic!("no type {other} in memory"),
    }
}

impl Machine<'_> {
    fn block(&mut self) {
        let text = self.text;
        let mut at = 0;
        loop {
            let instruction = &text.instructions[at];
            let active: Vec<bool> = match instruction.guard {
                None => vec![true; text.threads],
                Some(guard) => self.registers[guard].iter().map(|&p| p != 0).collect(),
            };
            at += 1;
            match instruction.op[0].as_str() {
                "ret" => return,
                "bra" => {
                    let Operand::Name(label) = &instruction.operands[0] else { panic!("{}", instruction.text) };
                    assert!(active.iter().all(|a| *a == active[0]), "a branch that only some threads take");
                    if active[0] {
                        at = text.labels[label];
                    }
                }
                "bar" => assert!(active.iter().all(|a| *a)),
                "ldmatrix" => self.matrix(instruction),
                "mma" => self.product(instruction),
                "shfl" => self.shuffle(instruction),
                _ => (0..text.threads).filter(|&t| active[t]).for_each(|t| self.step(instruction, t)),
            }
        }
    }

    fn get(&self, operand: &Operand, t: usize) -> u64 {
        match operand {
            Operand::Register(r) => self.registers[*r][t],
            Operand::Number(n) => *n,
            Operand::Memory(what, offset) => self.get(what, t).wrapping_add(*offset as u64),
            Operand::Name(name) => match name.as_str() {
                "%tid.x" => t as u64,
                "%ctaid.x" => self.block as u64,
                "shared" => 0,
                other => panic!("no value {other}"),
            },
            Operand::List(_) => panic!("a list where one value belongs"),
        }
    }

    fn set(&mut self, operand: &Operand, t: usize, value: u64) {
        let Operand::Register(r) = operand else { panic!("{operand:?} is no target") };
        self.registers[*r][t] = value;
    }

    fn memory(&mut self, space: &str, address: u64, len: usize) -> &mut [u8] {
        assert!(address.is_multiple_of(len as u64), "an access of {len} bytes at {address}");
        let (memory, at) = match space {
            "shared" => (&mut self.shared, (address as u32) as usize),
            _ => {
                let n = (address >> 40) as usize - 1;
                (&mut self.buffers[n], (address - base(n)) as usize)
            }
        };
        &mut memory[at..at + len]
    }

    /// Registers of an access, with the bytes of each.
    fn vector(operand: &Operand, op: &[String]) -> (Vec<Operand>, usize) {
        let registers = match operand {
            Operand::List(items) => items.clone(),
            one => vec![one.clone()],
        };
        (registers, bytes_of(op.last().unwrap()))
    }

    fn step(&mut self, i: &Instruction, t: usize) {
        let op: Vec<&str> = i.op.iter().map(String::as_str).collect();
        let ty = *op.last().unwrap();
        let o = &i.operands;
        match op.as_slice() {
            ["ld", "param", _] => {
                let Operand::Memory(name, _) = &o[1] else { panic!("{}", i.text) };
                let Operand::Name(name) = &**name else { panic!("{}", i.text) };
                let n: usize = name.rsplit('_').next().unwrap().parse().unwrap();
                let count = self.buffers.len();
                // Of the buffers the last is the status, which comes after the dims.
                let (own, dims) = (count - 1, self.dims.len());
                let value = if n < own { base(n) } else { self.dims.get(n - own).map_or(base(own), |d| *d as u64) };
                assert!(n <= own + dims);
                self.set(&o[0], t, value);
            }
            ["cvta", ..] => self.set(&o[0], t, self.get(&o[1], t)),
            ["ld", space, ..] => {
                let (targets, size) = Self::vector(&o[0], &i.op);
                let address = self.get(&o[1], t);
                let bytes = self.memory(space, address, size * targets.len()).to_vec();
                for (target, bytes) in targets.iter().zip(bytes.chunks(size)) {
                    let value = bytes.iter().rev().fold(0, |value, &b| value << 8 | u64::from(b));
                    self.set(target, t, value);
                }
            }
            ["st", space, ..] => {
                let (sources, size) = Self::vector(&o[1], &i.op);
                let data: Vec<u8> =
                    sources.iter().flat_map(|s| self.get(s, t).to_le_bytes()[..size].to_vec()).collect();
                let address = self.get(&o[0], t);
                self.memory(space, address, data.len()).copy_from_slice(&data);
            }
            ["red", "global", "max", "u32"] => {
                let address = self.get(&o[0], t);
                let status = self.get(&o[1], t) as u32;
                let place = self.memory("global", address, 4);
                let held = u32::from_le_bytes([place[0], place[1], place[2], place[3]]);
                place.copy_from_slice(&held.max(status).to_le_bytes());
            }
            ["cp", "async", "commit_group" | "wait_group"] => {}
            ["cp", "async", "ca" | "cg", ..] => {
                let Operand::Number(size) = o[2] else { panic!("{}", i.text) };
                let read = o.get(3).map_or(size, |n| self.get(n, t));
                let mut data = vec![0; size as usize];
                if read > 0 {
                    assert_eq!(read, size);
                    let from = self.get(&o[1], t);
                    data = self.memory("global", from, size as usize).to_vec();
                }
                let to = self.get(&o[0], t);
                self.memory("shared", to, size as usize).copy_from_slice(&data);
            }
            ["mov", _] => self.mov(o, ty, t),
            ["setp", compare, ty] => {
                let (a, b) = (self.get(&o[1], t), self.get(&o[2], t));
                let holds = if *ty == "f32" {
                    let (a, b) = (float(a), float(b));
                    match *compare {
                        "eq" => a == b,
                        "neu" => a != b,
                        "lt" => a < b,
                        "le" => a <= b,
                        "gt" => a > b,
                        "ge" => a >= b,
                        "nan" => a.is_nan() || b.is_nan(),
                        other => panic!("setp.{other}.f32"),
                    }
                } else {
                    let (a, b) = (int(ty, a), int(ty, b));
                    match *compare {
                        "eq" => a == b,
                        "ne" => a != b,
                        "lt" => a < b,
                        "le" => a <= b,
                        "gt" => a > b,
                        "ge" => a >= b,
                        other => panic!("setp.{other}.{ty}"),
                    }
                };
                self.set(&o[0], t, u64::from(holds));
            }
            ["selp", _] => {
                let chosen = if self.get(&o[3], t) != 0 { &o[1] } else { &o[2] };
                self.set(&o[0], t, self.get(chosen, t));
            }
            ["mad", "wide", "s32"] => {
                let [a, b] = [&o[1], &o[2]].map(|x| int("s32", self.get(x, t)));
                let sum = (a * b) as u64;
                self.set(&o[0], t, sum.wrapping_add(self.get(&o[3], t)));
            }
            ["mad", "lo", ty] => {
                let [a, b, c] = [&o[1], &o[2], &o[3]].map(|x| int(ty, self.get(x, t)));
                self.set(&o[0], t, back(ty, a.wrapping_mul(b).wrapping_add(c)));
            }
            ["fma", "rn", "f32"] => {
                let [a, b, c] = [&o[1], &o[2], &o[3]].map(|x| float(self.get(x, t)));
                self.set(&o[0], t, bits(a.mul_add(b, c)));
            }
            ["cvt", ..] => {
                let value = convert(&op[1..], self.get(&o[1], t));
                self.set(&o[0], t, value);
            }
            [_, .., "f32"] => {
                let a = float(self.get(&o[1], t));
                let b = o.get(2).map_or(0.0, |b| float(self.get(b, t)));
                let nan = a.is_nan() || b.is_nan();
                let result = match &op[..op.len() - 1] {
                    ["add", "rn"] => a + b,
                    ["sub", "rn"] => a - b,
                    ["mul", "rn"] => a * b,
                    ["div", "rn"] => a / b,
                    ["sqrt", "rn"] => a.sqrt(),
                    ["neg"] => -a,
                    ["abs"] => a.abs(),
                    ["min" | "max", "NaN"] if nan => f32::NAN,
                    ["min", "NaN"] => {
                        if a < b || a == b && a.is_sign_negative() {
                            a
                        } else {
                            b
                        }
                    }
                    ["max", "NaN"] => {
                        if a > b || a == b && a.is_sign_positive() {
                            a
                        } else {
                            b
                        }
                    }
                    ["ex2", "approx", "ftz"] => f64::from(a).exp2() as f32,
                    _ => panic!("{}", i.text),
                };
                self.set(&o[0], t, bits(result));
            }
            [name, .., ty] => {
                let a = int(ty, self.get(&o[1], t));
                let raw = o.get(2).map_or(0, |b| self.get(b, t));
                let b = int(ty, raw);
                let width = if ty.ends_with("64") { 64 } else { 32 };
                let count = u64::from(raw as u32).min(width) as u32;
                let result = match *name {
                    "add" => a + b,
                    "sub" => a - b,
                    "mul" => a.wrapping_mul(b),
                    "div" | "rem" => {
                        // The manual leaves these open, so the text must not come to them.
                        let overflows = ty.starts_with('s') && b == -1 && a == -(1i128 << (width - 1));
                        assert!(b != 0 && !overflows, "{}: {a}, {b}", i.text);
                        if *name == "div" { a / b } else { a % b }
                    }
                    "min" => a.min(b),
                    "max" => a.max(b),
                    "and" => a & b,
                    "or" => a | b,
                    "xor" => a ^ b,
                    "not" => !a,
                    "neg" => -a,
                    "abs" => a.abs(),
                    "shl" => a.wrapping_shl(count),
                    "shr" => a >> count,
                    _ => panic!("{}", i.text),
                };
                self.set(&o[0], t, back(ty, result));
            }
            _ => panic!("{}", i.text),
        }
    }

    /// A move, which may also take a register apart or put it together.
    fn mov(&mut self, o: &[Operand], ty: &str, t: usize) {
        let part = if ty == "b64" { 32 } else { 16 };
        match (&o[0], &o[1]) {
            (Operand::List(parts), whole) => {
                let value = self.get(whole, t);
                for (n, target) in parts.iter().enumerate() {
                    self.set(target, t, value >> (part * n) & ((1 << part) - 1));
                }
            }
            (target, Operand::List(parts)) => {
                let value = parts.iter().rev().fold(0, |value, p| value << part | self.get(p, t));
                self.set(target, t, value);
            }
            (target, source) => {
                let value = self.get(source, t);
                let value = if matches!(ty, "f32" | "b32" | "u32" | "s32") { u64::from(value as u32) } else { value };
                self.set(target, t, value);
            }
        }
    }

    fn shuffle(&mut self, i: &Instruction) {
        assert_eq!(i.op, ["shfl", "sync", "bfly", "b32"]);
        let Operand::Number(mask) = i.operands[2] else { panic!("{}", i.text) };
        let values: Vec<u64> = (0..self.text.threads).map(|t| self.get(&i.operands[1], t)).collect();
        (0..values.len()).for_each(|t| self.set(&i.operands[0], t, values[t ^ mask as usize]));
    }

    fn matrix(&mut self, i: &Instruction) {
        let transposed = i.op.contains(&"trans".to_string());
        let Operand::List(targets) = &i.operands[0] else { panic!("{}", i.text) };
        for warp in (0..self.text.threads).step_by(32) {
            for (j, target) in targets.iter().enumerate() {
                let rows: Vec<Vec<u8>> = (0..8)
                    .map(|row| {
                        let address = self.get(&i.operands[1], warp + 8 * j + row);
                        self.memory("shared", address, 16).to_vec()
                    })
                    .collect();
                let element = |r: usize, c: usize| u64::from(u16::from_le_bytes([rows[r][2 * c], rows[r][2 * c + 1]]));
                for lane in 0..32 {
                    let (r, c) = (lane / 4, lane % 4 * 2);
                    let pair = if transposed {
                        [element(c, r), element(c + 1, r)]
                    } else {
                        [element(r, c), element(r, c + 1)]
                    };
                    self.set(target, warp + lane, pair[0] | pair[1] << 16);
                }
            }
        }
    }

    /// `mma.m16n8k16`, from the tables of the manual: group is `lane >> 2`, place `lane % 4`.
    fn product(&mut self, i: &Instruction) {
        let list = |n: usize| match &i.operands[n] {
            Operand::List(items) => items,
            _ => panic!("{}", i.text),
        };
        let dtype = i.op[7].as_str();
        let half = |packed: u64, n: usize| {
            let dtype = if dtype == "bf16" { DType::BF16 } else { DType::F16 };
            f64::from(widen(dtype, packed >> (16 * n)))
        };
        for warp in (0..self.text.threads).step_by(32) {
            let (mut a, mut b) = ([[0.0; 16]; 16], [[0.0; 8]; 16]);
            for lane in 0..32 {
                let (group, place) = (lane >> 2, lane % 4);
                for n in 0..8 {
                    let row = if matches!(n, 0 | 1 | 4 | 5) { group } else { group + 8 };
                    let column = place * 2 + (n & 1) + if n >= 4 { 8 } else { 0 };
                    a[row][column] = half(self.get(&list(1)[n / 2], warp + lane), n % 2);
                }
                for n in 0..4 {
                    let row = place * 2 + (n & 1) + if n >= 2 { 8 } else { 0 };
                    b[row][group] = half(self.get(&list(2)[n / 2], warp + lane), n % 2);
                }
            }
            for lane in 0..32 {
                for n in 0..4 {
                    let row = (lane >> 2) + if n < 2 { 0 } else { 8 };
                    let column = lane % 4 * 2 + (n & 1);
                    let c = f64::from(float(self.get(&list(3)[n], warp + lane)));
                    let sum = (0..16).fold(c, |sum, k| sum + a[row][k] * b[k][column]);
                    self.set(&list(0)[n], warp + lane, bits(sum as f32));
                }
            }
        }
    }
}

/// `cvt` with its modifiers, the target's type and the source's.
fn convert(modifiers: &[&str], value: u64) -> u64 {
    match modifiers {
        ["rmi", "f32", "f32"] => bits(float(value).floor()),
        ["rpi", "f32", "f32"] => bits(float(value).ceil()),
        ["rni", "f32", "f32"] => bits(float(value).round_ties_even()),
        ["rzi", "f32", "f32"] => bits(float(value).trunc()),
        ["rzi", to, "f32"] => {
            let x = f64::from(float(value));
            let (lo, hi) = match *to {
                "s32" => (i128::from(i32::MIN), i128::from(i32::MAX)),
                "u32" => (0, i128::from(u32::MAX)),
                "s64" => (i128::from(i64::MIN), i128::from(i64::MAX)),
                _ => (0, i128::from(u64::MAX)),
            };
            // The manual: 0 for 32 bits, else the highest bit alone.
            let nan = if to.ends_with("64") { 1i128 << 63 } else { 0 };
            back(to, if x.is_nan() { nan } else { (x as i128).clamp(lo, hi) })
        }
        ["rn", "f16", "f32"] => narrow(DType::F16, float(value)),
        ["rn", "bf16", "f32"] => narrow(DType::BF16, float(value)),
        ["f32", "f16"] => bits(widen(DType::F16, value)),
        ["rn", "f32", from] => bits(match *from {
            "s32" => value as i32 as f32,
            "u32" => value as u32 as f32,
            "s64" => value as i64 as f32,
            _ => value as f32,
        }),
        [to, from] => back(to, int(from, value)),
        _ => panic!("cvt.{}", modifiers.join(".")),
    }
}

/// The f32 of the low 16 bits.
fn widen(dtype: DType, bits: u64) -> f32 {
    semantics::load_f32(dtype, &(bits as u16).to_le_bytes(), 0)
}

/// The 16 bits to which an f32 is rounded.
fn narrow(dtype: DType, value: f32) -> u64 {
    let mut bytes = Vec::new();
    semantics::store_f32(dtype, value, &mut bytes);
    bytes.iter().rev().fold(0, |bits, &b| bits << 8 | u64::from(b))
}
