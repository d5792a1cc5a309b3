//! Random well-typed graphs: every core op, every type of kernels, constant and free dims, patterns that fuse.
//!
//! Invariant: a sample is a function of its seed. Every value has a bound on how far two right ways of computing it may be apart
//! ([`Facts`]): nothing for integers and for floats that hold whatever the order of operations; only such values meet an operation
//! that is not continuous. So a difference beyond the bound is a bug, on whatever side.

mod control;
mod elementwise;
mod facts;
mod patterns;
mod structure;

pub use facts::{Facts, Kind};

use kiln_ir::graph::{Origin, ValueId};
use kiln_ir::interp::Bindings;
use kiln_ir::ops::Op;
use kiln_ir::{Constant, DType, Expr, Graph, Ranges, Symbol, Tensor, TensorType};

/// A source of numbers: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 16) as usize % n.max(1)
    }

    /// Whether something with this chance in a hundred happens.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of some.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// A number in 0..1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A graph with what is needed to run it and to judge what comes out.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The graph.
    pub graph: Graph,
    /// Values of its symbols to run it with.
    pub bindings: Vec<Bindings>,
    /// How far each output may be off, absolutely.
    pub tolerances: Vec<f64>,
    kinds: Vec<Kind>,
    seed: u64,
}

/// Most elements of a tensor, at the largest dims.
const MAX_ELEMENTS: i64 = 3000;
/// Most multiplications of an op, at the largest dims.
const MAX_WORK: i64 = 120_000;
/// Extents of constant dims: around the widths of vectors, and those that are easily got wrong.
const EXTENTS: &[i64] = &[1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 64, 65];

/// What grows.
struct Build {
    random: Random,
    graph: Graph,
    /// The values so far, with what is known of them.
    values: Vec<(ValueId, Facts)>,
    kinds: Vec<Kind>,
    symbols: Vec<Expr>,
    nodes: usize,
    /// How many graphs are around it.
    depth: usize,
    /// Outputs that nothing may read: their extents are the data's.
    unread: Vec<(ValueId, Facts)>,
}

/// A step that cannot be taken with what it met: another one is tried.
struct No;

impl From<kiln_ir::ops::OpError> for No {
    fn from(_: kiln_ir::ops::OpError) -> No {
        No
    }
}

impl From<kiln_ir::scalar::TypeError> for No {
    fn from(_: kiln_ir::scalar::TypeError) -> No {
        No
    }
}

/// A value with what is known of it, or another try.
type Grown = Result<(ValueId, Facts), No>;

impl Build {
    fn ty(&self, v: ValueId) -> TensorType {
        self.graph.ty(v).clone()
    }

    fn most(&self, e: &Expr) -> i64 {
        e.bounds(&self.graph.symbols).1
    }

    fn least(&self, e: &Expr) -> i64 {
        e.bounds(&self.graph.symbols).0
    }

    /// The number of elements at the largest dims.
    fn size(&self, dims: &[Expr]) -> i64 {
        dims.iter().fold(1i64, |n, d| n.saturating_mul(self.most(d).max(0)))
    }

    fn add(&mut self, op: impl Into<Op>, inputs: &[ValueId], facts: Facts) -> Grown {
        let op = op.into();
        let types: Vec<&TensorType> = inputs.iter().map(|&v| self.graph.ty(v)).collect();
        let results = op.infer(&types)?;
        if results.iter().any(|t| self.size(&t.dims) > MAX_ELEMENTS || t.dims.iter().any(|d| self.least(d) < 0)) {
            return Err(No);
        }
        if !facts.is_usable() {
            return Err(No);
        }
        self.nodes += 1;
        let value = self.graph.add(op, inputs, &Origin::new(&format!("n{}", self.nodes)))?;
        self.values.push((value, facts));
        Ok((value, facts))
    }

    /// An existing value, more often a late one.
    fn any(&mut self) -> (ValueId, Facts) {
        let n = self.values.len();
        let at = if self.random.chance(60) { n - 1 - self.random.below(n.min(3)) } else { self.random.below(n) };
        self.values[at]
    }

    fn any_of(&mut self, dtype: DType) -> Option<(ValueId, Facts)> {
        let of: Vec<_> = self.values.iter().filter(|(v, _)| self.graph.ty(*v).dtype == dtype).copied().collect();
        (!of.is_empty()).then(|| *self.random.pick(&of))
    }

