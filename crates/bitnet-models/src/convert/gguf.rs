//! Writes a model as a GGUF file.

use std::ops::Range;
use std::path::Path;

use bitnet_files::gguf::{Gguf, GgufWriter, MetadataValue, TensorInfo, TensorType};
use bitnet_files::{Checksum, Output, Replace, shown};
use bitnet_kernels::Pool;
use bitnet_quantization::dense::Dense;
use bitnet_quantization::i2_s::Form;
use bitnet_quantization::tq::{self, Kind};
use bitnet_quantization::{GroupFormat, TernaryFormat, tl1, tl2};

use super::groups::{self, GroupWriter};
use super::tables::{BATCH_WEIGHTS, write_table};
use super::{ConvertOptions, Input, Meter, Opened, Phase, ProgressFn, Report, WeightType};
use crate::config::{Architecture, Config, RopePairs};
use crate::error::{Error, Result};
use crate::huggingface::Checkpoint;
use crate::source::gguf::{
    ROPE_FACTORS, ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, name as gguf_name, tile_pair,
};
use crate::source::slots::slots;
use crate::source::{
    Codes, GroupTensor, LayerSlot, Projection, RopeFactors, Slot, Source, TernaryTensor,
};

/// A metadata pair to write.
type Pair = (String, MetadataValue);

/// Writes a model to `path` as GGUF: projections and tables as the options say, norms in F32.
///
/// `pairs` are metadata, such as a tokenizer's, that replace the pairs of a GGUF source with the
/// same keys; its other pairs are kept. Reads the source once, float weights twice.
///
/// # Errors
/// If the model cannot be loaded, the types cannot hold it, the file exists, or the system refuses.
/// An error leaves no files behind.
pub fn to_gguf(
    input: Input<'_>,
    path: &Path,
    options: &ConvertOptions,
    pairs: &[Pair],
    pool: &Pool,
    progress: &mut ProgressFn<'_>,
) -> Result<Report> {
    let replace = if options.force {
        Replace::Only(|_| false)
    } else {
        Replace::Nothing
    };
    let opened = input.open()?;
    let source = opened.source();
    source.check_tensors()?;
    let config = source.config();
    let rope_factors = source.rope_factors()?;
    let keep_tables = matches!(opened, Opened::Gguf(_));
    let factors = rope_factors.as_ref().map_or_else(Vec::new, rope_tensors);
    let names: Vec<&str> = factors.iter().map(|(name, _)| *name).collect();
    let plan = plan(source, keep_tables, &names, options, pool)?;
    let infos: Vec<TensorInfo> = plan.iter().map(|item| item.info.clone()).collect();
    let bytes_total = infos
        .iter()
        .map(TensorInfo::num_bytes)
        .sum::<bitnet_files::Result<usize>>()?;
    let metadata = metadata(&opened, options, &plan, pairs);

    let output = Output::file(path, replace)?;
    let writer = GgufWriter::new(output.handle()?, output.partial(), &metadata, infos)?;
    let meter = Meter {
        progress,
        phase: Phase::Writing,
        bytes_done: 0,
        bytes_total,
    };
    let report = Report {
        tensor_bytes: bytes_total,
        ..Report::default()
    };
    let mut conversion = Conversion {
        source,
        options,
        pool,
        writer,
        meter,
        report,
    };
    for item in &plan {
        conversion.item(item, &factors)?;
    }
    let Conversion {
        writer,
        mut meter,
        report,
        ..
    } = conversion;
    let written = writer.finish()?;
    meter.start_checking();
    let expected = expected_config(&opened, config);
    read_back(output.partial(), &expected, &metadata, &written, &mut meter)?;
    output.commit()?;
    Ok(report)
}

/// The configuration that the output file must have.
fn expected_config(opened: &Opened<'_>, config: &Config) -> Config {
    match opened {
        Opened::Checkpoint(_) => Config {
            architecture_name: config.architecture.gguf_name().to_owned(),
            rope_pairs: config.architecture.gguf_rope_pairs(),
            ..config.clone()
        },
        Opened::Gguf(_) => config.clone(),
    }
}

