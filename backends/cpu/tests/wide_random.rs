//! Random programs with loops that carry more values than there are registers, branches and failures, at every level
//! and vector size: what they store and return is what the interpreter says.

mod wide_support;

use kiln_cpu::wide::{self, WideLevel};
use kiln_ir::vector::{Address, Carried, For, Op, Stmt, ValueId, VectorProgram, VectorType};
use kiln_ir::{Arena, BinaryOp, Constant, DType, UnaryOp};
use wide_support::{SIZES, check, interesting};

const BUFFERS: [DType; 9] =
    [DType::F32, DType::F64, DType::I32, DType::U32, DType::I64, DType::U64, DType::U8, DType::I16, DType::Bool];
/// Elements of each buffer. As many again of each type are written.
const LEN: usize = 400;

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
}

struct Generator {
    random: Random,
    /// What values may be.
    types: Vec<VectorType>,
    values: Arena<VectorType>,
    /// With whether the bits are the same everywhere: not those of a float that may be a NaN made by an operation.
    scope: Vec<(ValueId, bool)>,
    fuel: usize,
    /// Whether there is [`Op::Scale`], which AVX2 lacks.
    scales: bool,
}

impl Generator {
    fn new(seed: u64, bytes: u32) -> Generator {
        let (full, half) = (bytes / 4, bytes / 8);
        let mut types = Vec::new();
        for dtype in BUFFERS {
            types.push(VectorType::scalar(dtype));
            match dtype.size() {
                4 => types.extend([full; 3].map(|lanes| VectorType::vector(dtype, lanes))),
                8 => types.push(VectorType::vector(dtype, half)),
                _ => {}
            }
            if bytes >= 32 && dtype.size() == 4 {
                types.push(VectorType::vector(dtype, half));
            }
        }
        types.extend([full, full, half].map(|lanes| VectorType::vector(DType::Bool, lanes)));
        Generator {
            random: Random(seed),
            types,
            values: Arena::default(),
            scope: Vec::new(),
            fuel: 70,
            scales: bytes == 64,
        }
    }

    fn assign(&mut self, body: &mut Vec<Stmt>, ty: VectorType, op: Op, exact: bool) -> ValueId {
        let id = self.values.push(ty);
        body.push(Stmt::Let(id, op));
        self.scope.push((id, exact));
        id
    }

    fn stored(ty: VectorType) -> bool {
        ty.is_scalar() || ty.dtype != DType::Bool
    }

    fn operand(&mut self, body: &mut Vec<Stmt>, ty: VectorType, exact: bool) -> ValueId {
        let fitting: Vec<ValueId> =
            self.scope.iter().filter(|(id, e)| self.values[*id] == ty && (*e || !exact)).map(|(id, _)| *id).collect();
        if !fitting.is_empty() && self.random.below(100) < 80 {
            return self.random.pick(&fitting);
        }
        if Self::stored(ty) && self.random.below(3) > 0 {
            if ty.dtype == DType::I32 && (ty.is_scalar() || ty.lanes >= 4) && self.random.below(3) == 0 {
                let narrow = self.random.pick(&[DType::U8, DType::I8, DType::U16, DType::I16]);
                let narrow = if BUFFERS.contains(&narrow) { narrow } else { DType::U8 };
                let address = self.address(body, VectorType { dtype: narrow, ..ty }, false);
                return self.assign(body, ty, Op::LoadWide(address), true);
            }
            let address = self.address(body, ty, false);
            let op = match self.random.below(4) {
                0 => Op::LoadSplat(address),
                1 => Op::LoadStrided(address, self.random.below(7) as i64 - 3),
                _ => Op::Load(address),
            };
            return self.assign(body, ty, op, true);
        }
        let bytes = interesting(ty.dtype);
        let i = self.random.below(bytes.len());
        self.assign(body, ty, Op::Const(Constant::load(ty.dtype, &bytes[i], 0).unwrap()), true)
    }

