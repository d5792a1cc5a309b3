//! `kiln check`: whether a model is valid and supported.

use super::Talk;
use super::options::Binding;
use clap::Args as ClapArgs;
use kiln::{Error, Kind, Options, Source};
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;

/// Say whether a model is valid (else exit code 3) and supported (else 4); nothing is run
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An ONNX model
    model: PathBuf,
    #[command(flatten)]
    binding: Binding,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        let source = Source::open(&self.model)?;
        let options = Options { bind: self.binding.bind()?, ..Options::default() };
        let checked = source.model(&self.binding.limits()).and_then(|onnx| {
            let graph = kiln::import_graph(&onnx, &options)?;
            Ok((onnx, graph))
        });
        let (onnx, graph) = match checked {
            Ok(checked) => checked,
            Err(error) => {
                if talk.json {
                    let problems: Vec<String> = error.to_string().lines().map(str::to_string).collect();
                    let valid = error.kind() != Kind::Invalid;
                    let report = json!({ "valid": valid, "supported": false, "problems": problems });
                    talk.report(&report, &"")?;
                }
                return Err(error);
            }
        };
        let mut text = String::new();
        let value = |id| {
            let v: &kiln::ir::graph::Value = graph.value(id);
            (v.name.as_deref().unwrap_or("").to_string(), v.ty.to_string())
        };
        let inputs: Vec<_> = graph.inputs.iter().map(|&v| value(v)).collect();
        let outputs: Vec<_> = graph.outputs.iter().map(|(n, v)| (n.to_string(), value(*v).1)).collect();
        let opsets: Vec<String> = onnx
            .opsets
            .iter()
            .map(
                |(domain, version)| if domain.is_empty() { version.to_string() } else { format!("{domain} {version}") },
            )
            .collect();
        let free: Vec<String> = graph.symbols.keys().map(|s| s.name().to_string()).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "valid and supported: {} nodes, opset {}", onnx.graph.nodes.len(), opsets.join(", "));
        for (what, values) in [("input", &inputs), ("output", &outputs)] {
            for (name, ty) in values {
                let _ = writeln!(text, "  {what} {name}: {ty}");
            }
        }
        if !free.is_empty() {
            let _ = writeln!(text, "  free dims: {}; `--bind DIM=N` fixes one", free.join(", "));
        }
        let list = |values: &[(String, String)]| -> Vec<_> {
            values.iter().map(|(name, ty)| json!({ "name": name, "type": ty })).collect()
        };
        let report = json!({
            "valid": true, "supported": true, "problems": [], "nodes": onnx.graph.nodes.len(), "opsets": onnx.opsets,
            "producer": onnx.producer, "inputs": list(&inputs), "outputs": list(&outputs), "free_dims": free,
            "weight_bytes": graph.constant_bytes(),
        });
        talk.report(&report, &text)
    }
}
