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
use kiln_ir::scalar::{BinaryOp, Code, Constant, Coord, Less, Scalar, Source, UnaryOp};
use std::fmt;

/// Numbers up to which one hides a key that is added to its score, or is it: scores would have to differ by as much to make up for it, and
/// f32 of that size are 64 apart.
const HIDDEN: f64 = -1e9;

/// The constant that an input is, laid out by rows.
pub(super) type Constants<'a> = dyn Fn(usize) -> Option<&'a Tensor> + 'a;

/// What a mask hides.
pub(super) struct Seen {
    /// The axis of rows by whose number `i` it goes.
    pub token: Symbol,
    /// No row has a share of keys beyond `i + last`, which is over the dims alone and at least 0.
    pub last: Expr,
    /// No row has a share of keys before `i + first`, where that is known; each row sees a key then.
    pub first: Option<Expr>,
    /// Up to the key `i + whole` there might be no mask; nothing where that is not known of any key.
    whole: Option<i64>,
    /// What follows the product of queries and keys, and what becomes of it before the softmax, without the mask.
    pub finish: Code,
    pub body: Code,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { token, last, first, whole, finish, body } = self;
        write!(f, "{token} + {last}")?;
        first.iter().try_for_each(|first| write!(f, " from {first}"))?;
        whole.iter().try_for_each(|whole| write!(f, " whole {whole}"))?;
        write!(f, "; {finish}; {body}")
    }
}

/// A mask in code.
struct Mask {
    node: Id<Scalar>,
    /// Which operand is there without it.
    kept: usize,
    limits: Limits,
}

/// The keys between which all are that a mask lets the row `i` see.
#[derive(Clone)]
struct Limits {
    token: Symbol,
    /// `i + last` is the last one.
    last: Option<Expr>,
    /// `i + first` is the first one.
    first: Option<Expr>,
    /// Whether all between them are seen.
    exact: bool,
    /// Whether each row was found to see one of them, all or not.
    some: bool,
    /// Up to `i + whole` there might be no mask, where that is another number than `last`.
    whole: Option<i64>,
}

