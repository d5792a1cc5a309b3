//! Where checkpoints of a family have their layers and heads, so that some can be taken out.
//!
//! Invariant: what an anatomy says holds for every checkpoint that the family's configuration reads.

/// How a configuration says which heads there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// By numbers, the same in all layers, and the size of a head: `num_attention_heads`, `num_key_value_heads`, `head_dim`.
    Counts {
        /// Size of a query and key.
        key_size: usize,
        /// Size of a value.
        value_size: usize,
    },
    /// By the heads of each layer that are no more there, `pruned_heads`.
    Pruned,
}

/// The heads of attentions.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadParts {
    /// Maps below a layer whose outputs are divided by unit, with the outputs of a unit.
    pub outputs: Vec<(&'static str, usize)>,
    /// The map whose inputs are.
    pub inputs: (&'static str, usize),
    /// The units of each layer by the number that the configuration gives them. A unit is a head of keys and values with the queries
    /// that share it.
    pub units: Vec<Vec<usize>>,
    /// Query heads of a unit.
    pub queries: usize,
    /// How the configuration says so.
    pub keys: Keys,
}

/// The layers and heads of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Anatomy {
    /// What comes before the number of a layer in names of tensors, such as `model.layers.`.
    pub layers: &'static str,
    /// Layers.
    pub count: usize,
    /// The setting that says how many.
    pub count_key: &'static str,
    /// Its heads, or why none can be taken out.
    pub heads: Result<HeadParts, &'static str>,
    /// Why layers cannot be taken out, where they cannot.
    pub ordered: Option<&'static str>,
}

impl Anatomy {
    /// The layer that a tensor or module is in, by its name: what comes before the number, the number, and what follows it and a dot.
    pub fn place<'n>(&self, name: &'n str) -> Option<(&'n str, usize, &'n str)> {
        let at = name.find(self.layers).filter(|&at| at == 0 || name[..at].ends_with('.'))?;
        let (before, rest) = name.split_at(at + self.layers.len());
        let (number, rest) = rest.split_once('.').unwrap_or((rest, ""));
        Some((before, number.parse().ok().filter(|n| *n < self.count)?, rest))
    }
}
