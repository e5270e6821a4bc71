//! Random models of any shape in every published form: for tests and benchmarks that must not need
//! a download.
//!
//! A model is its [`Shape`] and a seed. Each number follows from the seed, its tensor's name and
//! its index, so a model is the same in all forms and is written tensor by tensor at any size.

use std::fs::{self, File};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use bitnet_files::Error as FileError;
use bitnet_files::gguf::{GgufWriter, MetadataValue, TensorInfo, TensorType};
use bitnet_files::safetensors::{DType, SafetensorsWriter, TensorEntry};
use bitnet_kernels::math::mix64;
use bitnet_kernels::{Gate, Pool, default_threads};
use bitnet_quantization::dense::Dense;
use bitnet_quantization::{GroupFormat, TernaryFormat, absmean};
use half::{bf16, f16};
use serde_json::{Map, Value, json};

use crate::config::{Architecture, RopePairs};
use crate::error::{Error, Result};
use crate::source::gguf::tile_pair;
use crate::source::half_split_row;

/// Special tokens at the end of the vocabulary.
const SPECIAL_TOKENS: usize = 256;

/// The dimensions of a model.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the words of `Config`")]
pub struct Shape {
    pub architecture: Architecture,
    pub hidden_size: usize,
    pub num_layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn_size: usize,
    /// At least 512, for [`byte_level_tokenizer`].
    pub vocab_size: usize,
    pub context_length: usize,
    pub rope_theta: f32,
    /// Whether the logits come from the embedding.
    pub tied: bool,
    /// Percentage of neurons of each feed-forward network that are dead: their row of gate or of up
    /// is zero.
    pub dead_neurons_percent: u64,
}

impl Shape {
    /// The names that [`Shape::named`] accepts.
    pub const NAMES: [&str; 5] = ["2b4t", "700m", "3b", "8b", "10b"];

    /// The shape of a published model: BitNet b1.58 2B-4T, the reproductions with 700 M and 3 B
    /// (3.3) weights, Llama3-8B-1.58 and Falcon3-10B-1.58.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let shape =
            |architecture, [layers, hidden, heads, kv_heads, head_dim, ffn, vocab]: [usize; 7]| {
                Self {
                    architecture,
                    hidden_size: hidden,
                    num_layers: layers,
                    heads,
                    kv_heads,
                    head_dim,
                    ffn_size: ffn,
                    vocab_size: vocab,
                    context_length: 2048,
                    rope_theta: 10_000.0,
                    tied: architecture != Architecture::Llama,
                    dead_neurons_percent: 0,
                }
            };
        let (bitnet, llama) = (Architecture::Bitnet, Architecture::Llama);
        Some(match name {
            "2b4t" => Self {
                context_length: 4096,
                rope_theta: 500_000.0,
                ..shape(
                    Architecture::BitnetB158,
                    [30, 2560, 20, 5, 128, 6912, 128_256],
                )
            },
            "700m" => shape(bitnet, [24, 1536, 16, 16, 96, 4096, 32_002]),
            "3b" => shape(bitnet, [26, 3200, 32, 32, 100, 8640, 32_002]),
            "8b" => Self {
                context_length: 8192,
                rope_theta: 500_000.0,
                ..shape(llama, [32, 4096, 32, 8, 128, 14_336, 128_256])
            },
            "10b" => Self {
                context_length: 32_768,
                rope_theta: 1_000_042.0,
                ..shape(llama, [40, 3072, 12, 4, 256, 23_040, 131_072])
            },
            _ => return None,
        })
    }
}

impl Default for Shape {
    /// A model with about 0.7 million ternary weights.
    fn default() -> Self {
        Self {
            architecture: Architecture::BitnetB158,
            hidden_size: 256,
            num_layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            ffn_size: 384,
            vocab_size: 512,
            context_length: 512,
            rope_theta: 10_000.0,
            tied: true,
            dead_neurons_percent: 0,
        }
    }
}

/// How a checkpoint holds the ternary weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointWeights {
    /// Packed uint8, with a scale that multiplies, or in Llama graphs divides.
    Packed,
    /// The float weights behind them, in bf16.
    Bf16,
    /// The same numbers in f32.
    F32,
}

