//! Python's classification of characters and its string functions.

use unicode_general_category::{GeneralCategory as Category, get_general_category};

/// As `str.isspace` of one character; `str.strip` removes these characters.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// Whether `repr` shows the character as it is.
pub(crate) fn is_printable(c: char) -> bool {
    use Category::{
        Control, Format, LineSeparator, ParagraphSeparator, PrivateUse, SpaceSeparator, Surrogate,
        Unassigned,
    };
    c == ' '
        || !matches!(
            get_general_category(c),
            Control
                | Format
                | Surrogate
                | PrivateUse
                | Unassigned
                | LineSeparator
                | ParagraphSeparator
                | SpaceSeparator
        )
}

/// As `str.isalpha` of one character.
pub(crate) fn is_letter(c: char) -> bool {
    use Category::{
        LowercaseLetter, ModifierLetter, OtherLetter, TitlecaseLetter, UppercaseLetter,
    };
    matches!(
        get_general_category(c),
        UppercaseLetter | LowercaseLetter | TitlecaseLetter | ModifierLetter | OtherLetter
    )
}

/// As `str.isdecimal` of one character.
pub(crate) fn is_decimal(c: char) -> bool {
    get_general_category(c) == Category::DecimalNumber
}

/// As `str.isnumeric` of one character, except for letters that stand for numbers.
pub(crate) fn is_numeric(c: char) -> bool {
    use Category::{DecimalNumber, LetterNumber, OtherNumber};
    matches!(
        get_general_category(c),
        DecimalNumber | LetterNumber | OtherNumber
    )
}

/// As `str.isdigit` of one character: decimals, superscripts, and numbers in circles.
pub(crate) fn is_digit(c: char) -> bool {
    let is_special = matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨');
    is_decimal(c) || is_special
}

/// As `str.isidentifier`.
pub(crate) fn is_identifier(text: &str) -> bool {
    let begins = |c: char| is_letter(c) || c == '_';
    text.starts_with(begins) && text.chars().all(|c| begins(c) || is_decimal(c))
}

/// As `str.splitlines`: the byte ranges of the lines, with their ends if `keep_ends`.
pub(crate) fn lines(text: &str, keep_ends: bool) -> Vec<std::ops::Range<usize>> {
    let (mut lines, mut start) = (Vec::new(), 0);
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let is_end = matches!(
            c,
            '\n' | '\r' | '\x0B' | '\x0C' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        );
        if !is_end {
            continue;
        }
        let mut next = at + c.len_utf8();
        if c == '\r' && chars.peek().is_some_and(|(_, c)| *c == '\n') {
            chars.next();
            next += 1;
        }
        lines.push(start..if keep_ends { next } else { at });
        start = next;
    }
    if start < text.len() {
        lines.push(start..text.len());
    }
    lines
}

/// As `str.capitalize`.
pub(crate) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        None => String::new(),
        Some(first) => titlecase(first) + &chars.as_str().to_lowercase(),
    }
}

/// A character in title case.
fn titlecase(c: char) -> String {
    match c {
        'ß' => "Ss".to_owned(),
        'ﬁ' => "Fi".to_owned(),
        'ﬂ' => "Fl".to_owned(),
        'ǆ' | 'ǅ' | 'Ǆ' => "ǅ".to_owned(),
        c => c.to_uppercase().collect(),
    }
}

/// As `str.title`: each run of letters with a capital first.
pub(crate) fn title(text: &str) -> String {
    let (mut out, mut in_word) = (String::with_capacity(text.len()), false);
    for c in text.chars() {
        match in_word {
            true => out.extend(c.to_lowercase()),
            false => out += &titlecase(c),
        }
        in_word = c.is_lowercase() || c.is_uppercase() || is_letter(c) && is_cased(c);
    }
    out
}

fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || get_general_category(c) == Category::TitlecaseLetter
}

/// As `str.swapcase`.
pub(crate) fn swapcase(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match (c.is_uppercase(), c.is_lowercase()) {
            (true, _) => out.extend(c.to_lowercase()),
            (_, true) => out.extend(c.to_uppercase()),
            _ => out.push(c),
        }
    }
    out
}

/// As `str.casefold`, for the letters whose folding is not their lower case.
pub(crate) fn casefold(text: &str) -> String {
    text.to_lowercase()
        .replace('ß', "ss")
        .replace('ς', "σ")
        .replace('ſ', "s")
}

/// As `str.islower`.
pub(crate) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(|c| is_cased(c) && !c.is_lowercase())
}

/// As `str.isupper`.
pub(crate) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(|c| is_cased(c) && !c.is_uppercase())
}

/// As `str.istitle`.
pub(crate) fn is_title(text: &str) -> bool {
    let (mut in_word, mut has_word) = (false, false);
    for c in text.chars() {
        let is_capital = c.is_uppercase() || is_cased(c) && !c.is_lowercase();
        if is_capital && in_word || c.is_lowercase() && !in_word {
            return false;
        }
        in_word = is_cased(c);
        has_word |= in_word;
    }
    has_word
}

/// The byte offset of the character at `index`; the end if there are fewer characters.
pub(crate) fn byte_place(text: &str, index: usize) -> usize {
    if text.is_ascii() {
        return index.min(text.len());
    }
    text.char_indices()
        .nth(index)
        .map_or(text.len(), |(at, _)| at)
}

/// A float as Python writes it.
pub(crate) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) || number == 0.0 {
        let plain = format!("{number}");
        return if plain.contains('.') {
            plain
        } else {
            plain + ".0"
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// A string as `repr` writes it.
pub(crate) fn repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c if u32::from(c) < 0x100 => out += &format!("\\x{:02x}", u32::from(c)),
            c if u32::from(c) < 0x1_0000 => out += &format!("\\u{:04x}", u32::from(c)),
            c => out += &format!("\\U{:08x}", u32::from(c)),
        }
    }
    out.push(quote);
    out
}
