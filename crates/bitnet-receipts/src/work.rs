//! Computes the work of a run: the multiply-accumulates of each kernel, from the model's dimensions
//! and the tokens alone, and the bytes of weights and cache that they read.
//!
//! Positions, rows and passes belong to one request on an idle engine. All layers compute every row
//! that is not in the cache. After the last layer's keys and values, only the rows whose logits are
//! needed continue: the last row of the prompt, then each decoded one.

use std::ops::{Range, RangeInclusive};

use bitnet_kernels::{BLOCK_ROWS, CONV_TAPS, DeltaShape, Kernel};
use bitnet_models::{HeadMode, KvCache, KvType};

use crate::record::{HybridRecord, ModelRecord, Receipt};
use crate::verify::GPU;

/// Columns that fill whole units of every layout: no shape takes fewer bytes for each weight.
const WHOLE_COLS: usize = 384;
/// Positions of a block of keys and values.
const BLOCK: u128 = KvCache::BLOCK as u128;

/// A kind of work, done by one or several kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkKind {
    /// Looking up token embeddings.
    Embedding,
    /// Ternary weights times a single row of activations.
    SingleRows,
    /// Ternary weights times several rows of activations.
    SeveralRows,
    /// Both kinds of products together.
    Products,
    Rotation,
    Attention,
    Logits,
    /// Estimating which logits can matter. The dimensions do not determine the number of estimates.
    Screening,
    /// Times and strengths of linear attention, which hybrid models have.
    FloatProducts,
    /// The convolution and the recurrence of linear attention.
    Recurrence,
}

impl WorkKind {
    pub(crate) const ALL: [Self; 10] = [
        Self::Embedding,
        Self::SingleRows,
        Self::SeveralRows,
        Self::Products,
        Self::Rotation,
        Self::Attention,
        Self::Logits,
        Self::Screening,
        Self::FloatProducts,
        Self::Recurrence,
    ];

    /// The work of one kernel.
    fn of(kernel: Kernel) -> Self {
        match kernel {
            Kernel::EmbeddingLookup => Self::Embedding,
            Kernel::I2sGemv
            | Kernel::Tl1Gemv
            | Kernel::Tl2Gemv
            | Kernel::SignGemv
            | Kernel::TwoBitGemv => Self::SingleRows,
            Kernel::I2sGemm
            | Kernel::Tl1Gemm
            | Kernel::Tl2Gemm
            | Kernel::SignGemm
            | Kernel::TwoBitGemm => Self::SeveralRows,
            Kernel::RopeApply => Self::Rotation,
            Kernel::AttentionReal => Self::Attention,
            Kernel::LogitsProjection => Self::Logits,
            Kernel::LogitsScreen => Self::Screening,
            Kernel::FloatGemm => Self::FloatProducts,
            Kernel::DeltaNet => Self::Recurrence,
        }
    }

    /// Whether a kernel does part of this work.
    pub(crate) fn is_done_by(self, kernel: Kernel) -> bool {
        match (self, Self::of(kernel)) {
            (Self::Products, of) => matches!(of, Self::SingleRows | Self::SeveralRows),
            (whole, of) => whole == of,
        }
    }