    fn extent(&mut self) -> Expr {
        if !self.symbols.is_empty() && self.random.chance(35) {
            return self.random.pick(&self.symbols).clone();
        }
        if self.random.chance(2) { Expr::from(0i64) } else { Expr::from(*self.random.pick(EXTENTS)) }
    }

    fn shape(&mut self) -> Vec<Expr> {
        loop {
            let rank = *self.random.pick(&[0, 1, 1, 2, 2, 2, 3, 3, 4]);
            let dims: Vec<Expr> = (0..rank).map(|_| self.extent()).collect();
            if self.size(&dims) <= MAX_ELEMENTS / 2 {
                return dims;
            }
        }
    }

    fn dtype(&mut self) -> DType {
        use DType::*;
        if self.random.chance(50) {
            return F32;
        }
        *self.random.pick(&[F64, I8, U8, I16, U16, I32, I32, U32, I64, I64, U64, Bool, F16, BF16])
    }

    /// A new input, or a constant where the dims allow it.
    fn leaf(&mut self, dtype: DType, dims: &[Expr]) -> (ValueId, Facts) {
        let kind = Kind::any(dtype, &mut self.random);
        self.leaf_of(dtype, dims, kind)
    }

    fn leaf_of(&mut self, dtype: DType, dims: &[Expr], kind: Kind) -> (ValueId, Facts) {
        match TensorType::new(dtype, dims.to_vec()).shape() {
            // The text of a plan has room for small constants in a body.
            Some(shape) if self.random.chance(40) && (self.depth == 0 || shape.iter().product::<usize>() <= 16) => {
                let tensor = kind.tensor(dtype, &shape, &mut self.random);
                let id = self.graph.add_constant(tensor);
                self.known(id, kind.facts(dtype))
            }
            _ => self.input(dtype, dims, kind),
        }
    }

    fn input(&mut self, dtype: DType, dims: &[Expr], kind: Kind) -> (ValueId, Facts) {
        let name = format!("x{}", self.kinds.len());
        self.kinds.push(kind);
        let id = self.graph.add_input(&name, TensorType::new(dtype, dims.to_vec()));
        self.known(id, kind.facts(dtype))
    }

    fn known(&mut self, id: ValueId, facts: Facts) -> (ValueId, Facts) {
        self.values.push((id, facts));
        (id, facts)
    }

    /// A value that broadcasts to `dims` with another one: an existing or a new one.
    fn operand(&mut self, dtype: DType, dims: &[Expr]) -> (ValueId, Facts) {
        let fits = |b: &Build, v: ValueId| {
            let ty = b.graph.ty(v);
            let pairs = ty.dims.iter().rev().zip(dims.iter().rev());
            ty.dtype == dtype
                && ty.rank() <= dims.len()
                && pairs.into_iter().all(|(a, d)| a == d || a.as_const() == Some(1))
        };
        let known: Vec<_> = self.values.iter().filter(|(v, _)| fits(self, *v)).copied().collect();
        if !known.is_empty() && self.random.chance(60) {
            return *self.random.pick(&known);
        }
        let first = if self.random.chance(50) { 0 } else { self.random.below(dims.len() + 1) };
        let mut own = dims[first..].to_vec();
        for d in &mut own {
            if self.random.chance(20) {
                *d = Expr::from(1i64);
            }
        }
        self.leaf(dtype, &own)
    }

    fn step(&mut self) -> Result<(), No> {
        if self.depth < 2 && self.random.chance(6) {
            return self.control();
        }
        let what = self.random.below(100);
        if what < 45 {
            self.elementwise()
        } else if what < 75 {
            self.structural()
        } else {
            self.pattern()
        }
    }
}

