//! Splits text into the words that byte-pair encoding works on.
//!
//! The published pre-tokenizers are regular expressions. Handwritten code matches each of them in
//! one pass, in time linear in the text. A pre-tokenizer is a list of [`Step`]s; each step splits
//! the pieces of the step before.

use std::ops::Range;

use unicode_general_category::{GeneralCategory, get_general_category};

/// A rule to split text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// ``'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+``
    Gpt2,
    /// ``(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,n}|
    /// ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+``
    Llama3 {
        /// Maximum number of digits in a piece.
        max_digits: usize,
    },
    /// As `Llama3` with single digits, but combining marks are letters: `[\p{L}\p{M}]+` for
    /// `\p{L}+`, `[^\s\p{L}\p{M}\p{N}]+` for `[^\s\p{L}\p{N}]+`.
    Qwen35,
    /// `[\p{P}$+<=>^~|]+`, with the backtick or without
    PunctuationRuns {
        /// Whether the backtick is punctuation.
        backtick: bool,
    },
    /// Each punctuation character by itself.
    Punctuation,
    /// `\p{N}+`
    NumberRuns,
    /// `\p{N}`
    Numbers,
    /// `[0-9]{n}`
    AsciiDigits {
        /// Digits in a piece.
        count: usize,
    },
    /// Digits as Hugging Face finds them after the byte-level step, which turns bytes into
    /// characters of Latin-1: the bytes of `²³¹¼½¾` also count as digits.
    ByteDigits {
        /// Each digit by itself.
        individual: bool,
    },
    /// A space begins a new piece.
    BeforeSpaces,
    /// `[\r\n]`
    Newlines,
    /// `\s?\p{L}+`
    SpacedLetters,
    /// `\s?\p{P}+`
    SpacedPunctuation,
    /// `[一-龥ࠀ-一가-퟿]+`
    Cjk,
    /// `\p{N}{1,3}`
    NumbersByThree,
    /// `[一-龥぀-ゟ゠-ヿ]+`
    HanAndKana,
    /// ``[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|
    /// ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+``
    DeepSeek3,
}

impl Step {
    /// Whether the step may split a character, so that no step that reads characters can follow.
    pub(crate) fn cuts_bytes(self) -> bool {
        matches!(self, Self::ByteDigits { .. })
    }

    /// Whether the step reads bytes only.
    pub(crate) fn reads_bytes(self) -> bool {
        matches!(self, Self::ByteDigits { .. } | Self::AsciiDigits { .. })
    }
}

/// The expression of [`Step::DeepSeek3`].
pub(crate) const DEEPSEEK_3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// The names of `tokenizer.ggml.pre`, with their steps; names with equal steps share a row.
const NAMED: &[(&[&str], &[Step])] = &[
    (
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "dbrx",
            "smaug-bpe",
            "chatglm-bpe",
            "glm4",
            "pixtral",
            "lfm2",
        ],
        &[Step::Llama3 { max_digits: 3 }],
    ),
    (
        &[
            "qwen2",
            "stablelm2",
            "deepseek-r1-qwen",
            "megrez",
            "hunyuan",
            "grok-2",
        ],
        &[Step::Llama3 { max_digits: 1 }],
    ),
    (&["qwen35"], &[Step::Qwen35]),
    (
        &[
            "gpt-2",
            "mpt",
            "olmo",
            "jais",
            "phi-2",
            "exaone4",
            "roberta-bpe",
        ],
        &[Step::Gpt2],
    ),
    (
        &["falcon"],
        &[
            Step::PunctuationRuns { backtick: true },
            Step::Gpt2,
            Step::AsciiDigits { count: 3 },
        ],
    ),
    (
        &["falcon3", "falcon_e"],
        &[
            Step::PunctuationRuns { backtick: true },
            Step::Gpt2,
            Step::AsciiDigits { count: 1 },
        ],
    ),
    (
        &["default"],
        &[
            Step::PunctuationRuns { backtick: false },
            Step::Gpt2,
            Step::NumberRuns,
            Step::AsciiDigits { count: 3 },
        ],
    ),
    (
        &[
            "starcoder",
            "refact",
            "command-r",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
        ],
        &[Step::Numbers, Step::Gpt2],
    ),
    (
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[Step::NumbersByThree, Step::HanAndKana, Step::DeepSeek3],
    ),
    (
        &["deepseek-coder"],
        &[
            Step::Newlines,
            Step::SpacedLetters,
            Step::SpacedPunctuation,
            Step::Cjk,
            Step::Numbers,
        ],
    ),
];

