//! Language models from the command line, on a small random checkpoint whose continuations transformers has written down.

use super::{Place, Word, kiln};
use serde_json::Value;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("frontend/tests/fixtures/lm").join(name)
}

fn expected() -> Vec<Value> {
    serde_json::from_str(&std::fs::read_to_string(fixture("tiny.json")).unwrap()).unwrap()
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    let model = fixture("tiny.gguf");
    for case in expected() {
        let prompt = case["prompt"].as_str().unwrap();
        for threads in ["1", "3"] {
            let report = kiln!(
                "generate",
                &model,
                "--prompt",
                prompt,
                "-n",
                "16",
                "--ignore-eos",
                "--threads",
                threads,
                "--json"
            )
            .succeeds()
            .json();
            assert_eq!(report["tokens"], case["tokens"], "{prompt:?} on {threads} threads");
            assert_eq!(report["prompt_tokens"], case["prompt_tokens"].as_array().unwrap().len());
            assert_eq!(report["stop"], "length");
            assert!(report["prefill_s"].as_f64().unwrap() > 0.0 && report["tokens_per_s"].as_f64().unwrap() > 0.0);
        }
    }
}

#[test]
fn activations_are_rounded_only_where_that_is_asked_for() {
    let (place, model) = (Place::new(), fixture("tiny.gguf"));
    let text = place.write("t.txt", b"the capital of the river is a town of the north");
    let loss = |rounded: &str| {
        let options = ["--window", "32", "--round-activations", rounded, "--json"];
        let words = [&"eval" as &dyn Word, &"perplexity", &model, &"--text", &text];
        let words: Vec<&dyn Word> = words.into_iter().chain(options.iter().map(|w| w as &dyn Word)).collect();
        super::run(&words).succeeds().json()["loss"].as_f64().unwrap()
    };
    let (plain, rounded) = (loss("f32"), loss("int8"));
    assert!(plain != rounded && (plain - rounded).abs() < 0.02 * plain, "{plain} {rounded}");

    let artifact = place.path("tiny.kiln");
    kiln!("compile", &model, "-o", &artifact, "--context", "48", "--round-activations", "int8").succeeds();
    assert_eq!(kiln!("inspect", &artifact, "--json").succeeds().json()["options"]["activations"], "int8");
    let say = |from: &std::path::Path, threads: &str, more: &[&'static str]| {
        let words =
            [&"generate" as &dyn Word, &from, &"-p", &"the capital", &"-n", &"16", &"--threads", &threads, &"--json"];
        let words: Vec<&dyn Word> = words.into_iter().chain(more.iter().map(|w| w as &dyn Word)).collect();
        super::run(&words).succeeds().json()["tokens"].clone()
    };
    let compiled = say(&artifact, "1", &[]);
    assert_eq!(compiled, say(&artifact, "3", &[]));
    assert_eq!(compiled, say(&model, "1", &["--round-activations", "int8"]));

    let refused = "decided when a model is compiled";
    kiln!("generate", &artifact, "-p", "a", "--round-activations", "int8").fails(2, refused);
    kiln!("generate", &model, "-p", "a", "--round-activations", "int4").fails(2, "none of f32, int8 and allowed");

    // The same of products in bf16.
    kiln!("compile", &model, "-o", &artifact, "--context", "48", "--precision", "bf16").succeeds();
    assert_eq!(kiln!("inspect", &artifact, "--json").succeeds().json()["options"]["precision"], "bf16");
    assert_eq!(say(&artifact, "1", &[]), say(&model, "2", &["--precision", "bf16"]));
    kiln!("generate", &artifact, "-p", "a", "--precision", "bf16").fails(2, refused);
    kiln!("generate", &model, "-p", "a", "--precision", "f16").fails(4, "strict and bf16");
}

