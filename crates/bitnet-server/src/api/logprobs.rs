//! Log-probabilities of tokens, as chat and as completions have them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitnet_inference::Logprobs;
use bitnet_tokenizers::{DecodeOptions, Detokenizer, TokenId, Tokenizer};
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
        return Err(ApiError::invalid(
            field,
            format!("'{field}' is {top}, but must be at most {TOP_MAX}."),
        ));
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
        Self {
            token: token_text(tokenizer, id),
            logprob: logprob.max(LEAST),
            bytes,
        }
    }
}

impl TokenLogprob {
    /// `None` for a token without log-probabilities.
    pub(crate) fn new(tokenizer: Option<&Tokenizer>, token: &SampledToken) -> Option<Self> {
        let logprobs = token.logprobs.as_ref()?;
        let top = logprobs
            .top
            .iter()
            .map(|&(id, logprob)| Logprob::new(tokenizer, id, logprob))
            .collect();
        Some(Self {
            token: Logprob::new(tokenizer, token.id, logprobs.token),
            top_logprobs: top,
        })
    }
}

/// Those of an answer to a completion: lists with an entry for each token.
#[derive(Default, Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs {
    tokens: Vec<String>,
    /// Null for the first token of a prompt.
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Where in the answer's text, and before it the prompt's if that is echoed, the tokens begin,
    /// in characters.
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Of tokens and the places where they begin; `None` where no token has any.
    pub(crate) fn new(
        tokenizer: Option<&Tokenizer>,
        tokens: &[(SampledToken, usize)],
    ) -> Option<Self> {
        let mut out = Self::default();
        for (token, offset) in tokens.iter().filter(|(token, _)| token.logprobs.is_some()) {
            out.push(tokenizer, token.id, token.logprobs.as_ref(), *offset);
        }
        (!out.tokens.is_empty()).then_some(out)
    }

    /// Puts the tokens of the prompt before those of the answer; the first of them has none.
    pub(crate) fn echo(
        mut self,
        tokenizer: &Arc<Tokenizer>,
        prompt: &[TokenId],
        logprobs: &[Logprobs],
    ) -> Self {
        let answer = std::mem::take(&mut self);
        let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), DecodeOptions::default());
        let mut offset = 0;
        for (&id, logprobs) in prompt
            .iter()
            .zip([None].into_iter().chain(logprobs.iter().map(Some)))
        {
            self.push(Some(tokenizer), id, logprobs, offset);
            offset += detokenizer.push(id).chars().count();
        }
        offset += detokenizer.finish().chars().count();
        self.tokens.extend(answer.tokens);
        self.token_logprobs.extend(answer.token_logprobs);
        self.top_logprobs.extend(answer.top_logprobs);
        self.text_offset.extend(
            answer
                .text_offset
                .into_iter()
                .map(|of_answer| offset + of_answer),
        );
        self
    }

    fn push(
        &mut self,
        tokenizer: Option<&Tokenizer>,
        id: TokenId,
        logprobs: Option<&Logprobs>,
        offset: usize,
    ) {
        self.tokens.push(token_text(tokenizer, id));
        self.token_logprobs
            .push(logprobs.map(|logprobs| logprobs.token.max(LEAST)));
        let text =
            |&(id, logprob): &(TokenId, f32)| (token_text(tokenizer, id), logprob.max(LEAST));
        self.top_logprobs
            .push(logprobs.map(|logprobs| logprobs.top.iter().map(text).collect()));
        self.text_offset.push(offset);
    }
}

fn token_text(tokenizer: Option<&Tokenizer>, id: TokenId) -> String {
    match tokenizer {
        Some(tokenizer) => String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned(),
        None => format!("token_id:{id}"),
    }
}
