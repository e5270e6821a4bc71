//! `bitnet convert` and `bitnet quantize`: a model in another form.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context;
use bitnet_files::Error as FileError;
use bitnet_files::gguf::{Gguf, MetadataValue};
use bitnet_inference::{NO_TOKENIZER, tokenizer_spec};
use bitnet_kernels::{Pool, default_threads};
use bitnet_models::convert::{
    CHECKPOINT_FILES, ConvertOptions, Input, Phase, Progress, Report, to_checkpoint, to_gguf,
};
use bitnet_models::huggingface::Checkpoint;
use bitnet_models::{Architecture, Config, Error, LoadOptions, SamplingDefaults};
use bitnet_tokenizers::{ChatTemplate, Tokenizer, TokenizerFiles, TokenizerSpec};
use clap::ValueEnum;
use indicatif::ProgressBar;
use serde_json::json;

use crate::args::{ConvertArguments, OutputArguments, OutputType, QuantizeArguments};
use crate::{bars, interrupt, session};

/// Metadata for a GGUF file.
type Pairs = Vec<(String, MetadataValue)>;

/// Converts a directory or a file and prints a summary.
pub fn convert(arguments: &ConvertArguments) -> anyhow::Result<()> {
    let options = arguments.reading.load_options();
    write(
        &arguments.source,
        &options,
        false,
        &arguments.output,
        arguments.weights,
    )
}

/// Quantizes a file or directory of floats and prints a summary.
pub fn quantize(arguments: &QuantizeArguments) -> anyhow::Result<()> {
    write(
        &arguments.source,
        &LoadOptions::default(),
        true,
        &arguments.output,
        arguments.weights,
    )
}

fn write(
    source: &Path,
    load_options: &LoadOptions,
    quantize: bool,
    arguments: &OutputArguments,
    weights: OutputType,
) -> anyhow::Result<()> {
    let source = &session::model_path(Some(source))?;
    let output = &arguments.output;
    let opened = Opened::open(source, quantize)
        .with_context(|| format!("cannot open {}", source.display()))?;
    opened.warn_of_readers(weights);
    let input = match &opened {
        Opened::Directory(checkpoint) => Input::Checkpoint(checkpoint),
        Opened::File(gguf) => Input::Gguf {
            gguf,
            options: load_options,
            quantize,
        },
    };
    let options = ConvertOptions {
        weights: weights.weights().unwrap_or_default(),
        directory: weights.directory(),
        tables: arguments.tables.map(Into::into),
        bf16_scales: arguments.bf16_scales,
        force: arguments.force,
        name: arguments.name.clone(),
    };
    let interrupted = interrupt::watch()?;
    let pool = Pool::new(arguments.threads.map_or_else(default_threads, usize::from));
    let mut bar = PhaseBar::default();
    let mut progress = |now: Progress<'_>| {
        bar.show(now);
        if interrupted.load(Ordering::SeqCst) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let report = match weights.weights() {
        Some(_) => {
            let pairs = opened.pairs(source)?;
            to_gguf(input, output, &options, &pairs, &pool, &mut progress)
        }
        None => {
            let files = opened.files(source)?;
            to_checkpoint(input, output, &options, &files, &pool, &mut progress)
        }
    };
    bar.finish();
    let unforced = if matches!(report, Err(Error::File(FileError::OutputExists { .. }))) {
        " without --force"
    } else {
        ""
    };
    let context = || {
        format!(
            "cannot convert {} to {}{unforced}",
            source.display(),
            output.display()
        )
    };
    let report = report.with_context(context)?;
    print(source, arguments, weights, report)
}

/// A bar for each phase of a conversion, one after the other.
#[derive(Default)]
struct PhaseBar(Option<(Phase, ProgressBar)>);

impl PhaseBar {
    fn show(&mut self, now: Progress<'_>) {
        if self.0.as_ref().is_none_or(|(phase, _)| *phase != now.phase) {
            let what = match now.phase {
                Phase::Writing => "bytes written",
                Phase::Checking => "bytes read back",
            };
            self.finish();
            self.0 = Some((now.phase, bars::bar(now.bytes_total, what)));
        }
        if let Some((_, bar)) = &self.0 {
            bar.set_position(now.bytes_done as u64);
        }
    }

