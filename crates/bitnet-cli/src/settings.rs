//! Settings of `bitnet serve` from the environment and from a file.
//!
//! Every option of the command is also a key of the file (`queue-requests = 64`) and an environment
//! variable (`BITNET_SERVE_QUEUE_REQUESTS`). Settings found there are appended to the command line
//! as options, so that there is one list of settings, one parser and one set of error messages. The
//! command line overrides the environment, which overrides the file.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Context;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use toml::Value;

use crate::args::{Arguments, WrongUsage};
use crate::program;

/// The command that has settings.
const COMMAND: &str = "serve";
/// The prefix of the environment variables.
const PREFIX: &str = "BITNET_SERVE_";
/// Options that are not settings.
const NOT_SETTINGS: [&str; 4] = ["config", "check-config", "help", "version"];

/// A setting and its origin.
pub struct Setting {
    /// The name of the option, without dashes.
    pub name: String,
    pub values: Vec<String>,
    /// The origin, for messages.
    pub origin: String,
}

/// The arguments of this process, with the settings. Ends the process if they are wrong or ask for
/// help.
pub fn parse() -> anyhow::Result<Arguments> {
    let typed = &program::running().arguments;
    let command = Arguments::command();
    let matches = command.clone().get_matches_from(typed);
    let Some((COMMAND, serve)) = matches.subcommand() else {
        return Ok(Arguments::from_arg_matches(&matches)?);
    };
    let found = found_settings(&command, serve)?;
    let added = found.iter().flat_map(|setting| {
        let is_flag = setting.values.is_empty();
        let flag = is_flag.then(|| format!("--{}", setting.name));
        let options = setting
            .values
            .iter()
            .map(|value| format!("--{}={value}", setting.name));
        flag.into_iter().chain(options).map(OsString::from)
    });
    let completed = command
        .try_get_matches_from(typed.iter().cloned().chain(added))
        .unwrap_or_else(|error| {
            // The error may be in a setting that the user did not type.
            let list = found
                .iter()
                .map(|setting| format!("  --{} from {}\n", setting.name, setting.origin));
            eprintln!(
                "{}\nThese settings are not from the command line:\n{}",
                error.render(),
                list.collect::<String>()
            );
            std::process::exit(2)
        });
    Ok(Arguments::from_arg_matches(&completed)?)
}

/// Every setting of the command with its origin, defaults included.
pub fn effective() -> anyhow::Result<Vec<Setting>> {
    let command = Arguments::command();
    let matches = command
        .clone()
        .get_matches_from(&program::running().arguments);
    let Some((COMMAND, serve)) = matches.subcommand() else {
        return Ok(Vec::new());
    };
    let mut out = found_settings(&command, serve)?;
    for (name, arg) in settings(&command) {
        if out.iter().any(|setting| setting.name == name) {
            continue;
        }
        let Some(raw) = serve.get_raw(arg.get_id().as_str()) else {
            continue;
        };
        let origin = match serve.value_source(arg.get_id().as_str()) {
            Some(ValueSource::CommandLine) => "the command line",
            Some(ValueSource::EnvVariable) => "the environment",
            _ => "the defaults",
        };
        let values = raw
            .map(|value| value.to_string_lossy().into_owned())
            .collect();
        out.push(Setting {
            name,
            values,
            origin: origin.to_owned(),
        });
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(out)
}

/// The options that are settings, by their long names.
fn settings(command: &Command) -> impl Iterator<Item = (String, &Arg)> {
    let arguments = command
        .find_subcommand(COMMAND)
        .into_iter()
        .flat_map(Command::get_arguments);
    let named = arguments.filter_map(|arg| Some((arg.get_long()?.to_owned(), arg)));
    named.filter(|(name, _)| !NOT_SETTINGS.contains(&name.as_str()))
}

/// The settings from the environment and the file that are not on the command line.
fn found_settings(command: &Command, typed: &ArgMatches) -> anyhow::Result<Vec<Setting>> {
    check_variables(command)?;
    let from_environment = std::env::var_os(variable("config")).map(Into::into);
    let path = typed
        .get_one::<std::path::PathBuf>("config")
        .cloned()
        .or(from_environment);
    let mut file = match &path {
        Some(path) => read(path)?,
        None => toml::Table::new(),
    };
    let mut out = Vec::new();
    for (name, arg) in settings(command) {
        let in_file = file.remove(&name);
        let source = typed.value_source(arg.get_id().as_str());
        if matches!(
            source,
            Some(ValueSource::CommandLine | ValueSource::EnvVariable)
        ) {
            continue;
        }
        let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
        let variable = variable(&name);
        if let Some(text) = std::env::var_os(&variable) {
            let text = text.to_string_lossy().into_owned();
            out.extend(setting(&name, vec![text], is_flag, variable)?);
        } else if let (Some(value), Some(path)) = (in_file, &path) {
            let origin = path.display().to_string();
            out.extend(setting(
                &name,
                texts(&value, &name, &origin)?,
                is_flag,
                origin,
            )?);
        }
    }
    if let (Some(name), Some(path)) = (file.keys().next(), &path) {
        let message = format!(
            "{}: unknown setting {name:?}; `bitnet serve --help` lists all settings",
            path.display()
        );
        return Err(WrongUsage(message).into());
    }
    Ok(out)
}

/// Rejects variables that no setting reads: their names are misspelled.
fn check_variables(command: &Command) -> anyhow::Result<()> {
    let known: Vec<String> = settings(command)
        .map(|(name, _)| variable(&name))
        .chain([variable("config")])
        .collect();
    let set = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    match set
        .filter(|name| name.starts_with(PREFIX))
        .find(|name| !known.contains(name))
    {
        Some(name) => {
            let message =
                format!("unknown variable {name}; `bitnet serve --help` lists all settings");
            Err(WrongUsage(message).into())
        }
        None => Ok(()),
    }
}

/// `BITNET_SERVE_QUEUE_REQUESTS` for `queue-requests`.
fn variable(name: &str) -> String {
    format!("{PREFIX}{}", name.to_uppercase().replace('-', "_"))
}

fn read(path: &Path) -> anyhow::Result<toml::Table> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read settings from {}", path.display()))?;
    Ok(text
        .parse()
        .map_err(|error| WrongUsage(format!("{}: {error}", path.display())))?)
}

/// The values of a key of the file, as command line arguments.
fn texts(value: &Value, name: &str, origin: &str) -> anyhow::Result<Vec<String>> {
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Ok(value.to_string()),
        _ => {
            let kind = value.type_str();
            Err(WrongUsage(format!(
                "{origin}: {name} is a {kind}, expected a string, a number, true or false"
            ))
            .into())
        }
    };
    match value {
        Value::Array(list) => list.iter().map(text).collect(),
        value => Ok(vec![text(value)?]),
    }
}

/// `None` for a flag that is off, and for an empty list.
fn setting(
    name: &str,
    values: Vec<String>,
    is_flag: bool,
    origin: String,
) -> anyhow::Result<Option<Setting>> {
    let name = name.to_owned();
    if !is_flag {
        return Ok((!values.is_empty()).then_some(Setting {
            name,
            values,
            origin,
        }));
    }
    match values.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["true" | "1" | "yes" | "on"] => Ok(Some(Setting {
            name,
            values: Vec::new(),
            origin,
        })),
        ["false" | "0" | "no" | "off"] => Ok(None),
        _ => Err(WrongUsage(format!(
            "{origin}: {name} is {values:?}, expected true or false"
        ))
        .into()),
    }
}
