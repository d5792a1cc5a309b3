//! One step of a plain recurrent layer (Elman 1990; ONNX `RNN`).

use super::{Cell, State, Step};

pub(super) const CELL: Cell = Cell { gates: 1, activations: 1, memory: false, flag: None, step };

fn step(s: &Step<'_>, state: &mut State) {
    let recurrent = s.product(&state.h, 0, 1);
    state.h = s.input.iter().zip(recurrent).map(|(i, r)| s.activate(0, i + r)).collect();
}
