//! Attributes of ops as data: what the text form prints and parses.
//!
//! Invariant: an op rebuilt from its own attributes equals itself.

use super::OpError;
use crate::dtype::DType;
use crate::expr::Expr;
use crate::graph::{Graph, TensorType};
use crate::scalar::{Code, Constant};
use crate::text::{Commas, Lexer, ParseError, Token};
use std::fmt;
use std::sync::Arc;

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A whole number.
    Int(i64),
    /// A typed scalar.
    Constant(Constant),
    /// A truth value.
    Bool(bool),
    /// A word of the text form, such as `max`.
    Word(String),
    /// Any text.
    Text(String),
    /// Whole numbers or dims.
    List(Vec<Expr>),
    /// Scalar code.
    Code(Code),
    /// Types of tensors.
    Types(Vec<TensorType>),
    /// A graph within the graph; its constants are small, what is large is an input.
    Graph(Arc<Graph>),
}

/// Named attributes in the order in which they are printed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attributes(pub Vec<(String, Attribute)>);

impl From<i64> for Attribute {
    fn from(v: i64) -> Self {
        Attribute::Int(v)
    }
}
impl From<usize> for Attribute {
    fn from(v: usize) -> Self {
        Attribute::Int(i64::try_from(v).unwrap_or(i64::MAX))
    }
}
impl From<bool> for Attribute {
    fn from(v: bool) -> Self {
        Attribute::Bool(v)
    }
}
impl From<Constant> for Attribute {
    fn from(v: Constant) -> Self {
        // `true` and `false` are parsed as this.
        if v.dtype == DType::Bool { Attribute::Bool(v.bits != 0) } else { Attribute::Constant(v) }
    }
}
impl From<DType> for Attribute {
    fn from(v: DType) -> Self {
        Attribute::Word(v.name().into())
    }
}
impl From<&str> for Attribute {
    fn from(v: &str) -> Self {
        Attribute::Word(v.into())
    }
}
impl From<&[usize]> for Attribute {
    fn from(v: &[usize]) -> Self {
        Attribute::List(v.iter().map(|&x| Expr::from(x)).collect())
    }
}
impl From<&[i64]> for Attribute {
    fn from(v: &[i64]) -> Self {
        Attribute::List(v.iter().map(|&x| Expr::from(x)).collect())
    }
}
impl From<&[Expr]> for Attribute {
    fn from(v: &[Expr]) -> Self {
        Attribute::List(v.to_vec())
    }
}
impl From<&Code> for Attribute {
    fn from(v: &Code) -> Self {
        Attribute::Code(v.clone())
    }
}

impl From<Vec<TensorType>> for Attribute {
    fn from(v: Vec<TensorType>) -> Self {
        Attribute::Types(v)
    }
}
impl From<Graph> for Attribute {
    fn from(v: Graph) -> Self {
        Attribute::Graph(Arc::new(v))
    }
}

impl Attributes {
    /// No attributes.
    pub fn new() -> Attributes {
        Attributes::default()
    }

