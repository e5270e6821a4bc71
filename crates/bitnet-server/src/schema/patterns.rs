//! Regular expressions of `pattern`: JSON Schema has JavaScript's, the grammar engine Rust's.

use regex_syntax::Error;
use regex_syntax::ast::ErrorKind;
use regex_syntax::hir::Look;

/// An expression in the syntax of the grammar engine.
///
/// Within brackets, JavaScript has no nested brackets and no operators between sets: there
/// `[&&]`, `[~~]`, `[--/]` and `[[]` hold plain characters and ranges. `[:`, which begins a name such
/// as `[:alpha:]` in many other dialects, stays as it is.
pub(super) fn in_engine_syntax(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars().peekable();
    let mut is_in_brackets = false;
    let mut previous = None;
    while let Some(c) = chars.next() {
        let begins_name = c == '[' && chars.peek() == Some(&':');
        match c {
            '\\' => {
                out.push(c);
                out.extend(chars.next());
                previous = None;
                continue;
            }
            '[' if !is_in_brackets => {
                is_in_brackets = true;
                out.push(c);
                // A bracket that comes first, also after `^`, is a character in Rust.
                out.extend(chars.next_if_eq(&'^'));
                out.extend(chars.next_if_eq(&']'));
                previous = None;
                continue;
            }
            '[' if !begins_name => out.push_str("\\["),
            ']' if is_in_brackets => {
                is_in_brackets = false;
                out.push(c);
            }
            '&' | '~' | '-' if is_in_brackets && previous == Some(c) => out.extend(['\\', c]),
            _ => out.push(c),
        }
        previous = Some(c);
    }
    out
}

/// Whether the grammar engine can enforce an expression, if the expression is valid: it knows
/// neither look-around nor references to groups.
pub(super) fn is_enforced(pattern: &str) -> bool {
    let word_looks = [
        Look::WordAscii,
        Look::WordAsciiNegate,
        Look::WordUnicode,
        Look::WordUnicodeNegate,
    ];
    match regex_syntax::parse(&in_engine_syntax(pattern)) {
        Ok(parsed) => {
            let looks = parsed.properties().look_set();
            !word_looks.iter().any(|look| looks.contains(*look))
        }
        Err(Error::Parse(error)) => !matches!(
            error.kind(),
            ErrorKind::UnsupportedLookAround | ErrorKind::UnsupportedBackreference
        ),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_hold_plain_characters() {
        for (pattern, expected) in [
            (r"^[\w:/?#[\]@]+$", r"^[\w:/?#\[\]@]+$"),
            ("[a&&b]&&", r"[a&\&b]&&"),
            ("[a~~b]", r"[a~\~b]"),
            ("[+--]", r"[+-\-]"),
            ("[a-z][&][&]", "[a-z][&][&]"),
            ("[[:alpha:]]", "[[:alpha:]]"),
            ("[^[a]", r"[^\[a]"),
            ("[]a]", "[]a]"),
            (r"\[&&[a]", r"\[&&[a]"),
            (r"[\[&\&]", r"[\[&\&]"),
        ] {
            assert_eq!(in_engine_syntax(pattern), expected);
        }
    }

    #[test]
    fn look_around_and_references_are_not_enforced() {
        for pattern in ["^(?=a)", "^(?!a)b", "(?<=a)b", r"(a)\1", r"\ba", r"a\B"] {
            assert!(!is_enforced(pattern), "{pattern}");
        }
        // Invalid ones are errors, which the engine describes.
        for pattern in ["^a$", r"^[\w[&&]+$", "(", "a{2,1}"] {
            assert!(is_enforced(pattern), "{pattern}");
        }
    }
}
