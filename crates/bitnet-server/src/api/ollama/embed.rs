//! `/api/embed` and the older `/api/embeddings`: texts to vectors, as in Ollama's API.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use bitnet_tokenizers::{EncodeOptions, TokenId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::fields::{Prompt, TextOr};
use crate::api::generate::check_model;
use crate::api::ollama::read_and;
use crate::api::ollama::request::{OllamaOptions, model_name};
use crate::api::{ApiError, body, embeddings};
use crate::record::Record;
use crate::served::ServedModel;
use crate::state::App;

/// Texts to turn into vectors, as in Ollama's API.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct OllamaEmbedRequest {
    /// A name of the model, perhaps with the ending `:latest`.
    model: String,
    /// A text, or a list of up to 2048 texts; an empty one loads the model.
    input: Option<TextOr<String>>,
    /// Cut the end of texts that do not fit into the context. Without it they are refused.
    truncate: Option<bool>,
    /// Return this many numbers of each vector, the first ones, scaled to length 1 again.
    #[schema(minimum = 1)]
    dimensions: Option<u32>,
    /// Only `num_ctx` has an effect: vectors are not sampled.
    options: Option<OllamaOptions>,
    /// How long the model stays loaded after this request, as in a chat.
    #[expect(dead_code, reason = "read before the model is loaded")]
    keep_alive: Option<Value>,
}

/// A text to turn into a vector, as in Ollama's older API.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct OllamaEmbeddingRequest {
    /// A name of the model, perhaps with the ending `:latest`.
    model: String,
    /// The text; empty to load the model.
    #[serde(default)]
    prompt: String,
    /// Only `num_ctx` has an effect: vectors are not sampled.
    options: Option<OllamaOptions>,
    /// How long the model stays loaded after this request, as in a chat.
    #[expect(dead_code, reason = "read before the model is loaded")]
    keep_alive: Option<Value>,
}

/// The vectors of a request.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaEmbeddings<'a> {
    model: &'a str,
    /// A vector of length 1 for each text.
    embeddings: Vec<Vec<f32>>,
    /// Nanoseconds.
    total_duration: u64,
    /// Always 0: the time to load the model is a part of `total_duration`.
    load_duration: u64,
    /// Tokens of all texts.
    prompt_eval_count: usize,
}

/// The vector of a text.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaEmbedding {
    /// Of the length that the model gives it.
    embedding: Vec<f32>,
}

/// The vectors of texts, each of length 1.
#[utoipa::path(
    post,
    path = "/api/embed",
    operation_id = "ollamaEmbed",
    tag = "Ollama",
    request_body = OllamaEmbedRequest,
    responses((status = 200, description = "The vectors.", body = OllamaEmbeddings<'_>))
)]
pub(crate) async fn embed(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    app.check_room()?;
    let (model, (request, inputs)) = read_and(&app, request, |app, model, bytes| {
        let request: OllamaEmbedRequest = body::parse(bytes, app.options.is_lenient)?;
        check_model(Some(model_name(&request.model)), app, model)?;
        embeddings::pooling(model)?;
        OllamaOptions::check_context(request.options.as_ref(), model.context)?;
        embeddings::check_dimensions(request.dimensions, model.hidden_size)?;
        let inputs = inputs(model, &request)?;
        Ok((request, inputs))
    })
    .await?;
    let asked_model = Some(model_name(&request.model).to_owned());
    let mut pooled = embeddings::pool(&app, &model, &inputs, asked_model, &record).await?;
    pooled.scale(request.dimensions);
    Ok(crate::api::json(&OllamaEmbeddings {
        model: model.name(),
        embeddings: pooled.vectors,
        total_duration: record.elapsed().as_nanos() as u64,
        load_duration: 0,
        prompt_eval_count: pooled.num_tokens,
    }))
}

/// The tokens of the texts of a request; none if it only loads the model.
fn inputs(
    model: &ServedModel,
    request: &OllamaEmbedRequest,
) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let texts = match &request.input {
        None => return Ok(Vec::new()),
        Some(TextOr::Text(text)) if text.is_empty() => return Ok(Vec::new()),
        Some(TextOr::List(texts)) if texts.is_empty() => return Ok(Vec::new()),
        Some(TextOr::Text(text)) => Prompt::Text(text.clone()),
        Some(TextOr::List(texts)) => Prompt::Texts(texts.clone()),
    };
    let mut inputs = embeddings::encode(model, &texts)?;
    embeddings::check_inputs(&inputs)?;
    if request.truncate == Some(true) {
        let num_last = num_last_tokens(model)?;
        for input in &mut inputs {
            cut(input, num_last, model.context);
        }
    }
    Ok(inputs)
}

/// The number of tokens that the model expects after a text.
fn num_last_tokens(model: &ServedModel) -> Result<usize, ApiError> {
    let tokenizer = model.tokenizer()?;
    let around = tokenizer.encode("", EncodeOptions::default());
    let around = around.map_err(|error| ApiError::invalid("input", format!("{error}.")))?;
    Ok(around.len() - usize::from(tokenizer.adds_bos()))
}

/// Cuts the end of a text to `context` tokens; its `num_last` last tokens are not the text's, and
/// stay.
fn cut(input: &mut Vec<TokenId>, num_last: usize, context: usize) {
    if input.len() > context {
        let start = context.saturating_sub(num_last);
        input.drain(start..input.len() - num_last);
    }
}

/// The vector of a text, as long as the model makes it.
#[utoipa::path(
    post,
    path = "/api/embeddings",
    operation_id = "ollamaEmbeddings",
    tag = "Ollama",
    request_body = OllamaEmbeddingRequest,
    responses((status = 200, description = "The vector.", body = OllamaEmbedding))
)]
pub(crate) async fn embed_one(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    app.check_room()?;
    let (model, (request, inputs)) = read_and(&app, request, |app, model, bytes| {
        let request: OllamaEmbeddingRequest = body::parse(bytes, app.options.is_lenient)?;
        check_model(Some(model_name(&request.model)), app, model)?;
        embeddings::pooling(model)?;
        OllamaOptions::check_context(request.options.as_ref(), model.context)?;
        let inputs = match request.prompt.is_empty() {
            true => Ok(Vec::new()),
            false => embeddings::encode(model, &Prompt::Text(request.prompt.clone())),
        };
        let inputs = inputs.map_err(|error| error.renamed("prompt", &[("input", "prompt")]))?;
        Ok((request, inputs))
    })
    .await?;
    let asked_model = Some(model_name(&request.model).to_owned());
    let pooled = embeddings::pool(&app, &model, &inputs, asked_model, &record).await;
    let pooled = pooled.map_err(|error| error.renamed("prompt", &[("input", "prompt")]))?;
    Ok(crate::api::json(&OllamaEmbedding {
        embedding: pooled.vectors.into_iter().next().unwrap_or_default(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_text_is_cut_before_the_tokens_that_follow_it() {
        let shortened = |num_last, context| {
            let mut input: Vec<_> = (0..6).map(TokenId).collect();
            cut(&mut input, num_last, context);
            input.iter().map(|token| token.0).collect::<Vec<_>>()
        };
        assert_eq!(shortened(0, 6), [0, 1, 2, 3, 4, 5]);
        assert_eq!(shortened(0, 4), [0, 1, 2, 3]);
        assert_eq!(shortened(1, 4), [0, 1, 2, 5]);
        assert_eq!(shortened(1, 1), [5]);
    }
}