    fn address(&mut self, body: &mut Vec<Stmt>, ty: VectorType, written: bool) -> Address {
        let i64 = VectorType::scalar(DType::I64);
        let buffer = BUFFERS.iter().position(|d| *d == ty.dtype).unwrap() + if written { BUFFERS.len() } else { 0 };
        let index = (self.random.below(3) > 0).then(|| {
            let any = self.operand(body, i64, true);
            let most = self.assign(body, i64, Op::Const(Constant::int(DType::I64, 31)), true);
            self.assign(body, i64, Op::Binary(BinaryOp::And, any, most), true)
        });
        Address { buffer, index, offset: 64 + self.random.below(200) as i64 }
    }

    fn one(&mut self, body: &mut Vec<Stmt>) {
        use BinaryOp::*;
        use UnaryOp::*;
        let ty = self.random.pick(&self.types.clone());
        let (float, bool) = (ty.dtype.is_float(), ty.dtype == DType::Bool);
        let mask = VectorType { dtype: DType::Bool, ..ty };
        let scalar = VectorType::scalar(ty.dtype);
        let comparisons = [Eq, Ne, Lt, Le, Gt, Ge];
        match self.random.below(14) {
            0 => {
                let value = self.operand(body, scalar, true);
                self.assign(body, ty, Op::Splat(value), true);
            }
            1 if ty.lanes >= 2 && !bool && self.random.below(2) == 0 => {
                let vectors: Vec<ValueId> = (0..ty.lanes).map(|_| self.operand(body, ty, true)).collect();
                for lane in [self.random.below(ty.lanes as usize), self.random.below(ty.lanes as usize)] {
                    self.assign(body, ty, Op::Column(vectors.clone(), lane as u32), true);
                }
            }
            1 => {
                let values = (0..ty.lanes).map(|_| self.operand(body, scalar, true)).collect();
                self.assign(body, ty, Op::Pack(values), true);
            }
            2 => {
                let (value, lane) = (self.operand(body, ty, true), self.random.below(ty.lanes as usize) as u32);
                self.assign(body, scalar, Op::Extract(value, lane), true);
            }
            3 => {
                let op = match (float, bool) {
                    (true, _) => self.random.pick(&[Neg, Abs, UnaryOp::Not, Floor, Ceil, Round, Trunc, Sqrt]),
                    (_, true) => UnaryOp::Not,
                    _ => self.random.pick(&[Neg, Abs, UnaryOp::Not]),
                };
                let a = self.operand(body, ty, false);
                self.assign(body, ty, Op::Unary(op, a), !float);
            }
            4..=6 => {
                let op = match (float, bool) {
                    (true, _) => self.random.pick(&[Add, Sub, Mul, Div, Min, Max]),
                    (_, true) => self.random.pick(&[And, Or, Xor, Add, Mul, Min, Max, Eq, Ne, Lt, Le, Gt, Ge]),
                    _ if ty.dtype == DType::I32 && self.random.below(3) == 0 => Dot4,
                    _ => self.random.pick(&[Add, Sub, Mul, Div, Rem, Mod, Min, Max, And, Or, Xor, Shl, Shr]),
                };
                let (a, b) = (self.operand(body, ty, false), self.operand(body, ty, false));
                self.assign(body, ty, Op::Binary(op, a, b), !float);
            }
            7 => {
                let op = self.random.pick(&comparisons);
                let (a, b) = (self.operand(body, ty, false), self.operand(body, ty, false));
                self.assign(body, mask, Op::Binary(op, a, b), true);
            }
            8 if ty.dtype == DType::F32 && self.scales && self.random.below(2) == 0 => {
                let (a, n) = (self.operand(body, ty, false), self.operand(body, ty, false));
                self.assign(body, ty, Op::Scale(a, n), false);
            }
            8 | 9 if float => {
                let [a, b, c] = [(); 3].map(|()| self.operand(body, ty, false));
                self.assign(body, ty, Op::Fma(a, b, c), false);
            }
            8..=10 => {
                let condition = self.operand(body, mask, true);
                let (a, b) = (self.operand(body, ty, true), self.operand(body, ty, true));
                self.assign(body, ty, Op::Select(condition, a, b), true);
            }
            11 => {
                let to: Vec<VectorType> = self.types.iter().copied().filter(|t| t.lanes == ty.lanes).collect();
                let to = self.random.pick(&to);
                let a = self.operand(body, ty, to.dtype == ty.dtype);
                self.assign(body, to, Op::Cast(to.dtype, a), !to.dtype.is_float() || to.dtype == ty.dtype);
            }
            12 if !bool => {
                let size = |t: VectorType| t.dtype.size() * t.lanes as usize;
                let same = |t: &VectorType| t.dtype != DType::Bool && size(*t) == size(ty);
                let to: Vec<VectorType> = self.types.iter().copied().filter(same).collect();
                let to = self.random.pick(&to);
                let a = self.operand(body, ty, true);
                self.assign(body, to, Op::Bitcast(to.dtype, a), true);
            }
            _ => {
                let op = if float {
                    self.random.pick(&[Add, Mul, Min, Max])
                } else {
                    self.random.pick(&[Add, Mul, Min, Max, And, Or])
                };
                let a = self.operand(body, ty, false);
                self.assign(body, scalar, Op::Fold(op, a), !float);
            }
        }
    }

