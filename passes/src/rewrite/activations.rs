//! Activations in bytes, where the user asks for it: products with weights of few bits become integer products of blocks.
//!
//! Invariant: numbers, scales and least values of the weights stay what the model says; the rows that they are multiplied with are
//! rounded to -127..127 times a scale for each block, `max |x| / 127`. A product whose weight has no blocks that a
//! [`BlockProduct`] takes is left as it is.

use super::blocks::whole_rows;
use super::canonicalise::transpose_operand;
use super::{Operand, Patch, apply, rewrite};
use kiln_ir::Id;
use kiln_ir::dtype::DType;
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, GraphError, NodeId, Origin, ValueId};
use kiln_ir::interp::eval_op;
use kiln_ir::ops::{BlockProduct, Elements, Gather, MOST_BLOCK, Map, Op, Pack, Pad, Reduce, Reshape};
use kiln_ir::scalar::{BinaryOp, Code, Constant, Scalar, TypeError, UnaryOp};
use kiln_ir::tensor::Tensor;

/// Rounds what is multiplied with weights of few bits to bytes, in the products that `wanted` says.
///
/// # Errors
/// See [`rewrite`].
pub fn activations_in_bytes(graph: &Graph, wanted: &dyn Fn(&Origin) -> bool) -> Result<Graph, GraphError> {
    let mut graph = rewrite(graph, &[transpose_operand, whole_rows])?;
    for id in graph.live_order()? {
        if let Some(patch) = Some(id).filter(|&id| wanted(&graph.node(id).origin)).and_then(|id| product(&graph, id)) {
            apply(&mut graph, id, patch)?;
        }
    }
    // What else reads a weight reads it in the form that the products have it in: it is stored once.
    let graph = rewrite(&graph, &[shared_table])?;
    // Products of the same rows are known by reading the same roundings.
    super::joined::join_products(&super::eliminate_common(&graph)?)
}

/// A matrix of few bits, `[columns, blocks, block]`: `scale * number + least`.
struct Weight {
    columns: usize,
    blocks: usize,
    block: usize,
    /// Without a sign, in rows.
    numbers: Vec<u8>,
    scales: Vec<f32>,
    least: Vec<f32>,
    nodes: Vec<NodeId>,
}

/// How many nodes of constants are looked through.
const MOST_NODES: usize = 8;

/// A value that constants alone decide.
fn known(graph: &Graph, v: ValueId, depth: usize, nodes: &mut Vec<NodeId>) -> Option<Tensor> {
    if let Some(tensor) = graph.constant(v) {
        return Some(tensor.clone());
    }
    let id = graph.producer(v).filter(|_| depth < MOST_NODES)?;
    let node = graph.node(id);
    if matches!(node.op, Op::Host(_)) || node.outputs.len() != 1 {
        return None;
    }
    let operands: Option<Vec<Tensor>> = node.inputs.iter().map(|&v| known(graph, v, depth + 1, nodes)).collect();
    nodes.push(id);
    eval_op(&node.op, &operands?).ok()?.pop()
}

/// `a * number + b` for a node of a map's body, where the `n`-th operand is the number.
fn linear(body: &Code, id: Id<Scalar>, n: usize, parameters: &[f64]) -> Option<(f64, f64)> {
    let operand = |id| linear(body, id, n, parameters);
    Some(match body.node(id) {
        Scalar::Arg(m) if *m == n => (1.0, 0.0),
        Scalar::Arg(m) => (0.0, *parameters.get(*m)?),
        Scalar::Const(c) => (0.0, c.as_f64()),
        Scalar::Cast(DType::F32 | DType::F64 | DType::I32 | DType::I64, a) => operand(*a)?,
        Scalar::Binary(op, a, b) => {
            let ((a, b), (c, d)) = (operand(*a)?, operand(*b)?);
            match op {
                BinaryOp::Add => (a + c, b + d),
                BinaryOp::Sub => (a - c, b - d),
                BinaryOp::Mul if a == 0.0 || c == 0.0 => (a * d + b * c, b * d),
                _ => return None,
            }
        }
        Scalar::Load(..)
        | Scalar::Index(_)
        | Scalar::Unary(..)
        | Scalar::Fma(..)
        | Scalar::Select(..)
        | Scalar::Cast(..)
        | Scalar::Guard(..) => return None,
    })
}

/// Elements with the same scale, one after the other, with that scale and the least value.
struct Runs {
    run: usize,
    pairs: Vec<(f32, f32)>,
}

