//! Random well-typed programs of all operations, types and lane counts, with loops, branches and failures, compiled
//! and interpreted: what they store and return is the same.

mod support;

use kiln_cpu::{Target, clif_text, compile};
use kiln_ir::vector::{Address, Carried, For, Op, Stmt, ValueId, VectorProgram, VectorType};
use kiln_ir::{Arena, BinaryOp, Constant, DType, UnaryOp};
use support::{DTYPES, check, interesting};

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
}

/// Elements of every buffer. Buffers 0..11 are read, 11..22 written, one of each type.
const LEN: usize = 256;
/// Indices are in 0..INDEX.
const INDEX: i64 = 32;

#[derive(Clone, Copy)]
struct Known {
    id: ValueId,
    ty: VectorType,
    /// The bits are the same on every target; not so those of a float that may be a NaN made by an operation.
    exact: bool,
    /// An i64 in 0..INDEX.
    index: bool,
}

struct Generator {
    random: Random,
    values: Arena<VectorType>,
    scope: Vec<Known>,
    /// Statements left to make.
    fuel: usize,
}

fn whole(dtype: DType) -> VectorType {
    VectorType::vector(dtype, 16 / dtype.size() as u32)
}

impl Generator {
    fn ty(&mut self) -> VectorType {
        let dtype = self.random.pick(&DTYPES);
        if self.random.chance(40) {
            return VectorType::scalar(dtype);
        }
        if dtype == DType::Bool { VectorType::vector(dtype, self.random.pick(&[2, 4, 8, 16])) } else { whole(dtype) }
    }

    fn define(&mut self, body: &mut Vec<Stmt>, ty: VectorType, op: Op, exact: bool, index: bool) -> ValueId {
        let id = self.values.push(ty);
        body.push(Stmt::Let(id, op));
        self.scope.push(Known { id, ty, exact, index });
        id
    }

    fn constant(&mut self, dtype: DType) -> Constant {
        let bytes = interesting(dtype);
        let i = self.random.below(bytes.len());
        Constant::load(dtype, &bytes[i], 0).unwrap()
    }

    /// A value of the type: one in scope, or a new one.
    fn operand(&mut self, body: &mut Vec<Stmt>, ty: VectorType, exact: bool) -> ValueId {
        let fitting: Vec<ValueId> =
            self.scope.iter().filter(|k| k.ty == ty && (k.exact || !exact)).map(|k| k.id).collect();
        if !fitting.is_empty() && self.random.chance(85) {
            // Late ones more often.
            let from = if self.random.chance(50) { fitting.len() / 2 } else { 0 };
            return self.random.pick(&fitting[from..]);
        }
        if self.random.chance(50) && (ty.is_scalar() || ty.dtype != DType::Bool) {
            let op = Op::Load(self.address(body, ty, false));
            return self.define(body, ty, op, true, false);
        }
        let c = self.constant(ty.dtype);
        self.define(body, ty, Op::Const(c), true, false)
    }

    fn index(&mut self, body: &mut Vec<Stmt>) -> ValueId {
        let known: Vec<ValueId> = self.scope.iter().filter(|k| k.index).map(|k| k.id).collect();
        if !known.is_empty() && self.random.chance(70) {
            return self.random.pick(&known);
        }
        let i64 = VectorType::scalar(DType::I64);
        let any = self.operand(body, i64, false);
        let mask = self.define(body, i64, Op::Const(Constant::int(DType::I64, INDEX - 1)), true, false);
        self.define(body, i64, Op::Binary(BinaryOp::And, any, mask), true, true)
    }

    /// A place with room for the type's lanes, four elements apart or less, both ways.
    fn address(&mut self, body: &mut Vec<Stmt>, ty: VectorType, written: bool) -> Address {
        let buffer = DTYPES.iter().position(|d| *d == ty.dtype).unwrap() + if written { DTYPES.len() } else { 0 };
        let index = if self.random.chance(70) { Some(self.index(body)) } else { None };
        Address { buffer, index, offset: 64 + self.random.below(64) as i64 }
    }

