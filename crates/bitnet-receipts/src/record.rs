//! [`Receipt`]: the record of a run, made from the counters of the kernels that ran.
//!
//! A receipt covers one request on an idle engine whose counters were zero before it. The counts
//! must match the model's dimensions and the tokens (`work.rs`), so a receipt cannot name kernels
//! that did not run, and the digest shows any later edit. A receipt that does not pass its own
//! verification is never made.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bitnet_guard::peak_rss_bytes;
use bitnet_inference::{
    EngineFacts, Finish, ModelSource, OpenModel, Request, SamplingParams, Timings, cpu_name,
};
use bitnet_kernels::{Count, GroupCodes, Kernel, KernelSet, Packing};
use bitnet_models::{Config, FfnSparsity, LoadOptions, Tl1Tile, Tl2Tile};
use bitnet_tokenizers::TokenId;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter};

use crate::digest::{digest, model_sha256, sha256_hex, tokens_sha256};
use crate::verify::{CPU, GPU, Refusal, compute_path, verify};

/// The version of the schema that is written and verified.
pub const SCHEMA_VERSION: &str = "1.0.0";

/// The phase that runs the prompt through the model.
pub(crate) const PREFILL: &str = "prefill_forward";
/// The phase that runs sampled tokens through the model, one at a time.
pub(crate) const DECODE: &str = "decode_forward";

/// The record of a run. `docs/receipt.schema.json` describes the fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the schema describes them")]
pub struct Receipt {
    pub schema_version: String,
    pub timestamp: String,
    pub compute_path: String,
    pub backend: String,
    pub backend_summary: String,
    pub kernel_set: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceRecord>,
    pub deterministic: bool,
    pub tokens_requested: u64,
    pub tokens_generated: u64,
    pub tokens_per_second: Option<f64>,
    pub prefill_ms: f64,
    pub decode_ms: f64,
    pub first_token_ms: f64,
    pub kernels: Vec<String>,
    #[serde(deserialize_with = "without_duplicates")]
    pub kernel_counts: BTreeMap<String, KernelRecord>,
    pub environment: Environment,
    pub model: ModelRecord,
    pub run: RunRecord,
    pub prompt_tokens_sha256: String,
    pub output_tokens_sha256: String,
    pub peak_rss_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parity: Option<Parity>,
    pub digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

/// The counts of a kernel, or the time of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum KernelRecord {
    /// A kernel.
    Kernel(KernelCount),
    /// A phase.
    Phase(PhaseTime),
}

/// The counts of a kernel; see [`bitnet_kernels::Count`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the words of `Count`")]
pub struct KernelCount {
    pub calls: u64,
    pub macs: u64,
    pub macs_skipped: u64,
    pub bytes: u64,
}

impl From<Count> for KernelCount {
    fn from(
        Count {
            calls,
            macs,
            macs_skipped,
            bytes,
        }: Count,
    ) -> Self {
        Self {
            calls,
            macs,
            macs_skipped,
            bytes,
        }
    }
}

/// The time of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseTime {
    /// Milliseconds inside the forward pass.
    pub ms: f64,
}

/// The GPU that ran the kernels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the schema describes them")]
pub struct DeviceRecord {
    pub adapter: String,
    pub driver: String,
    pub interface: String,
}

/// The environment of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the schema describes them")]
pub struct Environment {
    #[serde(rename = "BITNET_VERSION")]
    pub bitnet_version: String,
    #[serde(rename = "OS")]
    pub os: String,
    #[serde(rename = "RUST_VERSION")]
    pub rust_version: String,
    #[serde(rename = "CPU")]
    pub cpu: String,
    pub threads: u64,
    #[serde(rename = "BITNET_DETERMINISTIC")]
    pub deterministic: Option<String>,
    #[serde(rename = "BITNET_SEED")]
    pub seed: Option<String>,
}

/// The model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the schema describes them")]
pub struct ModelRecord {
    pub path: String,
    pub sha256: String,
    pub quantization: String,
    pub layers: u64,
    pub hidden: u64,
    pub ffn: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    pub vocab: u64,
    pub tied: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hybrid: Option<HybridRecord>,
}