/// The steps of a name of `tokenizer.ggml.pre`.
pub(crate) fn named(name: &str) -> Option<&'static [Step]> {
    NAMED
        .iter()
        .find(|(names, _)| names.contains(&name))
        .map(|&(_, steps)| steps)
}

/// The first name with these steps.
pub(crate) fn name_of(steps: &[Step]) -> Option<&'static str> {
    NAMED
        .iter()
        .find(|(_, named)| *named == steps)
        .map(|(names, _)| names[0])
}

/// All names, separated by commas.
pub(crate) fn supported_names() -> String {
    let names: Vec<_> = NAMED
        .iter()
        .flat_map(|(names, _)| names.iter().copied())
        .collect();
    names.join(", ")
}

/// The pieces of a text as byte ranges, and a buffer for the next step's pieces.
#[derive(Default)]
pub(crate) struct Pieces {
    pieces: Vec<Range<usize>>,
    next: Vec<Range<usize>>,
}

impl Pieces {
    /// Splits `text` by all steps in turn. The pieces are in order, not empty, and together equal
    /// the text.
    pub(crate) fn cut(&mut self, text: &str, steps: &[Step]) -> &[Range<usize>] {
        self.pieces.clear();
        if !text.is_empty() {
            self.pieces.push(0..text.len());
        }
        for &step in steps {
            self.next.clear();
            for piece in &self.pieces {
                let ends = Ends {
                    next: &mut self.next,
                    start: piece.start,
                };
                if step.reads_bytes() {
                    cut_bytes(&text.as_bytes()[piece.clone()], step, ends);
                } else {
                    cut_text(&text[piece.clone()], step, ends);
                }
            }
            std::mem::swap(&mut self.pieces, &mut self.next);
        }
        &self.pieces
    }
}

/// Collects the parts of one piece.
struct Ends<'a> {
    next: &'a mut Vec<Range<usize>>,
    /// The start of the rest of the piece that is not split yet.
    start: usize,
}

impl Ends<'_> {
    /// Cuts off the next `len` bytes.
    fn push(&mut self, len: usize) {
        if len > 0 {
            self.next.push(self.start..self.start + len);
            self.start += len;
        }
    }
}

fn cut_text(text: &str, step: Step, mut ends: Ends<'_>) {
    match step {
        Step::Gpt2 => cut_by(text, gpt2_len, ends),
        Step::Llama3 { max_digits } => {
            cut_by(text, |rest| llama3_len(rest, max_digits, class), ends)
        }
        Step::Qwen35 => cut_by(text, |rest| llama3_len(rest, 1, class_with_marks), ends),
        Step::PunctuationRuns { backtick } => {
            cut_matches(
                text,
                |rest| run_len(rest, |c| is_punctuation(c) && (backtick || c != '`')),
                ends,
            );
        }
        Step::Punctuation => cut_matches(text, |rest| one_len(rest, is_punctuation), ends),
        Step::NumberRuns => cut_matches(text, |rest| run_len(rest, char::is_numeric), ends),
        Step::Numbers => cut_matches(text, |rest| one_len(rest, char::is_numeric), ends),
        Step::Newlines => cut_matches(text, |rest| one_len(rest, is_newline), ends),
        Step::SpacedLetters => cut_matches(text, |rest| spaced_run_len(rest, is_letter), ends),
        Step::SpacedPunctuation => {
            cut_matches(text, |rest| spaced_run_len(rest, is_category_p), ends)
        }
        Step::Cjk => cut_matches(text, |rest| run_len(rest, is_cjk), ends),
        Step::NumbersByThree => cut_matches(text, three_numbers_len, ends),
        Step::HanAndKana => cut_matches(text, |rest| run_len(rest, is_han_or_kana), ends),
        Step::DeepSeek3 => cut_matches(text, deepseek3_len, ends),
        Step::BeforeSpaces => {
            let mut start = 0;
            for (place, _) in text.match_indices(' ') {
                ends.push(place - start);
                start = place;
            }
            ends.push(text.len() - start);
        }
        Step::AsciiDigits { .. } | Step::ByteDigits { .. } => {
            cut_bytes(text.as_bytes(), step, ends)
        }
    }
}

