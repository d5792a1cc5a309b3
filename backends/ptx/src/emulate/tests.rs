//! Small kernels with and without mistakes.

use super::{Argument, Buffer, Kind, Launch, Module, Options, RunError, run};

const HEAD: &str = ".version 7.1\n.target sm_80\n.address_size 64\n";

/// A kernel of two warps with this body, in which `%d1` is where buffer 0 begins and `%r1` the thread.
fn kernel(body: &str) -> Module {
    let text = format!(
        "{HEAD}.visible .entry k(.param .u64 k_0)\n{{\n.reg .b32 %r<9>;\n.reg .b64 %d<9>;\n.reg .pred %p<9>;\n\
         .shared .align 16 .b8 s[256];\nld.param.u64 %d0, [k_0];\ncvta.to.global.u64 %d1, %d0;\n\
         mov.u32 %r1, %tid.x;\nmul.wide.u32 %d2, %r1, 4;\nadd.s64 %d3, %d1, %d2;\nshl.b32 %r2, %r1, 2;\n\
         mov.u32 %r3, s;\nadd.s32 %r4, %r3, %r2;\n{body}\nret;\n}}\n"
    );
    Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn launched(body: &str, steps: u64) -> Result<(Vec<u32>, Vec<Kind>), RunError> {
    let module = kernel(body);
    let kernel = module.kernel("k").expect("the entry");
    let launch = Launch { grid: [1, 1, 1], block: [64, 1, 1], shared: 0, arguments: vec![Argument::Buffer(0)] };
    let mut buffers = [Buffer { bytes: vec![0; 256], written: true, initialised: true, granule: 4 }];
    let report = run(&module, kernel, &launch, &mut buffers, &Options { steps, ..Options::default() })?;
    let words = buffers[0].bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    Ok((words, report.findings.iter().map(|f| f.kind).collect()))
}

fn done(body: &str) -> (Vec<u32>, Vec<Kind>) {
    launched(body, 1 << 16).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn threads_pass_values_by_shared_memory() {
    let pass = "st.shared.u32 [%r4], %r1;\nBARRIER\nxor.b32 %r5, %r1, 33;\nshl.b32 %r5, %r5, 2;\nadd.s32 %r5, %r3, %r5;\n\
                ld.shared.u32 %r6, [%r5];\nst.global.u32 [%d3], %r6;";
    let (words, findings) = done(&pass.replace("BARRIER", "bar.sync 0;"));
    assert_eq!(findings, []);
    assert!(words.iter().enumerate().all(|(t, w)| *w == t as u32 ^ 33));
    let (_, findings) = done(&pass.replace("BARRIER", ""));
    assert!(findings.contains(&Kind::SharedRace) || findings.contains(&Kind::Uninitialised), "{findings:?}");
    // A warp's own synchronisation does not reach the other one.
    let (_, findings) = done(&pass.replace("BARRIER", "bar.warp.sync -1;"));
    assert!(!findings.is_empty());
}

#[test]
fn branches_diverge_and_meet() {
    let (words, findings) = done(
        "setp.lt.u32 %p1, %r1, 7;\n@%p1 bra THEN;\nmov.u32 %r5, 2;\nbra.uni END;\nTHEN:\nmov.u32 %r5, 1;\nEND:\n\
         vote.sync.ballot.b32 %r6, %p1, -1;\nadd.s32 %r5, %r5, %r6;\nst.global.u32 [%d3], %r5;",
    );
    assert_eq!(findings, []);
    assert_eq!((words[0], words[7], words[40]), (0x7f + 1, 0x7f + 2, 2));
    let (_, findings) = done("setp.lt.u32 %p1, %r1, 7;\n@%p1 bar.sync 0;");
    assert!(findings.contains(&Kind::Divergent), "{findings:?}");
    let (_, findings) = done("setp.lt.u32 %p1, %r1, 32;\n@%p1 ret;\nbar.sync 0;");
    assert!(findings.contains(&Kind::MissingBarrier), "{findings:?}");
}

#[test]
fn accesses_are_watched() {
    let (_, findings) = done("ld.global.u32 %r5, [%d3+256];");
    assert_eq!(findings, [Kind::OutOfBounds]);
    let (_, findings) = done("ld.global.u32 %r5, [%d1+2];");
    assert_eq!(findings, [Kind::Misaligned]);
    let (_, findings) = done("ld.shared.u32 %r5, [%r4];");
    assert_eq!(findings, [Kind::Uninitialised]);
    let (_, findings) = done("st.global.u32 [%d1], %r1;");
    assert_eq!(findings, [Kind::GlobalRace]);
    let (_, findings) = done("st.global.u32 [%d3], %r8;");
    assert_eq!(findings, [Kind::UndefinedRegister]);
    let copy = "shl.b32 %r6, %r1, 2;\nadd.s32 %r6, %r3, %r6;\ncp.async.ca.shared.global [%r6], [%d3], 4;\n\
                cp.async.commit_group;\nWAIT\nld.shared.u32 %r5, [%r6];\nst.global.u32 [%d3], %r5;";
    assert_eq!(done(&copy.replace("WAIT", "cp.async.wait_group 0;")).1, []);
    assert!(done(&copy.replace("WAIT", "")).1.contains(&Kind::Pending));
    let (words, findings) = done("red.global.add.u32 [%d1+8], 3;");
    assert_eq!((words[2], findings), (64 * 3, vec![]));
}

#[test]
fn what_cannot_run_is_said() {
    let endless = launched("LOOP:\nbra.uni LOOP;", 1000);
    assert!(matches!(endless, Err(RunError::Endless { line: 19, .. })), "{endless:?}");
    for (text, line, column, message) in [
        (
            ".visible .entry k() { .reg .b32 %r<2>; wgmma.fence.sync %r1; }",
            1,
            40,
            "`wgmma.fence.sync` is not supported",
        ),
        (".visible .entry k() {\n add.s32 %r1, 2, 3;\n}", 2, 2, "a register belongs here"),
        (".visible .entry k() {\n bra NOWHERE;\n}", 2, 2, "there is no label `NOWHERE`"),
        (".visible .entry k() {", 1, 1, "the body has no end"),
        (".visible .entry k() {\n mov.b32 {{{{{{ 1", 2, 11, "a register or a number belongs here"),
        ("\u{e9}", 1, 1, "`\u{e9}` does not belong here"),
        (".visible .entry k() { .reg .b32 %r<99999999999>; }", 1, 36, "the number is too large"),
    ] {
        let error = Module::parse(text).expect_err(text);
        assert_eq!((error.line, error.column, error.message.as_str()), (line, column, message), "{text}");
    }
}

#[test]
fn pairs_of_8_bits_are_converted_as_the_manual_says() {
    // Each thread its own: two f32 to a pair, the first operand in the upper byte; saturated, NaN without a sign, negative ones to zero.
    let one = |code: &str| {
        let (words, findings) = done(&format!("{code}\nst.global.u32 [%d3], %r5;"));
        assert_eq!(findings, [], "{code}");
        words[0]
    };
    let of = |ty: &str, relu: &str, a: f32, b: f32| {
        one(&format!(
            "{{ .reg .b16 %h<3>;\ncvt.rn.satfinite{relu}.{ty}x2.f32 %h1, 0f{:08X}, 0f{:08X};\ncvt.u32.u16 %r5, %h1; }}",
            a.to_bits(),
            b.to_bits()
        ))
    };
    assert_eq!(of("e4m3", "", 1.0, -448.0), 0x38fe);
    assert_eq!(of("e4m3", "", f32::INFINITY, 1e9), 0x7e7e);
    assert_eq!(of("e4m3", "", -f32::NAN, 0.0009765625), 0x7f00);
    assert_eq!(of("e4m3", ".relu", -3.0, 17.0), 0x0058);
    assert_eq!(of("e5m2", "", f32::NEG_INFINITY, 1.25), 0xfb3d);
    assert_eq!(of("e5m2", "", 61440.0, -0.0), 0x7b80);
    let back = |ty: &str, bytes: u32| {
        one(&format!("{{ .reg .b16 %h<3>;\nmov.u16 %h1, {bytes};\ncvt.rn.f16x2.{ty}x2 %r5, %h1; }}"))
    };
    assert_eq!(back("e4m3", 0x38fe), 0x3c00_df00);
    assert_eq!(back("e4m3", 0x0180), 0x1800_8000);
    assert_eq!(back("e5m2", 0x7c3d), 0x7c00_3d00);
    let halves = one(
        "{ .reg .b16 %h<3>;\nmov.b32 %r6, 0x3E00FC00;\ncvt.rn.satfinite.e5m2x2.f16x2 %h1, %r6;\ncvt.u32.u16 %r5, %h1; }",
    );
    assert_eq!(halves, 0x3efb);
    for wrong in ["cvt.rn.e4m3x2.f32 %r5, 0f3F800000, 0f3F800000;", "cvt.rn.satfinite.e4m3x2.f64 %r5, %d1, %d1;"] {
        let text = format!("{HEAD}.visible .entry k() {{ .reg .b32 %r<9>; .reg .b64 %d<3>;\n{wrong}\n}}");
        assert!(Module::parse(&text).is_err(), "{wrong}");
    }
}
