//! Changes to a model that keep it a message, and changes to bytes that need not.

use kiln_frontend::onnx::proto::*;

/// Random numbers from a seed (SplitMix64: Steele, Lea, Flood 2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 where `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() % n as u64) as usize }
    }

    fn pick<'a, T>(&mut self, all: &'a mut [T]) -> Option<&'a mut T> {
        let n = self.below(all.len());
        all.get_mut(n)
    }

    /// A number at which arithmetic goes wrong, or a small one.
    fn edge(&mut self) -> i64 {
        const EDGES: [i64; 16] =
            [0, 1, -1, 2, 3, -2, 7, 255, 256, 1 << 31, -(1 << 31), (1 << 31) - 1, 1 << 40, i64::MAX, i64::MIN, 1 << 62];
        EDGES[self.below(EDGES.len())]
    }

    fn name(&mut self) -> String {
        let long = "x".repeat(5000);
        let names = ["", "x", "y", "\u{1b}[31m", "a\0b", "../../etc/passwd", "no such name", "\u{202e}", "0", &long];
        names[self.below(names.len())].to_owned()
    }
}

/// One change, somewhere.
pub fn change(model: &mut ModelProto, r: &mut Random) {
    match r.below(12) {
        0 => match r.below(3) {
            0 => model.ir_version = r.edge(),
            1 => {
                if let Some(set) = r.pick(&mut model.opset_import) {
                    set.version = r.edge();
                }
            }
            _ => model.opset_import.clear(),
        },
        1 => recursive_function(model, r),
        2 => {
            // Graphs within graphs, as deep as it goes.
            let depth = r.below(60);
            if let Some(graph) = model.graph.take() {
                model.graph = Some(nested(graph, depth));
            }
        }
        _ => {
            if let Some(graph) = &mut model.graph {
                in_graph(graph, r, 0);
            }
        }
    }
}

fn recursive_function(model: &mut ModelProto, r: &mut Random) {
    let call = |n: usize| NodeProto {
        op_type: format!("f{n}"),
        domain: "local".into(),
        input: vec!["a".into()],
        output: vec!["b".into()],
        ..Default::default()
    };
    let count = 1 + r.below(3);
    for n in 0..count {
        // Each calls the next one, twice, and the last one the first.
        let next = (n + 1) % count;
        let mut second = call(next);
        second.input = vec!["b".into()];
        second.output = vec!["c".into()];
        model.functions.push(FunctionProto {
            name: format!("f{n}"),
            domain: "local".into(),
            input: vec!["a".into()],
            output: vec!["c".into()],
            node: vec![call(next), second],
            opset_import: model.opset_import.clone(),
            ..Default::default()
        });
    }
    model.opset_import.push(OperatorSetIdProto { domain: "local".into(), version: 1 });
    if let Some(graph) = &mut model.graph {
        let input = graph.input.first().map(|i| i.name.clone()).unwrap_or_default();
        graph.node.push(NodeProto { input: vec![input], output: vec!["called".into()], ..call(0) });
    }
}

/// The graph as the branch of as many conditionals, and as the body of loops in between.
fn nested(graph: GraphProto, depth: usize) -> GraphProto {
    let outputs = graph.output.clone();
    let (inputs, initializers) = (graph.input.clone(), graph.initializer.clone());
    let names: Vec<String> = outputs.iter().map(|o| o.name.clone()).collect();
    let mut inner = GraphProto { input: vec![], initializer: vec![], ..graph };
    for n in 0..depth {
        let attribute = |name: &str, g: &GraphProto| AttributeProto {
            name: name.into(),
            r#type: AttributeType::Graph as i32,
            g: Some(Box::new(g.clone())),
            ..Default::default()
        };
        // Both branches alike would double the size at each level.
        let empty = GraphProto { output: outputs.clone(), ..Default::default() };
        let node = NodeProto {
            op_type: "If".into(),
            input: vec![names.first().cloned().unwrap_or_default()],
            output: names.iter().map(|name| format!("{name}_{n}")).collect(),
            attribute: vec![attribute("then_branch", &inner), attribute("else_branch", &empty)],
            ..Default::default()
        };
        let renamed = outputs.iter().map(|o| ValueInfoProto { name: format!("{}_{n}", o.name), ..o.clone() });
        inner = GraphProto { node: vec![node], output: renamed.collect(), ..Default::default() };
    }
    GraphProto { input: inputs, initializer: initializers, ..inner }
}