fn cut_bytes(bytes: &[u8], step: Step, mut ends: Ends<'_>) {
    let is_digit = |byte: &u8| match step {
        Step::ByteDigits { .. } => {
            byte.is_ascii_digit() || matches!(byte, 0xB2 | 0xB3 | 0xB9 | 0xBC..=0xBE)
        }
        _ => byte.is_ascii_digit(),
    };
    let (least, most) = match step {
        Step::AsciiDigits { count } => (count, count),
        Step::ByteDigits { individual: true } => (1, 1),
        _ => (1, usize::MAX),
    };
    let (mut start, mut place) = (0, 0);
    while place < bytes.len() {
        let digits = bytes[place..]
            .iter()
            .take(most)
            .take_while(|byte| is_digit(byte))
            .count();
        if digits >= least {
            ends.push(place - start);
            ends.push(digits);
            place += digits;
            start = place;
        } else {
            place += digits.max(1);
        }
    }
    ends.push(bytes.len() - start);
}

/// Splits by an expression that matches everywhere; `len` is the length of its match at the start
/// of a text, at least one character.
fn cut_by(text: &str, len: impl Fn(&str) -> usize, mut ends: Ends<'_>) {
    let mut rest = text;
    while !rest.is_empty() {
        let len = len(rest);
        ends.push(len);
        rest = &rest[len..];
    }
}

/// Splits off the matches of an expression and keeps the text between them as pieces; `len` is 0
/// where it does not match.
fn cut_matches(text: &str, len: impl Fn(&str) -> usize, mut ends: Ends<'_>) {
    let (mut start, mut place) = (0, 0);
    while let Some(c) = text[place..].chars().next() {
        let len = len(&text[place..]);
        if len > 0 {
            ends.push(place - start);
            ends.push(len);
            place += len;
            start = place;
        } else {
            place += c.len_utf8();
        }
    }
    ends.push(text.len() - start);
}

fn gpt2_len(text: &str) -> usize {
    if let Some(len) = contraction_len(text, |byte| byte) {
        return len;
    }
    let space = usize::from(text.starts_with(' '));
    match text[space..].chars().next().map(class) {
        Some(run @ (Class::Letter | Class::Number | Class::Other)) => {
            space + run_len(&text[space..], |c| class(c) == run)
        }
        Some(Class::Space) | None => white_space_len(text),
    }
}

fn llama3_len(text: &str, max_digits: usize, class: impl Fn(char) -> Class) -> usize {
    if let Some(len) = contraction_len(text, |byte| byte.to_ascii_lowercase()) {
        return len;
    }
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return 0 };
    let first_class = class(first);
    let prefix = match first_class {
        Class::Letter => 0,
        Class::Space | Class::Other if !is_newline(first) => first.len_utf8(),
        _ => text.len(),
    };
    let letters = run_len(&text[prefix..], |c| class(c) == Class::Letter);
    if letters > 0 {
        return prefix + letters;
    }
    if first_class == Class::Number {
        return text
            .chars()
            .take(max_digits)
            .take_while(|c| class(*c) == Class::Number)
            .map(char::len_utf8)
            .sum();
    }
    let space = usize::from(first == ' ');
    let others = run_len(&text[space..], |c| class(c) == Class::Other);
    if others > 0 {
        let end = space + others;
        return end + run_len(&text[end..], is_newline);
    }
    let run = &text[..run_len(text, char::is_whitespace)];
    match run.rfind(is_newline) {
        Some(last_newline) => last_newline + 1,
        None => white_space_len(text),
    }
}

fn three_numbers_len(text: &str) -> usize {
    let numbers = text.chars().take(3).take_while(|c| c.is_numeric());
    numbers.map(char::len_utf8).sum()
}

