//! `/v1/embeddings`: texts to vectors.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bitnet_inference::{Piece, Pooling, normalize};
use bitnet_tokenizers::{EncodeOptions, TokenId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::fields::Prompt;
use crate::api::generate::{self, Asked, Plan};
use crate::api::{ApiError, body};
use crate::id::random_id;
use crate::record::Record;
use crate::registry::ModelLease;
use crate::served::ServedModel;
use crate::state::App;

/// Maximum number of inputs of a request, as in OpenAI's API.
const INPUTS_MAX: usize = 2048;
/// Inputs that are in the queue at once, so that a long list does not fill it.
const INPUTS_AT_ONCE: usize = 32;

/// How vectors are written.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    /// A list of numbers.
    #[default]
    Float,
    /// The bytes of the numbers, 4 each with the lowest first, in Base64.
    Base64,
}

/// Texts to turn into vectors. Unknown fields are refused with an error that names them.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct EmbeddingRequest {
    /// A text, token ids, or a list of up to 2048 of either. Token ids are taken as they are; to a
    /// text, the tokens that the model expects around it are added.
    input: Prompt,
    /// A name of the model; the served model if not given.
    model: Option<String>,
    /// `float` if not given.
    encoding_format: Option<EncodingFormat>,
    /// Return this many numbers of each vector, the first ones, scaled to length 1 again.
    #[schema(minimum = 1)]
    dimensions: Option<u32>,
    /// Names the user for the operator's records. It has no effect.
    #[expect(dead_code, reason = "accepted, and of no consequence")]
    user: Option<String>,
}

/// The vectors of a request.
#[derive(Serialize, ToSchema)]
pub(crate) struct Embeddings<'a> {
    /// `list`
    object: &'static str,
    data: Vec<Embedding>,
    model: &'a str,
    usage: EmbeddingUsage,
}

/// A vector of length 1.
#[derive(Serialize, ToSchema)]
struct Embedding {
    /// `embedding`
    object: &'static str,
    /// The index of its input.
    index: usize,
    embedding: Vector,
}

/// The numbers of a vector.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

/// The tokens of a request.
#[derive(Serialize, ToSchema)]
struct EmbeddingUsage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// The pooled hidden states of inputs, `[hidden]` each, in order, and the number of tokens.
pub(crate) struct Pooled {
    pub(crate) vectors: Vec<Vec<f32>>,
    pub(crate) num_tokens: usize,
}

impl Pooled {
    /// Shortens the vectors to `dimensions` numbers, if given, and scales them to length 1.
    pub(crate) fn scale(&mut self, dimensions: Option<u32>) {
        for vector in &mut self.vectors {
            vector.truncate(dimensions.map_or(vector.len(), |len| len as usize));
            normalize(vector);
        }
    }
}

/// The tokens of inputs.
pub(crate) fn encode(model: &ServedModel, input: &Prompt) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let tokens = |ids: &Vec<u32>| ids.iter().copied().map(TokenId).collect();
    let texts = match input {
        Prompt::Tokens(ids) => return Ok(vec![tokens(ids)]),
        Prompt::TokenLists(lists) => return Ok(lists.iter().map(tokens).collect()),
        Prompt::Text(text) => std::slice::from_ref(text),
        Prompt::Texts(texts) => texts,
    };
    let tokenizer = model.tokenizer()?;
    let encode = |text: &String| {
        let tokens = tokenizer.encode(text, EncodeOptions::default());
        tokens.map_err(|error| ApiError::invalid("input", format!("{error}.")))
    };
    texts.iter().map(encode).collect()
}

/// Refuses a list of inputs that is empty or too long.
pub(crate) fn check_inputs(inputs: &[Vec<TokenId>]) -> Result<(), ApiError> {
    let len = inputs.len();
    if (1..=INPUTS_MAX).contains(&len) {
        return Ok(());
    }
    let message = format!("'input' has {len} texts, but must have 1 to {INPUTS_MAX}.");
    Err(ApiError::invalid("input", message))
}