    fn finish(&mut self) {
        if let Some((_, bar)) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

fn print(
    source: &Path,
    arguments: &OutputArguments,
    weights: OutputType,
    report: Report,
) -> anyhow::Result<()> {
    let output = &arguments.output;
    let name = weights
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned());
    let Report {
        scales_rounded,
        scale_change_max,
        ..
    } = report;
    if scales_rounded > 0 {
        let share = f64::from(scale_change_max) * 100.0;
        eprintln!(
            "note: {scales_rounded} scales were rounded to the 16 bits that {name} keeps, by {share:.2} % at most"
        );
    }
    let bytes = match output.is_dir() {
        false => std::fs::metadata(output)?.len(),
        true => std::fs::read_dir(output)?
            .map(|entry| Ok(entry?.metadata()?.len()))
            .sum::<std::io::Result<u64>>()?,
    };
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let object = json!({
            "source": source,
            "output": output,
            "type": name,
            "bytes": bytes,
            "scales_rounded": scales_rounded,
            "scale_change_max": scale_change_max,
        });
        writeln!(out, "{object}")?;
    } else {
        writeln!(
            out,
            "wrote {} ({bytes} bytes) and read it back",
            output.display()
        )?;
    }
    Ok(())
}

/// The model to convert.
enum Opened {
    Directory(Box<Checkpoint>),
    File(Arc<Gguf>),
}

impl Opened {
    /// quantize: whether to round float weights of a model whose configuration does not say that it
    /// is BitNet's.
    fn open(source: &Path, quantize: bool) -> Result<Self, bitnet_models::Error> {
        if !source.is_dir() {
            return Ok(Self::File(Arc::new(Gguf::open(source)?)));
        }
        let checkpoint = Checkpoint::open(source)?;
        Ok(Self::Directory(Box::new(match quantize {
            true => checkpoint.rounding_floats(),
            false => checkpoint,
        })))
    }

    /// Warns if the programs that can read this type cannot run the model's graph.
    fn warn_of_readers(&self, weights: OutputType) {
        let architecture = match self {
            Self::Directory(checkpoint) => Some(checkpoint.config().architecture),
            Self::File(gguf) => Config::from_gguf(gguf)
                .ok()
                .map(|config| config.architecture),
        };
        let is_llama_cpp = matches!(
            weights,
            OutputType::Tq1_0 | OutputType::Tq2_0 | OutputType::Q2_0
        );
        if is_llama_cpp && architecture == Some(Architecture::BitnetB158) {
            eprintln!(
                "note: llama.cpp has no graph with squared ReLU, so it cannot run this model (architecture \
                 bitnet-b1.58); this program and ik_llama.cpp can"
            );
        }
    }

    /// The metadata that the conversion does not write itself: for a directory, its whole
    /// tokenizer; for a GGUF file, the keys that it lacks or has wrong.
    fn pairs(&self, source: &Path) -> anyhow::Result<Pairs> {
        let text = |text: &str| MetadataValue::String(text.to_owned());
        match self {
            Self::Directory(checkpoint) => {
                let architecture = checkpoint.config().architecture.gguf_name();
                let Some(files) =
                    read_tokenizer_files(source, "the file will take token ids only")?
                else {
                    return Ok(vec![(
                        "tokenizer.ggml.model".to_owned(),
                        text(NO_TOKENIZER),
                    )]);
                };
                let of_source = || format!("the tokenizer of {}", source.display());
                let mut spec = files.to_spec(architecture).with_context(of_source)?;
                let tokenizer = Tokenizer::from_files(&files).with_context(of_source)?;
                // GGUF states the rows of the embedding by the list of tokens.
                let (tokens, rows) = (tokenizer.vocab_size(), checkpoint.config().vocab_size);
                if tokens > rows {
                    let (tokenizer, model) = (tokens, rows);
                    return Err(bitnet_inference::Error::VocabularySize { tokenizer, model }.into());
                }
                keep_stop_tokens(&mut spec, &tokenizer).with_context(of_source)?;
                note_lost_flags(&files);
                correct_template(&mut spec).with_context(of_source)?;
                let mut pairs = metadata(&spec);
                pairs.extend(SamplingDefaults::from_directory(source)?.metadata());
                Ok(pairs)
            }
            Self::File(gguf) => {
                let mut pairs = Vec::new();
                let Some((spec, tokenizer)) = self.known_tokenizer(gguf, "it is copied as it is")
                else {
                    return Ok(pairs);
                };
                let mut corrected = spec.clone();
                correct_template(&mut corrected)?;
                if let Some(template) = corrected
                    .chat_template
                    .filter(|new| Some(new) != spec.chat_template.as_ref())
                {
                    pairs.push(("tokenizer.chat_template".to_owned(), text(&template)));
                }
                if spec.model == "gpt2" && spec.pre.is_none() {
                    pairs.push((
                        "tokenizer.ggml.pre".to_owned(),
                        text(tokenizer.pretokenizer_name()),
                    ));
                }
                Ok(pairs)
            }
        }
    }

