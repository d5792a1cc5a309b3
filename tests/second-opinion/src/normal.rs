//! Kiln's messages with scalars that are their type's default left out, as [`crate::convert`] has them.

use crate::convert::set;
use kiln_frontend::onnx::proto::*;

pub fn model(m: &mut ModelProto) {
    m.graph.iter_mut().for_each(graph);
    for t in &mut m.training_info {
        t.initialization.iter_mut().chain(&mut t.algorithm).for_each(graph);
    }
    for f in &mut m.functions {
        f.attribute_proto.iter_mut().for_each(attribute);
        f.node.iter_mut().for_each(node);
    }
}

fn graph(g: &mut GraphProto) {
    g.node.iter_mut().for_each(node);
    g.initializer.iter_mut().for_each(tensor);
    g.sparse_initializer.iter_mut().for_each(sparse);
}

fn node(n: &mut NodeProto) {
    n.attribute.iter_mut().for_each(attribute);
}

fn attribute(a: &mut AttributeProto) {
    a.f = a.f.and_then(set);
    a.i = a.i.and_then(set);
    a.s = a.s.take().and_then(set);
    a.t.iter_mut().for_each(|t| tensor(t));
    a.g.iter_mut().for_each(|g| graph(g));
    a.sparse_tensor.iter_mut().for_each(|t| sparse(t));
    a.tensors.iter_mut().for_each(tensor);
    a.graphs.iter_mut().for_each(graph);
    a.sparse_tensors.iter_mut().for_each(sparse);
}

pub fn tensor(t: &mut TensorProto) {
    t.raw_data = t.raw_data.take().and_then(set);
}

fn sparse(s: &mut SparseTensorProto) {
    s.values.iter_mut().chain(&mut s.indices).for_each(tensor);
}
