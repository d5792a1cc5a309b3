//! Scalar code: what one element of a result is computed from.
//!
//! Invariant: a [`Code`] is a DAG in topological order, without two equal nodes, every node typed by
//! [`Code::push`], which refuses operands of wrong types.

use crate::dtype::{Class, DType};
use crate::expr::Expr;
use crate::id::{Arena, Id};
use crate::semantics;
use crate::text::{Commas, Lexer, ParseError, Token};
use std::collections::HashMap;
use std::fmt;

#[cfg(test)]
mod tests;

macro_rules! ops {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $text:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs)]
        pub enum $name { $($variant),* }

        impl $name {
            /// Every operation.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The name in the text forms.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }

            /// The operation of that name.
            pub fn from_name(name: &str) -> Option<$name> {
                match name { $($text => Some($name::$variant),)* _ => None }
            }
        }
    };
}

ops! {
    /// Operations on one value; the result has the operand's type. Defined in [`crate::semantics`].
    UnaryOp {
        Neg = "neg", Abs = "abs", Sign = "sign", Not = "not", Floor = "floor", Ceil = "ceil", Round = "round",
        Trunc = "trunc", Sqrt = "sqrt", Recip = "recip", Exp = "exp", Log = "log", Sin = "sin", Cos = "cos",
        Tan = "tan", Asin = "asin", Acos = "acos", Atan = "atan", Sinh = "sinh", Cosh = "cosh", Tanh = "tanh",
        Asinh = "asinh", Acosh = "acosh", Atanh = "atanh", Erf = "erf", Sigmoid = "sigmoid",
    }
}

ops! {
    /// Operations on two values of one type; comparisons give bool, the others that type but for `pair` and `dot2`.
    /// `rem` has the sign of the dividend, `mod` that of the divisor; `dot4` of two i32 is the dot product of their bytes, those
    /// of the left one unsigned, those of the right one signed. `pair` of two f32 is an i32 of both as bf16, the left one in
    /// the low half; `dot2` of two such i32 is the dot product of their halves in f32. Defined in [`crate::semantics`].
    BinaryOp {
        Add = "add", Sub = "sub", Mul = "mul", Div = "div", Rem = "rem", Mod = "mod", Pow = "pow", Min = "min",
        Max = "max", And = "and", Or = "or", Xor = "xor", Shl = "shl", Shr = "shr", Dot4 = "dot4",
        Pair = "pair", Dot2 = "dot2", Eq = "eq", Ne = "ne", Lt = "lt", Le = "le", Gt = "gt", Ge = "ge",
    }
}

impl BinaryOp {
    /// Whether the result is bool.
    pub fn is_comparison(self) -> bool {
        use BinaryOp::*;
        matches!(self, Eq | Ne | Lt | Le | Gt | Ge)
    }

    /// The type of the result for operands of a type, on which the operation is defined.
    pub fn result_type(self, operands: DType) -> DType {
        match self {
            BinaryOp::Pair => DType::I32,
            BinaryOp::Dot2 => DType::F32,
            _ if self.is_comparison() => DType::Bool,
            _ => operands,
        }
    }
}

/// A typed scalar constant. Floats narrower than f32 keep their value as an f32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Constant {
    /// Its type.
    pub dtype: DType,
    /// The value: an i64 (integers, bool), or the bits of an f32 ([`Class::Float`]) or f64.
    pub bits: u64,
}

impl Constant {
    /// A float constant, rounded to the type (an infinity stays one where the type has it); integers truncate.
    pub fn float(dtype: DType, value: f64) -> Constant {
        let bits = match dtype.class() {
            // A conversion would saturate, but a constant says what it means.
            Class::Float if dtype == DType::F8E5M2 && value.is_infinite() => u64::from((value as f32).to_bits()),
            Class::Float => u64::from(semantics::narrow(dtype, value).to_bits()),
            Class::Double => value.to_bits(),
            _ => semantics::float_to_int(dtype, value) as u64,
        };
        Constant { dtype, bits }
    }

