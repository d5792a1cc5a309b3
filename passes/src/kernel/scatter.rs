//! Scatter: updates put at computed places of a copy of a tensor.
//!
//! Invariant: the tensor is seen as `[outer, rows, inner]`, and a program owns some of the inner elements of one outer position in all
//! rows: it copies them, then takes the updates that meet them in their order. So programs are independent, and sums come out as the
//! graph interpreter has them, whatever the number of threads. An index out of range fails the kernel.

use super::cuts::segments;
use super::emit::Emitter;
use super::{Machine, tile_axis};
use crate::group::Group;
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::graph::{Graph, NodeId, TensorType, ValueId};
use kiln_ir::ops::Op;
use kiln_ir::scalar::{BinaryOp, Constant};
use kiln_ir::tile::{For, Part, Stmt, TileId, TileOp, TileProgram, gathered};

/// Vectors of a row that a program takes at once.
const VECTORS: i64 = 4;

/// A scatter of a graph that kernels do.
#[derive(Clone, Debug)]
pub struct Scatter {
    inputs: [ValueId; 3],
    /// How an update and what was there are combined; nothing: the update replaces it.
    combine: Option<BinaryOp>,
    outer: Expr,
    /// Extents that the components of an index count along, outermost first.
    rows: Vec<Expr>,
    inner: Expr,
    /// How many updates meet each outer and inner position.
    updates: Expr,
    /// Strides of the indices along outer positions, updates and inner positions; components lie side by side.
    strides: [Expr; 3],
}

fn product(dims: &[Expr]) -> Expr {
    dims.iter().fold(Expr::from(1i64), |n, d| n.mul(d))
}

impl Scatter {
    /// The node as a scatter, where it is one of types and dims that kernels take.
    pub fn of(graph: &Graph, id: NodeId) -> Option<Scatter> {
        let node = graph.node(id);
        let Op::Host(op) = &node.op else { return None };
        let &[data, indices, updates] = node.inputs.as_slice() else { return None };
        if !matches!(op.function(), "scatter_elements" | "scatter_nd") {
            return None;
        }
        let ty = graph.ty(data);
        if !super::is_kernel_type(ty.dtype) || !super::is_kernel_type(graph.ty(indices).dtype) {
            return None;
        }
        let combine = BinaryOp::from_name(op.attributes.word("combine").ok()?);
        if op.function() == "scatter_elements" {
            let axis = op.attributes.size("axis").ok()?;
            return Scatter::elements(graph, [data, indices, updates], axis, combine);
        }
        let places = graph.ty(indices);
        let tuple = places.dims.last()?.as_size().filter(|k| (1..=ty.rank()).contains(k))?;
        let zero = Expr::default();
        let slices = places.dims[..places.rank() - 1].iter().chain(&ty.dims[tuple..]);
        if !graph.ty(updates).dims.iter().eq(slices) {
            return None;
        }
        Some(Scatter {
            inputs: [data, indices, updates],
            combine,
            outer: Expr::from(1i64),
            rows: ty.dims[..tuple].to_vec(),
            inner: product(&ty.dims[tuple..]),
            updates: product(&places.dims[..places.rank() - 1]),
            strides: [zero.clone(), Expr::from(tuple), zero],
        })
    }

    fn elements(graph: &Graph, inputs: [ValueId; 3], axis: usize, combine: Option<BinaryOp>) -> Option<Scatter> {
        let [data, indices, updates] = inputs;
        let (ty, to) = (graph.ty(data), graph.ty(indices));
        let others = |n: &usize| *n != axis;
        // Extents that are only equal when it runs are for the interpreter to check.
        if !(0..ty.rank()).filter(others).all(|n| ty.dims[n] == to.dims[n]) || graph.ty(updates).dims != to.dims {
            return None;
        }
        // Indices that are repeated for all elements of a row are read where they are one.
        let source = match graph.producer(indices).map(|n| (&graph.node(n).op, graph.node(n).inputs.as_slice())) {
            Some((Op::Broadcast(_), &[from])) if graph.ty(from).rank() == ty.rank() => from,
            _ => indices,
        };
        let strides = |from: &TensorType| {
            let one = |d: &Expr| d.as_const() == Some(1);
            let whole = |range: std::ops::Range<usize>| range.clone().all(|n| from.dims[n] == to.dims[n]);
            let single = |range: std::ops::Range<usize>| range.clone().all(|n| one(&from.dims[n]));
            let (inner, along) = (axis + 1..ty.rank(), axis..axis + 1);
            let mut step = Expr::from(1i64);
            let mut stride = |range: std::ops::Range<usize>| {
                if whole(range.clone()) {
                    let this = step.clone();
                    step = step.mul(&product(&to.dims[range]));
                    Some(this)
                } else {
                    single(range).then(Expr::default)
                }
            };
            let (inner, along, outer) = (stride(inner)?, stride(along)?, stride(0..axis)?);
            Some([outer, along, inner])
        };
        let (source, strides) = match strides(graph.ty(source)) {
            Some(strides) => (source, strides),
            None => (indices, strides(to)?),
        };
        Some(Scatter {
            inputs: [data, source, updates],
            combine,
            outer: product(&ty.dims[..axis]),
            rows: vec![ty.dims[axis].clone()],
            inner: product(&ty.dims[axis + 1..]),
            updates: to.dims[axis].clone(),
            strides,
        })
    }

