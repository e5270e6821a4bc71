//! [`LanguageModel`]: a model's weights on a backend.

use std::collections::BTreeSet;
use std::ops::Range;

use bitnet_kernels::{BLOCK_ROWS, Packing};

use crate::backend::{Backend, DeltaLayer, HeadColumns, NeuronColumns, RmsNorm, Rotary};
use crate::config::Config;
use crate::options::{FfnSparsity, HeadMode};
use crate::source::{GATE_UP, Projection, QKV};

/// A model, ready to run.
pub struct LanguageModel<B: Backend> {
    pub(crate) config: Config,
    /// `[vocab, hidden]`
    pub(crate) embedding: B::Table,
    pub(crate) layers: Vec<Layer<B>>,
    pub(crate) ffn_sparsity: FfnSparsity,
    /// `[hidden]`
    pub(crate) output_norm: RmsNorm<B>,
    /// `[vocab, hidden]`; the embedding again if the two are tied.
    pub(crate) head: Option<B::Table>,
    /// The rotary position embedding.
    pub(crate) rotary: Rotary<B>,
    /// How the source holds the ternary weights.
    pub(crate) quantization: String,
}

/// One transformer block.
pub(crate) struct Layer<B: Backend> {
    /// `[hidden]`
    pub attention_norm: RmsNorm<B>,
    /// The mixer of tokens: attention or a recurrence.
    pub mixer: Mixer<B>,
    /// `[mixed] → [hidden]`
    pub mixer_output: B::Matrix,
    /// The norm of its input, `[mixed]`.
    pub mixer_output_norm: Option<RmsNorm<B>>,
    /// The norm of its output, `[hidden]`.
    pub mixer_post_norm: Option<RmsNorm<B>>,
    /// `[hidden]`
    pub ffn_norm: RmsNorm<B>,
    /// `[hidden] → [ffn], [ffn]`
    pub gate_up: Projections<B>,
    /// Where the neurons are in the output of `gate_up`, and which neurons these are.
    pub neurons: NeuronColumns,
    /// `[ffn]`
    pub ffn_down_norm: Option<RmsNorm<B>>,
    /// `[ffn] → [hidden]`
    pub ffn_down: B::Matrix,
    /// The norm of its output, `[hidden]`.
    pub ffn_post_norm: Option<RmsNorm<B>>,
}

/// How a layer mixes the tokens of a sequence.
pub(crate) enum Mixer<B: Backend> {
    /// Softmax attention over the cache.
    Attention(Attention<B>),
    /// Gated DeltaNet over a state.
    Linear(Linear<B>),
}

/// The weights of softmax attention.
pub(crate) struct Attention<B: Backend> {
    /// Queries, keys and values: `[hidden] → [heads · head_dim], [kv_heads · head_dim] twice`, then
    /// the gates of the output, `[heads · head_dim]`, if there are any.
    pub qkv: Projections<B>,
    /// Where the output of `qkv` has queries, keys and values.
    pub heads: HeadColumns,
    /// Where the output of `qkv` has the gates.
    pub gates: Option<Range<usize>>,
    /// Biases of queries, keys and values, if the graph has them.
    pub biases: Option<[B::Vector; 3]>,
    /// The norms over each head of queries and of keys, `[head_dim]`.
    pub head_norms: Option<[RmsNorm<B>; 2]>,
    /// Whether heads are normalised after they are rotated.
    pub rotates_first: bool,
    /// The index of this layer among the layers with keys and values.
    pub cache_layer: usize,
}

/// The weights of linear attention.
pub(crate) struct Linear<B: Backend> {
    /// Queries, keys and values, then gates: `[hidden] → [channels], [mixed]`.
    pub projections: B::Matrix,
    /// Where the output of `projections` has queries, keys and values.
    pub qkv: Range<usize>,
    /// Where it has the gates.
    pub gate: Range<usize>,
    /// Times of the decay, then strengths: `[2 · value heads, hidden]`.
    pub times: B::Vector,
    /// The constants of the recurrence.
    pub layer: DeltaLayer<B>,
}

/// Projections of one input.
pub(crate) struct Projections<B: Backend> {
    /// The columns of each projection's output. Each begins at a multiple of [`BLOCK_ROWS`].
    pub columns: Vec<Range<usize>>,
    /// The length of an output row.
    pub output_len: usize,
    pub products: Products<B>,
}

/// How projections of one input are multiplied.
pub(crate) enum Products<B: Backend> {
    /// All take the same rounded input, so they are one product.
    Stacked(B::Matrix),
    /// Each normalises the input again, with its own weights.
    Normed(Vec<(RmsNorm<B>, B::Matrix)>),
}

