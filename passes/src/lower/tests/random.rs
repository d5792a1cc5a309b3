//! Random tile programs: maps, loops, reductions, products, masks, gathers, transposes, ragged parts.

use super::{Random, Setting, agree};
use kiln_ir::expr::{Expr, Ranges, Symbol};
use kiln_ir::id::Arena;
use kiln_ir::scalar::{BinaryOp, Constant, Less, UnaryOp};
use kiln_ir::tile::{Buffer, Carried, For, If, Part, Stmt, TileId, TileOp, TileProgram, TileType, axis};
use kiln_ir::{Class, DType};

/// What is known of a tile that was made.
#[derive(Clone)]
struct Made {
    id: TileId,
    ty: TileType,
    /// Whether all values are whole numbers of moderate size, so that sums are exact in any order.
    whole: bool,
    /// Whether the two interpreters may differ in it.
    loose: bool,
}

struct Maker {
    random: Random,
    program: TileProgram,
    setting: Setting,
    ranges: Ranges,
    loose: bool,
}

const FLOATS: [UnaryOp; 7] =
    [UnaryOp::Neg, UnaryOp::Abs, UnaryOp::Floor, UnaryOp::Round, UnaryOp::Sign, UnaryOp::Sqrt, UnaryOp::Recip];
const MATH: [UnaryOp; 6] = [UnaryOp::Exp, UnaryOp::Tanh, UnaryOp::Sigmoid, UnaryOp::Erf, UnaryOp::Sin, UnaryOp::Atan];

impl Maker {
    fn constant(&mut self, dtype: DType) -> Constant {
        let v = self.random.below(9) as i64 - 4;
        if dtype == DType::Bool { Constant { dtype, bits: u64::from(v > 0) } } else { Constant::int(dtype, v) }
    }

    fn push(&mut self, stmts: &mut Vec<Stmt>, ty: TileType, op: TileOp, whole: bool, loose: bool) -> Made {
        let id = self.program.tiles.push(ty.clone());
        stmts.push(Stmt::Let(id, op));
        Made { id, ty, whole, loose }
    }

    /// A new buffer with so many elements, filled.
    fn buffer(&mut self, dtype: DType, len: Expr, written: bool, lo: i64, hi: i64) -> usize {
        let count = len.eval(&|s| self.setting.value(s)).expect("known dims").max(0) as usize;
        let bytes = self.random.elements(dtype, count, lo, hi);
        self.setting.buffers.push(bytes);
        let name = format!("b{}", self.program.buffers.len());
        self.program.buffers.push(Buffer { name, dtype, len, written, local: false });
        self.program.buffers.len() - 1
    }

    /// A shape that broadcasts to the given one.
    fn narrower(&mut self, shape: &[usize]) -> Vec<usize> {
        shape.iter().map(|&e| if self.random.chance(25) { 1 } else { e }).collect()
    }

    /// An address over the axes and variables whose least value is 0.
    fn address(&mut self, shape: &[usize], variables: &[Symbol]) -> Expr {
        let dim = self.setting.dims[0].0.clone();
        let contiguous = self.random.below(shape.len() + 1);
        let mut sum = Expr::default();
        for k in 0..shape.len() {
            let a = Expr::from(axis(k));
            let stride = match self.random.below(6) {
                _ if k == contiguous => Expr::from(1i64),
                0 => Expr::default(),
                1 => Expr::from(dim.clone()),
                n => Expr::from(n as i64 * 5),
            };
            let a = match self.random.below(12) {
                0 => a.floor_div(&Expr::from(4i64)),
                1 => a.modulo(&Expr::from(3i64)),
                _ => a,
            };
            sum = sum.add(&a.mul(&stride));
        }
        for v in variables {
            sum = sum.add(&Expr::from(v).scale(self.random.pick(&[0, 1, 3, 8, 16])));
        }
        sum
    }

    /// The greatest value of an address without subtractions, in the dims.
    fn greatest(&self, address: &Expr, shape: &[usize]) -> Expr {
        address.substitute(&|s| {
            let k = (0..shape.len()).find(|&k| axis(k) == *s);
            match (k, self.ranges.get(s)) {
                (Some(k), _) => Some(Expr::from(shape[k] - 1)),
                (None, Some(&(_, hi))) if self.setting.value(s).is_none() => Some(Expr::from(hi)),
                _ => None,
            }
        })
    }