/// The layers of a model with linear attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the schema describes them")]
pub struct HybridRecord {
    pub attention_layers: u64,
    pub ends_with_attention: bool,
    pub rotary_dim: u64,
    pub key_heads: u64,
    pub value_heads: u64,
    pub state_dim: u64,
}

impl HybridRecord {
    /// The record of a configuration; `None` if it has no layers of linear attention.
    #[must_use]
    pub fn of(config: &Config) -> Option<Self> {
        let shape = config.linear.as_ref()?.shape;
        Some(Self {
            attention_layers: config.num_attention_layers() as u64,
            ends_with_attention: config.linear_layer(config.num_layers - 1).is_none(),
            rotary_dim: config.rotary_dim as u64,
            key_heads: shape.key_heads as u64,
            value_heads: shape.value_heads as u64,
            state_dim: shape.head_dim as u64,
        })
    }
}

/// The request, with everything that decides its result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the schema describes them")]
pub struct RunRecord {
    pub prompt_tokens: Vec<TokenId>,
    pub cached_tokens: u64,
    pub sampling: SamplingParams,
    pub stop_ids: Vec<TokenId>,
    pub stop_strings: Vec<String>,
    pub finish_reason: String,
    pub kv_type: String,
    pub packing: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_inputs: Option<String>,
    pub head: String,
    pub ffn_sparsity: String,
    pub prefill_chunk: u64,
    pub draft: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draft_adapts: bool,
    pub drafted_tokens: u64,
    pub accepted_tokens: u64,
    pub i2_s_form: String,
    pub tl1_tiles: Vec<[usize; 5]>,
    pub tl2_tiles: Vec<[usize; 4]>,
}

/// How close the model's logits are to another engine's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parity {
    /// The source of the other engine's logits.
    pub reference: String,
    /// The smallest cosine over all positions; `None` without a reference.
    pub cosine: Option<f64>,
    /// The share of positions where both engines have the same most probable token; `None` without
    /// a reference.
    pub exact_match_rate: Option<f64>,
    /// `ok`, `divergence`, or `rust_only` without a reference.
    pub status: String,
}

/// An ed25519 signature of the digest's 32 bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The signer's public key, 32 bytes in hexadecimal.
    pub public_key: String,
    /// The signature, 64 bytes in hexadecimal.
    pub value: String,
}

/// Facts about a run that the program knows and the engine does not.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// The path of the model, or the name of the built-in one.
    pub model_path: String,
    /// The hash of its files; see [`model_sha256`](crate::model_sha256).
    pub model_sha256: String,
    /// The options that loaded the model.
    pub load: LoadOptions,
    /// The instruction set that the user asked for by name.
    pub kernels_requested: Option<String>,
    /// Whether the user chose the seed; false if it was drawn at random.
    pub seed_given: bool,
    /// The environment variable `BITNET_DETERMINISTIC`.
    pub bitnet_deterministic: Option<String>,
    /// The environment variable `BITNET_SEED`.
    pub bitnet_seed: Option<String>,
}

impl Provenance {
    /// The facts about an open model, whose files are hashed, and about the environment, whose
    /// variables `variable` gives. The instruction set and the seed count as not chosen.
    ///
    /// # Errors
    /// If a file of the model cannot be read.
    pub fn of(
        model: &OpenModel,
        variable: impl Fn(&str) -> Option<String>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            model_path: model.source.to_string(),
            model_sha256: match &model.source {
                ModelSource::Path(path) => model_sha256(path)?,
                ModelSource::Embedded { bytes, .. } => sha256_hex(bytes),
            },
            load: model.load_options.clone(),
            kernels_requested: None,
            seed_given: false,
            bitnet_deterministic: variable("BITNET_DETERMINISTIC"),
            bitnet_seed: variable("BITNET_SEED"),
        })
    }
}

