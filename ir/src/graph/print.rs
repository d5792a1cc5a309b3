//! The text form of graphs.

use super::{Definition, Graph, Value, ValueId};
use crate::tensor::Tensor;
use std::fmt;

/// Constants of at most this many elements are printed in full; larger ones as `data N`, see [`Graph::data`].
const PRINTED: usize = 64;

fn is_printed(t: &Tensor) -> bool {
    t.len() <= PRINTED && !matches!(t.dtype().class(), crate::Class::Str | crate::Class::Complex)
}

impl Graph {
    /// The constants that the text form only refers to, in the order of their numbers.
    pub fn data(&self) -> Vec<Tensor> {
        let large = |v: &Value| match &v.definition {
            Definition::Constant(t) if !is_printed(t) => Some(t.clone()),
            _ => None,
        };
        self.values().filter_map(|(_, v)| large(v)).collect()
    }
}

fn write_value(f: &mut fmt::Formatter<'_>, id: ValueId, v: &Value) -> fmt::Result {
    write!(f, "{id}")?;
    match &v.name {
        Some(name) => write!(f, " {:?}", &**name),
        None => Ok(()),
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "graph {:?} {{", self.name)?;
        for (symbol, (lo, hi)) in &self.symbols {
            writeln!(f, "  symbol {symbol} in {lo}..{hi}")?;
        }
        for &v in &self.inputs {
            f.write_str("  input ")?;
            write_value(f, v, self.value(v))?;
            writeln!(f, " : {}", self.ty(v))?;
        }
        let mut data = 0;
        for (id, v) in self.values() {
            if let Definition::Constant(t) = &v.definition {
                f.write_str("  const ")?;
                write_value(f, id, v)?;
                write!(f, " : {} = ", v.ty)?;
                if is_printed(t) {
                    let all = (0..t.len()).filter_map(|i| crate::Constant::load(t.dtype(), t.bytes(), i));
                    writeln!(f, "[{}]", crate::text::Commas(all.collect::<Vec<_>>()))?;
                } else {
                    writeln!(f, "data {data}")?;
                    data += 1;
                }
            }
        }
        let order = self.order().unwrap_or_else(|_| self.nodes().map(|(id, _)| id).collect());
        for id in order {
            let node = self.node(id);
            f.write_str("  ")?;
            for (i, &v) in node.outputs.iter().enumerate() {
                f.write_str(if i == 0 { "" } else { ", " })?;
                write_value(f, v, self.value(v))?;
            }
            write!(f, " = {}({})", node.op.name(), crate::text::Commas(&node.inputs))?;
            let attributes = node.op.operator().attributes();
            if !attributes.0.is_empty() {
                write!(f, " {attributes}")?;
            }
            let types: Vec<_> = node.outputs.iter().map(|&v| self.ty(v)).collect();
            write!(f, " : {}", crate::text::Commas(types))?;
            if node.origin.names().len() > 0 {
                let names: Vec<String> = node.origin.names().map(|n| format!("{n:?}")).collect();
                write!(f, " from {}", names.join(", "))?;
            }
            writeln!(f)?;
        }
        for (name, v) in &self.outputs {
            writeln!(f, "  output {v} {:?}", &**name)?;
        }
        writeln!(f, "}}")
    }
}
