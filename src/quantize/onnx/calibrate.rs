//! Runs of a model on calibration data.
//!
//! Invariant: every sample is checked against the model before any runs: names, types, shapes, and that floats are finite.

use crate::data::{self, Wanted};
use crate::quantize::images::{self, Channels, is_image};
use crate::{Error, Observer, Options, compile, compile_graph, import_graph, npz};
use kiln_frontend::onnx::model::{Dim, Model, ValueType};
use kiln_ir::{DType, Tensor};
use kiln_passes::quantize::{Histogram, Moments, Range, moments, observing};
use kiln_runtime::cpu::CpuLevel;
use kiln_runtime::engine::{Context, ModelOptions};
use kiln_runtime::memory::Budget;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The inputs of one run.
#[derive(Clone, Debug)]
pub struct Sample {
    /// In the order of the model.
    pub inputs: Vec<Tensor>,
    /// Right classes, one for each row of the first output, where they are known.
    pub labels: Option<Vec<i64>>,
}

/// Reads samples from archives and images, or from all of a folder, in the order of their names. An array `labels` that is no input
/// of the model holds right classes. Where the model's first axis is 1 and all arrays have more there, each row is a sample.
///
/// # Errors
/// [`Error::Data`] where there is no sample, or one does not fit the model or is not finite.
pub fn samples(
    model: &Model,
    paths: &[PathBuf],
    channels: &Channels,
    budget: &Budget,
) -> Result<(Vec<Sample>, String), Error> {
    let wanted = data::wanted(model);
    let mut hasher = blake3::Hasher::new();
    let mut found = Vec::new();
    for path in paths {
        let mut files = vec![path.clone()];
        if path.is_dir() {
            files = listed(path)?;
        }
        for file in files {
            if is_image(&file) {
                let bytes = std::fs::read(&file).map_err(|source| Error::Read { path: file.clone(), source })?;
                hasher.update(&bytes);
                let inputs = vec![images::input(&file, &bytes, &wanted, channels)?];
                found.push(Sample { inputs, labels: None });
                continue;
            }
            let arrays = npz::read(&file, budget)?;
            for (name, tensor) in &arrays {
                hasher.update(name.as_bytes()).update(tensor.bytes());
            }
            found.extend(of_arrays(arrays, &wanted, &file)?);
        }
    }
    if found.is_empty() {
        let places: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
        return Err(Error::data(
            places.join(", "),
            "there is no calibration data in it: no .npz file with a sample, no image",
        ));
    }
    Ok((found, hasher.finalize().to_hex().to_string()))
}