    fn load(&mut self, stmts: &mut Vec<Stmt>, dtype: DType, shape: &[usize], variables: &[Symbol]) -> Made {
        let shape = self.narrower(shape);
        let ty = TileType { dtype, shape: shape.clone() };
        let mut address = self.address(&shape, variables);
        // The maximum of a remainder is not at the end: leave room for every one.
        let len = self.greatest(&address, &shape).add(&Expr::from(256i64));
        let (mut mask, mut other, mut gathered) = (Vec::new(), Constant::int(dtype, 0), Vec::new());
        let mut real = len.clone();
        if self.random.chance(30) {
            // Part of the addresses are before the first element or past the last, and masked.
            let pad = self.random.below(6) as i64;
            address = address.sub(&Expr::from(pad));
            real = Expr::from(self.random.below(60) as i64);
            if self.random.chance(30) {
                real = real.add(&Expr::from(self.setting.dims[0].0.clone()));
            }
            mask.push(Less { left: address.clone(), right: real.clone() });
            mask.push(Less { left: Expr::from(-1i64), right: address.clone() });
            other = self.constant(dtype);
        } else if self.random.chance(15) {
            let index_shape = self.narrower(&shape);
            let index = self.load_index(stmts, &index_shape, variables);
            let extent = self.random.below(6) as i64 + 5;
            let check = TileOp::CheckIndex { index: index.id, extent: Expr::from(extent), status: 3 };
            let checked = self.push(stmts, index.ty, check, true, false);
            let stride = self.random.pick(&[1, 4, 7]);
            address = address.add(&Expr::symbol("v0").scale(stride));
            gathered.push(checked.id);
            real = len.add(&Expr::from(stride * extent));
        }
        let buffer = self.buffer(dtype, real, false, -4, 4);
        self.push(stmts, ty, TileOp::Load { buffer, address, gathered, mask, other }, true, false)
    }

    /// Indices from -5 to 4.
    fn load_index(&mut self, stmts: &mut Vec<Stmt>, shape: &[usize], variables: &[Symbol]) -> Made {
        let address = self.address(shape, variables);
        let len = self.greatest(&address, shape).add(&Expr::from(256i64));
        let buffer = self.buffer(DType::I64, len, false, -5, 4);
        let (gathered, mask, other) = (Vec::new(), Vec::new(), Constant::int(DType::I64, 0));
        let ty = TileType { dtype: DType::I64, shape: shape.to_vec() };
        self.push(stmts, ty, TileOp::Load { buffer, address, gathered, mask, other }, true, false)
    }

    /// A tile of the type that broadcasts to the shape: one of those that are there, or a new one.
    fn operand(
        &mut self,
        stmts: &mut Vec<Stmt>,
        known: &[Made],
        dtype: DType,
        shape: &[usize],
        variables: &[Symbol],
    ) -> Made {
        let fits = |m: &&Made| {
            m.ty.dtype == dtype
                && m.ty.shape.len() == shape.len()
                && m.ty.shape.iter().zip(shape).all(|(&e, &s)| e == s || e == 1)
        };
        let some: Vec<Made> = known.iter().filter(fits).cloned().collect();
        if !some.is_empty() && self.random.chance(75) {
            return self.random.pick(&some);
        }
        match self.random.below(6) {
            0 => {
                let c = self.constant(dtype);
                let shape = self.narrower(shape);
                self.push(stmts, TileType { dtype, shape }, TileOp::Const(c), true, false)
            }
            1 if dtype == DType::I64 => {
                let mut e = self.address(shape, variables);
                e = e.sub(&Expr::from(self.random.below(9) as i64));
                self.push(stmts, TileType { dtype, shape: shape.to_vec() }, TileOp::Index(e), true, false)
            }
            _ => self.load(stmts, dtype, shape, variables),
        }
    }

    /// The common shape of operands.
    fn shape_of(operands: &[&Made]) -> Vec<usize> {
        let rank = operands[0].ty.shape.len();
        (0..rank).map(|k| operands.iter().map(|m| m.ty.shape[k]).max().unwrap_or(1)).collect()
    }

