//! A walk over the wire format that allocates nothing to speak of, made before prost decodes the same bytes.
//!
//! Invariant: what prost allocates for bytes that pass is at most the estimate that was compared with the limit.
//! Protobuf amplifies: an empty node takes two bytes in a file and some two hundred in memory, so that a file of
//! 100 MB could ask for 20 GB. The walk also knows where a file that was cut off ends, which prost does not say.

use super::*;
use std::mem::size_of;

/// Messages nested deeper than this are refused, here and by prost.
const MAX_DEPTH: usize = 100;

/// The wire format is broken, cut off, or too large once decoded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ScanError {
    /// A length or number runs over the end of the file or of the message around it.
    #[error("the data ends inside `{path}`: {needed} bytes are announced at byte {offset}, {left} are left")]
    CutOff {
        /// Where in the message, such as `graph.node[3].input`.
        path: String,
        /// Byte offset of the content.
        offset: usize,
        /// Bytes announced.
        needed: u64,
        /// Bytes there.
        left: usize,
    },
    /// A field's tag is not one that protobuf allows.
    #[error("`{path}` has a malformed field at byte {offset}")]
    Malformed {
        /// Where in the message.
        path: String,
        /// Byte offset of the tag.
        offset: usize,
    },
    /// Messages nest too deep.
    #[error("`{path}` nests more than {MAX_DEPTH} messages deep")]
    TooDeep {
        /// Where in the message.
        path: String,
    },
    /// The decoded structures would take more memory than allowed.
    #[error("decoding would take more than {limit} bytes of memory (reached in `{path}`)")]
    TooLarge {
        /// Where in the message.
        path: String,
        /// The limit.
        limit: u64,
    },
}

/// The kinds of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Function,
    Training,
    OperatorSet,
    Annotation,
    Tensor,
    Segment,
    SparseTensor,
    Entry,
    ValueInfo,
    Type,
    TensorType,
    ElementType,
    MapType,
    OpaqueType,
    Shape,
    Dimension,
    Sequence,
    Map,
    Optional,
}

/// What a length-delimited field holds.
enum Content {
    Message(Kind),
    /// Text or bytes.
    Text,
    /// Packed numbers of fixed size.
    Fixed,
    /// Packed varints, each of which becomes a number of that many bytes.
    Varints(u64),
    Unknown,
}

