//! Constants that nodes give, as initializers.
//!
//! Invariant: every name keeps its value, so a model computes what it did.

use kiln_frontend::onnx::model::{AttributeValue, Initializer, Model};
use kiln_frontend::onnx::value::Value;

/// Makes tensors of `Constant` nodes of the main graph its initializers, since some exporters (Paddle's) store all weights so. Those that
/// are outputs of the model stay.
pub fn constants_to_initializers(model: &mut Model) {
    let graph = &mut model.graph;
    let (outputs, initializers) = (&graph.outputs, &mut graph.initializers);
    graph.nodes.retain(|node| {
        if node.op_type != "Constant" || !node.domain.is_empty() {
            return true;
        }
        let Some(name) = node.output(0).map(String::from) else { return true };
        if outputs.iter().any(|o| o.name == name) {
            return true;
        }
        let [attribute] = node.attributes.as_slice() else { return true };
        let AttributeValue::Tensor(tensor) = &attribute.value else { return true };
        initializers.push(Initializer { name, value: Value::Tensor(tensor.clone()) });
        false
    });
}
