//! The engine on plans with hand-assembled kernels, so that no compiler is needed here.
#![cfg(target_arch = "x86_64")]

use std::io::Cursor;

use kiln_ir::graph::{Origin, TensorType};
use kiln_ir::ops::{Gather, Op};
use kiln_ir::plan::{Kernel, Place, Plan, Slot, SlotId, Step};
use kiln_ir::{DType, Tensor};

use super::*;
use crate::artifact::{
    KernelEntry, KernelTable, Manifest, PLAN, Section, WEIGHTS, code_section, kernels_section, write_to,
};
use crate::cpu::CpuLevel;
use crate::memory::{Budget, Buffer};

/// `for p in lo..hi { args[1][p] = 2 * args[0][p] }` on i32, giving 0.
const DOUBLE: &[u8] = &[
    0x4c, 0x8b, 0x07, // mov r8, [rdi]
    0x4c, 0x8b, 0x4f, 0x08, // mov r9, [rdi+8]
    0x48, 0x39, 0xca, // cmp rdx, rcx
    0x7d, 0x0f, // jge to the end
    0x41, 0x8b, 0x04, 0x90, // mov eax, [r8+rdx*4]
    0x01, 0xc0, // add eax, eax
    0x41, 0x89, 0x04, 0x91, // mov [r9+rdx*4], eax
    0x48, 0xff, 0xc2, // inc rdx
    0xeb, 0xec, // jmp to the comparison
    0x31, 0xc0, // xor eax, eax
    0xc3, // ret
];
/// Fails with status 7.
const FAIL: &[u8] = &[0xb8, 7, 0, 0, 0, 0xc3];

fn kernel(name: &str, origin: &str) -> Kernel {
    let origin = Origin::new(origin);
    Kernel { name: name.into(), origin, what: "map".into(), operations: 8, bytes: 64 }
}

fn slot(plan: &mut Plan, dtype: DType, dims: &[usize], place: Place) -> SlotId {
    plan.slots.push(Slot { name: None, ty: TensorType::of(dtype, dims), place })
}

/// `y = double(double(x))`, `z = gather(y, weights)`: two launches, a copy and a host op.
fn plan() -> Plan {
    let mut p = Plan { name: "test".into(), arena_bytes: 128, live_bytes: 64, weight_bytes: 64, ..Plan::default() };
    p.kernels = vec![kernel("k0", "Double_0"), kernel("k1", "Gather_12")];
    let x = slot(&mut p, DType::I32, &[8], Place::Input(0));
    let a = slot(&mut p, DType::I32, &[8], Place::Arena(0));
    let b = slot(&mut p, DType::I32, &[8], Place::Arena(64));
    let y = slot(&mut p, DType::I32, &[8], Place::Output(0));
    let w = slot(&mut p, DType::I64, &[2], Place::Weights(0));
    let z = slot(&mut p, DType::I32, &[2], Place::Output(1));
    let empty = slot(&mut p, DType::I32, &[0], Place::Output(2));
    p.inputs = vec![("x".into(), x)];
    p.outputs = vec![("y".into(), y), ("z".into(), z), ("empty".into(), empty)];
    let launch = |kernel, from, to| Step::Launch { kernel, arguments: vec![from, to], written: 1 };
    let origin = Origin::new("Pick_3");
    let all = Step::Launch { kernel: 0, arguments: vec![x, b, empty], written: 2 };
    p.steps = vec![launch(0, x, a), launch(0, a, b), Step::Copy { from: b, to: y }, all];
    p.steps.push(Step::Host { op: Op::Gather(Gather { axis: 0 }), inputs: vec![y, w], outputs: vec![z], origin });
    p
}