    /// The files of a tokenizer, by name.
    fn files(&self, source: &Path) -> anyhow::Result<Vec<(String, String)>> {
        match self {
            Self::Directory(_) => {
                // Copy the existing files, except the two that the conversion writes itself.
                let names = CHECKPOINT_FILES
                    .iter()
                    .filter(|name| !matches!(**name, "config.json" | "model.safetensors"));
                let there = names.filter(|name| source.join(name).is_file());
                let mut copied: Vec<(String, String)> = there
                    .map(|name| {
                        let path = source.join(name);
                        let text = std::fs::read_to_string(&path);
                        Ok((
                            (*name).to_owned(),
                            text.with_context(|| format!("cannot read {}", path.display()))?,
                        ))
                    })
                    .collect::<anyhow::Result<_>>()?;
                // A tokenizer.model becomes the JSON files that mean the same.
                let has_json = copied.iter().any(|(name, _)| name == "tokenizer.json");
                if !has_json && TokenizerFiles::exist_in(source) {
                    let files = TokenizerFiles::read(source)?;
                    copied.retain(|(name, _)| name != "tokenizer_config.json");
                    copied.push(("tokenizer.json".to_owned(), files.tokenizer));
                    let config = files.tokenizer_config.unwrap_or_default();
                    copied.push(("tokenizer_config.json".to_owned(), config));
                }
                Ok(copied)
            }
            Self::File(gguf) => {
                let Some((mut spec, _)) =
                    self.known_tokenizer(gguf, "the directory will take token ids only")
                else {
                    return Ok(Vec::new());
                };
                correct_template(&mut spec)?;
                let files = match spec.to_files() {
                    Ok(files) => files,
                    Err(error) => {
                        eprintln!("warning: {error}, so the directory will take token ids only");
                        return Ok(Vec::new());
                    }
                };
                let generation = files
                    .generation_config
                    .map(|text| with_sampling(&text, &SamplingDefaults::from_gguf(gguf)?))
                    .transpose()?;
                let named = [
                    ("tokenizer.json", Some(files.tokenizer)),
                    ("tokenizer_config.json", files.tokenizer_config),
                    ("generation_config.json", generation),
                ];
                Ok(named
                    .into_iter()
                    .filter_map(|(name, text)| Some((name.to_owned(), text?)))
                    .collect())
            }
        }
    }

    /// The tokenizer of a file, if it has one that can be read; otherwise prints a warning with the
    /// consequence.
    fn known_tokenizer<'a>(
        &self,
        gguf: &'a Gguf,
        consequence: &str,
    ) -> Option<(TokenizerSpec<'a>, Tokenizer)> {
        let spec = match tokenizer_spec(gguf) {
            Ok(spec) => spec,
            Err(bitnet_inference::Error::NoTokenizer) => return None,
            Err(error) => {
                eprintln!("warning: the tokenizer is not understood, {consequence}: {error}");
                return None;
            }
        };
        match Tokenizer::from_spec(&spec) {
            Ok(tokenizer) => Some((spec, tokenizer)),
            Err(error) => {
                eprintln!("warning: the tokenizer is not understood, {consequence}: {error}");
                None
            }
        }
    }
}

/// The tokenizer files of a directory, if there are any; otherwise prints a warning with the
/// consequence.
fn read_tokenizer_files(
    source: &Path,
    consequence: &str,
) -> anyhow::Result<Option<TokenizerFiles>> {
    if TokenizerFiles::exist_in(source) {
        return Ok(Some(TokenizerFiles::read(source)?));
    }
    eprintln!(
        "warning: {} has no tokenizer.json and no tokenizer.model, so {consequence}",
        source.display()
    );
    Ok(None)
}

/// A `generation_config.json` with the sampling that a GGUF file recommends.
fn with_sampling(text: &str, sampling: &SamplingDefaults) -> anyhow::Result<String> {
    let mut json = serde_json::from_str(text)?;
    sampling.write_into(&mut json);
    Ok(format!("{json:#}\n"))
}