#[test]
fn an_artifact_says_what_its_checkpoint_says() {
    let (place, model) = (Place::new(), fixture("tiny.gguf"));
    let artifact = place.path("tiny.kiln");
    let made = kiln!("compile", &model, "-o", &artifact, "--context", "48", "--json").succeeds().json();
    assert_eq!(made["entries"], serde_json::json!(["one", "all", "packed"]));
    // Four programs, and the weights of one.
    let plain = kiln!("inspect", &artifact, "--json").succeeds().json();
    assert_eq!(plain["weight_bytes"], made["weight_bytes"]);
    for case in expected() {
        let prompt = case["prompt"].as_str().unwrap();
        let generate = ["generate", artifact.to_str().unwrap(), "-p", prompt, "-n", "16", "--ignore-eos", "--json"];
        let words: Vec<&dyn Word> = generate.iter().map(|w| w as &dyn Word).collect();
        assert_eq!(super::run(&words).succeeds().json()["tokens"], case["tokens"], "{prompt:?}");
        let text = place.write("t.txt", prompt.as_bytes());
        if case["prompt_tokens"].as_array().unwrap().len() > 1 {
            let loss = |model: &std::path::Path| {
                kiln!("eval", "perplexity", model, "--text", &text, "--window", "32", "--json").succeeds().json()["loss"].clone()
            };
            assert_eq!(loss(&artifact), loss(&model));
        }
    }
    let again = kiln!("rebuild", &artifact, "--model", &model, "--threads", "1", "--json").succeeds().json();
    assert_eq!(again["same"], true, "{again:#}");
    kiln!("generate", &artifact, "-p", "a", "--context", "49").fails(6, "compiled for 48 positions");
    kiln!("compile", &artifact, "-o", &place.path("again.kiln")).fails(2, "compiled already");
    kiln!("compile", &model, "-o", &artifact, "--bind", "a=1").fails(2, "not for language models");
    // A program on its own is what a model is.
    kiln!("run", &artifact, "--random", "1").succeeds();
    let onnx = place.path("plain.kiln");
    let mlp = place.write("mlp.onnx", &super::models::mlp());
    kiln!("compile", &mlp, "-o", &onnx).succeeds();
    kiln!("generate", &onnx, "-p", "a").fails(2, "nor an artifact of one");
}

#[test]
fn the_text_is_a_line_and_the_seed_decides_it() {
    let model = fixture("tiny.gguf");
    let sample = |seed: &str, threads: &str| {
        kiln!(
            "generate",
            &model,
            "--prompt",
            "the",
            "-n",
            "12",
            "--temperature",
            "1.5",
            "--top-k",
            "40",
            "--seed",
            seed,
            "--threads",
            threads,
            "--json"
        )
        .succeeds()
        .json()["tokens"]
            .clone()
    };
    assert_eq!(sample("1", "1"), sample("1", "2"));
    assert_ne!(sample("1", "1"), sample("2", "1"));
    let json = kiln!("generate", &model, "--prompt", "the", "-n", "5", "--json").succeeds().json();
    let plain = kiln!("generate", &model, "--prompt", "the", "-n", "5").succeeds();
    assert_eq!(plain.out, format!("{}\n", json["text"].as_str().unwrap()));
    let place = Place::new();
    let file = place.write("p.txt", b"the");
    assert_eq!(kiln!("generate", &model, "--prompt-file", &file, "-n", "5").succeeds().out, plain.out);
    assert_eq!(kiln!("generate", &model, "--prompt", "the", "-n", "0").succeeds().out, "\n");
}

