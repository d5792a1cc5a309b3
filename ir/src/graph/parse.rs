//! Parser of the text form of graphs.

use super::{Definition, Graph, Origin, TensorType, Value, ValueId};
use crate::DType;
use crate::expr::{Expr, Symbol};
use crate::layout::Layout;
use crate::ops::{Attributes, Op};
use crate::scalar::Constant;
use crate::tensor::Tensor;
use crate::text::{Lexer, ParseError, Token};
use std::collections::HashMap;
use std::sync::Arc;

impl TensorType {
    /// Parses `f32[batch, 768]`, optionally followed by `order [0, 2, 1]/1:8` or `order [0, 1]+0:16`.
    ///
    /// # Errors
    /// The text is no tensor type.
    pub fn parse(lexer: &mut Lexer<'_>) -> Result<TensorType, ParseError> {
        let here = lexer.error("expected an element type such as `f32`");
        let dtype = DType::from_name(lexer.word()?).ok_or(here)?;
        let dims = lexer.list('[', ']', Expr::parse)?;
        let mut ty = TensorType::new(dtype, dims);
        if lexer.eat_word("order") {
            let order = lexer.list('[', ']', Lexer::size)?;
            let mut of_axis = |sign: char| -> Result<Option<(usize, usize)>, ParseError> {
                if !lexer.eat(sign) {
                    return Ok(None);
                }
                let axis = lexer.size()?;
                lexer.expect(':')?;
                Ok(Some((axis, lexer.size()?)))
            };
            let (block, gap) = (of_axis('/')?, of_axis('+')?);
            ty.layout = Layout { order, block, gap };
            if !ty.layout.fits(ty.rank()) {
                return Err(lexer.error(format!("layout {} does not fit {} axes", ty.layout, ty.rank())));
            }
        }
        Ok(ty)
    }
}

fn optional_name(lexer: &mut Lexer<'_>) -> Result<Option<Arc<str>>, ParseError> {
    match lexer.peek() {
        Token::Text(_) => Ok(Some(lexer.text()?.into())),
        _ => Ok(None),
    }
}

impl Graph {
    /// Parses the text form; `data` holds the constants that the text refers to by number.
    ///
    /// # Errors
    /// The text is no graph, or an op refuses its operands.
    pub fn parse(source: &str, data: &[Tensor]) -> Result<Graph, ParseError> {
        Graph::parse_from(&mut Lexer::new(source), data)
    }

    /// [`Graph::parse`] of a graph within a text.
    ///
    /// # Errors
    /// As [`Graph::parse`].
    pub fn parse_from(lexer: &mut Lexer<'_>, data: &[Tensor]) -> Result<Graph, ParseError> {
        lexer.expect_word("graph")?;
        let mut graph = Graph::new(&lexer.text()?);
        let mut known: HashMap<usize, ValueId> = HashMap::new();
        lexer.expect('{')?;
        while !lexer.eat('}') {
            if lexer.eat_word("symbol") {
                let symbol = Symbol::new(lexer.word()?);
                lexer.expect_word("in")?;
                let lo = lexer.integer()?;
                lexer.expect('…')?;
                graph.symbols.insert(symbol, (lo, lexer.integer()?));
            } else if lexer.eat_word("input") {
                let number = lexer.value()?;
                let name = optional_name(lexer)?;
                lexer.expect(':')?;
                let ty = TensorType::parse(lexer)?;
                let id = graph.add_input(name.as_deref().unwrap_or(""), ty);
                define(lexer, &mut known, number, id)?;
            } else if lexer.eat_word("const") {
                graph.parse_constant(lexer, data, &mut known)?;
            } else if lexer.eat_word("output") {
                let v = operand(lexer, &known)?;
                let name = lexer.text()?;
                graph.add_output(&name, v);
            } else {
                graph.parse_node(lexer, &mut known)?;
            }
        }
        Ok(graph)
    }

