//! `bitnet inspect`: shows a model's files, and warns about what is odd in them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use bitnet_files::gguf::{Array, Gguf, TensorType, TensorView, Value, ValueKind};
use bitnet_inference::{
    LOST_ROTATION, Tokenization, likely_i2s_form, load_tokenization, tokenization_from_gguf,
};
use bitnet_models::huggingface::Checkpoint;
use bitnet_models::{
    Config, I2sForm, LoadOptions, SamplingDefaults, Tl1Tile, Tl2Tile, check_gguf, lost_rotation,
};
use bitnet_tokenizers::{ChatTemplate, ReasoningTags};
use serde_json::json;

use crate::args::InspectArguments;
use crate::report::{Printable, config_json};
use crate::session::{left_out, model_path};

/// How many elements of a metadata array are shown.
const SHOWN_ELEMENTS: usize = 4;
/// How many characters of a metadata string are shown.
const SHOWN_CHARACTERS: usize = 72;

/// Prints architecture, shapes, types, sizes, tokenizer, template and warnings.
pub fn inspect(arguments: &InspectArguments) -> anyhow::Result<()> {
    let path = model_path(
        arguments
            .model
            .as_deref()
            .or(arguments.model_option.as_deref()),
    )?;
    if path.is_dir() {
        return inspect_directory(&path, arguments);
    }
    let file = InspectedFile::open(&path)?;
    let mut out = Printable::new(std::io::stdout().lock());
    if arguments.json {
        writeln!(out.exact(), "{}", file.json(arguments.tensors))?;
        return Ok(());
    }
    file.write(&mut out, arguments.tensors)
}

/// A GGUF file and its contents.
struct InspectedFile<'a> {
    path: &'a Path,
    gguf: Arc<Gguf>,
    config: Result<Config, bitnet_models::Error>,
    tokenization: bitnet_inference::Result<Tokenization>,
    sampling: Result<SamplingDefaults, bitnet_models::Error>,
    odd: Vec<String>,
}

impl<'a> InspectedFile<'a> {
    fn open(path: &'a Path) -> anyhow::Result<Self> {
        let gguf = Gguf::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let gguf = Arc::new(gguf);
        let config = Config::from_gguf(&gguf);
        let tokenization = tokenization_from_gguf(&gguf);
        let sampling = SamplingDefaults::from_gguf(&gguf);
        let mut odd = faults(&config, &tokenization, &sampling, false);
        if config.is_ok() {
            let check = check_gguf(&gguf, &LoadOptions::default());
            odd.extend(check.err().map(cannot_run));
        }
        odd.extend(oddities(
            &gguf,
            config.as_ref().ok(),
            tokenization.as_ref().ok(),
        ));
        Ok(Self {
            path,
            gguf,
            config,
            tokenization,
            sampling,
            odd,
        })
    }

    fn write(&self, out: &mut impl Write, tensors: bool) -> anyhow::Result<()> {
        let gguf = &self.gguf;
        let metadata = gguf.metadata();
        writeln!(out, "{}", self.path.display())?;
        writeln!(
            out,
            "  GGUF version {}, {} bytes, {} metadata keys, {} tensors",
            gguf.version(),
            gguf.file_len(),
            metadata.len(),
            gguf.tensors().len()
        )?;
        match &self.config {
            Ok(config) => write_config(out, config, is_tied(gguf))?,
            Err(error) => writeln!(out, "\nModel: cannot be run: {error}")?,
        }
        writeln!(out, "\nTensors by type")?;
        for (name, total) in totals(gguf) {
            let bits = total.bytes as f64 * 8.0 / total.elements as f64;
            writeln!(
                out,
                "  {name:8} {:5} tensors {:14} elements {:13} bytes  {bits:.3} bits each",
                total.tensors, total.elements, total.bytes
            )?;
        }
        write_tokenizer(out, &self.tokenization)?;
        write_sampling(out, &self.sampling)?;
        writeln!(out, "\nMetadata")?;
        for (key, value) in metadata.iter() {
            writeln!(out, "  {key} = {}", show(&value))?;
        }
        if tensors {
            writeln!(out, "\nTensors")?;
            for tensor in gguf.tensors() {
                writeln!(
                    out,
                    "  {:36} {:6} {:?} {} bytes",
                    tensor.name,
                    tensor.dtype.name(),
                    tensor.dims,
                    tensor.data.len()
                )?;
            }
        }
        write_odd(out, &self.odd)
    }