/// Made-up token ids, for timing. The same `round` gives the same ids, and already the first id
/// differs between rounds, so that cached work of one round cannot serve another.
pub fn tokens(count: usize, vocab_size: usize, round: usize) -> impl Iterator<Item = u32> {
    let token = move |index: usize| {
        (index.wrapping_mul(2_654_435_761) ^ index >> 3).wrapping_add(round) % vocab_size
    };
    (0..count).map(move |index| token(index) as u32)
}

/// A random model.
#[derive(Clone, Debug, PartialEq)]
pub struct SyntheticModel {
    /// Its dimensions.
    pub shape: Shape,
    /// The seed of its numbers.
    pub seed: u64,
}

/// A tensor under its names in both formats.
struct Tensor {
    gguf: String,
    huggingface: String,
    kind: Kind,
    rows: usize,
    cols: usize,
}

impl Tensor {
    /// The tensor `{gguf}.weight`, with its kind, rows and columns.
    fn new(gguf: &str, huggingface: &str, (kind, rows, cols): (Kind, usize, usize)) -> Self {
        Self {
            gguf: format!("{gguf}.weight"),
            huggingface: format!("{huggingface}.weight"),
            kind,
            rows,
            cols,
        }
    }

    /// What is wrong with it in a GGUF file.
    fn error(&self, source: bitnet_quantization::Error) -> Error {
        Error::Tensor {
            tensor: self.gguf.clone(),
            source,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Ternary,
    Table,
    Norm,
}

impl SyntheticModel {
    /// Writes a GGUF file whose ternary tensors have the format given for their shape (rows, cols),
    /// with the tables in F16 and the norms in F32. Its scales are the packed checkpoint's;
    /// TQ and Q4_0 round them to f16.
    ///
    /// # Errors
    /// If a format cannot hold a shape, or the file cannot be written.
    pub fn write_gguf(
        &self,
        path: &Path,
        format: &dyn Fn(usize, usize) -> TernaryFormat,
    ) -> Result<()> {
        let pack = |tensor: &Tensor, out: &mut GgufWriter| {
            let (weights, stored) = self.ternary(tensor);
            let weights = self.gguf_rows(tensor, weights);
            let format = format(tensor.rows, tensor.cols);
            let bytes = pack(format, &weights, tensor, self.multiplier(stored))?;
            Ok(out.write(&bytes)?)
        };
        let tile = |rows, cols| tile_pair(format(rows, cols), rows, cols);
        self.write_gguf_with(path, &|rows, cols| format(rows, cols).into(), &tile, &pack)
    }

    /// Writes a GGUF file that holds the float weights behind the ternary ones, as F32, F16 or
    /// BF16: a model that is not quantized yet. F32 and BF16 are exact.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_float_gguf(&self, path: &Path, format: Dense) -> Result<()> {
        let write = |tensor: &Tensor, out: &mut GgufWriter| {
            let rows: Vec<usize> = self.gguf_rows(tensor, (0..tensor.rows).collect());
            rows.iter().try_for_each(|row| {
                let values = self.row(tensor, *row);
                let of_tensor = |source| tensor.error(source);
                let mut bytes = vec![0; format.size_bytes(1, tensor.cols).map_err(of_tensor)?];
                format.quantize(&values, &mut bytes).map_err(of_tensor)?;
                Ok(out.write(&bytes)?)
            })
        };
        self.write_gguf_with(path, &|_, _| format.into(), &|_, _| None, &write)
    }

    /// Writes a GGUF file whose projections and tables have a scale for each group of columns. The
    /// scales differ, so that loaders cannot take one for all.
    ///
    /// # Errors
    /// If the format cannot hold a shape, or the file cannot be written.
    pub fn write_group_gguf(&self, path: &Path, format: GroupFormat) -> Result<()> {
        let pool = Pool::new(default_threads());
        let write = |tensor: &Tensor, out: &mut GgufWriter| {
            let row_bytes = format.size_bytes(1, tensor.cols);
            let row_bytes = row_bytes.map_err(|source| tensor.error(source))?;
            let stored: Vec<usize> = self.gguf_rows(tensor, (0..tensor.rows).collect());
            let mut bytes = vec![0; tensor.rows * row_bytes];
            let problem = Mutex::new(None);
            pool.split_mut(&mut bytes, row_bytes, 1, &|rows, bytes| {
                for (row, bytes) in rows.zip(bytes.chunks_exact_mut(row_bytes)) {
                    let values = self.row(tensor, stored[row]);
                    if let Err(source) = format.quantize(&values, 1, tensor.cols, bytes) {
                        let mut problem = problem.lock().unwrap_or_else(PoisonError::into_inner);
                        *problem = Some(tensor.error(source));
                    }
                }
            });
            match problem.into_inner().unwrap_or_else(PoisonError::into_inner) {
                Some(problem) => Err(problem),
                None => Ok(out.write(&bytes)?),
            }
        };
        let dtype = TensorType::from(TernaryFormat::Group(format));
        self.write_gguf_as(path, (&|_, _| dtype, dtype), &|_, _| None, &write)
    }

    /// dtype: the type of projections of a shape; tile: its tile in the file's metadata; write:
    /// writes a projection. Tables are F16.
    fn write_gguf_with(
        &self,
        path: &Path,
        dtype: &dyn Fn(usize, usize) -> TensorType,
        tile: &dyn Fn(usize, usize) -> Option<(String, MetadataValue)>,
        write: &dyn Fn(&Tensor, &mut GgufWriter) -> Result<()>,
    ) -> Result<()> {
        self.write_gguf_as(path, (dtype, TensorType::F16), tile, write)
    }

    /// The same with tables of the type `table`, which `write` writes if it is not F16.
    fn write_gguf_as(
        &self,
        path: &Path,
        (dtype, table): (&dyn Fn(usize, usize) -> TensorType, TensorType),
        tile: &dyn Fn(usize, usize) -> Option<(String, MetadataValue)>,
        write: &dyn Fn(&Tensor, &mut GgufWriter) -> Result<()>,
    ) -> Result<()> {
        let tensors = self.tensors();
        let mut metadata =
            self.gguf_metadata(dtype(self.shape.hidden_size, self.shape.hidden_size));
        let mut infos = Vec::new();
        for tensor in &tensors {
            let dtype = match tensor.kind {
                Kind::Table => table,
                Kind::Norm => TensorType::F32,
                Kind::Ternary => dtype(tensor.rows, tensor.cols),
            };
            let dims = if tensor.kind == Kind::Norm {
                vec![tensor.cols]
            } else {
                vec![tensor.cols, tensor.rows]
            };
            infos.push(TensorInfo {
                name: tensor.gguf.clone(),
                dtype,
                dims,
            });
            if let Some(pair) = tile(tensor.rows, tensor.cols)
                && tensor.kind == Kind::Ternary
                && !metadata.contains(&pair)
            {
                metadata.push(pair);
            }
        }
        metadata.extend(byte_level_tokenizer(self.shape.vocab_size));
        let mut writer = GgufWriter::create(path, &metadata, infos)?;
        for tensor in &tensors {
            writer.begin_tensor()?;
            match tensor.kind {
                Kind::Norm => writer.write(&self.bytes(tensor, 0, |x| x.to_le_bytes()))?,
                Kind::Table if table == TensorType::F16 => {
                    for row in 0..tensor.rows {
                        writer
                            .write(&self.bytes(tensor, row, |x| f16::from_f32(x).to_le_bytes()))?;
                    }
                }
                Kind::Table | Kind::Ternary => write(tensor, &mut writer)?,
            }
        }
        writer.finish()?;
        Ok(())
    }

    /// Writes a checkpoint directory: config.json, `num_shards` safetensors files, tokenizer.json,
    /// tokenizer_config.json.
    ///
    /// # Errors
    /// If the packed format cannot hold a shape, or a file cannot be written.
    ///
    /// # Panics
    /// If there are no shards.
    pub fn write_checkpoint(
        &self,
        directory: &Path,
        weights: CheckpointWeights,
        num_shards: usize,
    ) -> Result<()> {
        assert!(num_shards > 0, "a checkpoint of no files");
        let io = |source| FileError::Write {
            path: directory.to_owned(),
            source,
        };
        fs::create_dir_all(directory).map_err(io)?;
        write_text(
            &directory.join("config.json"),
            &self.config_json(weights).to_string(),
        )?;
        let (tokenizer, tokenizer_config) = byte_level_tokenizer_json(self.shape.vocab_size);
        write_text(&directory.join("tokenizer.json"), &tokenizer.to_string())?;
        write_text(
            &directory.join("tokenizer_config.json"),
            &tokenizer_config.to_string(),
        )?;
        let tensors = self.tensors();
        let mut weight_map = Map::new();
        let per_shard = tensors.len().div_ceil(num_shards);
        for (index, tensors) in tensors.chunks(per_shard).enumerate() {
            let name = match num_shards {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{num_shards:05}.safetensors", index + 1),
            };
            for tensor in self.write_shard(&directory.join(&name), tensors, weights)? {
                weight_map.insert(tensor, Value::from(name.as_str()));
            }
        }
        if num_shards > 1 {
            let index = json!({"metadata": {}, "weight_map": weight_map});
            write_text(
                &directory.join("model.safetensors.index.json"),
                &index.to_string(),
            )?;
        }
        Ok(())
    }

    /// Writes one safetensors file and returns the names in it.
    fn write_shard(
        &self,
        path: &Path,
        tensors: &[Tensor],
        weights: CheckpointWeights,
    ) -> Result<Vec<String>> {
        let mut entries = Vec::new();
        let mut entry =
            |name: String, dtype, shape| entries.push(TensorEntry { name, dtype, shape });
        for Tensor {
            huggingface: name,
            kind,
            rows,
            cols,
            ..
        } in tensors
        {
            match (kind, weights) {
                (Kind::Norm, _) => entry(name.clone(), DType::BF16, vec![*cols]),
                (Kind::Ternary, CheckpointWeights::Packed) => {
                    entry(name.clone(), DType::U8, vec![rows / 4, *cols]);
                    entry(format!("{name}_scale"), DType::BF16, vec![1]);
                }
                (Kind::Ternary, CheckpointWeights::F32) => {
                    entry(name.clone(), DType::F32, vec![*rows, *cols])
                }
                (Kind::Table | Kind::Ternary, _) => {
                    entry(name.clone(), DType::BF16, vec![*rows, *cols])
                }
            }
        }
        let names = entries.iter().map(|entry| entry.name.clone()).collect();
        let file = File::create(path).map_err(|source| FileError::Write {
            path: path.to_owned(),
            source,
        })?;
        let mut out = SafetensorsWriter::new(file, path, entries)?;
        for tensor in tensors {
            out.begin_tensor()?;
            if (tensor.kind, weights) == (Kind::Ternary, CheckpointWeights::Packed) {
                let (weights, stored) = self.ternary(tensor);
                out.write(&pack(TernaryFormat::HfPacked, &weights, tensor, 1.0)?)?;
                out.begin_tensor()?;
                out.write(&stored.to_le_bytes())?;
                continue;
            }
            for row in 0..tensor.rows {
                let bytes = match (tensor.kind, weights) {
                    (Kind::Ternary, CheckpointWeights::F32) => {
                        self.bytes(tensor, row, |x| x.to_le_bytes())
                    }
                    _ => self.bytes(tensor, row, |x| bf16::from_f32(x).to_le_bytes()),
                };
                out.write(&bytes)?;
            }
        }
        out.finish()?;
        Ok(names)
    }

    /// All tensors, in the order they are written.
    fn tensors(&self) -> Vec<Tensor> {
        let shape = &self.shape;
        let (hidden, vocab) = (shape.hidden_size, shape.vocab_size);
        let mut tensors = vec![Tensor::new(
            "token_embd",
            "model.embed_tokens",
            (Kind::Table, vocab, hidden),
        )];
        tensors.extend((0..shape.num_layers).flat_map(|index| self.layer_tensors(index)));
        let norm = (Kind::Norm, 1, hidden);
        tensors.push(Tensor::new("output_norm", "model.norm", norm));
        if !shape.tied {
            let head = (Kind::Table, vocab, hidden);
            tensors.push(Tensor::new("output", "lm_head", head));
        }
        tensors
    }

    fn layer_tensors(&self, index: usize) -> Vec<Tensor> {
        use Kind::{Norm, Ternary};
        let shape = &self.shape;
        let (hidden, ffn) = (shape.hidden_size, shape.ffn_size);
        let query = shape.heads * shape.head_dim;
        let key = shape.kv_heads * shape.head_dim;
        let mut tensors = vec![
            ("attn_norm", "input_layernorm", (Norm, 1, hidden)),
            ("attn_q", "self_attn.q_proj", (Ternary, query, hidden)),
            ("attn_k", "self_attn.k_proj", (Ternary, key, hidden)),
            ("attn_v", "self_attn.v_proj", (Ternary, key, hidden)),
            ("attn_output", "self_attn.o_proj", (Ternary, hidden, query)),
            ("ffn_norm", "post_attention_layernorm", (Norm, 1, hidden)),
            ("ffn_gate", "mlp.gate_proj", (Ternary, ffn, hidden)),
            ("ffn_up", "mlp.up_proj", (Ternary, ffn, hidden)),
            ("ffn_down", "mlp.down_proj", (Ternary, hidden, ffn)),
        ];
        if shape.architecture.has_sub_norms() {
            tensors.extend([
                ("attn_sub_norm", "self_attn.attn_sub_norm", (Norm, 1, query)),
                ("ffn_sub_norm", "mlp.ffn_sub_norm", (Norm, 1, ffn)),
            ]);
        }
        let tensor = |(gguf, huggingface, content)| {
            let gguf = format!("blk.{index}.{gguf}");
            let huggingface = format!("model.layers.{index}.{huggingface}");
            Tensor::new(&gguf, &huggingface, content)
        };
        tensors.into_iter().map(tensor).collect()
    }

    /// A row of a tensor: weights around 0, norms around 1. All numbers are exact in bf16, and the
    /// numbers of tables and norms also in f16.
    fn row(&self, tensor: &Tensor, row: usize) -> Vec<f32> {
        let key = tensor
            .gguf
            .bytes()
            .fold(self.seed, |key, byte| mix(key ^ u64::from(byte)));
        let (center, width) = match tensor.kind {
            Kind::Ternary => (0.0, 0.05),
            Kind::Table => (0.0, 0.1),
            Kind::Norm => (1.0, 0.1),
        };
        if self.is_dead(tensor, row) {
            return vec![0.0; tensor.cols];
        }
        let number = |col: usize| {
            let bits = mix(key ^ (row * tensor.cols + col) as u64);
            // The sum of four 16-bit numbers is close enough to a normal distribution; its variance
            // is 4 · 2³² / 12.
            let sum: u32 = (0..4).map(|i| (bits >> (16 * i) & 0xffff) as u32).sum();
            let normal = (sum as f32 - 131_070.0) / 37_837.0;
            let number = center + width * normal;
            // Multiples of 2⁻¹⁴ avoid the smallest numbers, which have fewer digits in f16 than in
            // bf16.
            let number = if tensor.kind == Kind::Ternary {
                number
            } else {
                (number * 16_384.0).round() / 16_384.0
            };
            bf16::from_f32(number).to_f32()
        };
        (0..tensor.cols).map(number).collect()
    }

    /// Whether a row belongs to a dead neuron: every second one has a zero row of gate, the others
    /// have a zero row of up.
    fn is_dead(&self, tensor: &Tensor, row: usize) -> bool {
        let Some((layer, part)) = tensor
            .gguf
            .strip_prefix("blk.")
            .and_then(|name| name.split_once('.'))
        else {
            return false;
        };
        let key = layer
            .bytes()
            .fold(self.seed, |key, byte| mix(key ^ u64::from(byte)));
        let bits = mix(key ^ row as u64);
        let zero = if bits >> 32 & 1 == 0 {
            "ffn_gate.weight"
        } else {
            "ffn_up.weight"
        };
        part == zero && (bits & 0xffff_ffff) % 100 < self.shape.dead_neurons_percent
    }

    fn bytes<const N: usize>(
        &self,
        tensor: &Tensor,
        row: usize,
        encode: impl Fn(f32) -> [u8; N],
    ) -> Vec<u8> {
        self.row(tensor, row).into_iter().flat_map(encode).collect()
    }

    /// The weights of a tensor, and its scale as a packed checkpoint stores it. Keeps only the
    /// weights in memory.
    fn ternary(&self, tensor: &Tensor) -> (Vec<i8>, bf16) {
        let pool = Pool::new(default_threads());
        let mut sums = vec![0.0; tensor.rows];
        pool.split_mut(&mut sums, 1, 1, &|rows, sums| {
            for (row, sum) in rows.zip(sums) {
                let magnitudes = self.row(tensor, row).into_iter();
                *sum = magnitudes.map(|x| f64::from(x.abs())).sum();
            }
        });
        let s = absmean::inverse_scale(sums.iter().sum(), tensor.rows * tensor.cols);
        let mut weights = vec![0; tensor.rows * tensor.cols];
        pool.split_mut(&mut weights, tensor.cols, 1, &|rows, weights| {
            let rounded = |x: f32| (x * s).round_ties_even().clamp(-1.0, 1.0) as i8;
            for (row, weights) in rows.zip(weights.chunks_exact_mut(tensor.cols)) {
                let floats = self.row(tensor, row).into_iter();
                weights
                    .iter_mut()
                    .zip(floats)
                    .for_each(|(w, x)| *w = rounded(x));
            }
        });
        (
            weights,
            bf16::from_f32(if self.scale_divides() { s } else { 1.0 / s }),
        )
    }

    /// The factor of the weights, given their scale as a packed checkpoint stores it.
    fn multiplier(&self, stored: bf16) -> f32 {
        if self.scale_divides() {
            1.0 / stored.to_f32()
        } else {
            stored.to_f32()
        }
    }

    fn scale_divides(&self) -> bool {
        self.shape.architecture == Architecture::Llama
    }

    /// Reorders rows of equal length, or their numbers, as in GGUF files of this architecture.
    fn gguf_rows<T: Copy>(&self, tensor: &Tensor, rows: Vec<T>) -> Vec<T> {
        let rotated =
            tensor.gguf.ends_with("attn_q.weight") || tensor.gguf.ends_with("attn_k.weight");
        if !rotated || self.shape.architecture.gguf_rope_pairs() == RopePairs::HalfSplit {
            return rows;
        }
        let len = rows.len() / tensor.rows;
        let row = |stored| half_split_row(stored, self.shape.head_dim) * len;
        (0..tensor.rows)
            .flat_map(|stored| rows[row(stored)..row(stored) + len].iter().copied())
            .collect()
    }

    fn gguf_metadata(&self, weights: TensorType) -> Vec<(String, MetadataValue)> {
        let shape = &self.shape;
        let architecture = shape.architecture.gguf_name();
        let sizes = [
            ("vocab_size", shape.vocab_size),
            ("context_length", shape.context_length),
            ("embedding_length", shape.hidden_size),
            ("block_count", shape.num_layers),
            ("feed_forward_length", shape.ffn_size),
            ("attention.head_count", shape.heads),
            ("attention.head_count_kv", shape.kv_heads),
            ("attention.key_length", shape.head_dim),
            ("attention.value_length", shape.head_dim),
            ("rope.dimension_count", shape.head_dim),
        ];
        let mut pairs = vec![
            (
                "general.architecture".to_owned(),
                MetadataValue::String(architecture.to_owned()),
            ),
            (
                "general.name".to_owned(),
                MetadataValue::String("synthetic".to_owned()),
            ),
            (
                "general.file_type".to_owned(),
                MetadataValue::U32(weights.file_type()),
            ),
        ];
        let number = |size: usize| MetadataValue::U32(u32::try_from(size).unwrap_or(u32::MAX));
        pairs.extend(sizes.map(|(key, size)| (format!("{architecture}.{key}"), number(size))));
        for (key, value) in [
            ("attention.layer_norm_rms_epsilon", 1e-5),
            ("rope.freq_base", shape.rope_theta),
        ] {
            pairs.push((format!("{architecture}.{key}"), MetadataValue::F32(value)));
        }
        pairs
    }

    fn config_json(&self, weights: CheckpointWeights) -> Value {
        let shape = &self.shape;
        let name = if shape.architecture == Architecture::Llama {
            "LlamaForCausalLM"
        } else {
            "BitNetForCausalLM"
        };
        json!({
            "architectures": [name],
            "hidden_act": if shape.architecture.gate() == Gate::Relu2 { "relu2" } else { "silu" },
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "intermediate_size": shape.ffn_size,
            "max_position_embeddings": shape.context_length,
            "rms_norm_eps": 1e-5,
            "rope_theta": shape.rope_theta,
            "tie_word_embeddings": shape.tied,
            "bos_token_id": shape.vocab_size - SPECIAL_TOKENS,
            "eos_token_id": shape.vocab_size - SPECIAL_TOKENS + 1,
            "quantization_config": {
                "quant_method": "bitnet",
                "linear_class": if self.scale_divides() { "bitlinear" } else { "autobitlinear" },
                "quantization_mode": if weights == CheckpointWeights::Packed { "offline" } else { "online" },
            },
        })
    }
}

/// A step of SplitMix64: every bit of the result depends on every bit of the argument.
fn mix(x: u64) -> u64 {
    mix64(x.wrapping_add(0x9e37_79b9_7f4a_7c15))
}

/// Packs a tensor's weights in any format.
fn pack(format: TernaryFormat, weights: &[i8], tensor: &Tensor, scale: f32) -> Result<Vec<u8>> {
    let (rows, cols) = (tensor.rows, tensor.cols);
    let of_tensor = |source| Error::Tensor {
        tensor: tensor.gguf.clone(),
        source,
    };
    let mut out = vec![0; format.size_bytes(rows, cols).map_err(of_tensor)?];
    format
        .pack(weights, rows, cols, scale, &mut out)
        .map_err(of_tensor)?;
    Ok(out)
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    Ok(fs::write(path, text).map_err(|source| FileError::Write {
        path: path.to_owned(),
        source,
    })?)
}

/// A byte-level BPE vocabulary as GGUF metadata: the 256 bytes, pairs of them, and 256 special
/// tokens, the first two of which begin and end a text.
///
/// # Panics
/// If `vocab_size` is below 512.
#[must_use]
pub fn byte_level_tokenizer(vocab_size: usize) -> Vec<(String, MetadataValue)> {
    let (tokens, merges) = byte_level_vocabulary(vocab_size);
    let num_normal = vocab_size - SPECIAL_TOKENS;
    let types = (0..vocab_size)
        .map(|id| if id < num_normal { 1 } else { 3 })
        .collect();
    let id =
        |index: usize| MetadataValue::U32(u32::try_from(num_normal + index).unwrap_or(u32::MAX));
    let pairs = [
        ("model", MetadataValue::String("gpt2".to_owned())),
        ("pre", MetadataValue::String("gpt-2".to_owned())),
        ("tokens", MetadataValue::Strings(tokens)),
        ("token_type", MetadataValue::I32s(types)),
        ("merges", MetadataValue::Strings(merges)),
        ("bos_token_id", id(0)),
        ("eos_token_id", id(1)),
        ("add_bos_token", MetadataValue::Bool(true)),
    ];
    pairs
        .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
        .to_vec()
}

/// The same vocabulary as the contents of tokenizer.json and tokenizer_config.json.
fn byte_level_tokenizer_json(vocab_size: usize) -> (Value, Value) {
    let (tokens, merges) = byte_level_vocabulary(vocab_size);
    let num_normal = vocab_size - SPECIAL_TOKENS;
    let vocab: Map<String, Value> = tokens[..num_normal]
        .iter()
        .enumerate()
        .map(|(id, token)| (token.clone(), Value::from(id)))
        .collect();
    let added = tokens[num_normal..].iter().enumerate().map(|(index, token)| {
        json!({"id": num_normal + index, "content": token, "special": true, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    });
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": merges},
    });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": true,
        "bos_token": tokens[num_normal], "eos_token": tokens[num_normal + 1],
    });
    (tokenizer, config)
}

