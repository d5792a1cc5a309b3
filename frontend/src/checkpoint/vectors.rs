//! Tables of word vectors as text: Word2Vec's (Mikolov et al. 2013) and GloVe's (Pennington et al. 2014).
//!
//! Invariant: every line has a word and the same number of finite values, and no word comes twice.

use super::{CheckpointError, Element, Stored, Weights};
use crate::gguf::Encoding;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Words and their vectors; as [`Weights`] it has one tensor, `weight`, of a row for each word, as an embedding takes it.
#[derive(Clone, Debug)]
pub struct WordVectors {
    words: Vec<String>,
    numbers: BTreeMap<String, u32>,
    size: usize,
    values: Bytes,
}

impl WordVectors {
    /// Reads a table: a word and its values in each line, with spaces between. Word2Vec's first line, with the number of words and the size of
    /// a vector, may be there; `name` is that of the file, for errors.
    ///
    /// # Errors
    /// [`CheckpointError::File`] with the line that is not right.
    pub fn parse(name: &str, text: &[u8]) -> Result<WordVectors, CheckpointError> {
        let wrong = |line: usize, message: &str| CheckpointError::File {
            file: name.into(),
            message: format!("line {}: {message}", line + 1),
        };
        let text = std::str::from_utf8(text).map_err(|e| {
            let line = text.get(..e.valid_up_to()).unwrap_or_default().iter().filter(|b| **b == b'\n').count();
            wrong(line, "it is not UTF-8")
        })?;
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).peekable();
        let numbers = |line: &str| line.split_whitespace().map(|w| w.parse::<usize>().ok()).collect::<Option<Vec<_>>>();
        let header = lines.peek().and_then(|(_, line)| numbers(line)).filter(|n| n.len() == 2);
        if header.is_some() {
            lines.next();
        }
        let mut size = header.as_ref().and_then(|h| h.get(1).copied());
        let mut found = WordVectors { words: vec![], numbers: BTreeMap::new(), size: 0, values: Bytes::new() };
        let mut values: Vec<u8> = Vec::new();
        for (n, line) in lines {
            let fields: Vec<&str> = line.trim_end().split(' ').collect();
            let size = *size.get_or_insert(fields.len() - 1);
            // A word may have spaces itself: the values are the last fields.
            let at = fields.len().checked_sub(size).filter(|&at| at > 0 && size > 0);
            let at = at.ok_or_else(|| wrong(n, &format!("there are fewer than {size} values after a word")))?;
            let (word, row) = fields.split_at(at);
            for field in row {
                let value = field.parse::<f32>().ok().filter(|v| v.is_finite());
                let value = value.ok_or_else(|| wrong(n, &format!("{field:?} is no finite number")))?;
                values.extend(value.to_le_bytes());
            }
            let word = word.join(" ");
            let number = u32::try_from(found.words.len()).map_err(|_| wrong(n, "there are too many words"))?;
            if found.numbers.insert(word.clone(), number).is_some() {
                return Err(wrong(n, &format!("the word {word:?} comes twice")));
            }
            found.words.push(word);
        }
        if let Some([words, _]) = header.as_deref()
            && *words != found.words.len()
        {
            return Err(wrong(0, &format!("it says {words} words, and there are {}", found.words.len())));
        }
        if found.words.is_empty() {
            return Err(wrong(0, "there is no word"));
        }
        Ok(WordVectors { size: size.unwrap_or(0), values: values.into(), ..found })
    }

    /// The words, by number.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// The number of a word.
    pub fn number(&self, word: &str) -> Option<u32> {
        self.numbers.get(word).copied()
    }

    /// Size of a vector.
    pub fn size(&self) -> usize {
        self.size
    }
}

impl Weights for WordVectors {
    fn names(&self) -> Vec<String> {
        vec!["weight".into()]
    }

    fn get(&self, name: &str) -> Option<Stored> {
        let shape = vec![self.words.len(), self.size];
        (name == "weight").then(|| Stored { element: Element::Float(Encoding::F32), shape, bytes: self.values.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::checkpoint::Loader;
    use crate::nn::{Embedding, Scope};
    use kiln_ir::interp::{Options, eval_graph};
    use kiln_ir::{DType, Tensor};

    #[test]
    fn both_forms_are_embeddings() {
        let glove = "the 0.5 -1 2e-1\n. . 1 2 3\n中文 -0.25 0 4\n";
        let word2vec = format!("3 3\n{}", glove.replace('\n', " \n"));
        for text in [glove, &word2vec] {
            let table = WordVectors::parse("v.txt", text.as_bytes()).unwrap();
            assert_eq!(
                (table.words().len(), table.size(), table.number(". ."), table.number("a")),
                (3, 3, Some(1), None)
            );
            let (g, loader) = (Builder::new("t"), Loader::new(&table));
            let at = g.input("at", DType::I64, [2.into()]).unwrap();
            let embedding = Embedding::new(&Scope::new(&g, &loader), table.words().len(), table.size()).unwrap();
            g.output("y", embedding.apply(at).unwrap()).unwrap();
            let graph = g.finish().unwrap();
            loader.finish(|_| false).unwrap();
            let words = ["中文", "the"].map(|w| i64::from(table.number(w).unwrap()));
            let y = eval_graph(&graph, &[Tensor::from_i64(&[2], &words).unwrap()], &Options::default()).unwrap();
            assert_eq!(y[0].to_f32().unwrap(), [-0.25, 0.0, 4.0, 0.5, -1.0, 0.2]);
        }
    }

    #[test]
    fn lines_that_are_not_right_are_named() {
        let error = |text: &[u8]| WordVectors::parse("v.txt", text).unwrap_err().to_string();
        assert_eq!(error(b""), "v.txt: line 1: there is no word");
        assert!(error(b"a 1 2\nb 1\n").contains("line 2: there are fewer than 2 values"));
        assert!(error(b"a 1 2\nb 1 x\n").contains("line 2: \"x\" is no finite number"));
        assert!(error(b"a 1 nan\n").contains("line 1: \"nan\" is no finite number"));
        assert!(error(b"a 1\na 2\n").contains("line 2: the word \"a\" comes twice"));
        assert!(error(b"2 1\na 2\n").contains("it says 2 words, and there are 1"));
        assert!(error(b"a 1\n\xff 2\n").contains("line 2: it is not UTF-8"));
        assert!(error(b"9 0\nword\n").contains("line 2"));
        assert!(error(b"word\n").contains("line 1: there are fewer than 0 values"));
    }
}