    /// The tensor, the indices and the updates, as the kernel reads them.
    pub fn inputs(&self) -> [ValueId; 3] {
        self.inputs
    }
}

/// The tile program of a group that is a scatter; nothing where it is none, or for another kind of target.
pub(super) fn program(graph: &Graph, group: &Group, program: TileProgram, machine: &Machine) -> Option<TileProgram> {
    let &[node] = group.nodes.as_slice() else { return None };
    let scatter = Scatter::of(graph, node)?;
    let plain = |v: &ValueId| graph.ty(*v).layout.is_row_major();
    if machine.gpu.is_some()
        || scatter.inputs != *group.inputs
        || !group.inputs.iter().chain([&group.output]).all(plain)
    {
        return None;
    }
    let mut program = program;
    if graph.ty(group.output).elements().as_const() == Some(0) {
        return Some(program);
    }
    let lanes = machine.lanes as i64;
    let dims = &graph.symbols;
    for segment in segments(&scatter.inner, lanes * VECTORS, lanes, dims) {
        let (outer, block) = (Symbol::numbered("p", 0), Symbol::numbered("p", 1));
        let column = segment.lo.add(&Expr::from(&block).scale(segment.block)).add(&Expr::from(tile_axis(0)));
        let width = usize::try_from(segment.block).ok()?;
        let mut body = Body { program: &mut program, scatter: &scatter, outer: Expr::from(&outer), column, width };
        let statements = vec![body.copy(), body.update(graph.ty(scatter.inputs[1]).dtype)];
        program
            .parts
            .push(Part { grid: vec![(outer, scatter.outer.clone()), (block, segment.count)], body: statements });
    }
    Some(program)
}

/// What a program does.
struct Body<'a> {
    program: &'a mut TileProgram,
    scatter: &'a Scatter,
    outer: Expr,
    /// The inner position of an element of a tile.
    column: Expr,
    width: usize,
}

/// Buffers in the order of a scatter's operands.
const DATA: usize = 0;
const INDICES: usize = 1;
const UPDATES: usize = 2;
const OUT: usize = 3;

impl Body<'_> {
    fn emitter(&mut self) -> Emitter<'_> {
        Emitter { program: self.program, buffers: &[], known: &[], stages: &[], status: 1 }
    }

    /// The address of an element of `[outer, rows, inner]`.
    fn at(&self, rows: &Expr, row: &Expr) -> Expr {
        self.outer.mul(rows).add(row).mul(&self.scatter.inner).add(&self.column)
    }

    fn load(&mut self, body: &mut Vec<Stmt>, buffer: usize, address: Expr, picked: Vec<TileId>) -> TileId {
        let dtype = self.program.buffers[buffer].dtype;
        let width = if address.mentions(&tile_axis(0)) { self.width } else { 1 };
        let op = TileOp::Load { buffer, address, gathered: picked, mask: vec![], other: Constant::int(dtype, 0) };
        self.emitter().define(body, dtype, vec![width], op)
    }

    fn counted(var: Symbol, hi: Expr, body: Vec<Stmt>) -> Stmt {
        Stmt::For(For { var, lo: Expr::default(), hi, step: 1, carried: vec![], body })
    }

    /// Copies what the program owns.
    fn copy(&mut self) -> Stmt {
        let (row, rows) = (Symbol::numbered("k", 0), product(&self.scatter.rows));
        let address = self.at(&rows, &Expr::from(&row));
        let mut body = Vec::new();
        let value = self.load(&mut body, DATA, address.clone(), vec![]);
        body.push(Stmt::Store { buffer: OUT, address, gathered: vec![], mask: vec![], value });
        Body::counted(row, rows, body)
    }

    /// Takes the updates in their order.
    fn update(&mut self, indices: DType) -> Stmt {
        let scatter = self.scatter;
        let (update, rows) = (Symbol::numbered("k", 1), product(&scatter.rows));
        let number = Expr::from(&update);
        let [outer, along, inner] = &scatter.strides;
        let first = self.outer.mul(outer).add(&number.mul(along)).add(&self.column.mul(inner));
        let (mut body, mut picked, mut row) = (Vec::new(), Vec::new(), Expr::default());
        for (n, extent) in scatter.rows.iter().enumerate() {
            let index = self.load(&mut body, INDICES, first.add(&Expr::from(n)), vec![]);
            let shape = self.program.tiles[index].shape.clone();
            let mut e = self.emitter();
            let index = if indices == DType::I64 { index } else { e.cast(&mut body, DType::I64, index) };
            let check = TileOp::CheckIndex { index, extent: extent.clone(), status: 1 };
            picked.push(e.define(&mut body, DType::I64, shape, check));
            row = row.mul(extent).add(&Expr::from(gathered(n)));
        }
        let address = self.at(&rows, &row);
        let from = self.at(&scatter.updates, &number);
        let mut value = self.load(&mut body, UPDATES, from, vec![]);
        if let Some(combine) = scatter.combine {
            let before = self.load(&mut body, OUT, address.clone(), picked.clone());
            value = self.emitter().binary(&mut body, combine, before, value);
        }
        body.push(Stmt::Store { buffer: OUT, address, gathered: picked, mask: vec![], value });
        Body::counted(update, scatter.updates.clone(), body)
    }
}
