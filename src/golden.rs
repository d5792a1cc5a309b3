//! The golden section of an artifact: seeded inputs and what the portable level made of them.
//!
//! Invariant: the section is a sequence of length-delimited `TensorProto` messages, first the plan's inputs, then its
//! outputs, in the plan's order.

use crate::{Compiled, Error, compare, random};
use bytes::Bytes;
use kiln_frontend::onnx::tensor::to_proto;
use kiln_frontend::onnx::value;
use kiln_ir::plan::{Plan, nominal};
use kiln_ir::{DType, Tensor};
use kiln_passes::pipeline::Precision;
use kiln_runtime::cpu::CpuLevel;
use kiln_runtime::engine::{Context, Model, ModelOptions};
use kiln_runtime::memory::Budget;
use prost::Message;

/// What decoding one tensor may take besides its data.
const MAX_DECODED: u64 = 1 << 32;

impl Compiled {
    /// Runs the portable level on seeded inputs and keeps inputs and outputs as the golden section.
    ///
    /// # Errors
    /// There is no portable code, or the run fails.
    pub fn add_golden(&mut self, seed: u64, budget: &Budget) -> Result<(), Error> {
        let options = ModelOptions { levels: Some(vec![CpuLevel::Portable]), ..ModelOptions::default() };
        let model = self.load(&options)?;
        let plan = model.plan();
        let mut ends = plan.inputs.iter().chain(&plan.outputs);
        if let Some((name, _)) = ends.find(|(_, slot)| plan.slots[*slot].ty.dtype == DType::Seq) {
            return Err(Error::Unsupported(format!("{name:?} is no tensor: golden results are of tensors only")));
        }
        let mut context = Context::new(&model, 1, budget)?;
        let (inputs, outputs) = accepted(plan, seed, |inputs| Ok(context.run(inputs)?))?;
        self.golden = Some(encode(inputs.iter().chain(&outputs)));
        Ok(())
    }
}

/// Seeded inputs that the model accepts, with what `run` makes of them.
///
/// Ranges of free dims say what each may be, not what they may be together: a past and new tokens that each fit a table of positions need not
/// fit it both. The dims that estimates assume ([`nominal`]) are tried first, then halves of them; then the same with all integers 0, since 1 is
/// no row of a table that has one.
///
/// # Errors
/// What the largest inputs were refused for, where the model takes none of them; at once what is not the inputs' fault.
fn accepted<T>(
    plan: &Plan,
    seed: u64,
    mut run: impl FnMut(&[Tensor]) -> Result<T, Error>,
) -> Result<(Vec<Tensor>, T), Error> {
    let ranges = plan.ranges();
    let mut first = None;
    for zero in [false, true] {
        let mut size = nominal((i64::MIN, i64::MAX));
        while size > 0 {
            let of = |slot| random::Input::of(&plan.slots[slot].ty, &ranges, size);
            if let Some(types) = plan.inputs.iter().map(|(_, slot)| of(*slot)).collect::<Option<Vec<_>>>() {
                let mut inputs = random::inputs(&types, seed)?;
                if zero {
                    inputs = inputs.into_iter().map(without_integers).collect::<Result<_, _>>()?;
                }
                match run(&inputs) {
                    Ok(made) => return Ok((inputs, made)),
                    Err(Error::Run(error)) if error.is_data() => _ = first.get_or_insert(Error::Run(error)),
                    Err(other) => return Err(other),
                }
            }
            size /= 2;
        }
    }
    Err(first.unwrap_or_else(|| Error::Unsupported("inputs cannot be made: a free dim is no size".into())))
}

/// The tensor, with zeros where it has integers.
fn without_integers(tensor: Tensor) -> Result<Tensor, Error> {
    if !tensor.dtype().is_int() {
        return Ok(tensor);
    }
    Tensor::zeros(tensor.dtype(), tensor.shape()).map_err(|e| Error::data("an input", e))
}

