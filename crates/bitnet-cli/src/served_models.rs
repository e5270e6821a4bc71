//! The models of `bitnet serve`: finds them, sizes them, and loads them when the server asks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use bitnet_inference::{
    EngineOptions, ModelSource, Tokenization, context_length, kv_cache_positions,
};
use bitnet_models::{Config, KvCache, SamplingDefaults};
use bitnet_server::{Conversation, LoadedModel, ModelOutline, ModelPreview, ModelSpec};

use crate::args::{ServeArguments, WrongUsage};
use crate::cache::CacheDefault;
use crate::serve::check_headroom;
use crate::{built_in, chat, session};

/// The models that the arguments name. Of several, one whose file cannot be read is kept: requests
/// for it get the error.
pub fn models(arguments: &Arc<ServeArguments>) -> anyhow::Result<Vec<ModelSpec>> {
    let sources = sources(arguments)?;
    let has_several = sources.len() > 1;
    let configs = sources.iter().map(|source| {
        let config = config(source);
        match config {
            Err(error) if has_several => {
                tracing::warn!(error = format!("{error:#}"), "a model cannot be read");
                Ok(None)
            }
            config => config.map(Some),
        }
    });
    let configs = configs.collect::<anyhow::Result<Vec<_>>>()?;
    let names = names(arguments, &sources, &configs)?;
    let models = sources.iter().zip(configs).zip(names);
    Ok(models
        .map(|((source, config), names)| spec(arguments, source, config, names))
        .collect())
}

/// Whether the first model is loaded at the start: it is, unless it was found in a folder.
pub fn preloads(arguments: &ServeArguments) -> bool {
    let first = arguments.model.models.first();
    !first.is_some_and(|path| matches!(models_in(path), Ok(Some(_))))
}

/// The memory that is free now, for the models of a server whose user names no limit.
pub fn free_memory() -> Option<usize> {
    let bytes = bitnet_guard::available_memory()?;
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    tracing::info!(
        bytes,
        "--models-memory is not given: the models may take the free memory"
    );
    Some(bytes)
}

/// Checks the settings against the models, as far as possible without their weights.
pub fn check(arguments: &ServeArguments) -> anyhow::Result<()> {
    let sources = sources(arguments)?;
    let configs = sources.iter().map(config);
    let configs = configs.collect::<anyhow::Result<Vec<_>>>()?;
    session::device(&arguments.model)?;
    for (source, config) in sources.iter().zip(&configs) {
        let tokenization = source
            .tokenization()
            .with_context(|| format!("cannot load {source}"))?;
        let context = context_length(config, arguments.model.ctx_size);
        let options = session::engine_options(&arguments.model, context);
        let sized = sized(config, options, arguments);
        let sized = match sources.len() {
            1 => sized?,
            _ => sized.with_context(|| source.to_string())?,
        };
        let template = arguments.chat_template.as_deref();
        conversation(source, tokenization.as_ref(), template)?;
        let bytes = file_bytes(source) + cache_bytes(config, sized);
        if let Some(bytes_max) = arguments.models_memory {
            ensure!(
                bytes <= bytes_max,
                "{source} takes {bytes} bytes of memory, but --models-memory is {bytes_max}"
            );
        }
    }
    let configs: Vec<_> = configs.into_iter().map(Some).collect();
    names(arguments, &sources, &configs)?;
    Ok(())
}

/// Where the models are. A folder of models stands for all models in it.
fn sources(arguments: &ServeArguments) -> anyhow::Result<Vec<ModelSource>> {
    let mut sources = Vec::new();
    for path in &arguments.model.models {
        match models_in(path)? {
            Some(paths) => sources.extend(paths.into_iter().map(ModelSource::Path)),
            None => sources.push(session::source(Some(path))?),
        }
    }
    if sources.is_empty() {
        sources.push(session::source(None)?);
    }
    Ok(sources)
}

