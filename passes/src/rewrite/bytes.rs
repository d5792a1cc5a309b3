//! Products of quantized tensors in integers: what a model dequantizes, multiplies and quantizes again becomes dot products of bytes
//! with exact sums in 32 bits.
//!
//! Invariant: an integer result is exactly that of the nodes it replaces. Where the model multiplies floats, the sum of products is
//! exact here and rounded once, so that a quantized result is at most one step away.
//!
//! A product wants unsigned bytes on the left and signed ones on the right. Activations of type i8 are moved up by 128 together with
//! their zero point; weights that are no signed bytes are moved by what makes them so, and the activations' sums bring that back. `sum((x - zx) * w) = sum(x * w) - zx * sum(w)` takes the zero point out of the sum; that of the weights is
//! taken off the weights, which are constant.

use super::byte_activations::{Building, pack_first, product_of_activations, sums_of_four};
use super::quantized::{Quantization, argument, is_scalar, quantization, quantized, raised_to, scalar};
use super::{Operand, Patch, elements, rewrite};
use kiln_ir::Id;
use kiln_ir::dtype::DType;
use kiln_ir::graph::{Graph, GraphError, NodeId, ValueId};
use kiln_ir::ops::{Contract, Conv, Elements, Map, Op, Pack, Pad, Pool, Reduce};
use kiln_ir::scalar::{BinaryOp, Code, Constant, Scalar, UnaryOp};
use kiln_ir::tensor::Tensor;

/// Applies all rules of this file until none applies.
///
/// # Errors
/// See [`rewrite`].
pub fn products_of_bytes(graph: &Graph) -> Result<Graph, GraphError> {
    rewrite(graph, &[convolution, product, product_of_activations, pack_first, requantize])
}

/// Whether the graph holds products of blocks of bytes.
pub fn has_block_products(graph: &Graph) -> bool {
    graph.nodes().any(|(_, node)| matches!(&node.op, Op::BlockProduct(product) if product.bytes > 0))
}

/// Constant weights as signed bytes without a zero point.
struct Weights {
    values: Vec<i8>,
    /// What each value is less than the weight: 0, where the weights are signed bytes once their zero point is taken off.
    offset: i64,
    shape: Vec<usize>,
    /// One number, or one for each index along an axis.
    scale: Option<Tensor>,
    node: Option<NodeId>,
}

impl Weights {
    /// The axis along which the scale changes; nothing for one number.
    fn scale_axis(&self) -> Option<Option<usize>> {
        let Some(scale) = self.scale.as_ref().filter(|s| s.len() > 1) else { return Some(None) };
        let lead = self.shape.len().checked_sub(scale.shape().len())?;
        let wide: Vec<usize> = (0..scale.shape().len()).filter(|&n| scale.shape()[n] > 1).collect();
        match wide.as_slice() {
            [one] if scale.shape()[*one] == self.shape[lead + one] => Some(Some(lead + one)),
            _ => None,
        }
    }
}

/// The row-major strides of a shape.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for n in (1..shape.len()).rev() {
        strides[n - 1] = strides[n] * shape[n];
    }
    strides
}

/// For each element of a shape the element of a tensor that broadcasts to it.
fn broadcast(tensor: &[usize], shape: &[usize]) -> Option<Vec<usize>> {
    let lead = shape.len().checked_sub(tensor.len())?;
    let own = strides(tensor);
    let step: Vec<usize> =
        (0..shape.len()).map(|n| if n < lead || tensor[n - lead] == 1 { 0 } else { own[n - lead] }).collect();
    let fits = (lead..shape.len()).all(|n| tensor[n - lead] == 1 || tensor[n - lead] == shape[n]);
    let count: usize = shape.iter().product();
    let all = strides(shape);
    fits.then(|| (0..count).map(|i| (0..shape.len()).map(|n| i / all[n] % shape[n] * step[n]).sum()).collect())
}