/// Name and content of a field, for fields that may be length-delimited.
fn field(kind: Kind, number: u64) -> (&'static str, Content) {
    use Content::{Fixed, Message, Text, Varints};
    match (kind, number) {
        (Kind::Model, 8) => ("opset_import", Message(Kind::OperatorSet)),
        (Kind::Model, 7) => ("graph", Message(Kind::Graph)),
        (Kind::Model, 14) => ("metadata_props", Message(Kind::Entry)),
        (Kind::Model, 20) => ("training_info", Message(Kind::Training)),
        (Kind::Model, 25) => ("functions", Message(Kind::Function)),
        (Kind::Model, 2..=6) => ("model text", Text),
        (Kind::Graph, 1) => ("node", Message(Kind::Node)),
        (Kind::Graph, 5) => ("initializer", Message(Kind::Tensor)),
        (Kind::Graph, 15) => ("sparse_initializer", Message(Kind::SparseTensor)),
        (Kind::Graph, 11) => ("input", Message(Kind::ValueInfo)),
        (Kind::Graph, 12) => ("output", Message(Kind::ValueInfo)),
        (Kind::Graph, 13) => ("value_info", Message(Kind::ValueInfo)),
        (Kind::Graph, 14) => ("quantization_annotation", Message(Kind::Annotation)),
        (Kind::Graph, 16) => ("metadata_props", Message(Kind::Entry)),
        (Kind::Graph, 2) => ("name", Text),
        (Kind::Graph, 10) => ("doc_string", Text),
        (Kind::Node, 1) => ("input", Text),
        (Kind::Node, 2) => ("output", Text),
        (Kind::Node, 5) => ("attribute", Message(Kind::Attribute)),
        (Kind::Node, 9) => ("metadata_props", Message(Kind::Entry)),
        (Kind::Node, 3 | 4 | 6..=8) => ("node text", Text),
        (Kind::Attribute, 4 | 9) => ("strings", Text),
        (Kind::Attribute, 5) => ("t", Message(Kind::Tensor)),
        (Kind::Attribute, 6) => ("g", Message(Kind::Graph)),
        (Kind::Attribute, 22) => ("sparse_tensor", Message(Kind::SparseTensor)),
        (Kind::Attribute, 14) => ("tp", Message(Kind::Type)),
        (Kind::Attribute, 7) => ("floats", Fixed),
        (Kind::Attribute, 8) => ("ints", Varints(8)),
        (Kind::Attribute, 10) => ("tensors", Message(Kind::Tensor)),
        (Kind::Attribute, 11) => ("graphs", Message(Kind::Graph)),
        (Kind::Attribute, 23) => ("sparse_tensors", Message(Kind::SparseTensor)),
        (Kind::Attribute, 15) => ("type_protos", Message(Kind::Type)),
        (Kind::Attribute, 1 | 13 | 21) => ("attribute text", Text),
        (Kind::Function, 11) => ("attribute_proto", Message(Kind::Attribute)),
        (Kind::Function, 7) => ("node", Message(Kind::Node)),
        (Kind::Function, 9) => ("opset_import", Message(Kind::OperatorSet)),
        (Kind::Function, 12) => ("value_info", Message(Kind::ValueInfo)),
        (Kind::Function, 14) => ("metadata_props", Message(Kind::Entry)),
        (Kind::Function, 1 | 4..=6 | 8 | 10 | 13) => ("function text", Text),
        (Kind::Training, 1) => ("initialization", Message(Kind::Graph)),
        (Kind::Training, 2) => ("algorithm", Message(Kind::Graph)),
        (Kind::Training, 3) => ("initialization_binding", Message(Kind::Entry)),
        (Kind::Training, 4) => ("update_binding", Message(Kind::Entry)),
        (Kind::OperatorSet, 1) => ("domain", Text),
        (Kind::Annotation, 1) => ("tensor_name", Text),
        (Kind::Annotation, 2) => ("quant_parameter_tensor_names", Message(Kind::Entry)),
        (Kind::Tensor, 1) => ("dims", Varints(8)),
        (Kind::Tensor, 3) => ("segment", Message(Kind::Segment)),
        (Kind::Tensor, 4) => ("float_data", Fixed),
        (Kind::Tensor, 5) => ("int32_data", Varints(4)),
        (Kind::Tensor, 6) => ("string_data", Text),
        (Kind::Tensor, 7) => ("int64_data", Varints(8)),
        (Kind::Tensor, 8) => ("name", Text),
        (Kind::Tensor, 9) => ("raw_data", Text),
        (Kind::Tensor, 10) => ("double_data", Fixed),
        (Kind::Tensor, 11) => ("uint64_data", Varints(8)),
        (Kind::Tensor, 12) => ("doc_string", Text),
        (Kind::Tensor, 13) => ("external_data", Message(Kind::Entry)),
        (Kind::Tensor, 16) => ("metadata_props", Message(Kind::Entry)),
        (Kind::SparseTensor, 1) => ("values", Message(Kind::Tensor)),
        (Kind::SparseTensor, 2) => ("indices", Message(Kind::Tensor)),
        (Kind::SparseTensor, 3) => ("dims", Varints(8)),
        (Kind::Entry, 1 | 2) => ("entry text", Text),
        (Kind::ValueInfo, 1 | 3) => ("value text", Text),
        (Kind::ValueInfo, 2) => ("type", Message(Kind::Type)),
        (Kind::ValueInfo, 4) => ("metadata_props", Message(Kind::Entry)),
        (Kind::Type, 1) => ("tensor_type", Message(Kind::TensorType)),
        (Kind::Type, 4) => ("sequence_type", Message(Kind::ElementType)),
        (Kind::Type, 5) => ("map_type", Message(Kind::MapType)),
        (Kind::Type, 9) => ("optional_type", Message(Kind::ElementType)),
        (Kind::Type, 8) => ("sparse_tensor_type", Message(Kind::TensorType)),
        (Kind::Type, 7) => ("opaque_type", Message(Kind::OpaqueType)),
        (Kind::Type, 6) => ("denotation", Text),
        (Kind::TensorType, 2) => ("shape", Message(Kind::Shape)),
        (Kind::ElementType, 1) => ("elem_type", Message(Kind::Type)),
        (Kind::MapType, 2) => ("value_type", Message(Kind::Type)),
        (Kind::OpaqueType, 1 | 2) => ("opaque text", Text),
        (Kind::Shape, 1) => ("dim", Message(Kind::Dimension)),
        (Kind::Dimension, 2 | 3) => ("dim text", Text),
        (Kind::Sequence, 3) => ("tensor_values", Message(Kind::Tensor)),
        (Kind::Sequence, 4) => ("sparse_tensor_values", Message(Kind::SparseTensor)),
        (Kind::Sequence, 5) => ("sequence_values", Message(Kind::Sequence)),
        (Kind::Sequence, 6) => ("map_values", Message(Kind::Map)),
        (Kind::Sequence, 7) => ("optional_values", Message(Kind::Optional)),
        (Kind::Sequence, 1) => ("name", Text),
        (Kind::Map, 3) => ("keys", Varints(8)),
        (Kind::Map, 4) => ("string_keys", Text),
        (Kind::Map, 5) => ("values", Message(Kind::Sequence)),
        (Kind::Map, 1) => ("name", Text),
        (Kind::Optional, 3) => ("tensor_value", Message(Kind::Tensor)),
        (Kind::Optional, 4) => ("sparse_tensor_value", Message(Kind::SparseTensor)),
        (Kind::Optional, 5) => ("sequence_value", Message(Kind::Sequence)),
        (Kind::Optional, 6) => ("map_value", Message(Kind::Map)),
        (Kind::Optional, 7) => ("optional_value", Message(Kind::Optional)),
        (Kind::Optional, 1) => ("name", Text),
        _ => ("unknown field", Content::Unknown),
    }
}

