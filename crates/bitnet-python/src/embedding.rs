//! Embeddings of texts: pooled hidden states.

use bitnet_inference::{Driver, Failure, Request, normalize};
use bitnet_models::Pooling;
use bitnet_tokenizers::{EncodeOptions, TokenId, Tokenizer};
use pyo3::PyErr;

use crate::error;

/// How texts become vectors.
#[derive(Clone, Copy)]
pub(crate) struct Embedding {
    pub(crate) pooling: Pooling,
    /// Number of values to keep of each vector, the first ones.
    pub(crate) dimensions: usize,
    /// Whether vectors are scaled to length 1.
    pub(crate) is_normalized: bool,
}

/// Why texts have no vectors.
pub(crate) enum NoVectors {
    Tokens(bitnet_tokenizers::Error),
    Stopped(bitnet_inference::Error),
    /// The index of the text, and its failure.
    Text(usize, Box<Failure>),
    Cancelled,
}

impl From<NoVectors> for PyErr {
    fn from(problem: NoVectors) -> Self {
        match problem {
            NoVectors::Tokens(problem) => error::request(problem),
            NoVectors::Stopped(problem) => error::call(problem),
            NoVectors::Text(index, failure) => match *failure {
                Failure::Refused(problem) => error::argument(format!("text {index}: {problem}")),
                failure => error::failure(failure),
            },
            NoVectors::Cancelled => error::engine("the computation was cancelled"),
        }
    }
}

impl Embedding {
    /// The vectors of texts, one after the other: `[texts, dimensions]`. The texts run together.
    /// After each text, it asks `is_cancelled`.
    pub(crate) fn vectors(
        self,
        texts: &[String],
        tokenizer: &Tokenizer,
        driver: &Driver,
        is_cancelled: impl Fn() -> bool,
    ) -> Result<Vec<f32>, NoVectors> {
        let mut answers = Vec::with_capacity(texts.len());
        for text in texts {
            let prompt = tokenizer.encode(text, EncodeOptions::default());
            let prompt = prompt.map_err(NoVectors::Tokens)?;
            let answer = driver.stream(self.request(prompt));
            answers.push(answer.map_err(NoVectors::Stopped)?);
        }
        let mut values = Vec::with_capacity(texts.len() * self.dimensions);
        for (index, answer) in answers.into_iter().enumerate() {
            let answer = answer.wait();
            if is_cancelled() {
                return Err(NoVectors::Cancelled);
            }
            let finish = answer
                .map_err(|failure| NoVectors::Text(index, Box::new(failure)))?
                .finish;
            let mut vector = finish.pooled.expect("the request asks for a vector");
            vector.truncate(self.dimensions);
            if self.is_normalized {
                normalize(&mut vector);
            }
            values.extend(vector);
        }
        Ok(values)
    }

    fn request(self, prompt: Vec<TokenId>) -> Request {
        Request {
            prompt,
            max_tokens: Some(0),
            pooling: Some(self.pooling),
            ..Request::default()
        }
    }
}