/// The weights as signed bytes and what is the same for all of them, the least that it may be.
fn signed(weights: &[i64]) -> Option<(Vec<i8>, i64)> {
    let (least, most) = (*weights.iter().min()?, *weights.iter().max()?);
    let offset = if least < -128 { least + 128 } else { (most - 127).max(0) };
    let values = weights.iter().map(|w| i8::try_from(w - offset)).collect::<Result<_, _>>().ok()?;
    Some((values, offset))
}

/// The operand as weights, where its values less their zero points are 256 neighbouring integers.
fn weights(graph: &Graph, v: ValueId) -> Option<Weights> {
    if let Some(t) = graph.constant(v) {
        let fits = t.dtype() == DType::I32;
        let (values, offset) = signed(&fits.then(|| t.to_i64()).flatten()?)?;
        return Some(Weights { values, offset, shape: t.shape().to_vec(), scale: None, node: None });
    }
    let q = quantized(graph, v)?;
    let t = graph.constant(q.x)?;
    let mut values = t.to_i64()?;
    if let Some(z) = q.zero {
        let z = graph.constant(z)?;
        let (zeros, at) = (z.to_i64()?, broadcast(z.shape(), t.shape())?);
        for (v, at) in values.iter_mut().zip(at) {
            *v -= zeros.get(at)?;
        }
    }
    let (values, offset) = signed(&values)?;
    let scale = match q.scale {
        Some(s) => Some(graph.constant(s)?.clone()),
        None => None,
    };
    Some(Weights { values, offset, shape: t.shape().to_vec(), scale, node: Some(q.node) })
}

impl Weights {
    /// Four neighbours along an axis in each i32; zeros past the end.
    fn packed(&self, axis: usize) -> Option<Tensor> {
        let mut shape = self.shape.clone();
        let extent = shape[axis];
        shape[axis] = extent.div_ceil(4);
        let (from, to) = (strides(&self.shape), strides(&shape));
        let count: usize = shape.iter().product();
        let mut bytes = Vec::with_capacity(4 * count);
        for i in 0..count {
            let first: usize =
                (0..shape.len()).map(|n| i / to[n] % shape[n] * from[n] * if n == axis { 4 } else { 1 }).sum();
            let at = i / to[axis] % shape[axis] * 4;
            for byte in 0..4 {
                let value = if at + byte < extent { self.values[first + byte * from[axis]] } else { 0 };
                bytes.push(value as u8);
            }
        }
        Tensor::new(DType::I32, shape, bytes).ok()
    }

    /// Each value in the low byte of an i32.
    fn widened(&self) -> Option<Tensor> {
        let bytes: Vec<u8> = self.values.iter().flat_map(|&v| i32::from(v).to_le_bytes()).collect();
        Tensor::new(DType::I32, self.shape.clone(), bytes).ok()
    }

    /// Each weight as the sum of the two low bytes of an i32, where it is one.
    fn halved(&self) -> Option<Tensor> {
        let mut bytes = Vec::with_capacity(4 * self.values.len());
        for &v in &self.values {
            let weight = i64::from(v) + self.offset;
            let half = weight.div_euclid(2);
            bytes.extend([i8::try_from(half).ok()? as u8, i8::try_from(weight - half).ok()? as u8, 0, 0]);
        }
        Tensor::new(DType::I32, self.shape.clone(), bytes).ok()
    }

    /// The sums of the weights over all axes but some, in the order given.
    fn sums(&self, kept: &[usize]) -> Vec<i64> {
        let shape: Vec<usize> = kept.iter().map(|&n| self.shape[n]).collect();
        let (own, to) = (strides(&self.shape), strides(&shape));
        let mut sums = vec![0; shape.iter().product()];
        for (i, &v) in self.values.iter().enumerate() {
            let at: usize = kept.iter().zip(&to).map(|(&n, to)| i / own[n] % self.shape[n] * to).sum();
            sums[at] += i64::from(v) + self.offset;
        }
        sums
    }
}