/// The models in a folder by name: GGUF files, and directories in Hugging Face's layout. `None` if
/// `path` is not such a folder.
fn models_in(path: &Path) -> anyhow::Result<Option<Vec<PathBuf>>> {
    if !path.is_dir() || path.join("config.json").exists() {
        return Ok(None);
    }
    let cannot_list = || format!("cannot list {}", path.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).with_context(cannot_list)? {
        let entry = entry.with_context(cannot_list)?.path();
        let is_model = match entry.is_dir() {
            true => entry.join("config.json").is_file(),
            false => is_gguf(&entry),
        };
        found.extend(is_model.then_some(entry));
    }
    found.sort();
    Ok((!found.is_empty()).then_some(found))
}

/// Whether this is a GGUF file by its name, and not a further part of a split one.
fn is_gguf(path: &Path) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let part = stem.rsplit_once("-of-").and_then(|(start, count)| {
        let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        let (_, part) = start.rsplit_once('-')?;
        (is_number(part) && is_number(count)).then_some(part)
    });
    let is_first = part.is_none_or(|part| part == "00001");
    path.extension()
        .is_some_and(|extension| extension == "gguf")
        && is_first
}

fn config(source: &ModelSource) -> anyhow::Result<Config> {
    source
        .config()
        .with_context(|| format!("cannot open {source}"))
}

/// The names of each model. All names of one model; of several, one for each.
///
/// # Errors
/// If two models have the same name, or there is not one name for each.
fn names(
    arguments: &ServeArguments,
    sources: &[ModelSource],
    configs: &[Option<Config>],
) -> anyhow::Result<Vec<Vec<String>>> {
    let given = &arguments.model_name;
    let names: Vec<Vec<String>> = match (sources.len(), given.len()) {
        (_, 0) => {
            let models = sources.iter().zip(configs);
            models
                .map(|(source, config)| vec![name(source, config.as_ref())])
                .collect()
        }
        (1, _) => vec![given.clone()],
        (num_models, num_names) => {
            ensure!(
                num_models == num_names,
                WrongUsage(format!(
                    "--model-name is given {num_names} times, but there are {num_models} models: each needs one name, in the order of the models"
                ))
            );
            given.iter().map(|name| vec![name.clone()]).collect()
        }
    };
    check_names(sources, &names)?;
    Ok(names)
}

/// Fails if two models have the same name, or names that Ollama's clients cannot tell apart.
fn check_names(sources: &[ModelSource], names: &[Vec<String>]) -> anyhow::Result<()> {
    let mut owners: HashMap<&str, usize> = HashMap::new();
    for (index, names) in names.iter().enumerate() {
        for name in names {
            let plain = name.strip_suffix(":latest").unwrap_or(name);
            let other = *owners.entry(plain).or_insert(index);
            ensure!(
                other == index,
                WrongUsage(format!(
                    "{} and {} have the same name, {plain:?}: give each model a name with --model-name, in the order of the models",
                    sources[other], sources[index]
                ))
            );
        }
    }
    Ok(())
}

/// A model's name without `--model-name`.
fn name(source: &ModelSource, config: Option<&Config>) -> String {
    let from_source = match source {
        ModelSource::Path(path) if path.is_dir() => path.file_name(),
        ModelSource::Path(path) => path.file_stem(),
        ModelSource::Embedded { .. } => Some(built_in::SERVED_NAME.as_ref()),
    };
    let from_source = from_source.map(|name| name.to_string_lossy().into_owned());
    let from_file = || {
        let name = config?.name.clone();
        name.filter(|name| !name.is_empty())
    };
    from_source
        .or_else(from_file)
        .unwrap_or_else(|| "model".to_owned())
}

