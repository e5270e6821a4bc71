//! [`Checksum`]: a fast hash (XXH3, 64 bits) that detects bytes that were changed or did not reach
//! the disk. It is not cryptographic.

use std::hash::Hasher;

use twox_hash::XxHash3_64;

/// A hash of bytes that arrive in pieces. The cuts do not change it.
#[derive(Clone)]
pub struct Checksum(XxHash3_64);

impl Checksum {
    /// The hash of some bytes. Takes about as long as reading them.
    pub fn of(bytes: &[u8]) -> u64 {
        XxHash3_64::oneshot(bytes)
    }

    /// Hashes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The hash of all bytes so far.
    pub fn value(&self) -> u64 {
        self.0.finish()
    }
}

impl Default for Checksum {
    fn default() -> Self {
        Self(XxHash3_64::with_seed(0))
    }
}

impl PartialEq for Checksum {
    fn eq(&self, other: &Self) -> bool {
        self.value() == other.value()
    }
}

impl Eq for Checksum {}

impl std::fmt::Debug for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checksum({:016x})", self.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_changes_the_checksum_and_pieces_do_not() {
        let bytes: Vec<u8> = (0..100u8).map(|i| i.wrapping_mul(37)).collect();
        let of = |bytes: &[u8], piece: usize| {
            let mut checksum = Checksum::default();
            bytes.chunks(piece).for_each(|piece| checksum.update(piece));
            checksum
        };
        for len in 0..bytes.len() {
            let whole = of(&bytes[..len], 100);
            assert!(
                (1..20).all(|piece| of(&bytes[..len], piece) == whole),
                "{len}"
            );
            assert_eq!(whole.value(), Checksum::of(&bytes[..len]));
            assert_ne!(whole, of(&bytes[..len + 1], 100));
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_ne!(of(&changed, 100), of(&bytes, 100));
        }
    }

    #[test]
    fn the_hash_is_xxh3_as_its_authors_publish_it() {
        // From the sanity checks of the reference implementation: no bytes, seed 0.
        assert_eq!(Checksum::of(&[]), 0x2d06_8005_38d3_94c2);
    }
}
