//! Which lines of a stream are asked for, by whom.

use super::{Random, Setting, TARGET, agree_for};
use crate::kernel::Machine;
use crate::lower::{VectorTarget, lower};
use crate::pipeline::{Target, schedule};
use kiln_ir::DType;
use kiln_ir::expr::Ranges;
use kiln_ir::scalar::Constant;
use kiln_ir::tile::TileProgram;
use kiln_ir::vector::{self, Address, Op, Stmt, ValueId, VectorProgram, VectorType};
use std::collections::BTreeSet;

/// Steps of the sums, columns of a panel, panels.
const DEPTH: usize = 1024;
const COLUMNS: usize = 16;
const PANELS: usize = 4;
const PANEL: usize = DEPTH * COLUMNS;

/// Rows times panels of weights, four steps an iteration; a loop for each size of blocks, given as how many and their rows.
fn product(blocks: &[(usize, usize)]) -> TileProgram {
    let (mut body, mut first, mut id) = (String::new(), 0, 0);
    for &(count, rows) in blocks {
        let columns = COLUMNS * PANELS;
        let mut steps = String::new();
        let (mut sum, carried) = (id + 1, id + 1);
        for n in 0..4 {
            let k = id + 2 + 3 * n;
            steps += &format!(
                "%{k}: f32[{rows},1] = load x[{DEPTH}*a0 + {}*i + k + {}] %{}: f32[1,16] = load w[a1 + {PANEL}*p + {COLUMNS}*k + {}]
                 %{}: f32[{rows},16] = fma %{k}, %{}, %{sum}\n",
                DEPTH * rows, DEPTH * first + n, k + 1, COLUMNS * n, k + 2, k + 1
            );
            sum = k + 2;
        }
        body += &format!(
            "for i in 0..{count} step 1 {{ %{id}: f32[{rows},16] = const 0.0f32
             for k in 0..{DEPTH} step 4 carry(%{carried}: f32[{rows},16] = %{id}) {{ {steps} }} next(%{sum}) as(%{})
             store y[{columns}*a0 + a1 + {}*i + {COLUMNS}*p + {}] = %{} }}\n",
            id + 14,
            columns * rows,
            columns * first,
            id + 14
        );
        (first, id) = (first + count * rows, id + 15);
    }
    let (x, w, y) = (first * DEPTH, PANELS * PANEL, first * COLUMNS * PANELS);
    let text = format!(
        "kernel @product(x: f32[{x}], w: f32[{w}], y: f32[{y}] written) {{ part grid(p = {PANELS}) {{ {body} }} }}"
    );
    TileProgram::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Stores a number where something is asked for.
fn mark(body: &mut [Stmt], marks: usize, one: ValueId) {
    for stmt in body {
        match stmt {
            Stmt::Prefetch(_, address) => *stmt = Stmt::Store(Address { buffer: marks, ..*address }, one),
            Stmt::For(f) => mark(&mut f.body, marks, one),
            _ => {}
        }
    }
}

/// The lines that one program asks for.
fn asked(lowered: &VectorProgram, setting: &Setting, program: i64) -> BTreeSet<usize> {
    let mut marked = lowered.clone();
    marked.buffers.push((DType::F32, true));
    let one = marked.values.push(VectorType::scalar(DType::F32));
    mark(&mut marked.body, marked.buffers.len() - 1, one);
    marked.body.insert(0, Stmt::Let(one, Op::Const(Constant::float(DType::F32, 1.0))));
    let mut buffers = setting.buffers.clone();
    // What is asked for behind the last panel has a place, too.
    buffers.push(vec![0; 4 * PANEL * (PANELS + 2)]);
    let mut bytes: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
    let ran = vector::run(&marked, &mut bytes, &[], program, program + 1, true);
    assert_eq!(ran.unwrap_or_else(|e| panic!("{e}\n{marked}")), 0);
    let marks = buffers.pop().unwrap_or_default();
    marks.chunks(4).enumerate().filter(|(_, bytes)| *bytes != [0; 4]).map(|(n, _)| n / 16).collect()
}

