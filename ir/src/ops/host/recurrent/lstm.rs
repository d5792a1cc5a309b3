//! One step of a long short-term memory (Hochreiter & Schmidhuber 1997; ONNX `LSTM`).

use super::{Cell, State, Step};

pub(super) const CELL: Cell = Cell { gates: 4, activations: 3, memory: true, flag: Some("coupled"), step };

fn step(s: &Step<'_>, state: &mut State) {
    let n = s.hidden;
    let recurrent = s.product(&state.h, 0, 4);
    let gate = |g: usize, j: usize| s.input[g * n + j] + recurrent[g * n + j];
    for j in 0..n {
        let old = state.c[j];
        let i = s.activate(0, gate(0, j) + s.peepholes[j] * old);
        let f = if s.flag { 1.0 - i } else { s.activate(0, gate(2, j) + s.peepholes[2 * n + j] * old) };
        let c = f * old + i * s.activate(1, gate(3, j));
        let o = s.activate(0, gate(1, j) + s.peepholes[n + j] * c);
        state.c[j] = c;
        // What the cell holds is not clipped on its way out, as in ONNX Runtime.
        state.h[j] = o * s.activations[2].of(c);
    }
}