/// One change in a graph, or in one within it.
fn in_graph(graph: &mut GraphProto, r: &mut Random, depth: usize) {
    let names: Vec<String> = graph
        .node
        .iter()
        .flat_map(|n| n.input.iter().chain(&n.output))
        .chain(graph.input.iter().map(|i| &i.name))
        .cloned()
        .collect();
    let some_name = |r: &mut Random| match r.below(3) {
        0 => r.name(),
        _ => names.get(r.below(names.len())).cloned().unwrap_or_default(),
    };
    match r.below(16) {
        0 => {
            let n = r.below(graph.node.len());
            if n < graph.node.len() {
                graph.node.remove(n);
            }
        }
        1 => {
            let n = r.below(graph.node.len());
            if let Some(node) = graph.node.get(n).cloned() {
                graph.node.insert(r.below(graph.node.len()), node);
            }
        }
        2 => {
            let (a, b) = (r.below(graph.node.len()), r.below(graph.node.len()));
            if a < graph.node.len() && b < graph.node.len() {
                graph.node.swap(a, b);
            }
        }
        3 => {
            let name = some_name(r);
            if let Some(input) = r.pick(&mut graph.node).and_then(|n| n.input.first_mut()) {
                *input = name;
            }
        }
        4 => {
            let (name, end) = (some_name(r), r.below(2) == 0);
            if let Some(node) = r.pick(&mut graph.node) {
                let list = if end { &mut node.output } else { &mut node.input };
                let at = r.below(list.len() + 1);
                match r.below(3) {
                    0 => list.insert(at, name),
                    1 if at < list.len() => {
                        list.remove(at);
                    }
                    _ => {
                        if let Some(slot) = list.get_mut(at) {
                            *slot = name;
                        }
                    }
                }
            }
        }
        5 => {
            let all = kiln_frontend::onnx::ops::supported();
            let (domain, name, _) = all[r.below(all.len())].clone();
            if let Some(node) = r.pick(&mut graph.node) {
                node.op_type = name.into();
                node.domain = domain.into();
                if r.below(4) == 0 {
                    node.attribute.clear();
                }
            }
        }
        6..=8 => {
            if let Some(node) = r.pick(&mut graph.node) {
                in_attributes(node, r, depth);
            }
        }
        9 | 10 => {
            if let Some(tensor) = r.pick(&mut graph.initializer) {
                in_tensor(tensor, r);
            }
        }
        11 | 12 => {
            let list = if r.below(4) == 0 { &mut graph.output } else { &mut graph.input };
            if let Some(info) = r.pick(list) {
                in_info(info, r);
            }
        }
        13 => {
            if let Some(info) = r.pick(&mut graph.input).cloned() {
                graph.output.push(info);
            }
        }
        14 => {
            // An input becomes a constant without data of its size, or loses its place.
            let n = r.below(graph.input.len());
            if n < graph.input.len() {
                let info = graph.input.remove(n);
                let dims = vec![r.edge(), r.edge()];
                let tensor = TensorProto { name: info.name, dims, data_type: 7, ..Default::default() };
                graph.initializer.push(tensor);
            }
        }
        _ => {
            let name = some_name(r);
            if let Some(output) = r.pick(&mut graph.output) {
                output.name = name;
            }
        }
    }
}

