//! Decision trees of `ai.onnx.ml`: `TreeEnsemble`, `TreeEnsembleRegressor` and `TreeEnsembleClassifier`.

use super::ml::{DOMAIN, best_label, class_labels, features, numbered_label, post_transform};
use super::support::floats;
use super::{Spec, of};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Attributes, Concat};
use kiln_ir::{DType, Tensor};
use std::collections::HashMap;

pub(super) const OPS: &[Spec] = &[
    of(
        DOMAIN,
        "TreeEnsemble",
        &[
            "aggregate_function",
            "leaf_targetids",
            "leaf_weights",
            "membership_values",
            "n_targets",
            "nodes_falseleafs",
            "nodes_falsenodeids",
            "nodes_featureids",
            "nodes_hitrates",
            "nodes_missing_value_tracks_true",
            "nodes_modes",
            "nodes_splits",
            "nodes_trueleafs",
            "nodes_truenodeids",
            "post_transform",
            "tree_roots",
        ],
        ensemble,
    ),
    of(
        DOMAIN,
        "TreeEnsembleRegressor",
        &[
            "aggregate_function",
            "base_values",
            "base_values_as_tensor",
            "n_targets",
            "nodes_falsenodeids",
            "nodes_featureids",
            "nodes_hitrates",
            "nodes_hitrates_as_tensor",
            "nodes_missing_value_tracks_true",
            "nodes_modes",
            "nodes_nodeids",
            "nodes_treeids",
            "nodes_truenodeids",
            "nodes_values",
            "nodes_values_as_tensor",
            "post_transform",
            "target_ids",
            "target_nodeids",
            "target_treeids",
            "target_weights",
            "target_weights_as_tensor",
        ],
        regressor,
    ),
    of(
        DOMAIN,
        "TreeEnsembleClassifier",
        &[
            "base_values",
            "base_values_as_tensor",
            "class_ids",
            "class_nodeids",
            "class_treeids",
            "class_weights",
            "class_weights_as_tensor",
            "classlabels_int64s",
            "classlabels_strings",
            "nodes_falsenodeids",
            "nodes_featureids",
            "nodes_hitrates",
            "nodes_hitrates_as_tensor",
            "nodes_missing_value_tracks_true",
            "nodes_modes",
            "nodes_nodeids",
            "nodes_treeids",
            "nodes_truenodeids",
            "nodes_values",
            "nodes_values_as_tensor",
            "post_transform",
        ],
        classifier,
    ),
];

const LEAF: i64 = 7;

/// Trees as the host op takes them.
#[derive(Default)]
struct Trees {
    splits: Vec<f64>,
    /// Mode, feature, node if true, node if false, whether NaN counts as true, first and end member.
    nodes: Vec<[i64; 7]>,
    members: Vec<f64>,
    roots: Vec<i64>,
    targets: Vec<i64>,
    weights: Vec<f64>,
}

impl Trees {
    fn add(self, cx: &mut Context, x: ValueId, dtype: DType, count: usize, combine: &str) -> Result<ValueId, Failure> {
        let splits = floats(cx, DType::F64, &[self.splits.len()], &self.splits)?;
        let nodes = Tensor::from_i64(&[self.nodes.len(), 7], self.nodes.as_flattened())?;
        let nodes = cx.constant(nodes);
        let members = floats(cx, DType::F64, &[self.members.len()], &self.members)?;
        let (roots, targets) = (cx.int_vector(&self.roots)?, cx.int_vector(&self.targets)?);
        let weights = floats(cx, dtype, &[self.weights.len()], &self.weights)?;
        let a = Attributes::new().with("count", count).with("combine", combine);
        Ok(cx.host("tree_ensemble", a, &[x, splits, nodes, members, roots, targets, weights])?.remove(0))
    }
}

fn numbers(t: &Tensor, what: &str) -> Result<Vec<f64>, Failure> {
    t.to_f64().ok_or_else(|| Failure::invalid(format!("`{what}` holds no numbers")))
}

