//! `window_tiles` and `tile_product`: a convolution of 3×3 windows as 16 products for each 2×2 of its results, in place of 36
//! (Winograd's F(2×2, 3×3); Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015).
//!
//! Along one axis, results `y0, y1` of four numbers `d` and three weights `g` are sums of four products of a number and a weight:
//! `(d0-d2)·g0`, `(d1+d2)·(g0+g1+g2)/2`, `(d2-d1)·(g0-g1+g2)/2` and `(d3-d1)·g2`; `y0` is the sum of the first three, `y1` the second less the
//! third and more the fourth. Along two axes each step is done along one and then along the other.

use super::{Attributes, Meaning, OpError, Operator, operands};
use crate::dtype::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::{Nest, axes, fold_axis};
use crate::scalar::{BinaryOp, Code, Constant, Scalar, Source};

/// Along one axis, a product's number is `d[p] + sign * d[q]`; here `q` and the sign. `p` is the product itself.
pub const SECOND: [(usize, bool); 4] = [(2, false), (2, true), (1, false), (1, false)];

/// What the four products count in the first and in the second result.
pub const SUMS: [[i64; 4]; 2] = [[1, 1, 1, 0], [0, 1, -1, 1]];

/// The weight of each of the four products, of three weights.
pub fn weights_of_products([a, b, c]: [f64; 3]) -> [f64; 4] {
    [a, (a + b + c) / 2.0, (a - b + c) / 2.0, c]
}

/// `out[n, k, y, x, c] = d[k/4][k%4]` of the 4×4 window of `x[n, C, 2y.., 2x..]`, transformed along both axes, for `x[N, C, 2h+2, 2w+2]` of
/// f32: `[N, 16, h, w, C]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowTiles {}

/// `out[n, o, y, x] = sum over k, c of s * tiles[n, k, y/2, x/2, c] * w[k, o, c]`, for `tiles[N, 16, h, w, C]` and `w[16, O, C]` of f32, where
/// `s` is what product `k` counts in the result at `y%2, x%2`. What counts nothing is left out, whatever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileProduct {
    /// Height and width of the result: twice the tiles, or one less.
    pub extents: Vec<usize>,
}

impl WindowTiles {
    pub(super) fn from_attributes(_: &Attributes) -> Result<WindowTiles, OpError> {
        Ok(WindowTiles {})
    }
}

impl TileProduct {
    pub(super) fn from_attributes(a: &Attributes) -> Result<TileProduct, OpError> {
        Ok(TileProduct { extents: a.sizes("extents")? })
    }
}

/// The remainder and the quotient of a product's number by 4: which it is along either axis.
fn along(k: &Expr) -> [Expr; 2] {
    let four = Expr::from(4i64);
    [k.floor_div(&four), k.modulo(&four)]
}

/// The table's entry at an index that is not constant, as an expression within the entries' bounds.
fn entry(table: [i64; 4], k: &Expr) -> Expr {
    let (two, one) = (Expr::from(2i64), Expr::from(1i64));
    let [high, low] = [k.floor_div(&two), k.modulo(&two)];
    let is = |bit: &Expr, set: bool| if set { bit.clone() } else { one.sub(bit) };
    (0..4).fold(Expr::default(), |sum, n| {
        let here = is(&high, n & 2 != 0).mul(&is(&low, n & 1 != 0));
        sum.add(&here.scale(table[n]))
    })
}

