//! `Einsum`: one operand is reduced and transposed, two are contracted, more one after another.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Contract, Reduce, Slice};
use kiln_ir::{BinaryOp, Expr};

pub(super) const OPS: &[Spec] = &[onnx("Einsum", 12, &["equation"], einsum)];

/// A tensor with a letter for each axis.
struct Term {
    value: ValueId,
    letters: String,
}

fn einsum(cx: &mut Context) -> Result<Outputs, Failure> {
    let equation: String = cx.node.string("equation")?.chars().filter(|c| !c.is_whitespace()).collect();
    let bad = |cx: &Context, message: String| Failure::from(cx.node.attribute_value("equation", message));
    let inputs = cx.all_inputs()?;
    let (left, right) = match equation.split_once("->") {
        Some((l, r)) => (l, Some(r)),
        None => (equation.as_str(), None),
    };
    let sides: Vec<&str> = left.split(',').collect();
    if sides.len() != inputs.len() {
        return Err(bad(cx, format!("has {} operands, the node {}", sides.len(), inputs.len())));
    }
    // The axes that an ellipsis stands for are written as digits, the last one as `0`, so that they align at the end.
    let expand = |cx: &Context, side: &str, rank: Option<usize>| -> Result<String, Failure> {
        let named: String = side.chars().filter(char::is_ascii_alphabetic).collect();
        let dots = side.matches("...").count();
        if named.len() + 3 * dots != side.len() || dots > 1 {
            return Err(bad(cx, format!("{side:?} is not made of letters and one ellipsis")));
        }
        let hidden = match rank {
            None => 10,
            Some(rank) if dots == 0 && named.len() != rank => {
                return Err(bad(cx, format!("{side:?} does not fit an operand with {rank} axes")));
            }
            Some(rank) => rank.checked_sub(named.len()).filter(|&n| n <= 10).ok_or_else(|| {
                bad(cx, format!("{side:?} does not fit an operand with {rank} axes"))
            })?,
        };
        let digits: String = (0..hidden).rev().map(|n| char::from(b'0' + n as u8)).collect();
        Ok(side.replace("...", if dots == 1 { &digits } else { "" }))
    };
    let mut terms = Vec::new();
    for (&value, side) in inputs.iter().zip(&sides) {
        let letters = expand(cx, side, Some(cx.rank(value)))?;
        terms.push(Term { value, letters });
    }
    let known: String = terms.iter().flat_map(|t| t.letters.chars()).collect();
    let out: String = match right {
        // Digits that no operand has are not there.
        Some(r) => expand(cx, r, None)?.chars().filter(|c| !c.is_ascii_digit() || known.contains(*c)).collect(),
        None => {
            let mut once: Vec<char> = known.chars().filter(|&c| c.is_ascii_digit() || known.matches(c).count() == 1).collect();
            // Digits first and descending, then letters in order.
            once.sort_unstable_by_key(|&c| (c.is_ascii_alphabetic(), if c.is_ascii_digit() { b'9' - c as u8 } else { c as u8 }));
            once.dedup();
            once.into_iter().collect()
        }
    };
    if out.chars().any(|c| !known.contains(c) || out.matches(c).count() > 1) {
        return Err(bad(cx, "the result has a letter twice, or one that no operand has".into()));
    }
    for term in &mut terms {
        diagonals(cx, term)?;
    }
    // An axis of extent 1 that another operand has longer has no letter.
    let longer = |cx: &Context, letter: char, terms: &[Term]| {
        terms.iter().any(|t| t.letters.find(letter).is_some_and(|n| cx.ty(t.value).dims[n].as_const() != Some(1)))
    };
    for i in 0..terms.len() {
        let dims = cx.dims(terms[i].value);
        let letters: Vec<char> = terms[i].letters.chars().collect();
        let keep: Vec<bool> =
            letters.iter().zip(&dims).map(|(&c, d)| d.as_const() != Some(1) || !longer(cx, c, &terms)).collect();
        let kept: Vec<Expr> = dims.iter().zip(&keep).filter(|(_, k)| **k).map(|(d, _)| d.clone()).collect();
        terms[i].letters = letters.iter().zip(&keep).filter(|(_, k)| **k).map(|(c, _)| *c).collect();
        terms[i].value = cx.reshape(terms[i].value, kept)?;
    }
    let mut rest = terms.into_iter();
    let Some(mut done) = rest.next() else { return Err(bad(cx, "has no operand".into())) };
    let mut rest: std::collections::VecDeque<Term> = rest.collect();
    while let Some(mut next) = rest.pop_front() {
        let later = |c: char| out.contains(c) || rest.iter().any(|t| t.letters.contains(c));
        let other = next.letters.clone();
        sum(cx, &mut done, &|c| later(c) || other.contains(c))?;
        let other = done.letters.clone();
        sum(cx, &mut next, &|c| later(c) || other.contains(c))?;
        let mut letters: String = done.letters.chars().filter(|&c| later(c)).collect();
        letters.extend(next.letters.chars().filter(|&c| later(c) && !done.letters.contains(c)));
        if rest.is_empty() {
            letters.clone_from(&out);
        }
        let value = cx.add(Contract::new(&done.letters, &next.letters, &letters), &[done.value, next.value])?;
        done = Term { value, letters };
    }
    sum(cx, &mut done, &|c| out.contains(c))?;
    let perm: Vec<usize> = out.chars().filter_map(|c| done.letters.find(c)).collect();
    Ok(cx.transpose(done.value, &perm)?.into())
}