#[test]
fn bias_and_stops_change_the_text() {
    let model = fixture("tiny.gguf");
    // The letters a and z are tokens of their own.
    let always = |token: u8, more: &[&str]| {
        let bias = format!("{token}=1e9");
        let words = ["generate", model.to_str().unwrap(), "--prompt", "the", "-n", "6", "--logit-bias", &bias];
        let words: Vec<&dyn Word> = words.iter().chain(more).map(|w| w as &dyn Word).collect();
        super::run(&words).succeeds().out
    };
    assert_eq!(always(b'a', &[]), "aaaaaa\n");
    assert_eq!(always(b'a', &["--stop", "aaa"]), "\n");
    assert_eq!(always(b'a', &["--stop", "b", "--logit-bias", "122=1e9"]), "aaaaaa\n");
    assert_ne!(always(b'a', &["--ban", "a"]), "aaaaaa\n");
    assert_eq!(always(b'a', &["--frequency-penalty", "1e10", "--logit-bias", "122=9e8"])[..2], *"az");
    // The token that ends a text, which is not shown.
    let end = ["generate", model.to_str().unwrap(), "--prompt", "the", "--logit-bias", "264=1e9", "-n", "4"];
    let run = |words: &[&str]| super::run(&words.iter().map(|w| w as &dyn Word).collect::<Vec<_>>()).succeeds();
    assert_eq!(run(&end).out, "\n");
    let mut json: Vec<&str> = end.to_vec();
    json.push("--json");
    assert_eq!(run(&json).json()["stop"], "end");
    json.push("--ignore-eos");
    assert_eq!(run(&json).json()["tokens"], serde_json::json!([264, 264, 264, 264]));
}

#[test]
fn losses_are_those_of_transformers() {
    let (place, model) = (Place::new(), fixture("tiny.gguf"));
    for case in expected() {
        // The prompt's own tokens, as a text.
        let prompt = case["prompt"].as_str().unwrap();
        if case["prompt_tokens"].as_array().unwrap().len() < 2 {
            let text = place.write("t.txt", prompt.as_bytes());
            kiln!("eval", "perplexity", &model, "--text", &text).fails(3, "there are no tokens");
            continue;
        }
        let want = case["prompt_loss"].as_f64().unwrap();
        let text = place.write("t.txt", prompt.as_bytes());
        let report = kiln!("eval", "perplexity", &model, "--text", &text, "--window", "64", "--json").succeeds().json();
        assert!((report["loss"].as_f64().unwrap() - want).abs() < 1e-5 * want, "{prompt:?}: {report} and not {want}");
        // The same by score, given the first character.
        let (first, rest) = prompt.split_at(prompt.chars().next().unwrap().len_utf8());
        let scored = kiln!("eval", "score", &model, "--prompt", first, "--choice", rest, "--json").succeeds().json();
        assert!(scored["choices"][0]["log_probability"].as_f64().unwrap() < 0.0, "{scored}");
    }
}

/// A folder with a random checkpoint and a tokenizer of words.
fn folder(name: &str) -> Place {
    let place = Place::new();
    for (file, from) in [("config.json", name), ("model.safetensors", name)] {
        std::fs::copy(fixture(from).join(file), place.path(file)).unwrap();
    }
    std::fs::copy(fixture("words.json"), place.path("tokenizer.json")).unwrap();
    place
}

#[test]
fn encoder_decoders_and_beams() {
    let place = folder("t5");
    let model = place.path("");
    let run = |more: &[&str]| {
        let words = ["generate", model.to_str().unwrap(), "-n", "6"];
        let words: Vec<&dyn Word> = words.iter().chain(more).map(|w| w as &dyn Word).collect();
        super::run(&words)
    };
    let prompt = ["--prompt", "w5 w9 w17"];
    let greedy = run(&prompt).succeeds().out;
    let beams = run(&[&prompt[..], &["--beams", "3"]].concat()).succeeds().out;
    let report = run(&[&prompt[..], &["--beams", "3", "--json"]].concat()).succeeds().json();
    assert_eq!(beams, format!("{}\n", report["text"].as_str().unwrap()));
    assert_eq!((&report["beams"][0]["tokens"], &report["prompt_tokens"]), (&report["tokens"], &3.into()));
    let scores: Vec<f64> = report["beams"].as_array().unwrap().iter().map(|b| b["score"].as_f64().unwrap()).collect();
    assert!(scores.len() == 3 && scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    // Several at once are what each is alone.
    let file = place.write("prompts.txt", b"w5 w9 w17\nw30\n");
    let both = run(&["--batch", file.to_str().unwrap()]).succeeds().out;
    let alone = run(&["--prompt", "w30"]).succeeds().out;
    let lines: Vec<String> = both.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines, [greedy.trim_end(), alone.trim_end()]);
    let reports = run(&["--batch", file.to_str().unwrap(), "--json"]).succeeds().json();
    assert_eq!(reports["texts"][1]["text"], lines[1].as_str());
    run(&["--batch", place.write("empty.txt", b"").to_str().unwrap()]).fails(3, "there is no line");
    run(&[&prompt[..], &["--chat"]].concat()).fails(2, "--chat is for decoders");
    run(&[&prompt[..], &["--beams", "2", "--temperature", "1"]].concat()).fails(2, "cannot be used with");
    run(&["--prompt", "w1 ".repeat(65).trim(), "--ending", "late"]).fails(2, "none of unlikely, full, exact");
    let place = folder("bart");
    kiln!("generate", &place.path(""), "--prompt", &*"w7 ".repeat(33)).fails(6, "33 tokens do not fit");
}

