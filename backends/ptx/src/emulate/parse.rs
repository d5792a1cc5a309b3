//! PTX text to statements.
//!
//! Invariant: every line and column of an error is that of the text, counted from 1; nothing in a text makes the parser
//! panic. What a statement means is [`super::decode`]'s matter.
//!
//! Source: "Parallel Thread Execution ISA", chapters 4 and 5.

use std::collections::HashMap;

/// A text is no PTX that is understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

/// A place in the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spot {
    pub line: usize,
    pub column: usize,
}

impl Spot {
    pub fn error(self, message: impl Into<String>) -> ParseError {
        ParseError { line: self.line, column: self.column, message: message.into() }
    }
}

/// An operand as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand {
    Register(usize),
    /// Register, then the other one, as in `%p|%q`.
    Pair(usize, Option<usize>),
    /// `!%p`
    Not(usize),
    Number(u64),
    /// A variable, a special register or a label, by name.
    Name(String),
    Memory(Box<Operand>, i64),
    /// `[%d, {%r, %s}]`: a tensor map and coordinates.
    Tensor(Box<Operand>, Vec<Operand>),
    List(Vec<Operand>),
    /// `_`
    Nothing,
}

#[derive(Clone, Debug)]
pub(super) struct Statement {
    /// Guard register, and whether it is negated.
    pub guard: Option<(usize, bool)>,
    /// The name's parts between dots.
    pub name: Vec<String>,
    pub operands: Vec<Operand>,
    pub spot: Spot,
}

/// A variable in shared, global or local memory.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub name: String,
    pub space: Space,
    pub align: usize,
    /// Bytes; 0 for one that takes what the launch gives.
    pub bytes: usize,
    /// Its bytes at the beginning, of which missing ones are 0.
    pub init: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Shared,
    Global,
    Local,
    Constant,
}

/// A parameter of an entry.
#[derive(Clone, Debug)]
pub(super) struct Parameter {
    pub name: String,
    /// Where it begins among the parameters' bytes.
    pub offset: usize,
    pub bytes: usize,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    pub name: String,
    pub parameters: Vec<Parameter>,
    pub statements: Vec<Statement>,
    /// Register names by number.
    pub registers: Vec<String>,
    /// Label: number of the statement that it stands before.
    pub labels: HashMap<String, usize>,
    pub variables: Vec<Variable>,
    /// Threads that the text demands in each dimension.
    pub threads: Option<[u32; 3]>,
    /// For each statement the comment before it, if there is one.
    pub comments: HashMap<usize, String>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Text {
    pub entries: Vec<Entry>,
    pub variables: Vec<Variable>,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// Names, registers and directives, dots inside included.
    Word(String),
    Number(u64),
    Mark(char),
    End,
}

struct Lexer {
    tokens: Vec<(Token, Spot)>,
    comments: HashMap<usize, String>,
    at: usize,
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%' | '.' | ':')
}

impl Lexer {
    fn new(text: &str) -> Result<Lexer, ParseError> {
        let (mut tokens, mut comments) = (Vec::new(), HashMap::new());
        let mut open = false;
        for (n, line) in text.lines().enumerate() {
            let chars: Vec<char> = line.chars().collect();
            let mut i = 0;
            while i < chars.len() {
                let spot = Spot { line: n + 1, column: i + 1 };
                let c = chars[i];
                let next = chars.get(i + 1).copied();
                if open {
                    if c == '*' && next == Some('/') {
                        open = false;
                        i += 1;
                    }
                    i += 1;
                } else if c.is_whitespace() {
                    i += 1;
                } else if c == '/' && next == Some('/') {
                    let comment: String = chars[i + 2..].iter().collect();
                    if let Some(text) = comment.strip_prefix(" from ") {
                        comments.insert(tokens.len(), text.trim().to_string());
                    }
                    break;
                } else if c == '/' && next == Some('*') {
                    open = true;
                    i += 2;
                } else if c == '"' {
                    let end =
                        chars[i + 1..].iter().position(|c| *c == '"').ok_or_else(|| spot.error("no closing quote"))?;
                    tokens.push((Token::Word(chars[i..i + end + 2].iter().collect()), spot));
                    i += end + 2;
                } else if c.is_ascii_digit() {
                    let end = chars[i..].iter().position(|c| !is_word(*c) || *c == ':').map_or(chars.len(), |e| i + e);
                    let word: String = chars[i..end].iter().collect();
                    let value = number(&word).ok_or_else(|| spot.error(format!("`{word}` is no number")))?;
                    tokens.push((Token::Number(value), spot));
                    i = end;
                } else if is_word(c) && c != ':' {
                    let mut end = chars[i..].iter().position(|c| !is_word(*c)).map_or(chars.len(), |e| i + e);
                    // Colons are inside names (`L2::128B`) or after a label.
                    while end > i && chars[end - 1] == ':' {
                        end -= 1;
                    }
                    tokens.push((Token::Word(chars[i..end].iter().collect()), spot));
                    i = end;
                } else {
                    tokens.push((Token::Mark(c), spot));
                    i += 1;
                }
            }
        }
        let last = Spot { line: text.lines().count().max(1), column: 1 };
        tokens.push((Token::End, last));
        Ok(Lexer { tokens, comments, at: 0 })
    }

    fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |(t, _)| t)
    }

    fn spot(&self) -> Spot {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(Spot::default(), |(_, s)| *s)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn take(&mut self, mark: char) -> bool {
        let found = *self.peek() == Token::Mark(mark);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, mark: char) -> Result<(), ParseError> {
        let spot = self.spot();
        if self.take(mark) { Ok(()) } else { Err(spot.error(format!("expected `{mark}`, found {}", self.shown()))) }
    }

    fn word(&mut self) -> Result<String, ParseError> {
        let spot = self.spot();
        match self.next() {
            Token::Word(word) => Ok(word),
            _ => {
                self.at -= 1;
                Err(spot.error(format!("expected a name, found {}", self.shown())))
            }
        }
    }

    fn number(&mut self) -> Result<u64, ParseError> {
        let spot = self.spot();
        let minus = self.take('-');
        match self.next() {
            Token::Number(n) => Ok(if minus { n.wrapping_neg() } else { n }),
            _ => Err(spot.error("expected a number")),
        }
    }

    fn size(&mut self) -> Result<usize, ParseError> {
        let spot = self.spot();
        let n = usize::try_from(self.number()?).ok().filter(|n| *n < 1 << 31);
        n.ok_or_else(|| spot.error("the number is too large"))
    }

    fn shown(&self) -> String {
        match self.peek() {
            Token::Word(w) => format!("`{w}`"),
            Token::Number(n) => format!("`{n}`"),
            Token::Mark(c) => format!("`{c}`"),
            Token::End => "the end of the text".into(),
        }
    }

    /// Passes everything up to the mark, which is taken too.
    fn skip_past(&mut self, mark: char) {
        while *self.peek() != Token::End && !self.take(mark) {
            self.at += 1;
        }
    }

    /// Passes the rest of the line.
    fn skip_line(&mut self) {
        let line = self.spot().line;
        while *self.peek() != Token::End && self.spot().line == line {
            self.at += 1;
        }
    }
}

/// A number: decimal, `0x`, `0b`, octal, `0f` with the bits of an f32, `0d` with those of an f64, or `1.5`, an f64.
fn number(word: &str) -> Option<u64> {
    let word = word.strip_suffix('U').unwrap_or(word);
    let radix = |digits: &str, radix| u64::from_str_radix(digits, radix).ok();
    match word.get(..2) {
        Some("0x" | "0X") => radix(&word[2..], 16),
        Some("0b" | "0B") => radix(&word[2..], 2),
        Some("0f" | "0F") => u32::from_str_radix(&word[2..], 16).ok().map(u64::from),
        Some("0d" | "0D") => radix(&word[2..], 16),
        _ if word.contains('.') => word.parse::<f64>().ok().map(f64::to_bits),
        _ if word.len() > 1 && word.starts_with('0') => radix(&word[1..], 8),
        _ => word.parse().ok(),
    }
}

/// Bytes of a type by its name; `pred` has none.
pub(super) fn bytes_of(ty: &str) -> Option<usize> {
    Some(match ty {
        "pred" => 0,
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        "b128" => 16,
        _ => return None,
    })
}

