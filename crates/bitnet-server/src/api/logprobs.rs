//! Log-probabilities of tokens, as chat and as completions have them.

use std::collections::BTreeMap;

use bitnet_tokenizers::{TokenId, Tokenizer};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::api::generate::SampledToken;

/// The most tokens whose log-probabilities are given beside each that was sampled.
const TOP_MAX: u32 = 20;
/// In place of minus infinity, which JSON cannot say.
const LEAST: f32 = -9999.0;

/// Checks how many of the most probable tokens are asked for.
pub(crate) fn check_top(field: &str, top: u32) -> Result<usize, ApiError> {
    if top > TOP_MAX {
        return Err(ApiError::invalid(field, format!("'{field}' is {top}, but must be at most {TOP_MAX}.")));
    }
    Ok(top as usize)
}

/// Those of an answer to a chat.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatLogprobs {
    pub(crate) content: Vec<TokenLogprob>,
    pub(crate) refusal: Option<Vec<TokenLogprob>>,
}

/// That of one token, and those of the most probable ones in its place.
#[derive(Serialize, ToSchema)]
pub(crate) struct TokenLogprob {
    #[serde(flatten)]
    token: Logprob,
    top_logprobs: Vec<Logprob>,
}

/// A token and its log-probability.
#[derive(Serialize, ToSchema)]
pub(crate) struct Logprob {
    /// The token as text; bytes that are no characters become U+FFFD.
    token: String,
    logprob: f32,
    /// The token's bytes.
    bytes: Vec<u8>,
}

impl Logprob {
    fn new(tokenizer: Option<&Tokenizer>, id: TokenId, logprob: f32) -> Self {
        let bytes = tokenizer.map_or_else(Vec::new, |tokenizer| tokenizer.token_bytes(id).to_vec());
        Self { token: token_text(tokenizer, id), logprob: logprob.max(LEAST), bytes }
    }
}

impl TokenLogprob {
    /// `None` for a token without log-probabilities.
    pub(crate) fn new(tokenizer: Option<&Tokenizer>, token: &SampledToken) -> Option<Self> {
        let logprobs = token.logprobs.as_ref()?;
        let top = logprobs.top.iter().map(|&(id, logprob)| Logprob::new(tokenizer, id, logprob)).collect();
        Some(Self { token: Logprob::new(tokenizer, token.id, logprobs.token), top_logprobs: top })
    }
}

/// Those of an answer to a completion: lists with an entry for each token.
#[derive(Default, Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Where in the answer's text the tokens begin, in characters.
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Of tokens and the places where they begin; `None` where no token has any.
    pub(crate) fn new(tokenizer: Option<&Tokenizer>, tokens: &[(SampledToken, usize)]) -> Option<Self> {
        let mut out = Self::default();
        for (token, offset) in tokens {
            let Some(logprobs) = &token.logprobs else { continue };
            out.tokens.push(token_text(tokenizer, token.id));
            out.token_logprobs.push(logprobs.token.max(LEAST));
            let top = logprobs.top.iter().map(|&(id, logprob)| (token_text(tokenizer, id), logprob.max(LEAST)));
            out.top_logprobs.push(top.collect());
            out.text_offset.push(*offset);
        }
        (!out.tokens.is_empty()).then_some(out)
    }
}

fn token_text(tokenizer: Option<&Tokenizer>, id: TokenId) -> String {
    match tokenizer {
        Some(tokenizer) => String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned(),
        None => format!("token_id:{id}"),
    }
}
