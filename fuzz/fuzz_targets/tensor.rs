//! Bytes as test data: a tensor, and values of other types.
#![no_main]

use kiln_frontend::onnx::model::{TensorType, ValueType};
use kiln_frontend::onnx::value;
use kiln_ir::DType;
use libfuzzer_sys::fuzz_target;
use prost::bytes::Bytes;

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(tensor) = value::decode_tensor(bytes.clone(), 64 << 20) {
        let again = value::encode(&value::Value::Tensor(tensor.clone()), None, "");
        assert!(value::decode_tensor(again.into(), 64 << 20).is_ok_and(|t| t.shape() == tensor.shape()));
    }
    let tensor = ValueType::Tensor(TensorType { dtype: DType::F32, shape: None });
    for ty in [ValueType::Sequence(Box::new(tensor.clone())), ValueType::Optional(Box::new(tensor))] {
        let _ = value::decode(bytes.clone(), &ty, 64 << 20);
    }
});