/// Parses a module.
pub(super) fn parse(text: &str) -> Result<Text, ParseError> {
    let mut lexer = Lexer::new(text)?;
    let mut module = Text::default();
    loop {
        let spot = lexer.spot();
        match lexer.next() {
            Token::End => return Ok(module),
            Token::Word(word) => match word.as_str() {
                ".version" | ".target" | ".address_size" | ".file" | ".loc" | ".pragma" => lexer.skip_line(),
                ".visible" | ".extern" | ".weak" | ".common" => {}
                ".section" => {
                    lexer.skip_past('{');
                    lexer.skip_past('}');
                }
                ".entry" => {
                    let entry = entry(&mut lexer)?;
                    module.entries.push(entry);
                }
                ".func" => return Err(spot.error("functions are not supported, only entries; inline them")),
                ".global" => module.variables.extend(variables(&mut lexer, Space::Global)?),
                ".shared" => module.variables.extend(variables(&mut lexer, Space::Shared)?),
                ".const" => module.variables.extend(variables(&mut lexer, Space::Constant)?),
                other => return Err(spot.error(format!("`{other}` is not supported here"))),
            },
            Token::Mark(c) => return Err(spot.error(format!("`{c}` does not belong here"))),
            Token::Number(n) => return Err(spot.error(format!("`{n}` does not belong here"))),
        }
    }
}

/// Variables after their space's name, up to the semicolon.
fn variables(lexer: &mut Lexer, space: Space) -> Result<Vec<Variable>, ParseError> {
    let (mut align, mut size) = (1, 0);
    loop {
        let spot = lexer.spot();
        match lexer.peek().clone() {
            Token::Word(word) if word == ".align" => {
                lexer.next();
                align = lexer.size()?.clamp(1, 1024);
            }
            Token::Word(word) if word.starts_with('.') => {
                lexer.next();
                if let Some(bytes) = bytes_of(&word[1..]) {
                    size = bytes;
                } else if !matches!(word.as_str(), ".v2" | ".v4" | ".attribute") {
                    return Err(spot.error(format!("`{word}` is no type of a variable")));
                }
            }
            Token::Word(_) | Token::Number(_) | Token::Mark(_) | Token::End => break,
        }
    }
    align = align.max(size.max(1));
    let mut list = Vec::new();
    loop {
        let spot = lexer.spot();
        let name = lexer.word()?;
        let mut count = 1usize;
        let mut open = false;
        while lexer.take('[') {
            if lexer.take(']') {
                open = true;
                continue;
            }
            count = count.saturating_mul(lexer.size()?);
            lexer.expect(']')?;
        }
        let mut init = Vec::new();
        if lexer.take('=') {
            if lexer.take('{') {
                while !lexer.take('}') {
                    let n = lexer.number()?;
                    init.extend_from_slice(&n.to_le_bytes()[..size.min(8)]);
                    lexer.take(',');
                }
            } else {
                let n = lexer.number()?;
                init.extend_from_slice(&n.to_le_bytes()[..size.min(8)]);
            }
        }
        let bytes = if open { init.len() } else { count.saturating_mul(size) };
        if bytes > 1 << 30 {
            return Err(spot.error(format!("`{name}` has {bytes} bytes")));
        }
        list.push(Variable { name, space, align, bytes, init });
        if !lexer.take(',') {
            break;
        }
    }
    lexer.expect(';')?;
    Ok(list)
}

fn entry(lexer: &mut Lexer) -> Result<Entry, ParseError> {
    let mut entry = Entry { name: lexer.word()?, ..Entry::default() };
    let mut offset = 0usize;
    if lexer.take('(') {
        while !lexer.take(')') {
            let spot = lexer.spot();
            let mut align = 0;
            let mut size = None;
            while let Token::Word(word) = lexer.peek().clone() {
                if !word.starts_with('.') {
                    break;
                }
                lexer.next();
                match word.as_str() {
                    ".align" => align = lexer.size()?,
                    ".param" | ".ptr" | ".global" | ".shared" | ".const" | ".local" => {}
                    other => size = bytes_of(&other[1..]).or(size),
                }
            }
            let size = size.ok_or_else(|| spot.error("a parameter without a type"))?;
            let name = lexer.word()?;
            let mut count = 1usize;
            while lexer.take('[') {
                count = count.saturating_mul(lexer.size()?);
                lexer.expect(']')?;
            }
            let bytes = size.saturating_mul(count);
            if bytes > 1 << 16 {
                return Err(spot.error(format!("the parameter `{name}` has {bytes} bytes")));
            }
            let align = if align > 0 && count > 1 { align } else { size.max(1) };
            offset = offset.next_multiple_of(align.clamp(1, 256));
            entry.parameters.push(Parameter { name, offset, bytes });
            offset += bytes;
            lexer.take(',');
        }
    }
    loop {
        let spot = lexer.spot();
        match lexer.next() {
            Token::Mark('{') => break,
            Token::Word(word) => match word.as_str() {
                ".reqntid" | ".maxntid" => {
                    let mut threads = [1u32; 3];
                    for slot in &mut threads {
                        *slot = u32::try_from(lexer.size()?).unwrap_or(u32::MAX);
                        if !lexer.take(',') {
                            break;
                        }
                    }
                    if word == ".reqntid" {
                        entry.threads = Some(threads);
                    }
                }
                ".minnctapersm" | ".maxnctapersm" | ".maxnreg" => _ = lexer.size()?,
                ".pragma" => lexer.skip_past(';'),
                other => return Err(spot.error(format!("`{other}` is not supported here"))),
            },
            Token::Mark(_) | Token::Number(_) | Token::End => return Err(spot.error("expected the entry's body")),
        }
    }
    let scopes = vec![Scope::default()];
    Body { entry: &mut entry, scopes, declared: 0, used: HashMap::new() }.parse(lexer)?;
    Ok(entry)
}

