//! Maps the tokens of a vocabulary to bytes, and bytes back to ids.
//!
//! The bytes of all tokens lie in one buffer and the table from bytes to ids holds ids only, so a
//! vocabulary of 128,256 tokens costs about 2 MB.

use std::hash::BuildHasher;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

use crate::alphabet;
use crate::error::{Error, Result};

/// The kind of a token. The discriminants are the numbers in `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TokenKind {
    /// A piece of text.
    Normal = 1,
    /// Stands for text that the vocabulary cannot encode.
    Unknown = 2,
    /// Controls the model and has no text: `<s>`, `<|eot_id|>`. Matches in a text only if the
    /// caller allows it.
    Control = 3,
    /// Text that is always one token, at any position.
    UserDefined = 4,
    /// A row without a token.
    Unused = 5,
    /// One byte, written `<0x0A>`.
    Byte = 6,
}

impl TokenKind {
    /// The kind of a number in `tokenizer.ggml.token_type`; unknown numbers are normal tokens.
    pub(crate) fn from_gguf(number: i32) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }

    /// Whether plain text is encoded with tokens of this kind.
    fn spells_text(self) -> bool {
        matches!(self, Self::Normal | Self::Unused)
    }
}

/// The spelling of the tokens of a vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// In the alphabet of byte-level BPE.
    ByteLevel,
    /// As text with `▁` for a space.
    SpaceEscaped,
}

/// SentencePiece's sign for a space.
pub(crate) const ESCAPED_SPACE: char = '\u{2581}';
/// No token.
pub(crate) const NO_TOKEN: u32 = u32::MAX;

/// See the module.
///
/// Ids from `len()` on are *intermediate* pieces: merges may pass through strings that are not
/// tokens; these get ids too, but encoding never returns them.
pub(crate) struct Vocabulary {
    spelling: Spelling,
    bytes: Vec<u8>,
    /// Token i is `bytes[ends[i - 1]..ends[i]]`.
    ends: Vec<u32>,
    kinds: Vec<TokenKind>,
    ids: HashTable<u32>,
    hasher: DefaultHashBuilder,
    byte_ids: Box<[u32; 256]>,
    max_piece_len: usize,
    /// Whether two tokens have the same text.
    has_duplicates: bool,
}

impl Vocabulary {
    /// Takes the tokens in the order of their ids.
    pub(crate) fn new<'a>(
        spelling: Spelling,
        tokens: impl ExactSizeIterator<Item = (&'a str, TokenKind)>,
    ) -> Result<Self> {
        let num_tokens = tokens.len();
        if num_tokens == 0 {
            return Err(Error::NoTokens);
        }
        let mut this = Self {
            spelling,
            bytes: Vec::with_capacity(num_tokens.saturating_mul(8)),
            ends: Vec::with_capacity(num_tokens),
            kinds: Vec::with_capacity(num_tokens),
            ids: HashTable::with_capacity(num_tokens),
            hasher: DefaultHashBuilder::default(),
            byte_ids: Box::new([NO_TOKEN; 256]),
            max_piece_len: 0,
            has_duplicates: false,
        };
        for (id, (text, kind)) in tokens.enumerate() {
            this.push_token(id as u32, text, kind)?;
        }
        if spelling == Spelling::ByteLevel {
            for byte in 0..=255u8 {
                if let Some(id) = this.id(&[byte]) {
                    this.byte_ids[usize::from(byte)] = id;
                }
            }
        }
        Ok(this)
    }

    fn push_token(&mut self, id: u32, text: &str, kind: TokenKind) -> Result<()> {
        let start = self.bytes.len();
        match kind {
            TokenKind::Byte => match byte_of_name(text) {
                Some(byte) => {
                    self.bytes.push(byte);
                    self.byte_ids[usize::from(byte)] = id;
                }
                None => self.bytes.extend_from_slice(text.as_bytes()),
            },
            TokenKind::Normal | TokenKind::Unused => {
                push_spelled(self.spelling, text, &mut self.bytes)
            }
            TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined => {
                self.bytes.extend_from_slice(text.as_bytes());
            }
        }
        self.close_piece()?;
        self.kinds.push(kind);
        if kind.spells_text() && self.bytes.len() > start {
            self.max_piece_len = self.max_piece_len.max(self.bytes.len() - start);
            // If two tokens have the same text, the later one is used, as in llama.cpp.
            match self.entry(id) {
                Entry::Occupied(mut entry) => {
                    *entry.get_mut() = id;
                    self.has_duplicates = true;
                }
                Entry::Vacant(entry) => {
                    entry.insert(id);
                }
            }
        }
        Ok(())
    }