impl Runs {
    /// The scales of a map's elements, whose operands are all known.
    fn of(body: &Code, number: usize, operands: &[Tensor], dims: &[usize]) -> Option<Runs> {
        let extent = |t: &Tensor, axis: usize| {
            let lead = dims.len().checked_sub(t.shape().len())?;
            Some(if axis < lead { 1 } else { *t.shape().get(axis - lead)? })
        };
        // Along the last axes nothing but the number changes.
        let mut inner = dims.len();
        let others = || operands.iter().enumerate().filter(|(n, _)| *n != number).map(|(_, t)| t);
        while inner > 0 && others().all(|t| extent(t, inner - 1) == Some(1)) {
            inner -= 1;
        }
        let (outer, run) = (dims[..inner].iter().product::<usize>(), dims[inner..].iter().product());
        let mut steps = Vec::new();
        for (n, t) in operands.iter().enumerate() {
            let (mut step, mut own) = (vec![0; inner], 1);
            for axis in (0..inner).rev() {
                let extent = extent(t, axis)?;
                step[axis] = if extent == 1 { 0 } else { own };
                own *= extent;
            }
            steps.push(if n == number { (step, vec![]) } else { (step, t.to_f64()?) });
        }
        let mut pairs = Vec::with_capacity(outer);
        let mut parameters = vec![0.0; operands.len()];
        for i in 0..outer {
            let mut rest = i;
            let mut at = vec![0; operands.len()];
            for axis in (0..inner).rev() {
                let index = rest % dims[axis];
                rest /= dims[axis];
                at.iter_mut().zip(&steps).for_each(|(at, (step, _))| *at += index * step[axis]);
            }
            for (n, (_, values)) in steps.iter().enumerate() {
                if n != number {
                    parameters[n] = *values.get(at[n])?;
                }
            }
            let (scale, least) = linear(body, body.result(), number, &parameters)?;
            pairs.push((scale as f32, least as f32));
        }
        Some(Runs { run, pairs })
    }

    /// With as many elements a run as a block should have; nothing where a row does not consist of such blocks. A row with one scale that no
    /// block divides is filled up.
    fn in_blocks(mut self, row: usize) -> Option<Blocks> {
        if self.run == 0 || self.pairs.is_empty() {
            return None;
        }
        while self.run < LEAST_BLOCK {
            let pairs = self.pairs.chunks(2);
            if !pairs.clone().all(|p| matches!(p, [a, b] if a == b)) {
                return None;
            }
            self.pairs = pairs.map(|p| p[0]).collect();
            self.run *= 2;
        }
        let fits = |block: &usize| row.is_multiple_of(*block) && self.run.is_multiple_of(*block);
        let found = (LEAST_BLOCK..=LONGEST_BLOCK).rev().filter(|b| b.is_multiple_of(8)).find(fits);
        let Some(block) = found else {
            let block = (row >= LEAST_BLOCK && self.run.is_multiple_of(row)).then_some(2 * LEAST_BLOCK)?;
            let (rows, blocks) = (self.run / row, row.div_ceil(block));
            let pairs = self.pairs.iter().flat_map(|&p| std::iter::repeat_n(p, rows * blocks)).collect();
            return Some(Blocks { block, blocks, pairs });
        };
        let times = self.run / block;
        let pairs = self.pairs.iter().flat_map(|&p| std::iter::repeat_n(p, times)).collect();
        Some(Blocks { block, blocks: row / block, pairs })
    }
}

/// Rows in blocks, each with a scale and a least value.
struct Blocks {
    block: usize,
    blocks: usize,
    pairs: Vec<(f32, f32)>,
}

/// Elements of a block: fewer cost more for their scale than for their products, with more one large activation spoils more.
const LEAST_BLOCK: usize = 16;
const LONGEST_BLOCK: usize = if MOST_BLOCK < 128 { MOST_BLOCK } else { 128 };

/// A tensor whose last axis is put before the others.
fn turned(tensor: &Tensor) -> Option<Tensor> {
    let (rows, columns) = match *tensor.shape() {
        [] => (1, 1),
        [columns] => (1, columns),
        [rows, columns] => (rows, columns),
        _ => return None,
    };
    let size = tensor.dtype().size();
    let at = |n: usize| (n % rows * columns + n / rows) * size;
    let element = |n: usize| tensor.bytes().get(at(n)..at(n) + size);
    let mut bytes = Vec::with_capacity(tensor.bytes().len());
    for n in 0..rows * columns {
        bytes.extend_from_slice(element(n)?);
    }
    Tensor::new(tensor.dtype(), vec![columns, rows], bytes).ok()
}

