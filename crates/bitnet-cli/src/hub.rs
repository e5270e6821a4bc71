//! `bitnet pull`, `list` and `rm`, and the names of pulled models in place of paths.
//!
//! All settings are the settings of Hugging Face's own tools, so that both share downloaded files.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use bitnet_hub::{
    Cache, Hub, ModelName, Proxies, PullPhase, SHORT_NAMES, home_folder, pull as pull_model,
};
use indicatif::{HumanBytes, ProgressBar};
use serde_json::json;

use crate::args::{ListArguments, PullArguments, RemoveArguments, WrongUsage};
use crate::{bars, interrupt};

/// The pause after the first failed attempt.
const WAIT: Duration = Duration::from_secs(1);
/// The default server.
const ENDPOINT: &str = "https://huggingface.co";

/// Downloads models and prints their paths.
pub fn pull(arguments: &PullArguments) -> anyhow::Result<()> {
    let names = arguments
        .names
        .iter()
        .map(|name| parse(name))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let cache = cache()?;
    if is_set("HF_HUB_OFFLINE") {
        return pulled(&cache, &names, arguments.json);
    }
    let hub = hub()?;
    let interrupted = interrupt::watch()?;
    for name in names {
        let mut bar: Option<(PullPhase, String, ProgressBar)> = None;
        let path = pull_model(&hub, &cache, &name, WAIT, &mut |now| {
            if bar
                .as_ref()
                .is_none_or(|(phase, file, _)| (*phase, &**file) != (now.phase, now.file))
            {
                let what = match now.phase {
                    PullPhase::Checking => format!("{} (checking what is here)", now.file),
                    PullPhase::Downloading => {
                        let size = HumanBytes(now.bytes_total);
                        eprintln!("{name}: downloading {} ({size})", now.file);
                        now.file.to_owned()
                    }
                };
                let new = (
                    now.phase,
                    now.file.to_owned(),
                    bars::byte_bar(now.bytes_total, what),
                );
                if let Some((.., old)) = bar.replace(new) {
                    old.finish_and_clear();
                }
            }
            if let Some((.., bar)) = &bar {
                bar.set_position(now.bytes_done);
            }
            if interrupted.load(Ordering::SeqCst) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        if let Some((.., bar)) = bar {
            bar.finish_and_clear();
        }
        let path = path.with_context(|| format!("cannot pull {name}"))?;
        print_place(&name, &path, arguments.json)?;
    }
    Ok(())
}

/// Reports where already pulled models are; nothing else can be pulled in offline mode.
fn pulled(cache: &Cache, names: &[ModelName], is_json: bool) -> anyhow::Result<()> {
    for name in names {
        let path = cache.find(name).map_err(|error| match error {
            bitnet_hub::Error::NotPulled { name, .. } => bitnet_hub::Error::Offline { name },
            error => error,
        })?;
        print_place(name, &path, is_json)?;
    }
    Ok(())
}

fn print_place(name: &ModelName, path: &Path, is_json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match is_json {
        true => writeln!(out, "{}", json!({ "name": name.to_string(), "path": path }))?,
        false => writeln!(out, "{name} is at {}", path.display())?,
    }
    Ok(())
}

/// Lists the models in the cache.
pub fn list(arguments: &ListArguments) -> anyhow::Result<()> {
    let cache = cache()?;
    let models = cache.list().context("cannot list the models")?;
    let short = |name: &str| {
        SHORT_NAMES
            .iter()
            .find(|(_, long)| *long == name)
            .map(|(short, _)| *short)
    };
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let models = models.iter().map(|model| {
            json!({
                "name": model.name,
                "short_name": short(&model.name),
                "path": model.path,
                "bytes": model.bytes,
                "commit": model.commit,
                "complete": model.is_complete,
            })
        });
        writeln!(
            out,
            "{}",
            json!({ "cache": cache.root(), "models": models.collect::<Vec<_>>() })
        )?;
        return Ok(());
    }
    if models.is_empty() {
        writeln!(out, "no models in {}", cache.root().display())?;
    }
    for model in &models {
        let mib = model.bytes as f64 / f64::from(1 << 20);
        let commit = model.commit.get(..8).unwrap_or_default();
        let state = if model.is_complete {
            ""
        } else {
            "  incomplete: pull it again"
        };
        let name = match short(&model.name) {
            Some(short) => format!("{short} ({})", model.name),
            None => model.name.clone(),
        };
        writeln!(out, "{mib:9.1} MiB  {commit:8}  {name}{state}")?;
    }
    Ok(())
}

/// Removes models from the cache.
pub fn remove(arguments: &RemoveArguments) -> anyhow::Result<()> {
    let cache = cache()?;
    let names = arguments
        .names
        .iter()
        .map(|name| parse(name))
        .collect::<anyhow::Result<Vec<_>>>()?;
    for name in names {
        let bytes = cache
            .remove(&name)
            .with_context(|| format!("cannot remove {name}"))?;
        let mut out = std::io::stdout().lock();
        match arguments.json {
            true => writeln!(
                out,
                "{}",
                json!({ "name": name.to_string(), "bytes": bytes })
            )?,
            false => writeln!(out, "removed {name} ({bytes} bytes)")?,
        }
    }
    Ok(())
}

/// The path of a model: `path` itself if it exists, or else the path of the pulled model with that
/// name.
pub fn resolve(path: &Path) -> anyhow::Result<PathBuf> {
    match ModelName::from_path(path) {
        Some(name) => Ok(cache()?.find(&name)?),
        None => Ok(path.to_owned()),
    }
}

fn parse(name: &str) -> anyhow::Result<ModelName> {
    name.parse()
        .map_err(|error: bitnet_hub::Error| WrongUsage(error.to_string()).into())
}

/// The value of an environment variable, if it is set and not empty.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// Whether a variable has one of the values that mean "on" in Hugging Face's tools.
fn is_set(name: &str) -> bool {
    let value = std::env::var(name).unwrap_or_default().to_uppercase();
    matches!(&*value, "1" | "ON" | "YES" | "TRUE")
}

fn cache() -> anyhow::Result<Cache> {
    Cache::from_variables(variable).context("cannot find a home folder for models; set HF_HOME")
}

fn hub() -> anyhow::Result<Hub> {
    let text = |name: &str| {
        std::env::var(name)
            .ok()
            .filter(|value| !value.trim().is_empty())
    };
    let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
    let file = || {
        let path =
            variable("HF_TOKEN_PATH").or_else(|| Some(home_folder(variable)?.join("token")))?;
        std::fs::read_to_string(path).ok()
    };
    let is_implicit = !is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN");
    let token = text("HF_TOKEN")
        .or_else(|| text("HUGGING_FACE_HUB_TOKEN"))
        .or_else(|| file().filter(|_| is_implicit));
    let token = token
        .map(|token| token.trim().to_owned())
        .filter(|token| !token.is_empty());
    let certificates = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"]
        .into_iter()
        .find_map(variable);
    let certificates = certificates
        .map(|path| {
            std::fs::read(&path)
                .with_context(|| format!("cannot read the certificates in {}", path.display()))
        })
        .transpose()?;
    // Both cases are in use; the lower one goes first, as in curl.
    let proxy = |name: &str| text(name).or_else(|| text(&name.to_uppercase()));
    let all = proxy("all_proxy");
    let proxies = Proxies::new(
        proxy("http_proxy")
            .as_ref()
            .or(all.as_ref())
            .map(String::as_str),
        proxy("https_proxy")
            .as_ref()
            .or(all.as_ref())
            .map(String::as_str),
        &proxy("no_proxy").unwrap_or_default(),
    )?;
    Ok(Hub::new(
        &endpoint,
        token,
        certificates.as_deref(),
        proxies,
    )?)
}
