//! Language model families compiled, against what transformers gave for the same weights, and the listings of examples/textbook against
//! torch.

#[path = "../../examples/textbook/listings/mod.rs"]
mod listings;

use kiln::checkpoint::{Element, Files, Folder, Loader, Safetensors, Weights};
use kiln::families::{Decoder, Extent, Form, Head, Past, Sequence, SequenceForm, Settings, TextEncoder, Wanted};
use kiln::lm::{
    BeamSearch, Ending, Generator, LanguageModel, PackedPrograms, ProgramOptions, Programs, Reading, Sampling, Scored,
    SequenceModel, SequencePrograms, Session, TextId, Texts, Together, score, score_together,
};
use kiln::nn::{CacheElement, Logits};
use kiln::runtime::cpu::Machine;
use kiln::runtime::engine::{Context, ModelOptions};
use kiln::runtime::memory::Budget;
use kiln::source::Within;
use kiln::{Activations, Options, Silent, compile_graph, default_levels};
use kiln_ir::{DType, Graph, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

type Tensors = BTreeMap<String, Tensor>;

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../frontend/tests/fixtures/lm").join(name)
}

/// The folder's model, and the inputs and outputs of a call.
fn fixture(name: &str) -> (Folder, Tensors) {
    let place = place(name);
    let files = Within(&place);
    let expected = Safetensors::parse("expected", &files.open("expected.safetensors").unwrap().unwrap()).unwrap();
    let tensor = |name: String| {
        let stored = expected.get(&name).unwrap();
        let dtype = match stored.element {
            Element::Float(_) => DType::F32,
            Element::Other(dtype) => dtype,
        };
        (name, Tensor::new(dtype, stored.shape.clone(), stored.bytes.clone()).unwrap())
    };
    (Folder::read(&files).unwrap(), expected.names().into_iter().map(tensor).collect())
}

/// A compiled graph, run by names.
struct Compiled {
    context: Context,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Compiled {
    fn new(graph: Graph) -> Compiled {
        let level = Machine::detect().choose(default_levels()).unwrap();
        let options = Options { levels: vec![level], ..Options::default() };
        let compiled = compile_graph(graph, &options, &mut Silent).unwrap();
        let model = compiled.load(&ModelOptions::default()).unwrap();
        let names = |list: &[(std::sync::Arc<str>, _)]| list.iter().map(|(n, _)| n.to_string()).collect();
        let (inputs, outputs) = (names(&model.plan().inputs), names(&model.plan().outputs));
        Compiled { context: Context::new(&model, 2, &Budget::unlimited()).unwrap(), inputs, outputs }
    }

    fn run(&mut self, given: &Tensors) -> Tensors {
        let inputs: Vec<Tensor> = self.inputs.iter().map(|n| given[n].clone()).collect();
        self.outputs.iter().cloned().zip(self.context.run(&inputs).unwrap()).collect()
    }
}

#[track_caller]
fn check(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= 1e-5 * largest, "{what}: {got} and not {want} of {largest}");
    }
}

/// Tokens `from..to` of every row of `[B, T]`.
fn part(all: &Tensor, from: usize, to: usize) -> Tensor {
    let (values, length) = (all.to_i64().unwrap(), all.shape()[1]);
    let picked: Vec<i64> = values.chunks(length).flat_map(|row| row[from..to].to_vec()).collect();
    Tensor::from_i64(&[all.shape()[0], to - from], &picked).unwrap()
}

/// Logits of all tokens in pieces, by one compiled graph.
fn decode(program: &mut Compiled, given: &Tensors, caches: &Tensors, pieces: &[usize]) -> Vec<f32> {
    let all = &given["tokens"];
    let (mut inputs, mut at) = (given.clone(), 0);
    inputs.extend(caches.clone());
    let mut logits = vec![Vec::new(); all.shape()[0]];
    for &count in pieces {
        inputs.insert("tokens".into(), part(all, at, at + count));
        let outputs = program.run(&inputs);
        for (name, new) in outputs.iter().filter(|(name, _)| name.starts_with("new_")) {
            let past = &inputs[&name.replace("new_", "past_")];
            let mut shape = past.shape().to_vec();
            shape[0] += count;
            let joined = Tensor::new(DType::F32, shape, [past.bytes(), new.bytes()].concat()).unwrap();
            inputs.insert(name.replace("new_", "past_"), joined);
        }
        let made = outputs["logits"].to_f32().unwrap();
        made.chunks(made.len() / logits.len()).zip(&mut logits).for_each(|(row, all)| all.extend_from_slice(row));
        at += count;
    }
    logits.concat()
}

