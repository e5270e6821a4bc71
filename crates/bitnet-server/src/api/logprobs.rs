//! Log-probabilities of tokens in the formats of chat and of completions.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitnet_inference::{Logprobs, Token};
use bitnet_tokenizers::{DecodeOptions, Detokenizer, TokenId, Tokenizer};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::ApiError;

/// Maximum number of most probable tokens to report for each sampled token.
const TOP_MAX: u32 = 20;
/// In place of minus infinity, which JSON cannot represent.
const LEAST: f32 = -9999.0;

/// Checks the requested number of most probable tokens.
pub(crate) fn check_top(field: &str, top: u32) -> Result<usize, ApiError> {
    if top > TOP_MAX {
        return Err(ApiError::invalid(
            field,
            format!("'{field}' is {top}, but must be at most {TOP_MAX}."),
        ));
    }
    Ok(top as usize)
}

/// Log-probabilities of an answer to a chat.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatLogprobs {
    pub(crate) content: Vec<TokenLogprob>,
    pub(crate) refusal: Option<Vec<TokenLogprob>>,
}

/// The log-probability of one token, and of the most probable tokens at its position.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct TokenLogprob {
    #[serde(flatten)]
    token: Logprob,
    top_logprobs: Vec<Logprob>,
}

/// A token and its log-probability.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Logprob {
    /// The token as text; bytes that are not characters become U+FFFD.
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
    pub(crate) fn new(tokenizer: Option<&Tokenizer>, token: &Token) -> Option<Self> {
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

/// Log-probabilities of an answer to a completion: lists with an entry for each token.
#[derive(Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs {
    /// The tokens as texts; a token whose bytes are not whole characters is `bytes:` with `\\x` and
    /// two hexadecimal digits for each byte.
    tokens: Vec<String>,
    /// Null for the first token of a prompt.
    token_logprobs: Vec<Option<f32>>,
    /// Null if no most probable tokens were requested.
    top_logprobs: Option<Vec<Option<TopLogprobs>>>,
    /// The positions where the tokens begin, in characters from the beginning of the prompt.
    text_offset: Vec<usize>,
}

/// The most probable tokens, and the one that was sampled, with their log-probabilities.
#[derive(Debug, PartialEq)]
struct TopLogprobs(Vec<(String, f32)>);

impl Serialize for TopLogprobs {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}

impl utoipa::PartialSchema for TopLogprobs {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        BTreeMap::<String, f32>::schema()
    }
}

impl ToSchema for TopLogprobs {}

impl CompletionLogprobs {
    /// Starts without tokens; `top`: the requested number of most probable tokens.
    pub(crate) fn empty(top: usize) -> Self {
        Self {
            tokens: Vec::new(),
            token_logprobs: Vec::new(),
            top_logprobs: (top > 0).then(Vec::new),
            text_offset: Vec::new(),
        }
    }

    /// From tokens and the positions where they begin, after `start` characters; `None` if no token
    /// has log-probabilities.
    pub(crate) fn new<'a>(
        tokenizer: Option<&Tokenizer>,
        tokens: impl Iterator<Item = (&'a Token, usize)>,
        start: usize,
        top: usize,
    ) -> Option<Self> {
        let mut out = Self::empty(top);
        for (token, offset) in tokens.filter(|(token, _)| token.logprobs.is_some()) {
            out.push(tokenizer, token.id, token.logprobs.as_ref(), start + offset);
        }
        (!out.tokens.is_empty()).then_some(out)
    }

    /// Puts the tokens of the prompt before the tokens of the answer. The first has no
    /// log-probability.
    pub(crate) fn echo(
        self,
        tokenizer: &Arc<Tokenizer>,
        prompt: &[TokenId],
        logprobs: &[Logprobs],
    ) -> Self {
        let mut out = Self {
            top_logprobs: self.top_logprobs.as_ref().map(|_| Vec::new()),
            ..Self::empty(0)
        };
        let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), DecodeOptions::default());
        let mut offset = 0;
        let logprobs = [None].into_iter().chain(logprobs.iter().map(Some));
        for (&id, logprobs) in prompt.iter().zip(logprobs) {
            out.push(Some(tokenizer), id, logprobs, offset);
            offset += detokenizer.push(id).chars().count();
        }
        out.tokens.extend(self.tokens);
        out.token_logprobs.extend(self.token_logprobs);
        if let Some((out, answer)) = out.top_logprobs.as_mut().zip(self.top_logprobs) {
            out.extend(answer);
        }
        out.text_offset.extend(self.text_offset);
        out
    }

    fn push(
        &mut self,
        tokenizer: Option<&Tokenizer>,
        id: TokenId,
        logprobs: Option<&Logprobs>,
        offset: usize,
    ) {
        self.tokens.push(distinct_text(tokenizer, id));
        self.token_logprobs
            .push(logprobs.map(|logprobs| logprobs.token.max(LEAST)));
        if let Some(top) = &mut self.top_logprobs {
            top.push(logprobs.map(|logprobs| TopLogprobs::new(tokenizer, id, logprobs)));
        }
        self.text_offset.push(offset);
    }
}

impl TopLogprobs {
    /// Sorted by probability; of several tokens with the same text, only the first is kept.
    fn new(tokenizer: Option<&Tokenizer>, id: TokenId, logprobs: &Logprobs) -> Self {
        let mut top = Vec::with_capacity(logprobs.top.len() + 1);
        let own = (id, logprobs.token);
        for &(id, logprob) in logprobs.top.iter().chain([&own]) {
            let text = distinct_text(tokenizer, id);
            if top.iter().all(|(other, _)| *other != text) {
                top.push((text, logprob.max(LEAST)));
            }
        }
        Self(top)
    }
}

fn token_text(tokenizer: Option<&Tokenizer>, id: TokenId) -> String {
    match tokenizer {
        Some(tokenizer) => String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned(),
        None => format!("token_id:{id}"),
    }
}

/// The text of a token; if its bytes are not whole characters, the bytes, as OpenAI writes them.
fn distinct_text(tokenizer: Option<&Tokenizer>, id: TokenId) -> String {
    match tokenizer.map(|tokenizer| tokenizer.token_bytes(id)) {
        Some(bytes) if std::str::from_utf8(bytes).is_err() => {
            let bytes = bytes.iter().map(|byte| format!("\\x{byte:02x}"));
            "bytes:".to_owned() + &bytes.collect::<String>()
        }
        _ => token_text(tokenizer, id),
    }
}
