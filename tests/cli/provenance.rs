//! Where artifacts come from: compiled again, compared, listed.

use super::models::*;
use super::{Place, kiln};

#[test]
fn an_artifact_is_rebuilt_from_what_it_records() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp_with_batch(Dim::Name("batch, x=1"), Dim::Name("batch, x=1")));
    let (artifact, inputs, plain) = (place.path("a.kiln"), place.path("i.npz"), place.path("p.kiln"));
    kiln!("run", &model, "--random", "1", "--bind", "batch, x=1=5", "--save-inputs", &inputs).succeeds();
    let compile = |words: &[&str]| {
        let mut all: Vec<&dyn super::Word> = vec![&"compile", &model, &"-o", &artifact, &"--threads", &"1"];
        all.extend(words.iter().map(|w| w as &dyn super::Word));
        super::run(&all).succeeds();
        let done = kiln!("rebuild", &artifact, "--model", &model, "--threads", "3", "--json").succeeds().json();
        assert_eq!((&done["same"], &done["identity"]), (&true.into(), &done["rebuilt"]), "{words:?}");
    };
    compile(&["--golden", "--cpu", "portable"]);
    compile(&["--bind", "batch, x=1=2..9"]);
    compile(&["--inputs", inputs.to_str().unwrap()]);
    for precision in ["f32-fast", "strict"] {
        compile(&["--precision", precision]);
        assert_eq!(kiln!("inspect", &artifact, "--json").succeeds().json()["options"]["precision"], precision);
    }
    compile(&["--precision", "bf16", "--golden"]);
    assert_eq!(kiln!("inspect", &artifact, "--json").succeeds().json()["options"]["precision"], "bf16");
    kiln!("selftest", &artifact).succeeds();
    let in_bf16 = kiln!("verify", &model, "--precision", "bf16", "--verify-each", "--bind", "batch, x=1=5", "--json");
    let differ = in_bf16.succeeds().json()["outputs"][0]["relative"].as_f64().unwrap();
    // Rounded, but only that.
    assert!((1e-5..2e-2).contains(&differ), "{differ}");
    compile(&[]);

    // Another model is refused; one that only looks like the same differs.
    let other = place.write("o.onnx", &mlp());
    kiln!("rebuild", &artifact, "--model", &other).fails(5, "compiled from a model with the hash");
    kiln!("rebuild", &model, "--model", &model).fails(3, "no Kiln artifact");
    kiln!("rebuild", &artifact, "--model", &artifact).fails(2, "takes an ONNX model");

    // What is recorded is shown.
    let shown = kiln!("inspect", &artifact, "--json").succeeds().json();
    for name in ["model", "compiler", "weights"] {
        let hash = shown["hashes"][name].as_str().unwrap();
        assert!(hash.len() == 64 && kiln!("inspect", &artifact).out.contains(hash), "{name}");
    }
    assert_eq!(shown["hashes"]["model"], kiln::provenance::model_hash(&std::fs::read(&model).unwrap()).as_str());
    let sbom = kiln!("inspect", &artifact, "--sbom").succeeds().json();
    assert_eq!(sbom["spdxVersion"], "SPDX-2.3");
    assert_eq!(sbom["packages"][1]["externalRefs"][0]["referenceLocator"], shown["hashes"]["model"]);
    kiln!("inspect", &model, "--sbom").fails(2, "--sbom is for artifacts");

    // What changed: nothing, then levels and their code.
    assert_eq!(kiln!("diff", &artifact, &artifact).succeeds().out, "the same, byte for byte\n");
    kiln!("compile", &model, "-o", &plain, "--cpu", "portable", "--bind", "batch, x=1=3").succeeds();
    let found = kiln!("diff", &artifact, &plain, "--json").succeeds().json();
    assert_eq!(found["same"], false);
    let what: Vec<&str> = found["changed"].as_array().unwrap().iter().map(|p| p["what"].as_str().unwrap()).collect();
    assert!(
        what.contains(&"option cpu") && what.contains(&"option bind") && !what.contains(&"hash of model"),
        "{what:?}"
    );
    assert!(!found["kernels"].as_array().unwrap().is_empty());
    let text = kiln!("diff", &artifact, &plain).succeeds().out;
    assert!(text.contains("estimated operations") && text.contains('%'), "{text}");
    kiln!("diff", &artifact, &model).fails(3, "no Kiln artifact");
}

#[test]
fn fused_kernels_are_one_change() {
    let place = Place::new();
    let (one, two) = (place.path("1.kiln"), place.path("2.kiln"));
    // The same nodes; in the second, an output between them keeps the last from being fused.
    let nodes = || vec![node("dense", "Gemm", &["x", "w", "b"], &["h"]), node("act", "Relu", &["h"], &["y"])];
    let make = |outputs: Vec<_>| {
        model(graph(nodes(), vec![floats("x", &[3, 20])], outputs, vec![weight("w", &[20, 33]), weight("b", &[33])]))
    };
    let fused = place.write("1.onnx", &make(vec![floats("y", &[3, 33])]));
    let apart = place.write("2.onnx", &make(vec![floats("y", &[3, 33]), floats("h", &[3, 33])]));
    kiln!("compile", &fused, "-o", &one).succeeds();
    kiln!("compile", &apart, "-o", &two).succeeds();
    let found = kiln!("diff", &one, &two, "--json").succeeds().json();
    let changes = found["kernels"].as_array().unwrap();
    assert_eq!(changes.len(), 1, "{found}");
    assert_eq!(changes[0]["change"], "fusion");
    let kernels = |side: &str| changes[0][side].as_array().unwrap().len();
    assert_eq!((kernels("first"), kernels("second")), (1, 2), "{found}");
}
