//! Weights of which at least two of each four are zero, stored without those.
//!
//! Invariant: what is computed from the packed form is the weight itself, element by element, so that products mean what they meant, whatever
//! they read.

use super::{Operand, Patch, rewrite};
use kiln_ir::graph::{Graph, GraphError, NodeId};
use kiln_ir::ops::{Contract, Elements, Map, Op, Reshape};
use kiln_ir::{BinaryOp, Code, Constant, DType, Expr, Tensor};

/// Bytes from which on a matrix is read from memory, not from caches, so that its size is what its product takes.
const LEAST_BYTES: usize = 8 << 20;

/// Neighbours along the summed axis of which at most two are not zero.
const GROUP: usize = 4;

/// Packs such matrices of f32 as one row is multiplied by: 9 bytes for what took 16. With more rows arithmetic, and not memory, is what
/// a product takes.
///
/// # Errors
/// See [`rewrite`].
pub fn without_zeros(graph: &Graph) -> Result<Graph, GraphError> {
    rewrite(graph, &[packed])
}

/// A matrix in groups: of each four neighbours along the summed axis two values, and a byte with their places (two bits each, the first
/// value's lowest). Each is `[groups, 1, columns]`.
#[derive(Debug, PartialEq)]
struct Packed {
    values: [Vec<f32>; 2],
    places: Vec<u8>,
}

/// Whether a packed form has to hold a value. A negative zero is none here: its product has another sign.
fn is_held(value: f32) -> bool {
    value.to_bits() != 0
}

/// Bytes of the packed form of a matrix, each row of which has the `steps` of a sum side by side; nothing where it has none.
pub(crate) fn packed_bytes(values: &[f32], steps: usize) -> Option<usize> {
    let fits = |four: &[f32]| four.iter().filter(|v| is_held(**v)).count() <= 2;
    let whole = steps > 0 && steps.is_multiple_of(GROUP) && values.chunks(GROUP).all(fits);
    whole.then_some(values.len() / GROUP * (2 * size_of::<f32>() + 1))
}

/// The packed form of a matrix whose element at a step of the sum and a column `at` gives; nothing where four neighbours have more than
/// two values that are not zero.
fn pack(steps: usize, columns: usize, at: impl Fn(usize, usize) -> f32) -> Option<Packed> {
    let count = steps / GROUP * columns;
    let mut made = Packed { values: [vec![0.0; count], vec![0.0; count]], places: vec![0; count] };
    for group in 0..steps / GROUP {
        for column in 0..columns {
            let (mut places, mut found) = ([0, 1], 0);
            for n in 0..GROUP {
                if is_held(at(group * GROUP + n, column)) {
                    *places.get_mut(found)? = n;
                    found += 1;
                }
            }
            if found == 1 && places[0] == 1 {
                places[1] = 0;
            }
            let to = group * columns + column;
            for (values, place) in made.values.iter_mut().zip(places) {
                values[to] = at(group * GROUP + place, column);
            }
            made.places[to] = (places[0] | places[1] << 2) as u8;
        }
    }
    Some(made)
}

/// What the element at a place of its group is, of the byte of places, both values, and the place as it is in the byte's low bits and in
/// those above.
fn unpacked() -> Option<Op> {
    let mut code = Code::new();
    let bytes = code.arg(0, DType::U8);
    let values = [code.arg(1, DType::F32), code.arg(2, DType::F32)];
    let wanted = [code.arg(3, DType::I32), code.arg(4, DType::I32)];
    let wide = code.cast(DType::I32, bytes).ok()?;
    let mut result = code.constant(Constant::float(DType::F32, 0.0));
    for ((value, wanted), mask) in values.into_iter().zip(wanted).zip([3, 12]) {
        let mask = code.constant(Constant::int(DType::I32, mask));
        let place = code.binary(BinaryOp::And, wide, mask).ok()?;
        let here = code.binary(BinaryOp::Eq, place, wanted).ok()?;
        result = code.select(here, value, result).ok()?;
    }
    code.set_result(result);
    Some(Map { body: code }.into())
}