fn encode<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Vec<u8> {
    tensors.flat_map(|t| to_proto(t, "").encode_length_delimited_to_vec()).collect()
}

fn decode(mut bytes: Bytes) -> Result<Vec<Tensor>, Error> {
    let broken = |e: &dyn std::fmt::Display| Error::data("the golden section", e);
    let mut tensors = Vec::new();
    while !bytes.is_empty() {
        let length = prost::decode_length_delimiter(&mut bytes).map_err(|e| broken(&e))?;
        if length > bytes.len() {
            return Err(broken(&"it ends inside a tensor"));
        }
        tensors.push(value::decode_tensor(bytes.split_to(length), MAX_DECODED).map_err(|e| broken(&e))?);
    }
    Ok(tensors)
}

/// The inputs and outputs of a golden section.
///
/// # Errors
/// The section does not hold what the plan asks for.
pub fn read(section: &[u8], plan: &Plan) -> Result<(Vec<Tensor>, Vec<Tensor>), Error> {
    let mut inputs = decode(Bytes::copy_from_slice(section))?;
    let (wanted, found) = (plan.inputs.len() + plan.outputs.len(), inputs.len());
    if wanted != found {
        return Err(Error::data("the golden section", format!("it has {found} tensors, the plan {wanted}")));
    }
    let outputs = inputs.split_off(plan.inputs.len());
    Ok((inputs, outputs))
}

/// What a self-test found.
#[derive(Debug)]
pub struct SelfTest {
    /// Whether the expected outputs are the artifact's own, rather than those of its lowest level here.
    pub golden: bool,
    /// What a difference may be.
    pub tolerance: f64,
    /// For each level that runs here and each output: the difference from what is expected.
    pub levels: Vec<(CpuLevel, Vec<(String, compare::Difference)>)>,
}

/// Runs every level of an artifact that this machine has, with one thread and with two, and compares.
///
/// # Errors
/// [`Error::Mismatch`] where one and two threads differ in a bit, or a run fails.
pub fn self_test(load: &dyn Fn(&ModelOptions) -> Result<Model, Error>, budget: &Budget) -> Result<SelfTest, Error> {
    let first = load(&ModelOptions::default())?;
    let plan = first.plan().clone();
    let stored = first.artifact().section(kiln_runtime::artifact::GOLDEN).ok();
    let (inputs, mut expected) = match stored {
        Some(section) => read(section, &plan).map(|(i, o)| (i, Some(o)))?,
        None => {
            let mut context = Context::new(&first, 1, budget)?;
            let (inputs, _) = accepted(&plan, 0, |inputs| Ok(context.run(inputs)?))?;
            (inputs, None)
        }
    };
    let golden = expected.is_some();
    let precision = first.artifact().options().get("precision").and_then(|p| p.parse::<Precision>().ok());
    let rounded = precision.and_then(Precision::factors);
    let here = kiln_runtime::cpu::Machine::detect();
    let levels: Vec<CpuLevel> = first.artifact().levels().filter(|level| here.supports(*level)).collect();
    drop(first);
    let mut results = Vec::new();
    for level in levels {
        let model =
            load(&ModelOptions { levels: Some(vec![level]), verify_weights: false, ..ModelOptions::default() })?;
        let one = Context::new(&model, 1, budget)?.run(&inputs)?;
        let two = Context::new(&model, 2, budget)?.run(&inputs)?;
        if one != two {
            return Err(Error::Mismatch(format!("level {level}: one and two threads give different bits")));
        }
        let expected = expected.get_or_insert_with(|| one.clone());
        let names = plan.outputs.iter().map(|(name, _)| name.to_string());
        let compared = expected.iter().zip(&one).map(|(want, found)| compare::difference(want, found));
        results.push((level, names.zip(compared).collect()));
    }
    let tolerance = compare::tolerance(plan.slots.iter().map(|(_, slot)| slot.ty.dtype).chain(rounded));
    Ok(SelfTest { golden, tolerance, levels: results })
}