fn artifact(plan: &Plan, indices: [i64; 2], levels: &[CpuLevel]) -> Buffer {
    let entry = |name: &str, offset, bytes: &[u8]| KernelEntry {
        name: name.into(),
        offset,
        bytes: bytes.len() as u64,
        grain: 1,
        emitter: "hand".into(),
        programs: 8.into(),
    };
    let mut code = DOUBLE.to_vec();
    code.resize(64, 0xcc);
    code.extend_from_slice(FAIL);
    let table = KernelTable(vec![entry("k0", 0, DOUBLE), entry("k1", 64, FAIL)]).to_string();
    let mut weights: Vec<u8> = indices.iter().flat_map(|i| i.to_le_bytes()).collect();
    weights.resize(64, 0);
    let text = plan.to_string();
    let mut sections = vec![Section::new(PLAN, text.as_bytes()), Section::new(WEIGHTS, &weights)];
    for level in levels {
        sections.push(Section::new(code_section(*level), &code));
        sections.push(Section::new(kernels_section(*level), table.as_bytes()));
    }
    let mut file = Cursor::new(Vec::new());
    let manifest = Manifest { compiler: "test".into(), ..Manifest::default() };
    write_to(&mut file, &manifest, sections).unwrap();
    Buffer::copy_of(&Budget::unlimited(), file.get_ref(), "a file").unwrap()
}

fn load(plan: &Plan, indices: [i64; 2]) -> Result<Model, LoadError> {
    Model::from_buffer(artifact(plan, indices, &[CpuLevel::Portable]), &ModelOptions::default())
}

fn ints(values: &[i32]) -> Tensor {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor::new(DType::I32, vec![values.len()], bytes).unwrap()
}

#[test]
fn launches_copies_and_host_ops_run_on_any_number_of_threads() {
    let model = load(&plan(), [-1, 2]).unwrap();
    assert_eq!(model.level(), CpuLevel::Portable);
    for threads in [1, 3] {
        let mut context = Context::new(&model, threads, &Budget::unlimited()).unwrap();
        for round in 1..4 {
            let values: Vec<i32> = (0..8).map(|v| v * round).collect();
            let outputs = context.run(&[ints(&values)]).unwrap();
            let want: Vec<i32> = values.iter().map(|v| v * 4).collect();
            assert_eq!(outputs[0], ints(&want));
            assert_eq!(outputs[1], ints(&[want[7], want[2]]));
            assert_eq!(outputs[2], ints(&[]));
        }
    }
}

#[test]
fn inputs_of_any_alignment_are_taken() {
    let model = load(&plan(), [0, 1]).unwrap();
    let mut context = Context::new(&model, 1, &Budget::unlimited()).unwrap();
    let bytes: Vec<u8> = (0..9i32).flat_map(|v| v.to_le_bytes()).collect();
    let shared = bytes::Bytes::from(bytes);
    for at in [0, 1, 3] {
        let tensor = Tensor::new(DType::I32, vec![8], shared.slice(at..at + 32)).unwrap();
        let first = tensor.to_i64().unwrap()[0] as i32;
        context.load(&[tensor]).unwrap();
        for _ in 0..2 {
            context.run_loaded().unwrap();
            let got = context.output_bytes(0).unwrap().first_chunk::<4>().copied().unwrap();
            assert_eq!(i32::from_le_bytes(got), first.wrapping_mul(4));
        }
    }
    assert!(context.output_bytes(3).is_none());
}

/// `y = double(double(x))` over a free dim.
fn free_plan() -> Plan {
    let n = || vec![kiln_ir::Expr::symbol("n")];
    let mut p = Plan { name: "free".into(), symbols: vec![(kiln_ir::Symbol::new("n"), (0, 100))], ..Plan::default() };
    p.kernels = vec![kernel("k0", "Double_0"), kernel("k1", "Fail_1")];
    let mut slot = |place| p.slots.push(Slot { name: None, ty: TensorType::new(DType::I32, n()), place });
    let (x, a, y) = (slot(Place::Input(0)), slot(Place::Region(0)), slot(Place::Output(0)));
    p.regions = vec![kiln_ir::Expr::symbol("n").scale(4)];
    p.inputs = vec![("x".into(), x)];
    p.outputs = vec![("y".into(), y)];
    let launch = |from, to| Step::Launch { kernel: 0, arguments: vec![from, to], written: 1 };
    p.steps = vec![launch(x, a), launch(a, y)];
    p
}

