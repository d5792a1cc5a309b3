//! (e) A feed-forward layer of one's own, with a gate and a bypass: `max(0, x W1 + b1) * sigmoid(x W2 + b2) + x W3 + b3`.
//!
//! There is no module for it, and none is needed: what is between the products is one map, which the compiler fuses with them.

use super::dims;
use kiln::builder::Result;
use kiln::ir::DType;
use kiln::nn::{Linear, Scope};

const MODEL: usize = 8;
const OUT: usize = 5;

/// Input `x: [B, T, E]`; output `y: [B, T, 5]`.
pub fn graph(scope: &Scope<'_>) -> Result<()> {
    let g = scope.builder();
    let [batch, length] = dims(g, "tokens")?;
    let x = g.input("x", DType::F32, [batch, length, MODEL.into()])?;
    let map = |name: &str| Linear::new(&scope.enter(name), MODEL, OUT, true)?.apply(x);
    let y = map("w1")?.map("gate", &[map("w2")?, map("w3")?], |code, v| {
        let zero = code.int(v[0], 0);
        let (kept, gate) = (code.max(v[0], zero), code.sigmoid(v[1]));
        let gated = code.mul(kept, gate);
        code.add(gated, v[2])
    })?;
    g.output("y", y)
}