    /// An integer constant, wrapped to the type; converted where the type is a float.
    pub fn int(dtype: DType, value: i64) -> Constant {
        match dtype.class() {
            Class::Float | Class::Double => Constant::float(dtype, value as f64),
            _ => Constant { dtype, bits: semantics::wrap(dtype, value) as u64 },
        }
    }

    /// Element `i` of row-major data; nothing for complex numbers and strings.
    pub fn load(dtype: DType, bytes: &[u8], i: usize) -> Option<Constant> {
        let bits = match dtype.class() {
            Class::Float => u64::from(semantics::load_f32(dtype, bytes, i).to_bits()),
            Class::Double => semantics::load_f64(dtype, bytes, i).to_bits(),
            Class::Signed | Class::Unsigned | Class::Bool => semantics::load_i64(dtype, bytes, i) as u64,
            Class::Complex | Class::Str => return None,
        };
        Some(Constant { dtype, bits })
    }

    /// Appends the constant as an element of row-major data.
    pub fn store(self, out: &mut Vec<u8>) {
        match self.dtype.class() {
            Class::Float => semantics::store_f32(self.dtype, f32::from_bits(self.bits as u32), out),
            Class::Double => out.extend_from_slice(&self.bits.to_le_bytes()),
            Class::Signed | Class::Unsigned | Class::Bool | Class::Complex | Class::Str => {
                semantics::store_i64(self.dtype, self.bits as i64, out);
            }
        }
    }

    /// The value as f64.
    pub fn as_f64(self) -> f64 {
        match self.dtype.class() {
            Class::Float => f64::from(f32::from_bits(self.bits as u32)),
            Class::Double => f64::from_bits(self.bits),
            Class::Unsigned => self.bits as f64,
            Class::Signed | Class::Bool | Class::Complex | Class::Str => self.bits as i64 as f64,
        }
    }

    /// The value as i64, where the type is an integer or bool (u64 by its bits).
    pub fn as_i64(self) -> Option<i64> {
        (self.dtype.is_int() || self.dtype == DType::Bool).then_some(self.bits as i64)
    }

    /// Parses the text form.
    ///
    /// # Errors
    /// The text is no constant.
    pub fn parse(lexer: &mut Lexer<'_>) -> Result<Constant, ParseError> {
        let text = match *lexer.peek() {
            Token::Number(n) => n,
            Token::Word(w) => w,
            ref other => return Err(lexer.error(format!("expected a constant, found {other}"))),
        };
        let fail = lexer.error(format!("`{text}` is no constant such as `0.5f32`, `3i64`, `true`, `inf_f32`"));
        lexer.bump();
        if text == "true" || text == "false" {
            return Ok(Constant { dtype: DType::Bool, bits: u64::from(text == "true") });
        }
        for (name, value) in [("inf_", f64::INFINITY), ("minus_inf_", f64::NEG_INFINITY), ("nan_", f64::NAN)] {
            if let Some(dtype) = text.strip_prefix(name).and_then(DType::from_name) {
                return Ok(Constant::float(dtype, value));
            }
        }
        // The longest suffix that names a type and leaves a number.
        for dtype in DType::ALL {
            let Some(number) = text.strip_suffix(dtype.name()) else { continue };
            if dtype.is_float() {
                // What was printed of an f32 is only that f32 when it is read as one.
                let value = match dtype.class() {
                    Class::Float => number.parse::<f32>().map(f64::from),
                    _ => number.parse::<f64>(),
                };
                if let Ok(v) = value {
                    return Ok(Constant::float(dtype, v));
                }
            } else if let Ok(v) = number.parse::<i128>() {
                return Ok(Constant { dtype, bits: semantics::wrap(dtype, v as i64) as u64 });
            }
        }
        Err(fail)
    }
}

