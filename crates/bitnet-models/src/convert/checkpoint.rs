//! Writes a model as a Hugging Face directory with one safetensors file: packed uint8 projections
//! with a scale beside each, or what `mlx.rs` makes of them.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use bitnet_files::safetensors::{DType, INDEX, SINGLE, SafetensorsWriter, TensorEntry};
use bitnet_files::{Checksum, Error as FileError, Output, Replace, read_json, shown};
use bitnet_kernels::Pool;
use bitnet_quantization::dense::Dense;
use half::bf16;

use super::items::{Content, Item, float_type, table_item};
use super::{
    ConvertOptions, DirectoryForm, Input, Meter, Opened, Phase, ProgressFn, Report, TableType,
    WeightType, mlx,
};
use crate::config::{Config, RopePairs};
use crate::error::{Error, Result};
use crate::huggingface::config::{packed_quantization, repeat_rope_theta, write as config_json};
use crate::huggingface::names::name as huggingface_name;
use crate::huggingface::{CONFIG, Checkpoint};
use crate::source::slots::slots;
use crate::source::{LayerSlot, Slot, Source};
use crate::table::Table;

/// The files that a converted directory can hold. [`to_checkpoint`] only replaces a directory that
/// holds nothing but these files and parts of weights.
pub const CHECKPOINT_FILES: &[&str] = &[
    CONFIG,
    SINGLE,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
];

/// Whether a file belongs to a model directory: one of ours, or a part of weights in several files.
fn is_part(name: &str) -> bool {
    let is_shard =
        || name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors");
    CHECKPOINT_FILES.contains(&name) || name == INDEX || is_shard()
}

/// Writes a model to the directory `path`: config.json, model.safetensors and `files`, such as a
/// tokenizer's, by name.
///
/// Norms and scales are BF16 if that is exact, else F32, unless the options ask for BF16 scales.
/// The tables are BF16 if that is exact for them, all norms and all scales, else F32, unless the
/// options name a type. `config.json` states the type of the tables.
///
/// # Errors
/// If the model cannot be loaded, this form cannot hold it, the path exists, or the system refuses.
/// An error leaves no files behind.
///
/// # Panics
/// If a file has a name that is not in [`CHECKPOINT_FILES`].
pub fn to_checkpoint(
    input: Input<'_>,
    path: &Path,
    options: &ConvertOptions,
    files: &[(String, String)],
    pool: &Pool,
    progress: &mut ProgressFn<'_>,
) -> Result<Report> {
    assert!(
        files
            .iter()
            .all(|(name, _)| CHECKPOINT_FILES.contains(&&**name)),
        "a file of another name"
    );
    let opened = input.open()?;
    let source = opened.source();
    source.check_tensors()?;
    let config = source.config();
    match options.directory {
        DirectoryForm::Packed => check_graph(config)?,
        DirectoryForm::Mlx => mlx::check(source, options.bf16_scales)?,
    }
    let mut json = config_of(&opened, options)?;
    // Check before measuring the scales of float weights, which takes a while.
    let replace = if options.force {
        Replace::Only(is_part)
    } else {
        Replace::Nothing
    };
    let output = Output::directory(path, replace)?;
    let mut plan = plan(source, options, pool)?;
    let floats = match options.directory {
        DirectoryForm::Packed => settle_tables(&mut plan, options.tables),
        DirectoryForm::Mlx => {
            mlx::state(&mut json, &plan);
            "float16"
        }
    };
    state_type(&mut json, floats);
    let entries: Vec<TensorEntry> = plan.iter().map(|item| item.entry.clone()).collect();
    let bytes_total = entries.iter().map(TensorEntry::num_bytes).sum();

    let text = serde_json::to_string_pretty(&json).unwrap_or_default(); // a map of strings has a text
    write_text(&output.partial().join(CONFIG), &(text + "\n"))?;
    for (name, text) in files {
        write_text(&output.partial().join(name), text)?;
    }
    let mut meter = Meter {
        progress,
        phase: Phase::Writing,
        bytes_done: 0,
        bytes_total,
    };
    let written = write_weights(output.partial(), &plan, entries, pool, &mut meter)?;
    meter.start_checking();
    let config = Config {
        rope_pairs: RopePairs::HalfSplit, // in every directory
        ..config.clone()
    };
    read_back(output.partial(), &config, &written, &mut meter)?;
    output.commit()?;
    let mut report = Report {
        tensor_bytes: bytes_total,
        ..Report::default()
    };
    if options.bf16_scales {
        note_scales(&plan, &mut report)?;
    }
    Ok(report)
}