    fn one(&mut self, body: &mut Vec<Stmt>) {
        let ty = self.ty();
        let mask = VectorType { dtype: DType::Bool, ..ty };
        let float = ty.dtype.is_float();
        let bool = ty.dtype == DType::Bool;
        match self.random.below(16) {
            0 if !bool || ty.is_scalar() => {
                if ty.dtype == DType::I32 && self.random.chance(30) {
                    let narrow = self.random.pick(&[DType::U8, DType::I8, DType::U16, DType::I16]);
                    let address = self.address(body, VectorType { dtype: narrow, ..ty }, false);
                    self.define(body, ty, Op::LoadWide(address), true, false);
                    return;
                }
                let written = self.random.chance(30);
                let address = self.address(body, ty, written);
                let op = match self.random.below(3) {
                    0 => Op::Load(address),
                    1 => Op::LoadSplat(address),
                    _ => Op::LoadStrided(address, self.random.below(9) as i64 - 4),
                };
                self.define(body, ty, op, !(written && float), false);
            }
            1 => {
                let scalar = VectorType::scalar(ty.dtype);
                let op = if ty.lanes >= 2 && ty.dtype != DType::Bool && self.random.chance(30) {
                    let vectors = (0..ty.lanes).map(|_| self.operand(body, ty, true)).collect();
                    Op::Column(vectors, self.random.below(ty.lanes as usize) as u32)
                } else if self.random.chance(50) {
                    Op::Splat(self.operand(body, scalar, true))
                } else {
                    Op::Pack((0..ty.lanes).map(|_| self.operand(body, scalar, true)).collect())
                };
                self.define(body, ty, op, true, false);
            }
            2 => {
                let vector = self.operand(body, ty, true);
                let lane = self.random.below(ty.lanes as usize) as u32;
                self.define(body, VectorType::scalar(ty.dtype), Op::Extract(vector, lane), true, false);
            }
            3 => {
                use UnaryOp::*;
                let op = match (float, bool) {
                    (true, _) => self.random.pick(&[Neg, Abs, Not, Floor, Ceil, Round, Trunc, Sqrt]),
                    (_, true) => Not,
                    _ => self.random.pick(&[Neg, Abs, Not]),
                };
                let a = self.operand(body, ty, false);
                self.define(body, ty, Op::Unary(op, a), !float, false);
            }
            4..=7 => {
                use BinaryOp::*;
                let op = match (float, bool) {
                    (true, _) => self.random.pick(&[Add, Sub, Mul, Div, Min, Max]),
                    (_, true) => self.random.pick(&[And, Or, Xor, Add, Mul, Min, Max, Eq, Ne, Lt, Le, Gt, Ge]),
                    _ if ty.dtype == DType::I32 && self.random.below(3) == 0 => Dot4,
                    _ => self.random.pick(&[Add, Sub, Mul, Div, Rem, Mod, Min, Max, And, Or, Xor, Shl, Shr]),
                };
                let (a, b) = (self.operand(body, ty, false), self.operand(body, ty, false));
                self.define(body, ty, Op::Binary(op, a, b), !float, false);
            }
            8 => {
                use BinaryOp::*;
                let op = self.random.pick(&[Eq, Ne, Lt, Le, Gt, Ge]);
                let (a, b) = (self.operand(body, ty, false), self.operand(body, ty, false));
                self.define(body, mask, Op::Binary(op, a, b), true, false);
            }
            9 if float => {
                let [a, b, c] = [0; 3].map(|_| self.operand(body, ty, false));
                self.define(body, ty, Op::Fma(a, b, c), false, false);
            }
            10 => {
                let condition = self.operand(body, mask, false);
                let (a, b) = (self.operand(body, ty, true), self.operand(body, ty, true));
                self.define(body, ty, Op::Select(condition, a, b), true, false);
            }
            11 | 12 => {
                // The same number of lanes in 16 bytes, a mask, or any scalar.
                let types: Vec<DType> = DTYPES
                    .into_iter()
                    .filter(|d| ty.is_scalar() || *d == DType::Bool || d.size() * ty.lanes as usize == 16)
                    .collect();
                let to = self.random.pick(&types);
                let a = self.operand(body, ty, to == ty.dtype);
                self.define(body, VectorType { dtype: to, ..ty }, Op::Cast(to, a), !to.is_float(), false);
            }
            13 if !bool => {
                let types: Vec<DType> = DTYPES
                    .into_iter()
                    .filter(|d| *d != DType::Bool && (!ty.is_scalar() || d.size() == ty.dtype.size()))
                    .collect();
                let to = self.random.pick(&types);
                let a = self.operand(body, ty, true);
                let result = if ty.is_scalar() { VectorType::scalar(to) } else { whole(to) };
                self.define(body, result, Op::Bitcast(to, a), true, false);
            }
            14 => {
                use BinaryOp::*;
                let op = if float {
                    self.random.pick(&[Add, Mul, Min, Max])
                } else {
                    self.random.pick(&[Add, Mul, Min, Max, And, Or])
                };
                let a = self.operand(body, ty, false);
                self.define(body, VectorType::scalar(ty.dtype), Op::Fold(op, a), !float, false);
            }
            15 => {
                let op = self.random.pick(&[Op::Lo, Op::Hi, Op::Dim(0), Op::Dim(1)].each_ref()).clone();
                self.define(body, VectorType::scalar(DType::I64), op, true, false);
            }
            _ => {}
        }
    }

