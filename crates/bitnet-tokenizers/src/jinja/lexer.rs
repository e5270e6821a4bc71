//! Splits a template's source into tokens, with the white space rules of `trim_blocks` and
//! `lstrip_blocks`.

use std::sync::Arc;

use super::fault::{Fault, Result};
use super::strings::is_space;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Lexeme {
    /// Text between tags.
    Data(Arc<str>),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(Arc<str>),
    Text(Arc<str>),
    Int(i128),
    Float(f64),
    Operator(&'static str),
    End,
}

/// Longest first.
const OPERATORS: &[&str] = &[
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";",
];

/// The tokens of a template with their lines, the last being [`Lexeme::End`].
pub(crate) fn tokenize(source: &str) -> Result<Vec<(Lexeme, u32)>> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer {
        source,
        place: 0,
        line: 1,
        tokens: Vec::new(),
        after_newline: true,
    };
    while lexer.place < source.len() {
        lexer.data()?;
    }
    lexer.push(Lexeme::End);
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    source: &'s str,
    place: usize,
    line: u32,
    tokens: Vec<(Lexeme, u32)>,
    /// Whether the previous tag consumed a line end, or there is no previous tag.
    after_newline: bool,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.place..]
    }

    fn push(&mut self, token: Lexeme) {
        self.tokens.push((token, self.line));
    }

    fn fault<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Fault::new(message).at(self.line))
    }

    /// Advances by `len` bytes.
    fn advance(&mut self, len: usize) {
        let passed = &self.rest()[..len];
        self.line += passed.matches('\n').count() as u32;
        self.after_newline = passed.ends_with('\n');
        self.place += len;
    }

    fn advance_if(&mut self, text: &str) -> bool {
        let is_here = self.rest().starts_with(text);
        if is_here {
            self.advance(text.len());
        }
        is_here
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.advance(rest.len() - rest.trim_start_matches(is_space).len());
    }

    /// Text up to the next tag, and that tag.
    fn data(&mut self) -> Result<()> {
        let rest = self.rest();
        let tags = ["{{", "{%", "{#"];
        let tag = rest.char_indices().find_map(|(at, c)| {
            let is_tag = |tag: &&&str| rest[at..].starts_with(**tag);
            (c == '{').then(|| tags.iter().find(is_tag).map(|tag| (at, *tag)))?
        });
        let Some((at, tag)) = tag else {
            self.push_data(rest);
            self.place = self.source.len();
            return Ok(());
        };
        let sign = rest[at + 2..]
            .chars()
            .next()
            .filter(|c| matches!(c, '-' | '+'));
        let kept = self.before_tag(&rest[..at], sign, tag == "{{");
        self.push_data(kept);
        self.advance(at + 2 + usize::from(sign.is_some()));
        match tag {
            "{{" => self.tag(Lexeme::VariableBegin, Lexeme::VariableEnd, "}}"),
            "{#" => self.comment(),
            _ if self.is_raw() => self.raw(),
            _ => self.tag(Lexeme::BlockBegin, Lexeme::BlockEnd, "%}"),
        }
    }

    /// The text before a tag, after trimming.
    fn before_tag<'t>(&self, text: &'t str, sign: Option<char>, is_variable: bool) -> &'t str {
        if sign == Some('-') {
            return text.trim_end_matches(is_space);
        }
        let line_start = text.rfind('\n').map_or(0, |at| at + 1);
        let begins_line = line_start > 0 || self.after_newline;
        let indent = &text[line_start..];
        if sign.is_none() && !is_variable && begins_line && indent.chars().all(is_space) {
            return &text[..line_start];
        }
        text
    }

    fn push_data(&mut self, text: &str) {
        if !text.is_empty() {
            self.push(Lexeme::Data(text.into()));
        }
    }

    fn comment(&mut self) -> Result<()> {
        match self.rest().find("#}") {
            None => self.fault("Missing end of comment tag"),
            Some(at) => {
                let sign = self.rest()[..at].chars().next_back();
                self.advance(at + 2);
                self.after_tag(sign);
                Ok(())
            }
        }
    }

    /// The white space that is removed after a block or comment.
    fn after_tag(&mut self, sign: Option<char>) {
        match sign {
            Some('-') => self.skip_space(),
            Some('+') => {}
            _ => {
                self.advance_if("\n");
            }
        }
    }

    /// Whether the block that begins here is `raw`.
    fn is_raw(&self) -> bool {
        let rest = self.rest().trim_start_matches(is_space);
        rest.strip_prefix("raw").is_some_and(|rest| {
            let rest = rest.trim_start_matches(is_space);
            rest.starts_with("%}") || rest.starts_with("-%}")
        })
    }

    fn raw(&mut self) -> Result<()> {
        let end = self.rest().find("%}").unwrap_or_default();
        let strips = self.rest()[..end].ends_with('-');
        self.advance(end + 2);
        if strips {
            self.skip_space();
        }
        let rest = self.rest();
        for (at, _) in rest.match_indices("{%") {
            let sign = rest[at + 2..]
                .chars()
                .next()
                .filter(|c| matches!(c, '-' | '+'));
            let inside = &rest[at + 2 + usize::from(sign.is_some())..];
            let inside = inside.trim_start_matches(is_space);
            let Some(inside) = inside.strip_prefix("endraw") else {
                continue;
            };
            let inside = inside.trim_start_matches(is_space);
            let end_sign = inside.chars().next().filter(|c| matches!(c, '-' | '+'));
            let Some(after) = inside[usize::from(end_sign.is_some())..].strip_prefix("%}") else {
                continue;
            };
            let kept = self.before_tag(&rest[..at], sign, false);
            self.push_data(kept);
            self.advance(rest.len() - after.len());
            self.after_tag(end_sign);
            return Ok(());
        }
        self.fault("Missing end of raw directive")
    }

    /// A tag's tokens up to its end.
    fn tag(&mut self, begin: Lexeme, end: Lexeme, end_text: &str) -> Result<()> {
        self.push(begin);
        let is_block = end == Lexeme::BlockEnd;
        let mut open: Vec<char> = Vec::new();
        loop {
            if open.is_empty() {
                let signs: &[&str] = if is_block {
                    &["+", "-", ""]
                } else {
                    &["-", ""]
                };
                let rest = self.rest();
                let is_end = |sign: &&&str| {
                    rest.strip_prefix(**sign)
                        .is_some_and(|rest| rest.starts_with(end_text))
                };
                if let Some(sign) = signs.iter().find(is_end) {
                    self.advance(sign.len() + end_text.len());
                    self.push(end);
                    match sign.chars().next() {
                        Some('-') => self.skip_space(),
                        sign if is_block => self.after_tag(sign),
                        _ => {}
                    }
                    return Ok(());
                }
            }
            self.skip_space();
            if self.rest().is_empty() {
                // The parser reports the missing part.
                return Ok(());
            }
            if open.is_empty() && self.at_end(end_text, is_block) {
                continue;
            }
            self.token(&mut open)?;
        }
    }

    fn at_end(&self, end_text: &str, is_block: bool) -> bool {
        let rest = self.rest();
        let unsigned = rest.strip_prefix('-').unwrap_or(rest);
        let unsigned = if is_block {
            rest.strip_prefix('+').unwrap_or(unsigned)
        } else {
            unsigned
        };
        unsigned.starts_with(end_text)
    }

    /// One token inside a tag; `open` holds the expected closing brackets.
    fn token(&mut self, open: &mut Vec<char>) -> Result<()> {
        let rest = self.rest();
        let first = rest.chars().next().unwrap_or_default();
        if first.is_ascii_digit() {
            return self.number();
        }
        if first.is_alphanumeric() || first == '_' {
            let len = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            self.push(Lexeme::Name(rest[..len].into()));
            self.advance(len);
            return Ok(());
        }
        if matches!(first, '"' | '\'') {
            return self.string(first);
        }
        let Some(operator) = OPERATORS
            .iter()
            .find(|operator| rest.starts_with(**operator))
        else {
            return self.fault(format!("unexpected char {first:?}"));
        };
        match *operator {
            "{" => open.push('}'),
            "(" => open.push(')'),
            "[" => open.push(']'),
            "}" | ")" | "]" if open.pop() != Some(first) => {
                return self.fault(format!("unexpected '{first}'"));
            }
            _ => {}
        }
        self.push(Lexeme::Operator(operator));
        self.advance(operator.len());
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<()> {
        let rest = self.rest();
        let mut is_escaped = false;
        let end = rest[1..].char_indices().find_map(|(at, c)| {
            let is_end = c == quote && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            is_end.then_some(at + 1)
        });
        let Some(end) = end else {
            return self.fault(format!("unexpected char {quote:?}"));
        };
        let text = unescape(&rest[1..end]).map_err(|fault| fault.at(self.line))?;
        self.push(Lexeme::Text(text.into()));
        self.advance(end + 1);
        Ok(())
    }

    fn number(&mut self) -> Result<()> {
        let rest = self.rest();
        let after_dot = self.source[..self.place].ends_with('.');
        if let Some(len) = float_len(rest).filter(|_| !after_dot) {
            let number: Result<f64, _> = rest[..len].replace('_', "").parse();
            return match number {
                Err(_) => self.fault(format!("{} is not a number", &rest[..len])),
                Ok(number) => {
                    self.push(Lexeme::Float(number));
                    self.advance(len);
                    Ok(())
                }
            };
        }
        let (radix, prefix) = match rest.get(..2).map(str::to_ascii_lowercase).as_deref() {
            Some("0b") => (2, 2),
            Some("0o") => (8, 2),
            Some("0x") => (16, 2),
            _ => (10, 0),
        };
        let digits = &rest[prefix..];
        let len = digits
            .find(|c: char| !c.is_digit(radix) && c != '_')
            .unwrap_or(digits.len());
        match i128::from_str_radix(&digits[..len].replace('_', ""), radix) {
            Err(_) => self.fault(format!(
                "{} is not a number, or is too large",
                &rest[..prefix + len]
            )),
            Ok(number) => {
                self.push(Lexeme::Int(number));
                self.advance(prefix + len);
                Ok(())
            }
        }
    }
}

