//! Which level the CPU runs.
//!
//! Invariant: the answer is that of the runtime's `cpu` module: a level counts only if the CPU has its instructions *and* the
//! system saves the registers they use.

use super::asm::{Code, Compiled, Routine};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};

/// `cpuid(leaf, subleaf, out)`: EAX, EBX, ECX and EDX to four 32-bit words. Neither instruction is one that Cranelift has.
pub(super) fn cpuid() -> Compiled {
    let bytes = [
        &[0x53][..],               // push rbx, which CPUID overwrites and callers keep values in
        &[0x49, 0x89, 0xd0],       // mov r8, rdx
        &[0x89, 0xf8],             // mov eax, edi
        &[0x89, 0xf1],             // mov ecx, esi
        &[0x0f, 0xa2],             // cpuid
        &[0x41, 0x89, 0x00],       // mov [r8], eax
        &[0x41, 0x89, 0x58, 0x04], // mov [r8 + 4], ebx
        &[0x41, 0x89, 0x48, 0x08], // mov [r8 + 8], ecx
        &[0x41, 0x89, 0x50, 0x0c], // mov [r8 + 12], edx
        &[0x5b],                   // pop rbx
        &[0xc3],                   // ret
    ];
    Compiled { bytes: bytes.concat(), calls: vec![], references: vec![] }
}

/// `xgetbv()`: the low half of XCR0.
pub(super) fn xgetbv() -> Compiled {
    let bytes = [
        &[0x31, 0xc9][..],   // xor ecx, ecx
        &[0x0f, 0x01, 0xd0], // xgetbv
        &[0xc3],             // ret; RDX's half is not asked for
    ];
    Compiled { bytes: bytes.concat(), calls: vec![], references: vec![] }
}

/// `tiles()`: asks Linux for the matrix registers (`arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`,
/// Documentation/arch/x86/xstate.rst); 0 where the process may use them from then on.
pub(super) fn tiles() -> Compiled {
    let bytes = [
        &[0xb8, 0x9e, 0, 0, 0][..], // mov eax, 158
        &[0xbf, 0x23, 0x10, 0, 0],  // mov edi, 0x1023
        &[0xbe, 0x12, 0, 0, 0],     // mov esi, 18
        &[0x0f, 0x05],              // syscall, which overwrites rcx and r11
        &[0xc3],                    // ret
    ];
    Compiled { bytes: bytes.concat(), calls: vec![], references: vec![] }
}

const EAX: i32 = 0;
const EBX: i32 = 4;
const ECX: i32 = 8;
const EDX: i32 = 12;

/// SSSE3, SSE4.1, SSE4.2, POPCNT (leaf 1, ECX); all bits are from the Intel SDM, volume 2A, CPUID.
const V2_LEAF_1: i64 = 1 << 9 | 1 << 19 | 1 << 20 | 1 << 23;
/// FMA, MOVBE, OSXSAVE, AVX, F16C (leaf 1, ECX).
const V3_LEAF_1: i64 = 1 << 12 | 1 << 22 | 1 << 27 | 1 << 28 | 1 << 29;
/// BMI1, AVX2, BMI2 (leaf 7, EBX).
const V3_LEAF_7: i64 = 1 << 3 | 1 << 5 | 1 << 8;
/// LZCNT (leaf 0x80000001, ECX).
const V3_EXTENDED: i64 = 1 << 5;
/// AVX-512 F, DQ, CD, BW, VL (leaf 7, EBX).
const V4_LEAF_7: i64 = 1 << 16 | 1 << 17 | 1 << 28 | 1 << 30 | 1 << 31;
/// AVX-512 VNNI (leaf 7, ECX).
const VNNI_LEAF_7: i64 = 1 << 11;
/// AVX-512 BF16 (leaf 7, subleaf 1, EAX); EAX of subleaf 0 is the highest subleaf.
const BF16_LEAF_7_1: i64 = 1 << 5;
/// AMX-BF16, AMX-TILE, AMX-INT8 (leaf 7, EDX).
const AMX_LEAF_7: i64 = 1 << 22 | 1 << 24 | 1 << 25;
/// XCR0: the system saves XMM and YMM registers; and opmasks and ZMM registers.
const SAVES_YMM: i64 = 1 << 1 | 1 << 2;
const SAVES_ZMM: i64 = SAVES_YMM | 1 << 5 | 1 << 6 | 1 << 7;
/// And the configuration and the elements of matrix registers.
const SAVES_TILES: i64 = 1 << 17 | 1 << 18;

/// `level()`: the highest level that runs here, -1 for none.
pub(super) fn level(c: &mut Code<'_, '_>) {
    let out = c.stack(16);
    let part = |c: &mut Code<'_, '_>, number: i64, sub: i64, word: i32| {
        let (leaf, sub) = (c.int(number), c.int(sub));
        c.call(Routine::CpuId, &[leaf, sub, out]);
        c.load32(out, word)
    };
    let leaf = |c: &mut Code<'_, '_>, number: i64, word: i32| part(c, number, 0, word);
    let stop_unless = |c: &mut Code<'_, '_>, bits: Value, wanted: i64, level: i64| {
        let mask = c.int(wanted);
        let found = c.b.ins().band(bits, mask);
        let lacks = c.icmp(IntCC::NotEqual, found, mask);
        c.guard(lacks, |c| {
            let level = c.int32(level);
            c.ret(level);
        });
    };
    let basic = leaf(c, 1, ECX);
    stop_unless(c, basic, V2_LEAF_1, -1);
    stop_unless(c, basic, V3_LEAF_1, 0);
    let highest = leaf(c, 0, 0);
    let old = c.icmp_imm(IntCC::UnsignedLessThan, highest, 7);
    c.guard(old, |c| {
        let level = c.int32(0);
        c.ret(level);
    });
    let seven = leaf(c, 7, EBX);
    stop_unless(c, seven, V3_LEAF_7, 0);
    let extended = leaf(c, 0x8000_0001, ECX);
    stop_unless(c, extended, V3_EXTENDED, 0);
    let saved = c.get(Routine::XGetBv, &[]);
    stop_unless(c, saved, SAVES_YMM, 0);
    stop_unless(c, seven, V4_LEAF_7, 1);
    stop_unless(c, saved, SAVES_ZMM, 1);
    let more = leaf(c, 7, ECX);
    stop_unless(c, more, VNNI_LEAF_7, 2);
    let most = leaf(c, 7, EAX);
    let single = c.icmp_imm(IntCC::UnsignedLessThan, most, 1);
    c.guard(single, |c| {
        let level = c.int32(3);
        c.ret(level);
    });
    let newer = part(c, 7, 1, EAX);
    stop_unless(c, newer, BF16_LEAF_7_1, 3);
    let tiles = leaf(c, 7, EDX);
    stop_unless(c, tiles, AMX_LEAF_7, 4);
    stop_unless(c, saved, SAVES_TILES, 4);
    let refused = c.get(Routine::Tiles, &[]);
    let refused = c.icmp_imm(IntCC::NotEqual, refused, 0);
    c.guard(refused, |c| {
        let level = c.int32(4);
        c.ret(level);
    });
    let level = c.int32(5);
    c.ret(level);
}
