//! Integers and bools in general registers.
//!
//! Invariant: what [`kiln_ir::semantics`] says of an i64 holds of the 64-bit register; results that may leave the
//! range of a narrower type are brought back by keeping the low bits.

use super::emit::{Emitter, imm8};
use super::machine::{Arg, Base, Inst, Place, Width, gpr};
use crate::Error;
use iced_x86::{Code, OpKind};
use kiln_ir::vector::ValueId;
use kiln_ir::{BinaryOp, Class, DType, UnaryOp};
use regalloc2::{Operand, VReg};

const Q: Width = Width::Q;

impl Emitter<'_> {
    /// `a op b` where the result takes the place of `a`.
    pub fn in_place(&mut self, code: Code, a: VReg, b: Arg) -> VReg {
        let def = self.general();
        self.ins(code, &[Arg::Tied { def, from: a, width: Q }, b]);
        def
    }

    pub fn sum(&mut self, a: VReg, b: VReg) -> VReg {
        let to = self.general();
        let place = Place { base: Base::Register(a), index: Some((b, 1)), displacement: 0, repeated: false };
        self.ins(Code::Lea_r64_m, &[Arg::Def(to, Q), Arg::Memory(place)]);
        to
    }

    /// `a + c`
    pub fn add_constant(&mut self, a: VReg, c: i64) -> VReg {
        if i8::try_from(c).is_ok() {
            return self.in_place(Code::Add_rm64_imm8, a, Arg::Immediate(c, OpKind::Immediate8to64));
        }
        if i32::try_from(c).is_ok() {
            return self.in_place(Code::Add_rm64_imm32, a, Arg::Immediate(c, OpKind::Immediate32to64));
        }
        let c = self.number(c);
        self.sum(a, c)
    }

    /// Sets the flags.
    pub fn compare(&mut self, a: VReg, b: Arg) {
        let code = if matches!(b, Arg::Immediate(..)) { Code::Cmp_rm64_imm32 } else { Code::Cmp_rm64_r64 };
        self.ins(code, &[Arg::Use(a, Q), b]);
    }

    /// A condition of the flags as a bool.
    pub fn flag(&mut self, set: Code) -> VReg {
        let (byte, to) = (self.general(), self.general());
        self.ins(set, &[Arg::Def(byte, Width::B)]);
        self.ins(Code::Movzx_r32_rm8, &[Arg::Def(to, Width::D), Arg::Use(byte, Width::B)]);
        to
    }

    /// `flags ? b : a`
    pub fn choose(&mut self, move_if: Code, a: VReg, b: VReg) -> VReg {
        self.in_place(move_if, a, Arg::Use(b, Q))
    }

    pub fn test(&mut self, a: VReg) {
        self.ins(Code::Test_rm64_r64, &[Arg::Use(a, Q), Arg::Use(a, Q)]);
    }

    /// Keeps the low bits that the type has.
    pub fn wrapped(&mut self, dtype: DType, a: VReg) -> VReg {
        let (code, to, from) = match dtype {
            DType::I8 => (Code::Movsx_r64_rm8, Q, Width::B),
            DType::U8 => (Code::Movzx_r32_rm8, Width::D, Width::B),
            DType::I16 => (Code::Movsx_r64_rm16, Q, Width::W),
            DType::U16 => (Code::Movzx_r32_rm16, Width::D, Width::W),
            DType::I32 => (Code::Movsxd_r64_rm32, Q, Width::D),
            DType::U32 => (Code::Mov_r32_rm32, Width::D, Width::D),
            _ => return a,
        };
        let result = self.general();
        self.ins(code, &[Arg::Def(result, to), Arg::Use(a, from)]);
        result
    }

    pub fn integer_unary(&mut self, dtype: DType, op: UnaryOp, a: VReg) -> Result<VReg, Error> {
        let negative = |e: &mut Self| {
            let def = e.general();
            e.ins(Code::Neg_rm64, &[Arg::Tied { def, from: a, width: Q }]);
            def
        };
        let result = match op {
            UnaryOp::Neg => negative(self),
            UnaryOp::Abs if dtype.class() == Class::Signed => {
                let other = negative(self);
                self.test(a);
                self.choose(Code::Cmovs_r64_rm64, a, other)
            }
            UnaryOp::Abs => return Ok(a),
            UnaryOp::Not if dtype == DType::Bool => {
                return Ok(self.in_place(Code::Xor_rm64_imm32, a, Arg::Immediate(1, OpKind::Immediate32to64)));
            }
            UnaryOp::Not => {
                let def = self.general();
                self.ins(Code::Not_rm64, &[Arg::Tied { def, from: a, width: Q }]);
                def
            }
            _ => return Err(self.unsupported(format!("`{}` of {dtype}", op.name()))),
        };
        Ok(self.wrapped(dtype, result))
    }

    /// The operation on scalars of the program.
    pub fn integer_values(&mut self, op: BinaryOp, left: ValueId, right: ValueId) -> Result<VReg, Error> {
        let dtype = self.ty(left).dtype;
        let constant = self.constant_of(right).map(|c| c.bits as i64);
        // What is commutative has its constant on the right.
        let (left, right, constant) = match (self.constant_of(left), constant, op) {
            (Some(c), None, BinaryOp::Add | BinaryOp::Mul | BinaryOp::And | BinaryOp::Or | BinaryOp::Xor) => {
                (right, left, Some(c.bits as i64))
            }
            _ => (left, right, constant),
        };
        let a = self.integer(left)?;
        if let Some(c) = constant {
            let bits = i64::from(dtype.bits());
            let power = c > 0 && c.count_ones() == 1;
            let by = |n: i64| Arg::Immediate(n, OpKind::Immediate8);
            let unsigned = dtype.class() != Class::Signed;
            let simple = match op {
                BinaryOp::Mul if dtype == DType::Bool => None,
                BinaryOp::Mul if power && c > 1 => {
                    Some(self.in_place(Code::Shl_rm64_imm8, a, by(i64::from(c.trailing_zeros()))))
                }
                BinaryOp::Mul if i32::try_from(c).is_ok() => {
                    let to = self.general();
                    let c = Arg::Immediate(c, OpKind::Immediate32to64);
                    self.ins(Code::Imul_r64_rm64_imm32, &[Arg::Def(to, Q), Arg::Use(a, Q), c]);
                    Some(to)
                }
                BinaryOp::Shl if (0..bits).contains(&c) => Some(self.in_place(Code::Shl_rm64_imm8, a, by(c))),
                BinaryOp::Shr if (0..bits).contains(&c) => {
                    let code = if unsigned { Code::Shr_rm64_imm8 } else { Code::Sar_rm64_imm8 };
                    Some(self.in_place(code, a, by(c)))
                }
                BinaryOp::Div if power && unsigned => {
                    Some(self.in_place(Code::Shr_rm64_imm8, a, by(i64::from(c.trailing_zeros()))))
                }
                BinaryOp::Div if c > 1 && dtype != DType::U64 => Some(self.divided(dtype, a, right)?.0),
                BinaryOp::Rem if c > 1 && dtype != DType::U64 => Some(self.divided(dtype, a, right)?.1),
                BinaryOp::Add if i32::try_from(c).is_ok() && dtype != DType::Bool => {
                    let to = self.general();
                    let displacement = c as i32;
                    let place = Place { base: Base::Register(a), index: None, displacement, repeated: false };
                    self.ins(Code::Lea_r64_m, &[Arg::Def(to, Q), Arg::Memory(place)]);
                    Some(to)
                }
                _ => None,
            };
            if let Some(result) = simple {
                return Ok(self.wrapped(dtype, result));
            }
        }
        let b = self.integer_arg(right)?;
        if op.is_comparison() {
            self.compare(a, b);
            let unsigned = dtype == DType::U64;
            let code = match op {
                BinaryOp::Eq => Code::Sete_rm8,
                BinaryOp::Ne => Code::Setne_rm8,
                BinaryOp::Lt if unsigned => Code::Setb_rm8,
                BinaryOp::Le if unsigned => Code::Setbe_rm8,
                BinaryOp::Gt if unsigned => Code::Seta_rm8,
                BinaryOp::Ge if unsigned => Code::Setae_rm8,
                BinaryOp::Lt => Code::Setl_rm8,
                BinaryOp::Le => Code::Setle_rm8,
                BinaryOp::Gt => Code::Setg_rm8,
                _ => Code::Setge_rm8,
            };
            return Ok(self.flag(code));
        }
        let b = match b {
            Arg::Use(b, _) => b,
            _ => self.integer(right)?,
        };
        self.integer_binary(dtype, op, a, b)
    }

    /// The operation, comparisons excepted.
    pub fn integer_binary(&mut self, dtype: DType, op: BinaryOp, a: VReg, b: VReg) -> Result<VReg, Error> {
        use BinaryOp::*;
        let unsigned = dtype.class() != Class::Signed;
        let other = Arg::Use(b, Q);
        let result = match op {
            And => return Ok(self.in_place(Code::And_r64_rm64, a, other)),
            Or => return Ok(self.in_place(Code::Or_r64_rm64, a, other)),
            Xor => return Ok(self.in_place(Code::Xor_r64_rm64, a, other)),
            Add | Max if dtype == DType::Bool => return Ok(self.in_place(Code::Or_r64_rm64, a, other)),
            Mul | Min if dtype == DType::Bool => return Ok(self.in_place(Code::And_r64_rm64, a, other)),
            Add => self.sum(a, b),
            Sub => self.in_place(Code::Sub_r64_rm64, a, other),
            Mul => self.in_place(Code::Imul_r64_rm64, a, other),
            Min | Max => {
                self.compare(b, Arg::Use(a, Q));
                let code = match (op == Min, dtype == DType::U64) {
                    (true, true) => Code::Cmovb_r64_rm64,
                    (true, false) => Code::Cmovl_r64_rm64,
                    (false, true) => Code::Cmova_r64_rm64,
                    (false, false) => Code::Cmovg_r64_rm64,
                };
                return Ok(self.choose(code, a, b));
            }
            Shl => {
                let shifted = self.shift(Code::VEX_Shlx_r64_rm64_r64, a, b);
                self.zero_if_out(shifted, b, i64::from(dtype.bits()))
            }
            Shr if unsigned => {
                let shifted = self.shift(Code::VEX_Shrx_r64_rm64_r64, a, b);
                self.zero_if_out(shifted, b, i64::from(dtype.bits()))
            }
            Shr => {
                let most = self.number(63);
                self.compare(b, Arg::Immediate(63, OpKind::Immediate32to64));
                let count = self.choose(Code::Cmova_r64_rm64, b, most);
                self.shift(Code::VEX_Sarx_r64_rm64_r64, a, count)
            }
            Div | Rem | Mod => self.division(dtype, op, a, b),
            Dot4 => {
                let (x, y) = (self.moved_to_vector(a)?, self.moved_to_vector(b)?);
                self.dot_of_scalars(x, y)?
            }
            Pow | Pair | Dot2 | Eq | Ne | Lt | Le | Gt | Ge => {
                return Err(self.unsupported(format!("`{}` of {dtype}", op.name())));
            }
        };
        Ok(self.wrapped(dtype, result))
    }

    fn shift(&mut self, code: Code, a: VReg, count: VReg) -> VReg {
        let to = self.general();
        self.ins(code, &[Arg::Def(to, Q), Arg::Use(a, Q), Arg::Use(count, Q)]);
        to
    }

    /// 0 where the count, which is unsigned, is at least the limit.
    fn zero_if_out(&mut self, a: VReg, count: VReg, limit: i64) -> VReg {
        let zero = self.number(0);
        self.compare(count, Arg::Immediate(limit, OpKind::Immediate32to64));
        self.choose(Code::Cmovae_r64_rm64, a, zero)
    }

    /// Quotient and remainder by a constant greater than 1 (of a type other than u64).
    fn divided(&mut self, dtype: DType, a: VReg, by: ValueId) -> Result<(VReg, VReg), Error> {
        let by = self.integer(by)?;
        Ok(self.divide(dtype == DType::U64, a, by))
    }

    fn divide(&mut self, unsigned: bool, a: VReg, by: VReg) -> (VReg, VReg) {
        let high = if unsigned {
            self.number(0)
        } else {
            // As cqo.
            let high = self.general();
            let mut inst = Inst::new(Code::Cqo, &[]);
            inst.fixed = vec![Operand::reg_fixed_use(a, gpr(0)), Operand::reg_fixed_def(high, gpr(2))];
            self.push(inst);
            high
        };
        let (quotient, rest) = (self.general(), self.general());
        let code = if unsigned { Code::Div_rm64 } else { Code::Idiv_rm64 };
        let mut inst = Inst::new(code, &[Arg::Use(by, Q)]);
        inst.fixed = vec![
            Operand::reg_fixed_use(a, gpr(0)),
            Operand::reg_fixed_use(high, gpr(2)),
            Operand::reg_fixed_def(quotient, gpr(0)),
            Operand::reg_fixed_def(rest, gpr(2)),
        ];
        self.push(inst);
        (quotient, rest)
    }

    /// With the results of the table for 0 and -1: the processor is only asked to divide by other numbers.
    fn division(&mut self, dtype: DType, op: BinaryOp, a: VReg, b: VReg) -> VReg {
        let unsigned = dtype == DType::U64;
        let (one, zero) = (self.number(1), self.number(0));
        self.test(b);
        let mut safe = self.choose(Code::Cmove_r64_rm64, b, one);
        let minus_one = Arg::Immediate(-1, OpKind::Immediate32to64);
        if !unsigned {
            self.compare(b, minus_one);
            safe = self.choose(Code::Cmove_r64_rm64, safe, one);
        }
        let (quotient, rest) = self.divide(unsigned, a, safe);
        if op == BinaryOp::Div {
            let mut result = quotient;
            if !unsigned {
                let negative = self.general();
                self.ins(Code::Neg_rm64, &[Arg::Tied { def: negative, from: a, width: Q }]);
                self.compare(b, minus_one);
                result = self.choose(Code::Cmove_r64_rm64, result, negative);
            }
            self.test(b);
            return self.choose(Code::Cmove_r64_rm64, result, zero);
        }
        // Divided by 1, nothing is left.
        if op == BinaryOp::Rem || dtype.class() != Class::Signed {
            return rest;
        }
        let moved = self.sum(rest, b);
        let signs = self.in_place(Code::Xor_r64_rm64, rest, Arg::Use(b, Q));
        self.test(signs);
        let result = self.choose(Code::Cmovs_r64_rm64, rest, moved);
        self.test(rest);
        self.choose(Code::Cmove_r64_rm64, result, rest)
    }

    /// The low bit of a register as a bool.
    pub fn low_bit(&mut self, a: VReg) -> VReg {
        self.in_place(Code::And_rm64_imm32, a, Arg::Immediate(1, OpKind::Immediate32to64))
    }

    /// 0 for 0 and -1 for 1.
    pub fn all_bits(&mut self, a: VReg) -> VReg {
        let def = self.general();
        self.ins(Code::Neg_rm64, &[Arg::Tied { def, from: a, width: Q }]);
        def
    }

    pub fn shifted(&mut self, code: Code, a: VReg, by: u8) -> VReg {
        self.in_place(code, a, imm8(by))
    }
}
