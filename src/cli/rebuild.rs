//! `kiln rebuild`: whether an artifact is what its model and options compile to.

use super::Talk;
use super::options::{self, Adapted, Progress};
use clap::Args as ClapArgs;
use kiln::gpu::stored;
use kiln::lm::{LanguageModel, Opened};
use kiln::runtime::artifact::{self, Artifact, LoadOptions};
use kiln::runtime::engine::LoadError;
use kiln::runtime::memory::Budget;
use kiln::{Error, Options, Source, provenance};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;

/// Compile an artifact again, from its model and the options it records, and compare byte for byte
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An artifact
    artifact: PathBuf,
    /// What it was compiled from: an ONNX model, a GGUF file, a folder with config.json
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    adapted: Adapted,
    /// Threads to compile on, 1 to 1024 [default: all cores]; the result does not depend on it
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: Option<u64>,
    /// Most memory for weights, arena, inputs and outputs, such as 512M or 8G
    #[arg(long, value_name = "SIZE", value_parser = options::parse_size)]
    memory_limit: Option<u64>,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        let file = Artifact::open(&self.artifact, &LoadOptions::default()).map_err(LoadError::Artifact)?;
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.threads.and_then(|t| usize::try_from(t).ok()).unwrap_or_else(all);
        let mut options = provenance::recall(file.options(), threads)?;
        options.memory_limit = self.memory_limit.unwrap_or(u64::MAX);
        let rebuilt = if LanguageModel::is_at(&self.model) {
            self.language_model(&options, talk)?
        } else {
            self.onnx(&file, &options, talk)?
        };
        // The identity is the hash of the header, which has the hashes of all sections.
        let same = file.identity() == rebuilt.identity();
        let differences = if same { Vec::new() } else { provenance::differences(&file, &rebuilt) };
        let text = if same {
            format!("{}: the same, byte for byte (header {})\n", self.artifact.display(), file.identity())
        } else {
            differences.iter().map(|d| format!("{d}\n")).collect()
        };
        let report = json!({ "same": same, "identity": file.identity(), "rebuilt": rebuilt.identity(), "differences": differences });
        talk.report(&report, &text)?;
        if same { Ok(()) } else { Err(Error::Mismatch("the rebuilt artifact differs".into())) }
    }

    /// A decoder or an encoder-decoder with the room that the artifact has.
    fn language_model(&self, options: &Options, talk: Talk) -> Result<Arc<Artifact>, Error> {
        let observer = &mut Progress::new(talk);
        match (Opened::open(&self.artifact)?, Opened::open(&self.model)?) {
            (Opened::Decoder(artifact), Opened::Decoder(model)) => {
                let room = (artifact.context(), artifact.cache().unwrap_or_default());
                self.adapted.applied(*model)?.compile(room, options, observer)?.into_artifact()
            }
            (Opened::Sequence(artifact), Opened::Sequence(model)) => {
                self.adapted.only_decoders()?;
                let room = (artifact.context().unwrap_or(0), artifact.cache().unwrap_or_default());
                let longest = artifact.longest_source().unwrap_or(0);
                model.compile(longest, room, options, observer)?.into_artifact()
            }
            (Opened::Decoder(_) | Opened::Sequence(_), _) => {
                Err(Error::Mismatch("one of artifact and model is an encoder-decoder, the other is not".into()))
            }
        }
    }

    fn onnx(&self, file: &Artifact, options: &Options, talk: Talk) -> Result<Arc<Artifact>, Error> {
        let source = Source::open(&self.model)?;
        let onnx = source.model(&Default::default())?;
        let Source::Model { bytes, .. } = &source else {
            return Err(Error::Internal("an artifact was read as a model".into()));
        };
        provenance::check_model(file, bytes)?;
        let mut observer = Progress::new(talk);
        let plain = provenance::quantized(file.options())?;
        let quantized = plain.map(|plain| plain.apply(&onnx, options.threads)).transpose()?;
        let subject = quantized.as_ref().unwrap_or(&onnx);
        let mut compiled = kiln::compile(subject, options, &mut observer)?;
        if let Some(plain) = plain {
            compiled.record_quantized(plain);
        }
        compiled.record_model(bytes, &onnx);
        if file.options().contains_key(provenance::ORDER) {
            compiled.save_memory();
        }
        if file.section(artifact::GOLDEN).is_ok() {
            let budget = self.memory_limit.map_or_else(Budget::unlimited, Budget::new);
            compiled.add_golden(0, &budget)?;
        }
        match file.options().get(stored::OPTION) {
            None => Ok(Arc::new(compiled.to_artifact()?)),
            Some(gpus) => {
                let targets = stored::targets(gpus)?;
                stored::bundle(subject, compiled, options, &targets, &mut observer)?.into_artifact()
            }
        }
    }
}
