//! `/tokenize`, `/detokenize` and `/tokenizer_info`: text to tokens and back, as vLLM has them.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::Response;
use bitnet_tokenizers::{DecodeOptions, EncodeOptions, TokenId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::chat::Message;
use crate::api::conversation::{self, Rendering};
use crate::api::generate::{check_model, read_and};
use crate::api::models::ModelQuery;
use crate::api::{ApiError, body, completions};
use crate::state::App;

/// A text or a conversation to convert to tokens.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct TokenizeRequest {
    /// A name of the model.
    model: Option<String>,
    /// A text, if there are no messages.
    prompt: Option<String>,
    /// A conversation, if there is no prompt.
    messages: Option<Vec<Message>>,
    /// Add the tokens that the model expects before a prompt; true if not given.
    add_special_tokens: Option<bool>,
    /// Read control tokens in the prompt as tokens; true if not given.
    parse_special: Option<bool>,
    /// End a conversation with the beginning of the answer; true if not given.
    add_generation_prompt: Option<bool>,
    /// Continue the last message instead of answering it.
    continue_final_message: Option<bool>,
    /// Variables for the model's template.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Also return the tokens as texts.
    return_token_strs: Option<bool>,
}

/// The tokens.
#[derive(Serialize, ToSchema)]
pub(crate) struct Tokens {
    count: usize,
    /// Maximum number of tokens of a prompt and its answer together.
    max_model_len: usize,
    #[schema(value_type = Vec<u32>)]
    tokens: Vec<TokenId>,
    /// The tokens as texts; bytes that are not characters become U+FFFD.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_strs: Option<Vec<String>>,
}

/// Tokens to convert to text.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct DetokenizeRequest {
    /// A name of the model.
    model: Option<String>,
    tokens: Vec<u32>,
}

/// The text.
#[derive(Serialize, ToSchema)]
pub(crate) struct DetokenizedText {
    prompt: String,
}

/// Text to tokens.
#[utoipa::path(
    post,
    path = "/tokenize",
    operation_id = "tokenize",
    tag = "vLLM",
    request_body = TokenizeRequest,
    responses((status = 200, description = "The tokens.", body = Tokens))
)]
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (_, response) = read_and(&app, request, |app, model, bytes| {
        let request: TokenizeRequest = body::parse(bytes, app.options.is_lenient)?;
        check_model(request.model.as_deref(), app, model)?;
        let tokenizer = model.tokenizer()?;
        let tokens = match (&request.prompt, &request.messages) {
            (Some(prompt), None) => {
                let options = EncodeOptions {
                    add_special: request.add_special_tokens.unwrap_or(true),
                    parse_special: request.parse_special.unwrap_or(true),
                };
                completions::encode(tokenizer, prompt, options)?
            }
            (None, Some(messages)) => {
                let messages = conversation::chat_messages(messages)?;
                let continues = request.continue_final_message.unwrap_or(false);
                let rendering = Rendering {
                    add_generation_prompt: request.add_generation_prompt.unwrap_or(!continues),
                    continue_final_message: continues,
                    variables: request.chat_template_kwargs.as_ref(),
                    ..Rendering::default()
                };
                conversation::render_messages(model, &messages, &rendering)?.1
            }
            _ => {
                return Err(ApiError::invalid(
                    "prompt",
                    "Give either 'prompt' or 'messages'.",
                ));
            }
        };
        let text =
            |token: &TokenId| String::from_utf8_lossy(tokenizer.token_bytes(*token)).into_owned();
        let token_strs = request
            .return_token_strs
            .unwrap_or(false)
            .then(|| tokens.iter().map(text).collect());
        Ok(super::json(&Tokens {
            count: tokens.len(),
            max_model_len: model.context,
            tokens,
            token_strs,
        }))
    })
    .await?;
    Ok(response)
}

/// Tokens to text.
#[utoipa::path(
    post,
    path = "/detokenize",
    operation_id = "detokenize",
    tag = "vLLM",
    request_body = DetokenizeRequest,
    responses((status = 200, description = "The text.", body = DetokenizedText))
)]
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (_, response) = read_and(&app, request, |app, model, bytes| {
        let request: DetokenizeRequest = body::parse(bytes, app.options.is_lenient)?;
        check_model(request.model.as_deref(), app, model)?;
        let tokens: Vec<_> = request.tokens.into_iter().map(TokenId).collect();
        if let Some(index) = tokens
            .iter()
            .position(|token| token.0 as usize >= model.vocab_size)
        {
            let message = format!(
                "Token {} does not exist: the vocabulary has {}.",
                tokens[index], model.vocab_size
            );
            return Err(ApiError::invalid(&format!("tokens[{index}]"), message));
        }
        let options = DecodeOptions {
            show_special: true,
            ..DecodeOptions::default()
        };
        Ok(super::json(&DetokenizedText {
            prompt: model.tokenizer()?.decode(&tokens, options),
        }))
    })
    .await?;
    Ok(response)
}

/// Facts about the tokenizer, with the names of `tokenizer_config.json`.
#[derive(Serialize, ToSchema)]
pub(crate) struct TokenizerInfo {
    /// `PreTrainedTokenizerFast`
    tokenizer_class: &'static str,
    /// The text of the token; null if the model has none. The same holds for the other three
    /// tokens.
    bos_token: Option<String>,
    eos_token: Option<String>,
    pad_token: Option<String>,
    unk_token: Option<String>,
    /// Whether prompts begin with `bos_token`, unless a request says otherwise.
    add_bos_token: bool,
    /// Maximum number of tokens of a prompt and its answer together.
    model_max_length: usize,
    /// The chat template in Jinja; null if the model has none.
    chat_template: Option<String>,
}

/// The tokenizer's special tokens and chat template.
#[utoipa::path(
    get,
    path = "/tokenizer_info",
    operation_id = "tokenizerInfo",
    tag = "vLLM",
    params(ModelQuery),
    responses((status = 200, description = "The tokenizer.", body = TokenizerInfo))
)]
pub(crate) async fn tokenizer_info(
    State(app): State<Arc<App>>,
    query: Result<Query<ModelQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let model = ModelQuery::lease(query, &app).await?;
    let tokenizer = model.tokenizer()?;
    let text = |id: TokenId| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
    Ok(super::json(&TokenizerInfo {
        tokenizer_class: "PreTrainedTokenizerFast",
        bos_token: tokenizer.bos().map(text),
        eos_token: tokenizer.eos().map(text),
        pad_token: tokenizer.padding().map(text),
        unk_token: tokenizer.unknown().map(text),
        add_bos_token: tokenizer.adds_bos(),
        model_max_length: model.context,
        chat_template: tokenizer.chat_template().map(str::to_owned),
    }))
}