fn packed(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Contract(c) = &node.op else { return None };
    let &[left, right] = node.inputs.as_slice() else { return None };
    let weights_first = graph.constant(left).is_some();
    let (weights, row) = if weights_first { (left, right) } else { (right, left) };
    let (of_weights, of_row) = if weights_first { (&c.lhs, &c.rhs) } else { (&c.rhs, &c.lhs) };
    let tensor = graph.constant(weights)?;
    let &[first, second] = tensor.shape() else { return None };
    let f32s = tensor.dtype() == DType::F32 && graph.ty(row).dtype == DType::F32;
    if c.elements != Elements::Numbers || !f32s || tensor.bytes().len() < LEAST_BYTES || graph.constant(row).is_some() {
        return None;
    }
    let summed = c.summed();
    let mut letters = of_weights.chars();
    let (step, column, by_columns) = match (letters.next()?, letters.next()?) {
        (k, n) if summed == k.to_string() => (k, n, false),
        (n, k) if summed == k.to_string() => (k, n, true),
        _ => return None,
    };
    let (steps, columns) = if by_columns { (second, first) } else { (first, second) };
    let one = |(letter, extent): (char, &Expr)| letter == step || extent.as_const() == Some(1);
    let rows = of_row.chars().zip(&graph.ty(row).dims).all(one);
    if !rows || of_row.contains(column) || !c.out.contains(column) || !steps.is_multiple_of(GROUP) {
        return None;
    }
    let (all, _) = tensor.bytes().as_chunks::<4>();
    let at = |step: usize, column: usize| {
        let place = if by_columns { column * steps + step } else { step * columns + column };
        all.get(place).map_or(f32::NAN, |bytes| f32::from_le_bytes(*bytes))
    };
    let Packed { values: [one, other], places } = pack(steps, columns, at)?;
    let groups = steps / GROUP;
    let shape = [groups, 1, columns];
    let numbers = |by: i32| -> Option<Tensor> {
        let bytes = (0..GROUP as i32).flat_map(|n| (n * by).to_le_bytes()).collect::<Vec<u8>>();
        Tensor::new(DType::I32, vec![1, GROUP, 1], bytes).ok()
    };
    let constants = [
        Tensor::new(DType::U8, shape.to_vec(), places).ok()?,
        Tensor::from_f32(&shape, &one).ok()?,
        Tensor::from_f32(&shape, &other).ok()?,
        numbers(1)?,
        numbers(GROUP as i32)?,
    ];
    let place = of_row.chars().position(|letter| letter == step)?;
    let mut dims = graph.ty(row).dims.clone();
    dims.splice(place..=place, [Expr::from(groups), Expr::from(GROUP)]);
    let within = ('a'..='z').find(|letter| ![&c.lhs, &c.rhs, &c.out].iter().any(|word| word.contains(*letter)))?;
    let of_row = of_row.replace(step, &format!("{step}{within}"));
    let product =
        Contract { elements: c.elements, ..Contract::new(&of_row, &format!("{step}{within}{column}"), &c.out) };
    Some(Patch {
        nodes: vec![
            (unpacked()?, constants.into_iter().map(Operand::Constant).collect()),
            (Reshape { dims }.into(), vec![Operand::Value(row)]),
            (product.into(), vec![Operand::New(1), Operand::New(0)]),
        ],
        replaces: node.outputs[0],
        with: None,
        also: vec![],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_ir::graph::TensorType;
    use kiln_ir::interp::{Options, eval_graph};

    fn weights(steps: usize, columns: usize) -> Vec<f32> {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let mut all: Vec<f32> = (0..steps * columns).map(|_| next()).collect();
        for group in 0..steps / GROUP {
            for column in 0..columns {
                // Every pair of places, single values, none, and a negative zero.
                let kept =
                    [0b0011, 0b0101, 0b1001, 0b0110, 0b1010, 0b1100, 0b0001, 0b0010, 0b1000, 0][(group + column) % 10];
                for n in 0..GROUP {
                    let value = &mut all[(group * GROUP + n) * columns + column];
                    if kept >> n & 1 == 0 {
                        *value = 0.0;
                    } else if group == 3 {
                        *value = -0.0;
                    }
                }
            }
        }
        all
    }

    fn product(shape: [usize; 2], values: &[f32], c: Contract, row: &[usize]) -> Graph {
        let mut g = Graph::new("m");
        let x = g.add_input("x", TensorType::of(DType::F32, row));
        let w = g.add_constant(Tensor::from_f32(&shape, values).unwrap());
        let y = g.add(c.into(), &[x, w], &Default::default()).unwrap();
        g.add_output("y", y);
        g
    }

    #[test]
    fn what_is_packed_is_the_weight_to_the_bit() {
        let (steps, columns) = (2048, 1024);
        let all = weights(steps, columns);
        let turned: Vec<f32> =
            (0..columns).flat_map(|n| (0..steps).map(move |k| (k, n))).map(|(k, n)| all[k * columns + n]).collect();
        // Infinite values times zeros are NaN in either form.
        let mut x: Vec<f32> = (0..steps).map(|n| (n % 13) as f32 - 6.0).collect();
        for case in 0..2 {
            let by_rows = product([steps, columns], &all, Contract::new("tk", "kn", "tn"), &[1, steps]);
            let by_columns = product([columns, steps], &turned, Contract::new("btk", "nk", "btn"), &[1, 1, steps]);
            for (graph, shape) in [(by_rows, vec![1, steps]), (by_columns, vec![1, 1, steps])] {
                let made = without_zeros(&graph).unwrap();
                assert!(made.verify().is_empty() && made.nodes().count() == 3, "{made}");
                let given = [Tensor::from_f32(&shape, &x).unwrap()];
                let run = |g: &Graph| eval_graph(g, &given, &Options::default()).unwrap().remove(0).to_f32().unwrap();
                let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                assert_eq!(bits(run(&made)), bits(run(&graph)), "case {case}");
            }
            x[5] = f32::INFINITY;
        }
    }

    #[test]
    fn what_gains_nothing_stays() {
        let all = weights(2048, 1024);
        let stays = |graph: &Graph| assert_eq!(without_zeros(graph).unwrap().nodes().count(), 1);
        // Two rows, a matrix that fits a cache, three values of four.
        stays(&product([2048, 1024], &all, Contract::new("tk", "kn", "tn"), &[2, 2048]));
        stays(&product([1024, 1024], &all[..1024 * 1024], Contract::new("tk", "kn", "tn"), &[1, 1024]));
        let mut dense = all;
        (0..3).for_each(|n| dense[n * 1024 + 9] = 1.0);
        stays(&product([2048, 1024], &dense, Contract::new("tk", "kn", "tn"), &[1, 2048]));
    }
}
