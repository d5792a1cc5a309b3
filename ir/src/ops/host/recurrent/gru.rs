//! One step of a gated recurrent unit (Cho et al. 2014; ONNX `GRU`).

use super::{Cell, State, Step};

pub(super) const CELL: Cell = Cell { gates: 3, activations: 2, memory: false, flag: Some("reset_after"), step };

fn step(s: &Step<'_>, state: &mut State) {
    let n = s.hidden;
    let gates = s.product(&state.h, 0, 2);
    let gate = |g: usize, j: usize| s.activate(0, s.input[g * n + j] + gates[g * n + j]);
    let reset: Vec<f64> = (0..n).map(|j| gate(1, j)).collect();
    let recurrent: Vec<f64> = if s.flag {
        s.product(&state.h, 2, 3).iter().zip(&reset).map(|(v, r)| r * v).collect()
    } else {
        let kept: Vec<f64> = state.h.iter().zip(&reset).map(|(h, r)| r * h).collect();
        s.product(&kept, 2, 3)
    };
    for (j, product) in recurrent.into_iter().enumerate() {
        let z = gate(0, j);
        let candidate = s.activate(1, s.input[2 * n + j] + product);
        state.h[j] = (1.0 - z) * candidate + z * state.h[j];
    }
}
