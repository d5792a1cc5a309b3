//! Bytes as an ONNX model: reader, checks, importer, and the graph's verifier where all accept them.
#![no_main]

use kiln_frontend::onnx::external;
use kiln_frontend::onnx::import::{Options, import};
use kiln_frontend::onnx::model::{Limits, load};
use libfuzzer_sys::fuzz_target;
use prost::bytes::Bytes;

fuzz_target!(|data: &[u8]| {
    let limits = Limits { decoded_bytes: 64 << 20, ..Limits::default() };
    let Ok(model) = load(Bytes::copy_from_slice(data), &external::none, &limits) else { return };
    if let Ok(graph) = import(&model, &Options::default()) {
        assert_eq!(graph.verify(), vec![]);
    }
});