impl fmt::Display for Constant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let d = self.dtype;
        match d.class() {
            Class::Bool => write!(f, "{}", self.bits != 0),
            Class::Float | Class::Double => {
                let v = self.as_f64();
                if v.is_nan() {
                    write!(f, "nan_{d}")
                } else if v.is_infinite() {
                    write!(f, "{}inf_{d}", if v < 0.0 { "minus_" } else { "" })
                } else if d.class() == Class::Float {
                    write!(f, "{:?}{d}", v as f32)
                } else {
                    write!(f, "{v:?}{d}")
                }
            }
            Class::Unsigned => write!(f, "{}{d}", self.bits),
            Class::Signed | Class::Complex | Class::Str => write!(f, "{}{d}", self.bits as i64),
        }
    }
}

impl fmt::Debug for Constant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a load of a nest reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// The n-th input of the op (or group).
    Input(usize),
    /// The result of an earlier stage of the same definition.
    Stage(usize),
}

/// One coordinate of a load.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Coord {
    /// An expression over the nest's index symbols, known to be in range.
    Index(Expr),
    /// A computed integer (i64): negative counts from the end; out of range is a run-time error.
    Value(Id<Scalar>),
}

impl Coord {
    /// The expression, where it is one.
    pub fn expr(&self) -> Option<&Expr> {
        match self {
            Coord::Index(e) => Some(e),
            Coord::Value(_) => None,
        }
    }
}

/// `left < right` over index symbols.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Less {
    /// Left side.
    pub left: Expr,
    /// Right side.
    pub right: Expr,
}

/// A node of scalar code.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scalar {
    /// The n-th argument.
    Arg(usize),
    /// A constant.
    Const(Constant),
    /// An index expression as an i64 (only in nests).
    Index(Expr),
    /// An element of an input or an earlier stage (only in nests).
    Load(Source, Vec<Coord>),
    /// An operation on one value.
    Unary(UnaryOp, Id<Scalar>),
    /// An operation on two values.
    Binary(BinaryOp, Id<Scalar>, Id<Scalar>),
    /// `a * b + c` of f32 or f64, rounded once; on levels without such an instruction the product is rounded too.
    Fma(Id<Scalar>, Id<Scalar>, Id<Scalar>),
    /// `if a { b } else { c }`, both evaluated.
    Select(Id<Scalar>, Id<Scalar>, Id<Scalar>),
    /// Conversion to a type.
    Cast(DType, Id<Scalar>),
    /// `then` where all conditions hold, else `other`; loads of `then` happen only where they hold (only in nests).
    Guard(Vec<Less>, Id<Scalar>, Id<Scalar>),
}

impl Scalar {
    /// The nodes that this one reads.
    pub fn operands(&self) -> Vec<Id<Scalar>> {
        match self {
            Scalar::Arg(_) | Scalar::Const(_) | Scalar::Index(_) => vec![],
            Scalar::Load(_, coords) => coords
                .iter()
                .filter_map(|c| match c {
                    Coord::Index(_) => None,
                    Coord::Value(v) => Some(*v),
                })
                .collect(),
            Scalar::Unary(_, a) | Scalar::Cast(_, a) => vec![*a],
            Scalar::Binary(_, a, b) | Scalar::Guard(_, a, b) => vec![*a, *b],
            Scalar::Fma(a, b, c) | Scalar::Select(a, b, c) => vec![*a, *b, *c],
        }
    }

    /// The same node with its operands replaced by `f`.
    pub fn with_operands(&self, f: &mut dyn FnMut(Id<Scalar>) -> Id<Scalar>) -> Scalar {
        match self {
            Scalar::Arg(_) | Scalar::Const(_) | Scalar::Index(_) => self.clone(),
            Scalar::Load(source, coords) => Scalar::Load(
                *source,
                coords
                    .iter()
                    .map(|c| match c {
                        Coord::Index(e) => Coord::Index(e.clone()),
                        Coord::Value(v) => Coord::Value(f(*v)),
                    })
                    .collect(),
            ),
            Scalar::Unary(op, a) => Scalar::Unary(*op, f(*a)),
            Scalar::Cast(d, a) => Scalar::Cast(*d, f(*a)),
            Scalar::Binary(op, a, b) => Scalar::Binary(*op, f(*a), f(*b)),
            Scalar::Fma(a, b, c) => Scalar::Fma(f(*a), f(*b), f(*c)),
            Scalar::Select(a, b, c) => Scalar::Select(f(*a), f(*b), f(*c)),
            Scalar::Guard(conditions, a, b) => Scalar::Guard(conditions.clone(), f(*a), f(*b)),
        }
    }
}