/// A tensor of the output file.
struct Item {
    /// `None` for the rope factors.
    slot: Option<Slot>,
    info: TensorInfo,
    stored: Stored,
}

/// How a tensor's elements are stored.
#[derive(Clone, Copy, PartialEq)]
enum Stored {
    Ternary(TernaryFormat),
    /// A table with group scales.
    Group(GroupFormat),
    Floats(Dense),
}

impl Stored {
    fn dtype(self) -> TensorType {
        match self {
            Self::Ternary(format) => format.into(),
            Self::Group(format) => format.into(),
            Self::Floats(format) => format.into(),
        }
    }
}

/// The tensors of rotary factors.
fn rope_tensors(factors: &RopeFactors) -> Vec<(&'static str, &[f32])> {
    match &factors.long {
        None => vec![(ROPE_FACTORS, &factors.divisors)],
        Some(long) => vec![
            (ROPE_FACTORS_LONG, long),
            (ROPE_FACTORS_SHORT, &factors.divisors),
        ],
    }
}

/// The tensors in the order they are written.
fn plan(
    source: &dyn Source,
    keep_tables: bool,
    rope_factors: &[&str],
    options: &ConvertOptions,
    pool: &Pool,
) -> Result<Vec<Item>> {
    let config = source.config();
    let mut plan = Vec::new();
    for slot in slots(source) {
        let (stored, dims) = match slot {
            Slot::Embedding | Slot::Head => (
                stored_table(source, slot, keep_tables, options, pool)?,
                vec![config.hidden_size, config.vocab_size],
            ),
            Slot::OutputNorm => (Stored::Floats(Dense::F32), vec![config.hidden_size]),
            Slot::Layer(_, LayerSlot::Weight(projection)) => {
                let (rows, cols) = projection.shape(config);
                (
                    stored_weights(options.weights, projection, rows, cols)?,
                    vec![cols, rows],
                )
            }
            Slot::Layer(_, slot) => (Stored::Floats(Dense::F32), slot.dims(config)),
        };
        let Some(name) = gguf_name(slot, config.architecture) else {
            let problem =
                "use_rms_norm: the GGUF graphs have no norm for each projection".to_owned();
            return Err(Error::Convert { problem });
        };
        plan.push(Item {
            slot: Some(slot),
            info: TensorInfo {
                name,
                dtype: stored.dtype(),
                dims,
            },
            stored,
        });
        if slot == Slot::Embedding {
            let stored = Stored::Floats(Dense::F32);
            plan.extend(rope_factors.iter().map(|name| Item {
                slot: None,
                info: TensorInfo {
                    name: (*name).to_owned(),
                    dtype: stored.dtype(),
                    dims: vec![config.attention.head_dim / 2],
                },
                stored,
            }));
        }
    }
    Ok(plan)
}

/// How a table is stored. keep: as it is, unless the options say otherwise.
fn stored_table(
    source: &dyn Source,
    slot: Slot,
    keep: bool,
    options: &ConvertOptions,
    pool: &Pool,
) -> Result<Stored> {
    let config = source.config();
    let (rows, cols) = (config.vocab_size, config.hidden_size);
    let float = match options.weights {
        WeightType::F32 => Some(Dense::F32),
        WeightType::BF16 => Some(Dense::BF16),
        WeightType::F16 => Some(Dense::F16),
        _ => None,
    };
    if let Some(tables) = options.tables {
        return Ok(Stored::Floats(tables.format()));
    }
    if let Some(table) = group_table(source, slot, pool)? {
        let to = options.weights.group();
        return Ok(match (to, float) {
            (Some(to), _) if cols.is_multiple_of(to.group_len()) => Stored::Group(to),
            (_, Some(float)) => Stored::Floats(float),
            _ => Stored::Group(table.format),
        });
    }
    if keep {
        return Ok(Stored::Floats(source.table(slot, rows, cols)?.format()));
    }
    Ok(Stored::Floats(float.unwrap_or(Dense::F16)))
}

