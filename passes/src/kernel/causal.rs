//! Which keys a row of queries sees, where a mask says so by their numbers.
//!
//! Invariant: what is left out has a share of zero. A hidden score is minus infinity, or so low a number that its exponential is 0
//! beside that of any score that is not, of which each row then has one. (Values that are infinite or no numbers would make
//! something of a share of zero; they are not looked at.)

use super::attention::{At, Attention};
use super::flat::Axis;
use super::forms::is_identity;
use super::gpu::{number, product};
use kiln_ir::Tensor;
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::id::Id;
use kiln_ir::loops::linear;
use kiln_ir::scalar::{BinaryOp, Code, Constant, Coord, Less, Scalar, Source};

/// Numbers up to which one hides a key that is added to its score, or is it: scores would have to differ by as much to make up for it, and
/// f32 of that size are 64 apart.
const HIDDEN: f64 = -1e9;

/// The constant that an input is, laid out by rows.
pub(super) type Constants<'a> = dyn Fn(usize) -> Option<&'a Tensor> + 'a;

/// What a mask hides.
pub(super) struct Seen {
    /// The axis of rows by whose number `i` it goes.
    pub token: Symbol,
    /// No row has a share of keys beyond `i + last`.
    last: i64,
    /// Up to the key `i + whole` there might be no mask; nothing where that is not known of any key.
    whole: Option<i64>,
    /// What follows the product of queries and keys, and what becomes of it before the softmax, without the mask.
    pub finish: Code,
    pub body: Code,
}

/// A mask in code.
struct Mask {
    node: Id<Scalar>,
    /// Which operand is there without it.
    kept: usize,
    token: Symbol,
    last: i64,
    whole: Option<i64>,
}

/// Where code of attention is looked at.
struct Finder<'a, 'c> {
    a: &'a Attention<'a>,
    constants: &'a Constants<'c>,
}

impl Seen {
    /// The mask of attention, where there is one that is known.
    pub fn of(a: &Attention<'_>, constants: &Constants<'_>) -> Option<Seen> {
        let finder = Finder { a, constants };
        let body = &a.seen.body;
        let (finish, body) = match finder.mask(body, body.result(), &a.seen_at, is_identity(&a.finish), false) {
            Some(mask) => (None, Some(mask)),
            // The scores as they are.
            None if matches!(body.node(body.result()), Scalar::Load(Source::Stage(0), _)) => {
                (finder.mask(&a.finish, a.finish.result(), &a.scores_at, true, false), None)
            }
            None => return None,
        };
        let without = |code: &Code, mask: &Option<Mask>| mask.as_ref().map_or(Some(code.clone()), |m| m.without(code));
        let (new_finish, new_body) = (without(&a.finish, &finish)?, without(&a.seen.body, &body)?);
        let Mask { token, last, whole, .. } = finish.or(body)?;
        let whole = whole.filter(|&whole| whole >= -1);
        (last >= 0).then_some(Seen { token, last, whole, finish: new_finish, body: new_body })
    }

    /// Where tiles of so many keys end of which the rows `first..first + size`, which `rows` make up, see any; and where end those that
    /// they see whole. Both are multiples of the tile, `tiles` of them at most.
    pub fn ends(&self, rows: &[Axis], (first, size): (&Expr, i64), (keys, tiles): (i64, &Expr)) -> Option<[Expr; 2]> {
        let at = rows.iter().position(|r| r.symbol == self.token)?;
        let inner = product(rows.get(at + 1..)?).as_const()?;
        let period = inner.checked_mul(rows.get(at)?.known()?)?;
        let first = match at {
            0 => first.clone(),
            _ if period % size == 0 => first.modulo(&number(period)),
            _ => return None,
        };
        let token = |row: Expr| row.floor_div(&number(inner));
        let (least, most) = (token(first.clone()), token(first.add(&number(size - 1))));
        let end = most.add(&number(self.last + 1)).ceil_div(&number(keys)).least(tiles);
        let whole = self.whole.map(|whole| least.add(&number(whole + 1)).floor_div(&number(keys)).least(tiles));
        Some([end.scale(keys), whole.unwrap_or_default().scale(keys)])
    }
}

