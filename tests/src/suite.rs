//! Cases of the ONNX backend suite, as its dump in a folder has them, and what running one comes to.
//!
//! Invariant: a case passes only if every output of every data set agrees on every CPU level that this machine runs.

use kiln::data::{self, From};
use kiln::ir::plan::Step;
use kiln::ir::{DType, Tensor};
use kiln::onnx::model::{Dim, Limits, Model, ValueType};
use kiln::onnx::value::{self, Value};
use kiln::runtime::cpu::Machine;
use kiln::runtime::engine::{Context, ModelOptions};
use kiln::runtime::memory::Budget;
use kiln::{Error, Kind, Options, Silent, Source};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Memory that a case may take.
const BUDGET: u64 = 4 << 30;

/// What a case came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything ran in kernels, and all outputs agree.
    Kernels,
    /// All outputs agree; this many steps ran on the host.
    Host(usize),
    /// Not supported: why, a group to a line.
    Unsupported(Vec<String>),
    /// An output differs, or a sound case was called invalid.
    Wrong(String),
    /// A panic, a signal, the time limit, or an error that is Kiln's own.
    Died(String),
}

/// A case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Folder of the suite and name, such as `node/test_abs`.
    pub name: String,
    /// The model.
    pub model: PathBuf,
    /// `test_data_set_N` folders; none for `light` cases.
    pub data: Vec<PathBuf>,
    /// The only output of a `light` case.
    pub light_output: Option<PathBuf>,
}

/// Allowed difference: `|a - b| <= atol + rtol * |b|`, as in the suite, or what [`compare`] says.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Relative part.
    pub rtol: f64,
    /// Absolute part.
    pub atol: f64,
}

/// Cases whose outputs are random numbers, which nothing can be compared with.
pub fn is_random(name: &str) -> bool {
    let case = name.rsplit('/').next().unwrap_or(name);
    case.starts_with("test_bernoulli") || (case.starts_with("test_training_dropout") && !case.contains("zero_ratio"))
}