    fn step(&mut self, stmts: &mut Vec<Stmt>, known: &[Made], shape: &[usize], variables: &[Symbol]) -> Made {
        use BinaryOp::*;
        let dtype = self.random.pick(&[
            DType::F32,
            DType::F32,
            DType::F32,
            DType::F32,
            DType::F64,
            DType::I32,
            DType::I64,
            DType::U8,
            DType::Bool,
            DType::U32,
        ]);
        let a = self.operand(stmts, known, dtype, shape, variables);
        let float = dtype.is_float();
        match self.random.below(12) {
            0 | 1 if dtype != DType::Bool => {
                let pool: &[UnaryOp] = match dtype.class() {
                    Class::Float if self.random.chance(40) => &MATH,
                    Class::Float | Class::Double => &FLOATS,
                    _ => &[UnaryOp::Neg, UnaryOp::Abs, UnaryOp::Sign, UnaryOp::Not],
                };
                let op = self.random.pick(pool);
                let rough =
                    matches!(op, UnaryOp::Floor | UnaryOp::Round | UnaryOp::Sign | UnaryOp::Recip | UnaryOp::Sqrt);
                if a.loose && rough {
                    return a;
                }
                let fraction = matches!(op, UnaryOp::Sqrt | UnaryOp::Recip);
                let math = MATH.contains(&op);
                if math && !a.whole {
                    return a;
                }
                let whole = a.whole && !fraction && !math;
                self.push(stmts, a.ty.clone(), TileOp::Unary(op, a.id), whole, a.loose || math)
            }
            2..=4 => {
                let b = self.operand(stmts, known, dtype, shape, variables);
                let pool: &[BinaryOp] = match dtype.class() {
                    Class::Bool => &[And, Or, Xor, Eq, Lt, Ge, Max],
                    Class::Float | Class::Double => &[Add, Sub, Mul, Div, Min, Max, Lt, Le, Ne, Rem],
                    _ => &[Add, Sub, Mul, Div, Rem, Mod, Min, Max, And, Xor, Shl, Shr, Lt, Eq, Ge],
                };
                let op = self.random.pick(pool);
                let loose = a.loose || b.loose;
                // What differs a little before may differ much after these; f64 has no remainder.
                let rough = !matches!(op, Add | Sub | Min | Max);
                if float && (loose && rough || op == Rem && dtype == DType::F64) {
                    return a;
                }
                let shape = Self::shape_of(&[&a, &b]);
                let dtype = if op.is_comparison() { DType::Bool } else { dtype };
                let whole = !float || a.whole && b.whole && matches!(op, Min | Max | Lt | Le | Ne);
                self.push(stmts, TileType { dtype, shape }, TileOp::Binary(op, a.id, b.id), whole, loose)
            }
            5 if dtype != DType::Bool => {
                let b = self.operand(stmts, known, dtype, shape, variables);
                let c = self.operand(stmts, known, dtype, shape, variables);
                if a.loose || b.loose || c.loose {
                    return a;
                }
                let shape = Self::shape_of(&[&a, &b, &c]);
                self.push(stmts, TileType { dtype, shape }, TileOp::Fma(a.id, b.id, c.id), !float, false)
            }
            6 | 7 => {
                let c = self.operand(stmts, known, DType::Bool, shape, variables);
                let b = self.operand(stmts, known, dtype, shape, variables);
                let shape = Self::shape_of(&[&a, &b, &c]);
                let op = TileOp::Select(c.id, a.id, b.id);
                self.push(stmts, TileType { dtype, shape }, op, a.whole && b.whole, a.loose || b.loose)
            }
            8 => {
                let to = self.random.pick(&[DType::F32, DType::F32, DType::I32, DType::I64, DType::Bool, DType::F64]);
                if a.loose && !to.is_float() {
                    return a;
                }
                let ty = TileType { dtype: to, shape: a.ty.shape.clone() };
                // Integers of any size do not all fit f32.
                let whole = a.whole && (float || !to.is_float() || dtype == DType::Bool);
                self.push(stmts, ty, TileOp::Cast(to, a.id), whole, a.loose)
            }
            9 => {
                let k = self.random.below(a.ty.shape.len());
                let op = match dtype.class() {
                    Class::Bool => self.random.pick(&[And, Or]),
                    _ => self.random.pick(&[Add, Add, Max, Min]),
                };
                let mut ty = a.ty.clone();
                ty.shape[k] = 1;
                let loose = a.loose || float && !a.whole && op == Add;
                // A sum of sums is exact for a while; not longer.
                self.push(stmts, ty, TileOp::Reduce(op, k, a.id), !float || a.whole && op != Add, loose)
            }
            10 if a.ty.shape.len() == 2 && a.ty.shape[0] == a.ty.shape[1] => {
                let made = a.clone();
                self.push(stmts, a.ty, TileOp::Transpose(vec![1, 0], a.id), made.whole, made.loose)
            }
            11 if a.ty.shape.len() == 2 && matches!(dtype, DType::F32 | DType::I32) && a.whole => {
                let depth = self.random.pick(&[1usize, 3, 4, 8]);
                let (m, n) = (a.ty.shape[0], a.ty.shape[1]);
                let (rows, columns) = ([m, depth], [depth, n]);
                let mut make = |shape: &[usize]| {
                    let address = self.address(shape, variables);
                    let len = self.greatest(&address, shape).add(&Expr::from(256i64));
                    let of = if self.random.chance(30) { DType::U8 } else { dtype };
                    let buffer = self.buffer(of, len, false, 0, 4);
                    let (gathered, mask, other) = (Vec::new(), Vec::new(), Constant::int(of, 0));
                    let ty = TileType { dtype: of, shape: shape.to_vec() };
                    let load = TileOp::Load { buffer, address, gathered, mask, other };
                    self.push(stmts, ty, load, true, false)
                };
                let (x, y) = (make(&rows), make(&columns));
                self.push(stmts, a.ty.clone(), TileOp::Dot(None, x.id, y.id, a.id), !float, false)
            }
            _ => a,
        }
    }

