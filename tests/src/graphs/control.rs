//! Loops, scans and branches, whose bodies are random graphs again.
//!
//! Invariant: states are integers or truth values, of which nothing need be known: what becomes of them is exact however often the loop
//! is run. What is collected may be anything that does not depend on how far it has been run.

use super::{Build, Facts, Kind, MAX_ELEMENTS, No};
use kiln_ir::graph::{Graph, Origin, ValueId};
use kiln_ir::ops::{Attribute, Attributes, Host, Op};
use kiln_ir::{DType, Expr, Symbol, Tensor, TensorType};

/// Most turns of a loop.
const MOST_TURNS: i64 = 4;

/// The type of a value and what is known of it.
type Known = (TensorType, Facts);

/// What is known of a state.
fn state_facts(dtype: DType) -> Facts {
    if dtype == DType::Bool { Facts::exact(1.0, 0) } else { Facts::integers(f64::INFINITY) }
}

impl Build {
    pub(super) fn control(&mut self) -> Result<(), No> {
        match self.random.below(3) {
            0 => self.branch(),
            1 => self.repeated(),
            _ => self.scanned(),
        }
    }

    /// A graph within the graph, empty.
    fn inner(&mut self) -> Build {
        let mut graph = Graph::new("body");
        graph.symbols = self.graph.symbols.clone();
        let random = super::Random::new(self.random.bits());
        let (values, kinds) = (vec![], vec![]);
        let symbols = self.symbols.clone();
        Build { random, graph, values, kinds, symbols, nodes: 0, depth: self.depth + 1, unread: vec![] }
    }

    /// An input of this body with what is known of it.
    fn param(&mut self, ty: &TensorType, facts: Facts) -> ValueId {
        let v = self.graph.add_input("p", TensorType::new(ty.dtype, ty.dims.clone()));
        self.values.push((v, facts));
        v
    }

    fn grow(&mut self) {
        let wanted = 1 + self.random.below(5);
        for _ in 0..30 {
            if self.nodes >= wanted {
                break;
            }
            // As for the graph around it.
            let _ = self.step();
        }
    }

    /// Values of this graph for inputs of a body from number `from` on, whose kinds its leaves have noted.
    fn outside(&mut self, inner: &Build, from: usize) -> Vec<ValueId> {
        let leaves: Vec<TensorType> = inner.graph.inputs.iter().skip(from).map(|&v| inner.ty(v)).collect();
        leaves.iter().zip(&inner.kinds).map(|(ty, &kind)| self.leaf_of(ty.dtype, &ty.dims, kind).0).collect()
    }

    /// Some values of a body, with what is known of them.
    fn some(&mut self, most: usize) -> Vec<(ValueId, Facts)> {
        let count = self.random.below(most + 1);
        (0..count).map(|_| self.any()).collect()
    }

    /// A value of this type that is as good as a state; one of the states where there is none.
    fn becomes(&mut self, ty: &TensorType, own: ValueId) -> ValueId {
        let fits = |v: ValueId, f: &Facts, b: &Build| {
            let t = b.graph.ty(v);
            t.dtype == ty.dtype && t.dims == ty.dims && f.is_exact()
        };
        let all: Vec<ValueId> = self.values.iter().filter(|(v, f)| fits(*v, f, self)).map(|(v, _)| *v).collect();
        if all.is_empty() { own } else { *self.random.pick(&all) }
    }

