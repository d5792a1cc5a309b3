//! What is wrong with a model: every problem at once, each with the node that it is in.
//!
//! Invariant: names from a file are shown only through [`shown`], so that no control character reaches a terminal.

use std::fmt;

/// Problems beyond this number are counted, not kept.
const KEPT: usize = 1000;

/// Characters of a name that are shown.
const SHOWN: usize = 120;

/// A name from a file in quotes, with control and invisible characters escaped, cut where it is very long.
pub fn shown(name: &str) -> String {
    let mut chars = name.chars();
    let mut text: String = chars.by_ref().take(SHOWN).flat_map(char::escape_debug).collect();
    let left = chars.count();
    if left > 0 {
        text.push_str(&format!("...({left} more)"));
    }
    format!("\"{text}\"")
}

/// What a problem means for the user; later kinds yield to earlier ones in the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProblemKind {
    /// The model breaks a rule of ONNX.
    Invalid,
    /// The model may be right, but Kiln does not support what it uses.
    Unsupported,
    /// The model goes beyond one of the [`super::model::Limits`].
    Limit,
}

/// A node as messages show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRef {
    /// Position in its graph, as in the file.
    pub index: usize,
    /// Name in the file, which may be empty.
    pub name: String,
    /// Operator.
    pub op: String,
}

impl fmt::Display for NodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op: String = self.op.chars().take(SHOWN).flat_map(char::escape_debug).collect();
        match self.name.as_str() {
            "" => write!(f, "node {} ({op})", self.index),
            name => write!(f, "node {} {} ({op})", self.index, shown(name)),
        }
    }
}

/// One thing that is wrong with a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What it means.
    pub kind: ProblemKind,
    /// The subgraph or function that it is in, as text; nothing for the main graph.
    pub scope: Option<String>,
    /// The node that it is in.
    pub node: Option<NodeRef>,
    /// A sentence.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(scope) = &self.scope {
            write!(f, "in {scope}: ")?;
        }
        if let Some(node) = &self.node {
            write!(f, "{node}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// The problems found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    kept: Vec<Problem>,
    more: usize,
    worst: Option<ProblemKind>,
}

impl Problems {
    /// Adds one.
    pub fn push(&mut self, problem: Problem) {
        self.worst = Some(self.worst.map_or(problem.kind, |worst| worst.min(problem.kind)));
        if self.kept.len() < KEPT {
            self.kept.push(problem);
        } else {
            self.more += 1;
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The first thousand.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.kept.iter()
    }

    /// How many there are, those that were not kept among them.
    pub fn len(&self) -> usize {
        self.kept.len() + self.more
    }

    /// The kind that decides the exit code: invalid before unsupported before limit.
    pub fn worst(&self) -> Option<ProblemKind> {
        self.worst
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.kept.iter().enumerate() {
            let end = if i == 0 { "" } else { "\n" };
            write!(f, "{end}{problem}")?;
        }
        if self.more > 0 {
            write!(f, "\nand {} more problems", self.more)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_cut() {
        assert_eq!(shown("a\x1b[31m\n\u{202e}"), "\"a\\u{1b}[31m\\n\\u{202e}\"");
        assert!(shown(&"x".repeat(500)).ends_with("...(380 more)\""));
    }

    #[test]
    fn invalid_wins() {
        let mut problems = Problems::default();
        for kind in [ProblemKind::Limit, ProblemKind::Invalid, ProblemKind::Unsupported] {
            problems.push(Problem { kind, scope: None, node: None, message: "m".into() });
        }
        assert_eq!(problems.worst(), Some(ProblemKind::Invalid));
        for _ in 0..2000 {
            problems.push(Problem { kind: ProblemKind::Limit, scope: None, node: None, message: "m".into() });
        }
        assert_eq!((problems.len(), problems.iter().count()), (2003, KEPT));
        assert!(problems.to_string().ends_with("and 1003 more problems"));
    }
}
