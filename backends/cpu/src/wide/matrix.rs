//! Matrix registers: AMX.
//!
//! Invariant: the registers are given back before the kernel returns, so that whoever called it is not slowed by saving them.

use super::emit::Emitter;
use super::machine::{Arg, Base, Place, Width};
use crate::Error;
use iced_x86::Code;
use kiln_ir::vector::{Address, Matrix, Product, Shapes};

/// What LDTILECFG reads (Intel SDM, volume 1, chapter 18): palette 1, bytes of a row at 16, rows at 48.
fn configuration(shapes: &Shapes) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    for (n, shape) in shapes.iter().enumerate() {
        bytes[16 + 2 * n] = shape.row_bytes;
        bytes[48 + n] = shape.rows;
    }
    bytes
}

impl Emitter<'_> {
    pub fn matrix(&mut self, matrix: &Matrix) -> Result<(), Error> {
        if !self.level.has_matrices() {
            return Err(self.unsupported("there are no matrix registers"));
        }
        match matrix {
            Matrix::Shape(shapes) => {
                let base = self.pooled(&configuration(shapes));
                let place = Place { base, index: None, displacement: 0, repeated: false };
                self.ins(Code::VEX_Ldtilecfg_m512, &[Arg::Memory(place)]);
            }
            Matrix::Zero(register) => self.ins(Code::VEX_Tilezero_tmm, &[Arg::Matrix(*register)]),
            Matrix::Load { to, from, stride } => {
                let rows = self.rows(from, *stride)?;
                self.ins(Code::VEX_Tileloadd_tmm_sibmem, &[Arg::Matrix(*to), rows]);
            }
            Matrix::Store { from, to, stride } => {
                self.settle()?;
                let rows = self.rows(to, *stride)?;
                self.ins(Code::VEX_Tilestored_sibmem_tmm, &[rows, Arg::Matrix(*from)]);
            }
            Matrix::Multiply { product, sum, left, right } => {
                let code = match product {
                    Product::Pairs => Code::VEX_Tdpbf16ps_tmm_tmm_tmm,
                    Product::UnsignedSigned => Code::VEX_Tdpbusd_tmm_tmm_tmm,
                    Product::SignedUnsigned => Code::VEX_Tdpbsud_tmm_tmm_tmm,
                };
                self.ins(code, &[Arg::Matrix(*sum), Arg::Matrix(*left), Arg::Matrix(*right)]);
            }
        }
        Ok(())
    }

    /// Rows in memory: the index register holds how far apart they are, in bytes.
    fn rows(&mut self, first: &Address, stride: i64) -> Result<Arg, Error> {
        let size = self.program.element(first.buffer).size() as i64;
        let mut place = self.place(first, 0)?;
        if place.index.is_some() {
            let base = self.general();
            self.ins(Code::Lea_r64_m, &[Arg::Def(base, Width::Q), Arg::Memory(place)]);
            place = Place { base: Base::Register(base), index: None, displacement: 0, repeated: false };
        }
        let bytes = stride.checked_mul(size).ok_or_else(|| self.unsupported("the rows are too far apart"))?;
        let stride = match self.strides.get(&bytes) {
            Some(&register) => register,
            None => {
                let register = self.number(bytes);
                self.strides.insert(bytes, register);
                register
            }
        };
        Ok(Arg::Memory(Place { index: Some((stride, 1)), ..place }))
    }
}