    fn json(&self, tensors: bool) -> serde_json::Value {
        let gguf = &self.gguf;
        let model = match &self.config {
            Ok(config) => config_json(config, is_tied(gguf)),
            Err(error) => json!({ "error": error.to_string() }),
        };
        let types: BTreeMap<&str, serde_json::Value> = totals(gguf)
            .into_iter()
            .map(|(name, t)| {
                (
                    name,
                    json!({ "tensors": t.tensors, "elements": t.elements, "bytes": t.bytes }),
                )
            })
            .collect();
        let metadata: BTreeMap<&str, String> = gguf
            .metadata()
            .iter()
            .map(|(key, value)| (key, show(&value)))
            .collect();
        let mut object = json!({
            "path": self.path.display().to_string(),
            "gguf_version": gguf.version(),
            "bytes": gguf.file_len(),
            "model": model,
            "types": types,
            "tokenizer": tokenizer_json(&self.tokenization),
            "sampling": sampling_json(&self.sampling),
            "metadata": metadata,
            "odd": self.odd,
        });
        if tensors {
            let list = gguf
                .tensors()
                .map(|t| json!({ "name": t.name, "type": t.dtype.name(), "dims": t.dims, "bytes": t.data.len() }));
            object["tensors"] = list.collect();
        }
        object
    }
}

fn write_odd(out: &mut impl Write, odd: &[String]) -> anyhow::Result<()> {
    writeln!(out, "\nWarnings")?;
    if odd.is_empty() {
        writeln!(out, "  none")?;
    }
    for line in odd {
        writeln!(out, "  {line}")?;
    }
    Ok(())
}

fn write_sampling(
    out: &mut impl Write,
    sampling: &Result<SamplingDefaults, bitnet_models::Error>,
) -> std::io::Result<()> {
    match sampling {
        Ok(sampling) if sampling.is_empty() => return Ok(()),
        Ok(sampling) => {
            writeln!(out, "\nRecommended sampling")?;
            for (name, value) in sampling.named() {
                writeln!(out, "  {name:18} {value}")?;
            }
        }
        Err(error) => writeln!(out, "\nRecommended sampling: cannot be used: {error}")?,
    }
    Ok(())
}