    /// With one more attribute.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Attribute>) -> Attributes {
        self.0.push((name.into(), value.into()));
        self
    }

    /// An attribute, if it is there.
    pub fn get(&self, name: &str) -> Option<&Attribute> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    fn need<'a, T>(&'a self, name: &str, kind: &str, f: impl Fn(&'a Attribute) -> Option<T>) -> Result<T, OpError> {
        self.get(name).and_then(f).ok_or_else(|| OpError::new(format!("attribute `{name}` must be {kind}")))
    }

    /// A whole number.
    ///
    /// # Errors
    /// The attribute is absent or something else.
    pub fn int(&self, name: &str) -> Result<i64, OpError> {
        self.need(name, "a whole number", |a| match a {
            Attribute::Int(v) => Some(*v),
            _ => None,
        })
    }

    /// A whole number that is not negative.
    ///
    /// # Errors
    /// The attribute is absent or something else.
    pub fn size(&self, name: &str) -> Result<usize, OpError> {
        usize::try_from(self.int(name)?).map_err(|_| OpError::new(format!("attribute `{name}` is negative")))
    }

    /// A truth value.
    ///
    /// # Errors
    /// The attribute is absent or something else.
    pub fn bool(&self, name: &str) -> Result<bool, OpError> {
        self.need(name, "true or false", |a| match a {
            Attribute::Bool(v) => Some(*v),
            Attribute::Constant(c) if c.dtype == DType::Bool => Some(c.bits != 0),
            _ => None,
        })
    }

    /// The boolean of that name; false where there is none.
    ///
    /// # Errors
    /// It is no boolean.
    pub fn optional_flag(&self, name: &str) -> Result<bool, OpError> {
        if self.get(name).is_some() { self.bool(name) } else { Ok(false) }
    }

    /// A typed scalar.
    ///
    /// # Errors
    /// The attribute is absent or something else.
    pub fn constant(&self, name: &str) -> Result<Constant, OpError> {
        self.need(name, "a typed constant", |a| match a {
            Attribute::Constant(c) => Some(*c),
            Attribute::Bool(b) => Some(Constant { dtype: DType::Bool, bits: u64::from(*b) }),
            _ => None,
        })
    }

    /// A word.
    ///
    /// # Errors
    /// The attribute is absent or something else.
    pub fn word(&self, name: &str) -> Result<&str, OpError> {
        self.need(name, "a word", |a| match a {
            Attribute::Word(w) | Attribute::Text(w) => Some(w.as_str()),
            _ => None,
        })
    }

    /// An element type.
    ///
    /// # Errors
    /// The attribute is absent or something else.
    pub fn dtype(&self, name: &str) -> Result<DType, OpError> {
        let word = self.word(name)?;
        DType::from_name(word).ok_or_else(|| OpError::new(format!("`{word}` is no element type")))
    }

    /// A list of expressions.
    ///
    /// # Errors
    /// The attribute is absent or something else.
    pub fn exprs(&self, name: &str) -> Result<Vec<Expr>, OpError> {
        self.need(name, "a list of dims", |a| match a {
            Attribute::List(v) => Some(v.clone()),
            _ => None,
        })
    }

    /// A list of whole numbers.
    ///
    /// # Errors
    /// The attribute is absent or something else.
    pub fn ints(&self, name: &str) -> Result<Vec<i64>, OpError> {
        let list = self.exprs(name)?;
        let ints: Option<Vec<i64>> = list.iter().map(Expr::as_const).collect();
        ints.ok_or_else(|| OpError::new(format!("attribute `{name}` must hold whole numbers")))
    }

    /// A list of whole numbers that are not negative.
    ///
    /// # Errors
    /// The attribute is absent or something else.
    pub fn sizes(&self, name: &str) -> Result<Vec<usize>, OpError> {
        let fail = |_| OpError::new(format!("attribute `{name}` holds a negative number"));
        self.ints(name)?.into_iter().map(|v| usize::try_from(v).map_err(fail)).collect()
    }

    /// Scalar code.
    ///
    /// # Errors
    /// The attribute is absent or something else.
    pub fn code(&self, name: &str) -> Result<Code, OpError> {
        self.need(name, "scalar code", |a| match a {
            Attribute::Code(c) => Some(c.clone()),
            _ => None,
        })
    }

    /// Types of tensors.
    ///
    /// # Errors
    /// The attribute is absent or something else.
    pub fn types(&self, name: &str) -> Result<&[TensorType], OpError> {
        self.need(name, "a list of types", |a| match a {
            Attribute::Types(t) => Some(t.as_slice()),
            _ => None,
        })
    }

    /// A graph.
    ///
    /// # Errors
    /// The attribute is absent or something else.
    pub fn graph(&self, name: &str) -> Result<&Graph, OpError> {
        self.need(name, "a graph", |a| match a {
            Attribute::Graph(g) => Some(&**g),
            _ => None,
        })
    }

    /// With every expression rewritten. A graph that would no longer type-check stays as it is.
    #[must_use]
    pub fn map_exprs(&self, f: &dyn Fn(&Expr) -> Expr) -> Attributes {
        let typed = |t: &TensorType| TensorType { dims: t.dims.iter().map(f).collect(), ..t.clone() };
        let rewrite = |a: &Attribute| match a {
            Attribute::List(v) => Attribute::List(v.iter().map(f).collect()),
            Attribute::Types(v) => Attribute::Types(v.iter().map(typed).collect()),
            Attribute::Graph(g) => g.rebuild(f).map_or_else(|_| a.clone(), Attribute::from),
            Attribute::Int(_) | Attribute::Constant(_) | Attribute::Bool(_) | Attribute::Word(_) => a.clone(),
            Attribute::Text(_) | Attribute::Code(_) => a.clone(),
        };
        Attributes(self.0.iter().map(|(n, a)| (n.clone(), rewrite(a))).collect())
    }

    /// Calls `f` for every symbol in an expression, those of graphs within included.
    pub fn for_each_symbol(&self, f: &mut dyn FnMut(&crate::Symbol)) {
        for (_, a) in &self.0 {
            match a {
                Attribute::List(v) => v.iter().for_each(|e| e.for_each_symbol(f)),
                Attribute::Types(v) => v.iter().flat_map(|t| &t.dims).for_each(|e| e.for_each_symbol(f)),
                Attribute::Graph(g) => {
                    g.values().flat_map(|(_, v)| &v.ty.dims).for_each(|e| e.for_each_symbol(f));
                    g.nodes().for_each(|(_, n)| n.op.operator().attributes().for_each_symbol(f));
                }
                Attribute::Int(_) | Attribute::Constant(_) | Attribute::Bool(_) | Attribute::Word(_) => {}
                Attribute::Text(_) | Attribute::Code(_) => {}
            }
        }
    }

    /// Whether some expression is no number.
    pub fn is_symbolic(&self) -> bool {
        let free = |e: &Expr| e.as_const().is_none();
        self.0.iter().any(|(_, a)| match a {
            Attribute::List(v) => v.iter().any(free),
            Attribute::Types(v) => v.iter().any(|t| t.dims.iter().any(free)),
            Attribute::Graph(g) => {
                let typed = g.values().any(|(_, v)| v.ty.dims.iter().any(free));
                typed || g.nodes().any(|(_, n)| n.op.operator().attributes().is_symbolic())
            }
            Attribute::Int(_) | Attribute::Constant(_) | Attribute::Bool(_) | Attribute::Word(_) => false,
            Attribute::Text(_) | Attribute::Code(_) => false,
        })
    }

    /// Parses `name = value` pairs, separated by commas, as long as a word is next. Arguments of scalar code have the types
    /// that `arg` gives.
    ///
    /// # Errors
    /// The text holds no attributes.
    pub fn parse(lexer: &mut Lexer<'_>, arg: &dyn Fn(usize) -> Option<DType>) -> Result<Attributes, ParseError> {
        let mut attributes = Attributes::new();
        while let Token::Word(name) = *lexer.peek() {
            lexer.bump();
            lexer.expect('=')?;
            attributes.0.push((name.to_string(), parse_value(lexer, arg)?));
            if !lexer.eat(',') {
                break;
            }
        }
        Ok(attributes)
    }
}