/// Scalar code is not well typed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TypeError(pub String);

/// What [`Code::inline`] calls with the code that it adds to, a node and its type: gives the node that stands for it, or
/// nothing where the node is copied.
pub type Rewrite<'a> = dyn FnMut(&mut Code, &Scalar, DType) -> Result<Option<Id<Scalar>>, TypeError> + 'a;

/// Scalar code with one result. See the module documentation.
#[derive(Clone, Debug, Default)]
pub struct Code {
    nodes: Arena<Scalar>,
    types: Vec<DType>,
    known: HashMap<Scalar, Id<Scalar>>,
    result: Option<Id<Scalar>>,
}

impl PartialEq for Code {
    fn eq(&self, other: &Code) -> bool {
        // Text equality ignores the order in which equal DAGs were built.
        self.nodes == other.nodes && self.types == other.types && self.result == other.result
            || self.to_string() == other.to_string() && self.arg_types() == other.arg_types()
    }
}

impl Code {
    /// Code without nodes.
    pub fn new() -> Code {
        Code::default()
    }

    /// Code that returns its argument 0.
    pub fn identity(dtype: DType) -> Code {
        let mut code = Code::new();
        let a = code.arg(0, dtype);
        code.set_result(a);
        code
    }

    /// Adds an argument of a type.
    pub fn arg(&mut self, n: usize, dtype: DType) -> Id<Scalar> {
        self.insert(Scalar::Arg(n), dtype)
    }

    /// Adds a load of an element of a type.
    pub fn load(&mut self, source: Source, coords: Vec<Coord>, dtype: DType) -> Id<Scalar> {
        self.insert(Scalar::Load(source, coords), dtype)
    }

    /// Adds a load at index expressions.
    pub fn load_at(&mut self, source: Source, index: Vec<Expr>, dtype: DType) -> Id<Scalar> {
        self.load(source, index.into_iter().map(Coord::Index).collect(), dtype)
    }

    /// Adds a constant.
    pub fn constant(&mut self, c: Constant) -> Id<Scalar> {
        self.insert(Scalar::Const(c), c.dtype)
    }

    /// Adds a float (or converted integer) constant of a type.
    pub fn float(&mut self, dtype: DType, v: f64) -> Id<Scalar> {
        self.constant(Constant::float(dtype, v))
    }

    /// Adds an index expression.
    pub fn index(&mut self, e: Expr) -> Id<Scalar> {
        self.insert(Scalar::Index(e), DType::I64)
    }

