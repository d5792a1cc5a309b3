//! Arithmetic: integers, floats, bits, comparisons, conversions and moves between registers.
//!
//! Invariant: that of the module around it. What a function may be off by comes from the manual and is kept with the instruction.

use super::super::alu::{Compare, Convert, FloatOp, IntOp, Mode, Round, Ty};
use super::super::parse::Operand;
use super::super::{PARAMETER_WINDOW, SHARED_WINDOW};
use super::{Decoder, Join, Op, Result1, Src, Three, Words};
use kiln_ir::DType;

/// The type of a pair of floats of 8 bits.
fn eight(pair: &str) -> Option<DType> {
    match pair {
        "e4m3x2" => Some(DType::F8E4M3FN),
        "e5m2x2" => Some(DType::F8E5M2),
        _ => None,
    }
}

impl Decoder<'_> {
    /// The instruction; nothing where it is none of this kind.
    pub(super) fn arithmetic(&self, w: &Words<'_>) -> Result1<Option<Op>> {
        let ty = Ty::parse(w.last());
        let round = if w.has("rz") {
            Round::Zero
        } else if w.has("rm") {
            Round::Down
        } else if w.has("rp") {
            Round::Up
        } else {
            Round::Nearest
        };
        let mode = |error: f32| Mode { ftz: w.has("ftz"), sat: w.has("sat"), round, error };
        let one = Src::Imm(0);
        let unary = |op: IntOp| Ok(Op::Int(op, w.typed()?, self.reg(w.at(0)?)?, self.src(w.at(1)?)?, one));
        let binary =
            |op: IntOp| Ok(Op::Int(op, w.typed()?, self.reg(w.at(0)?)?, self.src(w.at(1)?)?, self.src(w.at(2)?)?));
        let float1 = |op: FloatOp, error: f32| {
            let ty = w.typed()?;
            Ok(Op::Float(op, ty, mode(error), self.reg(w.at(0)?)?, self.float_src(ty, w.at(1)?)?, one))
        };
        let float2 = |op: FloatOp, error: f32| {
            let ty = w.typed()?;
            let (a, b) = (self.float_src(ty, w.at(1)?)?, self.float_src(ty, w.at(2)?)?);
            Ok(Op::Float(op, ty, mode(error), self.reg(w.at(0)?)?, a, b))
        };
        let is_float = ty.is_some_and(Ty::is_float);
        let either = |int: IntOp, float: FloatOp| if is_float { float2(float, 0.0) } else { binary(int) };
        let three = |op: Three| {
            let d = self.reg(w.at(0)?)?;
            Ok(Op::Three(op, w.typed()?, d, self.src(w.at(1)?)?, self.src(w.at(2)?)?, self.src(w.at(3)?)?))
        };
        let fma = || {
            let ty = w.typed()?;
            let [a, b, c] =
                [self.float_src(ty, w.at(1)?)?, self.float_src(ty, w.at(2)?)?, self.float_src(ty, w.at(3)?)?];
            Ok(Op::Fma(ty, mode(0.0), self.reg(w.at(0)?)?, a, b, c))
        };
        let done = match w.name[0] {
            "mov" => self.mov(w.typed()?, w.at(0)?, w.at(1)?),
            "cvta" => {
                let shared = w.has("shared") || w.has("shared::cta");
                let (d, a) = (self.reg(w.at(0)?)?, self.src(w.at(1)?)?);
                let parameter = w.has("param");
                Ok(match (shared || parameter, w.has("to")) {
                    (true, to) if parameter => {
                        let op = if to { IntOp::Sub } else { IntOp::Add };
                        Op::Int(op, Ty::U64, d, a, Src::Imm(PARAMETER_WINDOW))
                    }
                    (false, _) => Op::Mov(d, a, u64::MAX),
                    (true, true) => Op::Int(IntOp::Sub, Ty::U64, d, a, Src::Imm(SHARED_WINDOW)),
                    (true, false) => Op::Int(IntOp::Add, Ty::U64, d, a, Src::Imm(SHARED_WINDOW)),
                })
            }
            "add" if w.has("cc") => Err(w.unknown()),
            "add" => either(IntOp::Add, FloatOp::Add),
            "sub" if w.has("cc") => Err(w.unknown()),
            "sub" => either(IntOp::Sub, FloatOp::Sub),
            "mul" if is_float => float2(FloatOp::Mul, 0.0),
            "mul" if w.has("wide") => binary(IntOp::MulWide),
            "mul" if w.has("hi") => binary(IntOp::MulHi),
            "mul" | "mul24" => binary(IntOp::Mul),
            "mad" if is_float => fma(),
            "mad" if w.has("wide") => three(Three::MadWide),
            "mad" if w.has("hi") => three(Three::MadHi),
            "mad" | "mad24" => three(Three::MadLo),
            "fma" => fma(),
            "div" if is_float => float2(FloatOp::Div, if w.has("approx") || w.has("full") { 2.0 } else { 0.0 }),
            "div" => binary(IntOp::Div),
            "rem" => binary(IntOp::Rem),
            "min" if is_float && w.has("NaN") => float2(FloatOp::MinNan, 0.0),
            "max" if is_float && w.has("NaN") => float2(FloatOp::MaxNan, 0.0),
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
            "bfind" => unary(if w.has("shiftamt") { IntOp::BfindShift } else { IntOp::Bfind }),
            "sqrt" => float1(FloatOp::Sqrt, if w.has("approx") { 1.0 } else { 0.0 }),
            "rsqrt" => float1(FloatOp::Rsqrt, 1.1),
            "rcp" => float1(FloatOp::Rcp, if w.has("approx") { 1.0 } else { 0.0 }),
            "ex2" => float1(FloatOp::Ex2, 2.0),
            "lg2" => float1(FloatOp::Lg2, 2.0),
            "sin" => float1(FloatOp::Sin, 4.0),
            "cos" => float1(FloatOp::Cos, 4.0),
            "tanh" => float1(FloatOp::Tanh, 4096.0),
            "copysign" => float2(FloatOp::Copysign, 0.0),
            "bfe" => three(Three::Bfe),
            "prmt" if w.name.len() == 2 => three(Three::Prmt),
            "sad" => three(Three::Sad),
            "slct" => three(Three::Slct),
            "shf" => three(Three::Shf { left: w.has("l"), wrap: w.has("wrap") }),
            "dp4a" => {
                let signed = |n: usize| match w.name.get(n) {
                    Some(&"s32") => Ok(true),
                    Some(&"u32") => Ok(false),
                    _ => Err("dp4a is of u32 or s32".to_string()),
                };
                three(Three::Dot { left: signed(1)?, right: signed(2)? })
            }
            "lop3" => {
                let Src::Imm(table) = self.src(w.at(4)?)? else { return Err("the table of lop3 is no number".into()) };
                three(Three::Lop3(table as u8))
            }
            "bfi" => {
                let sources = [self.src(w.at(1)?)?, self.src(w.at(2)?)?, self.src(w.at(3)?)?, self.src(w.at(4)?)?];
                Ok(Op::Bfi(w.typed()?, self.reg(w.at(0)?)?, sources))
            }
            "setp" => self.setp(w),
            "set" => {
                let compare = Compare::parse(w.name.get(1).copied().unwrap_or_default()).ok_or_else(|| w.unknown())?;
                let float = w.name.get(w.name.len() - 2).is_some_and(|t| *t == "f32");
                Ok(Op::Set {
                    compare,
                    ty: w.typed()?,
                    float,
                    d: self.reg(w.at(0)?)?,
                    a: self.src(w.at(1)?)?,
                    b: self.src(w.at(2)?)?,
                })
            }
            "selp" => {
                let (p, not) = match w.at(3)? {
                    Operand::Register(p) => (*p, false),
                    Operand::Not(p) => (*p, true),
                    _ => return Err("the last operand is no predicate".into()),
                };
                let ty = w.typed()?;
                let (a, b) = (self.float_src(ty, w.at(1)?)?, self.float_src(ty, w.at(2)?)?);
                Ok(Op::Selp(ty.mask(), self.reg(w.at(0)?)?, a, b, p, not))
            }
            "cvt" => self.cvt(w),
            _ => return Ok(None),
        };
        done.map(Some)
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

    fn setp(&self, w: &Words<'_>) -> Result1<Op> {
        let compare = w.name.get(1).and_then(|n| Compare::parse(n)).ok_or_else(|| w.unknown())?;
        let ty = w.name.last().and_then(|n| Ty::parse(n)).ok_or_else(|| w.unknown())?;
        let join = [("and", Join::And), ("or", Join::Or), ("xor", Join::Xor)];
        let join = join.iter().find(|(n, _)| w.name[2..].contains(n)).map(|(_, j)| *j);
        let join = match (join, w.operand(3)) {
            (Some(j), Some(Operand::Register(r))) => Some((j, *r, false)),
            (Some(j), Some(Operand::Not(r))) => Some((j, *r, true)),
            (None, None) => None,
            _ => return Err("the last operand is no predicate".into()),
        };
        let (p, q) = match w.at(0)? {
            Operand::Pair(p, q) => (Some(*p), *q),
            other => (self.target(other)?, None),
        };
        let (a, b) = (self.float_src(ty, w.at(1)?)?, self.float_src(ty, w.at(2)?)?);
        Ok(Op::Setp { compare, ty, ftz: w.name.contains(&"ftz"), join, p, q, a, b })
    }

    fn cvt(&self, w: &Words<'_>) -> Result1<Op> {
        let [.., to, from] = w.name.as_slice() else { return Err(w.unknown()) };
        if eight(to).is_some() || eight(from).is_some() {
            return self.cvt_of_eight(w);
        }
        if w.name.contains(&"satfinite") {
            return Err(w.unknown());
        }
        let d = self.reg(w.at(0)?)?;
        let to_int = [("rni", Round::Nearest), ("rzi", Round::Zero), ("rmi", Round::Down), ("rpi", Round::Up)];
        let round = [("rz", Round::Zero), ("rm", Round::Down), ("rp", Round::Up)];
        let find = |list: &[(&str, Round)]| list.iter().find(|(n, _)| w.has(n)).map(|(_, r)| *r);
        let mode = Convert {
            to_int: find(&to_int),
            round: find(&round).unwrap_or_default(),
            sat: w.has("sat"),
            ftz: w.has("ftz"),
            relu: w.has("relu"),
        };
        let from = Ty::parse(from).ok_or_else(|| w.unknown())?;
        if *to == "tf32" {
            // The low 13 bits are dropped after rounding, ties away from zero.
            return Ok(Op::CvtPack(Ty::F32, mode, d, self.float_src(from, w.at(1)?)?, Src::Imm(0)));
        }
        let to = Ty::parse(to).ok_or_else(|| w.unknown())?;
        if matches!(to, Ty::F16x2 | Ty::BF16x2) {
            let (a, b) = (self.float_src(from, w.at(1)?)?, self.float_src(from, w.at(2)?)?);
            return Ok(Op::CvtPack(to, mode, d, a, b));
        }
        Ok(Op::Cvt(to, from, mode, d, self.float_src(from, w.at(1)?)?))
    }

    /// Conversions of pairs of floats of 8 bits, which round to the nearest and saturate.
    fn cvt_of_eight(&self, w: &Words<'_>) -> Result1<Op> {
        let d = self.reg(w.at(0)?)?;
        let (relu, rest) = match w.name.as_slice() {
            ["cvt", "rn", "relu", rest @ ..] => (true, rest),
            ["cvt", "rn", "satfinite", "relu", to, from] => (true, &["satfinite", to, from][..]),
            ["cvt", "rn", rest @ ..] => (false, rest),
            _ => return Err(w.unknown()),
        };
        let found = match rest {
            ["f16x2", from] => eight(from).map(|from| Ok(Op::CvtFromEight { from, relu, d, a: self.src(w.at(1)?)? })),
            ["satfinite", to, "f32"] => eight(to).map(|to| {
                let (a, b) = (self.float_src(Ty::F32, w.at(1)?)?, self.float_src(Ty::F32, w.at(2)?)?);
                Ok(Op::CvtToEight { to, from: Ty::F32, relu, d, a, b })
            }),
            ["satfinite", to, "f16x2"] => eight(to).map(|to| {
                let a = self.src(w.at(1)?)?;
                Ok(Op::CvtToEight { to, from: Ty::F16x2, relu, d, a, b: a })
            }),
            _ => None,
        };
        found.unwrap_or_else(|| Err(w.unknown()))
    }
}
