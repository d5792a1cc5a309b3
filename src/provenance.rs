//! Where an artifact comes from: its options, the hashes of model and compiler, and its bill of materials.
//!
//! Invariant: what is recorded suffices to compile the same artifact again from the same model, and holds nothing of the
//! machine or the moment. Options that this build does not know are an error, never left out.

use crate::gpu::stored;
use crate::quantize::onnx::Plain;
use crate::tune::record::Tuning;
use crate::{Activations, Compiled, Error, Options, VERSION};
use kiln_frontend::onnx::model::Model;
use kiln_runtime::artifact::{self, Artifact};
use serde_json::json;
use std::collections::BTreeMap;

/// The hash of the compiler's sources and the versions of its dependencies.
pub const SOURCES: &str = env!("KILN_SOURCES");

/// What the hashes of an artifact are called.
const MODEL: &str = "model";
const COMPILER: &str = "compiler";

/// The option that says in which order steps are, and its only value: see [`Compiled::save_memory`].
pub const ORDER: &str = "order";
/// See [`ORDER`].
pub(crate) const LEAST_MEMORY: &str = "least memory";

/// The option that says what was taken from a tuning database.
pub(crate) const TUNING: &str = "tuning";

/// The option that says how the model's weights were rounded before it was compiled, as a [`Plain`].
const QUANTIZED: &str = "quantized";

/// How the model's weights were rounded before an artifact was compiled, where they were.
///
/// # Errors
/// [`Error::Data`] where this build does not know it.
pub fn quantized(recorded: &BTreeMap<String, String>) -> Result<Option<Plain>, Error> {
    recorded.get(QUANTIZED).map(|text| text.parse()).transpose()
}

/// What an artifact took from a tuning database.
///
/// # Errors
/// [`Error::Data`] where this build does not know it.
pub fn tuning(recorded: &BTreeMap<String, String>) -> Result<Tuning, Error> {
    recorded.get(TUNING).map_or(Ok(Tuning::default()), |text| text.parse())
}

/// The options as an artifact states them.
pub(crate) fn record(options: &Options) -> BTreeMap<String, String> {
    let levels: Vec<&str> = options.levels.iter().map(|level| level.name()).collect();
    let mut all = BTreeMap::from([
        ("arch".to_string(), std::env::consts::ARCH.to_string()),
        ("precision".to_string(), options.precision.name().to_string()),
        ("cpu".to_string(), levels.join(",")),
    ]);
    if options.activations != Activations::F32 {
        all.insert("activations".into(), options.activations.to_string());
    }
    if !options.bind.is_empty() {
        all.insert("bind".into(), json!(options.bind).to_string());
    }
    if !options.shapes.is_empty() {
        all.insert("shapes".into(), json!(options.shapes).to_string());
    }
    if !options.values.is_empty() {
        all.insert("values".into(), json!(options.values.keys().collect::<Vec<_>>()).to_string());
    }
    if !options.taps.is_empty() {
        all.insert("tap".into(), json!(options.taps).to_string());
    }
    all
}

/// The options that an artifact was compiled with, for this number of threads, on which nothing depends.
///
/// # Errors
/// [`Error::Unsupported`] where they cannot be had: another architecture, an option that this build does not know.
pub fn recall(recorded: &BTreeMap<String, String>, threads: usize) -> Result<Options, Error> {
    let mut options = Options { threads, ..Options::default() };
    for (name, value) in recorded {
        let broken = |e: &dyn std::fmt::Display| Error::data(format!("the artifact's option {name}"), e);
        match name.as_str() {
            "arch" if value == std::env::consts::ARCH => {}
            "precision" => options.precision = value.parse().map_err(|e| broken(&e))?,
            "cpu" => {
                let levels = value.split(',').filter(|level| !level.is_empty()).map(str::parse);
                options.levels = levels.collect::<Result<_, _>>().map_err(|e| broken(&e))?;
            }
            "activations" => options.activations = value.parse().map_err(|e: String| broken(&e))?,
            "bind" => options.bind = serde_json::from_str(value).map_err(|e| broken(&e))?,
            "shapes" => options.shapes = serde_json::from_str(value).map_err(|e| broken(&e))?,
            TUNING => options.tuning = value.parse()?,
            // What is done to a compiled program, not options of its compilation.
            ORDER if value == LEAST_MEMORY => {}
            QUANTIZED => _ = value.parse::<Plain>()?,
            stored::OPTION => _ = stored::targets(value)?,
            "tap" => options.taps = serde_json::from_str(value).map_err(|e| broken(&e))?,
            _ => {
                return Err(Error::Unsupported(format!(
                    "the artifact was compiled with {name} = {value}, with which this build cannot compile it again"
                )));
            }
        }
    }
    Ok(options)
}

/// The hashes that every artifact of this compiler has.
pub(crate) fn hashes() -> BTreeMap<String, String> {
    BTreeMap::from([(COMPILER.into(), SOURCES.into())])
}

/// The hash of a model's file, as artifacts state it. External data is not part of it; the weights have a hash of their own.
pub fn model_hash(file: &[u8]) -> String {
    blake3::hash(file).to_string()
}

/// Refuses a model that is not the one an artifact was compiled from.
///
/// # Errors
/// [`Error::Mismatch`], or [`Error::Unsupported`] where the artifact does not say.
pub fn check_model(artifact: &Artifact, file: &[u8]) -> Result<(), Error> {
    let found = model_hash(file);
    match artifact.hashes().get(MODEL) {
        Some(recorded) if *recorded == found => Ok(()),
        Some(recorded) => Err(Error::Mismatch(format!(
            "the artifact was compiled from a model with the hash {recorded}, this one has {found}"
        ))),
        None => Err(Error::Unsupported("the artifact does not state which model it was compiled from".into())),
    }
}