    /// Adds any node that is neither argument nor load, after checking its operands' types.
    ///
    /// # Errors
    /// The operands' types do not fit the operation.
    pub fn push(&mut self, node: Scalar) -> Result<Id<Scalar>, TypeError> {
        let of = |id: &Id<Scalar>| {
            self.types.get(id.index()).copied().ok_or_else(|| TypeError(format!("operand {id} is not defined")))
        };
        let dtype = match &node {
            Scalar::Const(c) => c.dtype,
            Scalar::Index(_) => DType::I64,
            Scalar::Arg(_) | Scalar::Load(..) => {
                return Err(TypeError("arguments and loads are added with their types".into()));
            }
            Scalar::Unary(op, a) => unary_type(*op, of(a)?)?,
            Scalar::Binary(op, a, b) => binary_type(*op, of(a)?, of(b)?)?,
            Scalar::Fma(a, b, c) => {
                let (a, b, c) = (of(a)?, of(b)?, of(c)?);
                if !matches!(a, DType::F32 | DType::F64) || a != b || a != c {
                    return Err(TypeError(format!("fma of {a}, {b}, {c}: wants three of f32, or of f64")));
                }
                a
            }
            Scalar::Select(c, a, b) => {
                let (c, a, b) = (of(c)?, of(a)?, of(b)?);
                if c != DType::Bool || a != b {
                    return Err(TypeError(format!("select of {c}, {a}, {b}: wants bool and two equal types")));
                }
                a
            }
            Scalar::Guard(_, a, b) => {
                let (a, b) = (of(a)?, of(b)?);
                if a != b {
                    return Err(TypeError(format!("guard of {a} and {b}: wants equal types")));
                }
                a
            }
            Scalar::Cast(to, a) => {
                let from = of(a)?;
                if matches!(from.class(), Class::Complex | Class::Str)
                    || matches!(to.class(), Class::Complex | Class::Str)
                {
                    return Err(TypeError(format!("cast from {from} to {to} is no kernel operation")));
                }
                *to
            }
        };
        Ok(self.insert(node, dtype))
    }

    /// Adds a unary operation.
    ///
    /// # Errors
    /// The operand's type does not fit.
    pub fn unary(&mut self, op: UnaryOp, a: Id<Scalar>) -> Result<Id<Scalar>, TypeError> {
        self.push(Scalar::Unary(op, a))
    }

    /// Adds a binary operation.
    ///
    /// # Errors
    /// The operands' types do not fit.
    pub fn binary(&mut self, op: BinaryOp, a: Id<Scalar>, b: Id<Scalar>) -> Result<Id<Scalar>, TypeError> {
        self.push(Scalar::Binary(op, a, b))
    }

    /// Adds a product and sum with one rounding.
    ///
    /// # Errors
    /// The operands' types do not fit.
    pub fn fma(&mut self, a: Id<Scalar>, b: Id<Scalar>, c: Id<Scalar>) -> Result<Id<Scalar>, TypeError> {
        self.push(Scalar::Fma(a, b, c))
    }

    /// Adds a conversion, unless the operand has the type already.
    ///
    /// # Errors
    /// The operand's type cannot be converted.
    pub fn cast(&mut self, to: DType, a: Id<Scalar>) -> Result<Id<Scalar>, TypeError> {
        if self.dtype(a) == to { Ok(a) } else { self.push(Scalar::Cast(to, a)) }
    }

    /// Adds a selection.
    ///
    /// # Errors
    /// The operands' types do not fit.
    pub fn select(&mut self, c: Id<Scalar>, a: Id<Scalar>, b: Id<Scalar>) -> Result<Id<Scalar>, TypeError> {
        self.push(Scalar::Select(c, a, b))
    }

    fn insert(&mut self, node: Scalar, dtype: DType) -> Id<Scalar> {
        if let Some(&id) = self.known.get(&node) {
            return id;
        }
        let id = self.nodes.push(node.clone());
        self.types.push(dtype);
        self.known.insert(node, id);
        id
    }

    /// Names the node that is the result.
    pub fn set_result(&mut self, id: Id<Scalar>) {
        self.result = Some(id);
    }

    /// The node that is the result; the last where none was named.
    pub fn result(&self) -> Id<Scalar> {
        self.result.unwrap_or(Id::from_index(self.nodes.len().saturating_sub(1)))
    }

    /// The type of the result.
    pub fn result_type(&self) -> DType {
        self.dtype(self.result())
    }

    /// The type of a node.
    pub fn dtype(&self, id: Id<Scalar>) -> DType {
        self.types[id.index()]
    }

    /// A node.
    pub fn node(&self, id: Id<Scalar>) -> &Scalar {
        &self.nodes[id]
    }

