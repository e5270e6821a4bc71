//! Canonical JSON and the hashes in receipts: the digest, tokens, model files.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use bitnet_tokenizers::TokenId;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The fields that the digest omits: the digest itself, and its signature.
const OUTSIDE: [&str; 2] = ["digest", "signature"];

/// Computes the digest of a receipt: the SHA-256 of its canonical JSON, in hexadecimal.
#[must_use]
pub fn digest(receipt: &Value) -> String {
    let mut inside = receipt.clone();
    if let Value::Object(fields) = &mut inside {
        OUTSIDE.iter().for_each(|name| drop(fields.remove(*name)));
    }
    let mut text = String::new();
    write_canonical(&inside, &mut text);
    sha256_hex(text.as_bytes())
}

/// Writes JSON with sorted keys and without spaces; numbers have the fewest digits that read back
/// as the same double. In Python: `json.dumps(receipt, sort_keys=True, separators=(",", ":"),
/// ensure_ascii=False)`.
fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().collect();
            sorted.sort_by_key(|(name, _)| *name);
            out.push('{');
            for (index, (name, item)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                // Writing to a string cannot fail.
                let _ = write!(out, "{}:", Value::from(name.as_str()));
                write_canonical(item, out);
            }
            out.push('}');
        }
        Value::Number(number) if number.is_f64() => {
            write_float(number.as_f64().unwrap_or_default(), out)
        }
        scalar => {
            let _ = write!(out, "{scalar}");
        }
    }
}

/// Writes the fewest digits that read back as the same double, as Python's `repr` does: with an
/// exponent below 1e-4 and from 1e16 on.
fn write_float(x: f64, out: &mut String) {
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    // Writing to a string cannot fail.
    let _ = match exponent.parse::<i32>().unwrap_or_default() {
        -4..16 => write!(out, "{x:?}"),
        exponent => write!(
            out,
            "{digits}e{}{:02}",
            if exponent < 0 { '-' } else { '+' },
            exponent.abs()
        ),
    };
}

/// The SHA-256 of `bytes`, in hexadecimal.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The SHA-256 of token ids, each as four bytes, little endian.
#[must_use]
pub fn tokens_sha256(tokens: &[TokenId]) -> String {
    let mut hash = Sha256::new();
    tokens
        .iter()
        .for_each(|token| hash.update(token.0.to_le_bytes()));
    hex(&hash.finalize())
}

/// The SHA-256 of a model: the hash of the file, or for a directory the hash of the lines that
/// `sha256sum` prints for its `.json` and `.safetensors` files, sorted by name. Reads all files.
///
/// # Errors
/// If a file cannot be read.
pub fn model_sha256(path: &Path) -> std::io::Result<String> {
    if !path.is_dir() {
        return file_sha256(path);
    }
    let mut names = Vec::new();
    for entry in path.read_dir()? {
        let name = PathBuf::from(entry?.file_name());
        if name
            .extension()
            .is_some_and(|extension| extension == "json" || extension == "safetensors")
        {
            names.push(name);
        }
    }
    names.sort();
    let mut lines = String::new();
    for name in names {
        let _ = writeln!(
            lines,
            "{}  {}",
            file_sha256(&path.join(&name))?,
            name.display()
        );
    }
    Ok(sha256_hex(lines.as_bytes()))
}

fn file_sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn canonical_json_equals_pythons() {
        let value = json!({ "b": [1, 2.5, -0.001, null, true], "a": { "z": "é\"\n", "y": 18_446_744_073_709_551_615u64 } });
        let mut text = String::new();
        write_canonical(&value, &mut text);
        assert_eq!(
            text,
            r#"{"a":{"y":18446744073709551615,"z":"é\"\n"},"b":[1,2.5,-0.001,null,true]}"#
        );
    }

    #[test]
    fn floats_are_written_as_in_python() {
        for (x, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (123.456, "123.456"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-2.5e-7, "-2.5e-07"),
            (5e-324, "5e-324"),
            (123_456_789_012_345.6, "123456789012345.6"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
        ] {
            let mut text = String::new();
            write_canonical(&json!(x), &mut text);
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn the_digest_omits_itself_and_the_signature() {
        let bare = json!({ "a": 1 });
        assert_eq!(digest(&bare), sha256_hex(b"{\"a\":1}"));
        assert_eq!(
            digest(&bare),
            digest(&json!({ "a": 1, "digest": "x", "signature": {} }))
        );
        assert_ne!(digest(&bare), digest(&json!({ "a": 2 })));
    }

    #[test]
    fn hashes_are_sha256() {
        assert_eq!(
            sha256_hex(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(tokens_sha256(&[TokenId(0x6463_6261)]), sha256_hex(b"abcd"));
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["b.json", "a.safetensors", "notes.txt"] {
            std::fs::write(folder.path().join(name), "abc").expect("a file");
        }
        let one = sha256_hex(b"abc");
        assert_eq!(
            model_sha256(&folder.path().join("b.json")).expect("it can be read"),
            one
        );
        let lines = format!("{one}  a.safetensors\n{one}  b.json\n");
        assert_eq!(
            model_sha256(folder.path()).expect("it can be read"),
            sha256_hex(lines.as_bytes())
        );
    }
}
