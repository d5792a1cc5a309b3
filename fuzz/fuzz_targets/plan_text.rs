//! Text as a plan, as an artifact holds it: what parses is verified without harm.
#![no_main]

use kiln_ir::plan::Plan;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(plan) = Plan::parse(text) {
        let _ = plan.verify();
    }
});
