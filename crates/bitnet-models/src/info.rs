//! [`ModelInfo`]: facts about a loaded model, for an engine, receipts and reports.

use crate::backend::Backend;
use crate::config::Config;
use crate::model::LanguageModel;
use crate::options::{FfnSparsity, HeadMode};
use crate::sparsity::FfnLayer;

/// Facts about a loaded model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// The shape of the model.
    pub config: Config,
    /// Whether the head is the embedding.
    pub is_tied: bool,
    /// The formats of the ternary weights in the files, such as `I2_S`; several formats are joined
    /// by ` + `.
    pub quantization: String,
    /// The packings of the ternary weights in memory, such as `1.67`; `1.67+tl2` if matrices
    /// differ.
    pub packing: String,
    /// How logits are computed: in full or screened.
    pub head_mode: HeadMode,
    /// Bytes of the 8-bit copy of the head, if logits are estimated first.
    pub screen_bytes: Option<usize>,
    /// The name of the format of the embedding's rows.
    pub embedding_format: &'static str,
    /// Number of ternary weights, including the weights of dead neurons.
    pub num_ternary_weights: usize,
    /// Bytes of the packed ternary weights, padding included: a dense pass reads them once.
    pub num_ternary_bytes: usize,
    /// Numbers of a sequence's recurrent state, all layers together; 0 without recurrent layers.
    pub state_len: usize,
    /// Whether decode steps skip products with zeros.
    pub ffn_sparsity: FfnSparsity,
    /// How the weights of each layer's feed-forward network are stored.
    pub ffn_layers: Vec<FfnLayer>,
}

impl ModelInfo {
    /// Number of weights of embedding, head and projections.
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        let tables = if self.is_tied { 1 } else { 2 };
        tables * self.config.vocab_size * self.config.hidden_size + self.num_ternary_weights
    }

    /// Bytes of all copies of feed-forward weights.
    #[must_use]
    pub fn ffn_copy_bytes(&self) -> usize {
        let bytes = |copy: Option<usize>| copy.unwrap_or(0);
        let layers = self.ffn_layers.iter();
        layers
            .map(|layer| bytes(layer.up_copy_bytes) + bytes(layer.down_copy_bytes))
            .sum()
    }
}

impl<B: Backend> LanguageModel<B> {
    /// Facts about this model.
    #[must_use]
    pub fn info(&self) -> ModelInfo {
        ModelInfo {
            config: self.config().clone(),
            is_tied: self.is_tied(),
            quantization: self.quantization().to_owned(),
            packing: self.packing(),
            head_mode: self.head_mode(),
            screen_bytes: B::table_facts(self.head()).screen_bytes,
            embedding_format: B::table_facts(self.embedding()).format,
            num_ternary_weights: self.num_ternary_weights(),
            num_ternary_bytes: self.num_ternary_bytes(),
            state_len: self.config().state_len(),
            ffn_sparsity: self.ffn_sparsity(),
            ffn_layers: self.ffn_layers().collect(),
        }
    }
}
