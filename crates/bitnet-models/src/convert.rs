//! Writes a checkpoint as a GGUF file with I2_S weights.
//!
//! Tensor by tensor and some rows at a time, so memory stays bounded whatever the model's size. The file appears under
//! its own name only when it is complete and has been read back.

use std::fs;
use std::path::{Path, PathBuf};

use bitnet_kernels::Pool;
use bitnet_quantization::i2_s;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::config::{Config, RopePairs};
use crate::error::{Error, Result, shown};
use crate::gguf::source::{ROPE_FACTORS, name as gguf_name};
use crate::gguf::writer::{HASH_START, hash_bytes};
use crate::gguf::{Gguf, GgufWriter, MetadataValue, TensorInfo, TensorType};
use crate::huggingface::Checkpoint;
use crate::source::{LayerSlot, Projection, Slot, Source, TernaryTensor, half_split_row};
use crate::table::Table;

/// Weights that are unpacked at once.
const BATCH_WEIGHTS: usize = 1 << 20;
/// Bytes that are read back at once.
const READ_BACK_BYTES: usize = 4 << 20;
/// I2_S in `general.file_type`.
const FILE_TYPE_I2_S: u32 = 40;

/// How embedding and head are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TableType {
    /// As the published files have them. Values of bf16 below 6e-5 lose digits.
    #[default]
    F16,
    /// Exact for checkpoints in bf16, which most are.
    BF16,
    /// Exact for all.
    F32,
}

impl TableType {
    fn dtype(self) -> TensorType {
        match self {
            Self::F16 => TensorType::F16,
            Self::BF16 => TensorType::BF16,
            Self::F32 => TensorType::F32,
        }
    }
}

/// What the caller decides.
#[derive(Clone, Debug, Default)]
pub struct ConvertOptions {
    /// How embedding and head are stored.
    pub tables: TableType,
    /// Whether a file of that name is replaced.
    pub force: bool,
    /// `general.name`; the configuration's or the directory's name if `None`.
    pub name: Option<String>,
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor being written.
    pub tensor: &'a str,
    /// Bytes of tensors written.
    pub bytes_done: usize,
    /// Bytes of all tensors.
    pub bytes_total: usize,
}