    /// Minimum and maximum multiply-accumulates of a run, executed and skipped ones together.
    ///
    /// The caller has checked the receipt's sizes: with dimensions up to 2^24 and fewer than 2^32
    /// tokens nothing overflows.
    pub(crate) fn macs(self, receipt: &Receipt) -> RangeInclusive<u128> {
        let ModelRecord {
            hidden,
            heads,
            kv_heads,
            head_dim,
            vocab,
            ..
        } = receipt.model;
        let [hidden, heads, kv_heads, head_dim, vocab] =
            [hidden, heads, kv_heads, head_dim, vocab].map(u128::from);
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let rows = Rows::new(receipt);
        let weights = Weights::new(&receipt.model, |rows, cols| {
            u128::from(rows) * u128::from(cols)
        });
        let (up_to_last_mixer, rest) = (weights.up_to_last_mixer, weights.last_rest);
        let alone = rows.alone() * up_to_last_mixer + rows.alone_with_logits() * rest;
        let all = rows.all() * up_to_last_mixer + rows.with_logits() * rest;
        let layers = Layers::new(&receipt.model);
        let of_row = vocab * hidden;
        let is_screened = receipt.run.head == HeadMode::Screened.name();
        let exactly = |macs| macs..=macs;
        match self {
            Self::Embedding => exactly(0),
            // The receipt does not say how many steps had a draft, so the number of single rows is
            // unknown.
            Self::SingleRows if rows.drafted > 0 => 0..=all,
            Self::SeveralRows if rows.drafted > 0 => 0..=all,
            Self::SingleRows => exactly(alone),
            Self::SeveralRows => exactly(all - alone),
            Self::Products => exactly(all),
            Self::Rotation => {
                let rotated = match receipt.model.hybrid {
                    None => queries + keys,
                    Some(hybrid) => (heads + kv_heads) * u128::from(hybrid.rotary_dim),
                };
                exactly(2 * layers.attention * rows.all() * rotated)
            }
            Self::Attention => {
                let seen = layers.whole * rows.keys_seen(rows.cached)
                    + layers.last * rows.keys_seen(rows.prompt - 1);
                // A rejected draft token has a position after the prompt, and at most one draft
                // reaches past the answer.
                let guess = layers.attention * rows.rejected();
                let last = rows.prompt + rows.generated + rows.draft_max;
                2 * queries * (seen + guess * rows.prompt)..=2 * queries * (seen + guess * last)
            }
            // Nothing needs the logits of rows after a rejected draft token.
            Self::Logits if is_screened => rows.generated * of_row..=rows.with_logits() * of_row,
            Self::Logits => exactly(rows.with_logits() * of_row),
            // Each hidden state whose logits were skipped has two planes. In the worst case every
            // logit was computed in full after that.
            Self::Screening if is_screened => {
                let skipped = receipt
                    .count(Kernel::LogitsProjection)
                    .map_or(0, |count| count.macs_skipped);
                2 * u128::from(skipped)..=3 * rows.with_logits() * of_row
            }
            Self::Screening => exactly(0),
            Self::FloatProducts => exactly(layers.linear * rows.all() * layers.times),
            Self::Recurrence => exactly(layers.linear * rows.all() * layers.recurrence),
        }
    }

    /// Maximum number of these multiply-accumulates that can be skipped: products with zeros in up,
    /// gate and down, and logits that cannot matter.
    pub(crate) fn skipped_max(self, receipt: &Receipt) -> u128 {
        let ModelRecord {
            layers,
            hidden,
            ffn,
            vocab,
            ..
        } = receipt.model;
        let [layers, hidden, ffn, vocab] = [layers, hidden, ffn, vocab].map(u128::from);
        let rows = Rows::new(receipt);
        let of_networks = |all, with_logits| 3 * hidden * ffn * ((layers - 1) * all + with_logits);
        let all = of_networks(rows.all(), rows.with_logits());
        let alone = of_networks(rows.alone(), rows.alone_with_logits());
        match self {
            Self::SingleRows if rows.drafted == 0 => alone,
            Self::SeveralRows if rows.drafted == 0 => all - alone,
            Self::SingleRows | Self::SeveralRows | Self::Products => all,
            Self::Logits if receipt.run.head == HeadMode::Screened.name() => {
                rows.with_logits() * (vocab - 1) * hidden
            }
            Self::Logits
            | Self::Embedding
            | Self::Rotation
            | Self::Attention
            | Self::Screening
            | Self::FloatProducts
            | Self::Recurrence => 0,
        }
    }