#[test]
fn an_artifact_of_an_encoder_decoder_answers_as_its_checkpoint() {
    for name in ["t5", "bart"] {
        let place = folder(name);
        let (model, artifact) = (place.path(""), place.path("model.kiln"));
        let made = kiln!("compile", &model, "-o", &artifact, "--context", "24", "--json").succeeds().json();
        assert_eq!(made["entries"], serde_json::json!(["one", "all", "source"]));
        let again = kiln!("rebuild", &artifact, "--model", &model, "--json").succeeds().json();
        assert_eq!(again["same"], true, "{again:#}");
        // A past and new tokens of 24 each are more than the 32 positions that it has.
        kiln!("selftest", &artifact).succeeds();
        for more in [&[][..], &["--beams", "3"], &["--lookup", "4"], &["--threads", "2", "--context", "12"]] {
            let say = |from: &std::path::Path| {
                let words = [&"generate" as &dyn Word, &from, &"-n", &"9", &"--prompt", &"w5 w9 w17 w4", &"--json"];
                let words: Vec<&dyn Word> = words.into_iter().chain(more.iter().map(|w| w as &dyn Word)).collect();
                super::run(&words).succeeds().json()["tokens"].clone()
            };
            assert_eq!(say(&artifact), say(&model), "{name} {more:?}");
        }
        let file = place.write("prompts.txt", b"w5 w9 w17\nw30\n");
        let batch = |from: &std::path::Path| kiln!("generate", from, "-n", "6", "--batch", &file).succeeds().out;
        assert_eq!(batch(&artifact), batch(&model));
        kiln!("generate", &artifact, "-p", &*"w7 ".repeat(25)).fails(6, "25 tokens do not fit");
        kiln!("generate", &artifact, "-p", "w5", "--context", "25").fails(6, "compiled for 24 positions");
        kiln!("generate", &artifact, "-p", "w5", "--cache", "int8").fails(2, "this artifact's is f32");
        kiln!("generate", &artifact, "-p", "w5", "--chat").fails(2, "--chat is for decoders");
        kiln!("eval", "score", &artifact, "--prompt", "w5", "--choice", "w6").fails(2, "is an encoder-decoder's");
        let mut bytes = std::fs::read(&artifact).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let damaged = place.write("damaged.kiln", &bytes);
        kiln!("generate", &damaged, "-p", "w5").fails(3, "damaged");
        let (decoder, of_decoder) = (fixture("tiny.gguf"), place.path("tiny.kiln"));
        kiln!("compile", &decoder, "-o", &of_decoder, "--context", "24").succeeds();
        kiln!("rebuild", &of_decoder, "--model", &model).fails(5, "is an encoder-decoder, the other is not");
    }
}