fn sampling_json(sampling: &Result<SamplingDefaults, bitnet_models::Error>) -> serde_json::Value {
    match sampling {
        Ok(sampling) => sampling
            .named()
            .into_iter()
            .map(|(name, value)| (name, json!(value)))
            .collect(),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

fn cannot_run(error: bitnet_models::Error) -> String {
    format!("the model cannot be run: {}", chain(&error))
}

/// An error and its causes on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = anyhow::Chain::new(error).map(ToString::to_string);
    causes.collect::<Vec<_>>().join(": ")
}

/// Why a model, its tokenizer or its template cannot be used.
fn faults(
    config: &Result<Config, bitnet_models::Error>,
    tokenization: &bitnet_inference::Result<Tokenization>,
    sampling: &Result<SamplingDefaults, bitnet_models::Error>,
    is_directory: bool,
) -> Vec<String> {
    let mut faults = Vec::new();
    if let Err(error) = config {
        faults.push(format!("the model cannot be run: {}", chain(error)));
    }
    match tokenization {
        Err(bitnet_inference::Error::NoTokenizer) => {
            faults.push("there is no tokenizer: the model takes and gives token ids only".into());
        }
        Err(error) => faults.push(format!("the tokenizer cannot be used: {}", chain(error))),
        Ok(Tokenization {
            tokenizer,
            chat_template,
        }) => {
            if let Err(error) = chat_template {
                let error = chain(error);
                faults.push(format!(
                    "the chat template cannot be used, so every chat fails: {error}"
                ));
            }
            let tokens = tokenizer.vocab_size();
            if let Ok(config) = config
                && tokens > config.vocab_size
            {
                let rows = config.vocab_size;
                let consequence = match is_directory {
                    true => "prompts with the others are refused",
                    false => "it cannot be loaded",
                };
                faults.push(format!(
                    "the tokenizer has {tokens} tokens, but the model only {rows}, so {consequence}"
                ));
            }
        }
    }
    if let Err(error) = sampling {
        faults.push(format!(
            "the recommended sampling cannot be used: {}",
            chain(error)
        ));
    }
    faults
}

/// Inspects a directory in Hugging Face's layout.
fn inspect_directory(path: &Path, arguments: &InspectArguments) -> anyhow::Result<()> {
    let checkpoint =
        Checkpoint::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let tokenization = load_tokenization(path);
    let sampling = SamplingDefaults::from_directory(path);
    let config = Ok(checkpoint.config().clone());
    let mut odd = faults(&config, &tokenization, &sampling, true);
    if let Some(factor) = checkpoint.untyped_rope_factor() {
        odd.push(format!(
            "config.json scales positions by {factor} without a rope_type, so that it is ignored, as in transformers"
        ));
    }
    odd.extend(checkpoint.check().err().map(cannot_run));
    if let Ok(tokenization) = &tokenization {
        let has_own = path.join("chat_template.jinja").exists();
        odd.extend(template_in_place_of_another(has_own, tokenization));
    }
    odd.extend(left_out(0, checkpoint.num_left_out()));
    if !checkpoint.quantization().is_stated {
        let line = "config.json has no quantization_config: transformers runs the weights as floats; here they \
                    must hold zeros and one magnitude, and `bitnet quantize` rounds others";
        odd.push(line.to_owned());
    }
    let directory = InspectedDirectory {
        path,
        checkpoint,
        tokenization,
        sampling,
        odd,
    };
    let mut out = Printable::new(std::io::stdout().lock());
    if arguments.json {
        writeln!(out.exact(), "{}", directory.json(arguments.tensors))?;
        return Ok(());
    }
    directory.write(&mut out, arguments.tensors)
}

/// A directory in Hugging Face's layout and its contents.
struct InspectedDirectory<'a> {
    path: &'a Path,
    checkpoint: Checkpoint,
    tokenization: bitnet_inference::Result<Tokenization>,
    sampling: Result<SamplingDefaults, bitnet_models::Error>,
    odd: Vec<String>,
}

impl InspectedDirectory<'_> {
    fn num_bytes(&self) -> usize {
        let tensors = self.checkpoint.tensors();
        tensors.map(|tensor| tensor.num_bytes).sum()
    }

    /// The number of tensors and bytes of each type.
    fn types(&self) -> BTreeMap<&str, (usize, usize)> {
        let mut types: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for tensor in self.checkpoint.tensors() {
            let total = types.entry(tensor.dtype.name()).or_default();
            *total = (total.0 + 1, total.1 + tensor.num_bytes);
        }
        types
    }

    fn json(&self, tensors: bool) -> serde_json::Value {
        let checkpoint = &self.checkpoint;
        let types: BTreeMap<&str, serde_json::Value> = self
            .types()
            .into_iter()
            .map(|(name, (n, bytes))| (name, json!({ "tensors": n, "bytes": bytes })))
            .collect();
        let mut object = json!({
            "path": self.path.display().to_string(),
            "bytes": self.num_bytes(),
            "model": config_json(checkpoint.config(), checkpoint.is_tied()),
            "types": types,
            "tokenizer": tokenizer_json(&self.tokenization),
            "sampling": sampling_json(&self.sampling),
            "odd": self.odd,
        });
        if tensors {
            let list = checkpoint
                .tensors()
                .map(|t| json!({ "name": t.name, "type": t.dtype.name(), "dims": t.shape, "bytes": t.num_bytes }));
            object["tensors"] = list.collect();
        }
        object
    }

    fn write(&self, out: &mut impl Write, tensors: bool) -> anyhow::Result<()> {
        let checkpoint = &self.checkpoint;
        writeln!(out, "{}", self.path.display())?;
        writeln!(
            out,
            "  Hugging Face directory, {} bytes in {} tensors",
            self.num_bytes(),
            checkpoint.tensors().len()
        )?;
        write_config(out, checkpoint.config(), checkpoint.is_tied())?;
        writeln!(out, "\nTensors by type")?;
        for (name, (tensors, bytes)) in self.types() {
            writeln!(out, "  {name:8} {tensors:5} tensors {bytes:13} bytes")?;
        }
        write_tokenizer(out, &self.tokenization)?;
        write_sampling(out, &self.sampling)?;
        if tensors {
            writeln!(out, "\nTensors")?;
            for t in checkpoint.tensors() {
                writeln!(
                    out,
                    "  {:56} {:6} {:?} {} bytes",
                    t.name,
                    t.dtype.name(),
                    t.shape,
                    t.num_bytes
                )?;
            }
        }
        write_odd(out, &self.odd)
    }
}

