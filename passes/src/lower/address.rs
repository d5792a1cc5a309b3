//! Index expressions as i64 code.
//!
//! Invariant: every partial sum and product is computed once, in the outermost region where its symbols are known;
//! constants are never added in code where an address takes them as its offset.

use super::LowerError;
use super::tiles::Lowering;
use kiln_ir::DType;
use kiln_ir::expr::{Atom, Expr, Ranges, Symbol};
use kiln_ir::scalar::{BinaryOp, Less};
use kiln_ir::tile;
use kiln_ir::vector::{Address, Op, ValueId, VectorType};

/// What is known of a condition.
pub(super) enum Condition {
    Always,
    Never,
    /// Depends on the lane.
    ByLane,
    /// `expr < 0`.
    Negative(Expr),
}

/// The symbol that counts the lanes of a vector. No name in a program can be this one.
pub(super) fn lane() -> Symbol {
    Symbol::numbered("%lane", 0)
}

/// The symbol that stands for a value. No name in a program can be this one.
fn symbol_of(value: ValueId) -> Symbol {
    Symbol::numbered("%", value.index())
}

impl Lowering<'_> {
    /// The expression at a position of a tile: axes become numbers, but `lanes` of them along an axis run with the
    /// symbol [`lane`]; `gathered` are the values that `v0`, `v1` stand for.
    pub(super) fn placed(
        &mut self,
        e: &Expr,
        coords: &[usize],
        lanes: Option<(usize, u32)>,
        gathered: &[ValueId],
    ) -> Expr {
        for &value in gathered {
            self.symbols.insert(symbol_of(value), value);
        }
        let placed = e.substitute(&|s| {
            let name = s.name();
            if tile::is_reserved(s) {
                let k: usize = name.get(1..)?.parse().ok()?;
                if name.starts_with('v') {
                    return gathered.get(k).map(|&v| Expr::from(symbol_of(v)));
                }
                let at = Expr::from(*coords.get(k)?);
                return Some(match lanes {
                    Some((axis, _)) if axis == k => at.add(&Expr::from(lane())),
                    _ => at,
                });
            }
            self.fixed.get(s).cloned()
        });
        self.with_lanes(lanes, |ranges| placed.simplify(ranges))
    }

    /// Calls `f` with the bounds of all symbols, [`lane`] among them.
    fn with_lanes<T>(&mut self, lanes: Option<(usize, u32)>, f: impl FnOnce(&Ranges) -> T) -> T {
        let Some((_, n)) = lanes else { return f(&self.ranges) };
        self.ranges.insert(lane(), (0, i64::from(n) - 1));
        let result = f(&self.ranges);
        self.ranges.remove(&lane());
        result
    }

    /// The bounds of a placed expression.
    pub(super) fn bounds(&mut self, e: &Expr, lanes: Option<(usize, u32)>) -> (i64, i64) {
        self.with_lanes(lanes, |ranges| e.bounds(ranges))
    }

    /// What can be said of a condition at a position (as for [`Lowering::placed`]).
    pub(super) fn condition(&mut self, less: &Less, coords: &[usize], lanes: Option<(usize, u32)>) -> Condition {
        let difference = self.placed(&less.left.sub(&less.right), coords, lanes, &[]);
        match self.bounds(&difference, lanes) {
            (_, hi) if hi < 0 => Condition::Always,
            (lo, _) if lo >= 0 => Condition::Never,
            _ if difference.mentions(&lane()) => Condition::ByLane,
            _ => Condition::Negative(difference),
        }
    }

    /// A bool that says whether all conditions at a position hold. `Ok(None)`: they always do; `Err`: never do, or
    /// it depends on the lane.
    pub(super) fn mask(
        &mut self,
        mask: &[Less],
        coords: &[usize],
        lanes: Option<(usize, u32)>,
    ) -> Result<Result<Option<ValueId>, Condition>, LowerError> {
        let mut all: Option<ValueId> = None;
        for less in mask {
            match self.condition(less, coords, lanes) {
                Condition::Always => {}
                Condition::Negative(e) => {
                    let left = self.index(&e)?;
                    let right = self.builder.i64(e.constant().saturating_neg());
                    let left = match left {
                        Some(left) => left,
                        None => self.builder.i64(0),
                    };
                    let holds = self.builder.i64_op(BinaryOp::Lt, left, right);
                    all = Some(match all {
                        Some(before) => self
                            .builder
                            .hoisted(VectorType::scalar(DType::Bool), Op::Binary(BinaryOp::And, before, holds)),
                        None => holds,
                    });
                }
                no @ (Condition::Never | Condition::ByLane) => return Ok(Err(no)),
            }
        }
        Ok(Ok(all))
    }

    /// The address of a placed expression without the symbol [`lane`].
    pub(super) fn address(&mut self, buffer: usize, e: &Expr) -> Result<Address, LowerError> {
        Ok(Address { buffer, index: self.index(e)?, offset: e.constant() })
    }

    /// The value of a placed expression.
    pub(super) fn expr(&mut self, e: &Expr) -> Result<ValueId, LowerError> {
        let index = self.index(e)?;
        Ok(match (index, e.constant()) {
            (Some(index), 0) => index,
            (None, c) => self.builder.i64(c),
            (Some(index), c) => {
                let c = self.builder.i64(c);
                self.builder.i64_op(BinaryOp::Add, index, c)
            }
        })
    }

    /// The value of an expression of the program outside of tiles.
    pub(super) fn outer(&mut self, e: &Expr) -> Result<ValueId, LowerError> {
        let e = self.placed(e, &[], None, &[]);
        self.expr(&e)
    }

    /// The expression without its constant; nothing where that is all there is.
    fn index(&mut self, e: &Expr) -> Result<Option<ValueId>, LowerError> {
        let mut products = Vec::new();
        for (atoms, coefficient) in e.terms() {
            let mut values = atoms.iter().map(|a| self.atom(a)).collect::<Result<Vec<_>, _>>()?;
            values.sort_by_key(|&v| self.builder.depth_of(v));
            let mut product = None;
            for v in values {
                product = Some(match product {
                    Some(p) => self.builder.i64_op(BinaryOp::Mul, p, v),
                    None => v,
                });
            }
            let Some(product) = product else { continue };
            products.push((self.builder.depth_of(product), product, coefficient));
        }
        // Outer terms first, so that inner loops add as little as possible; those taken away last at each depth.
        products.sort_by_key(|&(depth, _, coefficient)| (depth, coefficient < 0));
        let mut sum: Option<ValueId> = None;
        for (_, product, coefficient) in products {
            let subtract = coefficient < 0 && sum.is_some();
            let factor = if subtract { coefficient.saturating_neg() } else { coefficient };
            let scaled = if factor == 1 {
                product
            } else {
                let factor = self.builder.i64(factor);
                self.builder.i64_op(BinaryOp::Mul, product, factor)
            };
            sum = Some(match sum {
                Some(s) => self.builder.i64_op(if subtract { BinaryOp::Sub } else { BinaryOp::Add }, s, scaled),
                None => scaled,
            });
        }
        Ok(sum)
    }

    fn atom(&mut self, atom: &Atom) -> Result<ValueId, LowerError> {
        let (op, a, b) = match atom {
            Atom::Symbol(s) => return self.symbol(s),
            Atom::FloorDiv(a, b) => (BinaryOp::Div, a, b),
            Atom::Mod(a, b) => (BinaryOp::Mod, a, b),
            Atom::Min(a, b) => (BinaryOp::Min, a, b),
            Atom::Max(a, b) => (BinaryOp::Max, a, b),
        };
        let not_negative = a.bounds(&self.ranges).0 >= 0;
        let positive = b.bounds(&self.ranges).0 > 0;
        let power = b.as_const().filter(|&d| d > 0 && d.count_ones() == 1);
        let (left, right) = (self.expr(a)?, self.expr(b)?);
        Ok(match (op, power) {
            // An arithmetic shift rounds towards minus infinity.
            (BinaryOp::Div, Some(d)) => {
                let bits = self.builder.i64(i64::from(d.trailing_zeros()));
                self.builder.i64_op(BinaryOp::Shr, left, bits)
            }
            (BinaryOp::Mod, Some(d)) => {
                let bits = self.builder.i64(d - 1);
                self.builder.i64_op(BinaryOp::And, left, bits)
            }
            (BinaryOp::Mod, None) if not_negative && positive => self.builder.i64_op(BinaryOp::Rem, left, right),
            (BinaryOp::Div, None) if !(not_negative && positive) => {
                let rest = self.builder.i64_op(BinaryOp::Mod, left, right);
                let whole = self.builder.i64_op(BinaryOp::Sub, left, rest);
                self.builder.i64_op(BinaryOp::Div, whole, right)
            }
            (op, _) => self.builder.i64_op(op, left, right),
        })
    }

    fn symbol(&mut self, s: &Symbol) -> Result<ValueId, LowerError> {
        if let Some(&value) = self.symbols.get(s) {
            return Ok(value);
        }
        match self.dims.iter().position(|d| d == s) {
            Some(n) => Ok(self.builder.emit(0, VectorType::scalar(DType::I64), Op::Dim(n))),
            None => Err(self.unsupported(format!("the unknown symbol `{s}`"))),
        }
    }
}