fn in_attributes(node: &mut NodeProto, r: &mut Random, depth: usize) {
    if r.below(6) == 0 {
        let n = r.below(node.attribute.len());
        if n < node.attribute.len() {
            let attribute = node.attribute.remove(n);
            if r.below(2) == 0 {
                node.attribute.push(attribute.clone());
                node.attribute.push(attribute);
            }
        }
        return;
    }
    let (edge, other) = (r.edge(), r.edge());
    let Some(a) = r.pick(&mut node.attribute) else { return };
    match r.below(9) {
        0 => a.r#type = r.below(20) as i32,
        1 => a.name = r.name(),
        2 => a.i = Some(edge),
        3 => a.f = Some([f32::NAN, f32::INFINITY, -1e38, 0.0, 1e-45][r.below(5)]),
        4 => a.s = Some(r.name().into_bytes().into()),
        5 => match r.below(3) {
            0 => a.ints = vec![edge; r.below(70)],
            1 => a.ints.push(edge),
            _ => {
                if let Some(slot) = r.pick(&mut a.ints) {
                    *slot = other;
                }
            }
        },
        6 => {
            if let Some(t) = &mut a.t {
                in_tensor(t, r);
            }
        }
        7 => a.ref_attr_name = r.name(),
        _ => {
            if let Some(g) = &mut a.g
                && depth < 8
            {
                in_graph(g, r, depth + 1);
            }
        }
    }
}

fn in_tensor(t: &mut TensorProto, r: &mut Random) {
    match r.below(9) {
        0 => t.data_type = r.below(32) as i32,
        1 => t.dims = (0..r.below(70)).map(|_| r.edge()).collect(),
        2 => {
            let edge = r.edge();
            if let Some(d) = r.pick(&mut t.dims) {
                *d = edge;
            }
        }
        3 => t.raw_data = Some(vec![r.next() as u8; r.below(64)].into()),
        4 => t.raw_data = None,
        5 => t.int64_data.push(r.edge()),
        6 => {
            t.data_location = 1;
            let keys = ["location", "offset", "length", "checksum", "basepath"];
            for _ in 0..r.below(4) {
                let key = keys[r.below(keys.len())].to_owned();
                let value = if r.below(2) == 0 { r.edge().to_string() } else { r.name() };
                t.external_data.push(StringStringEntryProto { key, value });
            }
        }
        7 => t.name = r.name(),
        _ => t.string_data.push(vec![0xff, 0xfe].into()),
    }
}

fn in_info(info: &mut ValueInfoProto, r: &mut Random) {
    if r.below(5) == 0 {
        info.name = r.name();
        return;
    }
    let Some(ty) = &mut info.r#type else { return };
    if r.below(6) == 0 {
        // Types within types.
        for _ in 0..r.below(80) {
            let inner = Box::new(std::mem::take(ty));
            let element = Box::new(ElementTypeProto { elem_type: Some(inner) });
            let value =
                if r.below(2) == 0 { TypeValue::SequenceType(element) } else { TypeValue::OptionalType(element) };
            *ty = TypeProto { value: Some(value), ..Default::default() };
        }
        return;
    }
    let Some(TypeValue::TensorType(t)) = &mut ty.value else { return };
    let (edge, name) = (r.edge(), r.name());
    match r.below(5) {
        0 => t.elem_type = r.below(32) as i32,
        1 => t.shape = None,
        2 => {
            if let Some(shape) = &mut t.shape {
                shape.dim = vec![shape.dim.first().cloned().unwrap_or_default(); r.below(80)];
            }
        }
        3 => {
            if let Some(d) = t.shape.as_mut().and_then(|s| r.pick(&mut s.dim)) {
                d.value = Some(DimensionValue::DimValue(edge));
            }
        }
        _ => {
            if let Some(d) = t.shape.as_mut().and_then(|s| r.pick(&mut s.dim)) {
                d.value = Some(DimensionValue::DimParam(name));
            }
        }
    }
}

/// Bytes flipped, cut off, repeated.
pub fn damage(bytes: &mut Vec<u8>, r: &mut Random) {
    for _ in 0..1 + r.below(4) {
        let at = r.below(bytes.len());
        match r.below(4) {
            0 => {
                if let Some(b) = bytes.get_mut(at) {
                    *b ^= 1 << r.below(8);
                }
            }
            1 => bytes.truncate(at),
            2 => {
                let end = (at + r.below(64)).min(bytes.len());
                let part = bytes[at.min(end)..end].to_vec();
                bytes.splice(at..at, part);
            }
            _ => {
                // A number of ten bytes: the greatest length there is.
                let end = (at + 10).min(bytes.len());
                bytes[at.min(end)..end].fill(0xff);
            }
        }
    }
}