#[test]
fn a_program_asks_for_all_that_the_next_one_streams() {
    // Two sizes of blocks; more blocks than there are lines in an iteration; few blocks, each of which asks for several lines of one.
    for (blocks, bytes, each) in [
        (&[(2, 3), (2, 2)][..], 64, 1),
        (&[(3, 3), (4, 2)], 64, 1),
        (&[(5, 2)], 32, 1),
        (&[(2, 2)], 64, 2),
        (&[(2, 2), (1, 3)], 64, 2),
    ] {
        let program = product(blocks);
        let mut random = Random(3);
        let of = |b: &kiln_ir::tile::Buffer| b.len.as_size().unwrap_or_default();
        let buffers = program.buffers.iter().map(|b| random.elements(DType::F32, of(b), -2, 2)).collect();
        let setting = Setting { buffers, dims: vec![] };
        let target = VectorTarget { bytes, ..TARGET };
        let lowered = agree_for(target, &program, &setting, &Ranges::new(), 1e-6);
        let loops = blocks.iter().filter(|(count, _)| *count > 1).count();
        let alone = blocks.len() - loops;
        // A block that is in no loop asks a fixed distance ahead, for each line.
        assert_eq!(lowered.to_string().matches("prefetch b1[").count(), loops * each + alone * 4, "{lowered}");
        for p in [0, 2] {
            let lines = PANEL / 16;
            let next: BTreeSet<usize> = ((p + 1) * lines..(p + 2) * lines).collect();
            let found = asked(&lowered, &setting, p as i64);
            assert!(found.is_superset(&next), "{blocks:?}: program {p} leaves lines out\n{lowered}");
            if alone == 0 {
                assert_eq!(found, next, "{blocks:?}: program {p} asks for more\n{lowered}");
            }
        }
    }
}

/// Loops of a known number of iterations within one of a free number are no blocks: as sums of two folds that are cut into stretches have
/// them.
#[test]
fn loops_within_a_free_loop_are_no_blocks() {
    let text = "input %0 : f32[8, s, 256]\n input %1 : f32[8, 256, 512]
        %2 = contract(%0, %1) lhs = \"hsd\", rhs = \"hdn\", out = \"sn\" : f32[s, 512]\n output %2 \"y\"";
    let graph = kiln_ir::Graph::parse(&format!("graph \"free\" {{ symbol s in 1..512\n {text} }}"), &[]).unwrap();
    let mut lowered = 0;
    for machine in [Machine::avx512(), Machine::avx2()] {
        let bytes = if machine.lanes == 16 { 64 } else { 32 };
        let target = VectorTarget { bytes, ..TARGET };
        let mut lowers = |program: &TileProgram, ranges: &Ranges| {
            let order: Vec<_> = ranges.keys().cloned().collect();
            lower(program, target, &order, ranges).map(|_| lowered += 1).map_err(|e| e.to_string())
        };
        let target = Target { machine, chosen: None, lowers: &mut lowers };
        schedule(&graph, &mut [target]).unwrap();
    }
    assert!(lowered >= 2, "{lowered}");
}

#[test]
fn a_single_block_asks_a_fixed_distance_ahead() {
    let program = product(&[(1, 4)]);
    let setting = Setting {
        buffers: program.buffers.iter().map(|b| vec![0; 4 * b.len.as_size().unwrap_or_default()]).collect(),
        dims: vec![],
    };
    let target = VectorTarget { bytes: 64, ..TARGET };
    let lowered = agree_for(target, &program, &setting, &Ranges::new(), 0.0);
    let (lines, ahead) = (PANEL / 16, 8192 / 64);
    assert_eq!(asked(&lowered, &setting, 1), (lines + ahead..2 * lines + ahead).collect());
}
