//! A model with some of its weights and activations as numbers of few bits.
//!
//! Invariant: nodes that a recipe does not name stay as they are and read what they read before; a number's meaning is that of ONNX's
//! `DequantizeLinear`. New nodes stand right before the first that reads them, so that the order stays topological.

use super::layers::{Layer, transposed};
use super::{Names, constant, floats, initializer};
use crate::Error;
use kiln_frontend::onnx::model::{AttributeValue, Initializer, Model, Node};
use kiln_frontend::onnx::value::Value;
use kiln_ir::{DType, Tensor};
use kiln_passes::quantize::{Activation, Grid, Quantized};
use std::collections::{BTreeMap, BTreeSet};

/// Version of the operator set in which numbers have an axis, and in which they have blocks and 4 bits.
const AXIS: i64 = 13;
const BLOCKS: i64 = 21;

/// What is to become of a model.
#[derive(Clone, Debug, Default)]
pub struct Recipe {
    /// Weights by their name. All layers that have them get the numbers.
    pub weights: BTreeMap<String, Quantized>,
    /// Whether each of the weights has one scale for all, which all groups then share.
    pub per_tensor: bool,
    /// Activations by their name, for the layers with weights above and the nodes below.
    pub values: BTreeMap<String, Activation>,
    /// Names of nodes without weights that read activations as numbers too.
    pub others: BTreeSet<String>,
    /// New biases by layer's node.
    pub biases: BTreeMap<String, Vec<f32>>,
    /// Whether layers quantize what they read in each run, with integer products.
    pub dynamic: bool,
}

struct Rewriting<'m> {
    model: &'m Model,
    names: Names,
    nodes: Vec<Node>,
    initializers: Vec<Initializer>,
    /// What stands for a value: after a Q/DQ pair, or weights' values.
    made: BTreeMap<String, String>,
}

/// The model after a recipe.
///
/// # Errors
/// [`Error::Internal`] where the recipe is not of these layers.
pub fn rewrite(model: &Model, layers: &[Layer], recipe: &Recipe) -> Result<Model, Error> {
    let mut work = Rewriting {
        model,
        names: Names::of(model),
        nodes: Vec::with_capacity(model.graph.nodes.len()),
        initializers: Vec::new(),
        made: BTreeMap::new(),
    };
    let mut by_node: BTreeMap<usize, &Layer> = BTreeMap::new();
    by_node.extend(layers.iter().map(|l| (l.at, l)));
    for (at, node) in model.graph.nodes.iter().enumerate() {
        let mut node = node.clone();
        match by_node.get(&at).and_then(|l| Some((*l, recipe.weights.get(&l.weights)?))) {
            Some((layer, quantized)) if recipe.dynamic => {
                work.dynamic(layer, quantized, &node).ok_or_else(|| misfit(layer))?;
                continue;
            }
            Some((layer, quantized)) => work.layer(layer, quantized, recipe, &mut node).ok_or_else(|| misfit(layer))?,
            None if recipe.others.contains(&node.name) => {
                for n in 0..node.inputs.len() {
                    let Some(name) = node.input(n).map(String::from) else { continue };
                    if let Some(activation) = recipe.values.get(&name) {
                        let pair = work.pair(&name, *activation);
                        let fail = || Error::Internal(format!("the scale of {name:?}"));
                        node.inputs[n] = Some(pair.ok_or_else(fail)?);
                    }
                }
            }
            None => {}
        }
        work.nodes.push(node);
    }
    let mut made = model.clone();
    made.graph.nodes = work.nodes;
    made.graph.initializers.append(&mut work.initializers);
    drop_unused(&mut made);
    Ok(made)
}

fn misfit(layer: &Layer) -> Error {
    Error::Internal(format!("the numbers for {:?} do not fit it", layer.weights))
}

/// Makes layers divide what they read, `input`, by `divisors` (`[columns]`): one product before the first of them.
pub(super) fn divide(model: &mut Model, input: &str, readers: &[&Layer], divisors: &[f32]) -> Option<()> {
    let mut names = Names::of(model);
    let first = readers.iter().map(|l| l.at).min()?;
    let factors: Vec<f32> = divisors.iter().map(|d| d.recip()).collect();
    let factor = floats(names.fresh(&format!("{input}_factors")), &[factors.len()], &factors)?;
    let (node, scaled) = (names.fresh(&format!("{input}_divide")), names.fresh(&format!("{input}_divided")));
    let product = Node::new(&node, "Mul", AXIS, &[input, &factor.name], &scaled);
    for layer in readers {
        *model.graph.nodes.get_mut(layer.at)?.inputs.get_mut(0)? = Some(scaled.clone());
    }
    model.graph.initializers.push(factor);
    model.graph.nodes.insert(first, product);
    Some(())
}