/// Floats from an attribute or from its twin that is a tensor.
fn either(cx: &Context, name: &str) -> Result<Option<Vec<f64>>, Failure> {
    if let Some(t) = cx.node.tensor_opt(&format!("{name}_as_tensor"))?.filter(|t| !t.is_empty()) {
        return numbers(t, name).map(Some);
    }
    Ok(cx.node.floats_opt(name)?.filter(|v| !v.is_empty()).map(|v| v.iter().map(|&v| f64::from(v)).collect()))
}

fn short(name: &str) -> Failure {
    Failure::invalid(format!("`{name}` has too few entries"))
}

/// The trees of version 5: leaves have a numbering of their own.
fn ensemble(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = features(cx)?;
    let node = cx.node;
    let (splits, weights) = (node.tensor("nodes_splits")?, node.tensor("leaf_weights")?);
    let dtype = weights.dtype();
    let modes =
        node.tensor("nodes_modes")?.to_i64().ok_or_else(|| Failure::invalid("`nodes_modes` holds no integers"))?;
    let mut trees = Trees {
        splits: numbers(splits, "nodes_splits")?,
        weights: numbers(weights, "leaf_weights")?,
        targets: node.ints("leaf_targetids")?.to_vec(),
        roots: node.ints("tree_roots")?.to_vec(),
        ..Trees::default()
    };
    let count = modes.len();
    let at =
        |name: &str, i: usize| -> Result<i64, Failure> { node.ints(name)?.get(i).copied().ok_or_else(|| short(name)) };
    let tracks = node.ints_opt("nodes_missing_value_tracks_true")?.unwrap_or_default();
    let sets = match node.tensor_opt("membership_values")? {
        Some(t) => numbers(t, "membership_values")?,
        None => vec![],
    };
    // Sets are separated by NaN and taken in the order in which a walk (true side first) meets their nodes.
    let mut sets = sets.split(|v| v.is_nan());
    let mut ranges = vec![(0, 0); count];
    let mut pending: Vec<i64> = trees.roots.iter().rev().copied().collect();
    let mut seen = vec![false; count];
    while let Some(n) = pending.pop() {
        let n = usize::try_from(n)
            .ok()
            .filter(|&n| n < count)
            .ok_or_else(|| Failure::invalid(format!("there is no node {n}")))?;
        if std::mem::replace(&mut seen[n], true) {
            continue;
        }
        if modes[n] == 6 {
            let set = sets.next().ok_or_else(|| short("membership_values"))?;
            let first = trees.members.len() as i64;
            trees.members.extend_from_slice(set);
            ranges[n] = (first, trees.members.len() as i64);
        }
        for (leaf, next) in [("nodes_falseleafs", "nodes_falsenodeids"), ("nodes_trueleafs", "nodes_truenodeids")] {
            if at(leaf, n)? == 0 {
                pending.push(at(next, n)?);
            }
        }
    }
    for (n, &mode) in modes.iter().enumerate() {
        let next = |leaf: &str, next: &str| {
            let to = at(next, n)?;
            Ok::<i64, Failure>(if at(leaf, n)? != 0 { to.saturating_add(count as i64) } else { to })
        };
        let (yes, no) =
            (next("nodes_trueleafs", "nodes_truenodeids")?, next("nodes_falseleafs", "nodes_falsenodeids")?);
        let missing = tracks.get(n).copied().unwrap_or(0);
        trees.nodes.push([mode, at("nodes_featureids", n)?, yes, no, missing, ranges[n].0, ranges[n].1]);
    }
    trees.splits.resize(count + trees.targets.len(), 0.0);
    trees.nodes.extend((0..trees.targets.len() as i64).map(|leaf| [LEAF, 0, leaf, leaf + 1, 0, 0, 0]));
    let targets = node.int("n_targets")?;
    let targets = usize::try_from(targets).map_err(|_| node.attribute_value("n_targets", "is negative"))?;
    let combine = match node.int_or("aggregate_function", 1)? {
        0 => "mean",
        1 => "sum",
        2 => "min",
        3 => "max",
        other => return Err(node.attribute_value("aggregate_function", format!("{other}")).into()),
    };
    let scores = trees.add(cx, x, dtype, targets, combine)?;
    let kind = match cx.node.int_or("post_transform", 0)? {
        0 => "NONE",
        1 => "SOFTMAX",
        2 => "LOGISTIC",
        3 => "SOFTMAX_ZERO",
        4 => "PROBIT",
        other => return Err(cx.node.attribute_value("post_transform", format!("{other}")).into()),
    };
    Ok(post_transform(cx, scores, kind)?.into())
}

