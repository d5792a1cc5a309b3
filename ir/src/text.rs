//! The lexer that all text forms share.
//!
//! Invariant: tokens borrow from the source, and every error carries the line and column where it was noticed.

use std::cell::Cell;
use std::fmt;

/// A text form could not be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What was expected and what was found.
    pub message: String,
}

/// One token of a text form.
#[derive(Debug, Clone, PartialEq)]
pub enum Token<'a> {
    /// A word: letters, digits, `_`, `.` and `@`, beginning with none of the digits.
    Word(&'a str),
    /// `%` and a number.
    Value(usize),
    /// A number with its suffix, as written: `-0.5f32`, `12`, `3i64`.
    Number(&'a str),
    /// The unescaped contents of a double-quoted string.
    Text(String),
    /// A punctuation character; `->` and `..` are `'>'`-terminated two-character marks given as `→` and `…`.
    Mark(char),
    /// The end of the source.
    End,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Word(w) => write!(f, "`{w}`"),
            Token::Value(v) => write!(f, "`%{v}`"),
            Token::Number(n) => write!(f, "`{n}`"),
            Token::Text(t) => write!(f, "{t:?}"),
            Token::Mark('→') => write!(f, "`->`"),
            Token::Mark('…') => write!(f, "`..`"),
            Token::Mark(c) => write!(f, "`{c}`"),
            Token::End => write!(f, "the end"),
        }
    }
}

/// A cursor over a text form with one token of look-ahead. `#` begins a comment that ends with its line.
pub struct Lexer<'a> {
    source: &'a str,
    /// Start of the look-ahead token.
    start: usize,
    /// End of the look-ahead token.
    end: usize,
    token: Token<'a>,
    error: Option<ParseError>,
    depth: usize,
    /// A line that was counted to, with where it begins: readers ask for an error at each token, long before they know whether
    /// there is one.
    counted: Cell<(usize, usize)>,
}

/// How deeply expressions and regions may nest in a text form.
const MAX_DEPTH: usize = 200;

impl<'a> Lexer<'a> {
    /// A cursor at the first token.
    pub fn new(source: &'a str) -> Self {
        let mut lexer =
            Lexer { source, start: 0, end: 0, token: Token::End, error: None, depth: 0, counted: Cell::new((1, 0)) };
        lexer.advance();
        lexer
    }