/// Readers of GGUF files recognize some stop tokens by their text. Gives the other stop tokens of a
/// directory the two further roles that GGUF has, and reports those that are left.
fn keep_stop_tokens(spec: &mut TokenizerSpec<'_>, original: &Tokenizer) -> anyhow::Result<()> {
    let known = Tokenizer::from_spec(spec)?;
    let mut lost = original
        .stop_ids()
        .iter()
        .filter(|id| !known.stop_ids().contains(id))
        .map(|id| id.0)
        .collect::<Vec<_>>()
        .into_iter();
    for role in [&mut spec.eot, &mut spec.eom] {
        if role.is_none() {
            *role = lost.next();
        }
    }
    let left: Vec<u32> = lost.collect();
    if !left.is_empty() {
        eprintln!(
            "note: GGUF has no place for all tokens that end an answer: {left:?} will not end one"
        );
    }
    Ok(())
}

/// Reports the flags of added tokens that GGUF cannot hold.
fn note_lost_flags(files: &TokenizerFiles) {
    let json: serde_json::Value = serde_json::from_str(&files.tokenizer).unwrap_or_default();
    let has_flags = |token: &&serde_json::Value| {
        ["lstrip", "rstrip", "single_word"]
            .iter()
            .any(|flag| token[*flag] == true)
    };
    let tokens = json["added_tokens"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let names: Vec<String> = tokens
        .iter()
        .filter(has_flags)
        .map(|token| token["content"].to_string())
        .collect();
    if !names.is_empty() {
        eprintln!(
            "note: GGUF cannot store lstrip, rstrip and single_word, which {} added tokens have: {}",
            names.len(),
            names[..names.len().min(4)].join(", ")
        );
    }
}

/// Replaces a chat template that is known to be wrong or missing, and reports it.
fn correct_template(spec: &mut TokenizerSpec<'_>) -> anyhow::Result<()> {
    let tokenizer = Tokenizer::from_spec(spec)?;
    // A template that does not compile stays as it is.
    if let Ok(Some(template)) = ChatTemplate::detect(&spec.architecture, &tokenizer)
        && let Some(correction) = template.correction()
        && spec.chat_template.as_deref() != Some(correction)
    {
        if spec.chat_template.is_some() {
            eprintln!(
                "note: the chat template is replaced by {}: {}",
                template.name(),
                template.reason()
            );
        }
        spec.chat_template = Some(correction.into());
    }
    Ok(())
}

/// A tokenizer as the metadata of a GGUF file.
fn metadata(spec: &TokenizerSpec<'_>) -> Pairs {
    let mut pairs = Vec::new();
    let mut put = |name: &str, value| pairs.push((format!("tokenizer.ggml.{name}"), value));
    let text = |text: &str| MetadataValue::String(text.to_owned());
    let texts = |list: &[std::borrow::Cow<'_, str>]| {
        MetadataValue::Strings(list.iter().map(|t| t.to_string()).collect())
    };
    put("model", text(&spec.model));
    if let Some(pre) = &spec.pre {
        put("pre", text(pre));
    }
    put("tokens", texts(&spec.tokens));
    if !spec.scores.is_empty() {
        put("scores", MetadataValue::F32s(spec.scores.clone()));
    }
    put("token_type", MetadataValue::I32s(spec.token_types.clone()));
    if !spec.merges.is_empty() {
        put("merges", texts(&spec.merges));
    }
    let ids = [
        ("bos_token_id", spec.bos),
        ("eos_token_id", spec.eos),
        ("eot_token_id", spec.eot),
        ("eom_token_id", spec.eom),
        ("unknown_token_id", spec.unknown),
        ("padding_token_id", spec.padding),
    ];
    for (name, id) in ids {
        if let Some(id) = id {
            put(name, MetadataValue::U32(id));
        }
    }
    let flags = [
        ("add_bos_token", spec.add_bos),
        ("add_eos_token", spec.add_eos),
        ("add_space_prefix", spec.add_space_prefix),
    ];
    for (name, flag) in flags {
        if let Some(flag) = flag {
            put(name, MetadataValue::Bool(flag));
        }
    }
    if let Some(template) = &spec.chat_template {
        pairs.push(("tokenizer.chat_template".to_owned(), text(template)));
    }
    if !spec.named_chat_templates.is_empty() {
        let names: Vec<_> = spec
            .named_chat_templates
            .iter()
            .map(|(name, _)| name.clone())
            .collect();
        pairs.push(("tokenizer.chat_templates".to_owned(), texts(&names)));
    }
    for (name, template) in &spec.named_chat_templates {
        pairs.push((format!("tokenizer.chat_template.{name}"), text(template)));
    }
    pairs
}
