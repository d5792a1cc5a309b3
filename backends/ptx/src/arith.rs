//! Arithmetic.
//!
//! Invariant: every operation has the meaning of [`kiln_ir::semantics`]; sums and products of floats are written with
//! their rounding, so that no assembler joins them to a multiply-add.

use crate::module::Emitter;
use crate::writer::Class;
use kiln_ir::scalar::{BinaryOp, UnaryOp};
use kiln_ir::warp::{Op, ValueId};
use kiln_ir::{Class as Arithmetic, DType};

/// The type of arithmetic: `s32`, `u64`, `f32`, ...
fn number(dtype: DType) -> &'static str {
    match dtype {
        DType::U32 => "u32",
        DType::I64 => "s64",
        DType::U64 => "u64",
        DType::F32 => "f32",
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        DType::F8E4M3FN => "e4m3",
        DType::F8E5M2 => "e5m2",
        DType::Bool => "pred",
        _ => "s32",
    }
}

fn is_signed(dtype: DType) -> bool {
    dtype.class() == Arithmetic::Signed
}

impl Emitter<'_> {
    /// An operation on registers with one result.
    pub fn compute(&mut self, id: ValueId, op: &Op) {
        let target = self.target(id);
        let bits = Class::of(self.dtype(id)).bits();
        match op {
            Op::Unary(op, a) => self.unary(&target, *op, *a),
            Op::Exp2(a) => {
                let a = self.operand(*a);
                self.out.line(format!("ex2.approx.ftz.f32 \t{target}, {a}"));
            }
            Op::Tf32(a) => {
                let a = self.operand(*a);
                self.out.line(format!("cvt.rna.tf32.f32 \t{target}, {a}"));
            }
            Op::Binary(op, a, b) => self.binary(&target, *op, *a, *b),
            Op::Fma(a, b, c) => {
                let (a, b, c) = (self.operand(*a), self.operand(*b), self.operand(*c));
                self.out.line(format!("fma.rn.f32 \t{target}, {a}, {b}, {c}"));
            }
            Op::Select(c, a, b) if bits == "pred" => {
                let (c, a, b) = (self.register(*c), self.register(*a), self.register(*b));
                let [not, then, otherwise] = [(); 3].map(|()| self.out.temporary(Class::Predicate));
                self.out.line(format!("and.pred \t{then}, {c}, {a}"));
                self.out.line(format!("not.pred \t{not}, {c}"));
                self.out.line(format!("and.pred \t{otherwise}, {not}, {b}"));
                self.out.line(format!("or.pred \t{target}, {then}, {otherwise}"));
            }
            Op::Select(c, a, b) => {
                let (a, b, c) = (self.operand(*a), self.operand(*b), self.register(*c));
                self.out.line(format!("selp.{bits} \t{target}, {a}, {b}, {c}"));
            }
            Op::Cast(to, a) => self.cast(&target, *to, *a),
            Op::Bitcast(_, a) => {
                let a = self.operand(*a);
                let bits = if bits == "f32" { "b32" } else { bits };
                self.out.line(format!("mov.{bits} \t{target}, {a}"));
            }
            // The first operand of the instruction becomes the high half.
            Op::Pack(to, low, high) => {
                let (low, high) = (self.operand(*low), self.operand(*high));
                if to.is_ofp8() {
                    self.floats_of_8_bits = true;
                    let both = self.out.temporary(Class::Half);
                    self.out.line(format!("cvt.rn.satfinite.{}x2.f32 \t{both}, {high}, {low}", number(*to)));
                    return self.out.line(format!("cvt.u32.u16 \t{target}, {both}"));
                }
                self.out.line(format!("cvt.rn.{}x2.f32 \t{target}, {high}, {low}", number(*to)));
            }
            Op::Unpack(from, a, n) => self.unpack(&target, *from, (*a, *n)),
            Op::Shuffle(a, mask) => self.shuffle(&target, *a, *mask),
            Op::Const(_) | Op::Thread | Op::Block | Op::Dim(_) | Op::Load(..) | Op::Matrix { .. } => {}
            Op::Mma { .. } | Op::GroupMma(_) => {}
        }
    }

    fn unary(&mut self, target: &str, op: UnaryOp, a: ValueId) {
        let dtype = self.dtype(a);
        let (ty, bits) = (number(dtype), Class::of(dtype).bits());
        let a = self.register(a);
        let name = match op {
            UnaryOp::Neg if dtype.class() == Arithmetic::Unsigned => {
                format!("neg.s{}", dtype.bits())
            }
            UnaryOp::Neg => format!("neg.{ty}"),
            UnaryOp::Abs if dtype.class() == Arithmetic::Unsigned => format!("mov.{bits}"),
            UnaryOp::Abs => format!("abs.{ty}"),
            UnaryOp::Not => format!("not.{bits}"),
            UnaryOp::Floor => "cvt.rmi.f32.f32".to_string(),
            UnaryOp::Ceil => "cvt.rpi.f32.f32".to_string(),
            UnaryOp::Round => "cvt.rni.f32.f32".to_string(),
            UnaryOp::Trunc => "cvt.rzi.f32.f32".to_string(),
            // The verifier admits no other.
            _ => "sqrt.rn.f32".to_string(),
        };
        self.out.line(format!("{name} \t{target}, {a}"));
    }

    fn binary(&mut self, target: &str, op: BinaryOp, a: ValueId, b: ValueId) {
        let dtype = self.dtype(a);
        let (ty, bits) = (number(dtype), Class::of(dtype).bits());
        let float = dtype == DType::F32;
        if dtype == DType::Bool {
            let (a, b) = (self.register(a), self.register(b));
            let name = match op {
                BinaryOp::And => "and",
                BinaryOp::Or => "or",
                _ => "xor",
            };
            if op == BinaryOp::Eq {
                let differ = self.out.temporary(Class::Predicate);
                self.out.line(format!("xor.pred \t{differ}, {a}, {b}"));
                return self.out.line(format!("not.pred \t{target}, {differ}"));
            }
            return self.out.line(format!("{name}.pred \t{target}, {a}, {b}"));
        }
        if matches!(op, BinaryOp::Shl | BinaryOp::Shr) {
            let (a, count) = (self.register(a), self.shift_count(b));
            // The count is clamped to the width, which is the meaning here too.
            let name = if op == BinaryOp::Shl { format!("shl.{bits}") } else { format!("shr.{ty}") };
            return self.out.line(format!("{name} \t{target}, {a}, {count}"));
        }
        if !float && matches!(op, BinaryOp::Div | BinaryOp::Rem | BinaryOp::Mod) {
            return self.divide(target, op, a, b);
        }
        let (a, b) = (self.register(a), self.operand(b));
        let name = match op {
            BinaryOp::Dot4 => return self.out.line(format!("dp4a.u32.s32 \t{target}, {a}, {b}, 0")),
            BinaryOp::Add if float => "add.rn.f32".to_string(),
            BinaryOp::Sub if float => "sub.rn.f32".to_string(),
            BinaryOp::Mul if float => "mul.rn.f32".to_string(),
            BinaryOp::Div => "div.rn.f32".to_string(),
            BinaryOp::Min if float => "min.NaN.f32".to_string(),
            BinaryOp::Max if float => "max.NaN.f32".to_string(),
            BinaryOp::Mul => format!("mul.lo.{ty}"),
            BinaryOp::Add | BinaryOp::Sub | BinaryOp::Min | BinaryOp::Max => format!("{}.{ty}", op.name()),
            BinaryOp::And | BinaryOp::Or | BinaryOp::Xor => format!("{}.{bits}", op.name()),
            // A NaN differs from everything.
            BinaryOp::Ne if float => "setp.neu.f32".to_string(),
            BinaryOp::Eq | BinaryOp::Ne | BinaryOp::Lt | BinaryOp::Le | BinaryOp::Gt | BinaryOp::Ge => {
                format!("setp.{}.{ty}", op.name())
            }
            BinaryOp::Rem | BinaryOp::Mod | BinaryOp::Pow | BinaryOp::Shl | BinaryOp::Shr => return,
            BinaryOp::Pair | BinaryOp::Dot2 => return,
        };
        self.out.line(format!("{name} \t{target}, {a}, {b}"));
    }

    /// The count of a shift as the unsigned 32-bit integer that PTX takes.
    fn shift_count(&mut self, b: ValueId) -> String {
        if let Some(c) = self.constants.get(&b) {
            return c.bits.min(64).to_string();
        }
        let register = self.register(b);
        if self.dtype(b).size() == 4 {
            return register;
        }
        let [clamped, count] = [Class::Double, Class::Word].map(|class| self.out.temporary(class));
        self.out.line(format!("min.u64 \t{clamped}, {register}, 64"));
        self.out.line(format!("cvt.u32.u64 \t{count}, {clamped}"));
        count
    }

    /// A quotient or remainder; division by 0 gives 0, and by -1 does not overflow.
    fn divide(&mut self, target: &str, op: BinaryOp, a: ValueId, b: ValueId) {
        let dtype = self.dtype(a);
        let (ty, class, signed) = (number(dtype), Class::of(dtype), is_signed(dtype));
        let bits = class.bits();
        let harmless = self.constants.get(&b).is_some_and(|c| c.bits != 0 && (!signed || c.bits as i64 != -1));
        let (x, mut y) = (self.register(a), self.operand(b));
        let divisor = y.clone();
        let mut special = Vec::new();
        if !harmless {
            if let Some(c) = self.constants.get(&b).copied() {
                y = self.constant(c);
            }
            for value in if signed { &[0, -1][..] } else { &[0] } {
                let [is, safe] = [Class::Predicate, class].map(|class| self.out.temporary(class));
                self.out.line(format!("setp.eq.{ty} \t{is}, {y}, {value}"));
                self.out.line(format!("selp.{bits} \t{safe}, 1, {y}, {is}"));
                special.push((*value, is));
                y = safe;
            }
        }
        if op == BinaryOp::Div {
            if special.is_empty() {
                return self.out.line(format!("div.{ty} \t{target}, {x}, {y}"));
            }
            let mut quotient = self.out.temporary(class);
            self.out.line(format!("div.{ty} \t{quotient}, {x}, {y}"));
            for (value, is) in special {
                let next = self.out.temporary(class);
                let instead = if value == 0 {
                    "0".to_string()
                } else {
                    let negative = self.out.temporary(class);
                    self.out.line(format!("neg.{ty} \t{negative}, {x}"));
                    negative
                };
                self.out.line(format!("selp.{bits} \t{next}, {instead}, {quotient}, {is}"));
                quotient = next;
            }
            return self.out.line(format!("mov.{bits} \t{target}, {quotient}"));
        }
        // A remainder by 1, which stands for 0 and -1, is 0.
        if op == BinaryOp::Rem || !signed {
            return self.out.line(format!("rem.{ty} \t{target}, {x}, {y}"));
        }
        let [rest, signs, moved] = [(); 3].map(|()| self.out.temporary(class));
        let [differ, some, both] = [(); 3].map(|()| self.out.temporary(Class::Predicate));
        self.out.line(format!("rem.{ty} \t{rest}, {x}, {y}"));
        self.out.line(format!("xor.{bits} \t{signs}, {rest}, {divisor}"));
        self.out.line(format!("setp.lt.{ty} \t{differ}, {signs}, 0"));
        self.out.line(format!("setp.ne.{ty} \t{some}, {rest}, 0"));
        self.out.line(format!("and.pred \t{both}, {differ}, {some}"));
        self.out.line(format!("add.{ty} \t{moved}, {rest}, {divisor}"));
        self.out.line(format!("selp.{bits} \t{target}, {moved}, {rest}, {both}"));
    }

    fn cast(&mut self, target: &str, to: DType, a: ValueId) {
        let from = self.dtype(a);
        let (source, wanted) = (number(from), number(to));
        let bits = Class::of(to).bits();
        let a = self.register(a);
        let line = match (from, to) {
            (DType::Bool, DType::F32) => format!("selp.f32 \t{target}, 0f3F800000, 0f00000000, {a}"),
            (DType::Bool, DType::Bool) => format!("mov.pred \t{target}, {a}"),
            (DType::Bool, _) => format!("selp.{bits} \t{target}, 1, 0, {a}"),
            // A NaN is true.
            (DType::F32, DType::Bool) => format!("setp.neu.f32 \t{target}, {a}, 0f00000000"),
            (_, DType::Bool) => format!("setp.ne.{source} \t{target}, {a}, 0"),
            (DType::F16, _) => format!("cvt.f32.f16 \t{target}, {a}"),
            (DType::BF16, _) => {
                let zero = self.out.temporary(Class::Half);
                self.out.line(format!("mov.b16 \t{zero}, 0"));
                format!("mov.b32 \t{target}, {{{zero}, {a}}}")
            }
            (DType::F32, DType::F16 | DType::BF16) => format!("cvt.rn.{wanted}.f32 \t{target}, {a}"),
            (DType::F32, DType::I64 | DType::U64) => {
                // A NaN gives 0 in 32 bits only.
                let [nan, whole] = [Class::Predicate, Class::Double].map(|class| self.out.temporary(class));
                self.out.line(format!("setp.nan.f32 \t{nan}, {a}, {a}"));
                self.out.line(format!("cvt.rzi.{wanted}.f32 \t{whole}, {a}"));
                format!("selp.b64 \t{target}, 0, {whole}, {nan}")
            }
            (DType::F32, DType::I32 | DType::U32) => format!("cvt.rzi.{wanted}.f32 \t{target}, {a}"),
            (DType::F32, _) => format!("mov.f32 \t{target}, {a}"),
            (_, DType::F32) => format!("cvt.rn.f32.{source} \t{target}, {a}"),
            _ if from.size() == to.size() => format!("mov.{bits} \t{target}, {a}"),
            _ => format!("cvt.{wanted}.{source} \t{target}, {a}"),
        };
        self.out.line(line);
    }

    /// The n-th byte of a word, which is a float of 8 bits; two are widened to f16 at once.
    fn unpack(&mut self, target: &str, from: DType, (word, n): (ValueId, u32)) {
        self.floats_of_8_bits = true;
        let word = self.register(word);
        let [low, high, first, second] = [(); 4].map(|()| self.out.temporary(Class::Half));
        let both = self.out.temporary(Class::Word);
        self.out.line(format!("mov.b32 \t{{{low}, {high}}}, {word}"));
        let pair = if n < 2 { low } else { high };
        self.out.line(format!("cvt.rn.f16x2.{}x2 \t{both}, {pair}", number(from)));
        self.out.line(format!("mov.b32 \t{{{first}, {second}}}, {both}"));
        let half = if n.is_multiple_of(2) { first } else { second };
        self.out.line(format!("cvt.f32.f16 \t{target}, {half}"));
    }

    fn shuffle(&mut self, target: &str, a: ValueId, mask: u32) {
        let dtype = self.dtype(a);
        let a = self.register(a);
        if dtype.size() == 4 {
            return self.out.line(format!("shfl.sync.bfly.b32 \t{target}, {a}, {mask}, 31, -1"));
        }
        let [low, high, new_low, new_high] = [(); 4].map(|()| self.out.temporary(Class::Word));
        self.out.line(format!("mov.b64 \t{{{low}, {high}}}, {a}"));
        self.out.line(format!("shfl.sync.bfly.b32 \t{new_low}, {low}, {mask}, 31, -1"));
        self.out.line(format!("shfl.sync.bfly.b32 \t{new_high}, {high}, {mask}, 31, -1"));
        self.out.line(format!("mov.b64 \t{target}, {{{new_low}, {new_high}}}"));
    }
}
