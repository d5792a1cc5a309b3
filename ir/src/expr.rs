//! Integer expressions over named symbols: dims of tensors, indices of nests and tile programs.
//!
//! Invariant: an `Expr` is canonical (a sum of products with sorted terms and no zero coefficient), so equal sums
//! compare equal. Arithmetic saturates at the limits of i64: a dim that overflows stays absurdly large and is refused
//! wherever sizes are checked; it never wraps to a small number.

mod terms;
#[cfg(test)]
mod tests;

use crate::text::{Lexer, ParseError, Token};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use terms::{Product, Terms};

/// How many terms a product in a text form may have.
const MAX_TERMS: usize = 1024;

/// A named integer that is known when the program runs: a dim, a loop variable, an axis of a tile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Symbol(Arc<str>);

impl Symbol {
    /// The symbol of that name. Characters that the text form cannot hold become `_`.
    pub fn new(name: &str) -> Symbol {
        let ok = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut clean: String = name.chars().map(|c| if ok(c) { c } else { '_' }).collect();
        if !clean.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            clean.insert(0, '_');
        }
        Symbol(clean.into())
    }

    /// A symbol with a number at its end, such as `i3`.
    pub fn numbered(prefix: &str, n: usize) -> Symbol {
        Symbol(format!("{prefix}{n}").into())
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A factor of a product.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Atom {
    /// A symbol.
    Symbol(Symbol),
    /// The quotient rounded towards minus infinity; 0 where the divisor is 0.
    FloorDiv(Box<Expr>, Box<Expr>),
    /// The remainder with the sign of the divisor; 0 where the divisor is 0.
    Mod(Box<Expr>, Box<Expr>),
    /// The lesser.
    Min(Box<Expr>, Box<Expr>),
    /// The greater.
    Max(Box<Expr>, Box<Expr>),
}

/// A canonical integer expression. See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Expr {
    terms: Terms,
    constant: i64,
}

/// Inclusive bounds of symbols; a symbol that is absent is unbounded.
pub type Ranges = BTreeMap<Symbol, (i64, i64)>;

pub(crate) fn floor_div(a: i64, b: i64) -> i64 {
    if b == 0 {
        return 0;
    }
    let q = a.saturating_div(b);
    if a.wrapping_rem(b) != 0 && (a < 0) != (b < 0) { q - 1 } else { q }
}

pub(crate) fn floor_mod(a: i64, b: i64) -> i64 {
    if b == 0 {
        return 0;
    }
    let r = a.wrapping_rem(b);
    if r != 0 && (r < 0) != (b < 0) { r + b } else { r }
}

impl From<i64> for Expr {
    fn from(constant: i64) -> Expr {
        Expr { terms: Terms::default(), constant }
    }
}
impl From<i32> for Expr {
    fn from(constant: i32) -> Expr {
        Expr::from(i64::from(constant))
    }
}
impl From<usize> for Expr {
    fn from(constant: usize) -> Expr {
        Expr::from(i64::try_from(constant).unwrap_or(i64::MAX))
    }
}
impl From<Symbol> for Expr {
    fn from(symbol: Symbol) -> Expr {
        Expr::from(Atom::Symbol(symbol))
    }
}
impl From<&Symbol> for Expr {
    fn from(symbol: &Symbol) -> Expr {
        Expr::from(symbol.clone())
    }
}
impl From<Atom> for Expr {
    fn from(atom: Atom) -> Expr {
        Expr::from_product(Arc::from([atom]), 1)
    }
}

impl Expr {
    /// The symbol of that name, as an expression.
    pub fn symbol(name: &str) -> Expr {
        Expr::from(Symbol::new(name))
    }

