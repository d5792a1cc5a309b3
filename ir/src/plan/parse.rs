//! Parser of the text form of plans.

use super::{Elements, Kernel, Loop, Place, Plan, Refusal, Requirement, Slot, SlotId, Step};
use crate::expr::{Expr, Symbol};
use crate::graph::{Origin, TensorType};
use crate::id::Id;
use crate::ops::{Attributes, Op};
use crate::text::{Lexer, ParseError, Token};

fn number(lexer: &mut Lexer<'_>) -> Result<u64, ParseError> {
    lexer.size().map(|n| n as u64)
}

fn origin(lexer: &mut Lexer<'_>) -> Result<Origin, ParseError> {
    lexer.expect_word("from")?;
    let mut origin = Origin::default();
    for name in lexer.list('[', ']', Lexer::text)? {
        origin.merge(&Origin::new(&name));
    }
    Ok(origin)
}

impl Plan {
    /// Parses the text form.
    ///
    /// # Errors
    /// The text is no plan. What the plan says is checked by [`Plan::verify`].
    pub fn parse(source: &str) -> Result<Plan, ParseError> {
        let lexer = &mut Lexer::new(source);
        lexer.expect_word("plan")?;
        let mut plan = Plan { name: lexer.text()?, ..Plan::default() };
        lexer.expect('{')?;
        lexer.expect_word("arena")?;
        plan.arena_bytes = number(lexer)?;
        lexer.expect_word("live")?;
        plan.live_bytes = number(lexer)?;
        lexer.expect_word("weights")?;
        plan.weight_bytes = number(lexer)?;
        while !lexer.eat('}') {
            match lexer.word()? {
                "kernel" => {
                    let kernel = kernel(lexer)?;
                    plan.kernels.push(kernel);
                }
                "symbol" => {
                    let symbol = Symbol::new(lexer.word()?);
                    lexer.expect_word("in")?;
                    let lo = lexer.integer()?;
                    lexer.expect('…')?;
                    plan.symbols.push((symbol, (lo, lexer.integer()?)));
                }
                "region" => {
                    if lexer.size()? != plan.regions.len() {
                        return Err(lexer.error(format!("expected region {}", plan.regions.len())));
                    }
                    lexer.expect_word("of")?;
                    plan.regions.push(Expr::parse(lexer)?);
                }
                "require" => {
                    let left = Expr::parse(lexer)?;
                    lexer.expect('=')?;
                    let right = Expr::parse(lexer)?;
                    plan.requirements.push(Requirement { left, right, origin: origin(lexer)? });
                }
                "slot" => {
                    if lexer.value()? != plan.slots.len() {
                        return Err(lexer.error(format!("expected slot %{}", plan.slots.len())));
                    }
                    let slot = slot(lexer)?;
                    plan.slots.push(slot);
                }
                "input" => {
                    let slot = plan.slot(lexer)?;
                    let name = lexer.text()?.into();
                    plan.inputs.push((name, slot));
                }
                "output" => {
                    let slot = plan.slot(lexer)?;
                    let name = lexer.text()?.into();
                    plan.outputs.push((name, slot));
                }
                "launch" => {
                    let kernel = lexer.size()?;
                    let mut arguments = lexer.list('(', ')', |l| plan.slot(l))?;
                    lexer.expect('→')?;
                    let written = lexer.list('(', ')', |l| plan.slot(l))?;
                    arguments.extend_from_slice(&written);
                    plan.steps.push(Step::Launch { kernel, arguments, written: written.len() });
                }
                "host" => {
                    let inputs = lexer.list('(', ')', |l| plan.slot(l))?;
                    lexer.expect('→')?;
                    let outputs = lexer.list('(', ')', |l| plan.slot(l))?;
                    let name = lexer.word()?;
                    let types: Vec<_> = inputs.iter().map(|&s| plan.slots[s].ty.dtype).collect();
                    let attributes = if *lexer.peek() == Token::Word("from") {
                        Attributes::new()
                    } else {
                        Attributes::parse(lexer, &|n| types.get(n).copied())?
                    };
                    let op = Op::from_attributes(name, &attributes).map_err(|e| lexer.error(e.to_string()))?;
                    let origin = origin(lexer)?;
                    plan.steps.push(Step::Host { op, inputs, outputs, origin });
                }
                "copy" => {
                    let from = plan.slot(lexer)?;
                    lexer.expect('→')?;
                    let to = plan.slot(lexer)?;
                    plan.steps.push(Step::Copy { from, to });
                }
                "bind" => {
                    let from = plan.slot(lexer)?;
                    lexer.expect('→')?;
                    let to = plan.slot(lexer)?;
                    plan.steps.push(Step::Bind { from, to, origin: origin(lexer)? });
                }
                "refuse" => {
                    let why = if matches!(lexer.peek(), Token::Text(_)) {
                        Refusal::Always(lexer.text()?.into())
                    } else {
                        lexer.expect_word("unless")?;
                        let left = Expr::parse(lexer)?;
                        lexer.expect('=')?;
                        Refusal::Unequal(Box::new((left, Expr::parse(lexer)?)))
                    };
                    plan.steps.push(Step::Refuse { why, origin: origin(lexer)? });
                }
                "if" => {
                    let condition = plan.slot(lexer)?;
                    lexer.expect_word("then")?;
                    let then = lexer.size()?;
                    lexer.expect_word("else")?;
                    let otherwise = lexer.size()?;
                    plan.steps.push(Step::If { condition, then, otherwise, origin: origin(lexer)? });
                }
                "loop" => {
                    let repeated = plan.repeated(lexer)?;
                    plan.steps.push(Step::Loop(Box::new(repeated)));
                }
                other => return Err(lexer.error(format!("`{other}` is no part of a plan"))),
            }
        }
        Ok(plan)
    }

