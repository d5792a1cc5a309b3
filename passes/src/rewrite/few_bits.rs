//! Weights of few bits as a [`BlockProduct`] takes them: numbers in words, with scales and least values for blocks of a row.
//!
//! Invariant: no format is known here. A weight is whatever a map makes of whole numbers that is linear in them and has one scale for
//! each run of a row; numbers, scales and least values are what the model says.

use super::known::{MOST_NODES, known, known_numbers};
use super::{Operand, Patch, rewrite};
use kiln_ir::Id;
use kiln_ir::dtype::DType;
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, GraphError, NodeId, ValueId};
use kiln_ir::ops::{BlockProduct, Elements, Gather, MOST_BLOCK, Map, Op, Pad, Reduce, Reshape};
use kiln_ir::scalar::{BinaryOp, Code, Constant, Scalar, TypeError, UnaryOp};
use kiln_ir::tensor::Tensor;

/// A matrix of few bits, `[columns, blocks, block]`: `scale * number + least`.
pub(super) struct Weight {
    columns: usize,
    blocks: usize,
    block: usize,
    /// Without a sign, in rows.
    numbers: Vec<u8>,
    /// Whether all numbers fit 4 bits.
    is_small: bool,
    /// The number that stands for 0 in all blocks, where there is one.
    zero: Option<u8>,
    /// Scales, and least values where they are not those of one zero, in f16 where nothing is lost by it.
    floats: Vec<Tensor>,
    /// The nodes that make it, whose work the product does.
    pub(super) nodes: Vec<NodeId>,
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
        let (mut parameters, mut at) = (vec![0.0; operands.len()], vec![0; operands.len()]);
        for i in 0..outer {
            let mut rest = i;
            at.fill(0);
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

/// Which weights are looked for.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    /// How many numbers they have at least.
    pub(super) len: usize,
    /// The range of these has at most so many bits.
    pub(super) bits: u32,
}

/// The weight that a value is, as a matrix with so many columns, whose rows of one are the columns of the other where it is turned.
fn weight(graph: &Graph, v: ValueId, columns: usize, is_turned: bool, wanted: Wanted) -> Option<Weight> {
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
    if body.result_type() != DType::F32 || columns == 0 || !count.is_multiple_of(columns) || count < wanted.len {
        return None;
    }
    // Weights are large, and most that are not wanted are known by their numbers.
    let mut numbers = known_numbers(graph, inputs[number], &mut nodes)?;
    let zero = shift(&numbers, wanted.bits)?;
    if is_turned {
        numbers = turned(&numbers)?;
    }
    let mut operands = Vec::with_capacity(inputs.len());
    for (n, &v) in inputs.iter().enumerate() {
        let tensor = if n == number { numbers.clone() } else { known(graph, v, &mut nodes)? };
        operands.push(if is_turned && n != number { turned(&tensor)? } else { tensor });
    }
    if is_turned {
        dims.reverse();
    }
    let row = count / columns;
    let Blocks { block, blocks, pairs } = Runs::of(body, number, &operands, &dims)?.in_blocks(row)?;
    let mut numbers = without_sign(&numbers, zero)?;
    if blocks * block > row {
        // Filled up with anything, as the rows of the activations are with zeros.
        let filled = |part: &[u8]| [part, &vec![zero; blocks * block - row]].concat();
        numbers = numbers.chunks(row).flat_map(filled).collect();
    }
    let is_small = numbers.iter().all(|&n| n < 16);
    let least = |(scale, least): &(f32, f32)| (f64::from(*least) - f64::from(*scale) * f64::from(zero)) as f32;
    let (scales, least): (Vec<f32>, Vec<f32>) = pairs.iter().map(|p| (p.0, least(p))).unzip();
    let zero = zero_of_all(&scales, &least);
    let floats = floats(&[columns, blocks], &scales, if zero.is_some() { &[] } else { &least })?;
    Some(Weight { columns, blocks, block, numbers, is_small, zero, floats, nodes })
}

/// What is added to whole numbers that take at most so many bits so that none has a sign.
fn shift(numbers: &Tensor, bits: u32) -> Option<u8> {
    let (low, high) = match numbers.dtype() {
        DType::U8 => (0, i64::from(*numbers.bytes().iter().max()?)),
        DType::I8 => {
            let signed = || numbers.bytes().iter().map(|&b| b as i8);
            (i64::from(signed().min()?), i64::from(signed().max()?))
        }
        _ => {
            let values = numbers.to_i64()?;
            (*values.iter().min()?, *values.iter().max()?)
        }
    };
    let shift = match (low, high) {
        (0.., ..=255) => 0,
        (-8.., ..=7) => 8,
        (-128.., ..=127) => 128,
        _ => return None,
    };
    (high + i64::from(shift) < 1 << bits).then_some(shift)
}

/// Whole numbers with something added, as bytes.
fn without_sign(numbers: &Tensor, shift: u8) -> Option<Vec<u8>> {
    match numbers.dtype() {
        DType::U8 | DType::I8 => Some(numbers.bytes().iter().map(|b| b.wrapping_add(shift)).collect()),
        _ => numbers.to_i64()?.into_iter().map(|v| u8::try_from(v + i64::from(shift)).ok()).collect(),
    }
}

/// The number that stands for 0 in all blocks, where there is one.
fn zero_of_all(scales: &[f32], least: &[f32]) -> Option<u8> {
    let pairs = || scales.iter().zip(least).map(|(s, l)| (f64::from(*s), f64::from(*l)));
    let zero = pairs().find(|(scale, _)| *scale != 0.0).map_or(0.0, |(scale, least)| -least / scale);
    let holds = pairs().all(|(scale, least)| least == -zero * scale);
    (holds && zero.trunc() == zero && (0.0..=255.0).contains(&zero)).then_some(zero as u8)
}

/// Scales, and least values where there are any, in f16 where nothing is lost by it.
fn floats(shape: &[usize], scales: &[f32], least: &[f32]) -> Option<Vec<Tensor>> {
    let kept = || [scales, least].into_iter().filter(|values| !values.is_empty());
    let halves = |values: &[f32]| {
        let mut bytes = Vec::with_capacity(values.len() * 2);
        for value in values.iter().copied().map(f64::from) {
            let half = Constant::float(DType::F16, value);
            half.store(&mut bytes);
            if half.as_f64() != value {
                return None;
            }
        }
        Tensor::new(DType::F16, shape.to_vec(), bytes).ok()
    };
    kept()
        .map(halves)
        .collect::<Option<_>>()
        .or_else(|| kept().map(|values| Tensor::from_f32(shape, values).ok()).collect())
}

impl Weight {
    /// How many bytes it takes as operands of a [`BlockProduct`].
    pub(super) fn bytes(&self) -> usize {
        let floats: usize = self.floats.iter().map(|t| t.bytes().len()).sum();
        self.numbers.len() / if self.is_small { 2 } else { 1 } + floats
    }

