//! Inputs for `host.c`, which runs a library for the tests.

use kiln::ir::Tensor;
use std::path::Path;

/// Inputs where `host` looks for them.
pub fn give(folder: &Path, inputs: &[Tensor]) {
    std::fs::create_dir_all(folder).unwrap();
    let mut shapes = String::new();
    for (n, input) in inputs.iter().enumerate() {
        let extents: Vec<String> = input.shape().iter().map(ToString::to_string).collect();
        shapes += &format!("{}\n", extents.join(" "));
        std::fs::write(folder.join(format!("input_{n}")), input.bytes()).unwrap();
    }
    std::fs::write(folder.join("shapes"), shapes).unwrap();
}