/// A tensor of i32, if all values are ones.
pub(super) fn ints(shape: &[usize], values: &[i64]) -> Option<Tensor> {
    let mut bytes = Vec::with_capacity(4 * values.len());
    for &v in values {
        bytes.extend(i32::try_from(v).ok()?.to_le_bytes());
    }
    Tensor::new(DType::I32, shape.to_vec(), bytes).ok()
}

/// Activations on the way into a product: unsigned, with the border that the model puts around them.
struct Activations {
    nodes: Vec<(Op, Vec<Operand>)>,
    x: Operand,
    /// The zero point of the unsigned numbers, where it is constant.
    zero: i64,
    /// A zero point that is not, with what is to be added to it.
    runtime_zero: Option<(ValueId, i64)>,
    scale: Option<ValueId>,
    /// Sums of the activations that each result takes, and what they are to be multiplied with.
    offset: Option<(Operand, i64)>,
    also: Vec<NodeId>,
}

fn activations(graph: &Graph, v: ValueId) -> Option<Activations> {
    let mut also = Vec::new();
    let producer = graph.producer(v)?;
    let (source, border) = match &graph.node(producer).op {
        Op::Pad(p) if p.value.as_f64() == 0.0 => {
            also.push(producer);
            (graph.node(producer).inputs[0], Some(p.clone()))
        }
        _ => (v, None),
    };
    let q = quantized(graph, source)?;
    also.push(q.node);
    if graph.constant(q.x).is_some() || !q.scale.is_none_or(|s| is_scalar(graph, s)) {
        return None;
    }
    let (mut zero, mut runtime_zero) = (0, None);
    if let Some(z) = q.zero {
        match scalar(graph, z) {
            Some(c) => zero = c.as_i64()?,
            None if is_scalar(graph, z) && border.is_none() => runtime_zero = Some((z, 0)),
            None => return None,
        }
    }
    let (mut nodes, mut x) = (Vec::new(), Operand::Value(q.x));
    if graph.ty(q.x).dtype == DType::I8 {
        zero += 128;
        runtime_zero = runtime_zero.map(|(z, _)| (z, 128));
        let mut body = Code::new();
        let a = body.arg(0, DType::I8);
        let wide = body.cast(DType::I32, a).ok()?;
        let by = body.constant(Constant::int(DType::I32, 128));
        let moved = body.binary(BinaryOp::Add, wide, by).ok()?;
        let result = body.cast(DType::U8, moved).ok()?;
        body.set_result(result);
        nodes.push((Map { body }.into(), vec![x]));
        x = Operand::New(nodes.len() - 1);
    }
    if let Some(border) = border {
        let value = Constant::int(DType::U8, zero);
        // A zero point that is no unsigned byte is none.
        (value.as_i64() == Some(zero)).then_some(())?;
        nodes.push((Pad { value, ..border }.into(), vec![x]));
        x = Operand::New(nodes.len() - 1);
    }
    Some(Activations { nodes, x, zero, runtime_zero, scale: q.scale, offset: None, also })
}

