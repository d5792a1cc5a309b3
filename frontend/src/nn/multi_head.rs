//! Attention with its four maps (Vaswani et al. 2017, section 3.2.2).

use super::attention::{Attend, Heads, Mask, Segment, attend};
use super::{HeadSwitches, Linear, Scope};
use crate::builder::{Result, Value};
use kiln_ir::Expr;

/// `[.., H * D]` as `[.., H, D]`.
///
/// # Errors
/// The last axis does not divide so.
pub fn split_heads(x: Value<'_>, heads: usize, size: usize) -> Result<Value<'_>> {
    let mut dims = x.dims();
    dims.pop();
    dims.extend([Expr::from(heads), Expr::from(size)]);
    x.reshape(dims)
}

/// Names of the four maps below a scope.
#[derive(Clone, Copy, Debug)]
pub struct MultiHeadNames<'a> {
    /// Of queries.
    pub query: &'a str,
    /// Of keys.
    pub key: &'a str,
    /// Of values.
    pub value: &'a str,
    /// Of the output.
    pub output: &'a str,
}

/// Multi-head attention: over the own positions, or over those of another sequence.
#[derive(Clone, Copy, Debug)]
pub struct MultiHead<'g> {
    query: Linear<'g>,
    key: Linear<'g>,
    value: Linear<'g>,
    output: Linear<'g>,
    heads: Heads,
    switches: HeadSwitches<'g>,
    scale: f64,
}

impl<'g> MultiHead<'g> {
    /// Attention of size `E` with maps of these names, scores multiplied by `scale`.
    ///
    /// # Errors
    /// The graph cannot hold the parameters.
    pub fn new(
        scope: &Scope<'g>,
        names: MultiHeadNames<'_>,
        model: usize,
        heads: Heads,
        bias: bool,
        scale: f64,
    ) -> Result<MultiHead<'g>> {
        let map = |name: &str, from: usize, to: usize| Linear::new(&scope.enter(name), from, to, bias);
        Ok(MultiHead {
            query: map(names.query, model, heads.queries * heads.key_size)?,
            key: map(names.key, model, heads.keys * heads.key_size)?,
            value: map(names.value, model, heads.keys * heads.value_size)?,
            output: map(names.output, heads.queries * heads.value_size, model)?,
            heads,
            switches: HeadSwitches::new(scope, heads.queries, heads.value_size)?,
            scale,
        })
    }

    /// Keys and values of `[B, S, E]`: `[B, S, Hkv, D]` and `[B, S, Hkv, Dv]`.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn keys_and_values(&self, x: Value<'g>) -> Result<(Value<'g>, Value<'g>)> {
        let keys = split_heads(self.key.apply(x)?, self.heads.keys, self.heads.key_size)?;
        Ok((keys, split_heads(self.value.apply(x)?, self.heads.keys, self.heads.value_size)?))
    }

    /// Attention of `x: [B, T, E]` to segments; the output is `[B, T, E]`.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn apply(&self, x: Value<'g>, segments: &[Segment<'g>]) -> Result<Attend<'g>> {
        let query = split_heads(self.query.apply(x)?, self.heads.queries, self.heads.key_size)?;
        let attended = attend(query, self.heads, segments, self.scale)?;
        Ok(Attend { output: self.output.apply(self.switches.apply(attended.output)?)?, ..attended })
    }

    /// Attention of `x: [B, T, E]` to `memory: [B, S, E]`, which may be `x` itself.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn over(
        &self,
        x: Value<'g>,
        memory: Value<'g>,
        bias: Option<Value<'g>>,
        mask: Option<Mask<'g>>,
    ) -> Result<Attend<'g>> {
        let (keys, values) = self.keys_and_values(memory)?;
        self.apply(x, &[Segment { bias, ..Segment::new(keys, values, false, mask) }])
    }
}