/// Bytes of the Rust structure that a message decodes to, twice over: a growing `Vec` may hold up to double.
fn footprint(kind: Kind) -> u64 {
    let size = match kind {
        Kind::Model => size_of::<ModelProto>(),
        Kind::Graph => size_of::<GraphProto>(),
        Kind::Node => size_of::<NodeProto>(),
        Kind::Attribute => size_of::<AttributeProto>(),
        Kind::Function => size_of::<FunctionProto>(),
        Kind::Training => size_of::<TrainingInfoProto>(),
        Kind::OperatorSet => size_of::<OperatorSetIdProto>(),
        Kind::Annotation => size_of::<TensorAnnotation>(),
        Kind::Tensor => size_of::<TensorProto>(),
        Kind::Segment => size_of::<Segment>(),
        Kind::SparseTensor => size_of::<SparseTensorProto>(),
        Kind::Entry => size_of::<StringStringEntryProto>(),
        Kind::ValueInfo => size_of::<ValueInfoProto>(),
        Kind::Type => size_of::<TypeProto>(),
        Kind::TensorType => size_of::<TensorTypeProto>(),
        Kind::ElementType => size_of::<ElementTypeProto>(),
        Kind::MapType => size_of::<MapTypeProto>(),
        Kind::OpaqueType => size_of::<OpaqueTypeProto>(),
        Kind::Shape => size_of::<TensorShapeProto>(),
        Kind::Dimension => size_of::<Dimension>(),
        Kind::Sequence => size_of::<SequenceProto>(),
        Kind::Map => size_of::<MapProto>(),
        Kind::Optional => size_of::<OptionalProto>(),
    };
    2 * size as u64
}

/// A message that the walk is inside of.
struct Level {
    kind: Kind,
    end: usize,
    name: &'static str,
    /// Position among the messages of the same field, counted while they follow each other.
    index: usize,
    /// The field that was walked last, and how many of it there were in a row.
    last: (u64, usize),
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    levels: Vec<Level>,
    limit: u64,
    taken: u64,
}

