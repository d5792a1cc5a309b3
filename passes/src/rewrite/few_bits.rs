//! Weights of few bits as a [`BlockProduct`] takes them: numbers in words, with scales and least values for blocks of a row.
//!
//! Invariant: no format is known here. A weight is whatever a map makes of whole numbers that is linear in them and has one scale for
//! each run of a row; numbers, scales and least values are what the model says.

use super::{Operand, Patch};
use kiln_ir::Id;
use kiln_ir::dtype::DType;
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, NodeId, ValueId};
use kiln_ir::interp::eval_op;
use kiln_ir::ops::{BlockProduct, Elements, Gather, MOST_BLOCK, Map, Op, Pad, Reshape};
use kiln_ir::scalar::{BinaryOp, Code, Constant, Scalar, TypeError};
use kiln_ir::tensor::Tensor;

/// A matrix of few bits, `[columns, blocks, block]`: `scale * number + least`.
pub(super) struct Weight {
    columns: usize,
    blocks: usize,
    block: usize,
    /// Without a sign, in rows.
    numbers: Vec<u8>,
    scales: Vec<f32>,
    least: Vec<f32>,
    /// The nodes that make it, whose work the product does.
    pub(super) nodes: Vec<NodeId>,
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
    /// How many numbers it has.
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// How many bytes it takes as operands of a [`BlockProduct`].
    pub(super) fn bytes(&self) -> Option<usize> {
        let floats = self.floats(self.zero())?;
        Some(
            self.numbers.len() / if self.is_small() { 2 } else { 1 }
                + floats.iter().map(|t| t.bytes().len()).sum::<usize>(),
        )
    }

    /// Whether all numbers fit 4 bits.
    pub(super) fn is_small(&self) -> bool {
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
pub(super) struct Nodes(Vec<(Op, Vec<Operand>)>);

impl Nodes {
    pub(super) fn add(&mut self, op: impl Into<Op>, operands: Vec<Operand>) -> Operand {
        self.0.push((op.into(), operands));
        Operand::New(self.0.len() - 1)
    }

    /// A map whose body `f` writes over the operands.
    pub(super) fn map(
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

/// A product of rows of f32 with a weight of few bits.
pub(super) struct Product {
    pub(super) weight: Weight,
    /// The rows, `[.., B, G]` as the weight's blocks are.
    x: Operand,
    /// Their dims up to the blocks.
    rows: Vec<Expr>,
    nodes: Nodes,
    result: ValueId,
}

impl Product {
    /// The product that a node is, if it is one.
    pub(super) fn of(graph: &Graph, id: NodeId) -> Option<Product> {
        let node = graph.node(id);
        let Op::Contract(contract) = &node.op else { return None };
        let (&x, &right) = (node.inputs.first()?, node.inputs.get(1)?);
        if contract.elements != Elements::Numbers || graph.ty(x).dtype != DType::F32 {
            return None;
        }
        let summed = contract.summed();
        let letters = contract.lhs.strip_suffix(summed.as_str())?;
        let (column, is_turned) = match contract.rhs.strip_suffix(summed.as_str()) {
            Some(column) => (column, false),
            None => (contract.rhs.strip_prefix(summed.as_str())?, true),
        };
        if column.len() != 1 || letters.contains(column) || contract.out != format!("{letters}{column}") {
            return None;
        }
        let result = *node.outputs.first()?;
        let (from, to) = (graph.ty(x), graph.ty(result));
        let weight = weight(graph, right, to.dims.last()?.as_size()?, is_turned)?;
        let mut nodes = Nodes::default();
        let rows = from.dims.get(..letters.len())?.to_vec();
        let mut x = Operand::Value(x);
        let row: usize = from.dims.get(letters.len()..)?.iter().map(Expr::as_size).product::<Option<_>>()?;
        if let Some(more) = (weight.blocks * weight.block).checked_sub(row).filter(|&more| more > 0) {
            // Only a row that is one axis is filled up.
            let rank = (from.rank() == letters.len() + 1).then_some(from.rank())?;
            let mut high = vec![0; rank];
            *high.last_mut()? = more;
            let value = Constant::float(DType::F32, 0.0);
            x = nodes.add(Pad { low: vec![0; rank], high, interior: vec![0; rank], value }, vec![x]);
        }
        let blocks = [Expr::from(weight.blocks), Expr::from(weight.block)];
        let x = nodes.add(Reshape { dims: rows.iter().cloned().chain(blocks).collect() }, vec![x]);
        Some(Product { weight, x, rows, nodes, result })
    }

    /// Whether there is a single row.
    pub(super) fn is_of_one_row(&self) -> bool {
        self.rows.iter().all(|d| d.as_const() == Some(1))
    }

    /// The same as a [`BlockProduct`], whose rows `form` makes of `[.., B, G]`, with these dims.
    pub(super) fn patch(
        mut self,
        bytes: usize,
        form: impl FnOnce(&mut Nodes, Operand, &[Expr]) -> Option<Vec<Operand>>,
    ) -> Option<Patch> {
        self.rows.extend([self.weight.blocks, self.weight.block].map(Expr::from));
        let rows = form(&mut self.nodes, self.x, &self.rows)?;
        let zero = self.weight.zero();
        let constants = std::iter::once(self.weight.words()?).chain(self.weight.floats(zero)?);
        let operands = rows.into_iter().chain(constants.map(Operand::Constant));
        self.nodes.add(BlockProduct { bytes, halves: self.weight.is_small(), zero }, operands.collect());
        Some(Patch { nodes: self.nodes.0, replaces: self.result, with: None, also: self.weight.nodes })
    }
}

/// How the bytes of a table are those of a constant of words or floats.
enum Same {
    Bytes,
    /// Signed ones there, 128 more here.
    Moved,
}

/// Rows picked from a table that a block product reads too are picked from what that reads.
pub(super) fn shared_table(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let (Op::Gather(Gather { axis: 0 }), [table, at]) = (&node.op, node.inputs.as_slice()) else { return None };
    let tensor = graph.constant(*table)?;
    let read = graph.nodes().flat_map(|(_, n)| match &n.op {
        Op::BlockProduct(product) => n.inputs.get(product.of_rows()..).unwrap_or_default().to_vec(),
        _ => vec![],
    });
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