fn form() -> Form {
    let past = Past::Prefix(Extent::Free);
    Form { batch: 2, tokens: Extent::Free, past, capacity: 16, logits: Logits::All, cache: CacheElement::F32 }
}

fn caches(layers: usize, heads: kiln::nn::Heads) -> Tensors {
    let kinds = [("k", heads.key_size), ("v", heads.value_size)];
    let empty = |size| Tensor::new(DType::F32, vec![0, 2, heads.keys, size], vec![]).unwrap();
    let each = (0..layers).flat_map(|l| kinds.map(|(kind, size)| (format!("past_{kind}.{l}"), empty(size))));
    each.collect()
}

/// The same graph serves all of these.
const PIECES: [&[usize]; 3] = [&[11], &[1; 11], &[5, 1, 3, 2]];

#[test]
fn decoders() {
    for name in ["llama", "llama3", "yarn", "mistral", "qwen2", "qwen3", "gpt2"] {
        let (folder, given) = fixture(name);
        let decoder = Decoder::from_json(&Settings::json("config.json", &folder.config)).unwrap();
        let graph = decoder.graph(&Loader::new(&folder.weights), &form()).unwrap();
        let mut program = Compiled::new(graph);
        for pieces in PIECES {
            let got = decode(&mut program, &given, &caches(decoder.layers(), decoder.heads()), pieces);
            check(&format!("{name} in {pieces:?}"), &got, &given["logits"].to_f32().unwrap());
        }
    }
}

#[test]
fn encoder_decoders() {
    for name in ["t5", "t5-gated", "bart", "marian"] {
        let (folder, mut given) = fixture(name);
        let model = Sequence::from_json(&Settings::json("config.json", &folder.config)).unwrap();
        let loader = Loader::new(&folder.weights);
        let form = SequenceForm { target: form(), source: Extent::Free, longest_source: 8 };
        let encoded = Compiled::new(model.encoder(&loader, &form).unwrap()).run(&given);
        given.extend(encoded);
        let mut program = Compiled::new(model.decoder(&loader, &form).unwrap());
        for pieces in PIECES {
            let got = decode(&mut program, &given, &caches(model.layers(), model.heads()), pieces);
            check(&format!("{name} in {pieces:?}"), &got, &given["logits"].to_f32().unwrap());
        }
    }
}

#[test]
fn encoders_with_each_head() {
    let mut heads = 0;
    let mut folders: Vec<PathBuf> = std::fs::read_dir(place("")).unwrap().map(|e| e.unwrap().path()).collect();
    folders.sort();
    for path in folders {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // Encoders have a head in their name; an adapter is none.
        if !name.contains("-Model") && !name.contains("-For") {
            continue;
        }
        let (folder, given) = fixture(&name);
        let settings = Settings::json("config.json", &folder.config);
        let architecture = folder.config["architectures"][0].as_str();
        let labels = folder.config["id2label"].as_object();
        let labels = labels.map(|l| l.keys().cloned().collect()).unwrap_or_default();
        let family = TextEncoder::from_json(&settings, architecture, labels).unwrap();
        let every = family.head == Head::Hidden;
        let wanted = Wanted { head: family.head, hidden_states: every, attentions: every, extents: (None, None) };
        let graph = family.graph(&Loader::new(&folder.weights), &wanted).unwrap();
        for (output, got) in Compiled::new(graph).run(&given) {
            // The first text has no padding, whose rows hold anything.
            let half = |t: &Tensor| t.to_f32().unwrap()[..t.len() / 2].to_vec();
            check(&format!("{name} {output}"), &half(&got), &half(&given[&output]));
        }
        heads += 1;
    }
    assert_eq!(heads, 36);
}

/// A fixture with the tokenizer of words.
struct WithWords(PathBuf);

impl Files for WithWords {
    fn open(&self, name: &str) -> Result<Option<bytes::Bytes>, String> {
        match name {
            "tokenizer.json" => Within(&place("")).open("words.json"),
            name => Within(&self.0).open(name),
        }
    }
}