/// The tensors to write.
fn plan(source: &dyn Source, options: &ConvertOptions, pool: &Pool) -> Result<Vec<Item>> {
    let mut plan = Vec::new();
    for slot in slots(source) {
        plan.extend(match options.directory {
            DirectoryForm::Packed => items(slot, source, options, pool)?,
            DirectoryForm::Mlx => mlx::items(slot, source, asked(options), pool)?,
        });
    }
    Ok(plan)
}

/// Notes what BF16 changes in the scales.
fn note_scales(plan: &[Item], report: &mut Report) -> Result<()> {
    for item in plan {
        if let Content::Codes(tensor) = &item.content {
            report.note_scale(&item.entry.name, WeightType::BF16, tensor.scale)?;
        }
    }
    Ok(())
}

/// Packed directories cannot hold every graph.
fn check_graph(config: &Config) -> Result<()> {
    if !config.architecture.has_matrix_scales() {
        let problem = format!(
            "packed directories hold models of BitNet and Llama, this is {}",
            config.architecture_name
        );
        return Err(Error::Convert { problem });
    }
    Ok(())
}

/// Writes all tensors to one file in `folder`. Returns them with their checksums.
fn write_weights(
    folder: &Path,
    plan: &[Item],
    entries: Vec<TensorEntry>,
    pool: &Pool,
    meter: &mut Meter<'_, '_>,
) -> Result<Vec<(TensorEntry, Checksum)>> {
    let weights = folder.join(SINGLE);
    let file = File::create(&weights).map_err(|source| FileError::Write {
        path: weights.clone(),
        source,
    })?;
    let mut writer = SafetensorsWriter::new(file, &weights, entries)?;
    for item in plan {
        writer.begin_tensor()?;
        item.write(pool, &mut |bytes| {
            writer.write(bytes)?;
            meter.advance(&item.entry.name, bytes.len())
        })?;
    }
    Ok(writer.finish()?)
}

/// The configuration: the source's own with another quantization, or one made from a GGUF file.
fn config_of(opened: &Opened<'_>, options: &ConvertOptions) -> Result<serde_json::Value> {
    let mut json = match opened {
        Opened::Checkpoint(checkpoint) => {
            let mut json = read_json(&checkpoint.path().join(CONFIG))?;
            json.as_object_mut()
                .map(|object| object.remove("quantization"));
            repeat_rope_theta(&mut json, checkpoint.config());
            // This field refers to code of the original repository, which is not copied.
            json.as_object_mut().map(|object| object.remove("auto_map"));
            json
        }
        Opened::Gguf(source) => {
            if source.rope_factors()?.is_some() {
                let problem = "rope_freqs.weight: a config.json cannot state rotary factors, only rules that make them";
                return Err(Error::Convert {
                    problem: problem.to_owned(),
                });
            }
            let id = |name: &str| {
                source
                    .metadata()
                    .u32(&format!("tokenizer.ggml.{name}_token_id"))
            };
            config_json(source.config(), !source.has_head(), id("bos")?, id("eos")?)
        }
    };
    let name = match opened {
        Opened::Gguf(source) => options
            .name
            .clone()
            .or_else(|| source.config().name.clone()),
        Opened::Checkpoint(_) => options.name.clone(),
    };
    if let Some(name) = name {
        json["_name_or_path"] = name.into();
    }
    json["quantization_config"] = packed_quantization(opened.source().config());
    Ok(json)
}

/// Chooses the type of the tables, and returns its name in `config.json`.
///
/// transformers keeps each tensor's type and unpacks the ternary weights to the type that
/// `config.json` states. Its linear layers take one type only, but norms, scales and embeddings
/// promote hidden states: F16 and BF16 together to F32. So tables, norms and scales must all be
/// BF16, or the tables F32.
fn settle_tables(plan: &mut [Item], asked: Option<TableType>) -> &'static str {
    let is_bf16 = plan.iter().all(|item| match &item.content {
        Content::Table(table, _) => is_exact_in_bf16(table),
        Content::Codes(_) | Content::Affine(_) => true,
        Content::Floats(_) => item.entry.dtype == DType::BF16,
    });
    let (format, dtype, name) = match asked {
        Some(TableType::F16) => return "float16",
        Some(TableType::BF16) => return "bfloat16",
        Some(_) => return "float32",
        None if is_bf16 => (Dense::BF16, DType::BF16, "bfloat16"),
        None => (Dense::F32, DType::F32, "float32"),
    };
    for item in plan {
        if let Content::Table(_, written) = &mut item.content {
            (*written, item.entry.dtype) = (format, dtype);
        }
    }
    name
}