/// The length of the decimal fraction or power that `text` begins with.
fn float_len(text: &str) -> Option<usize> {
    let digits = |text: &str| {
        text.find(|c: char| !c.is_ascii_digit() && c != '_')
            .unwrap_or(text.len())
    };
    let starts_with_digit = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    let mut len = digits(text);
    let mut is_float = false;
    if let Some(fraction) = text[len..].strip_prefix('.')
        && starts_with_digit(fraction)
    {
        len += 1 + digits(fraction);
        is_float = true;
    }
    if let Some(exponent) = text[len..].strip_prefix(['e', 'E']) {
        let unsigned = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        if starts_with_digit(unsigned) {
            len += 1 + (exponent.len() - unsigned.len()) + digits(unsigned);
            is_float = true;
        }
    }
    is_float.then_some(len)
}

/// A string literal's text, as Python's `unicode-escape` reads it.
fn unescape(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let Some(kind) = chars.next() else { break };
        match kind {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(kind),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0C'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\x0B'),
            'x' | 'u' | 'U' => {
                let len = match kind {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                out.push(code_point(&mut chars, len)?);
            }
            '0'..='7' => {
                let mut code = kind.to_digit(8).unwrap_or_default();
                for _ in 0..2 {
                    let Some(digit) = chars.peek().and_then(|c| c.to_digit(8)) else {
                        break;
                    };
                    code = code * 8 + digit;
                    chars.next();
                }
                out.extend(char::from_u32(code));
            }
            other => out.extend(['\\', other]),
        }
    }
    Ok(out)
}

fn code_point(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, len: usize) -> Result<char> {
    let mut code = 0;
    for _ in 0..len {
        let digit = chars.next().and_then(|c| c.to_digit(16));
        code = code * 16 + digit.ok_or_else(|| Fault::new("truncated escape in a string"))?;
    }
    // Half a surrogate pair is not a character.
    char::from_u32(code).ok_or_else(|| Fault::new(format!("\\u{code:04x} is not a character")))
}