    /// The value, where it depends on no symbol.
    pub fn as_const(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.constant)
    }

    /// The value as a size, where it depends on no symbol and is not negative.
    pub fn as_size(&self) -> Option<usize> {
        self.as_const().and_then(|c| usize::try_from(c).ok())
    }

    /// The symbol, where the expression is just one.
    pub fn as_symbol(&self) -> Option<&Symbol> {
        match self.terms.only()? {
            ([Atom::Symbol(s)], 1) if self.constant == 0 => Some(s),
            _ => None,
        }
    }

    /// The products with their coefficients, without the constant.
    pub fn terms(&self) -> impl Iterator<Item = (&[Atom], i64)> {
        self.terms.iter().map(|(product, c)| (&**product, c))
    }

    /// The constant of the sum.
    pub fn constant(&self) -> i64 {
        self.constant
    }

    /// The sum.
    pub fn add(&self, other: &Expr) -> Expr {
        let mut sum = self.clone();
        sum.add_here(other);
        sum
    }

    fn add_here(&mut self, other: &Expr) {
        self.constant = self.constant.saturating_add(other.constant);
        other.terms.iter().for_each(|(product, c)| self.terms.add(product, c));
    }

    /// A product with a coefficient, which is not 0.
    fn from_product(product: Product, coefficient: i64) -> Expr {
        Expr { terms: Terms::one(product, coefficient), constant: 0 }
    }

    /// The product with a constant.
    pub fn scale(&self, factor: i64) -> Expr {
        if factor == 0 {
            return Expr::default();
        }
        Expr { terms: self.terms.scale(factor), constant: self.constant.saturating_mul(factor) }
    }

    /// The difference.
    pub fn sub(&self, other: &Expr) -> Expr {
        self.add(&other.scale(-1))
    }

    /// The product.
    pub fn mul(&self, other: &Expr) -> Expr {
        if let Some(c) = other.as_const() {
            return self.scale(c);
        }
        if let Some(c) = self.as_const() {
            return other.scale(c);
        }
        let mut product =
            other.scale(self.constant).add(&Expr { terms: self.scale(other.constant).terms, constant: 0 });
        for (a, ca) in self.terms.iter() {
            for (b, cb) in other.terms.iter() {
                let mut atoms = [&**a, &**b].concat();
                atoms.sort();
                product.terms.add(&atoms.into(), ca.saturating_mul(cb));
            }
        }
        product
    }

    /// The quotient rounded towards minus infinity. A divisor that equals the dividend is taken not to be 0.
    pub fn floor_div(&self, divisor: &Expr) -> Expr {
        if self == divisor && self.as_const() != Some(0) {
            return Expr::from(1i64);
        }
        let Some(d) = divisor.as_const() else {
            return match self.as_const() {
                Some(0) => Expr::default(),
                _ => Expr::from(Atom::FloorDiv(Box::new(self.clone()), Box::new(divisor.clone()))),
            };
        };
        if d == 0 {
            return Expr::default();
        }
        if d == 1 {
            return self.clone();
        }
        // floor((d*q + r) / d) = q + floor(r / d)
        let (quotient, rest) = self.split(d);
        if let Some(r) = rest.as_const() {
            return quotient.add(&Expr::from(floor_div(r, d)));
        }
        if let Some((inner, by)) = rest.single_floor_div()
            && d > 0
            && by > 0
        {
            return quotient.add(&inner.floor_div(&Expr::from(by.saturating_mul(d))));
        }
        quotient.add(&Expr::from(Atom::FloorDiv(Box::new(rest), Box::new(divisor.clone()))))
    }

    /// The expression as `floordiv(x, c)`, where it is just that.
    fn single_floor_div(&self) -> Option<(&Expr, i64)> {
        match self.terms.only()? {
            ([Atom::FloorDiv(x, by)], 1) if self.constant == 0 => by.as_const().map(|by| (&**x, by)),
            _ => None,
        }
    }

    /// `self = d * quotient + rest`, with every term whose coefficient `d` divides in the quotient and the
    /// constant of `rest` in `0..|d|`.
    fn split(&self, d: i64) -> (Expr, Expr) {
        if d == i64::MIN {
            // |d| is no i64; nothing is split off.
            return (Expr::default(), self.clone());
        }
        let r = self.constant.wrapping_rem(d).wrapping_add(d.saturating_abs()).wrapping_rem(d);
        let (quotient, rest) = self.terms.split(d);
        let constant = self.constant.saturating_sub(r).saturating_div(d);
        (Expr { terms: quotient, constant }, Expr { terms: rest, constant: r })
    }

    /// The quotient rounded towards plus infinity.
    pub fn ceil_div(&self, divisor: &Expr) -> Expr {
        match divisor.as_const() {
            Some(d) if d > 0 => self.add(&Expr::from(d - 1)).floor_div(divisor),
            _ => self.scale(-1).floor_div(divisor).scale(-1),
        }
    }

    /// The remainder with the sign of the divisor.
    pub fn modulo(&self, divisor: &Expr) -> Expr {
        if self == divisor {
            return Expr::default();
        }
        let Some(d) = divisor.as_const() else {
            return match self.as_const() {
                Some(0) => Expr::default(),
                _ => Expr::from(Atom::Mod(Box::new(self.clone()), Box::new(divisor.clone()))),
            };
        };
        if d == 0 || d == 1 || d == -1 {
            return Expr::default();
        }
        let (_, rest) = self.split(d);
        match rest.as_const() {
            Some(r) => Expr::from(floor_mod(r, d)),
            None => Expr::from(Atom::Mod(Box::new(rest), Box::new(divisor.clone()))),
        }
    }

    /// The lesser of the two.
    pub fn least(&self, other: &Expr) -> Expr {
        match self.sub(other).as_const() {
            Some(d) if d <= 0 => self.clone(),
            Some(_) => other.clone(),
            None => {
                let (a, b) = if self <= other { (self, other) } else { (other, self) };
                Expr::from(Atom::Min(Box::new(a.clone()), Box::new(b.clone())))
            }
        }
    }

    /// The greater of the two.
    pub fn greatest(&self, other: &Expr) -> Expr {
        match self.sub(other).as_const() {
            Some(d) if d >= 0 => self.clone(),
            Some(_) => other.clone(),
            None => {
                let (a, b) = if self <= other { (self, other) } else { (other, self) };
                Expr::from(Atom::Max(Box::new(a.clone()), Box::new(b.clone())))
            }
        }
    }

    /// Rebuilds the expression with every symbol replaced by what `f` gives for it (itself where it gives nothing),
    /// and every other atom rebuilt by the arithmetic above.
    pub fn substitute(&self, f: &dyn Fn(&Symbol) -> Option<Expr>) -> Expr {
        let mut sum = Expr::from(self.constant);
        for (atoms, c) in self.terms.iter() {
            if atoms.iter().all(|a| matches!(a, Atom::Symbol(s) if f(s).is_none())) {
                sum.terms.add(atoms, c);
                continue;
            }
            let mut product = Expr::from(c);
            for atom in atoms.iter() {
                product = product.mul(&match atom {
                    Atom::Symbol(s) => f(s).unwrap_or_else(|| Expr::from(s)),
                    Atom::FloorDiv(a, b) => a.substitute(f).floor_div(&b.substitute(f)),
                    Atom::Mod(a, b) => a.substitute(f).modulo(&b.substitute(f)),
                    Atom::Min(a, b) => a.substitute(f).least(&b.substitute(f)),
                    Atom::Max(a, b) => a.substitute(f).greatest(&b.substitute(f)),
                });
            }
            sum.add_here(&product);
        }
        sum
    }

    /// Replaces one symbol.
    pub fn replace(&self, symbol: &Symbol, by: &Expr) -> Expr {
        if !self.mentions(symbol) {
            return self.clone();
        }
        self.substitute(&|s| (s == symbol).then(|| by.clone()))
    }

    /// The value under an assignment; nothing where a symbol has none.
    pub fn eval(&self, f: &dyn Fn(&Symbol) -> Option<i64>) -> Option<i64> {
        let mut sum = self.constant;
        for (atoms, c) in self.terms.iter() {
            let mut product = c;
            for atom in atoms.iter() {
                product = product.saturating_mul(match atom {
                    Atom::Symbol(s) => f(s)?,
                    Atom::FloorDiv(a, b) => floor_div(a.eval(f)?, b.eval(f)?),
                    Atom::Mod(a, b) => floor_mod(a.eval(f)?, b.eval(f)?),
                    Atom::Min(a, b) => a.eval(f)?.min(b.eval(f)?),
                    Atom::Max(a, b) => a.eval(f)?.max(b.eval(f)?),
                });
            }
            sum = sum.saturating_add(product);
        }
        Some(sum)
    }

    /// Calls `f` with every symbol in the expression, repeatedly where it occurs more than once.
    pub fn for_each_symbol(&self, f: &mut dyn FnMut(&Symbol)) {
        for atom in self.terms.atoms() {
            match atom {
                Atom::Symbol(s) => f(s),
                Atom::FloorDiv(a, b) | Atom::Mod(a, b) | Atom::Min(a, b) | Atom::Max(a, b) => {
                    a.for_each_symbol(f);
                    b.for_each_symbol(f);
                }
            }
        }
    }

    /// Calls `f` with the symbol, where the expression is linear in just one: a value of the expression gives one of it.
    pub fn for_each_plain_symbol<'a>(&'a self, f: &mut dyn FnMut(&'a Symbol)) {
        if let Some(([Atom::Symbol(s)], _)) = self.terms.only() {
            f(s);
        }
    }

    /// Whether the symbol occurs.
    pub fn mentions(&self, symbol: &Symbol) -> bool {
        let mut found = false;
        self.for_each_symbol(&mut |s| found |= s == symbol);
        found
    }

    /// The coefficient of a symbol, where the expression is that symbol times a constant plus something
    /// without it; nothing where the symbol occurs in any other way.
    pub fn coefficient(&self, symbol: &Symbol) -> Option<i64> {
        let mut found = 0;
        for (atoms, c) in self.terms.iter() {
            match &**atoms {
                [Atom::Symbol(s)] if s == symbol => found = c,
                _ if Expr::from_product(atoms.clone(), 1).mentions(symbol) => return None,
                _ => {}
            }
        }
        Some(found)
    }

    /// Inclusive bounds under bounds of the symbols; `i64::MIN`/`MAX` stand for none.
    pub fn bounds(&self, ranges: &Ranges) -> (i64, i64) {
        let (mut lo, mut hi) = (self.constant, self.constant);
        for (atoms, c) in self.terms.iter() {
            let (mut tl, mut th) = (1i64, 1i64);
            for atom in atoms.iter() {
                let (al, ah) = atom.bounds(ranges);
                let corners = [mul_bound(tl, al), mul_bound(tl, ah), mul_bound(th, al), mul_bound(th, ah)];
                tl = corners.into_iter().fold(i64::MAX, i64::min);
                th = corners.into_iter().fold(i64::MIN, i64::max);
            }
            let (a, b) = (mul_bound(tl, c), mul_bound(th, c));
            lo = add_bound(lo, a.min(b));
            hi = add_bound(hi, a.max(b));
        }
        (lo, hi)
    }

    /// `self = g * steps + left` with `left` surely in `0..g`, for a `g` that divides `d`: then `left` does not matter to a
    /// quotient by `d`, and passes through a remainder.
    fn in_steps(&self, d: i64, ranges: &Ranges) -> Option<(Expr, Expr, i64)> {
        self.terms.iter().find_map(|(_, c)| {
            let g = greatest_common_divisor(c.checked_abs()?, d);
            let (steps, left) = self.split(g);
            let (lo, hi) = left.bounds(ranges);
            (g > 1 && g < d && lo >= 0 && hi < g).then_some((steps, left, g))
        })
    }

    /// Simplifies divisions, remainders, minima and maxima that the bounds decide.
    pub fn simplify(&self, ranges: &Ranges) -> Expr {
        if self.terms.atoms().all(|a| matches!(a, Atom::Symbol(_))) {
            return self.clone();
        }
        let mut sum = Expr::from(self.constant);
        for (atoms, c) in self.terms.iter() {
            if atoms.iter().all(|a| matches!(a, Atom::Symbol(_))) {
                sum.terms.add(atoms, c);
                continue;
            }
            let mut product = Expr::from(c);
            for atom in atoms.iter() {
                product = product.mul(&atom.simplify(ranges));
            }
            sum.add_here(&product);
        }
        sum
    }

    /// Parses the text form.
    ///
    /// # Errors
    /// The text is no expression.
    pub fn parse(lexer: &mut Lexer<'_>) -> Result<Expr, ParseError> {
        lexer.enter()?;
        let mut sum = Expr::product(lexer)?;
        loop {
            if lexer.eat('+') {
                sum = sum.add(&Expr::product(lexer)?);
            } else if lexer.eat('-') {
                sum = sum.sub(&Expr::product(lexer)?);
            } else if let Token::Number(n) = lexer.peek()
                && n.starts_with('-')
            {
                // `h -1` lexes as a negative number.
                sum = sum.add(&Expr::product(lexer)?);
            } else {
                break;
            }
        }
        lexer.leave();
        Ok(sum)
    }

    fn product(lexer: &mut Lexer<'_>) -> Result<Expr, ParseError> {
        let mut product = Expr::factor(lexer)?;
        while lexer.eat('*') {
            let here = lexer.error("the product has too many terms");
            let factor = Expr::factor(lexer)?;
            // Text may come from anywhere: products of sums multiply, and must not eat time and memory.
            if (product.terms.len() + 1).saturating_mul(factor.terms.len() + 1) > MAX_TERMS {
                return Err(here);
            }
            product = product.mul(&factor);
        }
        Ok(product)
    }

    fn factor(lexer: &mut Lexer<'_>) -> Result<Expr, ParseError> {
        if lexer.eat('(') {
            let inner = Expr::parse(lexer)?;
            lexer.expect(')')?;
            return Ok(inner);
        }
        if let Token::Number(_) = lexer.peek() {
            return Ok(Expr::from(lexer.integer()?));
        }
        let word = lexer.word()?;
        let call: Option<fn(&Expr, &Expr) -> Expr> = match word {
            "floordiv" => Some(Expr::floor_div),
            "ceildiv" => Some(Expr::ceil_div),
            "mod" => Some(Expr::modulo),
            "min" => Some(Expr::least),
            "max" => Some(Expr::greatest),
            _ => None,
        };
        match call {
            Some(f) if lexer.eat('(') => {
                let a = Expr::parse(lexer)?;
                lexer.expect(',')?;
                let b = Expr::parse(lexer)?;
                lexer.expect(')')?;
                Ok(f(&a, &b))
            }
            _ => Ok(Expr::symbol(word)),
        }
    }
}