/// The trees of versions 1 and 3, whose nodes have a tree and a number in it; `kind` is `target` or `class`.
fn legacy(cx: &Context, kind: &str) -> Result<Trees, Failure> {
    let node = cx.node;
    let (tree_ids, node_ids) = (node.ints("nodes_treeids")?, node.ints("nodes_nodeids")?);
    let (yes, no) = (node.ints("nodes_truenodeids")?, node.ints("nodes_falsenodeids")?);
    let (features, modes) = (node.ints("nodes_featureids")?, node.byte_strings("nodes_modes")?);
    let tracks = node.ints_opt("nodes_missing_value_tracks_true")?.unwrap_or_default();
    let count = node_ids.len();
    if [tree_ids.len(), yes.len(), no.len(), features.len(), modes.len()].iter().any(|&n| n != count) {
        return Err(Failure::invalid("the attributes of nodes are not of one length"));
    }
    let mut trees = Trees { splits: either(cx, "nodes_values")?.unwrap_or_default(), ..Trees::default() };
    trees.splits.resize(count, 0.0);
    let places: HashMap<(i64, i64), i64> =
        tree_ids.iter().zip(node_ids).enumerate().map(|(i, (&t, &n))| ((t, n), i as i64)).collect();
    // The leaves' entries, in the order of their nodes.
    let name = |part: &str| format!("{kind}_{part}");
    let (entry_trees, entry_nodes) = (node.ints(&name("treeids"))?, node.ints(&name("nodeids"))?);
    let (ids, weights) = (node.ints(&name("ids"))?, either(cx, &name("weights"))?.unwrap_or_default());
    if [entry_trees.len(), entry_nodes.len(), weights.len()].iter().any(|&n| n != ids.len()) {
        return Err(Failure::invalid("the attributes of leaves are not of one length"));
    }
    let mut entries: HashMap<i64, Vec<usize>> = HashMap::new();
    for (i, key) in entry_trees.iter().copied().zip(entry_nodes.iter().copied()).enumerate() {
        let place =
            places.get(&key).ok_or_else(|| Failure::invalid(format!("tree {} has no node {}", key.0, key.1)))?;
        entries.entry(*place).or_default().push(i);
    }
    let mut inner = vec![false; count];
    for i in 0..count {
        let place = |n: i64| {
            let missing = || Failure::invalid(format!("tree {} has no node {n}", tree_ids[i]));
            places.get(&(tree_ids[i], n)).copied().ok_or_else(missing)
        };
        let mode = match &modes[i][..] {
            b"BRANCH_LEQ" => 0,
            b"BRANCH_LT" => 1,
            b"BRANCH_GTE" => 2,
            b"BRANCH_GT" => 3,
            b"BRANCH_EQ" => 4,
            b"BRANCH_NEQ" => 5,
            b"LEAF" => {
                let first = trees.targets.len() as i64;
                for &e in entries.get(&(i as i64)).map(Vec::as_slice).unwrap_or_default() {
                    trees.targets.push(ids[e]);
                    trees.weights.push(weights[e]);
                }
                trees.nodes.push([LEAF, 0, first, trees.targets.len() as i64, 0, 0, 0]);
                continue;
            }
            other => return Err(Failure::invalid(format!("there is no mode {:?}", String::from_utf8_lossy(other)))),
        };
        let (yes, no) = (place(yes[i])?, place(no[i])?);
        inner[usize::try_from(yes).unwrap_or(0)] = true;
        inner[usize::try_from(no).unwrap_or(0)] = true;
        trees.nodes.push([mode, features[i], yes, no, tracks.get(i).copied().unwrap_or(0), 0, 0]);
    }
    trees.roots = (0..count as i64).zip(inner).filter(|(_, inner)| !inner).map(|(i, _)| i).collect();
    Ok(trees)
}