    /// Minimum and maximum bytes that `macs` multiply-accumulates read, each byte once per call.
    pub(crate) fn bytes(self, receipt: &Receipt, macs: u128) -> RangeInclusive<u128> {
        let (rows, layers) = (Rows::new(receipt), Layers::new(&receipt.model));
        let hidden = u128::from(receipt.model.hidden);
        let exactly = |bytes| bytes..=bytes;
        match self {
            Self::SingleRows => codes_min(receipt, macs)..=codes_max(receipt),
            Self::SeveralRows | Self::Products => {
                let rows_of_call = rows.chunk.min(rows.prefill()).max(rows.draft_max + 1);
                codes_min(receipt, macs) / rows_of_call..=codes_max(receipt)
            }
            Self::Attention => {
                let ModelRecord {
                    kv_heads, head_dim, ..
                } = receipt.model;
                let [kv_heads, head_dim] = [kv_heads, head_dim].map(u128::from);
                let element_bytes = if receipt.run.kv_type == KvType::F16.name() {
                    2
                } else {
                    4
                };
                let decoded = rows.keys_read_decoding();
                let all = |decoded| {
                    layers.whole * (rows.keys_read_of_prompt() + decoded)
                        + layers.last * (rows.prompt + decoded)
                };
                let bytes = |keys| 2 * keys * kv_heads * head_dim * element_bytes;
                bytes(all(*decoded.start()))..=bytes(all(*decoded.end()))
            }
            // No table takes more than 4 bytes for each number.
            Self::Embedding => 1..=4 * rows.all() * hidden,
            Self::Logits => 1..=4 * macs.max(1),
            Self::Rotation => 0..=0,
            // Each call reads all weights, or the state of the one sequence.
            Self::FloatProducts => exactly(4 * layers.linear * rows.passes() * layers.times),
            Self::Recurrence => exactly(4 * layers.linear * rows.passes() * layers.state),
            Self::Screening => 0..=u128::MAX,
        }
    }

    /// Minimum and maximum number of calls; `None` if the dimensions do not determine them.
    pub(crate) fn calls(self, receipt: &Receipt) -> Option<RangeInclusive<u128>> {
        let rows = Rows::new(receipt);
        let Layers {
            attention,
            linear,
            whole,
            last,
            ..
        } = Layers::new(&receipt.model);
        let layers = attention + linear;
        let with_logits = 1 + rows.decode_passes();
        // After the last layer's mixer only rows with logits continue.
        let rests = (layers - 1) * rows.passes() + with_logits;
        let attentions = whole * rows.passes() + last * with_logits;
        match self {
            Self::Embedding => Some(rows.passes()..=rows.passes()),
            Self::Rotation => Some(attention * rows.passes()..=attention * rows.passes()),
            Self::Attention => Some(attentions..=attentions),
            // q, k and v are one matrix or three, gate and up are one or two, output and down are
            // one each.
            Self::Products => {
                let (least, most) = (layers * rows.passes(), 3 * layers * rows.passes());
                Some(least + 3 * rests..=most + 4 * rests)
            }
            Self::Logits => Some(with_logits..=rows.with_logits()),
            // One call estimates all rows of a pass; computing single logits after that is another
            // call.
            Self::Screening if receipt.run.head == HeadMode::Screened.name() => {
                Some(with_logits..=with_logits + rows.with_logits())
            }
            Self::Screening => Some(0..=0),
            Self::FloatProducts | Self::Recurrence => {
                Some(linear * rows.passes()..=linear * rows.passes())
            }
            Self::SingleRows | Self::SeveralRows => None,
        }
    }
}

/// Minimum bytes of `weights` weights in the run's layouts.
fn codes_min(receipt: &Receipt, weights: u128) -> u128 {
    let bytes = receipt
        .run
        .layouts()
        .map(|layout| *layout.block_bytes(WHOLE_COLS).start())
        .min()
        .unwrap_or(0);
    weights * bytes as u128 / (BLOCK_ROWS * WHOLE_COLS) as u128
}

/// The bytes of weights that all passes read if each pass reads every matrix completely.
fn codes_max(receipt: &Receipt) -> u128 {
    let ModelRecord {
        layers,
        hidden,
        ffn,
        ..
    } = receipt.model;
    let bytes = Weights::new(&receipt.model, |rows, cols| {
        let blocks = receipt.run.layouts();
        // A GPU reads four words of codes at once, and an even number of scales.
        let cols = match receipt.backend.as_str() {
            GPU => cols.next_multiple_of(128),
            _ => cols,
        };
        let block = blocks.map(|layout| *layout.block_bytes(cols as usize).end());
        u128::from(rows.div_ceil(BLOCK_ROWS as u64)) * block.max().unwrap_or(0) as u128
    });
    // The copies of up by rows and of down by columns take 2 bits for each weight, in lines of 64
    // bytes. They are read instead of the weights; together they are an upper bound.
    let copies = if receipt.run.may_have_copies() {
        2 * u128::from(ffn) * 64 * u128::from(hidden.div_ceil(256))
    } else {
        0
    };
    let rows = Rows::new(receipt);
    let with_logits = 1 + rows.decode_passes();
    let of_copies = (u128::from(layers) - 1) * rows.passes() + with_logits;
    rows.passes() * bytes.up_to_last_mixer + with_logits * bytes.last_rest + of_copies * copies
}