/// Writes `checkpoint` to `path` as GGUF: I2_S weights in blocks of 128, norms in F32, tables as asked.
///
/// `tokenizer` are the pairs under `tokenizer.` that the file gets, after those of the model. `progress` is called some
/// times a second. Reads the source once, float weights twice.
///
/// # Errors
/// If the model cannot be loaded, cannot be I2_S (columns that are no multiple of 128, norms of each projection), the
/// file exists, or the system refuses. Nothing is left behind then.
pub fn convert(
    checkpoint: &Checkpoint,
    path: &Path,
    options: &ConvertOptions,
    tokenizer: &[(String, MetadataValue)],
    pool: &Pool,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<()> {
    if path.exists() && !options.force {
        return Err(Error::OutputExists { path: path.to_owned() });
    }
    checkpoint.check_tensors()?;
    let config = checkpoint.config();
    refuse_what_i2_s_cannot_hold(config)?;
    let directory = fs::canonicalize(checkpoint.path()).unwrap_or_default();
    let directory = directory.file_name().map(|name| shown(&name.to_string_lossy()));
    let name = options.name.clone().or_else(|| config.name.clone()).or(directory).unwrap_or_else(|| "model".into());
    let mut metadata = model_metadata(config, name);
    metadata.extend_from_slice(tokenizer);

    let rope_factors = checkpoint.rope_factors()?;
    let plan = plan(checkpoint, rope_factors.is_some());
    let infos: Vec<TensorInfo> = plan.iter().map(|item| item.info(config, options.tables)).collect();
    let bytes_total = infos.iter().map(TensorInfo::num_bytes).sum::<Result<usize>>()?;
    let temporary = Temporary::beside(path);
    let writer = GgufWriter::create(&temporary.path, &metadata, infos)?;
    let mut job = Job { source: checkpoint, config, pool, writer, progress, bytes_done: 0, bytes_total };
    for item in &plan {
        job.tensor(item, rope_factors.as_deref())?;
    }
    let written = job.writer.finish()?;
    read_back(&temporary.path, config, &metadata, &written)?;
    if path.exists() && !options.force {
        return Err(Error::OutputExists { path: path.to_owned() });
    }
    fs::rename(&temporary.path, path).map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// The model's keys, as the converters of the field write them.
fn model_metadata(config: &Config, name: String) -> Vec<(String, MetadataValue)> {
    use MetadataValue::{F32, String as Text, U32};
    let architecture = config.architecture.gguf_name();
    let size = |size: usize| U32(u32::try_from(size).unwrap_or(u32::MAX)); // sizes were checked to be far below
    let attention = config.attention;
    let mut pairs = vec![
        ("general.architecture".to_owned(), Text(architecture.to_owned())),
        ("general.name".to_owned(), Text(name)),
        ("general.file_type".to_owned(), U32(FILE_TYPE_I2_S)),
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
    if attention.heads * attention.head_dim != config.hidden_size {
        key("attention.key_length", size(attention.head_dim));
        key("attention.value_length", size(attention.head_dim));
    }
    if config.rope_scaling_factor != 1.0 {
        key("rope.scaling.type", Text("linear".to_owned()));
        key("rope.scaling.factor", F32(config.rope_scaling_factor));
    }
    pairs
}

fn refuse_what_i2_s_cannot_hold(config: &Config) -> Result<()> {
    if config.input_norm_eps.is_some() {
        let problem = "use_rms_norm: the GGUF graphs have no norm for each projection".to_owned();
        return Err(Error::Convert { problem });
    }
    for projection in Projection::ALL {
        let (_, cols) = projection.shape(config);
        if !cols.is_multiple_of(128) {
            let problem = format!("{projection:?} has {cols} columns, I2_S needs a multiple of 128");
            return Err(Error::Convert { problem });
        }
    }
    Ok(())
}

/// A tensor of the file to be.
#[derive(Clone, Copy, PartialEq)]
enum Item {
    Slot(Slot),
    RopeFactors,
}

/// The tensors in the order they are written.
fn plan(source: &Checkpoint, rope_factors: bool) -> Vec<Item> {
    use LayerSlot::{AttentionNorm, AttentionSubNorm, FfnNorm, FfnSubNorm, Weight};
    let config = source.config();
    let mut plan = vec![Item::Slot(Slot::Embedding)];
    plan.extend(rope_factors.then_some(Item::RopeFactors));
    for index in 0..config.num_layers {
        let [query, key, value, output, gate, up, down] = Projection::ALL.map(Weight);
        let attention = [AttentionNorm, query, key, value, AttentionSubNorm, output];
        let slots = attention.into_iter().chain([FfnNorm, gate, up, FfnSubNorm, down]);
        plan.extend(slots.filter(|slot| slot.is_used(config)).map(|slot| Item::Slot(Slot::Layer(index, slot))));
    }
    plan.push(Item::Slot(Slot::OutputNorm));
    plan.extend(source.has_head().then_some(Item::Slot(Slot::Head)));
    plan
}

impl Item {
    fn info(self, config: &Config, tables: TableType) -> TensorInfo {
        let hidden = config.hidden_size;
        let Self::Slot(slot) = self else {
            let dims = vec![config.attention.head_dim / 2];
            return TensorInfo { name: ROPE_FACTORS.to_owned(), dtype: TensorType::F32, dims };
        };
        let (dtype, dims) = match slot {
            Slot::Embedding | Slot::Head => (tables.dtype(), vec![hidden, config.vocab_size]),
            Slot::OutputNorm => (TensorType::F32, vec![hidden]),
            Slot::Layer(_, LayerSlot::Weight(projection)) => {
                let (rows, cols) = projection.shape(config);
                (TensorType::I2_S, vec![cols, rows])
            }
            Slot::Layer(_, slot) => (TensorType::F32, vec![norm_len(slot, config)]),
        };
        // Norms of each projection were refused, everything else has a name.
        TensorInfo { name: gguf_name(slot).unwrap_or_default(), dtype, dims }
    }
}

fn norm_len(slot: LayerSlot, config: &Config) -> usize {
    match slot {
        LayerSlot::AttentionSubNorm => config.attention.heads * config.attention.head_dim,
        LayerSlot::FfnSubNorm => config.ffn_size,
        _ => config.hidden_size,
    }
}

/// A conversion under way.
struct Job<'a> {
    source: &'a Checkpoint,
    config: &'a Config,
    pool: &'a Pool,
    writer: GgufWriter,
    progress: &'a mut dyn FnMut(Progress<'_>),
    bytes_done: usize,
    bytes_total: usize,
}

impl Job<'_> {
    fn tensor(&mut self, item: &Item, rope_factors: Option<&[f32]>) -> Result<()> {
        let info = self.writer.begin_tensor()?.clone();
        let Item::Slot(slot) = *item else {
            return self.floats(&info, rope_factors.unwrap_or_default());
        };
        match slot {
            Slot::Embedding | Slot::Head => {
                let table = self.source.table(slot, self.config.vocab_size, self.config.hidden_size)?;
                self.table(&info, &table)
            }
            Slot::Layer(index, LayerSlot::Weight(projection)) => {
                let (rows, cols) = projection.shape(self.config);
                let tensor = self.source.projection(index, projection, rows, cols, self.pool)?;
                let interleave =
                    projection.is_rotated() && self.config.architecture.gguf_rope_pairs() == RopePairs::Interleaved;
                self.ternary(&info, &tensor, interleave.then_some(self.config.attention.head_dim))
            }
            Slot::OutputNorm | Slot::Layer(..) => {
                let values = self.source.vector(slot, info.dims[0])?;
                self.floats(&info, &values)
            }
        }
    }

    fn write(&mut self, info: &TensorInfo, bytes: &[u8]) -> Result<()> {
        self.writer.write(bytes)?;
        self.bytes_done += bytes.len();
        let (bytes_done, bytes_total) = (self.bytes_done, self.bytes_total);
        (self.progress)(Progress { tensor: &info.name, bytes_done, bytes_total });
        Ok(())
    }

    fn floats(&mut self, info: &TensorInfo, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.write(info, &bytes)
    }

    fn table(&mut self, info: &TensorInfo, table: &Table) -> Result<()> {
        let batch = (BATCH_WEIGHTS / table.cols()).clamp(1, table.rows());
        let mut values = vec![0.0; batch * table.cols()];
        for first in (0..table.rows()).step_by(batch) {
            let num_rows = batch.min(table.rows() - first);
            let values = &mut values[..num_rows * table.cols()];
            for (row, values) in values.chunks_exact_mut(table.cols()).enumerate() {
                table.read_row(first + row, values);
            }
            let bytes = encode(info, first * table.cols(), values)?;
            table.advise_done();
            self.write(info, &bytes)?;
        }
        Ok(())
    }

    /// Packs some rows at a time: blocks of 128 never straddle rows here, so the pieces are those of the whole.
    fn ternary(&mut self, info: &TensorInfo, tensor: &TernaryTensor, interleave: Option<usize>) -> Result<()> {
        let (rows, cols) = (tensor.rows, tensor.cols);
        let of_tensor = |source| Error::Tensor { tensor: tensor.name.clone(), source };
        let batch = (BATCH_WEIGHTS / cols).clamp(1, rows);
        let mut weights = vec![0i8; batch * cols];
        let mut packed = vec![0u8; i2_s::size_bytes(batch, cols).map_err(of_tensor)?];
        tensor.data.advise_sequential();
        for first in (0..rows).step_by(batch) {
            let num_rows = batch.min(rows - first);
            let weights = &mut weights[..num_rows * cols];
            match interleave {
                None => tensor.unpack_rows(first..first + num_rows, weights)?,
                Some(head_dim) => {
                    for (row, weights) in weights.chunks_exact_mut(cols).enumerate() {
                        let row = half_split_row(first + row, head_dim);
                        tensor.unpack_rows(row..row + 1, weights)?;
                    }
                }
            }
            let packed = &mut packed[..i2_s::size_bytes(num_rows, cols).map_err(of_tensor)?];
            i2_s::pack(weights, i2_s::Form::Block128, num_rows, cols, tensor.scale, packed).map_err(of_tensor)?;
            tensor.data.advise_done();
            let (codes, tail) = packed.split_at(num_rows * cols / 4);
            self.write(info, codes)?;
            if first + num_rows == rows {
                self.write(info, tail)?;
            }
        }
        Ok(())
    }
}

