//! Tensors and values: every storage form, both ways, and what is refused.

use super::*;
use kiln_frontend::onnx::model::ValueType;
use kiln_frontend::onnx::sparse::SparseTensor;
use kiln_frontend::onnx::tensor::{self, TensorProtoError};
use kiln_frontend::onnx::value::{self, Keys, Value};
use kiln_ir::{DType, Tensor};

fn read(proto: TensorProto) -> Result<Tensor, TensorProtoError> {
    tensor::from_proto(proto, &external::none)
}

fn proto(data_type: DataType, dims: &[i64]) -> TensorProto {
    TensorProto { data_type: data_type as i32, dims: dims.to_vec(), ..Default::default() }
}

fn ints(data_type: DataType, count: i64, values: &[i32]) -> TensorProto {
    TensorProto { int32_data: values.to_vec(), ..proto(data_type, &[count]) }
}

fn raw(data_type: DataType, count: i64, bytes: &[u8]) -> TensorProto {
    TensorProto { raw_data: Some(Bytes::copy_from_slice(bytes)), ..proto(data_type, &[count]) }
}

#[test]
fn typed_fields() {
    let cases = [
        (TensorProto { float_data: vec![1.5], ..proto(DataType::Float, &[1]) }, 1.5f32.to_le_bytes().to_vec()),
        (TensorProto { double_data: vec![1.5], ..proto(DataType::Double, &[]) }, 1.5f64.to_le_bytes().to_vec()),
        (TensorProto { int64_data: vec![-2], ..proto(DataType::Int64, &[1, 1]) }, (-2i64).to_le_bytes().to_vec()),
        (TensorProto { uint64_data: vec![u64::MAX], ..proto(DataType::Uint64, &[1]) }, vec![255; 8]),
        (TensorProto { uint64_data: vec![5], ..proto(DataType::Uint32, &[1]) }, vec![5, 0, 0, 0]),
        (
            TensorProto { float_data: vec![1.0, 0.0], ..proto(DataType::Complex64, &[1]) },
            vec![0, 0, 128, 63, 0, 0, 0, 0],
        ),
        (ints(DataType::Int32, 1, &[-1]), vec![255; 4]),
        (ints(DataType::Int16, 1, &[-2]), vec![254, 255]),
        (ints(DataType::Uint16, 1, &[65535]), vec![255, 255]),
        (ints(DataType::Int8, 2, &[-128, 127]), vec![128, 127]),
        (ints(DataType::Uint8, 1, &[255]), vec![255]),
        (ints(DataType::Bool, 3, &[0, 1, 2]), vec![0, 1, 1]),
        (ints(DataType::Float16, 1, &[0x3c00]), vec![0, 0x3c]),
        (ints(DataType::Bfloat16, 1, &[0x3f80]), vec![0x80, 0x3f]),
        (ints(DataType::Float8E4m3fn, 1, &[0x80]), vec![0x80]),
        (ints(DataType::Float8E8m0, 1, &[127]), vec![127]),
        (ints(DataType::Int4, 3, &[0x8f, 0x07]), vec![255, 248, 7]),
        (ints(DataType::Uint4, 3, &[0x8f, 0x07]), vec![15, 8, 7]),
        (ints(DataType::Float4E2m1, 2, &[0xf1]), vec![1, 15]),
        (ints(DataType::Int2, 5, &[0b11_10_01_00, 0b10]), vec![0, 1, 254, 255, 254]),
        (ints(DataType::Uint2, 4, &[0b11_10_01_00]), vec![0, 1, 2, 3]),
    ];
    for (proto, expected) in cases {
        let read = read(proto.clone()).unwrap_or_else(|e| panic!("{proto:?}: {e}"));
        assert_eq!(read.bytes(), expected, "{proto:?}");
    }
}

#[test]
fn raw_data() {
    assert_eq!(read(raw(DataType::Int4, 3, &[0x8f, 0x07])).unwrap().to_i64().unwrap(), [-1, -8, 7]);
    assert_eq!(read(raw(DataType::Bool, 3, &[0, 1, 7])).unwrap().bytes(), [0, 1, 1]);
    assert_eq!(read(raw(DataType::Float, 1, &1.0f32.to_le_bytes())).unwrap().to_f32().unwrap(), [1.0]);
    assert_eq!(read(proto(DataType::Float, &[0, 5])).unwrap().shape(), [0, 5]);
    let strings = TensorProto { string_data: vec![Bytes::from_static(b"a\xff")], ..proto(DataType::String, &[1]) };
    assert_eq!(read(strings).unwrap().strings().unwrap(), [b"a\xff".to_vec()]);
}