impl RunRecord {
    /// The layouts of the weights in memory.
    pub(crate) fn layouts(&self) -> impl Iterator<Item = Layout> {
        self.packing.split('+').filter_map(Layout::by_name)
    }

    /// Whether weights may have copies for sparse activations: only those with one scale do.
    pub(crate) fn may_have_copies(&self) -> bool {
        FfnSparsity::by_name(&self.ffn_sparsity) != Some(FfnSparsity::Off)
            && self
                .layouts()
                .any(|layout| matches!(layout, Layout::Packed(_)))
    }
}

/// How memory holds a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Ternary weights with one scale.
    Packed(Packing),
    /// Codes with a scale for each group of columns.
    Groups(GroupCodes),
}

impl Layout {
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        let mut groups = GroupCodes::ALL.into_iter();
        let groups = groups.find(|codes| codes.name() == name).map(Self::Groups);
        Packing::by_name(name).map(Self::Packed).or(groups)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Packed(packing) => packing.name(),
            Self::Groups(codes) => codes.name(),
        }
    }

    /// The kernels that multiply it by one row and by several.
    pub(crate) fn kernels(self) -> [Kernel; 2] {
        match self {
            Self::Packed(packing) => packing.kernels(),
            Self::Groups(codes) => codes.kernels(),
        }
    }

    /// The least and the most bytes of a block of 32 rows, scales and padding included.
    pub(crate) fn block_bytes(self, cols: usize) -> RangeInclusive<usize> {
        match self {
            Self::Packed(packing) => {
                let bytes = packing.block_bytes(cols);
                bytes..=bytes
            }
            Self::Groups(codes) => {
                // A scale belongs to 64 or 128 columns.
                let bytes = [64, 128].map(|group_cols| codes.block_bytes(cols, group_cols));
                bytes[0].min(bytes[1])..=bytes[0].max(bytes[1])
            }
        }
    }
}

impl Receipt {
    /// The receipt of a request that ran alone on an engine whose counters were zero before it.
    /// `facts` describe the engine right after the run.
    ///
    /// # Errors
    /// If the receipt does not pass verification, for instance because other requests were counted
    /// too.
    pub fn new(
        facts: &EngineFacts,
        request: &Request,
        output: &[TokenId],
        finish: &Finish,
        provenance: &Provenance,
    ) -> Result<Self, Refusal> {
        let timings = &finish.timings;
        let backend = facts.device.backend();
        let kernel_counts = kernel_counts(facts, timings, backend);
        let kernels: Vec<String> = kernel_counts.keys().cloned().collect();
        let generated = output.len() as u64;
        let room = facts.options.context.saturating_sub(request.prompt.len());
        let per_second =
            (generated > 1).then(|| (generated - 1) as f64 / timings.decode.as_secs_f64());
        let mut receipt = Self {
            schema_version: SCHEMA_VERSION.to_owned(),
            timestamp: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            compute_path: compute_path(backend, kernels.iter().map(String::as_str)).to_owned(),
            backend: backend.to_owned(),
            backend_summary: backend_summary(facts, provenance.kernels_requested.as_deref()),
            kernel_set: facts.device.kernel_names().to_owned(),
            device: facts.device.adapter().map(|gpu| DeviceRecord {
                adapter: gpu.name,
                driver: gpu.driver,
                interface: gpu.interface.to_owned(),
            }),
            deterministic: provenance.seed_given || request.sampling.temperature == 0.0,
            tokens_requested: request.max_tokens.unwrap_or(room) as u64,
            tokens_generated: generated,
            tokens_per_second: per_second,
            prefill_ms: ms(timings.prefill),
            decode_ms: ms(timings.decode),
            first_token_ms: ms(timings.first_token),
            kernels,
            kernel_counts,
            environment: environment(facts, provenance),
            model: model_record(facts, provenance),
            run: run_record(facts, request, finish, &provenance.load),
            prompt_tokens_sha256: tokens_sha256(&request.prompt),
            output_tokens_sha256: tokens_sha256(output),
            peak_rss_bytes: peak_rss_bytes(),
            parity: None,
            digest: String::new(),
            signature: None,
        };
        receipt.seal();
        verify(&receipt.to_json())
    }