#[test]
fn free_dims_come_from_the_inputs() {
    let mut text = free_plan().to_string();
    let model = |text: &str, programs: &str| {
        let mut code = DOUBLE.to_vec();
        code.resize(64, 0xcc);
        code.extend_from_slice(FAIL);
        let table = format!("k0 0 {} 1 hand {programs}\nk1 64 {} 1 hand 1\n", DOUBLE.len(), FAIL.len());
        let level = CpuLevel::Portable;
        let sections = vec![
            Section::new(PLAN, text.as_bytes()),
            Section::new(code_section(level), &code),
            Section::new(kernels_section(level), table.as_bytes()),
        ];
        let mut file = Cursor::new(Vec::new());
        write_to(&mut file, &Manifest { compiler: "test".into(), ..Manifest::default() }, sections).unwrap();
        let buffer = Buffer::copy_of(&Budget::unlimited(), file.get_ref(), "a file").unwrap();
        Model::from_buffer(buffer, &ModelOptions::default())
    };
    let loaded = model(&text, "n").unwrap();
    let mut context = Context::new(&loaded, 2, &Budget::unlimited()).unwrap();
    for n in [3, 1, 100, 0, 7] {
        let x: Vec<i32> = (0..n).collect();
        let want: Vec<i32> = x.iter().map(|v| 4 * v).collect();
        assert_eq!(context.run(&[ints(&x)]).unwrap(), [ints(&want)]);
    }
    let error = context.run(&[ints(&[0; 101])]).unwrap_err();
    assert_eq!(error.to_string(), "n = 101 in `x` is outside its range 0..100");
    assert!(error.is_data());
    // Memory of the caller's: the first half of a buffer is read, the second one written.
    let mut memory = Buffer::zeroed(&Budget::unlimited(), 256, "a cache").unwrap();
    memory.as_mut_slice()[..8].copy_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
    let (past, room) = memory.as_mut_slice().split_at_mut(128);
    let input = Lent { dtype: DType::I32, shape: &[2], bytes: &past[..8] };
    context.run_lent(&[input], &mut [(0, &mut room[..8])]).unwrap();
    assert_eq!(room[..8], [4, 0, 0, 0, 20, 0, 0, 0]);
    // Not aligned: copied there and back.
    let input = Lent { dtype: DType::I32, shape: &[1], bytes: &past[4..8] };
    context.run_lent(&[input], &mut [(0, &mut room[12..16])]).unwrap();
    assert_eq!(room[8..16], [0, 0, 0, 0, 20, 0, 0, 0]);
    let error = context.run_lent(&[input], &mut [(0, &mut room[..8])]).unwrap_err();
    assert_eq!(error.to_string(), "output \"y\" has 4 bytes, memory of 8 bytes was lent for it");
    let longer = Lent { bytes: &past[..8], ..input };
    assert!(context.run_lent(&[longer], &mut []).unwrap_err().to_string().contains("8 bytes"));
    assert!(matches!(context.run_loaded(), Err(RunError::NoInputs)));
    // A requirement that does not hold, and a grid over a dim that is not there.
    text = text.replace("  kernel \"k0\"", "  require n = 2*floordiv(n, 2) from [\"Halves_1\"]\n  kernel \"k0\"");
    let loaded = model(&text, "n").unwrap();
    let error = Context::new(&loaded, 1, &Budget::unlimited()).unwrap().run(&[ints(&[1, 2, 3])]).unwrap_err();
    assert_eq!(error.to_string(), "Halves_1 needs n = 2*floordiv(n, 2), which are 3 and 2 for n = 3");
    let error = model(&text, "m").unwrap_err().to_string();
    assert!(error.contains("the grid of k0 is over `m`, which is no symbol"), "{error}");
    // A region that is too small for its slot.
    let small = text.replace("region 0 of 4*n", "region 0 of 2*n");
    let loaded = model(&small, "n").unwrap();
    let error = Context::new(&loaded, 1, &Budget::unlimited()).unwrap().run(&[ints(&[1, 2])]).unwrap_err();
    assert!(matches!(error, RunError::Internal(_)), "{error}");
}