/// The scores with the base values added.
fn based(cx: &mut Context, scores: ValueId) -> Result<ValueId, Failure> {
    match either(cx, "base_values")? {
        Some(base) => {
            let base = floats(cx, cx.dtype(scores), &[base.len()], &base)?;
            cx.map(&[scores, base], |b, a| b.add(a[0], a[1]))
        }
        None => Ok(scores),
    }
}

fn regressor(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = features(cx)?;
    let trees = legacy(cx, "target")?;
    let targets = cx.node.int("n_targets")?;
    let targets = usize::try_from(targets).map_err(|_| cx.node.attribute_value("n_targets", "is negative"))?;
    let combine = match cx.node.string_or("aggregate_function", "SUM")? {
        "AVERAGE" => "mean",
        "SUM" => "sum",
        "MIN" => "min",
        "MAX" => "max",
        other => return Err(cx.node.attribute_value("aggregate_function", format!("{other:?}")).into()),
    };
    let scores = trees.add(cx, x, DType::F32, targets, combine)?;
    let scores = based(cx, scores)?;
    let kind = cx.node.string_or("post_transform", "NONE")?;
    Ok(post_transform(cx, scores, kind)?.into())
}

/// Where all weights are of one class out of two, its score decides, as ONNX Runtime does it: it is a probability where no
/// weight is negative, else a margin.
fn classifier(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = features(cx)?;
    let labels = class_labels(cx, "classlabels_int64s")?;
    let labels = labels.ok_or_else(|| Failure::invalid("there are no class labels"))?;
    let mut trees = legacy(cx, "class")?;
    let kind = cx.node.string_or("post_transform", "NONE")?;
    let one_class = trees.targets.windows(2).all(|w| w[0] == w[1]) && labels.len() == 2;
    let probability = trees.weights.iter().all(|&w| w >= 0.0);
    if !one_class {
        let scores = trees.add(cx, x, DType::F32, labels.len(), "sum")?;
        let scores = based(cx, scores)?;
        let label = best_label(cx, scores, labels)?;
        return Ok(vec![label, post_transform(cx, scores, kind)?].into());
    }
    if kind == "PROBIT" || either(cx, "base_values")?.is_some_and(|b| b.len() > 1) {
        return Err(Failure::unsupported("PROBIT or two base values for weights of one class are not supported"));
    }
    let second = trees.targets.first() == Some(&1);
    trees.targets.fill(0);
    let score = trees.add(cx, x, DType::F32, 1, "sum")?;
    let score = based(cx, score)?;
    let number = cx.map(&[score], |b, a| {
        let threshold = b.lit(a[0], if probability { 0.5 } else { 0.0 });
        let positive = b.gt(a[0], threshold);
        b.cast(DType::I64, positive)
    })?;
    let rows = cx.dims(number)[..1].to_vec();
    let number = cx.reshape(number, rows)?;
    let label = numbered_label(cx, number, labels)?;
    let margin = !probability || kind == "LOGISTIC";
    let rest = cx.map(&[score], |b, a| match (second, margin) {
        (true, _) => b.lit(a[0], 0.0),
        (false, false) => {
            let one = b.lit(a[0], 1.0);
            b.sub(one, a[0])
        }
        (false, true) => b.neg(a[0]),
    })?;
    let scores = cx.add(Concat { axis: 1 }, &[rest, score])?;
    // A score with its opposite is only ever transformed by LOGISTIC.
    let scores = if second || kind == "LOGISTIC" { post_transform(cx, scores, kind)? } else { scores };
    Ok(vec![label, scores].into())
}
