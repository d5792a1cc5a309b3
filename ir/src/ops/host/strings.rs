//! `strings`: a constant tensor of strings, made by a step since a plan holds none.
//!
//! Invariant: the attribute's text gives back the very bytes, valid UTF-8 or not.

use super::Function;
use super::sequence::given;
use crate::DType;
use crate::graph::TensorType;
use crate::ops::{Attribute, Attributes, OpError};
use crate::tensor::{Tensor, element_count};

/// The strings of attribute `text`, in row-major order; the type is that of `results`. Takes no operand.
pub(super) const FUNCTION: Function = Function { name: "strings", infer, eval };

/// The attributes of the op that makes a tensor; nothing where it does not hold strings.
pub fn attributes(t: &Tensor) -> Option<Attributes> {
    // No escaped string holds a line's end.
    let lines: Vec<String> = t.strings()?.iter().map(|s| s.escape_ascii().to_string()).collect();
    let mut a = Attributes::new().with("results", vec![TensorType::of(DType::Str, t.shape())]);
    a.0.push(("text".into(), Attribute::Text(lines.join("\n"))));
    Some(a)
}

fn infer(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    if !inputs.is_empty() {
        return Err(OpError::new("takes no operand"));
    }
    a.word("text")?;
    let types = given(a, 1)?;
    if types[0].dtype != DType::Str || types[0].shape().is_none() {
        return Err(OpError::new("makes strings of a constant shape"));
    }
    Ok(types)
}

fn eval(a: &Attributes, _: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let shape = given(a, 1)?[0].shape().unwrap_or_default();
    let text = a.word("text")?;
    let count = element_count(&shape, 1)?;
    let strings = match count {
        0 => vec![],
        _ => text.split('\n').map(unescaped).collect::<Result<Vec<_>, _>>()?,
    };
    Ok(vec![Tensor::from_strings(shape, strings)?])
}

/// The bytes that [`slice::escape_ascii`] wrote so.
fn unescaped(text: &str) -> Result<Vec<u8>, OpError> {
    let wrong = || OpError::new(format!("`{text}` is no escaped string"));
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(b) = rest.next() {
        if b != b'\\' {
            bytes.push(b);
            continue;
        }
        bytes.push(match rest.next().ok_or_else(wrong)? {
            b't' => b'\t',
            b'r' => b'\r',
            b'n' => b'\n',
            b'x' => {
                let mut digit = || rest.next().and_then(|d| char::from(d).to_digit(16)).ok_or_else(wrong);
                (digit()? * 16 + digit()?) as u8
            }
            other @ (b'\\' | b'\'' | b'"') => other,
            _ => return Err(wrong()),
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn any_bytes_come_back() {
        let strings = vec![vec![], b"a\nb\\\"'\t\r".to_vec(), (0..=255).collect(), "naïve".as_bytes().to_vec()];
        for (shape, strings) in [(vec![2, 2], strings), (vec![0, 3], vec![]), (vec![1], vec![vec![]])] {
            let t = Tensor::from_strings(shape, strings).unwrap();
            let made = run("strings", attributes(&t).unwrap(), &[]);
            assert_eq!((made[0].shape(), made[0].strings()), (t.shape(), t.strings()));
        }
    }
}