/// Finishes a patch: the sum of products less the zero point's share, scaled where the model's product is one of floats. `sums` are
/// those of the weights; they and the scales of the weights broadcast to the result in their shapes.
fn finish(
    graph: &Graph,
    replaces: ValueId,
    a: Activations,
    product: (Op, Vec<Operand>),
    (sums, shape): (Vec<i64>, &[usize]),
    scale: Option<(Vec<f32>, Vec<usize>)>,
    weights: Option<NodeId>,
) -> Option<Patch> {
    let Activations { mut nodes, zero, runtime_zero, scale: by, mut also, offset, .. } = a;
    nodes.push(product);
    let mut operands = vec![Operand::New(nodes.len() - 1)];
    if let Some((taken, offset)) = offset {
        // A map of its own: what quantizes the result looks for a scaled sum.
        let mut body = Code::new();
        let (sum, taken_sum) = (body.arg(0, DType::I32), body.arg(1, DType::I32));
        let offset = body.constant(Constant::int(DType::I32, offset));
        let share = body.binary(BinaryOp::Mul, taken_sum, offset).ok()?;
        let sum = body.binary(BinaryOp::Add, sum, share).ok()?;
        body.set_result(sum);
        operands.push(taken);
        nodes.push((Map { body }.into(), operands));
        operands = vec![Operand::New(nodes.len() - 1)];
    }
    let mut body = Code::new();
    let mut value = body.arg(0, DType::I32);
    let all_zero = sums.iter().all(|&s| s == 0);
    let mut changed = false;
    if let (Some((z, add)), false) = (runtime_zero, all_zero) {
        let n = operands.len();
        operands.extend([Operand::Value(z), Operand::Constant(ints(shape, &sums)?)]);
        let z = body.arg(n, graph.ty(z).dtype);
        let mut z = body.cast(DType::I32, z).ok()?;
        if add != 0 {
            let add = body.constant(Constant::int(DType::I32, add));
            z = body.binary(BinaryOp::Add, z, add).ok()?;
        }
        let sums = body.arg(n + 1, DType::I32);
        let share = body.binary(BinaryOp::Mul, z, sums).ok()?;
        value = body.binary(BinaryOp::Sub, value, share).ok()?;
        changed = true;
    } else if zero != 0 && !all_zero {
        let shares: Vec<i64> = sums.iter().map(|s| s * zero).collect();
        let share = body.arg(operands.len(), DType::I32);
        operands.push(Operand::Constant(ints(shape, &shares)?));
        value = body.binary(BinaryOp::Sub, value, share).ok()?;
        changed = true;
    }
    if let (Some(by), Some((scale, shape))) = (by, scale) {
        value = body.cast(DType::F32, value).ok()?;
        match scalar(graph, by) {
            // One multiplication with the product of the scales.
            Some(by) => {
                let scale: Vec<f32> = scale.iter().map(|s| s * by.as_f64() as f32).collect();
                let factor = body.arg(operands.len(), DType::F32);
                operands.push(Operand::Constant(Tensor::from_f32(&shape, &scale).ok()?));
                value = body.binary(BinaryOp::Mul, value, factor).ok()?;
            }
            None => {
                let (left, right) = (body.arg(operands.len(), DType::F32), body.arg(operands.len() + 1, DType::F32));
                operands.extend([Operand::Value(by), Operand::Constant(Tensor::from_f32(&shape, &scale).ok()?)]);
                let factor = body.binary(BinaryOp::Mul, left, right).ok()?;
                value = body.binary(BinaryOp::Mul, value, factor).ok()?;
            }
        }
        changed = true;
    }
    if changed {
        body.set_result(value);
        nodes.push((Map { body }.into(), operands));
    }
    also.extend(weights);
    Some(Patch { nodes, replaces, with: None, also })
}

/// Whether both factors are integers, or both floats.
fn agree(activations: &Activations, weights: &Weights) -> bool {
    activations.scale.is_some() == weights.scale.is_some()
}

/// The sums of the packed activations in each window of a convolution.
fn windows(nodes: &mut Vec<(Op, Vec<Operand>)>, x: Operand, conv: &Conv, weights: &[usize]) -> Option<Operand> {
    let fours = sums_of_four(nodes, x, true)?;
    nodes.push((Reduce { combine: BinaryOp::Add, axes: vec![1], keep: true }.into(), vec![fours]));
    let window = weights.get(2..)?.to_vec();
    if window.iter().chain(&conv.strides).any(|&n| n != 1) {
        let (strides, dilations) = (conv.strides.clone(), conv.dilations.clone());
        let sum = Pool { combine: BinaryOp::Add, window, strides, dilations };
        nodes.push((sum.into(), vec![Operand::New(nodes.len() - 1)]));
    }
    Some(Operand::New(nodes.len() - 1))
}

