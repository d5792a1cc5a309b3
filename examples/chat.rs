//! A chat with a language model: `cargo run --release --example chat MODEL`, where MODEL is a GGUF file or a folder with
//! config.json, safetensors and tokenizer.json. A line is a message; what was said before is kept and not read again.

use kiln::lm::{Generator, LanguageModel, Message, ProgramOptions, Programs, Sampling, Session, Settings};
use kiln::runtime::{cpu::Machine, memory::Budget};
use std::io::{BufRead, Write, stdin, stdout};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: chat MODEL")?;
    let model = LanguageModel::open(path.as_ref())?;
    let level = Machine::detect().choose(kiln::default_levels()).ok_or("no code for this machine")?;
    let options = ProgramOptions {
        capacity: model.context().min(2048),
        threads: std::thread::available_parallelism()?.get(),
        level,
        budget: Budget::unlimited(),
        all_logits: false,
        cache: None,
        activations: kiln::Activations::F32,
        precision: kiln::Precision::F32,
    };
    let mut programs = Programs::new(&model, &options, &mut kiln::Silent)?;
    let mut session = Session::new(&programs)?;
    let sampling = Sampling { temperature: 0.7, top_p: 0.9, ..Sampling::default() };
    let settings = Settings { sampling, max_tokens: Some(256), ..Settings::default() };
    let mut messages = Vec::new();
    for line in stdin().lock().lines() {
        messages.push(Message::new("user", &line?));
        let prompt = model.chat(&messages)?;
        let answer = Generator::new(&model, &mut programs).run(&mut session, &prompt, &settings, &mut |text| {
            print!("{text}");
            stdout().flush().is_ok()
        })?;
        println!();
        messages.push(Message::new("assistant", &answer.text));
    }
    Ok(())
}