fn write_config(out: &mut impl Write, config: &Config, tied: bool) -> std::io::Result<()> {
    let a = config.attention;
    writeln!(out, "\nModel")?;
    writeln!(
        out,
        "  name          {}",
        config.name.as_deref().unwrap_or("(none)")
    )?;
    writeln!(
        out,
        "  architecture  {} ({:?} gate, {:?} rotation)",
        config.architecture_name,
        config.architecture.gate(),
        config.rope_pairs
    )?;
    writeln!(out, "  layers        {}", config.num_layers)?;
    if config.linear.is_some() {
        writeln!(
            out,
            "  of them       {} linear attention, whose state takes {} bytes a sequence",
            config.num_layers - config.num_attention_layers(),
            config.state_len() * size_of::<f32>()
        )?;
    }
    writeln!(out, "  hidden        {}", config.hidden_size)?;
    writeln!(out, "  feed-forward  {}", config.ffn_size)?;
    writeln!(
        out,
        "  heads         {} of {} (key/value heads {})",
        a.heads, a.head_dim, a.kv_heads
    )?;
    writeln!(
        out,
        "  vocabulary    {} ({} head)",
        config.vocab_size,
        if tied { "tied" } else { "untied" }
    )?;
    writeln!(out, "  context       {}", config.context_length)?;
    writeln!(out, "  rope theta    {}", config.rope_theta)?;
    if let Some(yarn) = config.yarn {
        writeln!(
            out,
            "  YaRN          {} times the {} positions of the training",
            yarn.factor, yarn.original_context
        )?;
    }
    writeln!(out, "  norm epsilon  {:e}", config.rms_norm_eps)?;
    Ok(())
}

fn write_tokenizer(
    out: &mut impl Write,
    tokenization: &bitnet_inference::Result<Tokenization>,
) -> std::io::Result<()> {
    match tokenization {
        Ok(Tokenization {
            tokenizer,
            chat_template,
        }) => {
            writeln!(out, "\nTokenizer")?;
            writeln!(
                out,
                "  model         {} ({} pre-tokenizer)",
                tokenizer.model_name(),
                tokenizer.pretokenizer_name()
            )?;
            writeln!(out, "  tokens        {}", tokenizer.vocab_size())?;
            let name = |id| {
                format!(
                    "{id} {:?}",
                    String::from_utf8_lossy(tokenizer.token_bytes(id))
                )
            };
            let bos = tokenizer.bos().map_or("(none)".to_owned(), name);
            writeln!(
                out,
                "  begins with   {bos}{}",
                if tokenizer.adds_bos() {
                    ""
                } else {
                    ", which is not added"
                }
            )?;
            let stops: Vec<String> = tokenizer.stop_ids().iter().map(|id| name(*id)).collect();
            writeln!(out, "  stops at      {}", stops.join(", "))?;
            match chat_template {
                Ok(Some(template)) => writeln!(
                    out,
                    "  chat template {} ({})",
                    template.name(),
                    template.reason()
                )?,
                Ok(None) => writeln!(out, "  chat template (none)")?,
                Err(error) => writeln!(out, "  chat template cannot be used: {error}")?,
            }
            let names: Vec<&str> = tokenizer.chat_template_names().collect();
            if !names.is_empty() {
                writeln!(out, "  others        {}", names.join(", "))?;
            }
            if let Some(tags) = reasoning(chat_template) {
                writeln!(out, "  thinks        {} … {}", tags.begin, tags.end)?;
            }
        }
        Err(error) => writeln!(out, "\nTokenizer: cannot be used: {error}")?,
    }
    Ok(())
}