#[test]
fn refused() {
    let cases = [
        (proto(DataType::Undefined, &[]), "the tensor has no element type"),
        (TensorProto { data_type: 99, ..Default::default() }, "the tensor's element type 99 is not one of ONNX's"),
        (proto(DataType::Float6E3m2, &[]), "tensors of type FLOAT6E3M2 are not supported"),
        (
            TensorProto { segment: Some(Segment::default()), ..proto(DataType::Float, &[]) },
            "tensors in segments are not supported",
        ),
        (proto(DataType::Float, &[2, -1]), "the tensor's dims [2, -1] contain a negative number"),
        (proto(DataType::Float, &[i64::MAX, 8]), "the tensor's dims [9223372036854775807, 8] have too large a product"),
        (
            proto(DataType::Float, &[0, i64::MAX, 8]),
            "the tensor's dims [0, 9223372036854775807, 8] have too large a product",
        ),
        (
            TensorProto { data_location: 2, ..proto(DataType::Float, &[]) },
            "the tensor's data location 2 is not one of ONNX's",
        ),
        (
            proto(DataType::Float, &[2]),
            "the tensor of type FLOAT and dims [2] needs 2 numbers in float_data, there are 0",
        ),
        (raw(DataType::Int4, 3, &[0]), "the tensor of type INT4 and dims [3] needs 2 bytes in raw_data, there are 1"),
        (
            ints(DataType::Uint4, 3, &[0]),
            "the tensor of type UINT4 and dims [3] needs 2 numbers in int32_data, there are 1",
        ),
        (
            ints(DataType::Float, 1, &[0]),
            "the tensor of type FLOAT has data in int32_data, which is not where that type's data belongs",
        ),
        (
            raw(DataType::String, 1, b"a"),
            "the tensor of type STRING has data in raw_data, which is not where that type's data belongs",
        ),
        (ints(DataType::Uint8, 2, &[1, 256]), "element 1 of the tensor, 256, does not fit its type UINT8"),
        (
            TensorProto { uint64_data: vec![1 << 32], ..proto(DataType::Uint32, &[1]) },
            "element 0 of the tensor, 4294967296, does not fit its type UINT32",
        ),
        (TensorProto { data_location: 1, ..proto(DataType::Float, &[1]) }, "external data without a location"),
    ];
    for (proto, expected) in cases {
        assert_eq!(read(proto.clone()).expect_err("refused").to_string(), expected, "{proto:?}");
    }
}

#[test]
fn external_data() {
    let entries = [("location", "w.bin"), ("offset", "4"), ("length", "8")];
    let entries = entries.map(|(k, v)| StringStringEntryProto { key: k.into(), value: v.into() }).to_vec();
    let mut g = graph(vec![node("m", "Mul", &["x", "w"], &["y"])]);
    g.initializer = ["w", "v"]
        .map(|name| TensorProto {
            name: name.into(),
            data_location: 1,
            external_data: entries.clone(),
            ..proto(DataType::Float, &[2])
        })
        .to_vec();
    let proto = model(g);
    let file = Bytes::from(floats("", &[0.0, 1.0, 2.0]).raw_data.unwrap().to_vec());
    let asked = std::cell::Cell::new(0);
    let give = |location: &str| {
        asked.set(asked.get() + 1);
        if location == "w.bin" { Ok(file.clone()) } else { Err(format!("no {location}")) }
    };
    let m = model::load(proto.encode_to_vec().into(), &give, &Limits::default()).unwrap();
    let Value::Tensor(w) = &m.graph.initializers[0].value else { panic!("a tensor") };
    assert_eq!(w.to_f32().unwrap(), [1.0, 2.0]);
    assert!(file.as_ptr_range().contains(&w.bytes().as_ptr()), "not copied");
    assert_eq!(asked.get(), 1, "a file is asked for once");
    assert_eq!(
        problems(&proto)[0],
        "initializer \"w\": external data file \"w.bin\" cannot be read: the model is not in a folder"
    );
    let short = |_: &str| Ok(Bytes::from_static(&[0; 11]));
    let error = model::load(proto.encode_to_vec().into(), &short, &Limits::default()).unwrap_err();
    assert!(error.to_string().contains("has 11 bytes, the tensor asks for bytes 4 to 12"), "{error}");
}

/// A value survives writing and reading under the type.
fn round_trip(value: &Value, ty: &ValueType) {
    let bytes = value::encode(value, None, "name");
    assert_eq!(&value::decode(bytes.into(), ty, 1 << 20).unwrap(), value);
}

fn tensor_type(dtype: DType) -> ValueType {
    ValueType::Tensor(kiln_frontend::onnx::model::TensorType { dtype, shape: None })
}

