//! Values of every ONNX type as the `onnx` package writes them: read, written again, and the same bytes.

use kiln::ir::{DType, Tensor};
use kiln::onnx::model::{Limits, TensorType, ValueType};
use kiln::onnx::value::{self, Keys, Value};
use kiln::{Source, data};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn of(dtype: DType) -> ValueType {
    ValueType::Tensor(TensorType { dtype, shape: None })
}

fn sequence(element: ValueType) -> ValueType {
    ValueType::Sequence(Box::new(element))
}

fn optional(element: ValueType) -> ValueType {
    ValueType::Optional(Box::new(element))
}

fn map(key: DType, value: ValueType) -> ValueType {
    ValueType::Map { key, value: Box::new(value) }
}

/// The file of that name (see scripts/values.py) holds the value under the type, and the value makes the file.
#[track_caller]
fn check(name: &str, ty: &ValueType, expected: &Value) {
    let path = root().join("tests/golden/values").join(format!("{name}.pb"));
    let bytes = std::fs::read(&path).unwrap();
    let read = value::decode(bytes.clone().into(), ty, 1 << 20).unwrap();
    assert_eq!(&read, expected, "{name}");
    assert_eq!(value::encode(expected, Some(ty), name), bytes, "{name} is written differently");
}

#[test]
fn values_of_every_type_are_read_and_written_as_onnx_does() {
    let f32s = of(DType::F32);
    let a = || Value::Tensor(Tensor::from_f32(&[2], &[1.5, -2.0]).unwrap());
    let b = || Value::Tensor(Tensor::from_f32(&[1, 1], &[7.0]).unwrap());
    let double = |v: f64| Value::Tensor(Tensor::new(DType::F64, vec![], v.to_le_bytes().to_vec()).unwrap());
    check("sequence", &sequence(f32s.clone()), &Value::Sequence(vec![a(), b()]));
    check("sequence_empty", &sequence(f32s.clone()), &Value::Sequence(vec![]));
    let nested = Value::Sequence(vec![Value::Sequence(vec![a()]), Value::Sequence(vec![b(), a()])]);
    check("sequence_of_sequences", &sequence(sequence(f32s.clone())), &nested);
    check("sequence_of_sequences_empty", &sequence(sequence(f32s.clone())), &Value::Sequence(vec![]));
    let maps = Value::Sequence(vec![
        Value::Map(Keys::Ints(DType::I64, vec![1, 2]), vec![double(0.5), double(0.25)]),
        Value::Map(Keys::Ints(DType::I64, vec![3]), vec![double(1.0)]),
    ]);
    check("sequence_of_maps", &sequence(map(DType::I64, of(DType::F64))), &maps);
    check("optional_tensor", &optional(f32s.clone()), &Value::Optional(Some(Box::new(a()))));
    let inner = Value::Sequence(vec![b()]);
    check("optional_sequence", &optional(sequence(f32s.clone())), &Value::Optional(Some(Box::new(inner))));
    check("optional_nothing", &optional(f32s.clone()), &Value::Optional(None));
    let ints = Value::Map(Keys::Ints(DType::I64, vec![-5, 9]), vec![a(), a()]);
    check("map_of_ints", &map(DType::I64, f32s.clone()), &ints);
    let keys = Keys::Strings(vec![b"x".as_slice().into(), b"\xff".as_slice().into()]);
    check("map_of_strings", &map(DType::Str, f32s), &Value::Map(keys, vec![a(), b()]));
}

#[test]
fn tensors_are_read_and_written_as_onnx_does() {
    check("tensor", &of(DType::F32), &Value::Tensor(Tensor::from_f32(&[2], &[1.5, -2.0]).unwrap()));
    let words = Tensor::from_strings(vec![1, 2], vec![b"a".as_slice().into(), b"bc".as_slice().into()]).unwrap();
    check("strings", &of(DType::Str), &Value::Tensor(words));
}

/// Every input and output file of the ONNX suite is read under the type of its graph, and what is written reads the
/// same. Skipped, with a word, where the suite was not fetched; scripts/test fetches it.
#[test]
fn files_of_the_suite_survive() {
    let suite = root().join("target/suite");
    if !suite.join("tolerances.json").exists() {
        eprintln!("SKIPPED: {} is not there; `python3 scripts/suite.py target/suite` makes it", suite.display());
        return;
    }
    let (mut tensors, mut others) = (0, 0);
    for case in kiln_tests::suite::cases(&suite, &["node", "simple"]).unwrap() {
        let Ok(model) = Source::open(&case.model).unwrap().model(&Limits::default()) else { continue };
        let inputs = data::wanted(&model).into_iter().map(|w| Some(w.ty));
        let inputs: Vec<_> = inputs.enumerate().map(|(n, ty)| (format!("input_{n}.pb"), ty)).collect();
        let outputs = model.graph.outputs.iter().map(|o| o.ty.clone());
        let outputs: Vec<_> = outputs.enumerate().map(|(n, ty)| (format!("output_{n}.pb"), ty)).collect();
        for folder in &case.data {
            for (name, ty) in inputs.iter().chain(&outputs) {
                let (path, Some(ty)) = (folder.join(name), ty) else { continue };
                let Ok(bytes) = std::fs::read(&path) else {
                    assert!(matches!(ty, ValueType::Optional(_)), "{} is missing", path.display());
                    continue;
                };
                let read = value::decode(bytes.into(), ty, 1 << 30);
                let read = read.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                let again = value::decode(value::encode(&read, Some(ty), "x").into(), ty, 1 << 30).unwrap();
                assert!(read == again, "{}", path.display());
                if ty.tensor().is_some() { tensors += 1 } else { others += 1 }
            }
        }
    }
    assert!(tensors > 5000 && others > 40, "only {tensors} tensors and {others} other values were found");
}
