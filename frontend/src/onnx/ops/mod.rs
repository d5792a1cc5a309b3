//! ONNX operators: one file for each, or for a family that differs in one word.
//!
//! Invariant: an operator is known here if and only if it is in the list of a file named below; that list also is the support table.

use super::import::{Context, Failure, Outputs};
use super::model::MAX_OPSET;
use std::ops::RangeInclusive;
use std::sync::OnceLock;

/// An importer of an operator.
pub(super) type Import = fn(&mut Context<'_>) -> Result<Outputs, Failure>;

/// What is known of an operator.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    /// Name.
    pub name: &'static str,
    /// Domain; empty is ONNX's own.
    pub domain: &'static str,
    /// First and last version of the domain's operator set that the importer handles.
    pub versions: (i64, i64),
    /// All attributes that the operator has in any of these versions.
    pub attributes: &'static [&'static str],
    /// Adds core ops for a node.
    pub import: Import,
}

/// An operator of ONNX's own domain, from a version on.
pub(super) const fn onnx(name: &'static str, since: i64, attributes: &'static [&'static str], import: Import) -> Spec {
    Spec { name, domain: "", versions: (since, MAX_OPSET), attributes, import }
}

/// An operator of another domain, in all its versions.
pub(super) const fn of(
    domain: &'static str,
    name: &'static str,
    attributes: &'static [&'static str],
    import: Import,
) -> Spec {
    Spec { name, domain, versions: (1, i64::MAX), attributes, import }
}

macro_rules! operators {
    ($($file:ident),* $(,)?) => {
        $(mod $file;)*
        /// The lists of all files.
        const FILES: &[&[Spec]] = &[$($file::OPS),*];
    };
}

mod few_bits;
mod recurrent_steps;
mod run_time;
mod sliding;
mod support;

operators! {
    activation,
    affine_grid,
    arg_reduce,
    attention,
    batch_normalization,
    binary,
    bit_cast,
    cast,
    center_crop_pad,
    clip,
    col2im,
    compare,
    concat,
    constant,
    conv,
    conv_transpose,
    cumulate,
    data_dependent,
    deform_conv,
    depth,
    det,
    dropout,
    einsum,
    embed_layer_normalization,
    expand,
    flex_attention,
    fourier,
    fused,
    fused_attention,
    gated,
    gather,
    gemm,
    global_pool,
    grid_sample,
    hardmax,
    identity,
    if_,
    loss,
    linear_attention,
    lrn,
    matmul,
    max_unpool,
    ml,
    nbits,
    normalization,
    one_hot,
    optional,
    pad,
    pool,
    qlinear,
    quantize,
    quantized_product,
    range,
    recurrent,
    reduce,
    repetition,
    reshape,
    resize,
    reverse_sequence,
    roi_align,
    rotary_embedding,
    scatter,
    sequence,
    shape,
    slice,
    softmax,
    split,
    squeeze,
    strings,
    tensor_scatter,
    tf_idf,
    top_k,
    training,
    transpose,
    tree_ensemble,
    triangle,
    unary,
    variadic,
    where_,
    window,
}

/// All operators, sorted by domain and name.
fn table() -> &'static [Spec] {
    static TABLE: OnceLock<Vec<Spec>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table: Vec<Spec> = FILES.iter().copied().flatten().copied().collect();
        table.sort_by_key(|s| (s.domain, s.name, s.versions));
        table
    })
}

/// The importer of an operator in a version.
pub(super) fn find(domain: &str, name: &str, opset: i64) -> Result<&'static Spec, String> {
    let table = table();
    let start = table.partition_point(|s| (s.domain, s.name) < (domain, name));
    let same = table[start..].iter().take_while(|s| (s.domain, s.name) == (domain, name));
    if let Some(spec) = same.clone().find(|s| (s.versions.0..=s.versions.1).contains(&opset)) {
        return Ok(spec);
    }
    let versions: Vec<String> = same.map(|s| format!("{} to {}", s.versions.0, s.versions.1)).collect();
    if versions.is_empty() {
        return Err("Kiln has no importer for this operator; export the model without it".into());
    }
    Err(format!("Kiln imports this operator in versions {}; convert the model", versions.join(", ")))
}

/// All operators with domain (empty is ONNX's own), name and the versions of the operator set that are imported, sorted.
pub fn supported() -> Vec<(&'static str, &'static str, RangeInclusive<i64>)> {
    table().iter().map(|s| (s.domain, s.name, s.versions.0..=s.versions.1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_operator_is_listed_twice_in_a_version() {
        for pair in supported().windows(2) {
            let [a, b] = pair else { continue };
            assert!((a.0, a.1) != (b.0, b.1) || a.2.end() < b.2.start(), "{a:?} {b:?}");
        }
        assert!(find("", "Relu", 14).is_ok() && find("", "Gelu", 13).is_err() && find("", "Nope", 13).is_err());
    }
}
