//! Decodes every model and every tensor of ONNX's suite with onnx-protobuf and with Kiln, and compares them field by field.
//!
//!     second-opinion DIR
//!
//! DIR is what `scripts/suite.py` fills. Status 1 where a file is read differently, 2 where there is none.

mod convert;
mod normal;

use kiln_frontend::onnx::proto::{self, ModelProto, TensorProto, TypeValue};
use onnx_protobuf::Message as _;
use prost::Message as _;
use prost::bytes::Bytes;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Memory that decoding a file may take.
const MEMORY: u64 = 4 << 30;

fn main() -> ExitCode {
    let Some(suite) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: second-opinion DIR");
        return ExitCode::from(2);
    };
    let (mut models, mut tensors, mut different) = (0, 0, 0);
    for path in files(&suite) {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => Bytes::from(bytes),
            Err(e) => {
                eprintln!("{}: {e}", path.display());
                return ExitCode::from(2);
            }
        };
        models += 1;
        let model = match whole(&bytes) {
            Ok(model) => model,
            Err(message) => {
                println!("{}: {message}", path.display());
                different += 1;
                continue;
            }
        };
        for data in data(&path, &model) {
            let Ok(bytes) = std::fs::read(&data) else { continue };
            tensors += 1;
            if let Err(message) = tensor(&bytes.into()) {
                println!("{}: {message}", data.display());
                different += 1;
            }
        }
    }
    println!("{models} models and {tensors} tensors, {different} read differently");
    match (models, different) {
        (0, _) => ExitCode::from(2),
        (_, 0) => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    }
}

/// All models beneath a folder, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut open, mut found) = (vec![folder.to_path_buf()], Vec::new());
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "onnx") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The test data beside a model that holds tensors, by the types that the model declares.
fn data(model: &Path, proto: &ModelProto) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let (Some(folder), Some(graph)) = (model.parent(), &proto.graph) else { return found };
    let constants: Vec<&str> = graph.initializer.iter().map(|i| i.name.as_str()).collect();
    for set in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()) {
        let inputs: Vec<_> = graph.input.iter().filter(|i| !constants.contains(&i.name.as_str())).collect();
        for (kind, infos) in [("input", inputs), ("output", graph.output.iter().collect())] {
            for (n, info) in infos.into_iter().enumerate() {
                let value = info.r#type.as_ref().and_then(|t| t.value.as_ref());
                if let Some(TypeValue::TensorType(_)) = value {
                    found.push(set.join(format!("{kind}_{n}.pb")));
                }
            }
        }
    }
    found.retain(|p| p.exists());
    found.sort();
    found
}

/// The model as Kiln reads it, if onnx-protobuf reads the same.
fn whole(bytes: &Bytes) -> Result<ModelProto, String> {
    let mut ours: ModelProto = proto::decode(bytes.clone(), MEMORY).map_err(|e| format!("Kiln: {e}"))?;
    let theirs = onnx_protobuf::ModelProto::parse_from_bytes(bytes).map_err(|e| format!("onnx-protobuf: {e}"))?;
    normal::model(&mut ours);
    let theirs = convert::model(theirs);
    same(&ours.encode_to_vec(), &theirs.encode_to_vec(), || (format!("{ours:#?}"), format!("{theirs:#?}")))?;
    Ok(ours)
}

fn tensor(bytes: &Bytes) -> Result<(), String> {
    let mut ours: TensorProto = proto::decode(bytes.clone(), MEMORY).map_err(|e| format!("Kiln: {e}"))?;
    let theirs = onnx_protobuf::TensorProto::parse_from_bytes(bytes).map_err(|e| format!("onnx-protobuf: {e}"))?;
    normal::tensor(&mut ours);
    let theirs = convert::tensor(theirs);
    same(&ours.encode_to_vec(), &theirs.encode_to_vec(), || (format!("{ours:#?}"), format!("{theirs:#?}")))
}

/// Compares what both come to as bytes, in which a NaN equals itself, and names the first line that differs.
fn same(ours: &[u8], theirs: &[u8], text: impl FnOnce() -> (String, String)) -> Result<(), String> {
    if ours == theirs {
        return Ok(());
    }
    let (ours, theirs) = text();
    let line = ours.lines().zip(theirs.lines()).enumerate().find(|(_, (a, b))| a != b);
    Err(match line {
        Some((n, (a, b))) => format!("line {n} is `{}` for Kiln and `{}` for onnx-protobuf", a.trim(), b.trim()),
        None => "one has more fields than the other".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_found_and_named() {
        let a = TensorProto { dims: vec![2], float_data: vec![f32::NAN, 1.0], ..Default::default() };
        let b = TensorProto { dims: vec![3], ..a.clone() };
        let bytes = Bytes::from(a.encode_to_vec());
        assert_eq!(tensor(&bytes), Ok(()));
        let text = || (format!("{a:#?}"), format!("{b:#?}"));
        assert!(same(&a.encode_to_vec(), &b.encode_to_vec(), text).unwrap_err().contains("`2,` for Kiln and `3,`"));
    }
}