impl Limits {
    /// What holds where both do.
    fn and(self, other: Limits) -> Option<Limits> {
        let both = |a: Option<Expr>, b: Option<Expr>, f: fn(&Expr, &Expr) -> Expr| match (&a, &b) {
            (Some(a), Some(b)) => Some(f(a, b)),
            _ => a.or(b),
        };
        let (last, first) = (both(self.last, other.last, Expr::least), both(self.first, other.first, Expr::greatest));
        let exact = self.exact && other.exact;
        (self.token == other.token).then_some(Limits {
            token: self.token,
            last,
            first,
            exact,
            some: false,
            whole: None,
        })
    }
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
        let limits = finish.or(body)?.limits;
        let some = finder.each_row_sees(&limits);
        let Limits { token, last, first, exact, whole, .. } = limits;
        let last = last.filter(|last| a.out.loops().is_never_negative(last))?;
        let even = if exact && first.is_none() { last.as_const() } else { None };
        let whole = whole.or(even).filter(|&whole| whole >= -1);
        let first = first.filter(|_| some);
        Some(Seen { token, last, first, whole, finish: new_finish, body: new_body })
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
        let last = self.last.as_const()?;
        let end = most.add(&number(last.checked_add(1)?)).ceil_div(&number(keys)).least(tiles);
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
        // Whether numbers that are not infinite hide here: nothing else may be of their size, and no row may be hidden whole.
        let finite = |x: Id<Scalar>| plain && !added && !depends_on_more(code, x);
        let found = |kept: usize, limits: Limits| Some(Mask { node: id, kept, limits });
        match code.node(id) {
            Scalar::Binary(BinaryOp::Add, x, y) => {
                for (kept, score, mask) in [(0, *x, *y), (1, *y, *x)] {
                    if let Some((infinite, limits)) = self.added(code, mask, at)
                        && (infinite || finite(score) && self.each_row_sees(&limits))
                    {
                        return found(kept, limits);
                    }
                }
                self.mask(code, *x, at, plain, true).or_else(|| self.mask(code, *y, at, plain, true))
            }
            Scalar::Select(c, x, y) => {
                for (kept, score, other, holds) in [(1, *x, *y, true), (2, *y, *x, false)] {
                    let Some(infinite) = self.hides(code, other) else { continue };
                    if let Some(limits) = self.condition(code, *c, at, holds)
                        && (infinite || finite(score) && self.each_row_sees(&limits))
                    {
                        return found(kept, limits);
                    }
                }
                None
            }
            Scalar::Guard(conditions, x, y) => {
                let infinite = self.hides(code, *y)?;
                let limits = self.guarded(conditions, at)?;
                (infinite || finite(*x) && self.each_row_sees(&limits)).then(|| found(0, limits))?
            }
            _ => None,
        }
    }

    /// Whether the node is a number that hides a score, and is then minus infinity.
    fn hides(&self, code: &Code, id: Id<Scalar>) -> Option<bool> {
        let value = self.constant(code, id)?.as_f64();
        (code.dtype(id).is_float() && value <= HIDDEN).then_some(value == f64::NEG_INFINITY)
    }

    /// The constant that the node is.
    fn constant(&self, code: &Code, id: Id<Scalar>) -> Option<Constant> {
        match code.node(id) {
            Scalar::Const(c) => Some(*c),
            Scalar::Load(Source::Input(n), _) => {
                let tensor = (self.constants)(*n).filter(|t| t.len() == 1)?;
                Constant::load(tensor.dtype(), tensor.bytes(), 0)
            }
            _ => None,
        }
    }

    /// What hides in a number that is added to scores, and whether by minus infinity alone: a constant for each row and key, or the choice between
    /// 0 and a number that hides.
    fn added(&self, code: &Code, id: Id<Scalar>, at: &At) -> Option<(bool, Limits)> {
        let nothing = |id: Id<Scalar>| self.constant(code, id).is_some_and(|c| c.as_f64() == 0.0);
        match code.node(id) {
            Scalar::Load(..) => {
                let (limits, infinite) = self.scanned(code, id, at, &|c| {
                    let value = c.as_f64();
                    (value <= HIDDEN, value == 0.0, value == f64::NEG_INFINITY)
                })?;
                Some((infinite, limits))
            }
            Scalar::Select(c, x, y) => {
                [(*x, *y, true), (*y, *x, false)].into_iter().find_map(|(same, other, holds)| {
                    let infinite = self.hides(code, other).filter(|_| nothing(same))?;
                    Some((infinite, self.condition(code, *c, at, holds)?))
                })
            }
            Scalar::Guard(conditions, x, y) => {
                let infinite = self.hides(code, *y).filter(|_| nothing(*x))?;
                Some((infinite, self.guarded(conditions, at)?))
            }
            _ => None,
        }
    }

    /// Whether each row surely sees a key.
    fn each_row_sees(&self, limits: &Limits) -> bool {
        if limits.some {
            return true;
        }
        let loops = self.a.out.loops();
        let never_negative = |e: &Expr| loops.is_never_negative(e);
        let (one, keys) = (number(1), &self.a.key.extent);
        let row = self.a.operands.rows.iter().find(|r| r.symbol == limits.token);
        let (Some(last), Some(row), true) = (&limits.last, row, limits.exact) else { return false };
        // Of the row `i` some number of 0..keys is in i + first..=i + last.
        never_negative(last)
            && never_negative(&keys.sub(&one))
            && limits.first.as_ref().is_none_or(|first| {
                never_negative(&last.sub(first)) && never_negative(&keys.sub(&row.extent).sub(first))
            })
    }

    /// What conditions on indices show where they hold.
    fn guarded(&self, conditions: &[Less], at: &At) -> Option<Limits> {
        let bound = |less: &Less| self.bound(&less.left.add(&number(1)), &less.right, at);
        let mut found: Vec<Limits> = conditions.iter().filter_map(bound).collect();
        let all = found.len() == conditions.len();
        let first = found.pop()?;
        let limits = found.into_iter().try_fold(first, Limits::and)?;
        Some(Limits { exact: limits.exact && all, ..limits })
    }

    /// What `left <= right` shows of keys and rows.
    fn bound(&self, left: &Expr, right: &Expr, at: &At) -> Option<Limits> {
        let loops = self.a.out.loops();
        let difference = right.sub(left);
        let difference = loops.simplify(&difference.substitute(&|s| at.get(s).cloned()));
        let (keys, rest) = linear(&difference, &self.a.key.symbol)?;
        let row = self.a.operands.rows.iter().find(|r| rest.mentions(&r.symbol))?;
        let (rows, rest) = linear(&rest, &row.symbol)?;
        // What is left is the same for all rows and keys.
        let mut of_dims = true;
        rest.for_each_symbol(&mut |s| of_dims &= self.a.out.dims.contains_key(s));
        let (last, first) = match (keys.as_const(), rows.as_const()) {
            (Some(-1), Some(1)) if of_dims => (Some(rest), None),
            (Some(1), Some(-1)) if of_dims => (None, Some(rest.scale(-1))),
            _ => return None,
        };
        Some(Limits { token: row.symbol.clone(), last, first, exact: true, some: false, whole: None })
    }

    /// What a condition shows where it holds, or where it does not: a constant for each row and key, or one on their numbers.
    fn condition(&self, code: &Code, id: Id<Scalar>, at: &At, holds: bool) -> Option<Limits> {
        let condition = |id: Id<Scalar>, holds: bool| self.condition(code, id, at, holds);
        let (left, right, less) = match code.node(id) {
            Scalar::Load(..) => {
                let seen = |c: Constant| {
                    let seen = (c.bits != 0) == holds;
                    (!seen, seen, false)
                };
                return self.scanned(code, id, at, &seen).map(|(limits, _)| limits);
            }
            Scalar::Cast(_, a) if [id, *a].into_iter().all(|id| code.dtype(id) == DType::Bool) => {
                return condition(*a, holds);
            }
            Scalar::Unary(UnaryOp::Not, a) => return condition(*a, !holds),
            Scalar::Binary(op @ (BinaryOp::And | BinaryOp::Or), a, b) if (*op == BinaryOp::And) == holds => {
                // Of two conditions another one may hide more.
                return match (condition(*a, holds), condition(*b, holds)) {
                    (Some(a), Some(b)) => a.and(b),
                    (a, b) => a.or(b).map(|limits| Limits { exact: false, some: false, whole: None, ..limits }),
                };
            }
            Scalar::Binary(op, a, b) => match (op, holds) {
                (BinaryOp::Le, true) | (BinaryOp::Gt, false) => (*a, *b, 0),
                (BinaryOp::Lt, true) | (BinaryOp::Ge, false) => (*a, *b, 1),
                (BinaryOp::Ge, true) | (BinaryOp::Lt, false) => (*b, *a, 0),
                (BinaryOp::Gt, true) | (BinaryOp::Le, false) => (*b, *a, 1),
                _ => return None,
            },
            _ => return None,
        };
        let (left, right) = (self.index(code, left)?, self.index(code, right)?);
        self.bound(&left.add(&number(less)), &right, at)
    }

    /// The node as an index expression.
    fn index(&self, code: &Code, id: Id<Scalar>) -> Option<Expr> {
        let int = |id: Id<Scalar>| matches!(code.dtype(id), DType::I32 | DType::I64);
        let index = |id: Id<Scalar>| self.index(code, id);
        match code.node(id) {
            Scalar::Index(e) => Some(e.clone()),
            Scalar::Const(_) | Scalar::Load(..) if int(id) => Some(number(self.constant(code, id)?.as_i64()?)),
            Scalar::Cast(_, a) if int(id) && int(*a) => index(*a),
            Scalar::Binary(BinaryOp::Add, a, b) if int(id) => Some(index(*a)?.add(&index(*b)?)),
            Scalar::Binary(BinaryOp::Sub, a, b) if int(id) => Some(index(*a)?.sub(&index(*b)?)),
            _ => None,
        }
    }

    /// What a constant that is read for each row and key hides, and whether by minus infinity alone. `seen` says of an element whether it
    /// hides the key, whether it leaves the score as it is, and whether it hides by being minus infinity.
    fn scanned(
        &self,
        code: &Code,
        id: Id<Scalar>,
        at: &At,
        seen: &dyn Fn(Constant) -> (bool, bool, bool),
    ) -> Option<(Limits, bool)> {
        let Scalar::Load(Source::Input(n), coords) = code.node(id) else { return None };
        let [Coord::Index(address)] = coords.as_slice() else { return None };
        let tensor = (self.constants)(*n)?;
        let address = self.a.out.loops().simplify(&address.substitute(&|s| at.get(s).cloned()));
        let (key, rest) = linear(&address, &self.a.key.symbol)?;
        let row = self.a.operands.rows.iter().find(|r| rest.mentions(&r.symbol))?;
        let (down, rest) = linear(&rest, &row.symbol)?;
        // One element for all keys hides none by its number, and would be looked at for each of them.
        let (key, down, first) = (key.as_const().filter(|&k| k != 0)?, down.as_const()?, rest.as_const()?);
        let pairs = row.known()?.checked_mul(self.a.key.known()?)?;
        if usize::try_from(pairs).ok()? > tensor.len() {
            return None;
        }
        let (mut least, mut most, mut every, mut all_infinite) = (i64::MAX, i64::MIN, i64::MAX, true);
        for i in 0..row.known()? {
            let (mut ends, mut whole) = (None, None);
            for k in 0..self.a.key.known()? {
                let element = usize::try_from(first + down * i + key * k).ok()?;
                let (hidden, same, infinite) = seen(Constant::load(tensor.dtype(), tensor.bytes(), element)?);
                if !hidden {
                    ends = Some((ends.map_or(k, |(first, _)| first), k));
                }
                if !same && whole.is_none() {
                    whole = Some(k - 1);
                }
                all_infinite &= !hidden || infinite;
            }
            // A row that sees nothing is not told from one whose scores are all as low.
            let (begin, end) = ends?;
            (least, most) = (least.min(begin - i), most.max(end - i));
            every = every.min(whole.unwrap_or(i64::MAX).saturating_sub(i));
        }
        let (token, last, first) = (row.symbol.clone(), Some(number(most)), Some(number(least)));
        Some((Limits { token, last, first, exact: false, some: true, whole: Some(every) }, all_infinite))
    }
}

/// Whether the node depends on anything but scores: what else hides keys may, together with a mask, hide a row whole.
fn depends_on_more(code: &Code, id: Id<Scalar>) -> bool {
    match code.node(id) {
        Scalar::Load(source, _) => matches!(source, Source::Input(_)),
        Scalar::Index(_) | Scalar::Guard(..) => true,
        node => node.operands().into_iter().any(|o| depends_on_more(code, o)),
    }
}