    fn region(&mut self, depth: usize, statements: usize) -> Vec<Stmt> {
        let outside = self.scope.len();
        let mut body = Vec::new();
        for _ in 0..statements {
            if self.fuel == 0 {
                break;
            }
            self.fuel -= 1;
            match self.random.below(100) {
                0..12 => {
                    let ty = self.ty();
                    if ty.is_scalar() || ty.dtype != DType::Bool {
                        let value = self.operand(&mut body, ty, false);
                        let narrow = ty.dtype == DType::I32 && self.random.chance(30);
                        let dtype = if narrow { self.random.pick(&[DType::U8, DType::I16]) } else { ty.dtype };
                        let address = self.address(&mut body, VectorType { dtype, ..ty }, true);
                        body.push(Stmt::Store(address, value));
                    }
                }
                12..17 if depth < 3 => {
                    let condition = self.operand(&mut body, VectorType::scalar(DType::Bool), false);
                    let then = self.region(depth + 1, 8);
                    let otherwise = if self.random.chance(50) { self.region(depth + 1, 8) } else { Vec::new() };
                    body.push(Stmt::If { condition, then, otherwise });
                }
                17..24 if depth < 3 => self.counted_loop(&mut body, depth),
                24 => {
                    let condition = self.operand(&mut body, VectorType::scalar(DType::Bool), false);
                    body.push(Stmt::Fail { condition, status: 1 + self.random.below(9) as u32 });
                }
                _ => self.one(&mut body),
            }
        }
        if depth > 0 {
            self.scope.truncate(outside);
        }
        body
    }

    fn counted_loop(&mut self, body: &mut Vec<Stmt>, depth: usize) {
        let i64 = VectorType::scalar(DType::I64);
        let start = self.random.below(4) as i64 - 1;
        let end = start + self.random.below(7) as i64 - 1;
        let lo = self.define(body, i64, Op::Const(Constant::int(DType::I64, start)), true, false);
        let hi = self.define(body, i64, Op::Const(Constant::int(DType::I64, end)), true, false);
        let types: Vec<VectorType> = (0..self.random.below(6)).map(|_| self.ty()).collect();
        let inits: Vec<ValueId> = types.iter().map(|ty| self.operand(body, *ty, false)).collect();
        let outside = self.scope.len();
        let var = self.values.push(i64);
        self.scope.push(Known { id: var, ty: i64, exact: true, index: start >= 0 });
        let mut carried = Vec::new();
        for (ty, init) in types.iter().zip(inits) {
            let inside = self.values.push(*ty);
            let after = self.values.push(*ty);
            self.scope.push(Known { id: inside, ty: *ty, exact: !ty.dtype.is_float(), index: false });
            carried.push(Carried { init, inside, next: inside, after });
        }
        // As a region of depth 0, so that what it defines stays visible for `next`.
        let mut inner = self.region(depth + 1, 6);
        let mut last = Vec::new();
        for c in &mut carried {
            let ty = self.values[c.inside];
            if self.random.chance(80) {
                c.next = self.operand(&mut last, ty, false);
            }
        }
        for _ in 0..4 {
            self.one(&mut last);
        }
        for c in &mut carried {
            let ty = self.values[c.inside];
            if self.random.chance(60) {
                c.next = self.operand(&mut last, ty, false);
            }
        }
        inner.extend(last);
        self.scope.truncate(outside);
        let step = 1 + self.random.below(3) as i64;
        for c in &carried {
            let ty = self.values[c.inside];
            self.scope.push(Known { id: c.after, ty, exact: !ty.dtype.is_float(), index: false });
        }
        body.push(Stmt::For(For { var, lo, hi, step, carried, body: inner }));
    }