    /// All nodes in topological order.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = (Id<Scalar>, &Scalar)> {
        self.nodes.iter()
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Which nodes the result depends on.
    pub fn live(&self) -> Vec<bool> {
        let mut live = vec![false; self.nodes.len()];
        if live.is_empty() {
            return live;
        }
        live[self.result().index()] = true;
        for i in (0..live.len()).rev() {
            if live[i] {
                for o in self.nodes[Id::from_index(i)].operands() {
                    live[o.index()] = true;
                }
            }
        }
        live
    }

    /// The arguments that occur, with their types, by number.
    pub fn arg_types(&self) -> std::collections::BTreeMap<usize, DType> {
        self.nodes
            .iter()
            .filter_map(|(id, n)| match n {
                Scalar::Arg(k) => Some((*k, self.dtype(id))),
                _ => None,
            })
            .collect()
    }

    /// Copies the nodes that the result of `other` needs, each rewritten by `f` (which may give another node of
    /// `self` for it, such as an argument's value); returns the node that stands for `other`'s result.
    ///
    /// # Errors
    /// A rewritten node does not fit its operands' types.
    pub fn inline(&mut self, other: &Code, f: &mut Rewrite<'_>) -> Result<Id<Scalar>, TypeError> {
        let live = other.live();
        let mut map: Vec<Option<Id<Scalar>>> = vec![None; other.len()];
        let missing = || TypeError("scalar code refers to a node that comes later".into());
        for (id, node) in other.nodes() {
            if !live[id.index()] {
                continue;
            }
            let dtype = other.dtype(id);
            let mut broken = false;
            let moved = node.with_operands(&mut |o| {
                map.get(o.index()).copied().flatten().unwrap_or_else(|| {
                    broken = true;
                    o
                })
            });
            if broken {
                return Err(missing());
            }
            let new = match f(self, &moved, dtype)? {
                Some(new) => new,
                None => match moved {
                    Scalar::Arg(_) | Scalar::Load(..) => self.insert(moved, dtype),
                    other => self.push(other)?,
                },
            };
            map[id.index()] = Some(new);
        }
        map.get(other.result().index()).copied().flatten().ok_or_else(missing)
    }

    /// Parses `{ [let tN = node;]* node }`. Arguments and loads get their types from `type_of`.
    ///
    /// # Errors
    /// The text is no code or is not well typed.
    pub fn parse(lexer: &mut Lexer<'_>, type_of: &dyn Fn(&Scalar) -> Option<DType>) -> Result<Code, ParseError> {
        let mut code = Code::new();
        let mut names = HashMap::new();
        lexer.expect('{')?;
        while lexer.eat_word("let") {
            let name = lexer.word()?.to_string();
            lexer.expect('=')?;
            let id = code.parse_node(lexer, &names, type_of)?;
            lexer.expect(';')?;
            names.insert(name, id);
        }
        let result = code.parse_node(lexer, &names, type_of)?;
        lexer.expect('}')?;
        code.set_result(result);
        Ok(code)
    }

