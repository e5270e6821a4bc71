//! [`Usage`]: the counts of tokens in answers.

use serde::Serialize;
use utoipa::ToSchema;

/// Counts of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Tokens of the prompts, each counted once.
    pub(crate) prompt_tokens: usize,
    /// Generated tokens, including tokens that end an answer.
    pub(crate) completion_tokens: usize,
    /// The sum of both.
    pub(crate) total_tokens: usize,
    /// Details of the prompts.
    pub(crate) prompt_tokens_details: PromptTokensDetails,
    /// More about the answers of a model that thinks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) completion_tokens_details: Option<CompletionTokensDetails>,
}

/// More about the answers' tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
pub(crate) struct CompletionTokensDetails {
    /// Tokens of thinking, with the tags around it.
    pub(crate) reasoning_tokens: usize,
}

/// Details of the prompts' tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
pub(crate) struct PromptTokensDetails {
    /// Tokens of the prompts that were in the cache.
    pub(crate) cached_tokens: usize,
}