#[test]
fn entities_are_found_and_counted() {
    let place = folder("bert-ForTokenClassification");
    let config = std::fs::read_to_string(place.path("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["id2label"] = serde_json::json!({"0": "O", "1": "B-A", "2": "I-A"});
    place.write("config.json", config.to_string().as_bytes());
    let model = place.path("");
    // The words of the fixture's first text, and the classes that transformers finds most likely for each.
    let (text, tags) = token_classes();
    let found = kiln!("eval", "tokens", &model, "--text", &*text.join(" "), "--json").succeeds().json();
    let mut expected = Vec::new();
    for (n, tag) in tags.iter().enumerate() {
        match (*tag, expected.last_mut()) {
            ("O", _) => {}
            ("I-A", Some((_, end))) if *end == n => *end = n + 1,
            _ => expected.push((n, n + 1)),
        }
    }
    let entities = found["texts"][0]["entities"].as_array().unwrap();
    let want: Vec<String> = expected.iter().map(|(start, end)| text[*start..*end].join(" ")).collect();
    let got: Vec<&str> = entities.iter().map(|e| e["text"].as_str().unwrap()).collect();
    assert!(!want.is_empty() && got == want, "{got:?} and not {want:?} by {tags:?}");
    // Against the same tags all is found; against others not.
    let lines = |tags: &[&str]| text.iter().zip(tags).map(|(w, t)| format!("{w} x {t}\n")).collect::<String>();
    let evaluate = |tags: &[&str]| {
        let file = place.write("tags.txt", format!("{}\n{}", lines(tags), lines(tags)).as_bytes());
        kiln!("eval", "tokens", &model, "--tagged", &file, "--json").succeeds().json()
    };
    let all = evaluate(&tags);
    assert_eq!(all["micro"]["f1"], 1.0, "{all}");
    assert_eq!((&all["classes"]["A"]["support"], &all["words"]), (&(2 * want.len()).into(), &(2 * text.len()).into()));
    let none = evaluate(&vec!["O"; text.len()]);
    assert_eq!((&none["micro"]["precision"], &none["micro"]["recall"]), (&0.0.into(), &0.0.into()), "{none}");
    let wrong = place.write("wrong.txt", b"word\n");
    kiln!("eval", "tokens", &model, "--tagged", &wrong).fails(3, "line 1");
    kiln!("eval", "tokens", &model).fails(2, "--text");
}

#[test]
fn texts_of_a_batch_are_what_each_is_alone() {
    // XLNet fills shorter texts up before their beginning, the others behind their end.
    for family in ["xlnet", "deberta", "roberta"] {
        for (what, head) in
            [("classify", "ForSequenceClassification"), ("tokens", "ForTokenClassification"), ("embed", "Model")]
        {
            let place = folder(&format!("{family}-{head}"));
            let model = place.path("");
            let run = |batch: &str| {
                let words = ["w5 w9 w17 w2 w30", "w3", "w8 w1"];
                kiln!(
                    "eval", what, &model, "--text", words[0], "--text", words[1], "--text", words[2], "--batch", batch,
                    "--json"
                )
                .succeeds()
                .json()
            };
            let (mut together, mut alone) = (Vec::new(), Vec::new());
            numbers(&run("3"), &mut together);
            numbers(&run("1"), &mut alone);
            assert_eq!(together.len(), alone.len(), "{family} {what}");
            for (a, b) in together.iter().zip(&alone) {
                assert!((a - b).abs() < 1e-5, "{family} {what}: {a} and {b}");
            }
            // Words are found by texts alone where no entity has a number.
            assert!(what == "tokens" || !alone.is_empty());
        }
    }
}

/// The numbers of a report in their order.
fn numbers(report: &Value, all: &mut Vec<f64>) {
    match report {
        Value::Number(n) => all.extend(n.as_f64()),
        Value::Array(list) => list.iter().for_each(|v| numbers(v, all)),
        Value::Object(map) => map.values().for_each(|v| numbers(v, all)),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// The first text of the fixture as words, and the likeliest of three tags for each.
fn token_classes() -> (Vec<String>, Vec<&'static str>) {
    use kiln::checkpoint::{Safetensors, Weights};
    let file = std::fs::read(fixture("bert-ForTokenClassification").join("expected.safetensors")).unwrap();
    let expected = Safetensors::parse("expected", &file.into()).unwrap();
    let ids = expected.get("input_ids").unwrap();
    let words = ids.bytes.chunks(8).take(7).map(|b| format!("w{}", i64::from_le_bytes(b.try_into().unwrap())));
    let logits = expected.get("logits").unwrap();
    let values: Vec<f32> = logits.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let best = |row: &[f32]| (0..3).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
    (words.collect(), values.chunks(3).take(7).map(|row| ["O", "B-A", "I-A"][best(row)]).collect())
}

#[test]
fn questions_are_scored_with_examples_before_them() {
    let (place, model) = (Place::new(), fixture("tiny.gguf"));
    let score = |prompt: &str, choice: &str| {
        let report = kiln!("eval", "score", &model, "--prompt", prompt, "--choice", choice, "--json").succeeds().json();
        report["choices"][0]["log_probability"].as_f64().unwrap()
    };
    let tasks = br#"{"prompt": "the ", "choices": ["cat", "word"], "answer": 1}
{"prompt": "Hello, ", "choices": ["x", "cat", "world"]}"#;
    let tasks = place.write("tasks.jsonl", tasks);
    let examples = place.write("examples.jsonl", br#"{"prompt": "a ", "choices": ["b", "cat"], "answer": 1}"#);
    let plain = kiln!("eval", "score", &model, "--tasks", &tasks, "--json").succeeds().json();
    let shots = kiln!("eval", "score", &model, "--tasks", &tasks, "--examples", &examples, "--json").succeeds().json();
    for (report, before) in [(&plain, ""), (&shots, "a cat\n\n")] {
        let mut logs = Vec::new();
        for choice in report["tasks"][0]["choices"].as_array().unwrap() {
            let (text, log) = (choice["choice"].as_str().unwrap(), choice["log_probability"].as_f64().unwrap());
            let alone = score(&format!("{before}the "), text);
            assert!((log - alone).abs() < 1e-4 * alone.abs(), "{text}: {log} and not {alone}");
            logs.push((log, text));
        }
        assert!(logs[0].0 >= logs[1].0);
        let right = if logs[0].1 == "word" { 1.0 } else { 0.0 };
        assert_eq!((&report["accuracy"], &report["answered"]), (&right.into(), &1.into()));
    }
    assert_ne!(plain["tasks"][0], shots["tasks"][0]);
    let wrong = place.write("wrong.jsonl", br#"{"prompt": "a", "choices": ["b"], "answer": 1}"#);
    kiln!("eval", "score", &model, "--tasks", &wrong).fails(3, "line 1: `answer` is 1");
    kiln!("eval", "score", &model).fails(2, "--choice");
}

#[test]
fn guesses_do_not_change_the_text() {
    let model = fixture("tiny.gguf");
    let place = Place::new();
    let prompts = place.write("prompts.txt", b"the cat the cat the cat\na\nwow wow wow, Hello\n");
    let texts = |most: &str| {
        kiln!("generate", &model, "--batch", &prompts, "-n", "40", "--lookup", most, "--json").succeeds().json()
    };
    let plain = texts("0");
    for most in ["1", "8"] {
        for (ahead, plain) in texts(most)["texts"].as_array().unwrap().iter().zip(plain["texts"].as_array().unwrap()) {
            assert_eq!((&ahead["tokens"], &ahead["stop"]), (&plain["tokens"], &plain["stop"]), "{most}: {plain}");
        }
    }
    kiln!("generate", &model, "--prompt", "the cat", "--context", "2", "--lookup", "2").fails(6, "3 tokens do not fit");
}

#[test]
fn constrained_text_is_what_was_asked_for() {
    let (place, model) = (Place::new(), fixture("tiny.gguf"));
    let text = |more: &[&str]| {
        let words = ["generate", model.to_str().unwrap(), "--prompt", "the", "-n", "60"];
        super::run(&words.iter().chain(more).map(|w| w as &dyn Word).collect::<Vec<_>>())
    };
    assert_eq!(
        text(&["--regex", "(yes|no), 中文!"]).succeeds().out.trim_start_matches(['y', 'e', 's', 'n', 'o']),
        ", 中文!\n"
    );
    for more in [&["--temperature", "3"][..], &["--beams", "3"], &["--lookup", "4"]] {
        let out = text(&[&["--regex", "[a-f]{3}-[0-9]{2}"], more].concat()).succeeds().out;
        let bytes = out.trim_end().as_bytes();
        let good = |(n, b): (usize, &u8)| match n {
            0..3 => (b'a'..=b'f').contains(b),
            3 => *b == b'-',
            _ => b.is_ascii_digit(),
        };
        assert!(bytes.len() == 6 && bytes.iter().enumerate().all(good), "{out:?}");
    }
    let schema = br#"{"properties": {"ok": {"type": "boolean"}, "n": {"type": "array", "items": {"enum": [1, 20]}, "minItems": 2, "maxItems": 3}},
                      "required": ["n", "ok"]}"#;
    let schema = place.write("schema.json", schema);
    let out = text(&["--json-schema", schema.to_str().unwrap(), "--temperature", "2", "--seed", "4"]).succeeds().out;
    let value: Value = serde_json::from_str(&out).unwrap();
    assert!(value["ok"].is_boolean() && (2..=3).contains(&value["n"].as_array().unwrap().len()), "{out}");
    text(&["--regex", "("]).fails(2, "unclosed group");
    text(&["--regex", "a", "--ignore-eos"]).fails(2, "cannot be used with");
    let schema = place.write("wrong.json", br#"{"type": "integer", "minimum": 0}"#);
    text(&["--json-schema", schema.to_str().unwrap()]).fails(2, "`minimum` is not supported");
    text(&["--json-schema", place.write("no.json", b"{").to_str().unwrap()]).fails(3, "not JSON");
    let words = folder("llama");
    kiln!("generate", &words.path(""), "--prompt", "w5", "--regex", "a").fails(3, "not parts of a text");
}

#[test]
fn an_adapter_is_merged_when_a_model_is_read_or_compiled() {
    let (place, sequence, adapter) = (folder("llama"), folder("t5"), fixture("adapter-llama"));
    let (model, artifact, adapted) =
        (place.path(""), place.path("adapted.kiln"), [&"--adapter" as &dyn Word, &adapter]);
    let say = |model: &std::path::Path, more: &[&dyn Word]| {
        let words = [&"generate" as &dyn Word, &model, &"-p", &"w5 w9", &"-n", &"12", &"--ignore-eos", &"--json"];
        super::run(&[&words[..], more].concat()).succeeds().json()["tokens"].clone()
    };
    let (plain, changed) = (say(&model, &[]), say(&model, &adapted));
    assert_ne!(plain, changed);
    kiln!("compile", &model, "-o", &artifact, "--adapter", &adapter, "--context", "32").succeeds();
    assert_eq!(say(&artifact, &[]), changed);
    kiln!("rebuild", &artifact, "--model", &model, "--adapter", &adapter).succeeds();
    kiln!("rebuild", &artifact, "--model", &model).fails(5, "differs");
    let text = place.write("t.txt", b"w5 w9 w17 w3");
    kiln!("eval", "perplexity", &model, "--text", &text, "--adapter", &adapter).succeeds();

    kiln!("generate", &artifact, "-p", "w5", "--adapter", &adapter).fails(2, "merged when a model is compiled");
    kiln!("generate", &model, "-p", "w5", "--adapter", &place.path("none"))
        .fails(3, "no such file in the adapter's folder");
    let said = kiln!("generate", &model, "-p", "w5", "--adapter", &fixture("adapter-gpt2"));
    said.fails(3, "12 that the model does not have: base_model.model.transformer.h.0.attn.c_attn.base_layer.bias");
    kiln!("generate", &sequence.path(""), "-p", "w5", "--adapter", &adapter).fails(2, "--adapter is for decoders");
}

#[test]
fn what_does_not_fit_is_said() {
    let (place, model) = (Place::new(), fixture("tiny.gguf"));
    kiln!("generate", &place.path("none.gguf"), "--prompt", "a").fails(2, "cannot read");
    kiln!("generate", &place.write("m.onnx", b"no"), "--prompt", "a").fails(2, "is no language model");
    kiln!("generate", &place.write("m.gguf", b"GGUF\x03\0\0\0"), "--prompt", "a").fails(3, "ends inside");
    let whole = std::fs::read(&model).unwrap();
    kiln!("generate", &place.write("c.gguf", &whole[..whole.len() - 64]), "--prompt", "a")
        .fails(3, "ends inside the data");
    kiln!("generate", &model, "--prompt", "").fails(3, "there are no tokens");
    kiln!("generate", &model, "--prompt", "the cat", "--context", "2").fails(6, "3 tokens do not fit");
    kiln!("generate", &model, "--prompt", "a", "--temperature", "-1").fails(2, "must not be negative");
    kiln!("generate", &model, "--prompt", "a", "--top-p", "2").fails(2, "from 0 to 1");
    kiln!("generate", &model, "--prompt", "a", "--logit-bias", "x").fails(2, "TOKEN=X");
    kiln!("generate", &model, "--prompt", "a", "--logit-bias", "999999=1")
        .fails(3, "token 999999 is not one of the model's");
    kiln!("generate", &model, "--prompt", "a", "--ban", "").fails(2, "must not be empty");
    kiln!("generate", &model, "--prompt", "a", "--stop", "").fails(2, "must not be empty");
    kiln!("eval", "score", &model, "--prompt", "a", "--choice", "").fails(3, "a choice: it is empty");
    kiln!("eval", "score", &model, "--choice", "a", "--prompt", "").fails(3, "there are no tokens");
    kiln!("generate", &model).fails(2, "--prompt");
    kiln!("eval", "embed", &model, "--text", "a").fails(2, "is no language model");
    // A tokenizer with more tokens than the model has.
    let other = folder("llama");
    let mut words: Value = serde_json::from_slice(&std::fs::read(other.path("tokenizer.json")).unwrap()).unwrap();
    words["model"]["vocab"]["w40"] = 40.into();
    other.write("tokenizer.json", words.to_string().as_bytes());
    kiln!("generate", &other.path(""), "--prompt", "w5")
        .fails(3, "it has 41 tokens, the model 40: it is of another model");
    kiln!("eval", "tokens", &other.path(""), "--text", "w5").fails(4, "models of the kind `llama` are not supported");
    // Weights of other sizes than the configuration says, all of them named.
    let other = folder("t5");
    let config = std::fs::read_to_string(other.path("config.json")).unwrap();
    other.write("config.json", config.replace("\"d_ff\": 24", "\"d_ff\": 23").as_bytes());
    let said =
        kiln!("generate", &other.path(""), "--prompt", "w5").fails(3, "encoder.block.0.layer.1.DenseReluDense.wi");
    assert!(said.err.contains("decoder.block.0.layer.2.DenseReluDense.wo"), "{}", said.err);
    // A file that ends early, and one of which the header is not one.
    let weights = std::fs::read(other.path("model.safetensors")).unwrap();
    other.write("model.safetensors", &weights[..weights.len() - 9]);
    kiln!("generate", &other.path(""), "--prompt", "w5").fails(3, "model.safetensors");
    other.write("model.safetensors", &[&[255; 8], &weights[8..]].concat());
    kiln!("generate", &other.path(""), "--prompt", "w5").fails(3, "model.safetensors");
    let folder = fixture("llama");
    kiln!("generate", &folder, "--prompt", "a").fails(3, "no file tokenizer.json");
}
