//! Parsers of arguments that are sizes or times.

use std::time::Duration;

use bitnet_server::FormHelper;

/// Parses a number of seconds.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text
        .parse::<f64>()
        .ok()
        .filter(|seconds| *seconds > 0.0 && *seconds <= 1e9);
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "expected seconds, more than 0, such as 30 or 0.5".to_owned())
}

/// How long a model stays loaded after its last use; `None` for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive(pub Option<Duration>);

/// Parses a time to stay loaded.
pub fn parse_keep_alive(text: &str) -> Result<KeepAlive, String> {
    bitnet_server::parse_keep_alive(text).map(KeepAlive)
}

/// Parses the bytes of stack for compiling forms: at most the stack of the server's own threads.
pub fn parse_form_stack(text: &str) -> Result<usize, String> {
    let bytes = parse_bytes(text)?;
    match bytes <= FormHelper::STACK_BYTES {
        true => Ok(bytes),
        false => Err(format!(
            "expected {} bytes at most",
            FormHelper::STACK_BYTES
        )),
    }
}

/// Parses a number of bytes, optionally followed by K, M or G.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    let (digits, unit) = text.split_at(
        text.trim_end_matches(|c: char| c.is_ascii_alphabetic())
            .len(),
    );
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        _ => {
            return Err(format!(
                "unit {unit:?} is not known: expected K, M or G (of 1024)"
            ));
        }
    };
    let bytes = digits
        .parse::<usize>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift));
    bytes
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "expected bytes, such as 2147483648, 2048M or 2G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_with_their_units() {
        assert_eq!(parse_bytes("2G"), Ok(2 << 30));
        assert_eq!(parse_bytes("1536MiB"), Ok(1536 << 20));
        assert_eq!(parse_bytes("8192"), Ok(8192));
        for wrong in ["", "G", "0", "-1", "1T", "1.5G", "99999999999G"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["", "0", "-1", "inf", "nan", "1h"] {
            assert!(parse_seconds(wrong).is_err(), "{wrong}");
        }
    }
}
