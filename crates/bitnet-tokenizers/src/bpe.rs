//! Byte-pair encoding: merges the neighbouring pair with the lowest merge rank first.

use hashbrown::HashMap;

use crate::error::{Error, Result, quoted};
use crate::merge::Merger;
use crate::token::TokenId;
use crate::vocabulary::{NO_TOKEN, Spelling, Vocabulary, push_spelled};

/// The merges of a vocabulary and the rules for the first pieces of a word.
pub(crate) struct Bpe {
    /// (left id, right id) → (rank, id of the union).
    merges: HashMap<u64, (u32, u32)>,
    /// Whether a word that is a token becomes that token without merging.
    ignore_merges: bool,
    /// The token for text that has no token and no bytes.
    unknown: Option<u32>,
    /// Whether several unknown pieces in a row become one token.
    fuse_unknown: bool,
}

/// The settings of a [`Bpe`] besides its merges.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BpeSettings {
    pub(crate) ignore_merges: bool,
    pub(crate) fuse_unknown: bool,
}

impl Bpe {
    /// Takes the merges, best first. Pieces that are not tokens become intermediate pieces of
    /// `vocabulary`; for a pair that occurs twice the first rank counts.
    pub(crate) fn new<'a>(
        vocabulary: &mut Vocabulary,
        merges: impl ExactSizeIterator<Item = Result<(&'a str, &'a str)>>,
        settings: BpeSettings,
        unknown: Option<u32>,
    ) -> Result<Self> {
        let mut table = HashMap::with_capacity(merges.len());
        let mut text = Vec::new();
        let mut last_merged = 0;
        for (index, merge) in merges.enumerate() {
            let (left, right) = merge?;
            text.clear();
            push_spelled(vocabulary.spelling(), left, &mut text);
            let middle = text.len();
            push_spelled(vocabulary.spelling(), right, &mut text);
            let left = vocabulary.intern(&text[..middle])?;
            let right = vocabulary.intern(&text[middle..])?;
            // Most vocabularies number their tokens in the order of the merges.
            let likely = [last_merged, last_merged + 1]
                .into_iter()
                .find(|&id| vocabulary.spells(id, &text));
            let merged = likely.map_or_else(|| vocabulary.intern(&text), Ok)?;
            last_merged = merged;
            table
                .entry(pair_key(left, right))
                .or_insert((index as u32, merged));
        }
        let BpeSettings {
            ignore_merges,
            fuse_unknown,
        } = settings;
        Ok(Self {
            merges: table,
            ignore_merges,
            unknown,
            fuse_unknown,
        })
    }

    /// Appends the tokens of one word.
    pub(crate) fn encode_word(
        &self,
        vocabulary: &Vocabulary,
        word: &[u8],
        merger: &mut Merger,
        out: &mut Vec<TokenId>,
    ) -> Result<()> {
        if self.ignore_merges
            && let Some(id) = vocabulary.id(word)
        {
            out.push(TokenId(id));
            return Ok(());
        }
        merger.clear();
        match vocabulary.spelling() {
            Spelling::ByteLevel => {
                for (start, byte) in word.iter().enumerate() {
                    let id = vocabulary
                        .byte_id(*byte)
                        .or_else(|| vocabulary.any_id(&[*byte]));
                    merger.push(id.unwrap_or(NO_TOKEN), start, 1);
                }
            }
            Spelling::SpaceEscaped => {
                for (start, len) in char_ranges(word) {
                    let id = vocabulary.any_id(&word[start..start + len]);
                    merger.push(id.unwrap_or(NO_TOKEN), start, len);
                }
            }
        }
        merger.merge(|a, b| self.merges.get(&pair_key(a.id, b.id)).copied());
        let mut unknown_before = false;
        for symbol in merger.symbols() {
            let text = &word[symbol.start as usize..][..symbol.len as usize];
            let spelled = push_piece(vocabulary, symbol.id, text, out);
            if !spelled {
                let unknown = self.unknown.ok_or_else(|| no_token_for(text))?;
                if !(self.fuse_unknown && unknown_before) {
                    out.push(TokenId(unknown));
                }
            }
            unknown_before = !spelled;
        }
        Ok(())
    }
}

/// A merge is split at the first space that is not its first character.
pub(crate) fn split_merge(index: usize, merge: &str) -> Result<(&str, &str)> {
    let first = merge.chars().next().map_or(0, char::len_utf8);
    match merge[first..].split_once(' ') {
        Some((left, right)) if !right.is_empty() => Ok((&merge[..first + left.len()], right)),
        _ => Err(Error::BadMerge {
            index,
            merge: quoted(merge),
        }),
    }
}

/// Appends the token of a text, or the tokens of its bytes if it has none; false if the bytes have
/// no tokens.
pub(crate) fn push_piece(
    vocabulary: &Vocabulary,
    id: u32,
    text: &[u8],
    out: &mut Vec<TokenId>,
) -> bool {
    if vocabulary.has(id) {
        out.push(TokenId(id));
        return true;
    }
    let len_before = out.len();
    for &byte in text {
        let Some(id) = vocabulary.byte_id(byte) else {
            out.truncate(len_before);
            return false;
        };
        out.push(TokenId(id));
    }
    true
}

/// The error for text that the vocabulary cannot encode.
pub(crate) fn no_token_for(text: &[u8]) -> Error {
    Error::NoTokenFor {
        text: quoted(&String::from_utf8_lossy(text)),
    }
}

/// The (start, length) of the characters of UTF-8 text.
pub(crate) fn char_ranges(word: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = word.get(start + 1..)?;
        let len = 1 + rest.iter().take_while(|&&byte| byte & 0xC0 == 0x80).count();
        start += len;
        Some((start - len, len))
    })
}

fn pair_key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}