/// All cases in these folders of the suite, sorted by name.
///
/// # Errors
/// What the system says.
pub fn cases(suite: &Path, folders: &[&str]) -> std::io::Result<Vec<Case>> {
    let mut cases = Vec::new();
    for &kind in folders {
        for entry in std::fs::read_dir(suite.join(kind))? {
            let path = entry?.path();
            let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            let name = format!("{kind}/{stem}");
            if path.is_dir() {
                let mut data = Vec::new();
                for entry in std::fs::read_dir(&path)? {
                    let entry = entry?.path();
                    if entry.is_dir() {
                        data.push(entry);
                    }
                }
                data.sort();
                cases.push(Case { name, model: path.join("model.onnx"), data, light_output: None });
            } else if path.extension().is_some_and(|e| e == "onnx") {
                let output = path.with_file_name(format!("{stem}_output_0.pb"));
                cases.push(Case { name, model: path, data: vec![], light_output: Some(output) });
            }
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

/// The tolerances in the suite's file, by case name without folder.
///
/// # Errors
/// The file is not there, or no JSON object of objects.
pub fn tolerances(suite: &Path) -> Result<BTreeMap<String, Tolerance>, String> {
    let text = std::fs::read_to_string(suite.join("tolerances.json")).map_err(|e| format!("tolerances.json: {e}"))?;
    let all: BTreeMap<String, BTreeMap<String, f64>> =
        serde_json::from_str(&text).map_err(|e| format!("tolerances.json: {e}"))?;
    let one = |t: &BTreeMap<String, f64>| Tolerance {
        rtol: t.get("rtol").copied().unwrap_or(1e-3),
        atol: t.get("atol").copied().unwrap_or(1e-7),
    };
    Ok(all.iter().map(|(name, t)| (name.clone(), one(t))).collect())
}

/// Runs a case in this process.
pub fn run(case: &Case, tolerance: Tolerance) -> Outcome {
    match try_run(case, tolerance) {
        Ok(outcome) => outcome,
        Err(error) => match (error.kind(), &error) {
            (Kind::Unsupported, Error::Import(errors)) => {
                Outcome::Unsupported(errors.unsupported.iter().map(|u| format!("{}: {}", u.op, u.message)).collect())
            }
            (Kind::Unsupported, error) => Outcome::Unsupported(vec![error.to_string()]),
            (Kind::Invalid, error) => Outcome::Wrong(format!("called invalid: {error}")),
            (Kind::Mismatch, error) => Outcome::Wrong(error.to_string()),
            (Kind::Internal | Kind::Usage | Kind::Limit, error) => Outcome::Died(error.to_string()),
        },
    }
}

fn try_run(case: &Case, tolerance: Tolerance) -> Result<Outcome, Error> {
    let onnx = Source::open(&case.model)?.model(&Limits::default())?;
    let budget = Budget::new(BUDGET);
    let mut hosts = 0;
    let light = case.light_output.iter().map(|output| light_data(&onnx, output));
    let sets = case.data.iter().map(|folder| folder_data(&onnx, folder, &budget));
    for set in sets.chain(light) {
        let (inputs, expected) = set?;
        hosts = hosts.max(run_set(&onnx, &inputs, &expected, tolerance, &budget)?);
    }
    Ok(if hosts == 0 { Outcome::Kernels } else { Outcome::Host(hosts) })
}

type Set = (Vec<Tensor>, Vec<Tensor>);

fn folder_data(onnx: &Model, folder: &Path, budget: &Budget) -> Result<Set, Error> {
    let values = data::values(&From::Folder(folder.into()), &data::wanted(onnx), &|_| None, budget)?;
    let inputs: Option<Vec<Tensor>> = values.into_iter().map(Value::into_tensor).collect();
    let inputs = inputs.ok_or_else(|| Error::Unsupported("an input that no graph takes".into()))?;
    let mut expected = Vec::new();
    for (n, output) in onnx.graph.outputs.iter().enumerate() {
        expected.push(read(&folder.join(format!("output_{n}.pb")), output.ty.as_ref())?);
    }
    Ok((inputs, expected))
}

/// A `light` case runs on `arange(n) / n`.
fn light_data(onnx: &Model, output: &Path) -> Result<Set, Error> {
    let input = |w: &data::Wanted| {
        let dims = w.ty.tensor().and_then(|t| t.shape.clone()).unwrap_or_default();
        let fixed = |d: &Dim| if let Dim::Fixed(n) = d { *n } else { 1 };
        let shape: Vec<usize> = dims.iter().map(fixed).collect();
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| (i as f64 / count as f64) as f32).collect();
        Tensor::from_f32(&shape, &values).map_err(|e| Error::data(&w.name, e))
    };
    let inputs = data::wanted(onnx).iter().map(input).collect::<Result<_, _>>()?;
    Ok((inputs, vec![read(output, onnx.graph.outputs.first().and_then(|o| o.ty.as_ref()))?]))
}

fn read(path: &Path, ty: Option<&ValueType>) -> Result<Tensor, Error> {
    let bytes = kiln::runtime::file::map(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let value = match ty {
        Some(ty) => value::decode(bytes, ty, BUDGET),
        None => value::decode_tensor(bytes, BUDGET).map(Value::Tensor),
    };
    match value {
        Ok(value) => value.into_tensor().ok_or_else(|| Error::Unsupported("an output that no graph gives".into())),
        Err(e) => Err(Error::data(path.display(), e)),
    }
}

/// Compiles for the inputs' shapes, runs every level and compares; how many steps ran on the host.
fn run_set(
    onnx: &Model,
    inputs: &[Tensor],
    expected: &[Tensor],
    tolerance: Tolerance,
    budget: &Budget,
) -> Result<usize, Error> {
    let names = data::wanted(onnx).into_iter().map(|w| w.name);
    let named: BTreeMap<String, Tensor> = names.zip(inputs.iter().cloned()).collect();
    let here = Machine::detect();
    let levels = kiln::default_levels().into_iter().filter(|level| here.supports(*level)).collect();
    let dense = named.iter().filter(|(_, tensor)| tensor.tensors().is_none());
    let shapes = dense.map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
    let mut options = Options { shapes, levels, threads: 1, ..Options::default() };
    let compiled = loop {
        match kiln::compile(onnx, &options, &mut Silent) {
            Err(error) if options.learn(&error, &named) => {}
            done => break done?,
        }
    };
    for code in &compiled.code {
        let model = compiled.load(&ModelOptions { levels: Some(vec![code.level]), ..ModelOptions::default() })?;
        let one = Context::new(&model, 1, budget)?.run(inputs)?;
        for ((name, _), (found, expected)) in model.plan().outputs.iter().zip(one.iter().zip(expected)) {
            compare(found, expected, tolerance)
                .map_err(|e| Error::Mismatch(format!("{name} on {}: {e}", code.level)))?;
        }
    }
    Ok(compiled.plan.steps.iter().filter(|s| matches!(s, Step::Host { .. })).count())
}

/// Whether a tensor is what the suite expects.
///
/// # Errors
/// What differs.
pub fn compare(found: &Tensor, expected: &Tensor, tolerance: Tolerance) -> Result<(), String> {
    if found.dtype() != expected.dtype() || found.shape() != expected.shape() {
        let name = |t: &Tensor| format!("{}{:?}", t.dtype(), t.shape());
        return Err(format!("{} instead of {}", name(found), name(expected)));
    }
    if let (Some(found), Some(expected)) = (found.tensors(), expected.tensors()) {
        return found.iter().zip(expected).try_for_each(|(a, b)| compare(a, b, tolerance));
    }
    if !expected.dtype().is_float() && !matches!(expected.dtype(), DType::C64 | DType::C128) {
        // Quantized results of engines differ by a step where a tie or a last rounding does; cases of ONNX's own never allow it.
        let close =
            |(a, b): (Vec<i64>, Vec<i64>)| a.iter().zip(&b).all(|(a, b)| a.abs_diff(*b) as f64 <= tolerance.atol);
        let near = tolerance.atol >= 1.0 && found.to_i64().zip(expected.to_i64()).is_some_and(close);
        return if near || found == expected { Ok(()) } else { Err(format!("{found:?} instead of {expected:?}")) };
    }
    let (Some(a), Some(b)) = (parts(found), parts(expected)) else { return Err("not comparable".into()) };
    let Tolerance { rtol, atol } = tolerance;
    // Sums in another order differ by roundings of their largest terms, which the suite's tolerances do not know of:
    // two units in the last place of the largest element are no difference.
    let largest = b.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
    let atol = atol.max(2.0 * epsilon(expected.dtype()) * largest);
    let near = |a: f64, b: f64| {
        a == b || (a.is_nan() && b.is_nan()) || (b.is_finite() && (a - b).abs() <= atol + rtol * b.abs())
    };
    match a.iter().zip(&b).position(|(a, b)| !near(*a, *b)) {
        None => Ok(()),
        Some(at) => Err(format!("element {at} is {} instead of {}", a[at], b[at])),
    }
}

/// The unit in the last place of 1; 0 for types in which tests state exact results.
fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 1.0 / 128.0,
        DType::F16 => 1.0 / 1024.0,
        DType::F32 | DType::C64 => f64::from(f32::EPSILON),
        DType::F64 | DType::C128 => f64::EPSILON,
        _ => 0.0,
    }
}

/// The elements as f64, real and imaginary parts one after another.
fn parts(tensor: &Tensor) -> Option<Vec<f64>> {
    let part = match tensor.dtype() {
        DType::C64 => DType::F32,
        DType::C128 => DType::F64,
        _ => return tensor.to_f64(),
    };
    let count = tensor.len() * 2;
    Tensor::new(part, vec![count], tensor.shared_bytes()).ok()?.to_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_is_the_suites() {
        let t = |v: &[f32]| Tensor::from_f32(&[v.len()], v).unwrap();
        let tolerance = Tolerance { rtol: 1e-3, atol: 1e-7 };
        assert!(compare(&t(&[1.0, f32::NAN]), &t(&[1.0005, f32::NAN]), tolerance).is_ok());
        assert!(compare(&t(&[1.0]), &t(&[1.01]), tolerance).is_err());
        assert!(compare(&t(&[f32::INFINITY]), &t(&[1.0]), tolerance).is_err());
        assert!(compare(&t(&[1.0]), &t(&[f32::INFINITY]), tolerance).is_err());
        assert!(compare(&t(&[1.0]), &t(&[1.0, 1.0]), tolerance).is_err());
        let i = |v: i64| Tensor::from_i64(&[1], &[v]).unwrap();
        assert!(compare(&i(1000), &i(1001), tolerance).is_err());
        let steps = Tolerance { rtol: 1e-3, atol: 1.01 };
        assert!(compare(&i(1000), &i(1001), steps).is_ok() && compare(&i(1000), &i(1002), steps).is_err());
    }

    #[test]
    fn random_cases_are_known() {
        assert!(is_random("node/test_bernoulli_seed") && is_random("node/test_training_dropout_default"));
        assert!(!is_random("node/test_training_dropout_zero_ratio") && !is_random("node/test_dropout_default"));
    }
}
