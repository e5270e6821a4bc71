//! [`Checksum`]: a fast hash that detects bytes that did not reach the disk. It is not
//! cryptographic.

/// A hash of bytes that arrive in pieces. The cuts do not change it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checksum {
    hash: u64,
    /// The last bytes, fewer than eight, and their number.
    pending: [u8; 8],
    pending_len: usize,
}

impl Checksum {
    /// Hashes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        if self.pending_len > 0 {
            let (head, rest) = bytes.split_at(bytes.len().min(8 - self.pending_len));
            self.pending[self.pending_len..self.pending_len + head.len()].copy_from_slice(head);
            self.pending_len += head.len();
            bytes = rest;
            if self.pending_len < 8 {
                return;
            }
            self.hash = mixed(self.hash, self.pending);
        }
        let (words, rest) = bytes.as_chunks::<8>();
        self.hash = words
            .iter()
            .fold(self.hash, |hash, word| mixed(hash, *word));
        self.pending = [0; 8];
        self.pending[..rest.len()].copy_from_slice(rest);
        self.pending_len = rest.len();
    }
}

/// Every step is a bijection of the hash, so one changed word always changes the result.
fn mixed(hash: u64, word: [u8; 8]) -> u64 {
    (hash ^ u64::from_le_bytes(word))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(29)
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
            assert_ne!(whole, of(&bytes[..len + 1], 100));
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_ne!(of(&changed, 100), of(&bytes, 100));
        }
    }
}