fn program_options() -> ProgramOptions {
    let level = Machine::detect().choose(default_levels()).unwrap();
    ProgramOptions {
        capacity: 24,
        threads: 2,
        level,
        budget: Budget::unlimited(),
        all_logits: false,
        cache: None,
        activations: Activations::F32,
        precision: kiln::Precision::F32,
    }
}

#[test]
fn greedy_and_beam_search_find_what_those_of_transformers_find() {
    let cases: Vec<serde_json::Value> =
        serde_json::from_slice(&Within(&place("")).open("beams.json").unwrap().unwrap()).unwrap();
    assert_eq!(cases.len(), 36);
    for cases in cases.chunk_by(|a, b| a["model"] == b["model"]) {
        let files = WithWords(place(cases[0]["model"].as_str().unwrap()));
        let text = SequenceModel::of_folder(&files).map(|model| {
            let programs = SequencePrograms::new(&model, 8, &program_options(), &mut Silent).unwrap();
            (model, programs)
        });
        let mut text = text.map_err(|_| {
            let model = LanguageModel::of_folder(&files).unwrap();
            let programs = Programs::new(&model, &program_options(), &mut Silent).unwrap();
            (model, programs)
        });
        for case in cases {
            let number = |key: &str| case[key].as_u64().unwrap_or(0) as usize;
            let mut sampling = match &text {
                Ok((model, _)) => model.sampling(Some(number("tokens"))),
                Err(_) => Sampling::default(),
            };
            sampling.no_repeat = number("no_repeat");
            sampling.bias.extend(case["end_bias"].as_f64().map(|bias| (number("end") as u32, bias)));
            let search = BeamSearch {
                beams: number("beams"),
                length_penalty: case["length_penalty"].as_f64().unwrap(),
                ending: match case["ending"].as_str().unwrap() {
                    "full" => Ending::Full,
                    "exact" => Ending::Exact,
                    _ => Ending::Unlikely,
                },
                max_tokens: number("tokens"),
                sampling,
                constraint: None,
            };
            let settings = kiln::lm::Settings {
                sampling: search.sampling.clone(),
                max_tokens: Some(search.max_tokens),
                ..Default::default()
            };
            let tokens =
                |tokenizer: &kiln::lm::Tokenizer| tokenizer.encode(case["prompt"].as_str().unwrap(), true).unwrap();
            let (found, greedy) = match &mut text {
                Ok((model, programs)) => {
                    let (source, begin, ends) = (tokens(model.tokenizer()), model.begin(), model.ends());
                    let mut session = programs.begin(&source).unwrap();
                    let mut generator = Generator::of_targets(model, programs);
                    let greedy = generator.run(&mut session, &begin, &settings, &mut |_| true).unwrap();
                    (search.run(programs.decoder(), session, &begin, ends).unwrap(), greedy)
                }
                Err((model, programs)) => {
                    let prompt = tokens(model.tokenizer());
                    let mut session = Session::new(programs).unwrap();
                    let mut generator = Generator::new(model, programs);
                    let greedy = generator.run(&mut session, &prompt, &settings, &mut |_| true).unwrap();
                    (search.run(programs, session, &prompt, model.ends()).unwrap(), greedy)
                }
            };
            let wanted = case["found"].as_array().unwrap();
            assert_eq!(found.len(), wanted.len(), "{case}");
            for (found, want) in found.iter().zip(wanted) {
                assert_eq!(serde_json::json!(found.tokens), want["tokens"], "{case}");
                if let Some(score) = want["score"].as_f64() {
                    assert!(
                        (found.score - score).abs() < 1e-5 * score.abs(),
                        "{} and not {score}: {case}",
                        found.score
                    );
                }
            }
            // One beam is greedy.
            if search.beams == 1 {
                assert_eq!(greedy.tokens, found[0].tokens, "{case}");
            }
        }
    }
}