    /// The counts of a kernel; `None` if it did not run.
    #[must_use]
    pub fn count(&self, kernel: Kernel) -> Option<&KernelCount> {
        match self.kernel_counts.get(&kernel_id(&self.backend, kernel)) {
            Some(KernelRecord::Kernel(count)) => Some(count),
            _ => None,
        }
    }

    /// Adds a comparison with another engine. Recomputes the digest and drops the signature.
    #[must_use]
    pub fn with_parity(mut self, parity: Parity) -> Self {
        self.parity = Some(parity);
        self.seal();
        self
    }

    /// Recomputes the digest and drops the signature, which belongs to the old digest.
    fn seal(&mut self) {
        self.signature = None;
        // Compute from the text, so that every number equals the one that a reader parses.
        let value = serde_json::from_str(&self.to_json()).expect("we wrote this JSON");
        self.digest = digest(&value);
    }

    /// The receipt as readable JSON: one line for each field, and each list on one line.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut text = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, Style::default());
        self.serialize(&mut serializer)
            .expect("JSON can hold every value of a receipt");
        text.push(b'\n');
        String::from_utf8(text).expect("JSON is UTF-8")
    }

    /// Writes the receipt atomically: a reader finds the whole file or none. Replaces the target of
    /// a symbolic link, not the link. Writes into pipes, terminals and other devices directly.
    ///
    /// # Errors
    /// If the folder or the device cannot be written to, or a link has no target.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let exists = std::fs::symlink_metadata(path).is_ok();
        if exists && !std::fs::metadata(path)?.is_file() {
            return File::options()
                .write(true)
                .open(path)?
                .write_all(self.to_json().as_bytes());
        }
        let path = &if exists {
            std::fs::canonicalize(path)?
        } else {
            path.to_owned()
        };
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
        let mut file = builder.tempfile_in(folder)?;
        file.write_all(self.to_json().as_bytes())?;
        file.persist(path)?;
        Ok(())
    }
}

/// The id of a kernel in the receipts of a backend: kernels of a GPU begin with `gpu_`, so that a
/// receipt shows where each kernel ran.
pub(crate) fn kernel_id(backend: &str, kernel: Kernel) -> String {
    match backend {
        GPU => format!("gpu_{}", kernel.id()),
        _ => kernel.id().to_owned(),
    }
}

fn backend_summary(facts: &EngineFacts, requested: Option<&str>) -> String {
    let selected = facts.device.kernel_names();
    let (requested, detected) = match facts.device.backend() {
        CPU => (
            requested,
            KernelSet::available().map(|set| set.name).collect(),
        ),
        _ => (None, vec![selected]),
    };
    let detected: Vec<&str> = detected;
    format!(
        "requested={} detected=[{}] selected={selected}",
        requested.unwrap_or("auto"),
        detected.join(", ")
    )
}

/// The counts of the kernels that ran, and the time of each phase that took any.
fn kernel_counts(
    facts: &EngineFacts,
    timings: &Timings,
    backend: &str,
) -> BTreeMap<String, KernelRecord> {
    let counts = facts.kernel_counts.iter().map(|(kernel, count)| {
        let id = kernel_id(backend, *kernel);
        (id, KernelRecord::Kernel((*count).into()))
    });
    let phases = [
        (PREFILL, timings.prefill_forward),
        (DECODE, timings.decode_forward),
    ];
    let times = phases
        .into_iter()
        .filter(|(_, time)| !time.is_zero())
        .map(|(id, time)| {
            (
                id.to_owned(),
                KernelRecord::Phase(PhaseTime { ms: ms(time) }),
            )
        });
    counts.chain(times).collect()
}

fn environment(facts: &EngineFacts, provenance: &Provenance) -> Environment {
    Environment {
        bitnet_version: env!("CARGO_PKG_VERSION").to_owned(),
        os: env!("BITNET_OS").to_owned(),
        rust_version: env!("BITNET_RUST_VERSION").to_owned(),
        cpu: cpu_name(),
        threads: facts.device.threads() as u64,
        deterministic: provenance.bitnet_deterministic.clone(),
        seed: provenance.bitnet_seed.clone(),
    }
}