/// The length of the match of [`Step::DeepSeek3`]; 0 if there is none.
fn deepseek3_len(text: &str) -> usize {
    let Some(first) = text.chars().next() else {
        return 0;
    };
    let after = &text[first.len_utf8()..];
    let ascii_letters = run_len(after, |c| c.is_ascii_alphabetic());
    if first.is_ascii_punctuation() && ascii_letters > 0 {
        return 1 + ascii_letters;
    }
    let is_in_word = |c| class_with_marks(c) == Class::Letter;
    let leads_word = !is_newline(first) && !is_letter(first) && !is_punctuation_or_symbol(first);
    let led = run_len(after, is_in_word);
    if leads_word && led > 0 {
        return first.len_utf8() + led;
    }
    let word = run_len(text, is_in_word);
    if word > 0 {
        return word;
    }
    let space = usize::from(first == ' ');
    let marks = run_len(&text[space..], is_punctuation_or_symbol);
    if marks > 0 {
        let end = space + marks;
        return end + run_len(&text[end..], is_newline);
    }
    let run = &text[..run_len(text, char::is_whitespace)];
    match run.rfind(is_newline) {
        Some(last_newline) => last_newline + 1,
        None => white_space_len(text),
    }
}

/// The length of `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d`; `fold` maps a byte to its lower
/// case.
fn contraction_len(text: &str, fold: impl Fn(u8) -> u8) -> Option<usize> {
    let rest = text.as_bytes().strip_prefix(b"'")?;
    match (
        rest.first().map(|&b| fold(b))?,
        rest.get(1).map(|&b| fold(b)),
    ) {
        (b's' | b't' | b'm' | b'd', _) => Some(2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(3),
        _ => None,
    }
}

/// `\s+(?!\S)|\s+`: of white space before a word the last character belongs to the word.
fn white_space_len(text: &str) -> usize {
    let len = run_len(text, char::is_whitespace);
    let last = text[..len].chars().next_back().map_or(0, char::len_utf8);
    if len < text.len() && len > last {
        len - last
    } else {
        len
    }
}

fn run_len(text: &str, in_run: impl Fn(char) -> bool) -> usize {
    text.find(|c| !in_run(c)).unwrap_or(text.len())
}

fn one_len(text: &str, matches: impl Fn(char) -> bool) -> usize {
    text.chars()
        .next()
        .filter(|&c| matches(c))
        .map_or(0, char::len_utf8)
}

fn spaced_run_len(text: &str, in_run: impl Fn(char) -> bool) -> usize {
    let space = one_len(text, char::is_whitespace);
    match run_len(&text[space..], in_run) {
        0 => 0,
        len => space + len,
    }
}

/// The character classes of the expressions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
    Other,
}

/// As [`class`], but combining marks are letters.
fn class_with_marks(c: char) -> Class {
    use GeneralCategory::{EnclosingMark, NonspacingMark, SpacingMark};
    match get_general_category(c) {
        EnclosingMark | NonspacingMark | SpacingMark => Class::Letter,
        _ => class(c),
    }
}

fn class(c: char) -> Class {
    if is_letter(c) {
        Class::Letter
    } else if c.is_numeric() {
        Class::Number
    } else if c.is_whitespace() {
        Class::Space
    } else {
        Class::Other
    }
}

fn is_newline(c: char) -> bool {
    matches!(c, '\r' | '\n')
}

/// `\p{L}`, which is a subset of Unicode's `Alphabetic`.
fn is_letter(c: char) -> bool {
    use GeneralCategory as G;
    if c.is_ascii() {
        return c.is_ascii_alphabetic();
    }
    matches!(
        get_general_category(c),
        G::UppercaseLetter
            | G::LowercaseLetter
            | G::TitlecaseLetter
            | G::ModifierLetter
            | G::OtherLetter
    )
}

/// `\p{P}` and the other punctuation of ASCII: `$+<=>^`|~`
fn is_punctuation(c: char) -> bool {
    if c.is_ascii() {
        c.is_ascii_punctuation()
    } else {
        is_category_p(c)
    }
}

/// `\p{P}`
fn is_category_p(c: char) -> bool {
    use GeneralCategory as G;
    matches!(
        get_general_category(c),
        G::ConnectorPunctuation
            | G::DashPunctuation
            | G::OpenPunctuation
            | G::ClosePunctuation
            | G::InitialPunctuation
            | G::FinalPunctuation
            | G::OtherPunctuation
    )
}

/// `[\p{P}\p{S}]`
fn is_punctuation_or_symbol(c: char) -> bool {
    use GeneralCategory as G;
    is_punctuation(c)
        || matches!(
            get_general_category(c),
            G::MathSymbol | G::CurrencySymbol | G::ModifierSymbol | G::OtherSymbol
        )
}

