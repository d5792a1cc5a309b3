//! onnx-protobuf's messages as Kiln's.
//!
//! Invariant: every field that Kiln's message has is filled from the field of that name; scalars without presence on either
//! side count as absent where they are their type's default.

use kiln_frontend::onnx::proto as ours;
use onnx_protobuf as theirs;
use protobuf::MessageField;

/// Nothing where the value is its type's default.
pub fn set<T: Default + PartialEq>(v: T) -> Option<T> {
    Some(v).filter(|v| *v != T::default())
}

fn message<T, U>(field: MessageField<T>, f: impl FnOnce(T) -> U) -> Option<U> {
    field.0.map(|boxed| f(*boxed))
}

fn all<T, U>(values: Vec<T>, f: impl FnMut(T) -> U) -> Vec<U> {
    values.into_iter().map(f).collect()
}

fn entry(m: theirs::StringStringEntryProto) -> ours::StringStringEntryProto {
    ours::StringStringEntryProto { key: m.key, value: m.value }
}

fn opset(m: theirs::OperatorSetIdProto) -> ours::OperatorSetIdProto {
    ours::OperatorSetIdProto { domain: m.domain, version: m.version }
}

pub fn model(m: theirs::ModelProto) -> ours::ModelProto {
    ours::ModelProto {
        ir_version: m.ir_version,
        opset_import: all(m.opset_import, opset),
        producer_name: m.producer_name,
        producer_version: m.producer_version,
        domain: m.domain,
        model_version: m.model_version,
        doc_string: m.doc_string,
        graph: message(m.graph, graph),
        metadata_props: all(m.metadata_props, entry),
        training_info: all(m.training_info, training),
        functions: all(m.functions, function),
    }
}

fn training(m: theirs::TrainingInfoProto) -> ours::TrainingInfoProto {
    ours::TrainingInfoProto {
        initialization: message(m.initialization, graph),
        algorithm: message(m.algorithm, graph),
        initialization_binding: all(m.initialization_binding, entry),
        update_binding: all(m.update_binding, entry),
    }
}

fn graph(m: theirs::GraphProto) -> ours::GraphProto {
    ours::GraphProto {
        node: all(m.node, node),
        name: m.name,
        initializer: all(m.initializer, tensor),
        sparse_initializer: all(m.sparse_initializer, sparse),
        doc_string: m.doc_string,
        input: all(m.input, info),
        output: all(m.output, info),
        value_info: all(m.value_info, info),
        quantization_annotation: all(m.quantization_annotation, |a| ours::TensorAnnotation {
            tensor_name: a.tensor_name,
            quant_parameter_tensor_names: all(a.quant_parameter_tensor_names, entry),
        }),
        metadata_props: all(m.metadata_props, entry),
    }
}

fn node(m: theirs::NodeProto) -> ours::NodeProto {
    ours::NodeProto {
        input: m.input,
        output: m.output,
        name: m.name,
        op_type: m.op_type,
        domain: m.domain,
        overload: m.overload,
        attribute: all(m.attribute, attribute),
        doc_string: m.doc_string,
        metadata_props: all(m.metadata_props, entry),
    }
}

fn attribute(m: theirs::AttributeProto) -> ours::AttributeProto {
    ours::AttributeProto {
        name: m.name,
        ref_attr_name: m.ref_attr_name,
        doc_string: m.doc_string,
        r#type: m.type_.value(),
        f: set(m.f),
        i: set(m.i),
        s: set(m.s).map(Into::into),
        t: message(m.t, |t| Box::new(tensor(t))),
        g: message(m.g, |g| Box::new(graph(g))),
        sparse_tensor: message(m.sparse_tensor, |t| Box::new(sparse(t))),
        tp: message(m.tp, |t| Box::new(ty(t))),
        floats: m.floats,
        ints: m.ints,
        strings: all(m.strings, Into::into),
        tensors: all(m.tensors, tensor),
        graphs: all(m.graphs, graph),
        sparse_tensors: all(m.sparse_tensors, sparse),
        type_protos: all(m.type_protos, ty),
    }
}

fn function(m: theirs::FunctionProto) -> ours::FunctionProto {
    ours::FunctionProto {
        name: m.name,
        input: m.input,
        output: m.output,
        attribute: m.attribute,
        attribute_proto: all(m.attribute_proto, attribute),
        node: all(m.node, node),
        doc_string: m.doc_string,
        opset_import: all(m.opset_import, opset),
        domain: m.domain,
        overload: m.overload,
        value_info: all(m.value_info, info),
        metadata_props: all(m.metadata_props, entry),
    }
}

pub fn tensor(m: theirs::TensorProto) -> ours::TensorProto {
    ours::TensorProto {
        dims: m.dims,
        data_type: m.data_type,
        segment: message(m.segment, |s| ours::Segment { begin: s.begin, end: s.end }),
        float_data: m.float_data,
        int32_data: m.int32_data,
        string_data: all(m.string_data, Into::into),
        int64_data: m.int64_data,
        name: m.name,
        doc_string: m.doc_string,
        raw_data: set(m.raw_data).map(Into::into),
        external_data: all(m.external_data, entry),
        data_location: m.data_location.value(),
        double_data: m.double_data,
        uint64_data: m.uint64_data,
        metadata_props: all(m.metadata_props, entry),
    }
}

fn sparse(m: theirs::SparseTensorProto) -> ours::SparseTensorProto {
    ours::SparseTensorProto { values: message(m.values, tensor), indices: message(m.indices, tensor), dims: m.dims }
}

fn info(m: theirs::ValueInfoProto) -> ours::ValueInfoProto {
    ours::ValueInfoProto {
        name: m.name,
        r#type: message(m.type_, ty),
        doc_string: m.doc_string,
        metadata_props: all(m.metadata_props, entry),
    }
}

fn shape(m: theirs::TensorShapeProto) -> ours::TensorShapeProto {
    use theirs::tensor_shape_proto::dimension::Value;
    let dim = |d: theirs::tensor_shape_proto::Dimension| ours::Dimension {
        denotation: d.denotation,
        value: d.value.map(|v| match v {
            Value::DimValue(n) => ours::DimensionValue::DimValue(n),
            Value::DimParam(s) => ours::DimensionValue::DimParam(s),
            other => panic!("a dim of an unknown kind: {other:?}"),
        }),
    };
    ours::TensorShapeProto { dim: all(m.dim, dim) }
}

fn ty(m: theirs::TypeProto) -> ours::TypeProto {
    use theirs::type_proto::Value;
    let element = |field: MessageField<theirs::TypeProto>| {
        Box::new(ours::ElementTypeProto { elem_type: message(field, |t| Box::new(ty(t))) })
    };
    let value = m.value.map(|v| match v {
        Value::TensorType(t) => ours::TypeValue::TensorType(ours::TensorTypeProto {
            elem_type: t.elem_type,
            shape: message(t.shape, shape),
        }),
        Value::SparseTensorType(t) => ours::TypeValue::SparseTensorType(ours::TensorTypeProto {
            elem_type: t.elem_type,
            shape: message(t.shape, shape),
        }),
        Value::SequenceType(t) => ours::TypeValue::SequenceType(element(t.elem_type)),
        Value::OptionalType(t) => ours::TypeValue::OptionalType(element(t.elem_type)),
        Value::MapType(t) => ours::TypeValue::MapType(Box::new(ours::MapTypeProto {
            key_type: t.key_type,
            value_type: message(t.value_type, |t| Box::new(ty(t))),
        })),
        other => panic!("a type of an unknown kind: {other:?}"),
    });
    ours::TypeProto { denotation: m.denotation, value }
}