fn listed(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let fail = |source| Error::Read { path: folder.into(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|e| e == "npz") || is_image(&path) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn of_arrays(arrays: Vec<(String, Tensor)>, wanted: &[Wanted], file: &Path) -> Result<Vec<Sample>, Error> {
    let place = file.display().to_string();
    let names = || wanted.iter().map(|w| format!("{:?}", w.name)).collect::<Vec<_>>().join(", ");
    let (mut labels, mut named) = (None, BTreeMap::new());
    for (name, tensor) in arrays {
        if wanted.iter().any(|w| w.name == name) {
            named.insert(name, tensor);
        } else if name == "labels" {
            let found = tensor.to_i64().or_else(|| Some(tensor.to_f64()?.into_iter().map(|v| v as i64).collect()));
            labels = Some(found.ok_or_else(|| Error::data(&place, "the labels are no integers"))?);
        } else {
            let message = format!("the model has no input {name:?}; its inputs are {}", names());
            return Err(Error::data(place, message));
        }
    }
    let mut inputs = Vec::with_capacity(wanted.len());
    let mut parts = None;
    for w in wanted {
        let fail = |message: String| Error::data(format!("{place}: array {:?}", w.name), message);
        let tensor = named.get(&w.name);
        let tensor = tensor.ok_or_else(|| Error::data(&place, format!("there is no array for input {:?}", w.name)))?;
        let ValueType::Tensor(ty) = &w.ty else { return Err(fail(format!("the model wants {}", w.ty))) };
        let tensor = npz::narrowed(tensor, ty.dtype).map_err(fail)?;
        if tensor.dtype() != ty.dtype {
            return Err(fail(format!("it is {}, the model wants {}", tensor.dtype(), ty.dtype)));
        }
        let shape = tensor.shape();
        if let Some(dims) = &ty.shape {
            let same = |(d, &n): (&Dim, &usize)| !matches!(d, Dim::Fixed(fixed) if *fixed != n);
            let rest = dims.len() == shape.len() && dims.iter().zip(shape).skip(1).all(same);
            let whole = rest && dims.iter().zip(shape).take(1).all(same);
            let rows = rest && dims.first() == Some(&Dim::Fixed(1)) && shape.first().is_some_and(|&n| n > 1);
            if !whole && !rows {
                return Err(fail(format!("its shape is {shape:?}, the model wants {}", w.ty)));
            }
            if rows {
                match parts {
                    Some(n) if Some(&n) != shape.first() => {
                        return Err(fail(format!("it has {} rows, another array has {n}", shape[0])));
                    }
                    _ => parts = shape.first().copied(),
                }
            }
        }
        if tensor.dtype().is_float() && tensor.to_f64().is_some_and(|v| v.iter().any(|v| !v.is_finite())) {
            return Err(fail("it holds NaN or infinite values".into()));
        }
        inputs.push(tensor);
    }
    let Some(parts) = parts else { return Ok(vec![Sample { inputs, labels }]) };
    let row = |tensor: &Tensor, n: usize| -> Option<Tensor> {
        let mut shape = tensor.shape().to_vec();
        if shape.first() != Some(&parts) {
            return Some(tensor.clone());
        }
        *shape.first_mut()? = 1;
        let size = tensor.bytes().len() / parts;
        Tensor::new(tensor.dtype(), shape, tensor.shared_bytes().slice(n * size..(n + 1) * size)).ok()
    };
    let sample = |n: usize| {
        let inputs: Option<Vec<Tensor>> = inputs.iter().map(|t| row(t, n)).collect();
        let labels = labels.as_ref().and_then(|l| l.get(n)).map(|&l| vec![l]);
        let sample = inputs.map(|inputs| Sample { inputs, labels });
        sample.ok_or_else(|| Error::Internal("a row of a tensor".into()))
    };
    (0..parts).map(sample).collect()
}

/// What a value was on all samples.
#[derive(Clone, Debug)]
pub struct Seen {
    range: Range,
    /// How its elements are spread.
    pub histogram: Histogram,
    /// The sums along axis 1, and along the last axis; and how many elements make one.
    sums: [(Vec<f64>, u64); 2],
    /// The greatest magnitudes along the last axis.
    pub peaks: Vec<f32>,
}

impl Default for Seen {
    fn default() -> Seen {
        let range = Range::default();
        Seen { range, histogram: Histogram::new(range), sums: Default::default(), peaks: Vec::new() }
    }
}

impl Seen {
    /// The means of channels: along axis 1 for convolutions, along the last axis for products. Empty where its extent changed.
    pub fn means(&self, convolution: bool) -> Vec<f32> {
        let (sums, count) = &self.sums[usize::from(!convolution)];
        sums.iter().map(|s| (s / (*count).max(1) as f64) as f32).collect()
    }

    fn add(&mut self, shape: &[usize], values: &[f32]) {
        self.range = self.range.with(values);
        let last = shape.len().saturating_sub(1);
        for (at, axis) in [(0, 1.min(last)), (1, last)] {
            let extent = shape.get(axis).copied().unwrap_or(1);
            let inner: usize = shape.iter().skip(axis + 1).product();
            let (sums, count) = &mut self.sums[at];
            sums.resize(sums.len().max(extent), 0.0);
            for (n, &v) in values.iter().enumerate() {
                sums[n / inner.max(1) % extent.max(1)] += f64::from(v);
            }
            *count += (values.len() / extent.max(1)) as u64;
        }
        let extent = shape.last().copied().unwrap_or(1).max(1);
        self.peaks.resize(self.peaks.len().max(extent), 0.0);
        values.iter().enumerate().for_each(|(n, v)| self.peaks[n % extent] = self.peaks[n % extent].max(v.abs()));
    }
}

/// How models run for calibration and evaluation.
#[derive(Clone, Debug)]
pub struct Runs {
    /// Options of the compilation.
    pub options: Options,
    /// The CPU level and number of threads.
    pub place: (CpuLevel, usize),
    /// Memory that may be used.
    pub budget: Budget,
}

impl Runs {
    /// The model, ready to run; values that decide shapes come from the sample.
    fn context(
        &self,
        model: &Model,
        taps: &[String],
        sample: &Sample,
        observer: &mut dyn Observer,
    ) -> Result<Context, Error> {
        let mut options = Options { levels: vec![self.place.0], taps: taps.to_vec(), ..self.options.clone() };
        let named: BTreeMap<String, Tensor> =
            data::wanted(model).into_iter().map(|w| w.name).zip(sample.inputs.iter().cloned()).collect();
        let compiled = loop {
            match compile(model, &options, observer) {
                Err(error) if options.learn(&error, &named) => {}
                done => break done?,
            }
        };
        let loaded = compiled.load(&ModelOptions::default())?;
        Ok(Context::new(&loaded, self.place.1, &self.budget)?)
    }

    /// The outputs for each sample.
    ///
    /// # Errors
    /// What compiling and running say.
    pub fn outputs(
        &self,
        model: &Model,
        samples: &[Sample],
        observer: &mut dyn Observer,
    ) -> Result<Vec<Vec<Tensor>>, Error> {
        let Some(first) = samples.first() else { return Ok(Vec::new()) };
        let mut context = self.context(model, &[], first, observer)?;
        samples.iter().map(|s| Ok(context.run(&s.inputs)?)).collect()
    }

    /// What the named values are on the samples; how they are spread only where `histograms` is set.
    ///
    /// # Errors
    /// A value is not finite on the data, or what compiling and running say.
    pub fn seen(
        &self,
        model: &Model,
        names: &[String],
        samples: &[Sample],
        histograms: bool,
        observer: &mut dyn Observer,
    ) -> Result<BTreeMap<String, Seen>, Error> {
        /// Gets the name, shape and elements of a value.
        type Visit<'v> = dyn FnMut(&str, &[usize], &[f32]) -> Result<(), Error> + 'v;
        let Some(first) = samples.first() else { return Ok(BTreeMap::new()) };
        let inputs: Vec<String> = data::wanted(model).into_iter().map(|w| w.name).collect();
        let (given, taps): (Vec<String>, Vec<String>) = names.iter().cloned().partition(|n| inputs.contains(n));
        let mut order: Vec<String> = model.graph.outputs.iter().map(|o| o.name.clone()).collect();
        let more: Vec<String> = taps.iter().filter(|t| !order.contains(t)).cloned().collect();
        order.extend(more);
        let mut context = self.context(model, &order, first, observer)?;
        let mut each = |visit: &mut Visit<'_>| -> Result<(), Error> {
            for sample in samples {
                let made = context.run(&sample.inputs)?;
                let made = order.iter().zip(&made).filter(|(name, _)| taps.contains(name));
                let read = inputs.iter().zip(&sample.inputs).filter(|(name, _)| given.contains(name));
                for (name, tensor) in made.chain(read) {
                    let values = tensor.to_f32().filter(|_| tensor.dtype() == DType::F32);
                    let values = values.ok_or_else(|| Error::Internal(format!("{name:?} is not f32")))?;
                    visit(name, tensor.shape(), &values)?;
                }
            }
            Ok(())
        };
        let mut found: BTreeMap<String, Seen> = BTreeMap::new();
        each(&mut |name, shape, values| {
            if values.iter().any(|v| !v.is_finite()) {
                let message = "it is NaN or infinite on the calibration data, so it has no range";
                return Err(Error::data(format!("value {name:?}"), message));
            }
            found.entry(name.into()).or_default().add(shape, values);
            Ok(())
        })?;
        found.values_mut().for_each(|s| s.histogram = Histogram::new(s.range));
        if histograms {
            each(&mut |name, _, values| {
                if let Some(seen) = found.get_mut(name) {
                    seen.histogram.add(values);
                }
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// Moments of what is named, over its last axis.
    ///
    /// # Errors
    /// What compiling and running say.
    pub fn moments(
        &self,
        model: &Model,
        names: &[String],
        samples: &[Sample],
        observer: &mut dyn Observer,
    ) -> Result<Calibration, Error> {
        let Some(first) = samples.first() else { return Ok(Calibration::new()) };
        let inputs: Vec<String> = data::wanted(model).into_iter().map(|w| w.name).collect();
        let taps: Vec<String> = names.iter().filter(|n| !inputs.contains(n)).cloned().collect();
        let mut options = Options { levels: vec![self.place.0], taps, ..self.options.clone() };
        let named: BTreeMap<String, Tensor> = inputs.iter().cloned().zip(first.inputs.iter().cloned()).collect();
        let graph = loop {
            match import_graph(model, &options) {
                Err(error) if options.learn(&error, &named) => {}
                done => break done?,
            }
        };
        let mut values = Vec::with_capacity(names.len());
        for name in names {
            let output = graph.outputs.iter().find(|(n, _)| **n == **name).map(|(_, v)| *v);
            let place = inputs.iter().position(|n| n == name).and_then(|at| graph.inputs.get(at).copied());
            values.push(output.or(place).ok_or_else(|| Error::Internal(format!("no value {name:?}")))?);
        }
        let observed = observing(&graph, &values).map_err(|e| Error::Internal(e.to_string()))?;
        let loaded = compile_graph(observed, &options, observer)?.load(&ModelOptions::default())?;
        let mut context = Context::new(&loaded, self.place.1, &self.budget)?;
        let mut all = vec![Moments::default(); names.len()];
        for sample in samples {
            let found = moments(&context.run(&sample.inputs)?);
            let found = found.ok_or_else(|| Error::Internal("statistics are not f32".into()))?;
            all.iter_mut().zip(&found).for_each(|(all, more)| all.add(more));
        }
        for (name, m) in names.iter().zip(&all) {
            if m.products.iter().any(|v| !v.is_finite()) {
                let message = "it is NaN or infinite on the calibration data";
                return Err(Error::data(format!("value {name:?}"), message));
            }
        }
        Ok(names.iter().cloned().zip(all.into_iter().map(Arc::new)).collect())
    }
}

/// Moments by the name of the value.
pub type Calibration = BTreeMap<String, Arc<Moments>>;