/// Removes initializers that nothing reads any more.
fn drop_unused(model: &mut Model) {
    let mut used: BTreeSet<String> = model.graph.outputs.iter().map(|o| o.name.clone()).collect();
    for node in &model.graph.nodes {
        used.extend(node.inputs.iter().flatten().cloned());
        node.subgraphs().for_each(|g| used.extend(g.captures.iter().cloned()));
    }
    model.graph.initializers.retain(|i| used.contains(&i.name));
    let kept: BTreeSet<&String> = model.graph.initializers.iter().map(|i| &i.name).collect();
    model.graph.defaults.retain(|d| kept.contains(&d.name));
}

/// The element type for numbers of a grid.
fn dtype(grid: Grid) -> DType {
    match grid {
        Grid::Symmetric(bits) if bits > 4 => DType::I8,
        Grid::Symmetric(_) => DType::I4,
        Grid::Asymmetric(bits) if bits > 4 => DType::U8,
        Grid::Asymmetric(_) | Grid::NormalFloat4 => DType::U4,
        Grid::Float(format) => format.dtype(),
    }
}

/// Numbers as elements of a type, of which those of more than a byte have two.
fn bytes(numbers: &[i16], dtype: DType) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes().into_iter().take(dtype.size().min(2))).collect()
}

impl Rewriting<'_> {
    fn add(&mut self, made: Option<Initializer>) -> Option<String> {
        let made = made?;
        let name = made.name.clone();
        self.initializers.push(made);
        Some(name)
    }

    /// A node with one result, whose name it returns.
    fn node(&mut self, name: &str, op: &str, opset: i64, inputs: &[&str], with: &[(&str, AttributeValue)]) -> String {
        let (name, output) = (self.names.fresh(&format!("{name}_{op}")), self.names.fresh(name));
        let node = Node::new(&name, op, opset, inputs, &output);
        self.nodes.push(with.iter().fold(node, |node, (name, value)| node.with(name, value.clone())));
        output
    }

    /// What a value is after it was a number.
    fn pair(&mut self, name: &str, activation: Activation) -> Option<String> {
        if let Some(done) = self.made.get(name) {
            return Some(done.clone());
        }
        let dtype = dtype(activation.grid);
        let (scale, zero) =
            (self.names.fresh(&format!("{name}_scale")), self.names.fresh(&format!("{name}_zero_point")));
        let scale = self.add(floats(scale, &[], &[activation.group.scale]))?;
        let zero = self.add(constant(zero, dtype, &[], bytes(&[activation.group.zero], dtype)))?;
        let number = self.node(&format!("{name}_quantized"), "QuantizeLinear", AXIS, &[name, &scale, &zero], &[]);
        let back = format!("{name}_dequantized");
        let back = self.node(&back, "DequantizeLinear", AXIS, &[&number, &scale, &zero], &[]);
        self.made.insert(name.into(), back.clone());
        Some(back)
    }

    /// The numbers and scales of weights as initializers, in the order of storage: numbers, scales, zero points.
    fn numbers(&mut self, layer: &Layer, quantized: &Quantized, per_tensor: bool) -> Option<[String; 3]> {
        let (name, dtype) = (&layer.weights, dtype(quantized.grid));
        let groups = quantized.groups_of_row();
        let scales: Vec<f32> = quantized.groups.iter().map(|g| g.scale).collect();
        let zeros: Vec<i16> = quantized.groups.iter().map(|g| g.zero).collect();
        let (scales, zeros, shape) = if per_tensor {
            (scales.first().map(|&s| vec![s])?, zeros.first().map(|&z| vec![z])?, vec![])
        } else if groups == 1 {
            (scales, zeros, vec![layer.rows])
        } else if layer.output_axis() == 1 {
            let turned = (transposed(&scales, layer.rows, groups), transposed(&zeros, layer.rows, groups));
            (turned.0, turned.1, vec![groups, layer.rows])
        } else {
            (scales, zeros, vec![layer.rows, groups])
        };
        let fresh = |word: &str, names: &mut Names| names.fresh(&format!("{name}_{word}"));
        let (quantized_name, scale, zero) = (
            fresh("quantized", &mut self.names),
            fresh("scale", &mut self.names),
            fresh("zero_point", &mut self.names),
        );
        let stored = layer.stored(&quantized.numbers);
        let stored = self.add(constant(quantized_name, dtype, &layer.shape, bytes(&stored, dtype)))?;
        let scale = self.add(floats(scale, &shape, &scales))?;
        let zero = self.add(constant(zero, dtype, &shape, bytes(&zeros, dtype)))?;
        Some([stored, scale, zero])
    }

    /// The weights' values.
    fn weights(&mut self, layer: &Layer, quantized: &Quantized, per_tensor: bool) -> Option<String> {
        if let Some(done) = self.made.get(&layer.weights) {
            return Some(done.clone());
        }
        let back = format!("{}_dequantized", layer.weights);
        let made = if quantized.grid == Grid::NormalFloat4 {
            self.looked_up(layer, quantized, &back)?
        } else if matches!(quantized.grid, Grid::Float(format) if !format.scaled()) {
            let (dtype, numbers) = (dtype(quantized.grid), self.names.fresh(&format!("{}_stored", layer.weights)));
            let stored = bytes(&layer.stored(&quantized.numbers), dtype);
            let numbers = self.add(constant(numbers, dtype, &layer.shape, stored))?;
            self.node(&back, "Cast", AXIS, &[&numbers], &[("to", AttributeValue::Int(1))])
        } else {
            let [numbers, scale, zero] = self.numbers(layer, quantized, per_tensor)?;
            let blocks = quantized.groups_of_row() > 1;
            let axis = if blocks { 1 - layer.output_axis() } else { layer.output_axis() };
            let mut with = vec![("axis", AttributeValue::Int(i64::try_from(axis).ok()?))];
            if blocks {
                with.push(("block_size", AttributeValue::Int(i64::try_from(quantized.group).ok()?)));
            }
            let old = matches!(dtype(quantized.grid), DType::I8 | DType::U8);
            let opset = if blocks || !old { BLOCKS } else { AXIS };
            self.node(&back, "DequantizeLinear", opset, &[&numbers, &scale, &zero], &with)
        };
        self.made.insert(layer.weights.clone(), made.clone());
        Some(made)
    }

    /// Weights whose numbers are places in a table.
    fn looked_up(&mut self, layer: &Layer, quantized: &Quantized, back: &str) -> Option<String> {
        let name = &layer.weights;
        let groups = quantized.groups_of_row();
        let (table, scale) = (self.names.fresh("normal_float_4"), self.names.fresh(&format!("{name}_scale")));
        let numbers = self.names.fresh(&format!("{name}_quantized"));
        let stored = layer.stored(&quantized.numbers);
        let numbers = self.add(constant(numbers, DType::U4, &layer.shape, bytes(&stored, DType::U4)))?;
        let table = self.add(floats(table, &[16], quantized.grid.table()?))?;
        let scales: Vec<f32> = quantized.groups.iter().map(|g| g.scale).collect();
        let (group, axis) = (quantized.columns / groups, 1 - layer.output_axis());
        let (scales, shape, split) = if axis == 0 {
            (transposed(&scales, layer.rows, groups), vec![groups, 1, layer.rows], [groups, group, layer.rows])
        } else {
            (scales, vec![layer.rows, groups, 1], [layer.rows, groups, group])
        };
        let scale = self.add(floats(scale, &shape, &scales))?;
        let mut dims = |word: &str, dims: &[usize]| {
            let name = self.names.fresh(&format!("{name}_{word}"));
            let values: Vec<i64> = dims.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect();
            let tensor = Tensor::from_i64(&[dims.len()], &values).ok()?;
            self.initializers.push(Initializer { name: name.clone(), value: Value::Tensor(tensor) });
            Some(name)
        };
        let (split, whole) = (dims("blocks", &split)?, dims("shape", &layer.shape)?);
        let to = AttributeValue::Int(6);
        let places = self.node(&format!("{name}_places"), "Cast", BLOCKS, &[&numbers], &[("to", to)]);
        let values = self.node(&format!("{name}_units"), "Gather", AXIS, &[&table, &places], &[]);
        let values = self.node(&format!("{name}_in_blocks"), "Reshape", AXIS, &[&values, &split], &[]);
        let values = self.node(&format!("{name}_scaled"), "Mul", AXIS, &[&values, &scale], &[]);
        Some(self.node(back, "Reshape", AXIS, &[&values, &whole], &[]))
    }

    /// A layer with weights that were numbers, and where it has a range an input that was one.
    fn layer(&mut self, layer: &Layer, quantized: &Quantized, recipe: &Recipe, node: &mut Node) -> Option<()> {
        let activation = recipe.values.get(&layer.input);
        if let Some(&activation) = activation {
            *node.inputs.get_mut(0)? = Some(self.pair(&layer.input, activation)?);
        }
        *node.inputs.get_mut(1)? = Some(self.weights(layer, quantized, recipe.per_tensor)?);
        let corrected = recipe.biases.get(&layer.node);
        let bias = match (corrected, &layer.bias) {
            (Some(values), _) => Some(values.clone()),
            (None, Some(name)) => initializer(self.model, name).and_then(Tensor::to_f32),
            (None, None) => None,
        };
        let Some(bias) = bias else { return Some(()) };
        let made = match activation {
            // As integer kernels add it: i32 in units of the products.
            Some(activation) => self.integer_bias(layer, quantized, *activation, &bias)?,
            None if corrected.is_some() => {
                let name = self.names.fresh(&format!("{}_bias", layer.node));
                self.add(floats(name, &[layer.rows], &bias))?
            }
            None => return Some(()),
        };
        node.inputs.resize(3, None);
        *node.inputs.get_mut(2)? = Some(made);
        Some(())
    }

    fn integer_bias(
        &mut self,
        layer: &Layer,
        quantized: &Quantized,
        activation: Activation,
        bias: &[f32],
    ) -> Option<String> {
        let scales: Vec<f32> = quantized.groups.iter().map(|g| g.scale * activation.group.scale).collect();
        let number = |(b, s): (&f32, &f32)| (b / s).round_ties_even().clamp(i32::MIN as f32, i32::MAX as f32) as i32;
        let numbers: Vec<u8> = bias.iter().zip(&scales).map(number).flat_map(i32::to_le_bytes).collect();
        let name = |word: &str| format!("{}_bias_{word}", layer.node);
        let (quantized, scale) = (self.names.fresh(&name("quantized")), self.names.fresh(&name("scale")));
        let zero = self.names.fresh(&name("zero_point"));
        let numbers = self.add(constant(quantized, DType::I32, &[layer.rows], numbers))?;
        let scale = self.add(floats(scale, &[layer.rows], &scales))?;
        let zero = self.add(constant(zero, DType::I32, &[layer.rows], vec![0; 4 * layer.rows]))?;
        let axis = [("axis", AttributeValue::Int(0))];
        Some(self.node(&name("dequantized"), "DequantizeLinear", AXIS, &[&numbers, &scale, &zero], &axis))
    }

    /// A product whose input becomes numbers in each run: `DynamicQuantizeLinear`, `MatMulInteger`, and the scales.
    fn dynamic(&mut self, layer: &Layer, quantized: &Quantized, node: &Node) -> Option<()> {
        let name = &layer.weights;
        let [x, scale, zero] = ["quantized", "scale", "zero_point"].map(|w| format!("{}_dynamic_{w}", layer.input));
        let (x, scale, zero) = match self.made.get(&x) {
            Some(_) => (x, scale, zero),
            None => {
                let mut node = Node::new(
                    &self.names.fresh(&format!("{x}_node")),
                    "DynamicQuantizeLinear",
                    11,
                    &[&layer.input],
                    &x,
                );
                node.outputs.extend([Some(scale.clone()), Some(zero.clone())]);
                self.nodes.push(node);
                self.made.insert(x.clone(), x.clone());
                (x, scale, zero)
            }
        };
        let (numbers, weight_scale) = match (self.made.get(name), self.made.get(&format!("{name}\u{0}"))) {
            (Some(numbers), Some(scale)) => (numbers.clone(), scale.clone()),
            _ => {
                // By columns, whichever way the layer has them.
                let (stored, dtype) =
                    (transposed(&quantized.numbers, layer.rows, layer.columns), dtype(quantized.grid));
                let numbers = self.names.fresh(&format!("{name}_quantized"));
                let shape = [layer.columns, layer.rows];
                let numbers = self.add(constant(numbers, dtype, &shape, bytes(&stored, dtype)))?;
                let scales: Vec<f32> = quantized.groups.iter().map(|g| g.scale).collect();
                let scale = self.names.fresh(&format!("{name}_scale"));
                let scale = self.add(floats(scale, &[layer.rows], &scales))?;
                self.made.insert(name.clone(), numbers.clone());
                self.made.insert(format!("{name}\u{0}"), scale.clone());
                (numbers, scale)
            }
        };
        let at = |word: &str| format!("{}_{word}", layer.node);
        let sums = self.node(&at("sums"), "MatMulInteger", 10, &[&x, &numbers, &zero], &[]);
        let sums = self.node(&at("float_sums"), "Cast", AXIS, &[&sums], &[("to", AttributeValue::Int(1))]);
        let scale = self.node(&at("scale"), "Mul", AXIS, &[&scale, &weight_scale], &[]);
        let output = node.output(0)?;
        let bias = node.input(2);
        let last = |work: &mut Self, op: &str, inputs: &[&str]| {
            let name = work.names.fresh(&at(&format!("{op}_last")));
            work.nodes.push(Node::new(&name, op, AXIS, inputs, output));
        };
        match bias {
            Some(bias) => {
                let product = self.node(&at("product"), "Mul", AXIS, &[&sums, &scale], &[]);
                last(self, "Add", &[&product, bias]);
            }
            None => last(self, "Mul", &[&sums, &scale]),
        }
        Some(())
    }
}