    /// The numbers as a block product takes them: two a byte where they are small.
    fn words(&self) -> Option<Tensor> {
        let bytes = match self.is_small {
            true => {
                let blocks = self.numbers.chunks(self.block).map(|b| b.split_at(self.block / 2));
                blocks.flat_map(|(low, high)| low.iter().zip(high).map(|(l, h)| l | h << 4)).collect()
            }
            false => self.numbers.clone(),
        };
        let words = bytes.len() / 4 / self.columns.max(1) / self.blocks.max(1);
        Tensor::new(DType::I32, vec![self.columns, self.blocks, words], bytes).ok()
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

    /// What `combine` makes of the elements along an axis, which goes.
    pub(super) fn reduce(&mut self, combine: BinaryOp, axis: usize, x: Operand) -> Operand {
        self.add(Reduce { combine, axes: vec![axis], keep: false }, vec![x])
    }

    /// The greatest size of an f32 along an axis, which goes.
    pub(super) fn greatest(&mut self, axis: usize, x: Operand) -> Option<Operand> {
        let size = self.map(vec![(x, DType::F32)], |b, a| b.unary(UnaryOp::Abs, a[0]))?;
        Some(self.reduce(BinaryOp::Max, axis, size))
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
    pub(super) fn of(graph: &Graph, id: NodeId, wanted: Wanted) -> Option<Product> {
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
        let weight = weight(graph, right, to.dims.last()?.as_size()?, is_turned, wanted)?;
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
        let constants = std::iter::once(self.weight.words()?).chain(self.weight.floats);
        let operands = rows.into_iter().chain(constants.map(Operand::Constant));
        self.nodes
            .add(BlockProduct { bytes, halves: self.weight.is_small, zero: self.weight.zero }, operands.collect());
        Some(Patch { nodes: self.nodes.0, replaces: self.result, with: None, also: self.weight.nodes })
    }
}

/// A graph with block products, in which what else reads a weight reads it in the form that these have it in, so that it is stored once, and
/// products of the same rows, known by reading the same digits, are one.
///
/// # Errors
/// See [`rewrite`].
pub(super) fn shared(graph: &Graph) -> Result<Graph, GraphError> {
    let graph = rewrite(graph, &[shared_table])?;
    super::joined::join_products(&super::eliminate_common(&graph)?)
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
