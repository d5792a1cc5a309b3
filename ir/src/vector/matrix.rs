//! Matrix registers: eight of them, of rows of 32-bit elements, and what multiplies them.
//!
//! Invariant: they are no values but the state of a run of the kernel. They have no shape before the first
//! [`Matrix::Shape`], each of which makes all elements 0; a program that verifies only uses shapes that are surely set.

use super::Address;
use crate::scalar::BinaryOp;
use crate::semantics;

/// How many registers there are.
pub const REGISTERS: usize = 8;
/// Most rows of a register.
pub const MAX_ROWS: u8 = 16;
/// Most bytes of a row.
pub const MAX_ROW_BYTES: u8 = 64;

/// The shape of a register: rows and bytes of a row, a multiple of 4. Both are 0 where it is not used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Rows, up to [`MAX_ROWS`].
    pub rows: u8,
    /// Bytes of a row, up to [`MAX_ROW_BYTES`].
    pub row_bytes: u8,
}

/// The shapes of all registers.
pub type Shapes = [Shape; REGISTERS];

/// How the elements of two registers are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Product {
    /// Pairs of bf16, onto f32: the products of the low halves along a row are summed, then those of the high halves, each step
    /// with one rounding; their sum goes onto the element. Subnormal numbers count as 0, and come out as 0.
    Pairs,
    /// Four unsigned bytes on the left by four signed ones on the right, onto i32.
    UnsignedSigned,
    /// Four signed bytes on the left by four unsigned ones on the right, onto i32.
    SignedUnsigned,
}

impl Product {
    /// All of them.
    pub const ALL: [Product; 3] = [Product::Pairs, Product::UnsignedSigned, Product::SignedUnsigned];

    /// The word of the text form.
    pub fn name(self) -> &'static str {
        match self {
            Product::Pairs => "pairs",
            Product::UnsignedSigned => "u8s8",
            Product::SignedUnsigned => "s8u8",
        }
    }

    /// The product of a name.
    pub fn from_name(name: &str) -> Option<Product> {
        Product::ALL.into_iter().find(|product| product.name() == name)
    }

    /// What multiplies two elements, given in the order of [`Product::ordered`].
    pub fn operation(self) -> BinaryOp {
        match self {
            Product::Pairs => BinaryOp::Dot2,
            Product::UnsignedSigned | Product::SignedUnsigned => BinaryOp::Dot4,
        }
    }

    /// An element of the left and one of the right operand in the order in which the operation takes them.
    pub fn ordered<T>(self, left: T, right: T) -> (T, T) {
        match self {
            Product::Pairs | Product::UnsignedSigned => (left, right),
            Product::SignedUnsigned => (right, left),
        }
    }
}

/// A statement about the registers, which go by number.
#[derive(Clone, Debug, PartialEq)]
pub enum Matrix {
    /// Gives all of them their shapes.
    Shape(Box<Shapes>),
    /// All elements 0.
    Zero(u8),
    /// Rows from memory, `stride` elements of the buffer apart.
    Load {
        /// The register.
        to: u8,
        /// The first element of the first row.
        from: Address,
        /// From row to row.
        stride: i64,
    },
    /// Rows to memory, `stride` elements of the buffer apart.
    Store {
        /// The register.
        from: u8,
        /// The first element of the first row.
        to: Address,
        /// From row to row.
        stride: i64,
    },
    /// `sum[m, n] += left[m, k] * right[k, n]`.
    Multiply {
        /// How two elements are multiplied.
        product: Product,
        /// The sums.
        sum: u8,
        /// The left operand.
        left: u8,
        /// The right operand.
        right: u8,
    },
}

impl Matrix {
    /// The place in memory that the statement reads or writes.
    pub fn address(&self) -> Option<&Address> {
        match self {
            Matrix::Load { from: address, .. } | Matrix::Store { to: address, .. } => Some(address),
            Matrix::Shape(_) | Matrix::Zero(_) | Matrix::Multiply { .. } => None,
        }
    }
}

/// Whether a product of these shapes exists.
pub fn multiplies(sum: Shape, left: Shape, right: Shape) -> bool {
    sum.rows > 0
        && right.rows > 0
        && sum.row_bytes > 0
        && left.rows == sum.rows
        && right.row_bytes == sum.row_bytes
        && left.row_bytes / 4 == right.rows
}

/// The registers' elements.
#[derive(Clone, Debug)]
pub struct Registers {
    shapes: Shapes,
    elements: Vec<u32>,
}