/// The embedding or the head, if it has group scales and its graph is not one of BitNet's.
fn group_table(source: &dyn Source, slot: Slot, pool: &Pool) -> Result<Option<GroupTensor>> {
    let config = source.config();
    if config.architecture.has_matrix_scales() {
        return Ok(None);
    }
    source.grouped(slot, config.vocab_size, config.hidden_size, true, pool)
}

/// The way that a type stores a projection, or the reason why it cannot.
fn stored_weights(
    weights: WeightType,
    projection: Projection,
    rows: usize,
    cols: usize,
) -> Result<Stored> {
    let refuse = |what: String| {
        Err(Error::Convert {
            problem: format!("{projection:?} {what}"),
        })
    };
    let multiple = |format, multiple| match cols.is_multiple_of(multiple) {
        true => Ok(Stored::Ternary(format)),
        false => refuse(format!(
            "has {cols} columns, {} needs a multiple of {multiple}",
            weights.dtype()
        )),
    };
    let group = |format: GroupFormat| multiple(TernaryFormat::Group(format), format.group_len());
    let tiled = |format: Option<TernaryFormat>| match format {
        Some(format) => Ok(Stored::Ternary(format)),
        None => refuse(format!(
            "has shape [{rows}, {cols}], which no tile of {} divides",
            weights.dtype()
        )),
    };
    match weights {
        WeightType::I2_S => multiple(TernaryFormat::I2_S(Form::Block128), 128),
        WeightType::TQ1_0 => multiple(TernaryFormat::TQ(Kind::TQ1_0), tq::BLOCK_LEN),
        WeightType::TQ2_0 => multiple(TernaryFormat::TQ(Kind::TQ2_0), tq::BLOCK_LEN),
        WeightType::Q1_0 => group(GroupFormat::Q1_0),
        WeightType::Q2_0 => group(GroupFormat::Q2_0),
        WeightType::PQ2_0 => group(GroupFormat::PQ2_0),
        WeightType::PTQ1_0 => group(GroupFormat::PTQ1_0),
        WeightType::TL1 => tiled(tl1::Tile::choose(rows, cols).map(TernaryFormat::TL1)),
        WeightType::TL2 => tiled(tl2::Tile::choose(rows, cols).map(TernaryFormat::TL2)),
        WeightType::F16 => Ok(Stored::Floats(Dense::F16)),
        WeightType::BF16 => Ok(Stored::Floats(Dense::BF16)),
        WeightType::F32 => Ok(Stored::Floats(Dense::F32)),
    }
}

/// All pairs of the output file, in order.
fn metadata(
    opened: &Opened<'_>,
    options: &ConvertOptions,
    plan: &[Item],
    pairs: &[Pair],
) -> Vec<Pair> {
    let mut set = vec![
        (
            "general.file_type".to_owned(),
            MetadataValue::U32(options.weights.dtype().file_type()),
        ),
        (
            "general.quantization_version".to_owned(),
            MetadataValue::U32(2),
        ),
    ];
    let name = |name: &str| {
        (
            "general.name".to_owned(),
            MetadataValue::String(name.to_owned()),
        )
    };
    let mut out: Vec<Pair> = match opened {
        Opened::Checkpoint(checkpoint) => {
            set.push(name(
                &options.name.clone().unwrap_or_else(|| name_of(checkpoint)),
            ));
            let has_longrope = plan.iter().any(|item| item.info.name == ROPE_FACTORS_LONG);
            model_metadata(checkpoint.config(), has_longrope)
        }
        Opened::Gguf(source) => {
            set.extend(options.name.as_deref().map(name));
            let kept = source
                .metadata()
                .iter()
                .filter(|(key, _)| !is_about_the_file(key));
            kept.map(|(key, value)| (key.to_owned(), value.into()))
                .collect()
        }
    };
    for item in plan {
        if let Stored::Ternary(format) = item.stored
            && let Some(pair) = tile_pair(format, item.info.dims[1], item.info.dims[0])
            && !set.contains(&pair)
        {
            set.push(pair);
        }
    }
    set.extend_from_slice(pairs);
    for (key, value) in set {
        match out.iter_mut().find(|(known, _)| *known == key) {
            Some(pair) => pair.1 = value,
            None => out.push((key, value)),
        }
    }
    out
}

