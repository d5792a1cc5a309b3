//! Bytes that nobody meant: nothing panics, hangs or takes more memory than the limits allow.

use super::*;
use proptest::prelude::*;

/// A small model with a bit of everything: constants, attributes of all kinds, a subgraph, functions, other types.
fn everything() -> Vec<u8> {
    let then = GraphProto {
        node: vec![node("t", "Neg", &["a"], &["t"])],
        output: vec![info("t", &[2])],
        initializer: vec![floats("k", &[1.0])],
        ..Default::default()
    };
    let entry = |k: &str, v: &str| StringStringEntryProto { key: k.into(), value: v.into() };
    let attribute =
        |name: &str, ty: AttributeType| AttributeProto { name: name.into(), r#type: ty as i32, ..Default::default() };
    let rich = NodeProto {
        attribute: vec![
            int("i", -1),
            AttributeProto { f: Some(0.5), ..attribute("f", AttributeType::Float) },
            AttributeProto { s: Some(Bytes::from_static(b"text")), ..attribute("s", AttributeType::String) },
            AttributeProto { ints: vec![1, 300], ..attribute("is", AttributeType::Ints) },
            AttributeProto { floats: vec![1.0], ..attribute("fs", AttributeType::Floats) },
            AttributeProto { strings: vec![Bytes::from_static(b"a")], ..attribute("ss", AttributeType::Strings) },
            AttributeProto { t: Some(Box::new(floats("", &[2.0]))), ..attribute("t", AttributeType::Tensor) },
            AttributeProto {
                tp: Some(Box::new(ty(DataType::Int64, &[1]))),
                ..attribute("tp", AttributeType::TypeProto)
            },
            graph_attribute("g", then),
        ],
        ..node("rich", "If", &["a", "w", "q"], &["b", ""])
    };
    let function = FunctionProto {
        name: "F".into(),
        domain: "f".into(),
        input: vec!["p".into()],
        output: vec!["o".into()],
        attribute: vec!["n".into()],
        attribute_proto: vec![int("m", 2)],
        node: vec![with(node("", "Cast", &["p"], &["o"]), reference("to", "m", AttributeType::Int))],
        opset_import: vec![opset("", 18)],
        ..Default::default()
    };
    let mut g = graph(vec![
        node("", "Add", &["x", "w"], &["a"]),
        rich,
        NodeProto { domain: "f".into(), ..node("", "F", &["b"], &["y"]) },
    ]);
    g.initializer = vec![
        floats("w", &[1.0, 2.0]),
        TensorProto {
            name: "q".into(),
            dims: vec![3],
            data_type: DataType::Int4 as i32,
            int32_data: vec![0x21, 3],
            ..Default::default()
        },
        TensorProto {
            name: "e".into(),
            dims: vec![1],
            data_type: DataType::Float as i32,
            data_location: 1,
            external_data: vec![entry("location", "w.bin"), entry("offset", "0")],
            ..Default::default()
        },
    ];
    g.sparse_initializer = vec![SparseTensorProto {
        values: Some(floats("sp", &[1.0])),
        indices: Some(TensorProto {
            dims: vec![1],
            data_type: DataType::Int64 as i32,
            int64_data: vec![3],
            ..Default::default()
        }),
        dims: vec![2, 2],
    }];
    let sequence = ElementTypeProto { elem_type: Some(Box::new(ty(DataType::Float, &[-1]))) };
    let value = Some(TypeValue::SequenceType(Box::new(sequence)));
    g.value_info = vec![ValueInfoProto {
        name: "b".into(),
        r#type: Some(TypeProto { value, ..Default::default() }),
        ..Default::default()
    }];
    let mut m = model(g);
    m.opset_import.push(opset("f", 1));
    m.functions = vec![function];
    m.metadata_props = vec![entry("key", "value")];
    m.encode_to_vec()
}

fn try_load(bytes: Vec<u8>) -> Result<Model, LoadError> {
    let file = |_: &str| Ok(Bytes::from_static(&[0; 4]));
    let limits = Limits { nodes: 1000, decoded_bytes: 1 << 20, ..Limits::default() };
    let result = model::load(bytes.into(), &file, &limits);
    if let Err(e) = &result {
        assert!(!e.to_string().chars().any(|c| c.is_control() && c != '\n'), "{e:?}");
    }
    result
}

#[test]
fn the_model_itself_is_valid() {
    let m = try_load(everything()).unwrap();
    assert_eq!(m.graph.nodes.len(), 3);
}

#[test]
fn every_truncation_is_refused() {
    let bytes = everything();
    for n in 0..bytes.len() {
        // A cut between two top-level fields leaves a model without what follows, which may be metadata.
        let cut = try_load(bytes[..n].to_vec());
        assert!(cut.is_err() || ModelProto::decode(&bytes[..n]).is_ok(), "{n}");
    }
}

#[test]
fn every_bit_flip_is_survived() {
    let bytes = everything();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let _ = try_load(flipped);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutations_are_survived(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        insert in prop::collection::vec(any::<u8>(), 0..6),
        truncate in any::<bool>(),
    ) {
        let mut bytes = everything();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let at = cut.index(bytes.len());
        if truncate {
            bytes.truncate(at);
        }
        bytes.splice(at.min(bytes.len())..at.min(bytes.len()), insert);
        let _ = try_load(bytes);
    }

    #[test]
    fn noise_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(try_load(bytes).is_err());
    }
}
