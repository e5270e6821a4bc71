//! The cache of packed weights: its settings, what the commands say about it, and `bitnet cache`.

use std::io::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context;
use bitnet_inference::{CacheUse, CachedFile, ModelSource, WeightCache, program_hash};
use serde_json::json;

use crate::args::{CacheArguments, CacheCommand, WeightCacheArguments, WrongUsage};
use crate::program;

/// Whether a command uses the cache if the arguments do not name a folder. Mapped weights are there
/// sooner, but decode a few percent slower where file pages are small.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum CacheDefault {
    /// For commands that answer once.
    On,
    /// For commands that run for long or measure speed.
    Off,
}

/// The cache that the arguments name; `None` if they turn it off, or there is no folder for it.
pub fn of(arguments: &WeightCacheArguments, default: CacheDefault) -> Option<WeightCache> {
    let is_off = default == CacheDefault::Off && arguments.weight_cache.is_none();
    if arguments.no_weight_cache || is_off {
        return None;
    }
    let code = program::running().code.as_ref()?;
    // If the file was replaced, nothing would distinguish its weights from another build's.
    let program = program_hash(code).ok()?;
    Some(WeightCache {
        folder: folder(arguments.weight_cache.as_ref())?,
        bytes_min: arguments.weight_cache_min << 20,
        bytes_max: arguments.weight_cache_max << 30,
        program,
    })
}

/// The folder that the user names, or the default one.
fn folder(named: Option<&PathBuf>) -> Option<PathBuf> {
    let named = named.filter(|folder| !folder.as_os_str().is_empty());
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let default = || {
        let user = || variable("HOME").or_else(|| variable("USERPROFILE"));
        let caches = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
        let caches = caches.or_else(|| Some(user()?.join(".cache")))?;
        Some(caches.join("bitnet/weights"))
    };
    named.cloned().or_else(default)
}

/// Says on standard error what a load did with the cache, if a user should know.
pub fn report(source: &ModelSource, cache_use: &CacheUse) {
    match cache_use {
        CacheUse::None | CacheUse::Small | CacheUse::Mapped(_) => {}
        CacheUse::Written { file, replaced } => {
            if let Some(problem) = replaced {
                eprintln!("the cache of packed weights was replaced: {problem}");
            }
            let CachedFile { path, bytes } = file;
            let gigabytes = *bytes as f64 / 1e9;
            eprintln!(
                "packed weights of {source}: {gigabytes:.2} GB written to {}, so that the next start is \
                 quicker (--no-weight-cache writes none)",
                path.display()
            );
        }
        CacheUse::Failed(problem) => {
            eprintln!("warning: the packed weights of {source} are not kept: {problem}");
        }
    }
}

/// `bitnet cache`.
pub fn cache(arguments: &CacheArguments) -> anyhow::Result<()> {
    let folder = folder(arguments.weight_cache.as_ref()).ok_or_else(|| {
        let message = "no folder for packed weights: neither XDG_CACHE_HOME nor HOME is set";
        WrongUsage(message.to_owned())
    })?;
    let cache = WeightCache {
        folder,
        bytes_min: 0,
        bytes_max: 0,
        program: String::new(),
    };
    match arguments.command {
        CacheCommand::List => list(&cache, arguments.json),
        CacheCommand::Clear => clear(&cache, arguments.json),
    }
}

fn list(cache: &WeightCache, is_json: bool) -> anyhow::Result<()> {
    let entries = cache.entries().context("cannot list the packed weights")?;
    let mut out = std::io::stdout().lock();
    if is_json {
        let files = entries.iter().map(|entry| {
            let used = entry.used.duration_since(SystemTime::UNIX_EPOCH);
            json!({
                "path": entry.file.path,
                "bytes": entry.file.bytes,
                "used_unix_s": used.map_or(0, |used| used.as_secs()),
                "model": entry.weights.as_ref().ok().map(|(model, _)| model),
                "kernels": entry.weights.as_ref().ok().map(|(_, kernels)| kernels),
                "problem": entry.weights.as_ref().err(),
            })
        });
        let object = json!({ "folder": cache.folder, "files": files.collect::<Vec<_>>() });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    if entries.is_empty() {
        writeln!(out, "no packed weights in {}", cache.folder.display())?;
    }
    for entry in &entries {
        let mib = entry.file.bytes as f64 / f64::from(1 << 20);
        match &entry.weights {
            Ok((model, kernels)) => {
                writeln!(out, "{mib:9.1} MiB  {kernels:8}  {}", model.display())?;
            }
            Err(problem) => writeln!(out, "{mib:9.1} MiB  unusable  {problem}")?,
        }
    }
    Ok(())
}

fn clear(cache: &WeightCache, is_json: bool) -> anyhow::Result<()> {
    let removed = cache.clear()?;
    let bytes: u64 = removed.iter().map(|file| file.bytes).sum();
    let mut out = std::io::stdout().lock();
    match is_json {
        true => {
            let object = json!({ "folder": cache.folder, "removed": removed, "bytes": bytes });
            writeln!(out, "{object}")?;
        }
        false => {
            let (files, folder) = (removed.len(), cache.folder.display());
            writeln!(out, "removed {files} files ({bytes} bytes) from {folder}")?;
        }
    }
    Ok(())
}
