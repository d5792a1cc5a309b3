//! Commands that measure and explain.

use crate::models::mlp;
use crate::{Place, kiln};

#[test]
fn profiles_add_up_and_write_traces_and_stacks() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let (trace, folded) = (place.path("t.json"), place.path("s.txt"));
    let done =
        kiln!("profile", &model, "--runs", "5", "--threads", "2", "--trace", &trace, "--folded", &folded, "--json");
    let report = done.succeeds().json();
    let steps = report["steps"].as_array().unwrap();
    assert!(!steps.is_empty());
    let share: f64 = steps.iter().map(|s| s["share"].as_f64().unwrap()).sum();
    assert!((share - 1.0).abs() < 1e-6, "{share}");
    assert!(steps.iter().all(|s| s["time"]["runs"] == 5 && s["emitter"].is_string()));
    assert!(report["machine"]["gflops"].as_f64().unwrap() > 0.1);
    let trace: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert_eq!(events.iter().filter(|e| e["ph"] == "X").count(), steps.len());
    let folded = std::fs::read_to_string(folded).unwrap();
    assert_eq!(folded.lines().count(), steps.len());
    assert!(folded.lines().all(|l| l.rsplit_once(' ').unwrap().1.parse::<u64>().is_ok()), "{folded}");
    kiln!("profile", &model, "--runs", "1", "--trace", &place.path("no/t.json")).fails(2, "cannot write");
}

#[test]
fn explanations_name_kernels_and_reasons() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let report = kiln!("explain", &model, "--json").succeeds().json();
    let kernels = report["kernels"].as_array().unwrap();
    assert!(kernels.iter().any(|k| !k["fused"].as_array().unwrap().is_empty()), "{report:#}");
    let name = kernels[0]["kernel"].as_str().unwrap();
    let text = kiln!("explain", &model, name).succeeds().out;
    assert!(text.starts_with(&format!("{name} (")) && text.contains("fused:"), "{text}");
    kiln!("explain", &model, "no such node").fails(2, "no node, value or kernel");
}

/// The lines of a database without the times, which differ from run to run.
fn schedules(path: &std::path::Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(path).unwrap();
    let record = |line: &str| -> serde_json::Value { serde_json::from_str(line).unwrap() };
    text.lines()
        .map(record)
        .map(|r| (r["schedule"].as_str().unwrap().into(), r["code"].as_str().unwrap().into()))
        .collect()
}

/// Whether a record is about what is fused, and how results lie.
fn is_boundary(record: &serde_json::Value) -> bool {
    ["cut=", "result="].iter().any(|name| record["schedule"].as_str().unwrap().starts_with(name))
}

/// The records about boundaries of a database, in which those of one schedule are much quicker than they were.
fn preferring(db: &std::path::Path, schedule: &str) -> String {
    let text = std::fs::read_to_string(db).unwrap();
    let mut records: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    records.retain(is_boundary);
    for record in records.iter_mut().filter(|r| r["schedule"] == schedule) {
        for key in ["min_ns", "p20_ns"] {
            record[key] = 1.0.into();
        }
    }
    records.iter().map(|r| format!("{r}\n")).collect()
}

#[test]
fn what_a_search_says_of_fusion_cuts_kernels_and_nothing_else() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let db = place.path("t.jsonl");
    let report = kiln!("tune", &model, "--db", &db, "--trials", "1", "--json").succeeds().json();
    assert!(!report["fusion"].as_array().unwrap().is_empty(), "{report:#}");
    // As if two kernels were much quicker than one wherever there is a choice.
    let apart = place.write("apart.jsonl", preferring(&db, "cut=apart0").as_bytes());
    let (one, two) = (place.path("one.kiln"), place.path("two.kiln"));
    kiln!("compile", &model, "-o", &one).succeeds();
    kiln!("compile", &model, "--tuning", &apart, "-o", &two).succeeds();
    let kernels = |path: &std::path::Path| {
        let report = kiln!("inspect", path, "--json").succeeds().json();
        report["kernels"].as_array().unwrap().len()
    };
    assert!(kernels(&two) > kernels(&one), "{} and {}", kernels(&two), kernels(&one));
    kiln!("compare", &one, &two, "--tolerance", "0").succeeds();
    kiln!("rebuild", &two, "--model", &model).succeeds();
    let text = kiln!("explain", &model, "act", "--tuning", &apart).succeeds().out;
    assert!(text.contains("measurements found two kernels quicker"), "{text}");
    let why = kiln!("diff", &one, &two, "--measure", "--seconds", "0.05", "--json").succeeds().json();
    let fused = why["kernels"].as_array().unwrap().iter().find(|k| k["change"] == "fusion").unwrap();
    let times: Vec<f64> =
        fused["times"].as_array().unwrap().iter().map(|t| t["measured_us"].as_f64().unwrap()).collect();
    assert!(times.len() == 2 && times.iter().all(|us| *us > 0.0), "{why:#}");
    assert!(why["times"].as_array().unwrap().iter().all(|t| t["least_us"].as_f64().unwrap() > 0.0), "{why:#}");
    let text = kiln!("diff", &one, &two, "--measure", "--seconds", "0.05", "--threads", "1").succeeds().out;
    assert!(text.contains("measured us (roofline)"), "{text}");
    kiln!("diff", &one, &two, "--random", "1").fails(2, "inputs are for --measure");
}