/// What the server needs to know about the model at `source`.
fn spec(
    arguments: &Arc<ServeArguments>,
    source: &ModelSource,
    config: Option<Config>,
    names: Vec<String>,
) -> ModelSpec {
    let file_bytes = file_bytes(source);
    let (for_load, for_preview) = (Arc::clone(arguments), Arc::clone(arguments));
    let (load_source, preview_source) = (source.clone(), source.clone());
    let outline = config.as_ref().map(|config| ModelOutline {
        architecture: config.architecture_name.clone(),
        context: context_length(config, arguments.model.ctx_size),
        num_layers: config.num_layers,
        hidden_size: config.hidden_size,
        vocab_size: config.vocab_size,
        pooling: config.pooling,
        file_bytes,
    });
    let cache_bytes = config.map_or(0, |config| {
        // If it does not fit the settings, loading it says so.
        engine_options(&config, arguments).map_or(0, |options| cache_bytes(&config, options))
    });
    ModelSpec {
        names,
        bytes: file_bytes + cache_bytes,
        outline,
        load: Box::new(move || Ok(load(&for_load, &load_source)?)),
        preview: Box::new(move || Ok(preview(&for_preview, &preview_source)?)),
    }
}

/// Bytes of a model's files.
fn file_bytes(source: &ModelSource) -> usize {
    let size = |path: &Path| path.metadata().map_or(0, |file| file.len());
    let bytes = match source {
        ModelSource::Embedded { bytes, .. } => return bytes.len(),
        ModelSource::Path(path) if path.is_dir() => {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            let paths = entries.map(|entry| entry.path());
            let is_weights = |path: &PathBuf| {
                path.extension()
                    .is_some_and(|extension| extension == "safetensors")
            };
            paths.filter(is_weights).map(|path| size(&path)).sum()
        }
        ModelSource::Path(path) => size(path),
    };
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Bytes of the key/value cache and the recurrent states.
fn cache_bytes(config: &Config, options: EngineOptions) -> usize {
    let block_bytes = KvCache::block_bytes(
        config.attention,
        config.num_attention_layers(),
        options.kv_type,
    );
    let state_bytes = config.state_len() * size_of::<f32>();
    options.cache / KvCache::BLOCK * block_bytes + options.states * state_bytes
}

/// The tokenizer, the template and the sampling of the model at `source`.
fn preview(arguments: &ServeArguments, source: &ModelSource) -> anyhow::Result<ModelPreview> {
    let tokenization = source
        .tokenization()
        .with_context(|| format!("cannot load {source}"))?;
    let recommended = source
        .sampling()
        .with_context(|| format!("cannot open {source}"))?;
    let template = arguments.chat_template.as_deref();
    Ok(ModelPreview {
        conversation: conversation(source, tokenization.as_ref(), template)?,
        tokenizer: tokenization.map(|tokenization| tokenization.tokenizer),
        sampling: arguments.sampling.params(&recommended),
    })
}

/// The bounds of the engine of a model.
fn engine_options(config: &Config, arguments: &ServeArguments) -> anyhow::Result<EngineOptions> {
    let context = context_length(config, arguments.model.ctx_size);
    let options = session::engine_options(&arguments.model, context);
    let state_bytes = config.state_len() * size_of::<f32>();
    Ok(EngineOptions {
        states: num_states(state_bytes, arguments.state_memory)?,
        ..sized(config, options, arguments)?
    })
}

/// Loads the model at `source`. Runs on the thread that will own the engine.
fn load(arguments: &ServeArguments, source: &ModelSource) -> anyhow::Result<LoadedModel> {
    let device = session::device(&arguments.model)?;
    let model = session::open_source(
        source,
        &arguments.model,
        device,
        CacheDefault::Off,
        &|config| engine_options(config, arguments),
    )?;
    let info = model.info();
    let options = engine_options(&info.config, arguments)?;
    let engine = model.engine(options)?;
    check_headroom()?;
    // Ternary weights may take less memory than in the file, and other weights at most two bytes.
    let num_others = info.num_parameters() - info.num_ternary_weights.min(info.num_parameters());
    let weight_bytes = file_bytes(source).min(info.num_ternary_bytes + 2 * num_others);
    let copy_bytes = info.ffn_copy_bytes() + info.screen_bytes.unwrap_or(0);
    let bytes = weight_bytes + copy_bytes + cache_bytes(&info.config, options);
    let template = arguments.chat_template.as_deref();
    Ok(LoadedModel {
        engine,
        remake: model.remake(options),
        tokenizer: model.tokenizer().cloned(),
        conversation: conversation(source, model.tokenization.as_ref(), template)?,
        sampling: arguments.sampling.params(&model.sampling),
        block_size: KvCache::BLOCK,
        bytes,
        files: session::files(&model),
    })
}

/// Checks the default sampling parameters: if they were invalid, every request that sets none would
/// fail.
pub fn check_sampling(arguments: &ServeArguments, vocab_size: usize) -> anyhow::Result<()> {
    Ok(arguments
        .sampling
        .params(&SamplingDefaults::default())
        .check(vocab_size)
        .map_err(|error| WrongUsage(error.to_string()))?)
}

/// Sizes the cache from `--kv-memory`, and checks the settings against the model.
fn sized(
    config: &Config,
    options: EngineOptions,
    arguments: &ServeArguments,
) -> anyhow::Result<EngineOptions> {
    check_sampling(arguments, config.vocab_size)?;
    let block_bytes = KvCache::block_bytes(
        config.attention,
        config.num_attention_layers(),
        options.kv_type,
    );
    let needed = options.context.div_ceil(KvCache::BLOCK) * block_bytes;
    let cache = kv_cache_positions(
        &session::device(&arguments.model)?,
        config,
        options.kv_type,
        options.context,
        arguments.kv_memory,
    );
    ensure!(
        cache >= options.context,
        "--kv-memory holds {cache} positions, but the context has {}: it takes {} MiB, or a smaller --ctx-size",
        options.context,
        needed.div_ceil(1 << 20)
    );
    Ok(EngineOptions {
        cache,
        running_max: arguments.running,
        mixed_chunk: match arguments.whole_chunks {
            true => options.prefill_chunk,
            false => options.mixed_chunk,
        },
        ..options
    })
}

/// Default memory of recurrent states, if [`STATES_MIN`] of them need no more.
const DEFAULT_STATE_BYTES: usize = 1 << 30;
/// The fewest recurrent states if the user names no memory.
const STATES_MIN: usize = 8;

/// How many recurrent states of `state_bytes` there are in `--state-memory`.
fn num_states(state_bytes: usize, memory: Option<usize>) -> anyhow::Result<usize> {
    if state_bytes == 0 {
        // A model without recurrent layers.
        return Ok(EngineOptions::default().states);
    }
    let default = || DEFAULT_STATE_BYTES.max(STATES_MIN * state_bytes);
    let num_states = memory.unwrap_or_else(default) / state_bytes;
    ensure!(
        num_states > 0,
        "--state-memory is {} bytes, but one state of this model takes {state_bytes}",
        memory.unwrap_or(0)
    );
    Ok(num_states)
}

/// How messages become a prompt: as in `bitnet chat`.
fn conversation(
    source: &ModelSource,
    tokenization: Option<&Tokenization>,
    template: Option<&str>,
) -> anyhow::Result<Conversation> {
    let Some(tokenization) = tokenization else {
        return Ok(Conversation::Unavailable(
            "this model has no tokenizer".to_owned(),
        ));
    };
    if template.is_none() && matches!(source, ModelSource::Embedded { .. }) {
        return Ok(Conversation::ContinueLast);
    }
    match chat::template(tokenization, template) {
        Ok(template) => Ok(Conversation::Template(template)),
        Err(error) if template.is_some() => Err(error),
        Err(error) => Ok(Conversation::Unavailable(format!("{error:#}"))),
    }
}