    /// The next token, not consumed.
    pub fn peek(&self) -> &Token<'a> {
        &self.token
    }

    /// An error at the next token.
    pub fn error(&self, message: impl Into<String>) -> ParseError {
        if let Some(e) = &self.error {
            return e.clone();
        }
        self.error_at(self.start, message)
    }

    fn error_at(&self, at: usize, message: impl Into<String>) -> ParseError {
        let at = at.min(self.source.len());
        let (line, line_start) = Some(self.counted.get()).filter(|c| c.1 <= at).unwrap_or((1, 0));
        let since = &self.source[line_start..at];
        let line = line + since.matches('\n').count();
        let line_start = since.rfind('\n').map_or(line_start, |i| line_start + i + 1);
        self.counted.set((line, line_start));
        ParseError { line, column: self.source[line_start..at].chars().count() + 1, message: message.into() }
    }

    /// Enters a nested construct; `leave` it with [`Lexer::leave`].
    ///
    /// # Errors
    /// The nesting is too deep.
    pub fn enter(&mut self) -> Result<(), ParseError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(self.error("nested too deeply")) } else { Ok(()) }
    }

    /// Leaves a nested construct.
    pub fn leave(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    /// Consumes and returns the next token.
    pub fn bump(&mut self) -> Token<'a> {
        let token = std::mem::replace(&mut self.token, Token::End);
        self.advance();
        token
    }

    /// Consumes the mark if it is next.
    pub fn eat(&mut self, mark: char) -> bool {
        let found = self.token == Token::Mark(mark);
        if found {
            self.advance();
        }
        found
    }

    /// Consumes the word if it is next.
    pub fn eat_word(&mut self, word: &str) -> bool {
        let found = self.token == Token::Word(word);
        if found {
            self.advance();
        }
        found
    }

    /// Consumes a mark.
    ///
    /// # Errors
    /// Something else is next.
    pub fn expect(&mut self, mark: char) -> Result<(), ParseError> {
        if self.eat(mark) {
            return Ok(());
        }
        Err(self.error(format!("expected {}, found {}", Token::Mark(mark), self.token)))
    }

    /// Consumes a given word.
    ///
    /// # Errors
    /// Something else is next.
    pub fn expect_word(&mut self, word: &str) -> Result<(), ParseError> {
        if self.eat_word(word) {
            return Ok(());
        }
        Err(self.error(format!("expected `{word}`, found {}", self.token)))
    }

    /// Consumes any word.
    ///
    /// # Errors
    /// No word is next.
    pub fn word(&mut self) -> Result<&'a str, ParseError> {
        match self.token {
            Token::Word(w) => {
                self.advance();
                Ok(w)
            }
            _ => Err(self.error(format!("expected a word, found {}", self.token))),
        }
    }

    /// Consumes a `%n`.
    ///
    /// # Errors
    /// Something else is next.
    pub fn value(&mut self) -> Result<usize, ParseError> {
        match self.token {
            Token::Value(v) => {
                self.advance();
                Ok(v)
            }
            _ => Err(self.error(format!("expected a value such as `%3`, found {}", self.token))),
        }
    }

    /// Consumes a string.
    ///
    /// # Errors
    /// Something else is next.
    pub fn text(&mut self) -> Result<String, ParseError> {
        match &self.token {
            Token::Text(_) => match self.bump() {
                Token::Text(t) => Ok(t),
                other => Err(self.error(format!("expected a string, found {other}"))),
            },
            other => Err(self.error(format!("expected a string, found {other}"))),
        }
    }

    /// Consumes an integer without suffix, with an optional `-` before it.
    ///
    /// # Errors
    /// Something else is next, or it does not fit.
    pub fn integer(&mut self) -> Result<i64, ParseError> {
        match self.token {
            Token::Number(n) => {
                let v = n.parse().map_err(|_| self.error(format!("`{n}` is no 64-bit integer")))?;
                self.advance();
                Ok(v)
            }
            _ => Err(self.error(format!("expected an integer, found {}", self.token))),
        }
    }

    /// Consumes an integer that is not negative.
    ///
    /// # Errors
    /// Something else is next, or it does not fit.
    pub fn size(&mut self) -> Result<usize, ParseError> {
        let error = self.error("expected a number that is not negative");
        usize::try_from(self.integer()?).map_err(|_| error)
    }

    /// Items between an opening and a closing mark, separated by commas.
    ///
    /// # Errors
    /// A mark is missing or an item fails.
    pub fn list<T>(
        &mut self,
        open: char,
        close: char,
        mut item: impl FnMut(&mut Self) -> Result<T, ParseError>,
    ) -> Result<Vec<T>, ParseError> {
        self.expect(open)?;
        let mut items = Vec::new();
        while !self.eat(close) {
            if !items.is_empty() {
                self.expect(',')?;
                if self.eat(close) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn advance(&mut self) {
        let bytes = self.source.as_bytes();
        let mut i = self.end;
        loop {
            while bytes.get(i).is_some_and(u8::is_ascii_whitespace) {
                i += 1;
            }
            if bytes.get(i) != Some(&b'#') {
                break;
            }
            while bytes.get(i).is_some_and(|&b| b != b'\n') {
                i += 1;
            }
        }
        self.start = i;
        let Some(&first) = bytes.get(i) else {
            self.end = i;
            self.token = Token::End;
            return;
        };
        let is_word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'@');
        let run = |mut j: usize, more: &dyn Fn(&u8) -> bool| {
            while bytes.get(j).is_some_and(more) {
                j += 1;
            }
            j
        };
        let negative = first == b'-' && bytes.get(i + 1).is_some_and(u8::is_ascii_digit);
        (self.token, self.end) = if first.is_ascii_digit() || negative {
            let mut j = run(i + 1, &is_word);
            if bytes.get(j) == Some(&b'.') && bytes.get(j + 1).is_some_and(u8::is_ascii_digit) {
                j = run(j + 1, &is_word);
            }
            let exponent = bytes[j - 1] == b'e' && matches!(bytes.get(j), Some(b'-' | b'+'));
            if exponent {
                j = run(j + 1, &is_word);
            }
            (Token::Number(&self.source[i..j]), j)
        } else if is_word(&first) {
            // Names may hold dots between word characters, as ONNX names and `@layer.0` do.
            let mut j = run(i, &is_word);
            while bytes.get(j) == Some(&b'.') && bytes.get(j + 1).is_some_and(is_word) {
                j = run(j + 1, &is_word);
            }
            (Token::Word(&self.source[i..j]), j)
        } else if first == b'%' && bytes.get(i + 1).is_some_and(u8::is_ascii_digit) {
            let j = run(i + 1, &u8::is_ascii_digit);
            match self.source[i + 1..j].parse() {
                Ok(v) => (Token::Value(v), j),
                Err(_) => (Token::Mark('%'), i + 1),
            }
        } else if first == b'"' {
            self.string(i)
        } else if self.source[i..].starts_with("->") {
            (Token::Mark('→'), i + 2)
        } else if self.source[i..].starts_with("..") {
            (Token::Mark('…'), i + 2)
        } else {
            let c = self.source[i..].chars().next().unwrap_or('\0');
            (Token::Mark(c), i + c.len_utf8())
        };
    }

    fn string(&mut self, start: usize) -> (Token<'a>, usize) {
        let mut out = String::new();
        let mut chars = self.source[start + 1..].char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => return (Token::Text(out), start + 1 + at + 1),
                '\\' => match chars.next() {
                    Some((_, 'n')) => out.push('\n'),
                    Some((_, 't')) => out.push('\t'),
                    Some((_, 'r')) => out.push('\r'),
                    Some((_, '0')) => out.push('\0'),
                    Some((_, 'u')) => {
                        let code: String = chars.by_ref().map(|(_, c)| c).skip(1).take_while(|&c| c != '}').collect();
                        out.extend(u32::from_str_radix(&code, 16).ok().and_then(char::from_u32));
                    }
                    Some((_, c)) => out.push(c),
                    None => break,
                },
                c => out.push(c),
            }
        }
        self.error = Some(self.error_at(start, "a string without its closing quote"));
        (Token::End, self.source.len())
    }
}

/// Items separated by `, `.
pub struct Commas<T>(pub T);

impl<T, I: fmt::Display> fmt::Display for Commas<T>
where
    T: Clone + IntoIterator<Item = I>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, item) in self.0.clone().into_iter().enumerate() {
            write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