    fn parse_node(
        &mut self,
        lexer: &mut Lexer<'_>,
        names: &HashMap<String, Id<Scalar>>,
        type_of: &dyn Fn(&Scalar) -> Option<DType>,
    ) -> Result<Id<Scalar>, ParseError> {
        lexer.enter()?;
        let word = match lexer.peek() {
            Token::Word(w) => *w,
            _ => {
                let c = Constant::parse(lexer)?;
                lexer.leave();
                return Ok(self.constant(c));
            }
        };
        let here = lexer.error(format!("`{word}` is no scalar operation"));
        let wrong = |e: TypeError| ParseError { message: e.0, ..here.clone() };
        let id = if let Some(&id) = names.get(word) {
            lexer.bump();
            id
        } else if let Some(op) = UnaryOp::from_name(word) {
            lexer.bump();
            let a = self.operands::<1>(lexer, names, type_of)?;
            self.unary(op, a[0]).map_err(wrong)?
        } else if let Some(op) = BinaryOp::from_name(word) {
            lexer.bump();
            let [a, b] = self.operands(lexer, names, type_of)?;
            self.binary(op, a, b).map_err(wrong)?
        } else if word == "fma" {
            lexer.bump();
            let [a, b, c] = self.operands(lexer, names, type_of)?;
            self.fma(a, b, c).map_err(wrong)?
        } else if word == "select" {
            lexer.bump();
            let [a, b, c] = self.operands(lexer, names, type_of)?;
            self.select(a, b, c).map_err(wrong)?
        } else if let Some(to) = word.strip_prefix("to_").and_then(DType::from_name) {
            lexer.bump();
            let [a] = self.operands(lexer, names, type_of)?;
            self.push(Scalar::Cast(to, a)).map_err(wrong)?
        } else if word == "index" {
            lexer.bump();
            lexer.expect('(')?;
            let e = Expr::parse(lexer)?;
            lexer.expect(')')?;
            self.index(e)
        } else if word == "guard" {
            lexer.bump();
            let conditions = lexer.list('[', ']', |l| {
                let left = Expr::parse(l)?;
                l.expect('<')?;
                Ok(Less { left, right: Expr::parse(l)? })
            })?;
            let [a, b] = self.operands(lexer, names, type_of)?;
            self.push(Scalar::Guard(conditions, a, b)).map_err(wrong)?
        } else if let Some(source) = parse_source(word) {
            lexer.bump();
            let mut coords = Vec::new();
            lexer.expect('[')?;
            while !lexer.eat(']') {
                if !coords.is_empty() {
                    lexer.expect(',')?;
                }
                coords.push(if lexer.eat('@') || lexer.eat_word("at") {
                    lexer.expect('(')?;
                    let v = self.parse_node(lexer, names, type_of)?;
                    lexer.expect(')')?;
                    Coord::Value(v)
                } else {
                    Coord::Index(Expr::parse(lexer)?)
                });
            }
            let node = Scalar::Load(source, coords);
            let dtype = type_of(&node).ok_or_else(|| here.clone())?;
            self.insert(node, dtype)
        } else if let Some(n) = word.strip_prefix('a').and_then(|n| n.parse().ok()) {
            lexer.bump();
            let node = Scalar::Arg(n);
            let dtype = type_of(&node).ok_or_else(|| here.clone())?;
            self.insert(node, dtype)
        } else {
            let c = Constant::parse(lexer).map_err(|_| here)?;
            self.constant(c)
        };
        lexer.leave();
        Ok(id)
    }

    fn operands<const N: usize>(
        &mut self,
        lexer: &mut Lexer<'_>,
        names: &HashMap<String, Id<Scalar>>,
        type_of: &dyn Fn(&Scalar) -> Option<DType>,
    ) -> Result<[Id<Scalar>; N], ParseError> {
        let list = lexer.list('(', ')', |l| self.parse_node(l, names, type_of))?;
        let found = list.len();
        list.try_into().map_err(|_| lexer.error(format!("expected {N} operands, found {found}")))
    }

    fn write_node(
        &self,
        f: &mut fmt::Formatter<'_>,
        id: Id<Scalar>,
        named: &[Option<usize>],
        top: bool,
    ) -> fmt::Result {
        if let (Some(n), false) = (named[id.index()], top) {
            return write!(f, "t{n}");
        }
        let node = &self.nodes[id];
        match node {
            Scalar::Arg(n) => return write!(f, "a{n}"),
            Scalar::Const(c) => return write!(f, "{c}"),
            Scalar::Index(e) => return write!(f, "index({e})"),
            Scalar::Load(source, coords) => {
                write!(f, "{source}[")?;
                for (i, c) in coords.iter().enumerate() {
                    f.write_str(if i == 0 { "" } else { ", " })?;
                    match c {
                        Coord::Index(e) => write!(f, "{e}")?,
                        Coord::Value(v) => {
                            f.write_str("at(")?;
                            self.write_node(f, *v, named, false)?;
                            f.write_str(")")?;
                        }
                    }
                }
                return f.write_str("]");
            }
            Scalar::Unary(op, _) => f.write_str(op.name())?,
            Scalar::Binary(op, ..) => f.write_str(op.name())?,
            Scalar::Fma(..) => f.write_str("fma")?,
            Scalar::Select(..) => f.write_str("select")?,
            Scalar::Cast(to, _) => write!(f, "to_{to}")?,
            Scalar::Guard(conditions, ..) => {
                f.write_str("guard[")?;
                for (i, c) in conditions.iter().enumerate() {
                    write!(f, "{}{} < {}", if i == 0 { "" } else { ", " }, c.left, c.right)?;
                }
                f.write_str("]")?;
            }
        }
        for (i, o) in node.operands().into_iter().enumerate() {
            f.write_str(if i == 0 { "(" } else { ", " })?;
            self.write_node(f, o, named, false)?;
        }
        f.write_str(")")
    }
}