impl Mask {
    /// The code without it.
    fn without(&self, code: &Code) -> Option<Code> {
        let live = code.live();
        let mut ids = code.nodes().map(|(id, _)| id).filter(|id| live[id.index()]);
        let mut out = Code::new();
        let result = out.inline(code, &mut |_, node, _| {
            // Live nodes come one by one, in their order.
            let here = ids.next() == Some(self.node);
            Ok(here.then(|| node.operands().get(self.kept).copied()).flatten())
        });
        out.set_result(result.ok()?);
        Some(out)
    }
}

impl Finder<'_, '_> {
    /// The mask that the node is, or a summand of it. `plain`: the score has nothing else added to it before; `added`: something is
    /// after.
    fn mask(&self, code: &Code, id: Id<Scalar>, at: &At, plain: bool, added: bool) -> Option<Mask> {
        let hides = |id: Id<Scalar>| match code.node(id) {
            Scalar::Const(c) if c.dtype.is_float() && c.as_f64() <= HIDDEN => Some(c.as_f64() == f64::NEG_INFINITY),
            _ => None,
        };
        // Whether numbers that are not infinite hide here: nothing else may be of their size.
        let finite = |x: Id<Scalar>| plain && !added && !loads(code, x);
        match code.node(id) {
            Scalar::Binary(BinaryOp::Add, x, y) => {
                for (kept, score, mask) in [(0, *x, *y), (1, *y, *x)] {
                    if let Some((token, scanned)) = self.scanned(code, mask, at, &|c| {
                        let value = c.as_f64();
                        (value <= HIDDEN, value == 0.0, value == f64::NEG_INFINITY)
                    }) && (scanned.infinite || finite(score))
                    {
                        return Some(Mask { node: id, kept, token, last: scanned.last, whole: Some(scanned.whole) });
                    }
                }
                self.mask(code, *x, at, plain, true).or_else(|| self.mask(code, *y, at, plain, true))
            }
            Scalar::Select(c, x, y) => {
                for (kept, score, other, holds) in [(1, *x, *y, true), (2, *y, *x, false)] {
                    let Some(infinite) = hides(other) else { continue };
                    if !infinite && !finite(score) {
                        continue;
                    }
                    let by_constant = self.scanned(code, *c, at, &|c| {
                        let seen = (c.bits != 0) == holds;
                        (!seen, seen, false)
                    });
                    let found = match by_constant {
                        Some((token, scanned)) => Some((token, scanned.last, Some(scanned.whole))),
                        None => self.holds(code, *c, at, holds),
                    };
                    // Where another condition hides more, a row may see nothing.
                    if let Some((token, last, whole)) = found
                        && (infinite || whole.is_some())
                    {
                        return Some(Mask { node: id, kept, token, last, whole });
                    }
                }
                None
            }
            Scalar::Guard(conditions, x, y) => {
                let (infinite, alone) = (hides(*y)?, conditions.len() == 1);
                if !(infinite || alone && finite(*x)) {
                    return None;
                }
                let bound = |less: &Less| self.bound(&less.left.add(&number(1)), &less.right, at);
                let (token, last) = conditions.iter().find_map(bound)?;
                Some(Mask { node: id, kept: 0, token, last, whole: alone.then_some(last) })
            }
            _ => None,
        }
    }

    /// The row's axis and `c` where `left <= right` says that a key is at most `c` beyond the row.
    fn bound(&self, left: &Expr, right: &Expr, at: &At) -> Option<(Symbol, i64)> {
        let difference = right.sub(left);
        let difference = self.a.out.loops().simplify(&difference.substitute(&|s| at.get(s).cloned()));
        let (keys, rest) = linear(&difference, &self.a.key.symbol)?;
        let row = self.a.operands.rows.iter().find(|r| rest.mentions(&r.symbol))?;
        let (rows, rest) = linear(&rest, &row.symbol)?;
        let even = keys.as_const() == Some(-1) && rows.as_const() == Some(1);
        Some((row.symbol.clone(), rest.as_const().filter(|_| even)?))
    }