const ROW: usize = MAX_ROW_BYTES as usize / 4;
const ELEMENTS: usize = MAX_ROWS as usize * ROW;

impl Default for Registers {
    fn default() -> Registers {
        Registers { shapes: Shapes::default(), elements: vec![0; REGISTERS * ELEMENTS] }
    }
}

/// Subnormal numbers as 0 of the same sign.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

impl Registers {
    /// See [`Matrix::Shape`].
    pub fn shape(&mut self, shapes: &Shapes) {
        self.shapes = *shapes;
        self.elements.fill(0);
    }

    /// The shape of a register; that of an unused one where there is no such register.
    pub fn shape_of(&self, register: u8) -> Shape {
        self.shapes.get(usize::from(register)).copied().unwrap_or_default()
    }

    /// A row's elements.
    pub fn row(&mut self, register: u8, row: usize) -> &mut [u32] {
        let columns = usize::from(self.shape_of(register).row_bytes / 4).min(ROW);
        let start = usize::from(register) * ELEMENTS + row * ROW;
        self.elements.get_mut(start..start + columns).unwrap_or_default()
    }

    /// See [`Matrix::Zero`].
    pub fn zero(&mut self, register: u8) {
        let start = usize::from(register) * ELEMENTS;
        if let Some(all) = self.elements.get_mut(start..start + ELEMENTS) {
            all.fill(0);
        }
    }

    fn at(&self, register: u8, row: usize, column: usize) -> u32 {
        self.elements.get(usize::from(register) * ELEMENTS + row * ROW + column).copied().unwrap_or(0)
    }

    /// See [`Matrix::Multiply`].
    pub fn multiply(&mut self, product: Product, sum: u8, left: u8, right: u8) {
        let (shape, depth) = (self.shape_of(sum), usize::from(self.shape_of(right).rows));
        for row in 0..usize::from(shape.rows) {
            for column in 0..usize::from(shape.row_bytes / 4) {
                let steps = (0..depth).map(|k| (self.at(left, row, k), self.at(right, k, column)));
                let before = self.at(sum, row, column);
                let after = match product {
                    Product::Pairs => pairs(f32::from_bits(before), steps).to_bits(),
                    Product::UnsignedSigned | Product::SignedUnsigned => steps.fold(before, |sum, (l, r)| {
                        let (a, b) = product.ordered(l, r);
                        sum.wrapping_add(semantics::dot4(i64::from(a as i32), i64::from(b as i32)) as u32)
                    }),
                };
                if let Some(element) = self.row(sum, row).get_mut(column) {
                    *element = after;
                }
            }
        }
    }
}

/// The sum of an element with the products of pairs, as Intel's SDM has it for TDPBF16PS.
fn pairs(sum: f32, steps: impl Iterator<Item = (u32, u32)>) -> f32 {
    let low = |x: u32| flushed(f32::from_bits(x << 16));
    let high = |x: u32| flushed(f32::from_bits(x & 0xffff_0000));
    let (mut even, mut odd) = (0.0f32, 0.0f32);
    for (a, b) in steps {
        even = flushed(low(a).mul_add(low(b), even));
        odd = flushed(high(a).mul_add(high(b), odd));
    }
    flushed(flushed(sum) + flushed(even + odd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnormal_numbers_are_nothing() {
        let tiny = f32::from_bits(0x0001_0000);
        assert!(tiny.is_subnormal());
        let one = f32::to_bits(1.0) >> 16;
        assert_eq!(pairs(0.0, [(tiny.to_bits() >> 16, one)].into_iter()), 0.0);
        assert_eq!(pairs(tiny, std::iter::empty()), 0.0);
        assert_eq!(pairs(0.5, [(one << 16 | one, one << 16 | one)].into_iter()), 2.5);
    }

    #[test]
    fn which_operand_has_signs_is_told() {
        let shape = |rows, row_bytes| Shape { rows, row_bytes };
        let mut registers = Registers::default();
        registers.shape(&[shape(1, 4); REGISTERS]);
        registers.row(0, 0)[0] = 0xffff_ffff;
        registers.row(1, 0)[0] = 0xffff_ffff;
        registers.multiply(Product::UnsignedSigned, 2, 0, 1);
        registers.row(1, 0)[0] = 0x0000_0001;
        registers.multiply(Product::SignedUnsigned, 3, 0, 1);
        assert_eq!(registers.row(2, 0)[0] as i32, -4 * 255);
        assert_eq!(registers.row(3, 0)[0] as i32, -1);
    }
}