impl Walk<'_> {
    /// Where the walk is, as text.
    fn path(&self, last: &str) -> String {
        let mut path = String::new();
        for level in self.levels.iter().skip(1) {
            path.push_str(level.name);
            if level.index > 0 {
                path.push_str(&format!("[{}]", level.index));
            }
            path.push('.');
        }
        path.push_str(last);
        path
    }

    fn take(&mut self, bytes: u64, name: &str) -> Result<(), ScanError> {
        self.taken = self.taken.saturating_add(bytes);
        if self.taken > self.limit {
            return Err(ScanError::TooLarge { path: self.path(name), limit: self.limit });
        }
        Ok(())
    }

    fn varint(&mut self, end: usize, name: &str) -> Result<u64, ScanError> {
        let start = self.at;
        let mut value = 0u64;
        for i in 0..10 {
            let byte = match self.bytes.get(self.at) {
                Some(&b) if self.at < end => b,
                _ => {
                    return Err(ScanError::CutOff {
                        path: self.path(name),
                        offset: start,
                        needed: i + 1,
                        left: i as usize,
                    });
                }
            };
            self.at += 1;
            value |= u64::from(byte & 0x7f).checked_shl(7 * i as u32).unwrap_or(0);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(ScanError::Malformed { path: self.path(name), offset: start })
    }

    /// Moves over `len` bytes of content.
    fn skip(&mut self, len: u64, end: usize, name: &str) -> Result<(), ScanError> {
        let left = end.saturating_sub(self.at);
        match usize::try_from(len) {
            Ok(n) if n <= left => {
                self.at += n;
                Ok(())
            }
            _ => Err(ScanError::CutOff { path: self.path(name), offset: self.at, needed: len, left }),
        }
    }
}

