//! (f) Prices of houses:
//!
//! ```python
//! model = nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
//! price = model((features - mean) / std)
//! ```
//!
//! Mean and deviation are those of the training set, and belong to the model: listings that compute them from the batch at hand give a
//! house another price in other company, and divide by zero for one house alone. Here they are parameters.

use kiln::builder::Result;
use kiln::ir::DType;
use kiln::nn::{Linear, Scope};

const SIZES: [usize; 4] = [13, 16, 8, 1];

/// Input `features: [B, 13]`; output `price: [B, 1]`.
pub fn graph(scope: &Scope<'_>) -> Result<()> {
    let g = scope.builder();
    let batch = g.symbol("batch", 1..=4096)?;
    let features = g.input("features", DType::F32, [batch, SIZES[0].into()])?;
    let [mean, deviation] = [scope.parameter("mean", &[SIZES[0]])?, scope.parameter("std", &[SIZES[0]])?];
    let mut x = features.sub(mean)?.div(deviation)?;
    for (n, sizes) in SIZES.windows(2).enumerate() {
        if n > 0 {
            x = x.relu()?;
        }
        x = Linear::new(&scope.enter(2 * n), sizes[0], sizes[1], true)?.apply(x)?;
    }
    g.output("price", x)
}
