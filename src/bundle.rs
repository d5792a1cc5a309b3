//! Several programs over one set of weights.
//!
//! Invariant: each constant is stored once for each layout in which some program reads it, wherever it came from.

use crate::{Compiled, Error, VERSION, write_weights};
use kiln_ir::DType;
use kiln_ir::layout::Layout;
use kiln_ir::plan::{Place, Plan, SlotId};
use kiln_passes::plan::Weight;
use kiln_runtime::artifact::{self, Artifact, LoadOptions, Manifest, Section};
use kiln_runtime::engine::LoadError;
use kiln_runtime::memory::{ALIGNMENT, Budget};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Programs that become one artifact. The first one is the artifact's own, which every command runs; the others are entries with
/// names, see [`artifact::of_entry`].
#[derive(Debug, Default)]
pub struct Bundle {
    programs: Vec<(String, Compiled)>,
    weights: Vec<Weight>,
    weight_bytes: u64,
    known: HashMap<Key, u64>,
    texts: BTreeMap<String, Vec<u8>>,
}

/// What makes two weights the same bytes in a file.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    hash: [u8; 32],
    dtype: DType,
    shape: Vec<usize>,
    layout: Layout,
}

impl Bundle {
    /// Adds a program; the first one must have the empty name. Weights that are there already are shared.
    pub fn add(&mut self, entry: &str, mut program: Compiled) {
        let slots: Vec<SlotId> = program.plan.slots.ids().collect();
        let at = |plan: &Plan, slot: SlotId| match plan.slots[slot].place {
            Place::Weights(at) => Some(at),
            Place::Input(_) | Place::Output(_) | Place::Arena(_) | Place::Region(_) | Place::Host => None,
        };
        let sizes = slots.iter().filter_map(|&s| Some((at(&program.plan, s)?, program.plan.slot_bytes(s))));
        let sizes: HashMap<u64, u64> = sizes.collect();
        let mut moved = HashMap::new();
        for weight in std::mem::take(&mut program.weights) {
            let tensor = &weight.tensor;
            let key = Key {
                hash: *blake3::hash(tensor.bytes()).as_bytes(),
                dtype: tensor.dtype(),
                shape: tensor.shape().to_vec(),
                layout: weight.layout.clone(),
            };
            let (from, end) = (weight.offset, self.weight_bytes);
            let to = *self.known.entry(key).or_insert(end);
            if to == end {
                let bytes = sizes.get(&from).copied().unwrap_or_default();
                self.weight_bytes = end.saturating_add(bytes).next_multiple_of(ALIGNMENT as u64);
                self.weights.push(Weight { offset: end, ..weight });
            }
            moved.insert(from, to);
        }
        for slot in slots {
            if let Some(to) = at(&program.plan, slot).and_then(|from| moved.get(&from)) {
                program.plan.slots[slot].place = Place::Weights(*to);
            }
        }
        self.programs.push((entry.into(), program));
        // All plans are of the same section.
        for (_, program) in &mut self.programs {
            program.plan.weight_bytes = self.weight_bytes;
        }
    }

    /// Adds a section of the caller's own.
    pub fn attach(&mut self, section: &str, bytes: Vec<u8>) {
        self.texts.insert(section.into(), bytes);
    }

    /// The programs with their entries' names.
    pub fn programs(&self) -> &[(String, Compiled)] {
        &self.programs
    }

    /// Bytes of the weights that all programs share.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn manifest(&self) -> Manifest {
        let first = self.programs.first();
        first.map_or_else(|| Manifest { compiler: VERSION.into(), ..Manifest::default() }, |(_, p)| p.manifest.clone())
    }

    /// Hands the sections of the artifact over.
    fn with_sections<T>(&self, write: impl FnOnce(Vec<Section<'_>>) -> Result<T, Error>) -> Result<T, Error> {
        let texts = self.programs.iter().map(|(_, program)| program.texts()).collect::<Result<Vec<_>, _>>()?;
        let mut sections: Vec<Section<'_>> = Vec::new();
        for ((entry, program), texts) in self.programs.iter().zip(&texts) {
            sections.extend(program.program_sections(entry, texts));
        }
        let weights = |out: &mut dyn Write| write_weights(&self.weights, self.weight_bytes, out);
        sections.push(Section::streamed(artifact::WEIGHTS, self.weight_bytes, weights));
        sections.extend(self.texts.iter().map(|(name, bytes)| Section::new(name.as_str(), bytes)));
        write(sections)
    }

    /// Writes the artifact and returns its size in bytes. The file appears complete or not at all.
    ///
    /// # Errors
    /// [`Error::Artifact`].
    pub fn write(&self, path: &Path) -> Result<u64, Error> {
        self.with_sections(|sections| Ok(artifact::write(path, &self.manifest(), sections)?))
    }

    /// The artifact in memory, without a file.
    ///
    /// # Errors
    /// [`Error::Artifact`] where the memory is not to be had.
    pub fn into_artifact(self) -> Result<Arc<Artifact>, Error> {
        // The caller's budget counts the weights when a context is made.
        let budget = Budget::unlimited();
        let buffer = self.with_sections(|sections| Ok(artifact::to_buffer(&budget, &self.manifest(), sections)?))?;
        drop(self);
        // The bytes were written a moment ago by this process.
        let load = LoadOptions { verify_weights: false };
        Ok(Arc::new(Artifact::from_buffer(buffer, &load).map_err(LoadError::Artifact)?))
    }
}