    fn repeated(&self, lexer: &mut Lexer<'_>) -> Result<Loop, ParseError> {
        let mut l = Loop { body: lexer.size()?, ..Loop::default() };
        loop {
            let slot = match lexer.word()? {
                "times" => &mut l.times,
                "first" => &mut l.first,
                "again" => &mut l.again,
                "counter" => &mut l.counter,
                "scan" => break,
                other => return Err(lexer.error(format!("`{other}` is no part of a loop"))),
            };
            *slot = Some(self.slot(lexer)?);
        }
        l.scanned = lexer.list('(', ')', |l| self.elements(l))?;
        lexer.expect_word("carry")?;
        l.carried = lexer.list('(', ')', |l| {
            let next = self.slot(l)?;
            l.expect('→')?;
            Ok((next, self.slot(l)?))
        })?;
        lexer.expect_word("collect")?;
        l.collected = lexer.list('(', ')', |l| self.elements(l))?;
        l.origin = origin(lexer)?;
        Ok(l)
    }

    fn elements(&self, lexer: &mut Lexer<'_>) -> Result<Elements, ParseError> {
        let element = self.slot(lexer)?;
        lexer.expect_word("of")?;
        let whole = self.slot(lexer)?;
        let backward = *lexer.peek() == Token::Word("backward");
        if backward {
            lexer.bump();
        }
        Ok(Elements { whole, element, backward })
    }

    fn slot(&self, lexer: &mut Lexer<'_>) -> Result<SlotId, ParseError> {
        let here = lexer.error("there is no such slot");
        let n = lexer.value()?;
        if n < self.slots.len() { Ok(Id::from_index(n)) } else { Err(here) }
    }
}

fn kernel(lexer: &mut Lexer<'_>) -> Result<Kernel, ParseError> {
    let name = lexer.text()?;
    let mut field = |word: &str| {
        lexer.expect_word(word)?;
        number(lexer)
    };
    let (operations, bytes) = (field("operations")?, field("bytes")?);
    lexer.expect_word("what")?;
    let what = lexer.text()?;
    Ok(Kernel { name, origin: origin(lexer)?, what, operations, bytes })
}

fn slot(lexer: &mut Lexer<'_>) -> Result<Slot, ParseError> {
    let name = match lexer.peek() {
        Token::Text(_) => Some(lexer.text()?.into()),
        _ => None,
    };
    lexer.expect(':')?;
    let ty = TensorType::parse(lexer)?;
    lexer.expect_word("in")?;
    let place = match lexer.word()? {
        "weights" => Place::Weights(number(lexer)?),
        "input" => Place::Input(lexer.size()?),
        "output" => Place::Output(lexer.size()?),
        "arena" => Place::Arena(number(lexer)?),
        "region" => Place::Region(lexer.size()?),
        "host" => Place::Host,
        other => return Err(lexer.error(format!("`{other}` is no place"))),
    };
    Ok(Slot { name, ty, place })
}