/// Checks that `bytes` are well-formed as a message of that kind and decode to at most `limit` bytes of structures.
///
/// # Errors
/// The first place that is malformed, cut off, too deep or too large.
pub fn scan(kind: Kind, bytes: &[u8], limit: u64) -> Result<(), ScanError> {
    let top = Level { kind, end: bytes.len(), name: "", index: 0, last: (0, 0) };
    let mut walk = Walk { bytes, at: 0, levels: vec![top], limit, taken: 0 };
    while let Some(level) = walk.levels.last_mut() {
        let (kind, end) = (level.kind, level.end);
        if walk.at >= end {
            walk.levels.pop();
            continue;
        }
        let start = walk.at;
        let tag = walk.varint(end, "a field")?;
        let (number, wire) = (tag >> 3, tag & 7);
        let (name, content) = field(kind, number);
        if number == 0 || number > 0x1fff_ffff {
            return Err(ScanError::Malformed { path: walk.path("a field"), offset: start });
        }
        match wire {
            0 => {
                walk.varint(end, name)?;
                // A number may be one of a repeated field that is not packed.
                walk.take(24, name)?;
            }
            1 => {
                walk.skip(8, end, name)?;
                walk.take(24, name)?;
            }
            5 => {
                walk.skip(4, end, name)?;
                walk.take(12, name)?;
            }
            2 => {
                let len = walk.varint(end, name)?;
                let content_start = walk.at;
                walk.skip(len, end, name)?;
                match content {
                    Content::Message(child) => {
                        walk.take(footprint(child), name)?;
                        if walk.levels.len() > MAX_DEPTH {
                            return Err(ScanError::TooDeep { path: walk.path(name) });
                        }
                        let mut index = 0;
                        if let Some(level) = walk.levels.last_mut() {
                            level.last = if level.last.0 == number { (number, level.last.1 + 1) } else { (number, 0) };
                            index = level.last.1;
                        }
                        let end = walk.at;
                        walk.at = content_start;
                        walk.levels.push(Level { kind: child, end, name, index, last: (0, 0) });
                    }
                    // Names are copied; bytes are shared, and share the handle's cost with a String's.
                    Content::Text => walk.take(if name == "raw_data" { 64 } else { 64 + len }, name)?,
                    // A Vec grows by doubling, and a tensor made of the numbers is another copy.
                    Content::Fixed => walk.take(len.saturating_mul(3), name)?,
                    Content::Varints(size) => {
                        let content = walk.bytes.get(content_start..walk.at).unwrap_or_default();
                        let count = content.iter().filter(|&&b| b < 0x80).count() as u64;
                        walk.take(count.saturating_mul(3 * size), name)?;
                    }
                    Content::Unknown => {}
                }
            }
            _ => return Err(ScanError::Malformed { path: walk.path(name), offset: start }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    fn model() -> ModelProto {
        let node = NodeProto {
            op_type: "Relu".into(),
            input: vec!["x".into()],
            output: vec!["y".into()],
            ..Default::default()
        };
        let weights = TensorProto {
            dims: vec![2],
            data_type: 1,
            raw_data: Some(Bytes::from_static(&[0; 8])),
            ..Default::default()
        };
        let graph = GraphProto { node: vec![node.clone(), node], initializer: vec![weights], ..Default::default() };
        ModelProto { ir_version: 8, graph: Some(graph), ..Default::default() }
    }

    #[test]
    fn every_truncation_is_an_error_or_a_shorter_message() {
        let bytes = model().encode_to_vec();
        assert_eq!(scan(Kind::Model, &bytes, 1 << 20), Ok(()));
        for n in 0..bytes.len() {
            let scanned = scan(Kind::Model, &bytes[..n], 1 << 20);
            assert_eq!(scanned.is_ok(), ModelProto::decode(&bytes[..n]).is_ok(), "{n}: {scanned:?}");
        }
    }

    #[test]
    fn says_where_the_data_ends() {
        let bytes = model().encode_to_vec();
        let error = scan(Kind::Model, &bytes[..bytes.len() - 1], 1 << 20).unwrap_err();
        assert!(error.to_string().starts_with("the data ends inside `graph`"), "{error}");
    }

    #[test]
    fn memory_is_bounded_before_decoding() {
        let graph = GraphProto { node: vec![NodeProto::default(); 10_000], ..Default::default() };
        let bytes = ModelProto { graph: Some(graph), ..Default::default() }.encode_to_vec();
        assert!(bytes.len() < 21_000);
        let error = scan(Kind::Model, &bytes, 1 << 20).unwrap_err();
        assert!(matches!(error, ScanError::TooLarge { .. }), "{error}");
        assert!(decode::<ModelProto>(bytes.into(), 1 << 20).unwrap_err().is_limit());
    }

    #[test]
    fn raw_data_is_not_copied() {
        let bytes = Bytes::from(model().encode_to_vec());
        let range = bytes.as_ptr_range();
        let decoded: ModelProto = decode(bytes.clone(), 1 << 20).unwrap();
        let raw = decoded.graph.unwrap().initializer[0].raw_data.clone().unwrap();
        assert!(range.contains(&raw.as_ptr()));
    }

    #[test]
    fn strings_must_be_utf8() {
        let mut bytes = ModelProto { producer_name: "abc".into(), ..Default::default() }.encode_to_vec();
        let at = bytes.len() - 1;
        bytes[at] = 0xff;
        let error = decode::<ModelProto>(bytes.into(), 1 << 20).unwrap_err();
        assert!(matches!(error, DecodeError::Utf8(_)), "{error}");
    }

    #[test]
    fn nesting_is_bounded() {
        let mut graph = GraphProto::default();
        for _ in 0..60 {
            let attribute = AttributeProto { g: Some(Box::new(graph)), ..Default::default() };
            graph = GraphProto {
                node: vec![NodeProto { attribute: vec![attribute], ..Default::default() }],
                ..Default::default()
            };
        }
        let bytes = ModelProto { graph: Some(graph), ..Default::default() }.encode_to_vec();
        let error = scan(Kind::Model, &bytes, 1 << 20).unwrap_err();
        assert!(matches!(error, ScanError::TooDeep { .. }), "{error}");
    }
}