#[test]
fn sessions_fork_rewind_and_keep_what_they_share() {
    let model = LanguageModel::of_folder(&WithWords(place("llama"))).unwrap();
    let mut programs = Programs::new(&model, &program_options(), &mut Silent).unwrap();
    let alone = |programs: &mut Programs, tokens: &[u32]| {
        let mut session = Session::new(programs).unwrap();
        session.prefill(programs, tokens).unwrap().clone()
    };
    let mut first = Session::new(&programs).unwrap();
    first.prefill(&mut programs, &[4, 7, 9]).unwrap();
    let mut second = first.fork(&programs).unwrap();
    assert_eq!(second.logits_mut(), first.logits_mut());
    let (a, b) = (first.step(&mut programs, 11).unwrap().clone(), second.step(&mut programs, 12).unwrap().clone());
    check("first", &a, &alone(&mut programs, &[4, 7, 9, 11]));
    check("second", &b, &alone(&mut programs, &[4, 7, 9, 12]));
    // After the fork neither sees the other's tokens.
    check("again", &first.step(&mut programs, 5).unwrap().clone(), &alone(&mut programs, &[4, 7, 9, 11, 5]));
    second.rewind(2);
    assert!(second.logits_mut().is_empty() && second.tokens() == [4, 7]);
    check("rewound", &second.step(&mut programs, 30).unwrap().clone(), &alone(&mut programs, &[4, 7, 30]));
    // A text that begins as the session's does is read from where it differs, its last token always.
    assert_eq!(second.continue_with(&mut programs, &[4, 7, 30, 31]).unwrap(), 3);
    assert_eq!(second.continue_with(&mut programs, &[4, 7, 8]).unwrap(), 2);
    assert_eq!(second.continue_with(&mut programs, &[4, 7]).unwrap(), 1);
    check("kept", &second.logits_mut().clone(), &alone(&mut programs, &[4, 7]));
    // What fails leaves a session as it was.
    assert!(second.prefill(&mut programs, &[1; 23]).unwrap_err().to_string().contains("2 of 24 positions"));
    assert!(second.step(&mut programs, 40).unwrap_err().to_string().contains("token 40 is not one of the model's 40"));
    assert!(second.prefill(&mut programs, &[]).unwrap_err().to_string().contains("no tokens"));
    assert_eq!(second.tokens(), [4, 7]);
    check("unharmed", &second.step(&mut programs, 8).unwrap().clone(), &alone(&mut programs, &[4, 7, 8]));
}

#[test]
fn caches_of_fewer_bits_are_smaller_and_nearly_as_exact() {
    let tokens: Vec<u32> = (0..20).map(|n| (n * 7 + 3) % 40).collect();
    let programs = |name: &str, cache: CacheElement| {
        let model = LanguageModel::of_folder(&WithWords(place(name))).unwrap();
        let options = ProgramOptions { cache: Some(cache), ..program_options() };
        Programs::new(&model, &options, &mut Silent).unwrap()
    };
    // What is said of the tokens, read in pieces, and the bytes of the cache.
    let said = |programs: &mut Programs, pieces: &[usize]| {
        let mut session = Session::new(programs).unwrap();
        let mut at = 0;
        for &length in pieces {
            session.prefill(programs, &tokens[at..at + length]).unwrap();
            at += length;
        }
        (session.logits_mut().clone(), session.cache_bytes())
    };
    let distance = |a: &[f32], b: &[f32]| {
        let largest = b.iter().fold(0f32, |m, v| m.max(v.abs()));
        a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
    };
    use CacheElement::{Bf16, F16, F32, Int8};
    for (name, elements) in [("llama", &[F16, Bf16, Int8][..]), ("gpt2", &[Int8])] {
        let (exact, bytes) = said(&mut programs(name, F32), &[20]);
        for &cache in elements {
            let mut programs = programs(name, cache);
            let (at_once, fewer) = said(&mut programs, &[20]);
            // Half a step is 2^-12 of a number in f16, 2^-9 in bf16, and 1/254 of the largest number of a head in bytes; the rest is
            // what layers make of it.
            let (half, smaller) = match cache {
                F32 => (0.0, 1),
                F16 => (1.0 / 4096.0, 2),
                Bf16 => (1.0 / 512.0, 2),
                Int8 => (1.0 / 254.0, 2),
            };
            let error = distance(&at_once, &exact);
            assert!(error > 0.0 && error < 4.0 * half, "{name} in {cache}: {error}");
            assert!(fewer <= bytes / smaller, "{name} in {cache}: {fewer} of {bytes} bytes");
            // New keys are rounded before they are seen, so it matters little how tokens come: a number between two steps may fall on
            // either side.
            for pieces in [&[1; 20][..], &[5, 1, 11, 3]] {
                let error = distance(&said(&mut programs, pieces).0, &at_once);
                assert!(error < 0.5 * half, "{name} in {cache} and {pieces:?}: {error}");
            }
        }
    }
}