    fn parse_constant(
        &mut self,
        lexer: &mut Lexer<'_>,
        data: &[Tensor],
        known: &mut HashMap<usize, ValueId>,
    ) -> Result<(), ParseError> {
        let number = lexer.value()?;
        let name = optional_name(lexer)?;
        lexer.expect(':')?;
        let ty = TensorType::parse(lexer)?;
        lexer.expect('=')?;
        let tensor = if lexer.eat_word("data") {
            let n = lexer.size()?;
            data.get(n).cloned().ok_or_else(|| lexer.error(format!("there is no data {n}")))?
        } else {
            let shape = ty.shape().ok_or_else(|| lexer.error("a constant has constant dims"))?;
            let mut bytes = Vec::new();
            for c in lexer.list('[', ']', Constant::parse)? {
                if c.dtype != ty.dtype {
                    return Err(lexer.error(format!("{c} among elements of type {}", ty.dtype)));
                }
                c.store(&mut bytes);
            }
            Tensor::new(ty.dtype, shape, bytes).map_err(|e| lexer.error(e.to_string()))?
        };
        let id = self.push_value(Value { name, ty, definition: Definition::Constant(tensor) });
        define(lexer, known, number, id)
    }

    fn parse_node(&mut self, lexer: &mut Lexer<'_>, known: &mut HashMap<usize, ValueId>) -> Result<(), ParseError> {
        let mut results = Vec::new();
        loop {
            results.push((lexer.value()?, optional_name(lexer)?));
            if !lexer.eat(',') {
                break;
            }
        }
        lexer.expect('=')?;
        let here = lexer.error("");
        let wrong = |message: String| ParseError { message, ..here.clone() };
        let name = lexer.word()?;
        let inputs = lexer.list('(', ')', |l| operand(l, known))?;
        let types: Vec<DType> = inputs.iter().map(|&v| self.ty(v).dtype).collect();
        let attributes = Attributes::parse(lexer, &|n| types.get(n).copied())?;
        let op = Op::from_attributes(name, &attributes).map_err(|e| wrong(e.to_string()))?;
        let mut origin = Origin::default();
        lexer.expect(':')?;
        let mut printed = vec![TensorType::parse(lexer)?];
        while lexer.eat(',') {
            printed.push(TensorType::parse(lexer)?);
        }
        if lexer.eat_word("from") {
            loop {
                origin.merge(&Origin::new(&lexer.text()?));
                if !lexer.eat(',') {
                    break;
                }
            }
        }
        let id = self.add_node(op, &inputs, &origin).map_err(|e| wrong(e.to_string()))?;
        let outputs = self.node(id).outputs.clone();
        if outputs.len() != results.len() || printed.len() != results.len() {
            return Err(wrong(format!("{} results, {} inferred", results.len(), outputs.len())));
        }
        for ((&v, (number, name)), ty) in outputs.iter().zip(results).zip(printed) {
            if ty.dtype != self.ty(v).dtype || ty.dims != self.ty(v).dims {
                return Err(wrong(format!("result %{number} is {ty}, inferred is {}", self.ty(v))));
            }
            self.values[v].name = name;
            self.values[v].ty.layout = ty.layout;
            define(lexer, known, number, v)?;
        }
        Ok(())
    }
}

/// Notes which value a number stands for; a value is defined once.
fn define(
    lexer: &Lexer<'_>,
    known: &mut HashMap<usize, ValueId>,
    number: usize,
    value: ValueId,
) -> Result<(), ParseError> {
    match known.insert(number, value) {
        None => Ok(()),
        Some(_) => Err(lexer.error(format!("%{number} is defined twice"))),
    }
}

fn operand(lexer: &mut Lexer<'_>, known: &HashMap<usize, ValueId>) -> Result<ValueId, ParseError> {
    let here = lexer.error("");
    let number = lexer.value()?;
    known
        .get(&number)
        .copied()
        .ok_or_else(|| ParseError { message: format!("%{number} is not defined before its use"), ..here })
}