/// Whether a key describes the source file itself, not the model.
fn is_about_the_file(key: &str) -> bool {
    key == "general.alignment"
        || ["split.", "bitnet.tl1.tile.", "bitnet.tl2.tile."]
            .iter()
            .any(|p| key.starts_with(p))
}

fn name_of(checkpoint: &Checkpoint) -> String {
    let directory = std::fs::canonicalize(checkpoint.path()).unwrap_or_default();
    let directory = directory
        .file_name()
        .map(|name| shown(&name.to_string_lossy()));
    checkpoint
        .config()
        .name
        .clone()
        .or(directory)
        .unwrap_or_else(|| "model".into())
}

/// The model's keys, as other converters write them.
fn model_metadata(config: &Config, has_longrope: bool) -> Vec<Pair> {
    use MetadataValue::{F32, String as Text, U32};
    let architecture = config.architecture.gguf_name();
    let size = |size: usize| U32(u32::try_from(size).unwrap_or(u32::MAX)); // sizes were checked to be far below
    let attention = config.attention;
    let mut pairs = vec![
        (
            "general.architecture".to_owned(),
            Text(architecture.to_owned()),
        ),
        // The caller sets the values of these keys.
        ("general.name".to_owned(), Text(String::new())),
        ("general.file_type".to_owned(), U32(0)),
        ("general.quantization_version".to_owned(), U32(2)),
    ];
    let mut key = |key: &str, value| pairs.push((format!("{architecture}.{key}"), value));
    key("vocab_size", size(config.vocab_size));
    key("context_length", size(config.context_length));
    key("embedding_length", size(config.hidden_size));
    key("block_count", size(config.num_layers));
    key("feed_forward_length", size(config.ffn_size));
    key("attention.head_count", size(attention.heads));
    key("attention.head_count_kv", size(attention.kv_heads));
    key("attention.layer_norm_rms_epsilon", F32(config.rms_norm_eps));
    key("rope.freq_base", F32(config.rope_theta));
    key("rope.dimension_count", size(attention.head_dim));
    let is_usual = attention.heads * attention.head_dim == config.hidden_size;
    if !is_usual || config.architecture.has_head_norms() {
        key("attention.key_length", size(attention.head_dim));
        key("attention.value_length", size(attention.head_dim));
    }
    if config.architecture == Architecture::MiniCpm {
        let multipliers = config.multipliers;
        key("embedding_scale", F32(multipliers.embedding));
        key("residual_scale", F32(multipliers.residual));
        key("logit_scale", F32(multipliers.logits));
    }
    if has_longrope {
        key("rope.scaling.type", Text("longrope".to_owned()));
        key(
            "rope.scaling.original_context_length",
            size(config.context_length),
        );
    }
    if config.rope_scaling_factor != 1.0 {
        key("rope.scaling.type", Text("linear".to_owned()));
        key("rope.scaling.factor", F32(config.rope_scaling_factor));
    }
    if let Some(yarn) = &config.yarn {
        key("rope.scaling.type", Text("yarn".to_owned()));
        key("rope.scaling.factor", F32(yarn.factor));
        let original = yarn.original_context as usize;
        key("rope.scaling.original_context_length", size(original));
        for (name, value, default) in [
            ("attn_factor", yarn.attn_factor, 1.0),
            ("beta_fast", yarn.beta_fast, 32.0),
            ("beta_slow", yarn.beta_slow, 1.0),
        ] {
            if value != default {
                key(&format!("rope.scaling.yarn_{name}"), F32(value));
            }
        }
    }
    pairs
}

/// A conversion in progress.
struct Conversion<'a, 'b, 'c> {
    source: &'a dyn Source,
    options: &'a ConvertOptions,
    pool: &'a Pool,
    writer: GgufWriter,
    meter: Meter<'b, 'c>,
    report: Report,
}