    fn region(&mut self, body: &mut Vec<Stmt>, depth: usize, statements: usize) {
        for _ in 0..statements {
            if self.fuel == 0 {
                return;
            }
            self.fuel -= 1;
            match self.random.below(40) {
                0..4 => {
                    let ty = self.random.pick(&self.types.clone());
                    if Self::stored(ty) {
                        let value = self.operand(body, ty, false);
                        let narrow = ty.dtype == DType::I32 && matches!(ty.lanes, 1 | 4..) && self.random.below(3) == 0;
                        let dtype = if narrow { self.random.pick(&[DType::U8, DType::I16]) } else { ty.dtype };
                        let address = self.address(body, VectorType { dtype, ..ty }, true);
                        body.push(Stmt::Store(address, value));
                    }
                }
                4 | 5 if depth < 3 => {
                    let condition = self.operand(body, VectorType::scalar(DType::Bool), true);
                    let outside = self.scope.len();
                    let (mut then, mut otherwise) = (Vec::new(), Vec::new());
                    self.region(&mut then, depth + 1, 6);
                    self.scope.truncate(outside);
                    self.region(&mut otherwise, depth + 1, 3);
                    self.scope.truncate(outside);
                    body.push(Stmt::If { condition, then, otherwise });
                }
                6..9 if depth < 3 => self.counted(body, depth),
                9 => {
                    let condition = self.operand(body, VectorType::scalar(DType::Bool), true);
                    body.push(Stmt::Fail { condition, status: 1 + self.random.below(9) as u32 });
                }
                _ => self.one(body),
            }
        }
    }

    fn counted(&mut self, body: &mut Vec<Stmt>, depth: usize) {
        let i64 = VectorType::scalar(DType::I64);
        let bound = |g: &mut Self, body: &mut Vec<Stmt>, n: i64| {
            let n = g.assign(body, i64, Op::Const(Constant::int(DType::I64, n)), true);
            if g.random.below(2) == 0 {
                return n;
            }
            // Not known to the emitter.
            let dim = g.assign(body, i64, Op::Dim(0), true);
            g.assign(body, i64, Op::Binary(BinaryOp::Add, n, dim), true)
        };
        let first = self.random.below(4) as i64 - 1;
        let lo = bound(self, body, first);
        let last = first + self.random.below(7) as i64 - 1;
        let hi = bound(self, body, last);
        // Now and then more than there are registers.
        let count = if self.random.below(4) == 0 { 40 } else { self.random.below(8) };
        let one = self.random.pick(&self.types.clone());
        let types: Vec<VectorType> =
            (0..count).map(|_| if count == 40 { one } else { self.random.pick(&self.types.clone()) }).collect();
        let inits: Vec<ValueId> = types.iter().map(|ty| self.operand(body, *ty, false)).collect();
        let outside = self.scope.len();
        let var = self.values.push(i64);
        self.scope.push((var, true));
        let mut carried = Vec::new();
        for (ty, init) in types.iter().zip(inits) {
            let (inside, after) = (self.values.push(*ty), self.values.push(*ty));
            self.scope.push((inside, !ty.dtype.is_float()));
            carried.push(Carried { init, inside, next: inside, after });
        }
        let mut inner = Vec::new();
        self.region(&mut inner, depth + 1, 8);
        for c in &mut carried {
            let ty = self.values[c.inside];
            if self.random.below(10) > 0 {
                c.next = self.operand(&mut inner, ty, false);
            }
        }
        self.scope.truncate(outside);
        for c in &carried {
            self.scope.push((c.after, !self.values[c.after].dtype.is_float()));
        }
        let step = 1 + self.random.below(3) as i64;
        body.push(Stmt::For(For { var, lo, hi, step, carried, body: inner }));
    }
}