#[test]
fn texts_read_together_are_as_if_they_were_alone() {
    for (name, cache) in [("llama", CacheElement::F32), ("mistral", CacheElement::F32), ("gpt2", CacheElement::Int8)] {
        let model = LanguageModel::of_folder(&WithWords(place(name))).unwrap();
        let options = ProgramOptions { cache: Some(cache), ..program_options() };
        let mut alone = Programs::new(&model, &options, &mut Silent).unwrap();
        let mut all = PackedPrograms::new(&model, &ProgramOptions { capacity: 48, ..options }, &mut Silent).unwrap();
        let mut texts = Texts::new(&all).unwrap();
        let common = [4u32, 7, 9];
        texts.begin_all_with(&mut all, &common).unwrap();
        // Texts of several lengths, of which the middle one ends and leaves its place to another.
        let mut sessions: Vec<(TextId, Session)> = Vec::new();
        let begin = |texts: &mut Texts, alone: &mut Programs| {
            let mut session = Session::new(alone).unwrap();
            session.prefill(alone, &common).unwrap();
            (texts.begin(), session)
        };
        for _ in 0..3 {
            sessions.push(begin(&mut texts, &mut alone));
        }
        let calls: [&[&[u32]]; 3] =
            [&[&[1, 2, 3, 4, 5], &[30], &[8, 9]], &[&[6], &[7, 7, 7], &[1]], &[&[2], &[3, 5, 8], &[3]]];
        for (n, call) in calls.into_iter().enumerate() {
            if n == 2 {
                texts.end(sessions[1].0);
                sessions[1] = begin(&mut texts, &mut alone);
            }
            let readings: Vec<Reading<'_>> =
                sessions.iter().zip(call).map(|((text, _), tokens)| Reading::last(*text, tokens)).collect();
            let got = texts.read(&mut all, &readings).unwrap();
            for (((_, session), tokens), got) in sessions.iter_mut().zip(call).zip(got) {
                check(&format!("{name}, call {n}"), &got, session.prefill(&mut alone, tokens).unwrap());
            }
        }
        // What fails leaves the texts as they were; all texts share the capacity.
        let (text, session) = &mut sessions[0];
        let error = texts.read(&mut all, &[Reading::last(*text, &[1; 40])]).unwrap_err().to_string();
        assert!(error.contains("of 48 positions"), "{error}");
        assert!(texts.read(&mut all, &[Reading::last(*text, &[40])]).unwrap_err().to_string().contains("token 40"));
        let every = texts.read(&mut all, &[Reading { text: *text, tokens: &[8, 1], logits_from: 0 }]).unwrap();
        let first = session.prefill(&mut alone, &[8]).unwrap().clone();
        check("every token", &every[0], &[first, session.prefill(&mut alone, &[1]).unwrap().clone()].concat());
        // Scores too; the longer beginning is read once, and again only from where it differs.
        for (text, _) in sessions.drain(..) {
            texts.end(text);
        }
        let mut each = Programs::new(&model, &ProgramOptions { all_logits: true, ..program_options() }, &mut Silent);
        if cache == CacheElement::F32 {
            let programs = each.as_mut().unwrap();
            for choices in [[&[4u32, 7, 9, 3, 2, 8][..], &[4, 7, 9, 3, 1]], [&[4, 7, 2, 5], &[4, 7, 2, 6, 1, 9]]] {
                let given = choices.map(|tokens| (3, tokens));
                for (tokens, got) in choices.iter().zip(score_together(&mut all, &mut texts, &given).unwrap()) {
                    let mut want = Scored::default();
                    score(programs, &mut Session::new(programs).unwrap(), tokens, 3, &mut want).unwrap();
                    assert_eq!((got.log_probabilities.len(), got.greedy), (tokens.len() - 3, want.greedy));
                    let pairs = got.log_probabilities.iter().zip(&want.log_probabilities);
                    assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-5), "{got:?} and not {want:?}");
                }
            }
        }
    }
}