    /// Stores as much as there is of what is in scope at the end, so that nothing computed goes unseen.
    fn store_all(&mut self, body: &mut Vec<Stmt>) {
        let mut at = [0i64; 11];
        for k in self.scope.clone().into_iter().rev() {
            let buffer = DTYPES.iter().position(|d| *d == k.ty.dtype).unwrap();
            let room = at[buffer] + i64::from(k.ty.lanes) <= LEN as i64;
            if room && (k.ty.is_scalar() || k.ty.dtype != DType::Bool) {
                let address = Address { buffer: buffer + DTYPES.len(), index: None, offset: at[buffer] };
                body.push(Stmt::Store(address, k.id));
                at[buffer] += i64::from(k.ty.lanes);
            }
        }
    }
}

fn program(seed: u64) -> VectorProgram {
    let mut generator =
        Generator { random: Random(seed), values: Arena::default(), scope: Vec::new(), fuel: 40 + seed as usize % 80 };
    let mut body = generator.region(0, usize::MAX);
    generator.store_all(&mut body);
    let buffers = DTYPES.iter().map(|d| (*d, false)).chain(DTYPES.iter().map(|d| (*d, true))).collect();
    VectorProgram { name: format!("r{seed}"), buffers, locals: vec![], dims: 2, values: generator.values, body }
}

fn buffers(seed: u64) -> Vec<Vec<u8>> {
    let mut random = Random(!seed);
    let mut buffers = Vec::new();
    for dtype in DTYPES.iter().chain(&DTYPES) {
        let edges = interesting(*dtype);
        let mut bytes = Vec::new();
        for _ in 0..LEN {
            if random.chance(40) {
                bytes.extend_from_slice(&edges[random.below(edges.len())]);
            } else if *dtype == DType::Bool {
                bytes.push(random.below(2) as u8);
            } else if dtype.is_float() {
                let x = (random.next() as i64 >> 40) as f64 / 4096.0;
                bytes.extend_from_slice(&match dtype {
                    DType::F32 => (x as f32).to_le_bytes().to_vec(),
                    _ => x.to_le_bytes().to_vec(),
                });
            } else {
                bytes.extend_from_slice(&random.next().to_le_bytes()[..dtype.size()]);
            }
        }
        buffers.push(bytes);
    }
    buffers
}

/// How many programs; each runs in the interpreter twice and as four pieces of machine code.
const PROGRAMS: u64 = 300;

#[test]
fn compiled_code_does_what_the_interpreter_does() {
    let mut failed = 0;
    for seed in 0..PROGRAMS {
        let program = program(seed);
        program.verify().unwrap_or_else(|e| panic!("{e:#?}\n{program}"));
        let buffers = buffers(seed);
        check(&program, &buffers, &[7, -3], 2, 11);
        let mut copy = buffers.clone();
        let mut views: Vec<&mut [u8]> = copy.iter_mut().map(Vec::as_mut_slice).collect();
        failed += u64::from(kiln_ir::vector::run(&program, &mut views, &[7, -3], 2, 11, true) != Ok(0));
    }
    // Both ways out of a kernel are taken.
    assert!(failed > PROGRAMS / 50 && failed < PROGRAMS / 2, "{failed} of {PROGRAMS} fail");
}

#[test]
fn the_text_form_round_trips() {
    for seed in 0..PROGRAMS {
        let program = program(seed);
        let again = VectorProgram::parse(&program.to_string()).unwrap_or_else(|e| panic!("{e}\n{program}"));
        assert_eq!(again.to_string(), program.to_string());
        // The sign and payload of a NaN are not in the text.
        assert!(again.body == program.body || program.to_string().contains("nan_"));
    }
}

#[test]
fn equal_programs_give_equal_bytes_and_clif() {
    for seed in 0..20 {
        let one = program(seed);
        for target in Target::ALL {
            assert_eq!(compile(&one, target).unwrap(), compile(&program(seed), target).unwrap());
            let clif = clif_text(&one, target).unwrap();
            assert!(clif.starts_with("function u0:0(i64, i64, i64, i64, i64) -> i32 system_v"), "{clif}");
        }
    }
}
