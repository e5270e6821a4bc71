//! `bitnet convert`: a Hugging Face directory to a GGUF file.

use std::io::Write;

use anyhow::Context;
use bitnet_inference::NO_TOKENIZER;
use bitnet_kernels::{Pool, default_threads};
use bitnet_models::convert::{ConvertOptions, convert as convert_model};
use bitnet_models::gguf::MetadataValue;
use bitnet_models::huggingface::Checkpoint;
use bitnet_tokenizers::{TokenizerFiles, TokenizerSpec};
use serde_json::json;

use crate::args::ConvertArguments;
use crate::session;

/// Converts a directory and says what was written.
pub fn convert(arguments: &ConvertArguments) -> anyhow::Result<()> {
    let (source, output) = (&arguments.source, &arguments.output);
    let checkpoint = Checkpoint::open(source).with_context(|| format!("cannot open {}", source.display()))?;
    let architecture = checkpoint.config().architecture.gguf_name();
    let tokenizer = if source.join("tokenizer.json").exists() {
        let files = TokenizerFiles::read(source)?;
        metadata(&files.to_spec(architecture).with_context(|| format!("the tokenizer of {}", source.display()))?)
    } else {
        eprintln!("warning: {} has no tokenizer.json, so the file will take token ids only", source.display());
        vec![("tokenizer.ggml.model".to_owned(), MetadataValue::String(NO_TOKENIZER.to_owned()))]
    };
    let options =
        ConvertOptions { tables: arguments.tables.into(), force: arguments.force, name: arguments.name.clone() };
    let pool = Pool::new(arguments.threads.map_or_else(default_threads, usize::from));
    let mut bar = None;
    convert_model(&checkpoint, output, &options, &tokenizer, &pool, &mut |progress| {
        let bar = bar.get_or_insert_with(|| session::bar(progress.bytes_total, "bytes"));
        bar.set_position(progress.bytes_done as u64);
    })
    .with_context(|| format!("cannot convert {} to {}", source.display(), output.display()))?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let bytes = std::fs::metadata(output)?.len();
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let object = json!({ "source": source, "output": output, "type": "i2_s", "bytes": bytes });
        writeln!(out, "{object}")?;
    } else {
        writeln!(out, "wrote {} ({bytes} bytes) and read it back", output.display())?;
    }
    Ok(())
}

/// A tokenizer as the metadata of a GGUF file has it.
fn metadata(spec: &TokenizerSpec<'_>) -> Vec<(String, MetadataValue)> {
    let mut pairs = Vec::new();
    let mut put = |name: &str, value| pairs.push((format!("tokenizer.ggml.{name}"), value));
    let text = |text: &str| MetadataValue::String(text.to_owned());
    let texts =
        |list: &[std::borrow::Cow<'_, str>]| MetadataValue::Strings(list.iter().map(|t| t.to_string()).collect());
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
    let flags =
        [("add_bos_token", spec.add_bos), ("add_eos_token", spec.add_eos), ("add_space_prefix", spec.add_space_prefix)];
    for (name, flag) in flags {
        if let Some(flag) = flag {
            put(name, MetadataValue::Bool(flag));
        }
    }
    if let Some(template) = &spec.chat_template {
        pairs.push(("tokenizer.chat_template".to_owned(), text(template)));
    }
    pairs
}