    fn statements(
        &mut self,
        stmts: &mut Vec<Stmt>,
        known: &mut Vec<Made>,
        shape: &[usize],
        variables: &[Symbol],
        depth: usize,
    ) {
        for _ in 0..self.random.below(8) + 2 {
            if depth < 2 && self.random.chance(15) {
                self.counted_loop(stmts, known, shape, variables, depth);
            } else {
                let made = self.step(stmts, known, shape, variables);
                known.push(made);
            }
        }
    }

    fn counted_loop(
        &mut self,
        stmts: &mut Vec<Stmt>,
        known: &mut Vec<Made>,
        shape: &[usize],
        variables: &[Symbol],
        depth: usize,
    ) {
        let var = Symbol::numbered("k", self.program.tiles.len() * 10 + depth);
        let step = self.random.pick(&[1i64, 2, 4]);
        let trips = self.random.pick(&[0i64, 1, 1, 2, 3]);
        let symbolic = self.random.chance(20);
        let (lo, hi) = if symbolic {
            (Expr::default(), Expr::from(self.setting.dims[0].0.clone()))
        } else {
            (Expr::from(2i64), Expr::from(2 + step * trips))
        };
        let step = if symbolic { 1 } else { step };
        let last = if symbolic { self.setting.dims[0].1 - 1 } else { (1 + step * trips).max(2) };
        self.ranges.insert(var.clone(), (0, last));
        let mut inner: Vec<Symbol> = variables.to_vec();
        inner.push(var.clone());
        let mut carried: Vec<Carried> = Vec::new();
        let mut inside_known = known.clone();
        let mut states = Vec::new();
        for _ in 0..self.random.below(3) {
            let Some(init) = (!known.is_empty()).then(|| self.random.pick(known)) else { continue };
            let inside = self.program.tiles.push(init.ty.clone());
            // What goes round may grow: it counts as neither whole nor loose only if it is an integer.
            let whole = !init.ty.dtype.is_float();
            let made = Made { id: inside, ty: init.ty.clone(), whole, loose: false };
            if init.loose {
                continue;
            }
            inside_known.push(made.clone());
            states.push((init, made));
        }
        let mut body = Vec::new();
        self.statements(&mut body, &mut inside_known, shape, &inner, depth + 1);
        for (init, inside) in states {
            let fits = |m: &&Made| m.ty == init.ty && !m.loose;
            let some: Vec<Made> = inside_known.iter().filter(fits).cloned().collect();
            let next = self.random.pick(&some);
            let after = self.program.tiles.push(init.ty.clone());
            carried.push(Carried { init: init.id, inside: inside.id, next: next.id, after });
            known.push(Made { id: after, ..inside });
        }
        stmts.push(Stmt::For(For { var, lo, hi, step, carried, body }));
    }

    /// Whether a variable is below a number.
    fn condition(&mut self, body: &mut Vec<Stmt>, variables: &[Symbol]) -> TileId {
        let variable = (!variables.is_empty()).then(|| Expr::from(self.random.pick(variables)));
        let bound = Expr::from(self.random.pick(&[0i64, 1, 2]));
        let mut define = |dtype, op| {
            let id = self.program.tiles.push(TileType { dtype, shape: vec![1] });
            body.push(Stmt::Let(id, op));
            id
        };
        let left = define(DType::I64, TileOp::Index(variable.unwrap_or_default()));
        let right = define(DType::I64, TileOp::Index(bound));
        define(DType::Bool, TileOp::Binary(BinaryOp::Lt, left, right))
    }