impl Conversion<'_, '_, '_> {
    fn item(&mut self, item: &Item, rope_factors: &[(&str, &[f32])]) -> Result<()> {
        let info = self.writer.begin_tensor()?.clone();
        let config = self.source.config();
        let Some(slot) = item.slot else {
            let factors = rope_factors.iter().find(|(name, _)| *name == info.name);
            return self.floats(&info, factors.map_or(&[], |(_, values)| values));
        };
        match (slot, item.stored) {
            (Slot::Embedding | Slot::Head, stored) => self.table(slot, &info, stored),
            (Slot::Layer(index, LayerSlot::Weight(projection)), stored) => {
                let (rows, cols) = projection.shape(config);
                let interleaves = config.architecture.gguf_rope_pairs() == RopePairs::Interleaved;
                let interleave =
                    (projection.is_rotated() && interleaves).then_some(config.attention.head_dim);
                if self.groups(slot, &info, stored, interleave)? {
                    return Ok(());
                }
                let tensor = self
                    .source
                    .projection(index, projection, rows, cols, self.pool)?;
                if let (Codes::Absmean { .. }, Some(to)) = (tensor.codes, self.rule()) {
                    let table = self.source.table(slot, rows, cols)?;
                    let mut write = |bytes: &[u8]| self.write(&info, bytes);
                    return groups::quantize(&info.name, &table, to, &mut write);
                }
                let weights = Weights {
                    tensor: &tensor,
                    interleave,
                };
                self.weights(&info, &weights, stored)
            }
            _ => {
                let values = match info.dims[..] {
                    [cols, rows] => self.source.floats(slot, rows, cols)?,
                    _ => self.source.vector(slot, info.dims[0])?,
                };
                self.floats(&info, &values)
            }
        }
    }

    /// The target whose rule quantizes float projections, if one does.
    fn rule(&self) -> Option<GroupFormat> {
        let is_bitnet = self.source.config().architecture.has_matrix_scales();
        self.options.weights.group().filter(|_| !is_bitnet)
    }

    /// Writes the embedding or the head.
    fn table(&mut self, slot: Slot, info: &TensorInfo, stored: Stored) -> Result<()> {
        let config = self.source.config();
        let (rows, cols) = (config.vocab_size, config.hidden_size);
        let is_quantized = matches!(stored, Stored::Floats(Dense::Q8_0 | Dense::Q6_K));
        let grouped = group_table(self.source, slot, self.pool)?;
        let table = match grouped {
            Some(tensor) if !is_quantized => {
                let rows = GroupWriter {
                    tensor: &tensor,
                    interleave: None,
                };
                let mut write = |bytes: &[u8]| self.write(info, bytes);
                return match stored {
                    Stored::Floats(format) => rows.floats(format, &mut write),
                    Stored::Group(to) | Stored::Ternary(TernaryFormat::Group(to)) => {
                        rows.repack(to, &mut write)
                    }
                    Stored::Ternary(_) => unreachable!("tables are no ternary matrices"),
                };
            }
            Some(tensor) => tensor.into_table()?,
            None => self.source.table(slot, rows, cols)?,
        };
        let Stored::Floats(format) = stored else {
            unreachable!("only tables with group scales are stored with them")
        };
        let pool = self.pool;
        write_table(&info.name, &table, format, pool, &mut |bytes| {
            self.write(info, bytes)
        })
    }

    /// Writes a projection that has group scales without loss. False if it has none, or if all its
    /// scales are equal and the target stores one.
    fn groups(
        &mut self,
        slot: Slot,
        info: &TensorInfo,
        stored: Stored,
        interleave: Option<usize>,
    ) -> Result<bool> {
        let (rows, cols) = (info.dims[1], info.dims[0]);
        let rounds = self.source.rounds_floats() && self.rule().is_some();
        let tensor = match self.source.grouped(slot, rows, cols, false, self.pool) {
            Ok(Some(tensor)) => tensor,
            Ok(None) => return Ok(false),
            // The caller quantizes these floats.
            Err(_) if rounds => return Ok(false),
            Err(error) => return Err(error),
        };
        let rows = GroupWriter {
            tensor: &tensor,
            interleave,
        };
        let mut write = |bytes: &[u8]| self.write(info, bytes);
        match stored {
            Stored::Ternary(TernaryFormat::Group(to)) => rows.repack(to, &mut write)?,
            Stored::Ternary(TernaryFormat::TQ(kind)) => {
                rows.repack(GroupFormat::TQ(kind), &mut write)?;
            }
            Stored::Floats(format) => rows.floats(format, &mut write)?,
            Stored::Ternary(_) | Stored::Group(_) => return Ok(false),
        }
        Ok(true)
    }

    fn write(&mut self, info: &TensorInfo, bytes: &[u8]) -> Result<()> {
        self.writer.write(bytes)?;
        self.meter.advance(&info.name, bytes.len())
    }

    fn floats(&mut self, info: &TensorInfo, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.write(info, &bytes)
    }

    fn weights(&mut self, info: &TensorInfo, weights: &Weights<'_>, stored: Stored) -> Result<()> {
        let scale =
            self.report
                .note_scale(&info.name, self.options.weights, weights.tensor.scale)?;
        weights.tensor.data.advise_sequential();
        match stored {
            Stored::Ternary(TernaryFormat::TL1(tile)) => {
                self.tiles(info, weights, tile.tile_rows, &|weights, range, out| {
                    let (rows, cols) = (info.dims[1], info.dims[0]);
                    tl1::pack_rows(weights, tile, rows, cols, range, scale, out)
                })
            }
            Stored::Ternary(TernaryFormat::TL2(tile)) => {
                self.tiles(info, weights, tile.tile_rows, &|weights, range, out| {
                    let (rows, cols) = (info.dims[1], info.dims[0]);
                    tl2::pack_rows(weights, tile, rows, cols, range, scale, out)
                })
            }
            Stored::Ternary(format) => self.ternary_rows(info, weights, format, scale),
            Stored::Floats(format) => self.float_rows(info, weights, format, scale),
            Stored::Group(_) => unreachable!("projections are planned as ternary ones"),
        }
    }

    /// Packs tiles of rows into the bytes of the whole tensor, over which tiles are scattered.
    fn tiles(
        &mut self,
        info: &TensorInfo,
        weights: &Weights<'_>,
        tile_rows: usize,
        pack: &PackRows<'_>,
    ) -> Result<()> {
        let (rows, cols) = (info.dims[1], info.dims[0]);
        let mut out = vec![0; info.num_bytes()?];
        let batch = (BATCH_WEIGHTS / cols / tile_rows).max(1) * tile_rows;
        weights.for_each_batch(batch, rows, cols, &mut |range, weights| {
            pack(weights, range, &mut out).map_err(|source| Error::Tensor {
                tensor: info.name.clone(),
                source,
            })
        })?;
        self.write(info, &out)
    }

    /// Packs some rows at a time: blocks end where rows end, so the pieces can be written one after
    /// the other.
    fn ternary_rows(
        &mut self,
        info: &TensorInfo,
        weights: &Weights<'_>,
        format: TernaryFormat,
        scale: f32,
    ) -> Result<()> {
        let (rows, cols) = (info.dims[1], info.dims[0]);
        let of_tensor = |source| Error::Tensor {
            tensor: info.name.clone(),
            source,
        };
        let mut packed = Vec::new();
        weights.for_each_batch(BATCH_WEIGHTS / cols, rows, cols, &mut |range, weights| {
            packed.resize(format.size_bytes(range.len(), cols).map_err(of_tensor)?, 0);
            format
                .pack(weights, range.len(), cols, scale, &mut packed)
                .map_err(of_tensor)?;
            let codes = match format {
                // The scale is stored once, behind all codes.
                TernaryFormat::I2_S(_) if range.end < rows => range.len() * cols / 4,
                _ => packed.len(),
            };
            self.write(info, &packed[..codes])
        })
    }

    fn float_rows(
        &mut self,
        info: &TensorInfo,
        weights: &Weights<'_>,
        format: Dense,
        scale: f32,
    ) -> Result<()> {
        let (rows, cols) = (info.dims[1], info.dims[0]);
        let of_tensor = |source| Error::Tensor {
            tensor: info.name.clone(),
            source,
        };
        let (mut values, mut bytes) = (Vec::new(), Vec::new());
        weights.for_each_batch(BATCH_WEIGHTS / cols, rows, cols, &mut |range, weights| {
            values.clear();
            values.extend(weights.iter().map(|w| f32::from(*w) * scale));
            bytes.resize(format.size_bytes(range.len(), cols).map_err(of_tensor)?, 0);
            format.quantize(&values, &mut bytes).map_err(of_tensor)?;
            self.write(info, &bytes)
        })
    }
}