/// States the type of floats in the configuration, under the key that it has.
fn state_type(json: &mut serde_json::Value, dtype: &str) {
    let key = match json["dtype"].is_null() {
        true => "torch_dtype",
        false => "dtype",
    };
    json[key] = dtype.into();
}

/// Whether BF16 holds each value of a table. Reads the whole table if it is F16.
fn is_exact_in_bf16(table: &Table) -> bool {
    match table.format() {
        Dense::BF16 => true,
        Dense::F16 => {
            let mut values = vec![0.0; table.cols()];
            (0..table.rows()).all(|row| {
                table.read_row(row, &mut values);
                float_type(&values) == DType::BF16
            })
        }
        _ => false,
    }
}

/// The tensors of a slot: weights and scale for a projection, one for all others.
fn items(
    slot: Slot,
    source: &dyn Source,
    options: &ConvertOptions,
    pool: &Pool,
) -> Result<Vec<Item>> {
    let config = source.config();
    let name = huggingface_name(slot);
    let floats = |name, values: Vec<f32>| {
        let dtype = float_type(&values);
        Item::new(name, dtype, vec![values.len()], Content::Floats(values))
    };
    Ok(match slot {
        Slot::Embedding | Slot::Head => {
            let (rows, cols) = (config.vocab_size, config.hidden_size);
            vec![table_item(
                name,
                source.table(slot, rows, cols)?,
                asked(options),
            )?]
        }
        Slot::Layer(index, LayerSlot::Weight(projection)) => {
            let (rows, cols) = projection.shape(config);
            if !rows.is_multiple_of(4) {
                let problem =
                    format!("{projection:?} has {rows} rows, which cannot be packed in fours");
                return Err(Error::Convert { problem });
            }
            let tensor = source.projection(index, projection, rows, cols, pool)?;
            let scale = match options.bf16_scales {
                true => bf16::from_f32(tensor.scale).to_f32(),
                false => tensor.scale,
            };
            let scale = floats(format!("{name}_scale"), vec![scale]);
            let codes = Content::Codes(tensor);
            vec![
                Item::new(name, DType::U8, vec![rows / 4, cols], codes),
                scale,
            ]
        }
        Slot::OutputNorm => vec![floats(name, source.vector(slot, config.hidden_size)?)],
        Slot::Layer(_, norm) => {
            let len = norm.dims(config).iter().product();
            vec![floats(name, source.vector(slot, len)?)]
        }
    })
}

/// The type of tables that the options ask for.
fn asked(options: &ConvertOptions) -> Option<Dense> {
    options.tables.map(TableType::format)
}

/// Writes a small file and waits until it is stored.
fn write_text(path: &Path, text: &str) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    Ok(write().map_err(|source| FileError::Write {
        path: path.to_owned(),
        source,
    })?)
}

/// Opens the written directory and compares it with the source.
fn read_back(
    path: &Path,
    config: &Config,
    tensors: &[(TensorEntry, Checksum)],
    meter: &mut Meter<'_, '_>,
) -> Result<()> {
    let wrong = |problem| Error::ReadBack {
        path: path.to_owned(),
        problem,
    };
    let checkpoint = Checkpoint::open(path)?;
    checkpoint.check_tensors()?;
    if checkpoint.tensors().len() != tensors.len() {
        return Err(wrong(format!(
            "it has {} tensors, expected {}",
            checkpoint.tensors().len(),
            tensors.len()
        )));
    }
    for (entry, checksum) in tensors {
        let same = match checkpoint.stored(&entry.name) {
            Some((dtype, shape, data)) => {
                (dtype, shape) == (entry.dtype, &entry.shape[..])
                    && meter.check(&entry.name, data, checksum, &|| data.advise_done())?
            }
            None => false,
        };
        if !same {
            return Err(wrong(format!(
                "tensor {} has other bytes",
                shown(&entry.name)
            )));
        }
    }
    // The names may differ.
    let plain = |config: &Config| Config {
        name: None,
        architecture_name: String::new(),
        ..config.clone()
    };
    let (found, expected) = (plain(checkpoint.config()), plain(config));
    if found != expected {
        return Err(wrong(format!(
            "its configuration is {found:?}, expected {expected:?}"
        )));
    }
    Ok(())
}