/// Floats in the type of a tensor. first: the index of the first one, for messages.
fn encode(info: &TensorInfo, first: usize, values: &[f32]) -> Result<Vec<u8>> {
    let finite = |index: Option<usize>| match index {
        None => Ok(()),
        Some(at) => {
            let problem = format!("element {} is {}, which {} cannot hold", first + at, values[at], info.dtype);
            Err(Error::TensorValues { tensor: info.name.clone(), problem })
        }
    };
    finite(values.iter().position(|value| !value.is_finite()))?;
    Ok(match info.dtype {
        TensorType::F16 => {
            let mut halves = vec![f16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            finite(halves.iter().position(|half| !half.is_finite()))?;
            halves.iter().flat_map(|half| half.to_le_bytes()).collect()
        }
        TensorType::BF16 => {
            let mut halves = vec![bf16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            finite(halves.iter().position(|half| !half.is_finite()))?;
            halves.iter().flat_map(|half| half.to_le_bytes()).collect()
        }
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    })
}

/// Opens the written file and checks that it says and holds what was meant.
fn read_back(
    path: &Path,
    config: &Config,
    metadata: &[(String, MetadataValue)],
    tensors: &[(TensorInfo, u64)],
) -> Result<()> {
    let wrong = |problem| Error::ReadBack { path: path.to_owned(), problem };
    let gguf = Gguf::open(path)?;
    if gguf.metadata().len() != metadata.len() || gguf.tensors().len() != tensors.len() {
        let found = (gguf.metadata().len(), gguf.tensors().len());
        let expected = (metadata.len(), tensors.len());
        return Err(wrong(format!("it has {found:?} metadata pairs and tensors, expected {expected:?}")));
    }
    for ((key, value), (found, _)) in metadata.iter().zip(gguf.metadata().iter()) {
        if key != found {
            return Err(wrong(format!("metadata key {} is {}", shown(key), shown(found))));
        }
        if !value.is(gguf.metadata().get(key)) {
            return Err(wrong(format!("metadata key {} has another value", shown(key))));
        }
    }
    for (tensor, hash) in tensors {
        let found = gguf.require_tensor(&tensor.name)?;
        let same = (found.dtype, found.dims) == (tensor.dtype, &tensor.dims[..]);
        let found_hash = found.data.chunks(READ_BACK_BYTES).fold(HASH_START, |hash, bytes| {
            let hash = hash_bytes(hash, bytes);
            gguf.advise_done(found.range());
            hash
        });
        if !same || found_hash != *hash {
            return Err(wrong(format!("tensor {} has other bytes", tensor.name)));
        }
    }
    let expected = Config {
        architecture_name: config.architecture.gguf_name().to_owned(),
        rope_pairs: config.architecture.gguf_rope_pairs(),
        name: None,
        ..config.clone()
    };
    let found = Config { name: None, ..Config::from_gguf(&gguf)? };
    if found != expected {
        return Err(wrong(format!("its configuration is {found:?}, expected {expected:?}")));
    }
    Ok(())
}

/// A file that is removed again unless it was renamed.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// A name of this process in the directory of `path`, so that renaming moves no bytes.
    fn beside(path: &Path) -> Self {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{}.partial", std::process::id()));
        Self { path: path.with_file_name(name) }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing of that name; otherwise the cause of the failure is what the caller hears of.
        let _ = fs::remove_file(&self.path);
    }
}