    /// What a condition on numbers of rows and keys shows where it holds, or where it does not.
    fn holds(&self, code: &Code, id: Id<Scalar>, at: &At, holds: bool) -> Option<(Symbol, i64, Option<i64>)> {
        let Scalar::Binary(op, a, b) = code.node(id) else { return None };
        let (left, right, less) = match (op, holds) {
            (BinaryOp::And, true) => {
                // One of two conditions; the other one may hide more.
                let one = [a, b].into_iter().find_map(|id| self.holds(code, *id, at, true));
                return one.map(|(token, last, _)| (token, last, None));
            }
            (BinaryOp::Le, true) | (BinaryOp::Gt, false) => (*a, *b, 0),
            (BinaryOp::Lt, true) | (BinaryOp::Ge, false) => (*a, *b, 1),
            (BinaryOp::Ge, true) | (BinaryOp::Lt, false) => (*b, *a, 0),
            (BinaryOp::Gt, true) | (BinaryOp::Le, false) => (*b, *a, 1),
            _ => return None,
        };
        let (left, right) = (self.index(code, left)?, self.index(code, right)?);
        let (token, c) = self.bound(&left.add(&number(less)), &right, at)?;
        Some((token, c, Some(c)))
    }

    /// The node as an index expression.
    fn index(&self, code: &Code, id: Id<Scalar>) -> Option<Expr> {
        let int = |id: Id<Scalar>| matches!(code.dtype(id), DType::I32 | DType::I64);
        let index = |id: Id<Scalar>| self.index(code, id);
        match code.node(id) {
            Scalar::Index(e) => Some(e.clone()),
            Scalar::Const(c) if int(id) => Some(number(c.as_i64()?)),
            Scalar::Load(Source::Input(n), _) if int(id) => {
                let tensor = (self.constants)(*n).filter(|t| t.len() == 1)?;
                Some(number(Constant::load(tensor.dtype(), tensor.bytes(), 0)?.as_i64()?))
            }
            Scalar::Cast(_, a) if int(id) && int(*a) => index(*a),
            Scalar::Binary(BinaryOp::Add, a, b) if int(id) => Some(index(*a)?.add(&index(*b)?)),
            Scalar::Binary(BinaryOp::Sub, a, b) if int(id) => Some(index(*a)?.sub(&index(*b)?)),
            _ => None,
        }
    }

    /// What a constant that is read for each row and key hides. `seen` says of an element whether it hides the key, whether it leaves the
    /// score as it is, and whether it hides by being minus infinity.
    fn scanned(
        &self,
        code: &Code,
        id: Id<Scalar>,
        at: &At,
        seen: &dyn Fn(Constant) -> (bool, bool, bool),
    ) -> Option<(Symbol, Scanned)> {
        let Scalar::Load(Source::Input(n), coords) = code.node(id) else { return None };
        let [Coord::Index(address)] = coords.as_slice() else { return None };
        let tensor = (self.constants)(*n)?;
        let address = self.a.out.loops().simplify(&address.substitute(&|s| at.get(s).cloned()));
        let (key, rest) = linear(&address, &self.a.key.symbol)?;
        let row = self.a.operands.rows.iter().find(|r| rest.mentions(&r.symbol))?;
        let (down, rest) = linear(&rest, &row.symbol)?;
        let (key, down, first) = (key.as_const()?, down.as_const()?, rest.as_const()?);
        let mut scanned = Scanned { last: i64::MIN, whole: i64::MAX, infinite: true };
        for i in 0..row.known()? {
            let (mut last, mut whole) = (None, None);
            for k in 0..self.a.key.known()? {
                let element = usize::try_from(first + down * i + key * k).ok()?;
                let (hidden, same, infinite) = seen(Constant::load(tensor.dtype(), tensor.bytes(), element)?);
                if !hidden {
                    last = Some(k);
                }
                if !same && whole.is_none() {
                    whole = Some(k - 1);
                }
                scanned.infinite &= !hidden || infinite;
            }
            // A row that sees nothing is not told from one whose scores are all as low.
            scanned.last = scanned.last.max(last? - i);
            scanned.whole = scanned.whole.min(whole.unwrap_or(i64::MAX).saturating_sub(i));
        }
        Some((row.symbol.clone(), scanned))
    }
}

/// What a constant mask shows.
struct Scanned {
    last: i64,
    whole: i64,
    /// Whether what hides is minus infinity.
    infinite: bool,
}

/// Whether the node reads anything but scores.
fn loads(code: &Code, id: Id<Scalar>) -> bool {
    match code.node(id) {
        Scalar::Load(source, _) => matches!(source, Source::Input(_)),
        node => node.operands().into_iter().any(|o| loads(code, o)),
    }
}