fn parse_value(lexer: &mut Lexer<'_>, arg: &dyn Fn(usize) -> Option<DType>) -> Result<Attribute, ParseError> {
    Ok(match lexer.peek() {
        Token::Mark('(') => Attribute::Types(lexer.list('(', ')', TensorType::parse)?),
        Token::Word("graph") => {
            lexer.enter()?;
            let graph = Graph::parse_from(lexer, &[])?;
            lexer.leave();
            Attribute::from(graph)
        }
        Token::Mark('[') => Attribute::List(lexer.list('[', ']', Expr::parse)?),
        Token::Mark('{') => Attribute::Code(Code::parse(lexer, &|node| match node {
            crate::scalar::Scalar::Arg(n) => arg(*n),
            _ => None,
        })?),
        Token::Text(_) => Attribute::Text(lexer.text()?),
        Token::Number(n) if n.parse::<i64>().is_ok() => Attribute::Int(lexer.integer()?),
        Token::Number(_) => Attribute::Constant(Constant::parse(lexer)?),
        Token::Word("true") => {
            lexer.bump();
            Attribute::Bool(true)
        }
        Token::Word("false") => {
            lexer.bump();
            Attribute::Bool(false)
        }
        Token::Word(w) if ["inf_", "minus_inf_", "nan_"].iter().any(|p| w.starts_with(p)) => {
            Attribute::Constant(Constant::parse(lexer)?)
        }
        Token::Word(_) => Attribute::Word(lexer.word()?.to_string()),
        other => return Err(lexer.error(format!("expected an attribute's value, found {other}"))),
    })
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attribute::Int(v) => write!(f, "{v}"),
            Attribute::Constant(c) => write!(f, "{c}"),
            Attribute::Bool(b) => write!(f, "{b}"),
            Attribute::Word(w) => f.write_str(w),
            Attribute::Text(t) => write!(f, "{t:?}"),
            Attribute::List(v) => write!(f, "[{}]", Commas(v)),
            Attribute::Code(c) => write!(f, "{c}"),
            Attribute::Types(v) => write!(f, "({})", Commas(v)),
            Attribute::Graph(g) => write!(f, "{g}"),
        }
    }
}

impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.0.iter().enumerate() {
            write!(f, "{}{name} = {value}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