/// A convolution.
fn convolution(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Conv(conv) = &node.op else { return None };
    if conv.elements != Elements::Numbers {
        return None;
    }
    let w = weights(graph, node.inputs[1])?;
    let mut a = activations(graph, node.inputs[0])?;
    let (kernels, channels) = (*w.shape.first()?, *w.shape.get(1)?);
    let along = w.scale_axis()?;
    if !agree(&a, &w) || along.is_some_and(|axis| axis != 0) {
        return None;
    }
    let packed = if conv.groups == 1 || channels % 4 == 0 {
        a.nodes.push((Pack { axis: 1 }.into(), vec![a.x.clone()]));
        a.x = Operand::New(a.nodes.len() - 1);
        if w.offset != 0 {
            if conv.groups != 1 {
                return None;
            }
            let sums = windows(&mut a.nodes, a.x.clone(), conv, &w.shape)?;
            a.offset = Some((sums, w.offset));
        }
        w.packed(1)?
    } else if channels == 1 && w.offset == 0 {
        w.widened()?
    } else if channels == 1 {
        // Each activation meets both halves of its weight.
        let mut body = Code::new();
        let x = body.arg(0, DType::U8);
        let x = body.cast(DType::U16, x).ok()?;
        let twice = body.constant(Constant::int(DType::U16, 0x0101));
        let x = body.binary(BinaryOp::Mul, x, twice).ok()?;
        body.set_result(x);
        a.nodes.push((Map { body }.into(), vec![a.x]));
        a.x = Operand::New(a.nodes.len() - 1);
        w.halved()?
    } else {
        return None;
    };
    let op = Conv { elements: Elements::Bytes, ..conv.clone() };
    let operands = vec![a.x.clone(), Operand::Constant(packed)];
    let mut shape = vec![1; w.shape.len() - 1];
    let scalar_shape = shape.clone();
    shape[0] = kernels;
    let scale = match (&w.scale, along) {
        (Some(s), Some(_)) => Some((s.to_f32()?, shape.clone())),
        (Some(s), None) => Some((s.to_f32()?, scalar_shape)),
        (None, _) => None,
    };
    finish(graph, node.outputs[0], a, (op.into(), operands), (w.sums(&[0]), &shape), scale, w.node)
}

/// Which axes of the operands a product of numbers sums over, where it is one axis of each.
pub(super) fn summed_axes(contract: &Contract) -> Option<[usize; 2]> {
    let summed = contract.summed();
    let mut letters = summed.chars();
    let (Some(letter), None) = (letters.next(), letters.next()) else { return None };
    let axes = [contract.lhs.find(letter)?, contract.rhs.find(letter)?];
    (contract.elements == Elements::Numbers).then_some(axes)
}

/// A matrix product with a constant on the right.
fn product(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Contract(contract) = &node.op else { return None };
    let [left, right] = summed_axes(contract)?;
    let w = weights(graph, node.inputs[1])?;
    let mut a = activations(graph, node.inputs[0])?;
    let along = w.scale_axis()?;
    if !agree(&a, &w) || along == Some(right) {
        return None;
    }
    a.nodes.push((Pack { axis: left }.into(), vec![a.x.clone()]));
    a.x = Operand::New(a.nodes.len() - 1);
    if w.offset != 0 {
        let mut building = Building { graph, nodes: std::mem::take(&mut a.nodes) };
        let sums = building.sums(a.x.clone(), true, (&contract.lhs, left), node.inputs[0], &contract.out)?;
        a.nodes = building.nodes;
        a.offset = Some((sums, w.offset));
    }
    let op = Contract { elements: Elements::Bytes, ..contract.clone() };
    let operands = vec![a.x.clone(), Operand::Constant(w.packed(right)?)];
    // In the order of the result's axes.
    let axes: Vec<Option<usize>> = contract.out.chars().map(|c| contract.rhs.find(c)).collect();
    let kept: Vec<usize> = axes.iter().copied().flatten().collect();
    let extents = |of: &dyn Fn(usize) -> bool| -> Vec<usize> {
        axes.iter().map(|a| a.filter(|&a| of(a)).map_or(1, |a| w.shape[a])).collect()
    };
    let shape = extents(&|_| true);
    let scale = match &w.scale {
        Some(s) => Some((s.to_f32()?, extents(&|axis| along == Some(axis)))),
        None => None,
    };
    finish(graph, node.outputs[0], a, (op.into(), operands), (w.sums(&kept), &shape), scale, w.node)
}