/// Packs rows of weights into a whole tensor's bytes.
type PackRows<'a> = dyn Fn(&[i8], Range<usize>, &mut [u8]) -> bitnet_quantization::Result<()> + 'a;

/// Takes some rows of weights.
type VisitRows<'a> = dyn FnMut(Range<usize>, &[i8]) -> Result<()> + 'a;

/// A projection's weights in the order of the output file.
struct Weights<'a> {
    tensor: &'a TernaryTensor,
    /// The head size, if the output file keeps the two elements of a rotated pair side by side.
    interleave: Option<usize>,
}

impl Weights<'_> {
    /// Calls `visit` with consecutive runs of at least one and at most `batch` rows.
    fn for_each_batch(
        &self,
        batch: usize,
        rows: usize,
        cols: usize,
        visit: &mut VisitRows<'_>,
    ) -> Result<()> {
        let batch = batch.clamp(1, rows);
        let mut weights = vec![0i8; batch * cols];
        for first in (0..rows).step_by(batch) {
            let range = first..rows.min(first + batch);
            let weights = &mut weights[..range.len() * cols];
            match self.interleave {
                None => self.tensor.unpack_rows(range.clone(), weights)?,
                Some(head_dim) => {
                    self.tensor
                        .unpack_interleaved(range.clone(), head_dim, weights)?
                }
            }
            self.tensor.data.advise_done();
            visit(range, weights)?;
        }
        Ok(())
    }
}

