//! [`FormVocabulary`]: a model's tokens in the form that the grammar engine needs, and as bytes for
//! a helper process.

use bitnet_tokenizers::{TokenId, TokenKind, Tokenizer};
use llguidance::toktrie::TokTrie;

/// The longest token that a grammar uses, in bytes; longer ones are never needed.
const TOKEN_BYTES_MAX: usize = 200;

/// The bytes of each token, and the tokens that end an answer.
#[derive(Debug, PartialEq)]
pub(crate) struct FormVocabulary {
    /// The tokens that end an answer, at least one.
    pub(crate) stop_ids: Vec<u32>,
    /// By id. Control tokens begin with a marker: they are never part of a text. Tokens that
    /// grammars do not use are empty.
    pub(crate) words: Vec<Vec<u8>>,
}

impl FormVocabulary {
    /// For a model whose head has `num_rows` rows: it cannot sample tokens with higher ids.
    pub(crate) fn new(tokenizer: &Tokenizer, num_rows: usize) -> Result<Self, String> {
        let num_tokens = tokenizer.vocab_size().min(num_rows) as u32;
        let stop_ids = tokenizer.stop_ids().iter().map(|id| id.0);
        let stop_ids: Vec<u32> = stop_ids.filter(|id| *id < num_tokens).collect();
        if stop_ids.is_empty() {
            return Err(
                "this model has no token that ends an answer, which a grammar needs".to_owned(),
            );
        }
        let ids = (0..num_tokens).map(TokenId);
        Ok(Self {
            stop_ids,
            words: ids.map(|id| word(tokenizer, id)).collect(),
        })
    }

    /// The vocabulary for [`from_bytes`](Self::from_bytes).
    ///
    /// ```text
    /// number of stop ids: u32 │ ids: u32 each │ for each token its length: u8 │ its bytes
    /// ```
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = (self.stop_ids.len() as u32).to_le_bytes().to_vec();
        out.extend(self.stop_ids.iter().flat_map(|id| id.to_le_bytes()));
        for word in &self.words {
            // A byte holds TOKEN_BYTES_MAX plus a marker.
            out.push(word.len() as u8);
            out.extend_from_slice(word);
        }
        out
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let cut = || "a vocabulary was cut".to_owned();
        let mut rest = bytes;
        let mut take = |len: usize| {
            let (head, tail) = rest.split_at_checked(len).ok_or_else(cut)?;
            rest = tail;
            Ok::<_, String>(head)
        };
        let number = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).map_err(|_| cut());
        let num_stop_ids = number(take(4)?)?;
        let stop_ids = (0..num_stop_ids).map(|_| number(take(4)?));
        let stop_ids = stop_ids.collect::<Result<_, _>>()?;
        let mut words = Vec::new();
        while let Ok(len) = take(1) {
            let len = usize::from(len[0]);
            words.push(take(len)?.to_vec());
        }
        Ok(Self { stop_ids, words })
    }
}

fn word(tokenizer: &Tokenizer, id: TokenId) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    match tokenizer.kind(id) {
        _ if bytes.len() > TOKEN_BYTES_MAX => Vec::new(),
        TokenKind::Unused => Vec::new(),
        TokenKind::Control | TokenKind::Unknown => {
            [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
        }
        _ => bytes.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_give_the_same_vocabulary_again() {
        let vocabulary = FormVocabulary {
            stop_ids: vec![2, 70_000],
            words: vec![b"a".to_vec(), Vec::new(), vec![0xff; 201]],
        };
        let bytes = vocabulary.to_bytes();
        assert_eq!(FormVocabulary::from_bytes(&bytes), Ok(vocabulary));
        for end in [0, 3, 8, bytes.len() - 1] {
            assert!(FormVocabulary::from_bytes(&bytes[..end]).is_err(), "{end}");
        }
    }
}
