//! Pictures of a plan: its steps as a graph, its arena as a map.
//!
//! Invariant: what a picture says is read off the plan; names from the model are escaped for the format.

use kiln::ir::ops::Op;
use kiln::ir::plan::{Place, Plan, SlotId, Step};
use std::collections::HashMap;
use std::fmt::Write;

/// A picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Picture {
    /// The steps and what flows between them, as DOT (Graphviz draws it)
    Graph,
    /// The arena over time, as SVG: a box for each tensor, from its first to its last step
    Arena,
}

/// The text of a picture.
pub fn draw(picture: Picture, plan: &Plan) -> String {
    match picture {
        Picture::Graph => graph(plan),
        Picture::Arena => arena(plan),
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn escaped_xml(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// What a step is called.
fn label(plan: &Plan, step: &Step) -> (String, String) {
    match step {
        Step::Launch { kernel, .. } => match plan.kernels.get(*kernel) {
            Some(k) => (format!("{} {}", k.name, k.what), k.origin.to_string()),
            None => (format!("kernel {kernel}"), String::new()),
        },
        Step::Host { op: Op::Host(host), origin, .. } => (format!("host {}", host.function()), origin.to_string()),
        Step::Host { op, origin, .. } => (format!("host {}", op.name()), origin.to_string()),
        Step::Copy { .. } => ("copy".into(), String::new()),
        Step::Bind { origin, .. } => ("copy".into(), origin.to_string()),
        Step::Refuse { origin, .. } => ("check".into(), origin.to_string()),
        Step::If { origin, .. } => ("if".into(), origin.to_string()),
        Step::Loop(l) => (format!("loop over {} steps", l.body), l.origin.to_string()),
    }
}

fn graph(plan: &Plan) -> String {
    let mut text = format!("digraph \"{}\" {{\n", escaped(&plan.name));
    text.push_str(
        "  node [shape=box, fontname=\"sans-serif\", fontsize=10];\n  edge [fontname=\"sans-serif\", fontsize=8];\n",
    );
    let mut made: HashMap<SlotId, String> = HashMap::new();
    // Writing to a string cannot fail.
    for (n, (name, slot)) in plan.inputs.iter().enumerate() {
        let _ = writeln!(text, "  in{n} [label=\"{}\", shape=ellipse];", escaped(name));
        made.insert(*slot, format!("in{n}"));
    }
    let edge = |text: &mut String, made: &HashMap<SlotId, String>, slot: SlotId, to: &str| {
        // Weights have no maker, and would hide everything else.
        if let Some(from) = made.get(&slot) {
            let ty = plan.slots.get(slot).map(|s| s.ty.to_string()).unwrap_or_default();
            let _ = writeln!(text, "  {from} -> {to} [label=\"{}\"];", escaped(&ty));
        }
    };
    for (n, step) in plan.steps.iter().enumerate() {
        let (what, origin) = label(plan, step);
        let fill = match step {
            Step::Launch { .. } => "white",
            Step::Host { .. } => "orange",
            Step::Copy { .. } | Step::Bind { .. } => "lightgrey",
            Step::If { .. } | Step::Loop(_) | Step::Refuse { .. } => "lightblue",
        };
        let (what, origin) = (escaped(&what), escaped(&origin));
        let _ = writeln!(text, "  s{n} [label=\"{what}\\n{origin}\", style=filled, fillcolor={fill}];");
        let (reads, writes) = step.accesses();
        reads.iter().for_each(|slot| edge(&mut text, &made, *slot, &format!("s{n}")));
        made.extend(writes.iter().map(|slot| (*slot, format!("s{n}"))));
    }
    for (n, (name, slot)) in plan.outputs.iter().enumerate() {
        let _ = writeln!(text, "  out{n} [label=\"{}\", shape=ellipse];", escaped(name));
        edge(&mut text, &made, *slot, &format!("out{n}"));
    }
    text.push_str("}\n");
    text
}

/// Size of the map, in units of the picture.
const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 600.0;

fn arena(plan: &Plan) -> String {
    let (steps, bytes) = (plan.steps.len().max(1) as f64, plan.arena_bytes.max(1) as f64);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 -30 {WIDTH} {}\" font-family=\"sans-serif\">\n",
        HEIGHT + 40.0
    );
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "<text x=\"0\" y=\"-10\" font-size=\"16\">{}: {} steps from left to right, arena of {} bytes from top to bottom, \
         at most {} live at once</text>\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#f4f4f4\"/>",
        escaped_xml(&plan.name),
        plan.steps.len(),
        plan.arena_bytes,
        plan.live_bytes
    );
    for ((id, slot), life) in plan.slots.iter().zip(plan.lives()) {
        let (Place::Arena(at), Some((first, last))) = (slot.place, life) else { continue };
        let size = plan.slot_bytes(id);
        let maker = plan.steps.get(first).map(|step| label(plan, step)).unwrap_or_default();
        let name = slot.name.as_deref().unwrap_or_default();
        let title =
            format!("{name} {}: {size} bytes at {at}, steps {first} to {last}, by {} {}", slot.ty, maker.0, maker.1);
        let (x, width) = (first as f64 / steps * WIDTH, (last - first + 1) as f64 / steps * WIDTH);
        let (y, height) = (at as f64 / bytes * HEIGHT, size as f64 / bytes * HEIGHT);
        // Neighbours differ in colour: the golden angle goes round without coming back.
        let hue = (id.index() as f64 * 137.508) % 360.0;
        let _ = writeln!(
            text,
            "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" fill=\"hsl({hue:.0},60%,70%)\" \
             stroke=\"#444\" stroke-width=\"0.5\"><title>{}</title></rect>",
            escaped_xml(&title)
        );
    }
    text.push_str("</svg>\n");
    text
}