impl Compiled {
    /// States how the model's weights were rounded before it was compiled.
    pub fn record_quantized(&mut self, plain: Plain) {
        self.manifest.options.insert(QUANTIZED.into(), plain.to_string());
    }

    /// States which file the model came from: its hash, and the bill of materials.
    pub fn record_model(&mut self, file: &[u8], model: &Model) {
        let hash = model_hash(file);
        self.sbom = Some(sbom(&self.plan.name, &hash, model));
        self.manifest.hashes.insert(MODEL.into(), hash);
    }
}

/// Keys under which ONNX files state a licence; there is no agreed one.
const LICENCE_KEYS: [&str; 4] = ["license", "licence", "license_name", "license_spdx"];

/// The bill of materials of an artifact as SPDX 2.3: model, compiler, and what came of them. Machine code of an artifact is
/// generated; no library's code is part of it.
fn sbom(name: &str, model_hash: &str, model: &Model) -> String {
    let licence = model.metadata.iter().find(|(key, _)| LICENCE_KEYS.contains(&key.to_ascii_lowercase().as_str()));
    let licence_text = licence.map(|(_, text)| text.as_str()).unwrap_or_default();
    let expression = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | ' ' | '(' | ')');
    let is_expression = !licence_text.is_empty() && licence_text.len() < 100 && licence_text.chars().all(expression);
    let declared = if is_expression { licence_text } else { "NOASSERTION" };
    let producer = if model.producer.is_empty() { "NOASSERTION".into() } else { format!("Tool: {}", model.producer) };
    // Not as a checksum: the validators of SPDX 2.3 in use want four times as many digits of BLAKE3 as it has.
    let hashed =
        |hash: &str| json!([{ "referenceCategory": "OTHER", "referenceType": "blake3", "referenceLocator": hash }]);
    let none = "NOASSERTION";
    let relation = |from: &str, kind: &str, to: &str| json!({ "spdxElementId": format!("SPDXRef-{from}"), "relationshipType": kind, "relatedSpdxElement": format!("SPDXRef-{to}") });
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        // Artifacts state no time: equal inputs give equal bytes.
        "documentNamespace": format!("urn:blake3:{model_hash}:{SOURCES}"),
        "creationInfo": { "created": "1970-01-01T00:00:00Z", "creators": [format!("Tool: kiln-{VERSION}")] },
        "packages": [
            {
                "SPDXID": "SPDXRef-artifact", "name": name, "downloadLocation": none, "filesAnalyzed": false,
                "licenseConcluded": none, "licenseDeclared": declared, "copyrightText": none,
                "comment": "machine code generated from the model, and the model's weights; no library's code is part of it"
            },
            {
                "SPDXID": "SPDXRef-model", "name": format!("{name} (ONNX)"), "downloadLocation": none, "filesAnalyzed": false,
                "licenseConcluded": none, "licenseDeclared": declared, "licenseComments": licence_text, "copyrightText": none,
                "comment": format!("written by {producer}"), "externalRefs": hashed(model_hash)
            },
            {
                "SPDXID": "SPDXRef-compiler", "name": "kiln", "versionInfo": VERSION, "downloadLocation": none,
                "filesAnalyzed": false, "licenseConcluded": none, "licenseDeclared": env!("CARGO_PKG_LICENSE"),
                "copyrightText": none, "comment": "the hash is that of its sources and the versions of its dependencies",
                "externalRefs": hashed(SOURCES)
            },
        ],
        "relationships": [
            relation("DOCUMENT", "DESCRIBES", "artifact"),
            relation("artifact", "GENERATED_FROM", "model"),
            relation("compiler", "BUILD_TOOL_OF", "artifact"),
        ],
    });
    format!("{document:#}\n")
}

/// What a rebuilt artifact has that the first one has not, or has otherwise.
pub fn differences(first: &Artifact, second: &Artifact) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, a: &BTreeMap<String, String>, b: &BTreeMap<String, String>| {
        let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            let (x, y) = (a.get(key), b.get(key));
            if x != y {
                let show = |v: Option<&String>| v.cloned().unwrap_or_else(|| "nothing".into());
                found.push(format!("{what} {key}: {} and {}", show(x), show(y)));
            }
        }
    };
    compare("hash", first.hashes(), second.hashes());
    compare("option", first.options(), second.options());
    let names = |a: &Artifact| a.sections().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
    let mut sections = names(first);
    sections.extend(names(second));
    sections.sort();
    sections.dedup();
    for name in sections {
        match (first.section(&name).ok(), second.section(&name).ok()) {
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) => {
                let at = a.iter().zip(b).position(|(x, y)| x != y).unwrap_or(a.len().min(b.len()));
                found.push(format!("section {name}: {} and {} bytes, apart from byte {at} on", a.len(), b.len()));
            }
            (Some(_), None) => found.push(format!("section {name}: only in the first")),
            (None, Some(_)) => found.push(format!("section {name}: only in the second")),
            (None, None) => {}
        }
    }
    if first.compiler() != second.compiler() {
        found.push(format!("compiler: {} and {}", first.compiler(), second.compiler()));
    }
    found
}

/// The bill of materials of an artifact.
///
/// # Errors
/// [`Error::Unsupported`] where it has none.
pub fn sbom_of(artifact: &Artifact) -> Result<&str, Error> {
    artifact.text(artifact::SBOM).map_err(|_| Error::Unsupported("the artifact carries no bill of materials".into()))
}