fn model_record(facts: &EngineFacts, provenance: &Provenance) -> ModelRecord {
    let config = &facts.model.config;
    ModelRecord {
        path: provenance.model_path.clone(),
        sha256: provenance.model_sha256.clone(),
        quantization: facts.model.quantization.clone(),
        layers: config.num_layers as u64,
        hidden: config.hidden_size as u64,
        ffn: config.ffn_size as u64,
        heads: config.attention.heads as u64,
        kv_heads: config.attention.kv_heads as u64,
        head_dim: config.attention.head_dim as u64,
        vocab: config.vocab_size as u64,
        tied: facts.model.is_tied,
        hybrid: HybridRecord::of(config),
    }
}

fn run_record(
    facts: &EngineFacts,
    request: &Request,
    finish: &Finish,
    load: &LoadOptions,
) -> RunRecord {
    let tl1_tile = |(shape, tile): &((usize, usize), Tl1Tile)| {
        [
            shape.0,
            shape.1,
            tile.tile_rows,
            tile.block_cols,
            tile.inner_rows,
        ]
    };
    let tl2_tile = |(shape, tile): &((usize, usize), Tl2Tile)| {
        [shape.0, shape.1, tile.tile_rows, tile.block_cols]
    };
    RunRecord {
        prompt_tokens: request.prompt.clone(),
        cached_tokens: finish.timings.cached_tokens as u64,
        sampling: request.sampling.clone(),
        stop_ids: request.stop_ids.clone(),
        stop_strings: request.stop_strings.clone(),
        finish_reason: finish.reason.name().to_owned(),
        kv_type: facts.options.kv_type.name().to_owned(),
        packing: facts.model.packing.clone(),
        group_inputs: has_groups(&facts.model.packing).then(|| load.group_inputs.name().to_owned()),
        head: facts.model.head_mode.name().to_owned(),
        ffn_sparsity: facts.model.ffn_sparsity.name().to_owned(),
        prefill_chunk: facts.options.prefill_chunk as u64,
        draft: facts.options.draft_max as u64,
        draft_adapts: facts.options.draft_adapts,
        drafted_tokens: finish.timings.drafted_tokens as u64,
        accepted_tokens: finish.timings.accepted_tokens as u64,
        i2_s_form: load.i2_s_form.name().to_owned(),
        tl1_tiles: load.tl1_tiles.iter().map(tl1_tile).collect(),
        tl2_tiles: load.tl2_tiles.iter().map(tl2_tile).collect(),
    }
}

/// Whether a packing, perhaps of several layouts, has scales for groups of columns.
pub(crate) fn has_groups(packing: &str) -> bool {
    let mut layouts = packing.split('+').filter_map(Layout::by_name);
    layouts.any(|layout| matches!(layout, Layout::Groups(_)))
}

/// Milliseconds to the nanosecond.
fn ms(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e6
}

/// Reads a map and rejects duplicate keys, because readers differ in which one they use.
fn without_duplicates<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<String, KernelRecord>, D::Error> {
    struct Entries;

    impl<'de> Visitor<'de> for Entries {
        type Value = BTreeMap<String, KernelRecord>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object of kernels")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((id, record)) = entries.next_entry::<String, KernelRecord>()? {
                if map.contains_key(&id) {
                    return Err(de::Error::custom(format_args!(
                        "kernel {id} is counted twice"
                    )));
                }
                map.insert(id, record);
            }
            Ok(map)
        }
    }

    from.deserialize_map(Entries)
}

/// Formats objects over several lines and lists on one.
#[derive(Default)]
struct Style(PrettyFormatter<'static>);

impl Formatter for Style {
    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.0.begin_object(out)
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.0.end_object(out)
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.0.begin_object_key(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.0.begin_object_value(out)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.0.end_object_value(out)
    }
}