/// Sums over the letters that nothing needs.
fn sum(cx: &mut Context, term: &mut Term, needed: &dyn Fn(char) -> bool) -> Result<(), Failure> {
    let axes: Vec<usize> = term.letters.chars().enumerate().filter(|(_, c)| !needed(*c)).map(|(n, _)| n).collect();
    if !axes.is_empty() {
        term.value = cx.add(Reduce { combine: BinaryOp::Add, axes, keep: false }, &[term.value])?;
        term.letters.retain(needed);
    }
    Ok(())
}

/// Replaces two axes of one letter by their diagonal, until no letter occurs twice.
fn diagonals(cx: &mut Context, term: &mut Term) -> Result<(), Failure> {
    loop {
        let letters: Vec<char> = term.letters.chars().collect();
        let twice = (0..letters.len()).find_map(|j| letters[..j].iter().position(|c| *c == letters[j]).map(|i| (i, j)));
        let Some((i, j)) = twice else { return Ok(()) };
        let dims = cx.dims(term.value);
        if dims[i] != dims[j] {
            return Err(Failure::invalid(format!("letter {} has extents {} and {}", letters[i], dims[i], dims[j])));
        }
        // With the two axes in front and joined, the diagonal is every (n + 1)-th element.
        let n = dims[i].as_const().ok_or_else(|| Failure::unsupported("a diagonal of unknown extent; bind its symbol"))?;
        let others: Vec<usize> = (0..dims.len()).filter(|&a| a != i && a != j).collect();
        let perm: Vec<usize> = [i, j].into_iter().chain(others.iter().copied()).collect();
        let front = cx.transpose(term.value, &perm)?;
        let rest: Vec<Expr> = others.iter().map(|&a| dims[a].clone()).collect();
        let with = |first: Expr| std::iter::once(first).chain(rest.iter().cloned()).collect::<Vec<Expr>>();
        let joined = cx.reshape(front, with(dims[i].mul(&dims[j])))?;
        let mut steps = vec![1; rest.len() + 1];
        steps[0] = n.saturating_add(1);
        let starts = vec![Expr::default(); rest.len() + 1];
        term.value = cx.add(Slice { starts, steps, dims: with(dims[i].clone()) }, &[joined])?;
        term.letters = std::iter::once(letters[i]).chain(others.iter().map(|&a| letters[a])).collect();
    }
}