/// The weight that a value is, as a matrix with so many columns, whose rows of one are the columns of the other where it is turned.
fn weight(graph: &Graph, v: ValueId, columns: usize, is_turned: bool) -> Option<Weight> {
    let mut nodes = Vec::new();
    let mut at = v;
    let (id, body, inputs) = loop {
        let id = graph.producer(at).filter(|_| nodes.len() < MOST_NODES)?;
        let node = graph.node(id);
        nodes.push(id);
        match &node.op {
            Op::Reshape(_) if !is_turned => at = *node.inputs.first()?,
            Op::Map(Map { body }) => break (id, body, &node.inputs),
            _ => return None,
        }
    };
    let mut dims = graph.ty(graph.node(id).outputs[0]).shape()?;
    let count: usize = dims.iter().product();
    let number = inputs.iter().position(|&v| {
        let ty = graph.ty(v);
        ty.dtype.is_int() && ty.elements().as_size() == Some(count)
    })?;
    if body.result_type() != DType::F32 || columns == 0 || !count.is_multiple_of(columns) {
        return None;
    }
    let mut operands: Vec<Tensor> = inputs.iter().map(|&v| known(graph, v, 0, &mut nodes)).collect::<Option<_>>()?;
    if is_turned {
        operands = operands.iter().map(turned).collect::<Option<_>>()?;
        dims.reverse();
    }
    let row = count / columns;
    let Blocks { block, blocks, pairs } = Runs::of(body, number, &operands, &dims)?.in_blocks(row)?;
    let values = operands.get(number)?.to_i64()?;
    let (low, high) = (*values.iter().min()?, *values.iter().max()?);
    let zero = match (low, high) {
        (0.., ..=255) => 0,
        (-8.., ..=7) => 8,
        (-128.., ..=127) => 128,
        _ => return None,
    };
    let numbers: Option<Vec<u8>> = values.into_iter().map(|v| u8::try_from(v + zero).ok()).collect();
    let mut numbers = numbers?;
    if blocks * block > row {
        // Filled up with anything, as the rows of the activations are with zeros.
        let filled = |part: &[u8]| [part, &vec![zero as u8; blocks * block - row]].concat();
        numbers = numbers.chunks(row).flat_map(filled).collect();
    }
    let least = pairs.iter().map(|(scale, least)| (f64::from(*least) - f64::from(*scale) * zero as f64) as f32);
    Some(Weight {
        columns,
        blocks,
        block,
        numbers,
        scales: pairs.iter().map(|p| p.0).collect(),
        least: least.collect(),
        nodes,
    })
}

impl Weight {
    /// Whether all numbers fit 4 bits.
    fn is_small(&self) -> bool {
        self.numbers.iter().all(|&n| n < 16)
    }

    /// The numbers as a block product takes them: two a byte where they are small.
    fn words(&self) -> Option<Tensor> {
        let bytes = match self.is_small() {
            true => {
                let blocks = self.numbers.chunks(self.block).map(|b| b.split_at(self.block / 2));
                blocks.flat_map(|(low, high)| low.iter().zip(high).map(|(l, h)| l | h << 4)).collect()
            }
            false => self.numbers.clone(),
        };
        let words = bytes.len() / 4 / self.columns.max(1) / self.blocks.max(1);
        Tensor::new(DType::I32, vec![self.columns, self.blocks, words], bytes).ok()
    }

    /// The number that stands for 0 in all blocks, where there is one.
    fn zero(&self) -> Option<u8> {
        let pairs = || self.scales.iter().zip(&self.least).map(|(s, l)| (f64::from(*s), f64::from(*l)));
        let zero = pairs().find(|(scale, _)| *scale != 0.0).map_or(0.0, |(scale, least)| -least / scale);
        let holds = pairs().all(|(scale, least)| least == -zero * scale);
        (holds && zero.trunc() == zero && (0.0..=255.0).contains(&zero)).then_some(zero as u8)
    }

    /// Scales, and least values where they are not those of one zero, in f16 where nothing is lost by it.
    fn floats(&self, zero: Option<u8>) -> Option<Vec<Tensor>> {
        let stored = |value: &f32| {
            let mut bytes = Vec::new();
            Constant::float(DType::F16, f64::from(*value)).store(&mut bytes);
            bytes
        };
        let exact = |value: &f32| {
            Constant::load(DType::F16, &stored(value), 0).is_some_and(|c| c.as_f64() == f64::from(*value))
        };
        let least = if zero.is_some() { &[] } else { self.least.as_slice() };
        let halves = self.scales.iter().chain(least).all(exact);
        let shape = [self.columns, self.blocks];
        let tensor = |values: &[f32]| match halves {
            true => Tensor::new(DType::F16, shape.to_vec(), values.iter().flat_map(stored).collect::<Vec<u8>>()).ok(),
            false => Tensor::from_f32(&shape, values).ok(),
        };
        let kept = [self.scales.as_slice(), least];
        kept.into_iter().filter(|values| !values.is_empty()).map(tensor).collect()
    }
}