    /// States: existing or new values of integers.
    fn states(&mut self) -> Vec<ValueId> {
        let exact = |b: &Build, v: ValueId| {
            let ty = b.graph.ty(v);
            (ty.dtype.is_int() || ty.dtype == DType::Bool) && b.size(&ty.dims) <= MAX_ELEMENTS / 4
        };
        let mut states = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            let known: Vec<ValueId> = self.values.iter().map(|(v, _)| *v).filter(|&v| exact(self, v)).collect();
            let v = if !known.is_empty() && self.random.chance(60) {
                *self.random.pick(&known)
            } else {
                let dtype = *self.random.pick(&[DType::I32, DType::I64, DType::U8, DType::I16, DType::Bool]);
                let dims: Vec<Expr> = (0..self.random.below(3)).map(|_| self.extent()).collect();
                self.leaf(dtype, &dims).0
            };
            states.push(v);
            // Two states of one type may change places.
            if self.random.chance(30) {
                states.push(v);
            }
        }
        states
    }

    fn region(&mut self, name: &str, a: Attributes, inputs: &[ValueId]) -> Result<Vec<ValueId>, No> {
        let op: Op = Host::new(name, a)?.into();
        self.nodes += 1;
        let node = self.graph.add_node(op, inputs, &Origin::new(&format!("n{}", self.nodes)))?;
        Ok(self.graph.node(node).outputs.clone())
    }

    fn branch(&mut self) -> Result<(), No> {
        let condition = self.leaf_of(DType::Bool, &[], Kind::Small).0;
        let (mut then, mut otherwise) = (self.inner(), self.inner());
        let shared = self.any();
        for body in [&mut then, &mut otherwise] {
            body.param(&self.ty(shared.0), shared.1);
            body.grow();
        }
        let mut results = Vec::new();
        for _ in 0..1 + self.random.below(2) {
            let (v, f) = then.any();
            let ty = then.ty(v);
            let same = |b: &Build, v: ValueId| b.graph.ty(v).dtype == ty.dtype && b.graph.ty(v).dims == ty.dims;
            let all: Vec<_> = otherwise.values.iter().filter(|(v, _)| same(&otherwise, *v)).copied().collect();
            let (w, g) = match all.as_slice() {
                [] => otherwise.leaf(ty.dtype, &ty.dims),
                all => *self.random.pick(all),
            };
            then.graph.add_output("r", v);
            otherwise.graph.add_output("r", w);
            results.push((TensorType::new(ty.dtype, ty.dims), Facts::either(f, g)));
        }
        let mut inputs = vec![condition, shared.0];
        inputs.extend(self.outside(&then, 1));
        inputs.push(shared.0);
        inputs.extend(self.outside(&otherwise, 1));
        let types: Vec<TensorType> = results.iter().map(|(ty, _)| ty.clone()).collect();
        let a = Attributes::new().with("then", then.graph).with("else", otherwise.graph).with("results", types);
        let made = self.region("if", a, &inputs)?;
        self.values.extend(made.into_iter().zip(results.into_iter().map(|(_, facts)| facts)));
        Ok(())
    }

    /// Notes what a body makes of states and what is collected of its turns; types and facts of both.
    fn turn(&mut self, states: &[ValueId]) -> (Vec<Known>, Vec<Known>) {
        let mut kept = Vec::new();
        for &own in states {
            let ty = self.ty(own);
            let next = self.becomes(&ty, own);
            self.graph.add_output("s", next);
            let facts = state_facts(ty.dtype);
            kept.push((ty, facts));
        }
        let mut collected = Vec::new();
        for (v, facts) in self.some(2) {
            let ty = self.ty(v);
            if self.size(&ty.dims) <= MAX_ELEMENTS / MOST_TURNS {
                self.graph.add_output("c", v);
                collected.push((ty, Facts { below: None, ..facts }));
            }
        }
        (kept, collected)
    }

    fn repeated(&mut self) -> Result<(), No> {
        let states = self.states();
        let mut body = self.inner();
        let number = body.graph.add_input("i", TensorType::of(DType::I64, &[]));
        body.values.push((number, Facts::exact(MOST_TURNS as f64, 0)));
        body.graph.add_input("go", TensorType::of(DType::Bool, &[]));
        let own: Vec<ValueId> =
            states.iter().map(|&v| body.param(&self.ty(v), state_facts(self.ty(v).dtype))).collect();
        body.grow();
        let truth = TensorType::of(DType::Bool, &[]);
        let again = if self.random.chance(50) {
            body.graph.add_constant(Tensor::new(DType::Bool, vec![], vec![1u8]).map_err(|_| No)?)
        } else {
            let leaf = body.leaf_of(DType::Bool, &[], Kind::Small).0;
            body.becomes(&truth, leaf)
        };
        body.graph.add_output("again", again);
        let (kept, collected) = body.turn(&own);
        let times = if self.random.chance(50) {
            let turns = self.random.below(MOST_TURNS as usize + 1) as i64;
            self.graph.add_constant(Tensor::from_i64(&[], &[turns]).map_err(|_| No)?)
        } else {
            // At most 3.
            self.input(DType::I64, &[], Kind::Small).0
        };
        let first = if self.random.chance(70) {
            self.graph.add_constant(Tensor::new(DType::Bool, vec![], vec![1u8]).map_err(|_| No)?)
        } else {
            self.leaf_of(DType::Bool, &[], Kind::Small).0
        };
        let mut inputs = vec![times, first];
        inputs.extend(&states);
        inputs.extend(self.outside(&body, 2 + states.len()));
        let mut types: Vec<TensorType> = kept.iter().map(|(ty, _)| ty.clone()).collect();
        for (ty, _) in &collected {
            // In bodies of bodies an extent that the data decides would have one value for each turn.
            let symbol = Symbol::new(&format!("extent_{}_{}", self.depth, self.graph.symbols.len()));
            self.graph.symbols.insert(symbol.clone(), (0, MOST_TURNS));
            let mut dims = vec![Expr::from(&symbol)];
            dims.extend(ty.dims.iter().cloned());
            types.push(TensorType::new(ty.dtype, dims));
        }
        let a = Attributes::new().with("body", body.graph).with("carried", states.len()).with("results", types);
        let made = self.region("loop", a, &inputs)?;
        for (n, (v, (_, facts))) in made.into_iter().zip(kept.into_iter().chain(collected)).enumerate() {
            if n < states.len() { self.values.push((v, facts)) } else { self.unread.push((v, facts)) }
        }
        Ok(())
    }

    fn scanned(&mut self) -> Result<(), No> {
        let states = self.states();
        let length = Expr::from(self.random.below(MOST_TURNS as usize + 1));
        let length = if !self.symbols.is_empty() && self.random.chance(50) { self.extent() } else { length };
        let mut body = self.inner();
        let own: Vec<ValueId> =
            states.iter().map(|&v| body.param(&self.ty(v), state_facts(self.ty(v).dtype))).collect();
        let (mut wholes, mut backward) = (Vec::new(), Vec::new());
        for _ in 0..1 + self.random.below(2) {
            let mut dims: Vec<Expr> = (0..self.random.below(3)).map(|_| self.extent()).collect();
            dims.insert(0, length.clone());
            if self.size(&dims) > MAX_ELEMENTS {
                return Err(No);
            }
            let dtype = self.dtype();
            let (whole, facts) = self.leaf(dtype, &dims);
            body.param(&TensorType::new(dtype, dims.split_off(1)), Facts { below: None, ..facts });
            wholes.push(whole);
            backward.push(self.random.below(2));
        }
        body.grow();
        let from = states.len() + wholes.len();
        let (kept, mut collected) = body.turn(&own);
        let most = self.most(&length).max(1);
        if collected.iter().any(|(ty, _)| self.size(&ty.dims).saturating_mul(most) > MAX_ELEMENTS) {
            return Err(No);
        }
        let mut inputs: Vec<ValueId> = states.iter().chain(&wholes).copied().collect();
        inputs.extend(self.outside(&body, from));
        for (ty, _) in &mut collected {
            ty.dims.insert(0, length.clone());
            *ty = TensorType::new(ty.dtype, ty.dims.clone());
        }
        let out_backward: Vec<usize> = collected.iter().map(|_| self.random.below(2)).collect();
        let types: Vec<TensorType> = kept.iter().chain(&collected).map(|(ty, _)| ty.clone()).collect();
        let zeros = |n: usize| vec![0usize; n];
        let a = Attributes::new()
            .with("body", Attribute::from(body.graph))
            .with("states", states.len())
            .with("axes", zeros(wholes.len()).as_slice())
            .with("backward", backward.as_slice())
            .with("out_axes", zeros(collected.len()).as_slice())
            .with("out_backward", out_backward.as_slice())
            .with("results", types);
        let made = self.region("scan", a, &inputs)?;
        self.values.extend(made.into_iter().zip(kept.into_iter().chain(collected).map(|(_, facts)| facts)));
        Ok(())
    }
}