    fn close_piece(&mut self) -> Result<()> {
        let end = u32::try_from(self.bytes.len()).map_err(|_| Error::TooLarge {
            what: "the text of the vocabulary",
            len: self.bytes.len(),
            max: u32::MAX as usize,
        })?;
        self.ends.push(end);
        Ok(())
    }

    /// The table's entry for the text of piece `id`.
    fn entry(&mut self, id: u32) -> Entry<'_, u32> {
        let (bytes, ends, hasher) = (&self.bytes, &self.ends, &self.hasher);
        let text = piece(bytes, ends, id);
        self.ids.entry(
            hasher.hash_one(text),
            |&other| piece(bytes, ends, other) == text,
            |&other| hasher.hash_one(piece(bytes, ends, other)),
        )
    }

    /// The id of the piece `text`; adds an intermediate piece if there is none.
    pub(crate) fn intern(&mut self, text: &[u8]) -> Result<u32> {
        if let Some(id) = self.any_id(text) {
            return Ok(id);
        }
        let id = self.ends.len() as u32;
        self.bytes.extend_from_slice(text);
        self.close_piece()?;
        self.entry(id).or_insert(id);
        Ok(id)
    }

    /// Whether [`id`](Self::id) of `text` is `id`, by a quick check that may return false although
    /// it is.
    pub(crate) fn spells(&self, id: u32, text: &[u8]) -> bool {
        !self.has_duplicates
            && self.has(id)
            && self.kind(id).spells_text()
            && self.piece(id) == text
    }

    /// The number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Whether `id` is a token and no intermediate piece.
    pub(crate) fn has(&self, id: u32) -> bool {
        (id as usize) < self.len()
    }

    /// How the tokens are written.
    pub(crate) fn spelling(&self) -> Spelling {
        self.spelling
    }

    /// The bytes of a piece; empty if there is none.
    pub(crate) fn piece(&self, id: u32) -> &[u8] {
        if (id as usize) < self.ends.len() {
            piece(&self.bytes, &self.ends, id)
        } else {
            &[]
        }
    }

    /// The kind of a token; ids outside the vocabulary are unused.
    pub(crate) fn kind(&self, id: u32) -> TokenKind {
        self.kinds
            .get(id as usize)
            .copied()
            .unwrap_or(TokenKind::Unused)
    }

    /// The token for one byte.
    pub(crate) fn byte_id(&self, byte: u8) -> Option<u32> {
        Some(self.byte_ids[usize::from(byte)]).filter(|&id| id != NO_TOKEN)
    }

    /// The token `text`, among the tokens for plain text.
    pub(crate) fn id(&self, text: &[u8]) -> Option<u32> {
        self.any_id(text).filter(|&id| self.has(id))
    }

    /// The token or intermediate piece `text`.
    pub(crate) fn any_id(&self, text: &[u8]) -> Option<u32> {
        self.ids
            .find(self.hasher.hash_one(text), |&id| {
                piece(&self.bytes, &self.ends, id) == text
            })
            .copied()
    }

    /// The length in bytes of the longest token for plain text.
    pub(crate) fn max_piece_len(&self) -> usize {
        self.max_piece_len
    }
}

fn piece<'a>(bytes: &'a [u8], ends: &[u32], id: u32) -> &'a [u8] {
    let id = id as usize;
    let start = if id == 0 { 0 } else { ends[id - 1] as usize };
    &bytes[start..ends[id] as usize]
}

/// Appends the bytes of a token or of one side of a merge.
pub(crate) fn push_spelled(spelling: Spelling, text: &str, out: &mut Vec<u8>) {
    match spelling {
        Spelling::ByteLevel => alphabet::push_decoded(text, out),
        Spelling::SpaceEscaped => {
            for (index, part) in text.split(ESCAPED_SPACE).enumerate() {
                if index > 0 {
                    out.push(b' ');
                }
                out.extend_from_slice(part.as_bytes());
            }
        }
    }
}

/// The byte of a token written `<0x0A>`.
pub(crate) fn byte_of_name(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}