/// Nodes of a patch.
#[derive(Default)]
struct Nodes(Vec<(Op, Vec<Operand>)>);

impl Nodes {
    fn add(&mut self, op: impl Into<Op>, operands: Vec<Operand>) -> Operand {
        self.0.push((op.into(), operands));
        Operand::New(self.0.len() - 1)
    }

    /// A map whose body `f` writes over the operands.
    fn map(
        &mut self,
        operands: Vec<(Operand, DType)>,
        f: impl FnOnce(&mut Code, &[Id<Scalar>]) -> Result<Id<Scalar>, TypeError>,
    ) -> Option<Operand> {
        let mut body = Code::new();
        let arguments: Vec<_> = operands.iter().enumerate().map(|(n, (_, dtype))| body.arg(n, *dtype)).collect();
        let result = f(&mut body, &arguments).ok()?;
        body.set_result(result);
        Some(self.add(Map { body }, operands.into_iter().map(|(o, _)| o).collect()))
    }
}

/// The greatest number that an activation is rounded to.
const MOST: f64 = 127.0;

/// Rows of f32, `[.., B, G]`, as bytes in words, their scales and their sums, for each block.
fn rounded(nodes: &mut Nodes, x: Operand, rows: &[Expr]) -> Option<[Operand; 3]> {
    let last = rows.len();
    let reduce = |combine| Reduce { combine, axes: vec![last], keep: false };
    let size = nodes.map(vec![(x.clone(), DType::F32)], |b, a| b.unary(UnaryOp::Abs, a[0]))?;
    let most = nodes.add(reduce(BinaryOp::Max), vec![size]);
    let scale = nodes.map(vec![(most, DType::F32)], |b, a| {
        let by = b.float(DType::F32, MOST);
        b.binary(BinaryOp::Div, a[0], by)
    })?;
    let mut beside = rows.to_vec();
    beside.push(Expr::from(1i64));
    let each = nodes.add(Reshape { dims: beside }, vec![scale.clone()]);
    let numbers = nodes.map(vec![(x, DType::F32), (each, DType::F32)], |b, a| {
        let (zero, one) = (b.float(DType::F32, 0.0), b.float(DType::F32, 1.0));
        let inverse = b.binary(BinaryOp::Div, one, a[1])?;
        let some = b.binary(BinaryOp::Gt, a[1], zero)?;
        let inverse = b.push(Scalar::Select(some, inverse, zero))?;
        let steps = b.binary(BinaryOp::Mul, a[0], inverse)?;
        let (low, high) = (b.float(DType::F32, -MOST), b.float(DType::F32, MOST));
        let raised = b.binary(BinaryOp::Max, steps, low)?;
        let clipped = b.binary(BinaryOp::Min, raised, high)?;
        let whole = b.unary(UnaryOp::Round, clipped)?;
        b.cast(DType::I8, whole)
    })?;
    let wide = nodes.map(vec![(numbers.clone(), DType::I8)], |b, a| b.cast(DType::I32, a[0]))?;
    let sum = nodes.add(reduce(BinaryOp::Add), vec![wide]);
    let sum = nodes.map(vec![(sum, DType::I32), (scale.clone(), DType::F32)], |b, a| {
        let sum = b.cast(DType::F32, a[0])?;
        b.binary(BinaryOp::Mul, sum, a[1])
    })?;
    let words = nodes.add(Pack { axis: last }, vec![numbers]);
    Some([words, scale, sum])
}