#[test]
fn every_type_survives() {
    for dtype in DType::ALL.into_iter().filter(|d| d.is_bytes()) {
        // Three elements: packed types end within a byte.
        let bits = if dtype.bits() < 8 { dtype.bits() } else { 8 };
        let element = |i: u32| match dtype {
            DType::Bool => (i % 2) as u8,
            DType::I4 | DType::I2 => ((i as i8) << (8 - bits) >> (8 - bits)) as u8,
            _ if bits < 8 => i as u8 & ((1 << bits) - 1),
            _ => 250 + i as u8,
        };
        let data: Vec<u8> =
            (0..3 * dtype.size() as u32).map(|i| element(if dtype.size() == 1 { 3 - i } else { i % 3 })).collect();
        round_trip(&Value::Tensor(Tensor::new(dtype, vec![3], data).unwrap()), &tensor_type(dtype));
    }
    let strings = Tensor::from_strings(vec![2], vec![b"a".to_vec(), b"\xff\0".to_vec()]).unwrap();
    round_trip(&Value::Tensor(strings), &tensor_type(DType::Str));
}

#[test]
fn composite_values_survive() {
    let f32s = tensor_type(DType::F32);
    let tensor = |v: f32| Value::Tensor(Tensor::from_f32(&[1], &[v]).unwrap());
    let sequence = ValueType::Sequence(Box::new(f32s.clone()));
    round_trip(&Value::Sequence(vec![tensor(1.0), tensor(2.0)]), &sequence);
    round_trip(&Value::Sequence(vec![]), &sequence);
    let optional = ValueType::Optional(Box::new(sequence.clone()));
    round_trip(&Value::Optional(None), &optional);
    round_trip(&Value::Optional(Some(Box::new(Value::Sequence(vec![tensor(3.0)])))), &optional);
    let map = |key| ValueType::Map { key, value: Box::new(f32s.clone()) };
    round_trip(&Value::Map(Keys::Ints(DType::I64, vec![5, -1]), vec![tensor(1.0), tensor(2.0)]), &map(DType::I64));
    round_trip(&Value::Map(Keys::Strings(vec![Bytes::from_static(b"k")]), vec![tensor(1.0)]), &map(DType::Str));

    let error = |value: &Value, ty: &ValueType| {
        value::decode(value::encode(value, None, "").into(), ty, 1 << 20).unwrap_err().to_string()
    };
    assert_eq!(
        error(&tensor(1.0), &tensor_type(DType::F64)),
        "the value is a tensor of f32, the graph asks for f64[...]"
    );
    let ints = Value::Sequence(vec![Value::Sequence(vec![])]);
    assert_eq!(
        error(&ints, &sequence),
        "the value is a sequence of values of another type, the graph asks for f32[...]"
    );
    let twice = Value::Map(Keys::Ints(DType::I64, vec![1, 1]), vec![tensor(1.0), tensor(2.0)]);
    assert_eq!(error(&twice, &map(DType::I64)), "the map's keys do not fit its values or type");
}

fn sparse(dims: &[i64], values: &[f32], index_dims: &[i64], indices: &[i64]) -> SparseTensorProto {
    SparseTensorProto {
        values: Some(floats("s", values)),
        indices: Some(TensorProto { int64_data: indices.to_vec(), ..proto(DataType::Int64, index_dims) }),
        dims: dims.to_vec(),
    }
}

#[test]
fn sparse_tensors() {
    let read = |p| SparseTensor::from_proto(p, &external::none);
    let by_coordinates = read(sparse(&[2, 3], &[5.0, 6.0], &[2, 2], &[0, 1, 1, 2])).unwrap();
    let linear = read(sparse(&[2, 3], &[5.0, 6.0], &[2], &[1, 5])).unwrap();
    assert_eq!(by_coordinates, linear);
    assert_eq!(linear.to_dense(1 << 20).unwrap().to_f32().unwrap(), [0.0, 5.0, 0.0, 0.0, 0.0, 6.0]);
    let ty = ValueType::Sparse(kiln_frontend::onnx::model::TensorType { dtype: DType::F32, shape: None });
    round_trip(&Value::Sparse(linear.clone()), &ty);
    assert!(linear.to_dense(23).is_err(), "24 bytes are asked for");
    for bad in [[5, 1], [1, 1], [-1, 0], [1, 6]] {
        assert!(read(sparse(&[2, 3], &[5.0, 6.0], &[2], &bad)).is_err(), "{bad:?}");
    }
    assert!(read(sparse(&[2, 3], &[5.0, 6.0], &[2, 2], &[0, 3, 1, 0])).is_err());
    assert!(read(sparse(&[2, 3], &[5.0], &[2], &[0, 1])).is_err());
    let huge = read(sparse(&[1 << 40, 1 << 10], &[5.0], &[1], &[7])).unwrap();
    assert!(huge.to_dense(1 << 30).is_err());
}
