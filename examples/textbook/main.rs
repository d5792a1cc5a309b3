//! The listings that courses and articles show, as models in Kiln's own language: `cargo run --release --example textbook`.
//!
//! Each module has one listing as it is usually written, says where it is wrong, and makes a graph. The graphs are compiled and compared
//! with what torch gave for a transcription of the listing (`tests/scripts/textbook_arrays.py` made `arrays.safetensors`).

mod listings;

use kiln::checkpoint::Safetensors;
use kiln::runtime::{cpu::Machine, engine::Context, engine::ModelOptions, memory::Budget};
use kiln::{Options, Silent, compile_graph};
use listings::{LISTINGS, decoding, inputs, outputs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/textbook/arrays.safetensors");
    let arrays = Safetensors::parse("arrays.safetensors", &std::fs::read(file)?.into())?;
    let level = Machine::detect().choose(kiln::default_levels()).ok_or("no code for this machine")?;
    let options = Options { levels: vec![level], ..Options::default() };
    for listing in LISTINGS {
        let model = compile_graph((listing.graph)(&arrays)?, &options, &mut Silent)?.load(&ModelOptions::default())?;
        let names: Vec<String> = model.plan().inputs.iter().map(|(name, _)| name.to_string()).collect();
        let mut context = Context::new(&model, 1, &Budget::unlimited())?;
        let made = context.run(&inputs(&arrays, listing.name, &names)?)?;
        for ((name, _), got) in model.plan().outputs.iter().zip(made) {
            let want = outputs(&arrays, listing.name, name)?;
            let pairs = got.to_f32().unwrap_or_default().into_iter().zip(want.to_f32().unwrap_or_default());
            let error = pairs.map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            println!("{}: {name} {:?}, at most {error:.1e} from torch", listing.name, want.shape());
        }
    }
    decoding::show();
    Ok(())
}