/// Refuses a number of dimensions that a vector of `len` numbers cannot be shortened to.
pub(crate) fn check_dimensions(dimensions: Option<u32>, len: usize) -> Result<(), ApiError> {
    match dimensions {
        Some(dimensions) if !(1..=len).contains(&(dimensions as usize)) => {
            let message = format!("'dimensions' is {dimensions}, but must be 1 to {len}.");
            Err(ApiError::invalid("dimensions", message))
        }
        _ => Ok(()),
    }
}

/// Computes the pooled hidden states of inputs. `asked_model`: the model's name in the request.
pub(crate) async fn pool(
    app: &App,
    model: &ModelLease,
    inputs: &[Vec<TokenId>],
    asked_model: Option<String>,
    record: &Arc<Record>,
) -> Result<Pooled, ApiError> {
    let plan = Plan::for_embeddings(pooling(model)?, asked_model);
    let (id, start) = (random_id("embd-"), Instant::now());
    let (mut vectors, mut num_tokens) = (Vec::new(), 0);
    for prompts in inputs.chunks(INPUTS_AT_ONCE) {
        let asked = Asked {
            plan: &plan,
            prompts,
            param: "input",
            operation: "embeddings",
            response_id: &id,
        };
        let mut answers = generate::submit(app, model, &asked, record)?;
        answers.continue_request(start, num_tokens);
        let first = vectors.len();
        vectors.resize(first + prompts.len(), Vec::new());
        while let Some((index, piece)) = answers.next().await? {
            if let Piece::End { finish, .. } = piece {
                answers.finished(index, finish.reason.name(), None);
                vectors[first + index] = finish.pooled.unwrap_or_default();
            }
        }
        num_tokens += prompts.iter().map(Vec::len).sum::<usize>();
    }
    Ok(Pooled {
        vectors,
        num_tokens,
    })
}

/// How the model pools; an error if neither its file nor the operator says.
pub(crate) fn pooling(model: &ServedModel) -> Result<Pooling, ApiError> {
    model.pooling.ok_or_else(|| {
        let message = format!(
            "'{}' is not an embedding model. To pool its hidden states, start the server with --pooling last, mean or cls.",
            model.name()
        );
        ApiError::unsupported(None, message)
    })
}

/// The vectors of texts.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    operation_id = "createEmbedding",
    tag = "OpenAI",
    request_body = EmbeddingRequest,
    responses((status = 200, description = "The vectors.", body = Embeddings<'_>))
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    app.check_room()?;
    let (model, (request, inputs)) = generate::read_and(&app, request, |app, model, bytes| {
        let request: EmbeddingRequest = body::parse(bytes, app.options.is_lenient)?;
        generate::check_model(request.model.as_deref(), app, model)?;
        // Refuse before any work.
        pooling(model)?;
        check_dimensions(request.dimensions, model.hidden_size)?;
        let inputs = encode(model, &request.input)?;
        check_inputs(&inputs)?;
        Ok((request, inputs))
    })
    .await?;
    let mut pooled = pool(&app, &model, &inputs, request.model, &record).await?;
    pooled.scale(request.dimensions);
    let format = request.encoding_format.unwrap_or_default();
    let data = pooled.vectors.into_iter().enumerate();
    let data = data.map(|(index, vector)| Embedding {
        object: "embedding",
        index,
        embedding: match format {
            EncodingFormat::Float => Vector::Float(vector),
            EncodingFormat::Base64 => Vector::Base64(base64(&vector)),
        },
    });
    Ok(super::json(&Embeddings {
        object: "list",
        data: data.collect(),
        model: model.name(),
        usage: EmbeddingUsage {
            prompt_tokens: pooled.num_tokens,
            total_tokens: pooled.num_tokens,
        },
    }))
}

fn base64(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_has_the_little_endian_bytes_of_each_number() {
        // Python: base64.b64encode(struct.pack("<3f", 1.0, -0.5, 0.0))
        assert_eq!(base64(&[1.0, -0.5, 0.0]), "AACAPwAAAL8AAAAA");
    }

    #[test]
    fn vectors_are_shortened_to_1_number_or_more() {
        let is_valid = |dimensions| check_dimensions(dimensions, 3).is_ok();
        assert_eq!(
            [None, Some(0), Some(1), Some(3), Some(4)].map(is_valid),
            [true, false, true, true, false]
        );
    }
}
