//! How long a model stays loaded after its last use, as Ollama's clients and the options of the
//! program write it.

use std::time::Duration;

use serde_json::Value;

/// What the texts and numbers may be, for messages.
const EXPECTED: &str = "expected seconds, a duration such as 5m or 1h30m, 0 to unload at once, or a negative number for ever";

/// Reads a number of seconds, or a duration as Go writes it: numbers with the units `h`, `m`, `s`,
/// `ms`, `us`, `µs` and `ns`. The result is `None` for negative ones, which mean for ever.
///
/// # Errors
/// If the text is something else.
pub fn parse_keep_alive(text: &str) -> Result<Option<Duration>, String> {
    let (sign, digits) = match text.as_bytes().first() {
        Some(b'-') => (-1.0, &text[1..]),
        Some(b'+') => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    let seconds = match decimal(digits) {
        Some(seconds) => Some(seconds),
        None => go_duration(digits),
    };
    seconds
        .map(|seconds| from_seconds(sign * seconds))
        .ok_or_else(|| format!("{text:?}: {EXPECTED}"))
}

/// The same from the field of a request.
///
/// # Errors
/// If the value is not one of these.
pub(crate) fn from_json(value: &Value) -> Result<Option<Duration>, String> {
    match value {
        Value::Number(number) => Ok(from_seconds(number.as_f64().unwrap_or(-1.0))),
        Value::String(text) => parse_keep_alive(text),
        other => Err(format!("{other}: {EXPECTED}")),
    }
}

/// A time beyond what a clock holds is for ever, too.
fn from_seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

/// A number without sign and exponent.
fn decimal(text: &str) -> Option<f64> {
    let is_plain = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    text.parse().ok().filter(|_| is_plain)
}

/// The seconds of numbers that are each followed by a unit.
fn go_duration(mut text: &str) -> Option<f64> {
    let mut seconds = 0.0;
    if text.is_empty() {
        return None;
    }
    while !text.is_empty() {
        let number_len = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, rest) = text.split_at(number_len);
        let unit_len = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(unit_len);
        let unit_seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += decimal(number)? * unit_seconds;
        text = rest;
    }
    Some(seconds)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_read_as_ollama_reads_them() {
        let seconds = |seconds| Ok(Some(Duration::from_secs_f64(seconds)));
        for (text, expected) in [
            ("0", seconds(0.0)),
            ("300", seconds(300.0)),
            ("0.5", seconds(0.5)),
            ("5m", seconds(300.0)),
            ("1h30m", seconds(5400.0)),
            ("1.5h", seconds(5400.0)),
            ("2m0.5s", seconds(120.5)),
            ("100ms", seconds(0.1)),
            ("0s", seconds(0.0)),
            ("-1", Ok(None)),
            ("-1s", Ok(None)),
        ] {
            assert_eq!(parse_keep_alive(text), expected, "{text}");
        }
        for wrong in [
            "", "-", "m", "5 m", "5d", "5m3", "1e3", "nan", "inf", "--1", "1h-5m", ".",
        ] {
            let problem = parse_keep_alive(wrong).expect_err(wrong);
            assert!(problem.contains("expected seconds"), "{problem}");
        }
    }

    #[test]
    fn fields_are_numbers_of_seconds_or_texts() {
        let read = |value| from_json(&value);
        assert_eq!(read(json!(60)), Ok(Some(Duration::from_secs(60))));
        assert_eq!(read(json!(0)), Ok(Some(Duration::ZERO)));
        assert_eq!(read(json!(-1)), Ok(None));
        assert_eq!(read(json!(1e300)), Ok(None), "longer than any clock");
        assert_eq!(read(json!("10m")), Ok(Some(Duration::from_secs(600))));
        for wrong in [json!(true), json!([]), json!({}), json!("soon")] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