impl Operator for WindowTiles {
    fn name(&self) -> &'static str {
        "window_tiles"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [x] = operands(inputs)?;
        let [n, c, height, width] = x.dims.as_slice() else {
            return Err(OpError::new("wants pictures of four axes"));
        };
        let tiles = |d: &Expr| d.as_const().filter(|d| *d >= 4 && d % 2 == 0).map(|d| Expr::from((d - 2) / 2));
        let (Some(height), Some(width), DType::F32) = (tiles(height), tiles(width), x.dtype) else {
            return Err(OpError::new("wants f32 with an even height and width of 4 or more"));
        };
        Ok(vec![TensorType::new(DType::F32, vec![n.clone(), Expr::from(16i64), height, width, c.clone()])])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let at = axes(out.rank());
        let parts = along(&at[1]);
        let second = parts.clone().map(|k| entry(SECOND.map(|(q, _)| q as i64), &k));
        let mut body = Code::new();
        let sign = |body: &mut Code, k: &Expr| {
            let sign = body.index(entry(SECOND.map(|(_, plus)| if plus { 1 } else { -1 }), k));
            body.cast(DType::F32, sign)
        };
        let signs = [sign(&mut body, &parts[0])?, sign(&mut body, &parts[1])?];
        let mut rows = Vec::new();
        for row in [&parts[0], &second[0]] {
            let load = |body: &mut Code, column: &Expr| {
                let place = |tile: &Expr, within: &Expr| tile.scale(2).add(within);
                let index = vec![at[0].clone(), at[4].clone(), place(&at[2], row), place(&at[3], column)];
                body.load_at(Source::Input(0), index, DType::F32)
            };
            let (first, second) = (load(&mut body, &parts[1]), load(&mut body, &second[1]));
            let second = body.binary(BinaryOp::Mul, signs[1], second)?;
            rows.push(body.binary(BinaryOp::Add, first, second)?);
        }
        let second = body.binary(BinaryOp::Mul, signs[0], rows[1])?;
        let result = body.binary(BinaryOp::Add, rows[0], second)?;
        body.set_result(result);
        Ok(Meaning::Nests(vec![Nest::map(out.dims, body)]))
    }
}

impl Operator for TileProduct {
    fn name(&self) -> &'static str {
        "tile_product"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("extents", self.extents.as_slice())
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [tiles, w] = operands(inputs)?;
        let ([n, products, height, width, c], [own, o, channels]) = (tiles.dims.as_slice(), w.dims.as_slice()) else {
            return Err(OpError::new("wants tiles of five axes and weights of three"));
        };
        let sixteen = [products, own].into_iter().all(|d| d.as_const() == Some(16));
        if !sixteen || c != channels || tiles.dtype != DType::F32 || w.dtype != DType::F32 {
            return Err(OpError::new("wants f32, 16 products and the same channels in both"));
        }
        let fits = |extent: usize, tiles: &Expr| tiles.as_size() == Some(extent.div_ceil(2)) && extent > 0;
        let [h, w] = *self.extents.as_slice() else { return Err(OpError::new("wants two extents")) };
        if !fits(h, height) || !fits(w, width) {
            return Err(OpError::new(format!("{height}x{width} tiles do not make {h}x{w}")));
        }
        Ok(vec![TensorType::new(DType::F32, vec![n.clone(), o.clone(), Expr::from(h), Expr::from(w)])])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let channels = inputs[1].dims[2].clone();
        let at = axes(out.rank());
        let (k, c, two) = (Expr::from(fold_axis(0)), Expr::from(fold_axis(1)), Expr::from(2i64));
        let counts = |at: &Expr, k: &Expr| {
            let (second, one) = (at.modulo(&two), Expr::from(1i64));
            one.sub(&second).mul(&entry(SUMS[0], k)).add(&second.mul(&entry(SUMS[1], k)))
        };
        let [row, column] = along(&k);
        let mut body = Code::new();
        let tile = vec![at[0].clone(), k.clone(), at[2].floor_div(&two), at[3].floor_div(&two), c.clone()];
        let tile = body.load_at(Source::Input(0), tile, DType::F32);
        let weight = body.load_at(Source::Input(1), vec![k, at[1].clone(), c], DType::F32);
        let sign = body.index(counts(&at[2], &row).mul(&counts(&at[3], &column)));
        let sign = body.cast(DType::F32, sign)?;
        let none = body.constant(Constant::float(DType::F32, 0.0));
        let product = body.binary(BinaryOp::Mul, tile, weight)?;
        let product = body.binary(BinaryOp::Mul, sign, product)?;
        let nothing = body.binary(BinaryOp::Eq, sign, none)?;
        let result = body.push(Scalar::Select(nothing, none, product))?;
        body.set_result(result);
        let folds = vec![Expr::from(16i64), channels];
        Ok(Meaning::Nests(vec![Nest::fold(out.dims, folds, BinaryOp::Add, body)]))
    }
}