/// Constants that broadcast to a result: as many numbers as one of its axes has, or one.
struct Factors {
    values: Vec<f64>,
    shape: Vec<usize>,
}

impl Factors {
    fn one(value: f64) -> Factors {
        Factors { values: vec![value], shape: vec![] }
    }

    fn of(graph: &Graph, v: ValueId) -> Option<Factors> {
        let t = graph.constant(v)?;
        let values = t.to_f64()?;
        let lead = t.shape().iter().take_while(|&&d| d == 1).count();
        (t.shape().iter().filter(|&&d| d > 1).count() <= 1)
            .then(|| Factors { values, shape: t.shape()[lead..].to_vec() })
    }

    /// Both, number by number.
    fn with(&self, other: &Factors, f: impl Fn(f64, f64) -> f64) -> Option<Factors> {
        let shape = match (self.values.len(), other.values.len()) {
            (1, _) => &other.shape,
            (_, 1) => &self.shape,
            _ if self.shape == other.shape => &self.shape,
            _ => return None,
        };
        let at = |v: &[f64], n: usize| v[if v.len() == 1 { 0 } else { n }];
        let count = self.values.len().max(other.values.len());
        let values = (0..count).map(|n| f(at(&self.values, n), at(&other.values, n))).collect();
        Some(Factors { values, shape: shape.clone() })
    }
}

/// The quantization of a scaled sum of products, of that plus a bias, clipped or not: one multiplication of the exact sum.
fn requantize(graph: &Graph, id: NodeId) -> Option<Patch> {
    let replaces = *graph.node(id).outputs.first()?;
    let Quantization { mut y, scale: step, zero, to } = quantization(graph, id)?;
    let (low, high) = to.int_range()?;
    // In steps of the result, before the zero point is added.
    let (mut low, mut high) = (low as f64 - zero as f64, high as f64 - zero as f64);
    let mut bias = Factors::one(0.0);
    let mut also = Vec::new();
    loop {
        let producer = graph.producer(y)?;
        let node = graph.node(producer);
        let Op::Map(Map { body }) = &node.op else { return None };
        if graph.users(y).len() != 1 || graph.is_output(y) {
            return None;
        }
        also.push(producer);
        let Scalar::Binary(op, a, b) = body.node(body.result()) else { return None };
        let number = |id: Id<Scalar>| match body.node(id) {
            Scalar::Const(c) => Some(Factors::one(c.as_f64())),
            Scalar::Arg(n) => Factors::of(graph, *node.inputs.get(*n)?),
            _ => None,
        };
        let value = |id: Id<Scalar>| node.inputs.get(argument(body, id)?).copied();
        if *op == BinaryOp::Mul {
            // The end of the chain: `to_f32(sum - share) * factor`.
            let Scalar::Cast(DType::F32, sum) = body.node(*a) else { return None };
            let (sum, share) = match body.node(*sum) {
                Scalar::Arg(_) => (value(*sum)?, Factors::one(0.0)),
                Scalar::Binary(BinaryOp::Sub, sum, share) => (value(*sum)?, number(*share)?),
                _ => return None,
            };
            let made = graph.node(graph.producer(sum)?);
            let exact = elements(&made.op) == Some(Elements::Bytes) || matches!(made.op, Op::Map(_));
            if !exact || graph.ty(sum).dtype != DType::I32 || graph.ty(sum).dims != graph.ty(replaces).dims {
                return None;
            }
            return scaled_sum(replaces, sum, &share, &number(*b)?, &bias, (step, zero, to), (low, high), also);
        }
        let (next, other) = match (number(*b), number(*a)) {
            (Some(n), _) => (value(*a)?, n),
            (None, Some(n)) => (value(*b)?, n),
            (None, None) => return None,
        };
        match op {
            BinaryOp::Add => bias = bias.with(&other, |a, b| a + b)?,
            // What clips before a bias is added is left as it is.
            BinaryOp::Max if other.values.len() == 1 && bias.values.iter().all(|b| *b == 0.0) => {
                low = low.max(other.values[0] / step).min(high);
            }
            BinaryOp::Min if other.values.len() == 1 && bias.values.iter().all(|b| *b == 0.0) => {
                high = high.min(other.values[0] / step).max(low);
            }
            _ => return None,
        }
        if graph.ty(next).dims != graph.ty(replaces).dims {
            return None;
        }
        y = next;
    }
}