/// How deep calls nest in the text form before a node is named.
const MAX_NESTED: usize = 32;

fn parse_source(word: &str) -> Option<Source> {
    let number = |p: &str| word.strip_prefix(p).and_then(|n| n.parse().ok());
    number("in").map(Source::Input).or_else(|| number("stage").map(Source::Stage))
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Input(n) => write!(f, "in{n}"),
            Source::Stage(n) => write!(f, "stage{n}"),
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("{}");
        }
        let live = self.live();
        let mut uses = vec![0usize; self.len()];
        for (id, node) in self.nodes() {
            if live[id.index()] {
                for o in node.operands() {
                    uses[o.index()] += 1;
                }
            }
        }
        let mut named = vec![None; self.len()];
        // How deep the text of a node nests; deep chains are cut, so that neither printing nor parsing is.
        let mut depths = vec![0usize; self.len()];
        let mut count = 0;
        f.write_str("{ ")?;
        for (id, node) in self.nodes() {
            let small = matches!(node, Scalar::Arg(_) | Scalar::Const(_));
            let inner = node.operands().into_iter().filter(|o| named[o.index()].is_none());
            depths[id.index()] = 1 + inner.map(|o| depths[o.index()]).max().unwrap_or(0);
            if live[id.index()] && (uses[id.index()] > 1 || depths[id.index()] > MAX_NESTED) && !small {
                write!(f, "let t{count} = ")?;
                self.write_node(f, id, &named, true)?;
                f.write_str("; ")?;
                named[id.index()] = Some(count);
                count += 1;
            }
        }
        self.write_node(f, self.result(), &named, false)?;
        f.write_str(" }")
    }
}

fn unary_type(op: UnaryOp, a: DType) -> Result<DType, TypeError> {
    let fine = match a.class() {
        Class::Float | Class::Double => op != UnaryOp::Not,
        Class::Signed | Class::Unsigned => semantics::unary_int(op, a, 0).is_some(),
        Class::Bool => op == UnaryOp::Not,
        Class::Complex | Class::Str => false,
    };
    if fine { Ok(a) } else { Err(TypeError(format!("`{}` is not defined on {a}", op.name()))) }
}

fn binary_type(op: BinaryOp, a: DType, b: DType) -> Result<DType, TypeError> {
    use BinaryOp::*;
    if a != b {
        return Err(TypeError(format!("`{}` of {a} and {b}: wants equal types", op.name())));
    }
    let fine = match a.class() {
        _ if matches!(op, Dot4 | Dot2) => a == DType::I32,
        _ if op == Pair => a == DType::F32,
        Class::Float | Class::Double => !matches!(op, And | Or | Xor | Shl | Shr),
        Class::Signed | Class::Unsigned => true,
        Class::Bool => op.is_comparison() || matches!(op, And | Or | Xor | Add | Mul | Min | Max),
        Class::Complex | Class::Str => false,
    };
    match fine {
        false => Err(TypeError(format!("`{}` is not defined on {a}", op.name()))),
        true => Ok(op.result_type(a)),
    }
}

/// Operands of a call, for other text forms.
pub fn display_ids<T>(ids: &[Id<T>]) -> impl fmt::Display + '_ {
    Commas(ids.iter())
}
