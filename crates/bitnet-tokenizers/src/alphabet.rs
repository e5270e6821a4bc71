//! The alphabet of byte-level BPE: a printable character for each of the 256 bytes.
//!
//! Vocabularies and merges use it (a space is `Ġ`, a newline `Ċ`). Bytes that are printable in
//! Latin-1 stand for themselves; the others map to U+0100 and up, in order.

use std::sync::LazyLock;

/// The first character past the alphabet.
const END: usize = 0x144;
const NONE: u16 = u16::MAX;

static BYTE_OF_CHAR: LazyLock<[u16; END]> = LazyLock::new(|| {
    let mut table = [NONE; END];
    for byte in 0..=255u8 {
        table[char_of(byte) as usize] = u16::from(byte);
    }
    table
});

/// Whether a byte stands for itself.
const fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The character of a byte.
pub(crate) fn char_of(byte: u8) -> char {
    if is_printable(byte) {
        return char::from(byte);
    }
    let below = (0..byte).filter(|&b| !is_printable(b)).count();
    char::from_u32(0x100 + below as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Appends the bytes that `text` spells; text with any character outside the alphabet stands for
/// its own UTF-8 bytes.
pub(crate) fn push_decoded(text: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for c in text.chars() {
        match BYTE_OF_CHAR.get(c as usize) {
            Some(&byte) if byte != NONE => out.push(byte as u8),
            _ => {
                out.truncate(start);
                out.extend_from_slice(text.as_bytes());
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        for byte in 0..=255u8 {
            let mut bytes = Vec::new();
            push_decoded(&char_of(byte).to_string(), &mut bytes);
            assert_eq!(bytes, [byte]);
        }
        assert_eq!(
            (char_of(b' '), char_of(b'\n'), char_of(0xAD)),
            ('Ġ', 'Ċ', 'Ń')
        );
    }

    #[test]
    fn text_outside_the_alphabet_stands_for_itself() {
        let mut bytes = Vec::new();
        push_decoded("Ġ漢", &mut bytes);
        assert_eq!(bytes, "Ġ漢".as_bytes());
    }
}