#[test]
fn wrong_inputs_are_named() {
    let model = load(&plan(), [0, 1]).unwrap();
    let mut context = Context::new(&model, 1, &Budget::unlimited()).unwrap();
    let error = context.run(&[]).unwrap_err();
    assert_eq!(error.to_string(), "the model has 1 inputs (x), 0 were given");
    let error = context.run(&[ints(&[1])]).unwrap_err();
    assert_eq!(error.to_string(), "input \"x\" must be i32[8], but i32[1] was given");
    assert!(matches!(context.run_loaded(), Err(RunError::NoInputs)));
}

#[test]
fn broken_rules_name_the_nodes() {
    let mut failing = plan();
    failing.steps[1] = match failing.steps[1].clone() {
        Step::Launch { arguments, written, .. } => Step::Launch { kernel: 1, arguments, written },
        other => other,
    };
    let model = load(&failing, [0, 1]).unwrap();
    let error = Context::new(&model, 2, &Budget::unlimited()).unwrap().run(&[ints(&[0; 8])]).unwrap_err();
    assert_eq!(error.to_string(), "an index of Gather_12 is out of range (kernel k1, status 7)");
    assert!(error.is_data());
    let model = load(&plan(), [0, 8]).unwrap();
    let error = Context::new(&model, 1, &Budget::unlimited()).unwrap().run(&[ints(&[0; 8])]).unwrap_err();
    assert_eq!(error.to_string(), "Pick_3: index 8 is out of range for axis 0 with extent 8");
}

#[test]
fn memory_is_bounded() {
    let model = load(&plan(), [0, 1]).unwrap();
    let need = Budget::unlimited();
    let mut context = Context::new(&model, 1, &need).unwrap();
    context.run(&[ints(&[0; 8])]).unwrap();
    let error = Context::new(&model, 1, &Budget::new(100)).unwrap_err();
    assert!(matches!(&error, RunError::Memory(e) if e.is_limit()), "{error}");
    Context::new(&model, 1, &Budget::new(need.peak())).unwrap().run(&[ints(&[0; 8])]).unwrap();
}

#[test]
fn plans_that_lie_are_refused() {
    let refused = |change: &dyn Fn(&mut Plan)| {
        let mut p = plan();
        change(&mut p);
        load(&p, [0, 1]).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refused(&|p| p.weight_bytes = 128).contains("the weights have 64 bytes, the plan has 128"));
    assert!(refused(&|p| p.arena_bytes = 64).contains("exceed 64"));
    assert!(refused(&|p| p.kernels[1].name = "other".into()).contains("not those of the plan"));
    assert!(refused(&|p| drop(p.steps.remove(0))).contains("before it is written"));
}

#[test]
fn levels_are_chosen_or_missed() {
    let file = || artifact(&plan(), [0, 1], &[CpuLevel::Portable]);
    let options = |levels: &[CpuLevel]| ModelOptions { levels: Some(levels.to_vec()), ..ModelOptions::default() };
    let level = |o| Model::from_buffer(file(), &o).map(|m| m.level());
    assert_eq!(level(options(&[CpuLevel::X86_64V4Amx, CpuLevel::Portable])).unwrap(), CpuLevel::Portable);
    // A level that the artifact has no code for means the next lower one.
    assert_eq!(level(options(&[CpuLevel::X86_64V3])).unwrap(), CpuLevel::Portable);
    let file = artifact(&plan(), [0, 1], &[CpuLevel::X86_64V3]);
    let error = Model::from_buffer(file, &options(&[CpuLevel::Portable])).unwrap_err().to_string();
    assert!(error.starts_with("the artifact has code for x86-64-v3, but portable was asked for"), "{error}");
}
