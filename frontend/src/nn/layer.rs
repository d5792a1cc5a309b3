//! Layers of Transformers (Vaswani et al. 2017, section 3.1): attention and a feed-forward layer, each with a residual and a norm.
//!
//! Invariant: a layer is made of its parts, which have the names that a checkpoint gives them; what is done with them in which order is
//! said here alone.

use super::{Attend, Dropout, FeedForward, LayerNorm, Mask, MultiHead, Phase, Segment};
use crate::builder::{Result, Value};

/// Where a sub-layer's norm is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormPlace {
    /// `x + f(norm(x))`: pre-norm (Xiong et al. 2020).
    Before,
    /// `norm(x + f(x))`: post-norm, as in the paper of 2017.
    #[default]
    After,
}

/// How sub-layers are joined to what goes past them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Residual {
    /// Where norms are.
    pub norms: NormPlace,
    /// Of what a sub-layer gives; none without.
    pub dropout: Option<Dropout>,
    /// What the graph is made for.
    pub phase: Phase,
}

impl Residual {
    /// `x` with a sub-layer: `[.., E]` to the same.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn around<'g>(
        self,
        x: Value<'g>,
        norm: &LayerNorm<'g>,
        sublayer: impl FnOnce(Value<'g>) -> Result<Value<'g>>,
    ) -> Result<Value<'g>> {
        let dropped = |made: Value<'g>| self.dropout.map_or(Ok(made), |d| d.apply(made, self.phase));
        match self.norms {
            NormPlace::Before => x.add(dropped(sublayer(norm.apply(x)?)?)?),
            NormPlace::After => norm.apply(dropped(sublayer(x)?)?.add(x)?),
        }
    }
}

/// A layer of an encoder.
#[derive(Clone, Copy, Debug)]
pub struct EncoderLayer<'g> {
    /// Attention of the sequence to itself.
    pub attention: MultiHead<'g>,
    /// Its norm.
    pub attention_norm: LayerNorm<'g>,
    /// The feed-forward layer.
    pub inner: FeedForward<'g>,
    /// Its norm.
    pub inner_norm: LayerNorm<'g>,
    /// How they are joined.
    pub residual: Residual,
}

impl<'g> EncoderLayer<'g> {
    /// `[B, T, E]` to the same, with the weights of its attention, `[B, H, T, T]`. A bias and a mask are those of [`MultiHead::over`].
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn apply(&self, x: Value<'g>, bias: Option<Value<'g>>, mask: Option<Mask<'g>>) -> Result<Attend<'g>> {
        let mut weights = x;
        let x = self.residual.around(x, &self.attention_norm, |x| {
            let attended = self.attention.over(x, x, bias, mask)?;
            weights = attended.weights;
            Ok(attended.output)
        })?;
        Ok(Attend { output: self.residual.around(x, &self.inner_norm, |x| self.inner.apply(x))?, weights })
    }
}

/// A layer of a decoder, which attends to its own sequence and then to another one.
#[derive(Clone, Copy, Debug)]
pub struct DecoderLayer<'g> {
    /// Attention of the sequence to itself.
    pub own: MultiHead<'g>,
    /// Its norm.
    pub own_norm: LayerNorm<'g>,
    /// Attention to the source; none in a decoder that has no source.
    pub cross: Option<(MultiHead<'g>, LayerNorm<'g>)>,
    /// The feed-forward layer.
    pub inner: FeedForward<'g>,
    /// Its norm.
    pub inner_norm: LayerNorm<'g>,
    /// How they are joined.
    pub residual: Residual,
}

impl<'g> DecoderLayer<'g> {
    /// `[B, T, E]` to the same. `own` makes the segments that its own attention sees, of the keys and values of the new tokens (see
    /// [`super::Decoding::segments`]); `source` are those of the other sequence.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn apply<S: AsRef<[Segment<'g>]>>(
        &self,
        x: Value<'g>,
        own: impl FnOnce((Value<'g>, Value<'g>)) -> Result<S>,
        source: &[Segment<'g>],
    ) -> Result<Value<'g>> {
        let mut x = self.residual.around(x, &self.own_norm, |x| {
            Ok(self.own.apply(x, own(self.own.keys_and_values(x)?)?.as_ref())?.output)
        })?;
        if let Some((cross, norm)) = &self.cross {
            x = self.residual.around(x, norm, |x| Ok(cross.apply(x, source)?.output))?;
        }
        self.residual.around(x, &self.inner_norm, |x| self.inner.apply(x))
    }
}