#[derive(Default)]
struct Scope {
    registers: HashMap<String, usize>,
    /// Names with a count: `%r<12>`.
    ranges: HashMap<String, (usize, usize)>,
    /// What a label of this scope is called in the entry.
    number: usize,
}

struct Body<'a> {
    entry: &'a mut Entry,
    scopes: Vec<Scope>,
    /// How many registers are declared.
    declared: usize,
    /// The numbers of those that are used.
    used: HashMap<usize, usize>,
}

impl Body<'_> {
    /// The register's number among those in use.
    fn register(&mut self, name: &str) -> Option<usize> {
        let declared = self.declaration(name)?;
        let next = self.entry.registers.len();
        let number = *self.used.entry(declared).or_insert(next);
        if number == next {
            self.entry.registers.push(name.to_string());
        }
        Some(number)
    }

    fn declaration(&self, name: &str) -> Option<usize> {
        let digits = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let index = name.get(digits.len()..).and_then(|d| d.parse::<usize>().ok());
        for scope in self.scopes.iter().rev() {
            if let Some(&n) = scope.registers.get(name) {
                return Some(n);
            }
            if let (Some(&(first, count)), Some(index)) = (scope.ranges.get(digits), index)
                && index < count
            {
                return Some(first + index);
            }
        }
        None
    }

    fn parse(mut self, lexer: &mut Lexer) -> Result<(), ParseError> {
        let mut scopes = 0;
        loop {
            let (spot, token) = (lexer.spot(), lexer.at);
            if let Some(comment) = lexer.comments.get(&token) {
                self.entry.comments.insert(self.entry.statements.len(), comment.clone());
            }
            match lexer.next() {
                Token::End => return Err(spot.error("the body has no end")),
                Token::Mark('{') => {
                    scopes += 1;
                    self.scopes.push(Scope { number: scopes, ..Scope::default() });
                }
                Token::Mark('}') => {
                    self.scopes.pop();
                    if self.scopes.is_empty() {
                        return Ok(());
                    }
                }
                Token::Mark(';') => {}
                Token::Mark('@') => {
                    let not = lexer.take('!');
                    let name = lexer.word()?;
                    let register = self.register(&name);
                    let register = register.ok_or_else(|| spot.error(format!("`{name}` is not declared")))?;
                    let name = lexer.word()?;
                    self.statement(lexer, Some((register, not)), &name, spot)?;
                }
                Token::Word(word) => match word.as_str() {
                    ".reg" => self.declare(lexer)?,
                    ".shared" | ".local" => {
                        let space = if word == ".shared" { Space::Shared } else { Space::Local };
                        self.entry.variables.extend(variables(lexer, space)?);
                    }
                    ".loc" | ".file" => lexer.skip_line(),
                    ".pragma" => lexer.skip_past(';'),
                    ".param" => return Err(spot.error("calls are not supported")),
                    _ if lexer.take(':') => {
                        let label = self.label(&word);
                        self.entry.labels.insert(label, self.entry.statements.len());
                    }
                    _ => self.statement(lexer, None, &word, spot)?,
                },
                Token::Mark(c) => return Err(spot.error(format!("`{c}` does not begin a statement"))),
                Token::Number(n) => return Err(spot.error(format!("`{n}` does not begin a statement"))),
            }
        }
    }

    /// A label of an inner scope is another one than that of the same name outside.
    fn label(&self, name: &str) -> String {
        match self.scopes.last().map_or(0, |s| s.number) {
            0 => name.to_string(),
            n => format!("{name}@{n}"),
        }
    }

    fn declare(&mut self, lexer: &mut Lexer) -> Result<(), ParseError> {
        let spot = lexer.spot();
        let ty = lexer.word()?;
        if ty.strip_prefix('.').and_then(bytes_of).is_none() {
            return Err(spot.error(format!("`{ty}` is no type of registers")));
        }
        loop {
            let spot = lexer.spot();
            let name = lexer.word()?;
            let first = self.declared;
            let count = if lexer.take('<') {
                let count = lexer.size()?;
                lexer.expect('>')?;
                Some(count)
            } else {
                None
            };
            if first.saturating_add(count.unwrap_or(1)) > 1 << 24 {
                return Err(spot.error("more than 16 million registers"));
            }
            self.declared += count.unwrap_or(1);
            if let Some(scope) = self.scopes.last_mut() {
                match count {
                    Some(count) => _ = scope.ranges.insert(name, (first, count)),
                    None => _ = scope.registers.insert(name, first),
                }
            }
            if !lexer.take(',') {
                break;
            }
        }
        lexer.expect(';')
    }

    fn statement(
        &mut self,
        lexer: &mut Lexer,
        guard: Option<(usize, bool)>,
        name: &str,
        spot: Spot,
    ) -> Result<(), ParseError> {
        let mut operands = Vec::new();
        while !lexer.take(';') {
            operands.push(self.operand(lexer)?);
            if !lexer.take(',') {
                lexer.expect(';')?;
                break;
            }
        }
        let name = name.split('.').map(str::to_string).collect();
        self.entry.statements.push(Statement { guard, name, operands, spot });
        Ok(())
    }

    /// Lists and addresses do not nest.
    fn plain(&self, lexer: &Lexer) -> Result<(), ParseError> {
        match lexer.peek() {
            Token::Mark('{' | '[') => Err(lexer.spot().error("a register or a number belongs here")),
            Token::Mark(_) | Token::Word(_) | Token::Number(_) | Token::End => Ok(()),
        }
    }

    fn operand(&mut self, lexer: &mut Lexer) -> Result<Operand, ParseError> {
        let spot = lexer.spot();
        if lexer.take('{') {
            let mut list = Vec::new();
            while !lexer.take('}') {
                self.plain(lexer)?;
                list.push(self.operand(lexer)?);
                lexer.take(',');
            }
            return Ok(Operand::List(list));
        }
        if lexer.take('[') {
            self.plain(lexer)?;
            let base = self.operand(lexer)?;
            let mut offset = 0i64;
            if lexer.take('+') || *lexer.peek() == Token::Mark('-') {
                offset = lexer.number()? as i64;
            }
            if lexer.take(',') {
                let at = self.operand(lexer)?;
                lexer.expect(']')?;
                return Ok(match at {
                    Operand::List(at) => Operand::Tensor(Box::new(base), at),
                    one => Operand::Tensor(Box::new(base), vec![one]),
                });
            }
            lexer.expect(']')?;
            return Ok(Operand::Memory(Box::new(base), offset));
        }
        if lexer.take('!') {
            let name = lexer.word()?;
            let register = self.register(&name);
            return register.map(Operand::Not).ok_or_else(|| spot.error(format!("`{name}` is not declared")));
        }
        match lexer.peek().clone() {
            Token::Number(_) | Token::Mark('-') => Ok(Operand::Number(lexer.number()?)),
            Token::Word(word) => {
                lexer.next();
                if word == "_" {
                    return Ok(Operand::Nothing);
                }
                let Some(register) = self.register(&word) else {
                    let local = self.label(&word);
                    return Ok(Operand::Name(if local == word { word } else { format!("{word}\n{local}") }));
                };
                if lexer.take('|') {
                    let other = lexer.word()?;
                    if other == "_" {
                        return Ok(Operand::Pair(register, None));
                    }
                    let other =
                        self.register(&other).ok_or_else(|| spot.error(format!("`{other}` is not declared")))?;
                    return Ok(Operand::Pair(register, Some(other)));
                }
                Ok(Operand::Register(register))
            }
            Token::Mark(_) | Token::End => Err(spot.error(format!("expected an operand, found {}", lexer.shown()))),
        }
    }
}