/// A product of activations with a weight of few bits.
fn product(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Contract(contract) = &node.op else { return None };
    let (&x, &right) = (node.inputs.first()?, node.inputs.get(1)?);
    if contract.elements != Elements::Numbers || graph.ty(x).dtype != DType::F32 {
        return None;
    }
    let summed = contract.summed();
    let rows = contract.lhs.strip_suffix(summed.as_str())?;
    let (column, is_turned) = match contract.rhs.strip_suffix(summed.as_str()) {
        Some(column) => (column, false),
        None => (contract.rhs.strip_prefix(summed.as_str())?, true),
    };
    if column.len() != 1 || rows.contains(column) || contract.out != format!("{rows}{column}") {
        return None;
    }
    let (from, to) = (graph.ty(x), graph.ty(node.outputs[0]));
    let weight = weight(graph, right, to.dims.last()?.as_size()?, is_turned)?;
    let mut nodes = Nodes::default();
    let mut dims = from.dims.get(..rows.len())?.to_vec();
    dims.push(Expr::from(weight.blocks));
    let whole: Vec<Expr> = dims.iter().cloned().chain([Expr::from(weight.block)]).collect();
    let mut x = Operand::Value(x);
    let row: usize = from.dims.get(rows.len()..)?.iter().map(Expr::as_size).product::<Option<_>>()?;
    if let Some(more) = (weight.blocks * weight.block).checked_sub(row).filter(|&more| more > 0) {
        // Only a row that is one axis is filled up.
        let rank = (from.rank() == rows.len() + 1).then_some(from.rank())?;
        let mut high = vec![0; rank];
        *high.last_mut()? = more;
        let value = Constant::float(DType::F32, 0.0);
        x = nodes.add(Pad { low: vec![0; rank], high, interior: vec![0; rank], value }, vec![x]);
    }
    let x = nodes.add(Reshape { dims: whole }, vec![x]);
    let [words, scale, sum] = rounded(&mut nodes, x, &dims)?;
    let zero = weight.zero();
    let constants = std::iter::once(weight.words()?).chain(weight.floats(zero)?).map(Operand::Constant);
    let operands = [words, scale, sum].into_iter().chain(constants);
    nodes.add(BlockProduct { halves: weight.is_small(), zero }, operands.collect());
    Some(Patch { nodes: nodes.0, replaces: node.outputs[0], with: None, also: weight.nodes })
}

/// How the bytes of a table are those of a constant of words or floats.
enum Same {
    Bytes,
    /// Signed ones there, 128 more here.
    Moved,
}

/// Rows picked from a table that a block product reads too are picked from what that reads.
fn shared_table(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let (Op::Gather(Gather { axis: 0 }), [table, at]) = (&node.op, node.inputs.as_slice()) else { return None };
    let tensor = graph.constant(*table)?;
    let products = graph.nodes().filter(|(_, n)| matches!(n.op, Op::BlockProduct(_)));
    let read = products.flat_map(|(_, n)| n.inputs.iter().skip(3).copied());
    let (shared, same) = read.filter(|v| v != table).find_map(|v| {
        let own = graph.constant(v)?;
        let (a, b) = (tensor.bytes(), own.bytes());
        if a.len() != b.len() || tensor.shape().first() != own.shape().first() {
            return None;
        }
        let words = own.dtype() == DType::I32;
        match tensor.dtype() {
            DType::U8 if words && a == b => Some((v, Same::Bytes)),
            DType::F32 | DType::F16 if own.dtype() == tensor.dtype() && a == b => Some((v, Same::Bytes)),
            DType::I8 if words && a.iter().zip(b).all(|(a, b)| *a == b ^ 0x80) => Some((v, Same::Moved)),
            _ => None,
        }
    })?;
    let mut nodes = Nodes::default();
    let mut rows = nodes.add(Gather { axis: 0 }, vec![Operand::Value(shared), Operand::Value(*at)]);
    if tensor.dtype().is_int() {
        let mut dims = graph.ty(*at).dims.clone();
        dims.extend(graph.ty(shared).dims.iter().skip(1).cloned());
        dims.push(Expr::from(1i64));
        rows = nodes.add(Reshape { dims }, vec![rows]);
        let shifts: Vec<u8> = [0i32, 8, 16, 24].iter().flat_map(|s| s.to_le_bytes()).collect();
        let shifts = Operand::Constant(Tensor::new(DType::I32, vec![4], shifts).ok()?);
        let to = tensor.dtype();
        rows = nodes.map(vec![(rows, DType::I32), (shifts, DType::I32)], |b, a| {
            let byte = b.binary(BinaryOp::Shr, a[0], a[1])?;
            let mask = b.constant(Constant::int(DType::I32, 255));
            let mut byte = b.binary(BinaryOp::And, byte, mask)?;
            if matches!(same, Same::Moved) {
                let middle = b.constant(Constant::int(DType::I32, 128));
                byte = b.binary(BinaryOp::Sub, byte, middle)?;
            }
            b.cast(to, byte)
        })?;
    }
    let dims = graph.ty(node.outputs[0]).dims.clone();
    nodes.add(Reshape { dims }, vec![rows]);
    Some(Patch { nodes: nodes.0, replaces: node.outputs[0], with: None, also: vec![] })
}