/// The sums of a measure over the matrices of a model.
struct Weights {
    /// All but the last layer's matrices after its mixer's projections.
    up_to_last_mixer: u128,
    /// The last layer's matrices after its mixer's projections.
    last_rest: u128,
}

impl Weights {
    fn new(model: &ModelRecord, measure: impl Fn(u64, u64) -> u128) -> Self {
        let ModelRecord {
            hidden,
            ffn,
            heads,
            kv_heads,
            head_dim,
            ..
        } = *model;
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let network = 2 * measure(ffn, hidden) + measure(hidden, ffn);
        let layers = Layers::new(model);
        // In hybrid models the queries come with gates of the output.
        let gates = u128::from(model.hybrid.is_some());
        let qkv = (1 + gates) * measure(queries, hidden) + 2 * measure(keys, hidden);
        let (mut mixers, mut rests) = (layers.attention * qkv, layers.attention * network);
        rests += layers.attention * measure(hidden, queries);
        let mut last_rest = measure(hidden, queries) + network;
        if let Some(shape) = model.hybrid.map(delta_shape) {
            let (channels, inner) = (shape.channels() as u64, shape.output_len() as u64);
            mixers += layers.linear * (measure(channels, hidden) + measure(inner, hidden));
            rests += layers.linear * (measure(hidden, inner) + network);
            if layers.last == 0 {
                last_rest = measure(hidden, inner) + network;
            }
        }
        Self {
            up_to_last_mixer: mixers + rests - last_rest,
            last_rest,
        }
    }
}

fn delta_shape(hybrid: HybridRecord) -> DeltaShape {
    DeltaShape {
        key_heads: hybrid.key_heads as usize,
        value_heads: hybrid.value_heads as usize,
        head_dim: hybrid.state_dim as usize,
    }
}

/// The layers of each kind, and the work of a row in a layer of linear attention.
struct Layers {
    attention: u128,
    linear: u128,
    /// Layers of attention over all rows.
    whole: u128,
    /// 1 if the last layer is attention, over only the rows with logits.
    last: u128,
    /// Multiply-accumulates of times and strengths.
    times: u128,
    /// Multiply-accumulates of convolution and recurrence.
    recurrence: u128,
    /// Numbers of a state.
    state: u128,
}

impl Layers {
    fn new(model: &ModelRecord) -> Self {
        let layers = u128::from(model.layers);
        let Some(hybrid) = model.hybrid else {
            return Self {
                attention: layers,
                linear: 0,
                whole: layers - 1,
                last: 1,
                times: 0,
                recurrence: 0,
                state: 0,
            };
        };
        let shape = delta_shape(hybrid);
        let attention = u128::from(hybrid.attention_layers);
        let last = u128::from(hybrid.ends_with_attention);
        let products = 3 * shape.output_len() as u128 * shape.head_dim as u128;
        Self {
            attention,
            linear: layers - attention,
            whole: attention - last,
            last,
            times: 2 * u128::from(hybrid.value_heads) * u128::from(model.hidden),
            recurrence: products + (CONV_TAPS * shape.channels()) as u128,
            state: shape.state_len() as u128,
        }
    }
}

/// The rows of a run.
struct Rows {
    prompt: u128,
    cached: u128,
    generated: u128,
    chunk: u128,
    /// Whether passes over the prompt end at block borders, where states are saved.
    has_state: bool,
    /// Drafted tokens, accepted tokens of drafts, and the maximum in a step.
    drafted: u128,
    accepted: u128,
    draft_max: u128,
}

impl Rows {
    fn new(receipt: &Receipt) -> Self {
        let run = &receipt.run;
        Self {
            prompt: run.prompt_tokens.len() as u128,
            cached: u128::from(run.cached_tokens),
            generated: u128::from(receipt.tokens_generated),
            chunk: u128::from(run.prefill_chunk),
            has_state: receipt.model.hybrid.is_some(),
            drafted: u128::from(run.drafted_tokens),
            accepted: u128::from(run.accepted_tokens),
            draft_max: u128::from(run.draft),
        }
    }

    /// All rows. The last sampled token does not go through the model.
    fn all(&self) -> u128 {
        self.prefill() + self.decode_passes() + self.drafted
    }