impl Atom {
    fn bounds(&self, ranges: &Ranges) -> (i64, i64) {
        match self {
            Atom::Symbol(s) => ranges.get(s).copied().unwrap_or((i64::MIN, i64::MAX)),
            Atom::FloorDiv(a, b) => match b.as_const() {
                Some(d) if d > 0 => {
                    let (lo, hi) = a.bounds(ranges);
                    (keep_limit(lo, floor_div(lo, d)), keep_limit(hi, floor_div(hi, d)))
                }
                _ => (i64::MIN, i64::MAX),
            },
            Atom::Mod(_, b) => match b.bounds(ranges) {
                (lo, hi) if lo > 0 => (0, keep_limit(hi, hi - 1)),
                _ => (i64::MIN, i64::MAX),
            },
            Atom::Min(a, b) => {
                let ((al, ah), (bl, bh)) = (a.bounds(ranges), b.bounds(ranges));
                (al.min(bl), ah.min(bh))
            }
            Atom::Max(a, b) => {
                let ((al, ah), (bl, bh)) = (a.bounds(ranges), b.bounds(ranges));
                (al.max(bl), ah.max(bh))
            }
        }
    }

    fn simplify(&self, ranges: &Ranges) -> Expr {
        match self {
            Atom::Symbol(s) => Expr::from(s),
            Atom::FloorDiv(a, b) => {
                let (a, b) = (a.simplify(ranges), b.simplify(ranges));
                if let Some(d) = b.as_const().filter(|&d| d > 0) {
                    let (quotient, rest) = a.split(d);
                    let (lo, hi) = rest.bounds(ranges);
                    if lo > i64::MIN && hi < i64::MAX && floor_div(lo, d) == floor_div(hi, d) {
                        return quotient.add(&Expr::from(floor_div(lo, d)));
                    }
                    if let Some((steps, _, g)) = rest.in_steps(d, ranges) {
                        return quotient.add(&steps.floor_div(&Expr::from(d / g)));
                    }
                }
                a.floor_div(&b)
            }
            Atom::Mod(a, b) => {
                let (a, b) = (a.simplify(ranges), b.simplify(ranges));
                if let Some(d) = b.as_const().filter(|&d| d > 0) {
                    let (_, rest) = a.split(d);
                    let (lo, hi) = rest.bounds(ranges);
                    if lo > i64::MIN && hi < i64::MAX && floor_div(lo, d) == floor_div(hi, d) {
                        return rest.sub(&Expr::from(floor_div(lo, d).saturating_mul(d)));
                    }
                    if let Some((steps, left, g)) = rest.in_steps(d, ranges) {
                        return steps.modulo(&Expr::from(d / g)).scale(g).add(&left);
                    }
                }
                a.modulo(&b)
            }
            Atom::Min(a, b) => {
                let (a, b) = (a.simplify(ranges), b.simplify(ranges));
                match a.sub(&b).bounds(ranges) {
                    (_, hi) if hi <= 0 => a,
                    (lo, _) if lo >= 0 => b,
                    _ => a.least(&b),
                }
            }
            Atom::Max(a, b) => {
                let (a, b) = (a.simplify(ranges), b.simplify(ranges));
                match a.sub(&b).bounds(ranges) {
                    (_, hi) if hi <= 0 => b,
                    (lo, _) if lo >= 0 => a,
                    _ => a.greatest(&b),
                }
            }
        }
    }
}