#[test]
fn prompts_continued_together_give_the_texts_of_each() {
    let model = LanguageModel::of_folder(&WithWords(place("llama"))).unwrap();
    let mut alone = Programs::new(&model, &program_options(), &mut Silent).unwrap();
    let options = ProgramOptions { capacity: 72, ..program_options() };
    let mut all = PackedPrograms::new(&model, &options, &mut Silent).unwrap();
    let prompts: Vec<Vec<u32>> = vec![vec![4, 7, 9], vec![1], vec![30, 2, 8, 8, 5, 6, 7], vec![11; 12], vec![3, 4]];
    let settings = kiln::lm::Settings { max_tokens: Some(9), ignore_end: true, ..Default::default() };
    let made = Together { model: &model, settings: &settings, most: 3 }.run(&mut all, &prompts).unwrap();
    for (prompt, made) in prompts.iter().zip(&made) {
        let mut session = Session::new(&alone).unwrap();
        let single = Generator::new(&model, &mut alone).run(&mut session, prompt, &settings, &mut |_| true).unwrap();
        assert_eq!((&made.tokens, &made.text, &made.stop), (&single.tokens, &single.text, &single.stop));
    }
    let error = Together { model: &model, settings: &settings, most: 9 }.run(&mut all, &prompts).unwrap_err();
    assert!(error.to_string().contains("of 8 positions"), "{error}");
}

#[test]
fn textbook_listings_are_what_torch_makes_of_them() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/textbook/arrays.safetensors");
    let arrays = Safetensors::parse("arrays", &std::fs::read(file).unwrap().into()).unwrap();
    let mut probabilities = Vec::new();
    for listing in listings::LISTINGS {
        let mut program = Compiled::new((listing.graph)(&arrays).unwrap());
        let inputs = listings::inputs(&arrays, listing.name, &program.inputs).unwrap();
        let given: Tensors = program.inputs.iter().cloned().zip(inputs).collect();
        for (name, got) in program.run(&given) {
            let want = listings::outputs(&arrays, listing.name, &name).unwrap();
            assert_eq!(got.shape(), want.shape(), "{} {name}", listing.name);
            check(&format!("{} {name}", listing.name), &got.to_f32().unwrap(), &want.to_f32().unwrap());
            if name == "probabilities" {
                probabilities.push(got.to_f32().unwrap());
            }
        }
    }
    // What the text says of the first listing: its target sees what it is to predict, unless there is a mask.
    let differ = |a: &[f32], b: &[f32]| a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-4);
    assert!(differ(&probabilities[0], &probabilities[1]));
    // And of decoding: temperature acts where tokens are drawn, and perplexity is at least 1 and at most the vocabulary's size.
    use listings::decoding::{drawn, perplexity};
    let logits = [2.0, 1.0, 0.0, -1.0];
    assert_eq!(drawn(&logits, 0.0), [1000, 0, 0, 0]);
    let (cold, hot) = (drawn(&logits, 0.5), drawn(&logits, 5.0));
    assert!(cold[0] > 800 && hot[0] < 450 && hot[3] > 100, "{cold:?} {hot:?}");
    assert!((perplexity(&[vec![0.0; 4]], &[3]) - 4.0).abs() < 1e-9);
    let knows = perplexity(&[logits.to_vec()], &[0]);
    assert!((knows - (1.0 + (-1f64).exp() + (-2f64).exp() + (-3f64).exp())).abs() < 1e-6, "{knows}");
}

#[test]
fn pieces_of_a_gguf_vocabulary_are_those_of_sentencepiece() {
    let model = LanguageModel::open(&place("spm.gguf")).unwrap();
    let cases: Vec<serde_json::Value> =
        serde_json::from_slice(&Within(&place("")).open("spm.json").unwrap().unwrap()).unwrap();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let tokens = model.tokenizer().encode(text, true).unwrap();
        assert_eq!(serde_json::json!(tokens), case["tokens"], "{text:?}");
        assert_eq!(model.tokenizer().decode(&tokens).unwrap(), format!(" {text}"));
        // What follows a text has the space before its first word.
        let mut stream = kiln::lm::TextStream::after(model.tokenizer(), &tokens).unwrap();
        let pieces = tokens[1..].iter().map(|&t| stream.push(model.tokenizer(), t).unwrap());
        let mut all: String = pieces.collect();
        all.push_str(&stream.finish(model.tokenizer()).unwrap());
        assert_eq!(all, format!(" {text}"));
    }
}