/// The sample of a seed.
pub fn sample(seed: u64) -> Sample {
    let mut random = Random::new(seed);
    let mut graph = Graph::new(&format!("random {seed}"));
    let mut symbols = Vec::new();
    if random.chance(40) {
        for name in &["n", "m"][..1 + random.below(2)] {
            let lo = *random.pick(&[0, 1, 1, 1, 2]);
            graph.symbols.insert(Symbol::new(name), (lo, lo + *random.pick(&[1, 6, 17, 36])));
            symbols.push(Expr::symbol(name));
        }
    }
    let mut build = Build { random, graph, values: vec![], kinds: vec![], symbols, nodes: 0, depth: 0, unread: vec![] };
    if !build.symbols.is_empty() {
        // Symbols get their values from an input.
        let dims = build.symbols.clone();
        let kind = Kind::any(DType::F32, &mut build.random);
        build.input(DType::F32, &dims, kind);
    }
    let (dtype, dims) = (build.dtype(), build.shape());
    build.leaf(dtype, &dims);
    let wanted = 1 + build.random.below(11);
    for _ in 0..60 {
        if build.nodes >= wanted {
            break;
        }
        // What a step that failed has added on its way stays: it is well typed, too.
        let _ = build.step();
    }
    if build.nodes == 0 {
        let (x, facts) = build.values[0];
        let identity = kiln_ir::ops::Map { body: kiln_ir::Code::identity(build.ty(x).dtype) };
        // An identity takes any operand.
        let _ = build.add(identity, &[x], facts);
    }
    finish(build, seed)
}

/// Makes outputs of what nothing reads and of some of the rest.
fn finish(mut build: Build, seed: u64) -> Sample {
    let mut tolerances = Vec::new();
    let all = build.values.clone();
    for (n, (v, facts)) in all.into_iter().enumerate() {
        let made = build.graph.producer(v).is_some();
        let unread = build.graph.users(v).is_empty();
        if made && (unread || build.random.chance(12)) && !build.graph.is_output(v) {
            build.graph.add_output(&format!("y{n}"), v);
            tolerances.push(facts.error * 2.0);
        }
    }
    for (n, (v, facts)) in std::mem::take(&mut build.unread).into_iter().enumerate() {
        build.graph.add_output(&format!("z{n}"), v);
        tolerances.push(facts.error * 2.0);
    }
    let bindings = bindings(&build.graph.symbols.clone(), &mut build.random);
    Sample { graph: build.graph, bindings, tolerances, kinds: build.kinds, seed }
}

fn bindings(symbols: &Ranges, random: &mut Random) -> Vec<Bindings> {
    if symbols.is_empty() {
        return vec![Bindings::new()];
    }
    let lowest = symbols.iter().map(|(s, &(lo, _))| (s.clone(), lo)).collect();
    let any = |random: &mut Random| -> Bindings {
        let value =
            |(s, &(lo, hi)): (&Symbol, &(i64, i64))| (s.clone(), lo + random.below((hi - lo + 1) as usize) as i64);
        symbols.iter().map(value).collect()
    };
    vec![lowest, any(random), any(random)]
}

impl Sample {
    /// Inputs for the n-th of the bindings.
    pub fn inputs(&self, n: usize) -> Vec<Tensor> {
        let mut random = Random::new(self.seed.wrapping_mul(31).wrapping_add(n as u64 + 1));
        let dim = |s: &Symbol| self.bindings[n].get(s).copied();
        let make = |(&v, kind): (&ValueId, &Kind)| {
            let ty = self.graph.ty(v);
            let extent = |d: &Expr| d.eval(&dim).and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
            kind.tensor(ty.dtype, &ty.dims.iter().map(extent).collect::<Vec<_>>(), &mut random)
        };
        self.graph.inputs.iter().zip(&self.kinds).map(make).collect()
    }

    /// Why an output is not what is expected: integers and exact floats must be equal (zeros of either sign are), others within
    /// the bound.
    pub fn judge(&self, n: usize, expected: &Tensor, found: &Tensor) -> Option<String> {
        if expected.dtype() != found.dtype() || expected.shape() != found.shape() {
            let name = |t: &Tensor| format!("{}{:?}", t.dtype(), t.shape());
            return Some(format!("{} instead of {}", name(found), name(expected)));
        }
        let tolerance = self.tolerances.get(n).copied().unwrap_or(0.0);
        let at = |t: &Tensor, i| Constant::load(t.dtype(), t.bytes(), i);
        (0..expected.len()).find_map(|i| {
            let (Some(a), Some(b)) = (at(expected, i), at(found, i)) else { return None };
            let (x, y) = (a.as_f64(), b.as_f64());
            let same = if expected.dtype().is_float() {
                x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= tolerance
            } else {
                a == b
            };
            (!same).then(|| format!("element {i} is {b}, expected is {a} within {tolerance:e}"))
        })
    }
}