    /// A part with its own output, for whose rows a condition may hold.
    fn part(&mut self) {
        let rank = self.random.pick(&[1usize, 2, 2, 2, 3]);
        let shape: Vec<usize> = (0..rank).map(|_| self.random.pick(&[1usize, 2, 3, 4, 4, 8])).collect();
        let n = self.program.parts.len();
        let mut grid = Vec::new();
        for k in 0..self.random.below(3) {
            let variable = Symbol::numbered(["i", "j"][k], n);
            let extent = self.random.pick(&[1i64, 2, 3]);
            self.ranges.insert(variable.clone(), (0, extent - 1));
            grid.push((variable, Expr::from(extent)));
        }
        let variables: Vec<Symbol> = grid.iter().map(|(v, _)| v.clone()).collect();
        let (mut body, mut known) = (Vec::new(), Vec::new());
        self.statements(&mut body, &mut known, &shape, &variables, 0);
        for made in known.iter().rev().take(2).cloned().collect::<Vec<_>>() {
            // Every program and element has its own place; sometimes the elements lie the other way round.
            let mut address = Expr::default();
            for (v, extent) in &grid {
                address = address.mul(extent).add(&Expr::from(v));
            }
            let mut axes: Vec<usize> = (0..made.ty.shape.len()).collect();
            if self.random.chance(30) {
                axes.reverse();
            }
            for k in axes {
                address = address.scale(made.ty.shape[k] as i64).add(&Expr::from(axis(k)));
            }
            let len = self.greatest(&address, &made.ty.shape).add(&Expr::from(1i64));
            let (mut mask, mut real) = (Vec::new(), len);
            if self.random.chance(30) {
                real = Expr::from((real.as_const().unwrap_or(1) * 2 + 2) / 3);
                mask.push(Less { left: address.clone(), right: real.clone() });
            }
            let buffer = self.buffer(made.ty.dtype, real, true, 0, 0);
            self.loose |= made.loose;
            let store =
                |value| Stmt::Store { buffer, address: address.clone(), gathered: vec![], mask: mask.clone(), value };
            if self.random.chance(25) {
                let condition = self.condition(&mut body, &variables);
                // What is computed in a choice is not known after it.
                let (mut otherwise, mut own) = (Vec::new(), known.clone());
                self.statements(&mut otherwise, &mut own, &shape, &variables, 1);
                let other = own.iter().rev().find(|m| m.ty == made.ty).cloned().unwrap_or_else(|| made.clone());
                self.loose |= other.loose;
                otherwise.push(store(other.id));
                body.push(Stmt::If(If { condition, then: vec![store(made.id)], otherwise }));
            } else {
                body.push(store(made.id));
            }
        }
        self.program.parts.push(Part { grid, body });
    }
}

fn make(seed: u64) -> Maker {
    let dim = Symbol::new("n");
    let program =
        TileProgram { name: format!("r{seed}"), buffers: Vec::new(), parts: Vec::new(), tiles: Arena::default() };
    let mut random = Random(seed);
    let n = random.below(7) as i64 + 1;
    let setting = Setting { buffers: Vec::new(), dims: vec![(dim.clone(), n)] };
    let mut maker = Maker { random, program, setting, ranges: Ranges::new(), loose: false };
    for _ in 0..maker.random.below(2) + 1 {
        maker.part();
    }
    maker
}

/// 2,000 programs; those with functions or reordered sums of fractions within 1e-5 of the greatest value, the
/// others exactly.
#[test]
fn random_programs_agree_with_the_interpreter() {
    let (mut exact, mut vectors) = (0, 0);
    for seed in 0..2_000 {
        let maker = make(seed);
        let dims = maker.setting.dims.iter().map(|(d, _)| d.clone());
        let ranges: Ranges = dims.map(|d| (d, (1, 7))).collect();
        let tolerance = if maker.loose { 1e-5 } else { 0.0 };
        exact += usize::from(!maker.loose);
        let lowered = agree(&maker.program, &maker.setting, &ranges, tolerance);
        vectors += usize::from(lowered.values.iter().any(|(_, ty)| ty.lanes > 1));
        // Without bounds on the dims, fewer loads may be moved out of harm's way.
        agree(&maker.program, &maker.setting, &Ranges::new(), tolerance);
        // What the text form holds is the whole program.
        let text = maker.program.to_string();
        assert_eq!(TileProgram::parse(&text).map(|p| p.to_string()), Ok(text));
    }
    // The generator is worth something only if both kinds are common.
    assert!(exact > 1_000 && vectors > 1_000, "{exact} exact, {vectors} with vectors");
}