/// Tokens and merges.
fn byte_level_vocabulary(vocab_size: usize) -> (Vec<String>, Vec<String>) {
    assert!(
        vocab_size >= 2 * SPECIAL_TOKENS,
        "a vocabulary of {vocab_size}; at least {} are needed",
        2 * SPECIAL_TOKENS
    );
    let num_normal = vocab_size - SPECIAL_TOKENS;
    let bytes: Vec<String> = byte_characters().iter().map(char::to_string).collect();
    let pairs = bytes.iter().flat_map(|a| bytes.iter().map(move |b| (a, b)));
    let (mut tokens, mut merges) = (bytes.clone(), vec![]);
    for (a, b) in pairs.take(num_normal - bytes.len()) {
        tokens.push(format!("{a}{b}"));
        merges.push(format!("{a} {b}"));
    }
    tokens.extend((tokens.len()..num_normal).map(|id| format!("[unused{id}]")));
    tokens.extend(["<|begin_of_text|>".to_owned(), "<|end_of_text|>".to_owned()]);
    tokens
        .extend((0..SPECIAL_TOKENS - 2).map(|index| format!("<|reserved_special_token_{index}|>")));
    (tokens, merges)
}

/// The visible character for each byte in byte-level vocabularies (GPT-2's table).
fn byte_characters() -> Vec<char> {
    let visible = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let character = |byte: u32| {
        let code = if visible(byte) { byte } else { next };
        next += u32::from(!visible(byte));
        char::from_u32(code).unwrap_or('?')
    };
    (0..256).map(character).collect()
}