/// The tags around a model's thinking, if its template has them.
fn reasoning<E>(template: &Result<Option<Arc<ChatTemplate>>, E>) -> Option<ReasoningTags> {
    template.as_ref().ok()?.as_ref()?.reasoning_tags()
}

fn is_tied(gguf: &Gguf) -> bool {
    gguf.tensor("output.weight").is_none()
}

#[derive(Default)]
struct Total {
    tensors: usize,
    elements: usize,
    bytes: usize,
}

fn totals(gguf: &Gguf) -> BTreeMap<&'static str, Total> {
    let mut totals: BTreeMap<&'static str, Total> = BTreeMap::new();
    for tensor in gguf.tensors() {
        let total = totals.entry(tensor.dtype.name()).or_default();
        total.tensors += 1;
        total.elements += tensor.rows() * tensor.cols();
        total.bytes += tensor.data.len();
    }
    totals
}

/// What is odd in a file that runs nevertheless.
fn oddities(
    gguf: &Gguf,
    config: Option<&Config>,
    tokenization: Option<&Tokenization>,
) -> Vec<String> {
    let mut odd = Vec::new();
    let metadata = gguf.metadata();
    let is = |key: &str| metadata.get(key).is_some();
    if metadata
        .get("tokenizer.ggml.model")
        .and_then(|v| v.as_str())
        == Some("gpt2")
        && !is("tokenizer.ggml.pre")
    {
        let used = tokenization.map_or("unknown", |t| t.tokenizer.pretokenizer_name());
        odd.push(format!("tokenizer.ggml.pre is missing: {used} is used"));
    }
    if let Some(tokenization) = tokenization {
        odd.extend(template_in_place_of_another(
            is("tokenizer.chat_template"),
            tokenization,
        ));
    }
    odd.extend(token_ids_out_of_range(gguf));
    if lost_rotation(metadata) {
        odd.push(LOST_ROTATION.to_owned());
    }
    odd.extend(left_out(
        config.map_or(0, |config| config.num_extra_layers),
        0,
    ));
    if let Some(head) = gguf.tensor("output.weight") {
        let same = gguf
            .tensor("token_embd.weight")
            .is_some_and(|e| e.dtype == head.dtype && e.data == head.data);
        if same {
            odd.push(format!(
                "output.weight repeats token_embd.weight: {} bytes could be saved",
                head.data.len()
            ));
        }
    }
    for name in ["token_embd.weight", "output.weight"] {
        let has_one_scale =
            |tensor: &TensorView<'_>| tensor.dtype.is_ternary() && tensor.dtype.group().is_none();
        if let Some(tensor) = gguf.tensor(name).filter(has_one_scale) {
            odd.push(format!(
                "{name} is {}: no published model has embeddings of this type, so the conversion was wrong",
                tensor.dtype.name()
            ));
        }
    }
    odd.extend(unstated_tiles(gguf));
    if let Some(tensor) = gguf.tensors().find(|tensor| is_float_projection(tensor)) {
        odd.push(format!(
            "{} is {}: such projections run if they hold zeros and one magnitude; `bitnet quantize` rounds others",
            tensor.name,
            tensor.dtype.name()
        ));
    }
    if let Some(form) = config
        .and_then(|config| likely_i2s_form(gguf, config))
        .filter(|form| *form != I2sForm::default())
    {
        odd.push(format!(
            "the I2_S codes look as if they were arranged as {form}: try --i2-s-form {form}"
        ));
    }
    odd
}

/// Whether a built-in format replaces the file's own template.
fn template_in_place_of_another(has_own: bool, tokenization: &Tokenization) -> Option<String> {
    let template = tokenization.chat_template.as_ref().ok()?.as_ref()?;
    (has_own && template.name() != "jinja").then(|| {
        format!(
            "the file's own chat template is not used: {} is, {}",
            template.name(),
            template.reason()
        )
    })
}

