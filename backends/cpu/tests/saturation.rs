//! Floats that are clipped, rounded and stored as bytes, which vectors do together, against the interpreter.

mod wide_support;

use kiln_cpu::wide::WideLevel;
use kiln_ir::vector::VectorProgram;
use wide_support::{SIZES, check};

/// Floats at which clipping, rounding and conversion may go wrong.
fn floats(count: usize) -> Vec<u8> {
    let edges = [
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        0.0,
        -0.0,
        0.5,
        1.5,
        -0.5,
        2.5,
        -1e-45,
        254.5,
        255.5,
        255.499,
        -128.5,
        -129.5,
        127.5,
        126.5,
        3e9,
        -3e9,
        2_147_483_648.0,
        -2_147_483_648.0,
        32_767.5,
        -32_769.0,
        65_536.0,
        1e30,
        -1e30,
    ];
    let value = |n: usize| match n % 3 {
        0 => edges[n / 3 % edges.len()],
        1 => (n * 37 % 601) as f32 - 300.0,
        _ => (n * 53 % 1201) as f32 * 0.5 - 300.0,
    };
    (0..count).flat_map(|n| value(n).to_le_bytes()).collect()
}

/// Where the vectors of an iteration go, in vectors; as many as there are stores.
const PLACES: [&[usize]; 8] = [
    &[0],
    &[0, 1],
    &[0, 1, 2],
    &[0, 1, 2, 3],
    &[0, 1, 4, 5],
    &[0, 3, 1, 2],
    &[0, 2, 4, 6, 1, 3],
    &[0, 1, 2, 3, 4, 5, 6, 7, 9],
];

/// Runs `add + round(min(max(x, low), high))` of vectors at the places, each also loaded again right after its store where `again`.
fn run(level: WideLevel, lanes: u32, to: &str, (add, low, high): (i64, f32, f32), places: &[usize], again: bool) {
    let (floats_type, ints) = (format!("f32x{lanes}"), format!("i32x{lanes}"));
    let mut steps = String::new();
    for (n, place) in places.iter().enumerate() {
        let id = 100 * (n + 1);
        let at = place * lanes as usize;
        steps += &format!(
            "    %{id}: {floats_type} = load b0[%12 + {at}]
    %{}: boolx{lanes} = lt(%3, %{id})
    %{}: {floats_type} = select(%{}, %{id}, %3)
    %{}: {floats_type} = min(%{}, %4)
    %{}: {floats_type} = round(%{})
    %{}: {ints} = to_i32(%{})
    %{}: {ints} = add(%{}, %5)
    store b1[%12 + {at}], %{}\n",
            id + 1,
            id + 2,
            id + 1,
            id + 3,
            id + 2,
            id + 4,
            id + 3,
            id + 5,
            id + 4,
            id + 6,
            id + 5,
            id + 6
        );
        if again {
            steps +=
                &format!("    %{}: {ints} = load_wide b1[%12 + {at}]\n    store b2[%12 + {at}], %{}\n", id + 7, id + 7);
        }
    }
    let step = 10 * lanes as usize;
    let text = format!(
        "vector @bytes(b0: f32, b1: {to} written, b2: i32 written, dims 0) {{
  %10: i64 = lo
  %11: i64 = hi
  %3: {floats_type} = {low:?}f32
  %4: {floats_type} = {high:?}f32
  %5: {ints} = {add}i32
  for %12 in %10..%11 step {step} {{
{steps}  }}
}}"
    );
    let program = VectorProgram::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    program.verify().unwrap_or_else(|e| panic!("{e:?}\n{text}"));
    let count = 12 * step;
    let buffers = [floats(count), vec![7; count], vec![7; 4 * count]];
    check(&program, level, &buffers, &[], (0, count as i64)).unwrap_or_else(|e| panic!("{level:?}: {e}\n{text}"));
}

#[test]
fn bytes_saturate_as_they_are_clipped() {
    for (level, bytes) in SIZES {
        for (to, least, most) in [("u8", 0, 255), ("i8", -128, 127)] {
            // The last ones are more than 16 bits hold beside the byte.
            for add in [0i64, 3, 128, 255, -7, -128, 32_700, -32_700] {
                let (low, high) = ((least - add) as f32, (most - add) as f32);
                // To the whole range, and to parts of it.
                for clip in [(low, high), (low + 3.0, high), (low, high - 100.5), (low + 0.5, high - 3.0)] {
                    run(level, bytes / 4, to, (add, clip.0, clip.1), PLACES[3], false);
                }
            }
        }
    }
}

#[test]
fn vectors_go_where_they_belong() {
    for (level, bytes) in SIZES {
        for places in PLACES {
            for again in [false, true] {
                run(level, bytes / 4, "u8", (0, 0.0, 255.0), places, again);
                run(level, bytes / 4, "i8", (-3, -125.0, 130.0), places, again);
            }
        }
    }
}

#[test]
fn what_wraps_is_no_clip() {
    // Low bits are stored, so nothing may saturate.
    for (level, bytes) in SIZES {
        run(level, bytes / 4, "u8", (0, -300.0, 255.0), PLACES[3], false);
        run(level, bytes / 4, "u8", (0, 0.0, 256.0), PLACES[3], false);
        run(level, bytes / 4, "i8", (1, -128.0, 127.0), PLACES[3], false);
    }
}