fn greatest_common_divisor(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { greatest_common_divisor(b, a.wrapping_rem(b)) }
}

fn keep_limit(original: i64, quotient: i64) -> i64 {
    if original == i64::MIN || original == i64::MAX { original } else { quotient }
}

fn mul_bound(a: i64, b: i64) -> i64 {
    // `i64::MAX * -1` is `i64::MIN + 1`, which would no longer stand for a missing bound.
    let unbounded = |v: i64| v == i64::MIN || v == i64::MAX;
    match a.signum() * b.signum() {
        0 => 0,
        sign if unbounded(a) || unbounded(b) => {
            if sign < 0 {
                i64::MIN
            } else {
                i64::MAX
            }
        }
        _ => a.saturating_mul(b),
    }
}

fn add_bound(a: i64, b: i64) -> i64 {
    // A missing bound stays missing whatever is added.
    if a == i64::MIN || b == i64::MIN {
        i64::MIN
    } else if a == i64::MAX || b == i64::MAX {
        i64::MAX
    } else {
        a.saturating_add(b)
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return write!(f, "{}", self.constant);
        }
        for (i, (atoms, c)) in self.terms.iter().enumerate() {
            // The least integer has no positive counterpart that could follow a minus.
            let (minus, magnitude) = match (i, c) {
                (1.., c) if c < 0 && c > i64::MIN => (" - ", c.saturating_neg()),
                (0, c) => ("", c),
                (_, c) => (" + ", c),
            };
            f.write_str(minus)?;
            if magnitude != 1 {
                write!(f, "{magnitude}*")?;
            }
            for (j, atom) in atoms.iter().enumerate() {
                write!(f, "{}{atom}", if j == 0 { "" } else { "*" })?;
            }
        }
        match self.constant {
            0 => Ok(()),
            c if c < 0 && c > i64::MIN => write!(f, " - {}", c.unsigned_abs()),
            c => write!(f, " + {c}"),
        }
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Symbol(s) => write!(f, "{s}"),
            Atom::FloorDiv(a, b) => write!(f, "floordiv({a}, {b})"),
            Atom::Mod(a, b) => write!(f, "mod({a}, {b})"),
            Atom::Min(a, b) => write!(f, "min({a}, {b})"),
            Atom::Max(a, b) => write!(f, "max({a}, {b})"),
        }
    }
}

impl std::str::FromStr for Expr {
    type Err = ParseError;
    fn from_str(s: &str) -> Result<Expr, ParseError> {
        let mut lexer = Lexer::new(s);
        let e = Expr::parse(&mut lexer)?;
        match lexer.peek() {
            Token::End => Ok(e),
            other => Err(lexer.error(format!("unexpected {other} after the expression"))),
        }
    }
}