/// `\w`
pub(crate) fn is_word(c: char) -> bool {
    use GeneralCategory as G;
    c.is_alphabetic()
        || matches!(
            get_general_category(c),
            G::DecimalNumber
                | G::NonspacingMark
                | G::SpacingMark
                | G::EnclosingMark
                | G::ConnectorPunctuation
        )
}

fn is_cjk(c: char) -> bool {
    matches!(c, '\u{800}'..='\u{9FA5}' | '\u{AC00}'..='\u{D7FF}')
}

fn is_han_or_kana(c: char) -> bool {
    matches!(c, '\u{4E00}'..='\u{9FA5}' | '\u{3040}'..='\u{30FF}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut<'a>(name: &str, text: &'a str) -> Vec<&'a str> {
        let steps = named(name).expect("a known name");
        Pieces::default()
            .cut(text, steps)
            .iter()
            .map(|piece| &text[piece.clone()])
            .collect()
    }

    #[test]
    fn gpt_2_keeps_a_space_with_the_word_after_it() {
        assert_eq!(
            cut("gpt-2", "I'll  go 12'S!\n\n x "),
            [
                "I", "'ll", " ", " go", " 12", "'", "S", "!", "\n\n", " x", " "
            ]
        );
    }

    #[test]
    fn llama_3_cuts_numbers_by_three_and_lines_after_their_end() {
        assert_eq!(
            cut("llama-bpe", "I'LL 12345 x!?\n\n  \n y"),
            ["I", "'LL", " ", "123", "45", " x", "!?\n\n", "  \n", " y"]
        );
        assert_eq!(cut("qwen2", " 12\t(a"), [" ", "1", "2", "\t", "(a"]);
    }

    #[test]
    fn qwen35_keeps_combining_marks_with_their_letters() {
        assert_eq!(
            cut("qwen2", "नमस्ते x\u{304}!"),
            ["नमस", "्त", "े", " x", "\u{304}!"]
        );
        assert_eq!(cut("qwen35", "नमस्ते x\u{304}!"), ["नमस्ते", " x\u{304}", "!"]);
        assert_eq!(cut("qwen35", "\u{304}a12"), ["\u{304}a", "1", "2"]);
    }

    /// Expected pieces: `tokenizers` 0.23 with the three expressions.
    #[test]
    fn hunyuan_dense_cuts_han_and_kana_from_other_words() {
        for (text, pieces) in [
            (
                "I'LL go 12345 x!?\n\n  \n y",
                &[
                    "I", "'LL", " go", " ", "123", "45", " x", "!?\n\n", "  \n", " y",
                ][..],
            ),
            (
                "a\t漢字かなカナb, .net\r\n (c)  d",
                &[
                    "a",
                    "\t",
                    "漢字かなカナ",
                    "b",
                    ",",
                    " .",
                    "net",
                    "\r\n",
                    " (",
                    "c",
                    ")",
                    " ",
                    " d",
                ],
            ),
            (
                "नमस्ते x\u{304}! \u{304}\u{304} €5",
                &["नमस्ते", " x\u{304}", "!", " \u{304}\u{304}", " €", "5"],
            ),
            ("2³a\u{200b}b  \t", &["2³", "a", "\u{200b}b", "  \t"]),
            (
                "__init__ +x=$y€z\n\n",
                &["__", "init", "__", " +", "x", "=$", "y", "€", "z", "\n\n"],
            ),
        ] {
            assert_eq!(cut("hunyuan-dense", text), pieces, "{text:?}");
        }
    }

    #[test]
    fn falcon_cuts_digits_into_whole_groups_from_the_left() {
        assert_eq!(cut("falcon", "a12345"), ["a", "123", "45"]);
        assert_eq!(cut("falcon3", "a12 `"), ["a", "1", "2", " ", "`"]);
        assert_eq!(cut("default", "²34567"), ["²", "345", "67"]);
    }

    #[test]
    fn byte_digits_may_cut_a_character_in_two() {
        let text = "a\u{f2}12"; // ò is C3 B2, and B2 is ² in the byte alphabet
        let mut pieces = Pieces::default();
        assert_eq!(
            pieces.cut(text, &[Step::ByteDigits { individual: false }]),
            [0..2, 2..5]
        );
        assert_eq!(
            pieces.cut(text, &[Step::ByteDigits { individual: true }]),
            [0..2, 2..3, 3..4, 4..5]
        );
    }
}