/// Opens the written file and compares it with the source.
fn read_back(
    path: &Path,
    config: &Config,
    metadata: &[Pair],
    tensors: &[(TensorInfo, Checksum)],
    meter: &mut Meter<'_, '_>,
) -> Result<()> {
    let wrong = |problem| Error::ReadBack {
        path: path.to_owned(),
        problem,
    };
    let gguf = Gguf::open(path)?;
    if gguf.metadata().len() != metadata.len() || gguf.tensors().len() != tensors.len() {
        let found = (gguf.metadata().len(), gguf.tensors().len());
        let expected = (metadata.len(), tensors.len());
        return Err(wrong(format!(
            "it has {found:?} metadata pairs and tensors, expected {expected:?}"
        )));
    }
    for ((key, value), (found, _)) in metadata.iter().zip(gguf.metadata().iter()) {
        if key != found {
            return Err(wrong(format!(
                "metadata key {} is {}",
                shown(key),
                shown(found)
            )));
        }
        if !value.is(gguf.metadata().get(key)) {
            return Err(wrong(format!(
                "metadata key {} has another value",
                shown(key)
            )));
        }
    }
    for (tensor, checksum) in tensors {
        let found = gguf.require_tensor(&tensor.name)?;
        let same = (found.dtype, found.dims) == (tensor.dtype, &tensor.dims[..]);
        let done = || gguf.advise_done(found.range());
        if !same || !meter.check(&tensor.name, found.data, checksum, &done)? {
            return Err(wrong(format!("tensor {} has other bytes", tensor.name)));
        }
    }
    let expected = Config {
        name: None,
        ..config.clone()
    };
    let found = Config {
        name: None,
        ..Config::from_gguf(&gguf)?
    };
    if found != expected {
        return Err(wrong(format!(
            "its configuration is {found:?}, expected {expected:?}"
        )));
    }
    Ok(())
}