/// `zero + round(clip((sum - share) * factor + bias))` as one map. A bias that is a whole number of the product's steps, as tools
/// that quantize make them, goes into the sum.
#[allow(clippy::too_many_arguments)] // What the chain of nodes was found to hold.
fn scaled_sum(
    replaces: ValueId,
    sum: ValueId,
    share: &Factors,
    factor: &Factors,
    bias: &Factors,
    (step, zero, to): (f64, i64, DType),
    (low, high): (f64, f64),
    also: Vec<NodeId>,
) -> Option<Patch> {
    let whole = bias.with(factor, |b, f| if b == 0.0 { 0.0 } else { (b / f).round() })?;
    let rest = bias.with(&whole.with(factor, |n, f| n * f)?, |b, n| b - n)?;
    let fits = whole.values.iter().all(|n| n.abs() < f64::from(1 << 30))
        && rest.values.iter().all(|r| (r / step).abs() < 1e-3);
    let (add, bias) = match fits {
        true => (whole.with(share, |n, s| n - s)?, None),
        false => (share.with(&Factors::one(0.0), |s, _| -s)?, Some(bias.with(&Factors::one(step), |b, s| b / s)?)),
    };
    let factor = factor.with(&Factors::one(step), |f, s| f / s)?;
    let finite = |f: &Factors| f.values.iter().all(|v| v.is_finite() && (*v as f32).is_finite());
    if !finite(&factor) || !bias.as_ref().is_none_or(finite) {
        return None;
    }
    let mut body = Code::new();
    let mut operands = vec![Operand::Value(sum)];
    let mut value = body.arg(0, DType::I32);
    let floats = |f: &Factors| {
        let values: Vec<f32> = f.values.iter().map(|&v| v as f32).collect();
        Tensor::from_f32(&f.shape, &values).ok()
    };
    if add.values.iter().any(|n| *n != 0.0) {
        let values: Vec<i64> = add.values.iter().map(|&n| n as i64).collect();
        let n = body.arg(operands.len(), DType::I32);
        operands.push(Operand::Constant(ints(&add.shape, &values)?));
        value = body.binary(BinaryOp::Add, value, n).ok()?;
    }
    value = body.cast(DType::F32, value).ok()?;
    let f = body.arg(operands.len(), DType::F32);
    operands.push(Operand::Constant(floats(&factor)?));
    value = body.binary(BinaryOp::Mul, value, f).ok()?;
    if let Some(bias) = bias {
        let b = body.arg(operands.len(), DType::F32);
        operands.push(Operand::Constant(floats(&bias)?));
        value = body.binary(BinaryOp::Add, value, b).ok()?;
    }
    // An integer times what is finite, and a finite bias, is no NaN.
    let (low, high) = (body.float(DType::F32, low), body.float(DType::F32, high));
    value = raised_to(&mut body, value, low).ok()?;
    value = body.binary(BinaryOp::Min, value, high).ok()?;
    value = body.unary(UnaryOp::Round, value).ok()?;
    value = body.cast(DType::I32, value).ok()?;
    if zero != 0 {
        let zero = body.constant(Constant::int(DType::I32, zero));
        value = body.binary(BinaryOp::Add, value, zero).ok()?;
    }
    value = body.cast(to, value).ok()?;
    body.set_result(value);
    Some(Patch { nodes: vec![(Map { body }.into(), operands)], replaces, with: None, also })
}