impl<B: Backend> Projections<B> {
    /// Projections with these numbers of rows.
    pub(crate) fn new(rows: impl Iterator<Item = usize>, products: Products<B>) -> Self {
        let (mut columns, mut output_len) = (Vec::new(), 0);
        for rows in rows {
            columns.push(output_len..output_len + rows);
            output_len += rows.next_multiple_of(BLOCK_ROWS);
        }
        Self {
            columns,
            output_len,
            products,
        }
    }

    fn matrices(&self) -> impl Iterator<Item = &B::Matrix> {
        let (stacked, normed) = match &self.products {
            Products::Stacked(matrix) => (Some(matrix), &[][..]),
            Products::Normed(products) => (None, &products[..]),
        };
        stacked
            .into_iter()
            .chain(normed.iter().map(|(_, matrix)| matrix))
    }

    /// The matrix of all projections, if they are stacked.
    pub(crate) fn stacked(&self) -> Option<&B::Matrix> {
        match &self.products {
            Products::Stacked(matrix) => Some(matrix),
            Products::Normed(_) => None,
        }
    }
}

impl<B: Backend> LanguageModel<B> {
    /// The shape of the model.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether the head is the embedding.
    #[must_use]
    pub fn is_tied(&self) -> bool {
        self.head.is_none()
    }

    /// The table that gives logits.
    #[must_use]
    pub fn head(&self) -> &B::Table {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// How logits are computed: in full or screened.
    #[must_use]
    pub fn head_mode(&self) -> HeadMode {
        if B::table_facts(self.head()).screen_bytes.is_some() {
            HeadMode::Screened
        } else {
            HeadMode::Full
        }
    }

    /// The table that tokens are looked up in.
    #[must_use]
    pub fn embedding(&self) -> &B::Table {
        &self.embedding
    }

    /// The formats of the ternary weights in the files, such as `I2_S`; several formats are joined
    /// by ` + `.
    #[must_use]
    pub fn quantization(&self) -> &str {
        &self.quantization
    }

    /// The packings of the ternary weights, such as `1.67`; `1.67+tl2` if matrices differ.
    #[must_use]
    pub fn packing(&self) -> String {
        let names: BTreeSet<&str> = self
            .matrices()
            .map(|matrix| B::matrix_facts(matrix).packing)
            .collect();
        let mut names: Vec<&str> = names.into_iter().collect();
        // Sort them in the order of the list of all packings.
        names.sort_by_key(|name| Packing::ALL.iter().position(|known| known.name() == *name));
        names.join("+")
    }

    /// Bytes of the packed ternary weights, padding included: a dense pass over the model reads
    /// them once.
    #[must_use]
    pub fn num_ternary_bytes(&self) -> usize {
        self.matrices()
            .map(|matrix| B::matrix_facts(matrix).num_bytes)
            .sum()
    }

    fn matrices(&self) -> impl Iterator<Item = &B::Matrix> {
        self.layers.iter().flat_map(|layer| {
            let (attention, linear) = match &layer.mixer {
                Mixer::Attention(attention) => (Some(attention.qkv.matrices()), None),
                Mixer::Linear(linear) => (None, Some(&linear.projections)),
            };
            let mixer = attention.into_iter().flatten().chain(linear);
            let rest = [&layer.mixer_output, &layer.ffn_down];
            mixer.chain(layer.gate_up.matrices()).chain(rest)
        })
    }

    /// Number of ternary weights of the model, including the weights of dead neurons.
    #[must_use]
    pub fn num_ternary_weights(&self) -> usize {
        let of_layer = |layer| {
            let shapes = projections_of(&self.config, layer).iter();
            let shapes = shapes.map(|projection| projection.shape(&self.config));
            shapes.map(|(rows, cols)| rows * cols).sum::<usize>()
        };
        (0..self.config.num_layers).map(of_layer).sum()
    }
}

/// The matrices of a layer.
fn projections_of(config: &Config, layer: usize) -> &'static [Projection] {
    match config.linear_layer(layer) {
        None => &Projection::ALL,
        Some(_) => &Projection::OF_LINEAR,
    }
}

/// The shapes (rows, cols) of the matrices of a layer, in the order in which a token meets them;
/// projections that are multiplied at once are one matrix.
#[must_use]
pub fn matrix_shapes(config: &Config) -> Vec<(usize, usize)> {
    let stacks: [&[Projection]; 4] = [
        &QKV,
        &[Projection::AttentionOutput],
        &GATE_UP,
        &[Projection::Down],
    ];
    let at_once = |stack: &[Projection]| {
        if config.input_norm_eps.is_some() {
            1
        } else {
            stack.len()
        }
    };
    let shape = |projections: &[Projection]| {
        let rows = projections
            .iter()
            .map(|projection| projection.shape(config).0)
            .sum();
        (rows, projections[0].shape(config).1)
    };
    stacks
        .iter()
        .flat_map(|stack| stack.chunks(at_once(stack)).map(shape))
        .collect()
}