/// The ids of special tokens that the vocabulary does not have.
fn token_ids_out_of_range(gguf: &Gguf) -> Vec<String> {
    let metadata = gguf.metadata();
    let tokens = metadata
        .get("tokenizer.ggml.tokens")
        .and_then(|value| value.as_array())
        .map_or(0, |tokens| tokens.len());
    let ids = metadata
        .iter()
        .filter(|(key, _)| key.starts_with("tokenizer.ggml.") && key.ends_with("_token_id"));
    ids.filter_map(|(key, value)| {
        let id = value.as_integer()?;
        let is_beyond = tokens > 0 && !(0..tokens as i128).contains(&id);
        is_beyond.then(|| format!("{key} is {id}, but the vocabulary ends at {}", tokens - 1))
    })
    .collect()
}

/// The shapes of TL tensors whose tile the file does not state and this program does not know.
fn unstated_tiles(gguf: &Gguf) -> BTreeSet<String> {
    let unstated = gguf.tensors().filter_map(|tensor| {
        let (rows, cols) = (tensor.rows(), tensor.cols());
        let is_known = match tensor.dtype {
            TensorType::TL1 => Tl1Tile::known(rows, cols).is_some(),
            TensorType::TL2 => Tl2Tile::known(rows, cols).is_some(),
            _ => return None,
        };
        let name = tensor.dtype.name();
        let key = format!("bitnet.{}.tile.{rows}x{cols}", name.to_lowercase());
        let line = || format!("{name} tensors of shape [{rows}, {cols}] have no tile: give --tl-tile {rows}x{cols}=…");
        (!is_known && gguf.metadata().get(&key).is_none()).then(line)
    });
    unstated.collect()
}

/// Whether a layer's matrix is stored as floats.
fn is_float_projection(tensor: &TensorView<'_>) -> bool {
    let is_float = matches!(
        tensor.dtype,
        TensorType::F32 | TensorType::F16 | TensorType::BF16
    );
    // Linear attention has small matrices that are floats in every file.
    let is_constant = ["ssm_conv1d", "ssm_alpha", "ssm_beta"]
        .iter()
        .any(|part| tensor.name.contains(part));
    is_float && tensor.name.starts_with("blk.") && tensor.rows() > 1 && !is_constant
}

/// A metadata value on one line.
fn show(value: &Value<'_>) -> String {
    match value {
        Value::Str(text) => {
            let short: String = text.chars().take(SHOWN_CHARACTERS).collect();
            let more = if short.len() < text.len() { "…" } else { "" };
            format!("{short:?}{more}")
        }
        Value::Array(array) => {
            let shown: Vec<String> = array
                .iter()
                .take(SHOWN_ELEMENTS)
                .map(|value| show(&value))
                .collect();
            let more = if array.len() > SHOWN_ELEMENTS {
                ", …"
            } else {
                ""
            };
            format!(
                "[{}{more}] ({} {})",
                shown.join(", "),
                array.len(),
                kind_name(array)
            )
        }
        scalar => scalar_text(scalar),
    }
}

fn kind_name(array: &Array<'_>) -> &'static str {
    match array.kind() {
        ValueKind::Str => "strings",
        kind => kind.name(),
    }
}

fn scalar_text(value: &Value<'_>) -> String {
    if let Some(integer) = value.as_integer() {
        return integer.to_string();
    }
    match (value.as_bool(), value.as_f32()) {
        (Some(truth), _) => truth.to_string(),
        (_, Some(float)) => float.to_string(),
        _ => format!("({})", value.kind().name()),
    }
}

fn tokenizer_json(tokenization: &bitnet_inference::Result<Tokenization>) -> serde_json::Value {
    match tokenization {
        Ok(Tokenization {
            tokenizer,
            chat_template,
        }) => json!({
            "model": tokenizer.model_name(),
            "pre": tokenizer.pretokenizer_name(),
            "tokens": tokenizer.vocab_size(),
            "bos": tokenizer.bos(),
            "eos": tokenizer.eos(),
            "adds_bos": tokenizer.adds_bos(),
            "stop_ids": tokenizer.stop_ids(),
            "chat_template": match chat_template {
                Ok(template) => json!(template.as_ref().map(|t| t.name())),
                Err(error) => json!({ "error": error.to_string() }),
            },
            "chat_template_names": tokenizer.chat_template_names().collect::<Vec<_>>(),
            "thinks": reasoning(chat_template).map(|tags| [tags.begin, tags.end]),
        }),
        Err(error) => json!({ "error": error.to_string() }),
    }
}
