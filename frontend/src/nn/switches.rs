//! Layers and heads that can be switched off when a graph runs, to measure what they are worth.
//!
//! Invariant: with every switch at 1 a graph computes the very numbers that it computes without switches, and with one at 0 those of the
//! model without that layer or head. Where the parameters' source has no switches, there are none in the graph.

use super::{Matrix, Parameters, Scope, split_heads};
use crate::builder::{Builder, Result, Value};
use kiln_ir::{DType, Expr};

/// What names of inputs that switch layers begin with; the path of the layer follows.
pub const LAYER_SWITCH: &str = "layer.";
/// What names of inputs that switch heads begin with; the path of their attention follows.
pub const HEAD_SWITCH: &str = "heads.";

/// Parameters of another source, in graphs with an input for each layer, `layer.PATH` (f32 `[1]`), and for the heads of each
/// attention, `heads.PATH` (f32 `[H]`).
#[derive(Clone, Copy)]
pub struct Switches<'p>(pub &'p dyn Parameters);

impl Parameters for Switches<'_> {
    fn parameter<'g>(&self, builder: &'g Builder, path: &str, shape: &[usize]) -> Result<Value<'g>> {
        self.0.parameter(builder, path, shape)
    }

    fn has(&self, path: &str) -> bool {
        self.0.has(path)
    }

    fn matrix<'g>(&self, builder: &'g Builder, path: &str, rows: usize, columns: usize) -> Result<Matrix<'g>> {
        self.0.matrix(builder, path, rows, columns)
    }

    fn switch<'g>(&self, builder: &'g Builder, name: &str, count: usize) -> Result<Option<Value<'g>>> {
        builder.input(name, DType::F32, [Expr::from(count)]).map(Some)
    }
}

/// The switch of a layer.
#[derive(Clone, Copy, Debug)]
pub struct LayerSwitch<'g>(Option<Value<'g>>);

impl<'g> LayerSwitch<'g> {
    /// Of the layer at a place.
    ///
    /// # Errors
    /// The graph cannot hold it.
    pub fn new(scope: &Scope<'g>) -> Result<LayerSwitch<'g>> {
        Ok(LayerSwitch(scope.switch(LAYER_SWITCH.trim_end_matches('.'), 1)?))
    }

    /// What goes on after the layer: what it made or, where it is off, what went into it. Both have one shape.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn apply(self, before: Value<'g>, made: Value<'g>) -> Result<Value<'g>> {
        match self.0 {
            None => Ok(made),
            // Chosen, not blended: what is on keeps its bits.
            Some(on) => made.map("layer", &[before, on.differs(0)?], |code, v| code.select(v[2], v[0], v[1])),
        }
    }
}

/// The switches of an attention's heads.
#[derive(Clone, Copy, Debug)]
pub struct HeadSwitches<'g> {
    on: Option<Value<'g>>,
    heads: usize,
    size: usize,
}

impl<'g> HeadSwitches<'g> {
    /// Of `H` heads with values of the size `Dv`, in the attention at a place.
    ///
    /// # Errors
    /// The graph cannot hold it.
    pub fn new(scope: &Scope<'g>, heads: usize, size: usize) -> Result<HeadSwitches<'g>> {
        Ok(HeadSwitches { on: scope.switch(HEAD_SWITCH.trim_end_matches('.'), heads)?, heads, size })
    }

    /// What the heads give, `[.., H * Dv]`, with zeros for those that are off.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn apply(self, given: Value<'g>) -> Result<Value<'g>> {
        let Some(on) = self.on else { return Ok(given) };
        let on = on.reshape([Expr::from(self.heads), Expr::from(1i64)])?;
        split_heads(given, self.heads, self.size)?.mul(on)?.reshape(given.dims())
    }
}