fn program(seed: u64, bytes: u32) -> VectorProgram {
    let mut generator = Generator::new(seed, bytes);
    let mut body = Vec::new();
    generator.region(&mut body, 0, usize::MAX);
    // What is in scope at the end is stored, as far as there is room, so that nothing computed goes unseen.
    let mut at = [0; BUFFERS.len()];
    for (id, _) in generator.scope.iter().rev() {
        let ty = generator.values[*id];
        let buffer = BUFFERS.iter().position(|d| *d == ty.dtype).unwrap();
        if at[buffer] + i64::from(ty.lanes) <= LEN as i64 && Generator::stored(ty) {
            body.push(Stmt::Store(Address { buffer: buffer + BUFFERS.len(), index: None, offset: at[buffer] }, *id));
            at[buffer] += i64::from(ty.lanes);
        }
    }
    let buffers = BUFFERS.iter().map(|d| (*d, false)).chain(BUFFERS.iter().map(|d| (*d, true))).collect();
    VectorProgram { name: format!("r{seed}"), buffers, locals: vec![], dims: 1, values: generator.values, body }
}

fn buffers(seed: u64) -> Vec<Vec<u8>> {
    let mut random = Random(!seed);
    let element = |dtype: DType, random: &mut Random| {
        let edges = interesting(dtype);
        match random.below(3) {
            0 => random.pick(&edges.iter().map(Vec::as_slice).collect::<Vec<_>>()).to_vec(),
            _ if dtype == DType::Bool => vec![random.below(2) as u8],
            _ if dtype == DType::F32 => (random.below(1 << 20) as f32 / 512.0 - 1000.0).to_le_bytes().to_vec(),
            _ if dtype == DType::F64 => (random.below(1 << 20) as f64 / 512.0 - 1000.0).to_le_bytes().to_vec(),
            _ => random.below(usize::MAX).to_le_bytes()[..dtype.size()].to_vec(),
        }
    };
    BUFFERS.iter().chain(&BUFFERS).map(|d| (0..LEN).flat_map(|_| element(*d, &mut random)).collect()).collect()
}

/// Programs for each level and size.
const PROGRAMS: u64 = 200;

#[test]
fn compiled_code_does_what_the_interpreter_does() {
    for (level, bytes) in SIZES {
        let mut failed = 0;
        let mut refused = Vec::new();
        for seed in 0..PROGRAMS {
            let program = program(seed, bytes);
            program.verify().unwrap_or_else(|e| panic!("{e:#?}\n{program}"));
            let buffers = buffers(seed);
            if let Err(message) = check(&program, level, &buffers, &[1], (2, 11)) {
                refused.push(message);
            }
            let mut copy = buffers;
            let mut views: Vec<&mut [u8]> = copy.iter_mut().map(Vec::as_mut_slice).collect();
            failed += u64::from(kiln_ir::vector::run(&program, &mut views, &[1], 2, 11, true) != Ok(0));
        }
        assert!(refused.is_empty(), "{level:?}, {bytes} bytes: {refused:?}");
        // Both ways out of a kernel are taken.
        assert!(failed > PROGRAMS / 50 && failed < PROGRAMS / 2, "{failed} of {PROGRAMS} fail");
    }
}

#[test]
fn equal_programs_give_equal_bytes() {
    for seed in 0..20 {
        let code = |level| wide::compile(&program(seed, 32), level).unwrap();
        for level in WideLevel::ALL {
            assert_eq!(code(level), code(level));
        }
    }
}

#[test]
fn wider_vectors_than_the_level_has_are_refused() {
    let error = wide::compile(&program(1, 64), WideLevel::Avx2).unwrap_err().to_string();
    assert!(error.contains("vectors of 64 bytes at this level"), "{error}");
}