    fn prefill(&self) -> u128 {
        self.prompt - self.cached
    }

    /// Passes after the prompt: each yields one token more than it accepts draft tokens.
    fn decode_passes(&self) -> u128 {
        self.generated - 1 - self.accepted
    }

    /// The positions that each pass over the prompt computes.
    fn of_prompt(&self) -> impl Iterator<Item = Range<u128>> {
        let mut start = self.cached;
        // The state is saved where the same prompt can resume: before its last token.
        let resume = self.prompt.saturating_sub(1) / BLOCK * BLOCK;
        std::iter::from_fn(move || {
            let first = start;
            let mut end = self.prompt.min(start + self.chunk);
            if self.has_state && start < resume && resume < end {
                end = resume;
            }
            let border = end / BLOCK * BLOCK;
            start = if self.has_state && border > start {
                border
            } else {
                end
            };
            (first < self.prompt).then_some(first..start)
        })
    }

    /// Forward passes.
    fn passes(&self) -> u128 {
        self.of_prompt().count() as u128 + self.decode_passes()
    }

    /// Rows that go through the model alone if nothing is drafted: decoded rows, and passes over
    /// one token of the prompt.
    fn alone(&self) -> u128 {
        let of_prompt = self.of_prompt();
        let alone = of_prompt.filter(|rows| rows.end - rows.start == 1).count() as u128;
        alone + self.generated - 1
    }

    /// Rows that continue alone after the last layer's keys and values if nothing is drafted.
    fn alone_with_logits(&self) -> u128 {
        self.generated
    }

    fn with_logits(&self) -> u128 {
        1 + self.decode_passes() + self.drafted
    }

    /// Rows of rejected draft tokens.
    fn rejected(&self) -> u128 {
        self.drafted - self.accepted
    }

    /// Σ keys that the passes over the prompt read: the rows of a pass read shared keys once.
    fn keys_read_of_prompt(&self) -> u128 {
        self.of_prompt().map(|rows| rows.end).sum()
    }

    /// Σ keys that the passes after the prompt read. The receipt does not say when draft tokens
    /// were accepted, so this is a range.
    fn keys_read_decoding(&self) -> RangeInclusive<u128> {
        let passes = self.decode_passes();
        let least = passes * self.prompt + passes * (passes + 1) / 2 + self.drafted;
        least..=least + self.accepted * passes.saturating_sub(1)
    }

    /// Σ (position + 1) over the rows from `first` on, without rejected draft tokens.
    fn keys_seen(&self, first: u128) -> u128 {
        let end = self.prompt + self.generated - 1;
        (first + 1 + end) * (end - first) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_counts_equal_a_simulated_run() {
        for (prompt, cached, generated, chunk) in [
            (1u64, 0u64, 1u64, 128u64),
            (7, 0, 5, 3),
            (8, 2, 4, 1),
            (9, 0, 1, 4),
            (6, 5, 9, 4),
        ] {
            let [p, c, g, k] = [prompt, cached, generated, chunk].map(u128::from);
            let rows = Rows {
                prompt: p,
                cached: c,
                generated: g,
                chunk: k,
                has_state: false,
                drafted: 0,
                accepted: 0,
                draft_max: 0,
            };
            let chunks = (0..prompt - cached).collect::<Vec<_>>();
            let alone = chunks
                .chunks(chunk as usize)
                .filter(|chunk| chunk.len() == 1)
                .count() as u64;
            assert_eq!(
                rows.alone(),
                u128::from(alone + generated - 1),
                "{prompt} {cached} {generated} {chunk}"
            );
            assert_eq!(
                rows.passes(),
                chunks.chunks(chunk as usize).len() as u128 + g - 1
            );
            let keys: u64 = (cached..prompt + generated - 1)
                .map(|position| position + 1)
                .sum();
            assert_eq!(
                rows.keys_seen(c),
                u128::from(keys),
                "{prompt} {cached} {generated} {chunk}"
            );
            let ends = chunks
                .chunks(chunk as usize)
                .map(|chunk| cached + chunk[chunk.len() - 1] + 1);
            assert_eq!(rows.keys_read_of_prompt(), u128::from(ends.sum::<u64>()));
            let read = (prompt + 1..prompt + generated).map(u128::from).sum();
            assert_eq!(rows.keys_read_decoding(), read..=read);
        }
    }
}