#[test]
fn what_a_search_says_of_layouts_turns_results_and_nothing_else() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let db = place.path("t.jsonl");
    kiln!("tune", &model, "--db", &db, "--trials", "1").succeeds();
    let turned = place.write("turned.jsonl", preferring(&db, "result=turned").as_bytes());
    let (one, two) = (place.path("one.kiln"), place.path("two.kiln"));
    kiln!("compile", &model, "-o", &one).succeeds();
    kiln!("compile", &model, "--tuning", &turned, "-o", &two).succeeds();
    kiln!("compare", &one, &two, "--tolerance", "1e-6").succeeds();
    kiln!("rebuild", &two, "--model", &model).succeeds();
    let text = kiln!("explain", &model, "act", "--tuning", &turned).succeeds().out;
    assert!(text.contains("its result lies turned: measurements"), "{text}");
    let text = kiln!("explain", &model, "act").succeeds().out;
    assert!(!text.contains("turned"), "{text}");
}

#[test]
fn tuning_resumes_merges_and_reaches_a_compilation_exactly() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let db = place.path("t.jsonl");
    let tune = |trials: &str| kiln!("tune", &model, "--db", &db, "--trials", trials, "--json").succeeds().json();
    let first = tune("4");
    assert!(first["trials"].as_u64().unwrap() > 0 && !first["kernels"].as_array().unwrap().is_empty());
    // What was found is found again without a trial.
    let again = tune("4");
    assert_eq!((again["trials"].as_u64(), &again["kernels"][0]["best"]), (Some(0), &first["kernels"][0]["best"]));
    // A search that was killed in the middle of a line goes on with what is whole.
    let whole = std::fs::read_to_string(&db).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    std::fs::write(&db, format!("{}\n{}", lines[0], &lines[1][..lines[1].len() / 2])).unwrap();
    tune("4");
    assert_eq!(schedules(&db)[0], schedules(&place.write("whole", whole.as_bytes()))[0]);
    // Parts have databases of their own, which together hold every kernel; merging twice changes nothing.
    for part in ["1/2", "2/2"] {
        kiln!("tune", &model, "--db", &db, "--trials", "2", "--shard", part).succeeds();
    }
    let (a, b) = (place.path("t.1-of-2.jsonl"), place.path("t.2-of-2.jsonl"));
    let merged = place.path("all.jsonl");
    kiln!("tuning", "merge", &a, &b, "-o", &merged).succeeds();
    let once = std::fs::read(&merged).unwrap();
    kiln!("tuning", "merge", &merged, &b, &a, "-o", &merged).succeeds();
    assert_eq!(once, std::fs::read(&merged).unwrap());
    kiln!("tuning", "prune", &merged).succeeds();
    let export = kiln!("tuning", "export", &merged, "--json").succeeds().json();
    assert_eq!(export["stale"], 0);
    // A record that beats the cost model decides the code: what is compiled is what was measured, byte for byte.
    let mut records: Vec<serde_json::Value> = whole
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .filter(|r| r["last"] == true && !is_boundary(r))
        .collect();
    let other = records.iter().position(|r| r["default"] == false).unwrap();
    for key in ["min_ns", "p20_ns"] {
        records[other][key] = 1.0.into();
    }
    let (kernel, code) = (records[other]["kernel"].clone(), records[other]["code"].as_str().unwrap().to_string());
    records.retain(|r| r["kernel"] == kernel);
    let text: String = records.iter().map(|r| format!("{r}\n")).collect();
    let chosen = place.write("chosen.jsonl", text.as_bytes());
    let level = records[0]["level"].as_str().unwrap().to_string();
    let compile = |out: &std::path::Path| {
        let out = out.to_path_buf();
        kiln!("compile", &model, "--cpu", level.as_str(), "--tuning", &chosen, "-o", &out).succeeds();
    };
    let (one, two) = (place.path("1.kiln"), place.path("2.kiln"));
    compile(&one);
    compile(&two);
    assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
    let artifact = kiln::runtime::artifact::Artifact::open(&one, &Default::default()).unwrap();
    let level: kiln::runtime::cpu::CpuLevel = level.parse().unwrap();
    let bytes = artifact.section(&kiln::runtime::artifact::code_section(level)).unwrap();
    let table: kiln::runtime::artifact::KernelTable =
        artifact.text(&kiln::runtime::artifact::kernels_section(level)).unwrap().parse().unwrap();
    let found = table.0.iter().any(|e| {
        let code_of = &bytes[e.offset as usize..(e.offset + e.bytes) as usize];
        kiln::tune::hash(code_of) == code
    });
    assert!(found, "no kernel of the artifact has the code that was measured");
    assert!(artifact.options()["tuning"].contains(kernel.as_str().unwrap()));
    kiln!("tune", &model, "--kernel", "k99").fails(2, "no such kernel");
    kiln!("tune", &model, "--shard", "3/2").fails(2, "--shard");
}

#[test]
fn comparisons_say_where_two_part() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let report = kiln!("compare", &model, &model, "--second-cpu", "portable", "--json").succeeds().json();
    assert!(report["compared"].as_u64().unwrap() >= 1 && report["agrees"] == true, "{report:#}");
    // Another rounding is a difference where none is allowed; the artifact of the same model is the model.
    let rounded = kiln!("compare", &model, &model, "--second-precision", "bf16", "--tolerance", "0", "--json");
    assert!(rounded.fails(5, "they part at").json()["first_apart"].is_object());
    kiln!("compare", &model, &model, "--second-precision", "bf16", "--tolerance", "0.1").succeeds();
    let artifact = place.path("m.kiln");
    kiln!("compile", &model, "-o", &artifact).succeeds();
    kiln!("compare", &model, &artifact, "--tolerance", "0").succeeds();
    let other = place.write("g.onnx", &crate::models::gather());
    assert_ne!(kiln!("compare", &model, &other).code, 0);
    kiln!("compare", &model, &model, "--tolerance=-1").fails(2, "is no tolerance");
}
