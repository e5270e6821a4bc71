//! `bitnet serve`: the model behind OpenAI's API.

use std::io::Write;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bitnet_guard::HelperLimits;
use bitnet_models::SamplingDefaults;
use bitnet_server::{
    AllowedHosts, ApiKeys, CorsOrigins, Ended, FileLimits, FormHelper, KeyLimits, Limits,
    ServeOptions, ServerEvent, Tls,
};

use crate::args::{CacheSalt, FormHelperArguments, ServeArguments, WrongUsage};
use crate::log::Log;
use crate::{program, served_models, settings};

/// Serves until a signal tells the process to stop.
pub fn serve(arguments: ServeArguments) -> anyhow::Result<()> {
    check_headroom()?;
    let mut options = options(&arguments)?;
    if arguments.check_config {
        return check(&arguments);
    }
    let arguments = Arc::new(arguments);
    let log = Log::start(arguments.log_format, arguments.log_level)
        .context("cannot start the thread of the log")?;
    options.lost_log_lines = log.lost_lines();
    let models = served_models::models(&arguments)?;
    if models.len() > 1 && options.models_memory.is_none() {
        options.models_memory = served_models::free_memory();
    }
    let limits = &mut options.limits;
    limits.connections = affordable_connections(limits.connections)?;
    limits.connections_per_address = limits.connections_per_address.min(limits.connections);
    let scheme = if options.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let tell = move |event| tell(event, scheme);
    match bitnet_server::serve(options, models, tell)? {
        Ended::Drained => tracing::info!("stopped"),
        Ended::Cut { unfinished: 0 } => tracing::info!("stopped at once"),
        Ended::Cut { unfinished } => {
            anyhow::bail!("stopped before {unfinished} requests were answered")
        }
    }
    Ok(())
}

/// Reports changes of state on standard output, and to systemd.
fn tell(event: ServerEvent, scheme: &str) {
    if let ServerEvent::Listening(address) = event {
        let mut out = std::io::stdout();
        // The parent may have closed standard output.
        let _ = writeln!(out, "listening on {scheme}://{address}").and_then(|()| out.flush());
    }
    #[cfg(unix)]
    let state = match event {
        ServerEvent::Listening(_) => return,
        ServerEvent::Ready => "READY=1",
        ServerEvent::Draining => "STOPPING=1",
    };
    #[cfg(unix)]
    if let Some(path) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = notify(&path, state)
    {
        tracing::warn!(%error, "cannot tell systemd");
    }
}

/// Sends a state to the socket that systemd listens on; a name that begins with @ is abstract.
#[cfg(unix)]
fn notify(path: &std::ffi::OsStr, state: &str) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    #[cfg(target_os = "linux")]
    if let Some(name) = path.as_bytes().strip_prefix(b"@") {
        use std::os::linux::net::SocketAddrExt;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        return socket.send_to_addr(state.as_bytes(), &address).map(drop);
    }
    socket.send_to(state.as_bytes(), path).map(drop)
}

pub fn options(arguments: &ServeArguments) -> anyhow::Result<ServeOptions> {
    ensure!(
        arguments.cache_salt == CacheSalt::None || has_keys(arguments),
        WrongUsage(
            "--cache-salt key needs --api-key-file or --api-key: without keys all requests are of one owner"
                .to_owned()
        )
    );
    served_models::check_sampling(arguments, usize::MAX)?;
    let host = format!("{}:{}", arguments.host, arguments.port);
    let mut addresses = (arguments.host.as_str(), arguments.port)
        .to_socket_addrs()
        .with_context(|| format!("cannot find the address of {host}"))?;
    let api_keys = api_keys(arguments)?;
    let address = addresses
        .next()
        .with_context(|| format!("{host} has no address"))?;
    let connections = arguments.connections;
    let seed = arguments.sampling.params(&SamplingDefaults::default()).seed;
    Ok(ServeOptions {
        address,
        allowed_hosts: allowed_hosts(arguments, address.ip().is_loopback())?,
        form_helper: Some(form_helper_program(arguments)),
        preload: served_models::preloads(arguments),
        models_memory: arguments.models_memory,
        keep_alive: arguments.keep_alive.and_then(|keep_alive| keep_alive.0),
        api_keys,
        key_limits: KeyLimits {
            requests_per_minute: arguments.key_requests,
            tokens_per_minute: arguments.key_tokens,
            concurrency: arguments.key_concurrency,
        },
        tls: tls(arguments)?,
        cors_origins: CorsOrigins::new(&arguments.cors_origin)
            .map_err(|error| WrongUsage(error.to_string()))?,
        is_lenient: arguments.lenient,
        seed: arguments.sampling.is_deterministic().then_some(seed),
        pooling: arguments.pooling,
        state_dir: arguments.state_dir.clone(),
        file_limits: FileLimits {
            file_bytes: arguments.file_bytes as u64,
            total_bytes: arguments.files_bytes as u64,
        },
        separate_caches: arguments.cache_salt == CacheSalt::Key,
        #[cfg(feature = "otlp")]
        otlp: otlp_signals()?,
        limits: Limits {
            queue_requests: arguments.queue_requests,
            queue_tokens: arguments.queue_tokens,
            choices: arguments.choices,
            body_bytes: arguments.body_bytes,
            header_bytes: arguments.header_bytes,
            header_timeout: arguments.header_timeout,
            body_timeout: arguments.body_timeout,
            write_timeout: arguments.write_timeout,
            request_timeout: arguments.request_timeout,
            inflight_bytes: arguments.inflight_bytes.max(arguments.body_bytes),
            connections,
            connections_per_address: arguments
                .connections_per_address
                .unwrap_or(connections - connections / 8),
        },
        drain_timeout: arguments.drain_timeout,
        stall_timeout: arguments.stall_timeout,
        lost_log_lines: Arc::default(),
    })
}

/// Whether requests need a key.
fn has_keys(arguments: &ServeArguments) -> bool {
    arguments.api_key_file.is_some() || !arguments.api_key.is_empty()
}

/// The keys that requests need; `None` if they need none.
fn api_keys(arguments: &ServeArguments) -> anyhow::Result<Option<ApiKeys>> {
    if !has_keys(arguments) {
        return Ok(None);
    }
    let file = arguments.api_key_file.as_deref();
    let keys = ApiKeys::new(&arguments.api_key, file);
    Ok(Some(keys.with_context(|| match file {
        Some(path) => format!("API keys in {}", path.display()),
        None => "API keys of --api-key".to_owned(),
    })?))
}

/// The certificate, if the server speaks HTTPS.
fn tls(arguments: &ServeArguments) -> anyhow::Result<Option<Tls>> {
    match (&arguments.tls_cert, &arguments.tls_key) {
        (Some(certificate), Some(key)) => {
            let tls = Tls::read(certificate, key);
            Ok(Some(tls.context("TLS")?))
        }
        _ => Ok(None),
    }
}

/// The host names that requests may use for the server. On a loopback address without keys they
/// must be listed, because web pages can point their own names at it.
fn allowed_hosts(arguments: &ServeArguments, is_loopback: bool) -> anyhow::Result<AllowedHosts> {
    let is_open = has_keys(arguments) || !is_loopback;
    if arguments.allowed_host.is_empty() && is_open {
        return Ok(AllowedHosts::any());
    }
    let hosts = AllowedHosts::new(&arguments.allowed_host);
    Ok(hosts.map_err(|error| WrongUsage(error.to_string()))?)
}

/// How to start this program as the helper that compiles forms.
fn form_helper_program(arguments: &ServeArguments) -> FormHelper {
    let limits = HelperLimits {
        stack_bytes: arguments.form_stack,
        memory_bytes: arguments.form_memory,
        time: arguments.form_timeout,
    };
    let program = program::running().command([
        "form-helper".to_owned(),
        format!("--stack={}", limits.stack_bytes),
        format!("--memory={}", limits.memory_bytes),
    ]);
    FormHelper { program, limits }
}

/// Compiles forms for the server that started this process.
pub fn form_helper(arguments: &FormHelperArguments) -> ! {
    bitnet_server::answer_forms(HelperLimits {
        stack_bytes: arguments.stack,
        memory_bytes: arguments.memory,
        // The server limits the time itself.
        time: Duration::MAX,
    })
}

/// File descriptors that the server needs beside its connections.
const OTHER_FILES: usize = 64;

/// The number of connections for which there are enough file descriptors: `wanted` if the system
/// allows it.
fn affordable_connections(wanted: usize) -> anyhow::Result<usize> {
    let needed = wanted.saturating_add(OTHER_FILES);
    let Some(limit) = bitnet_guard::open_files_limit(needed as u64) else {
        return Ok(wanted);
    };
    let affordable = usize::try_from(limit).unwrap_or(usize::MAX);
    let affordable = affordable.saturating_sub(OTHER_FILES);
    ensure!(
        affordable > 0,
        "this process may open {limit} files, but the server needs more than {OTHER_FILES}: raise the limit (ulimit -n)"
    );
    if affordable < wanted {
        tracing::warn!(
            limit,
            "this process may open few files: --connections is {affordable} instead of {wanted}"
        );
    }
    Ok(affordable.min(wanted))
}

/// The signals to send to OpenTelemetry, from the variables of its specification: none unless an
/// endpoint is set.
#[cfg(feature = "otlp")]
fn otlp_signals() -> anyhow::Result<bitnet_server::OtlpSignals> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let is_disabled =
        variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let is_on = |signal: &str| {
        let endpoint = variable(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"));
        let exporter = variable(&format!("OTEL_{signal}_EXPORTER"));
        let has_endpoint = endpoint
            .or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"))
            .is_some();
        let is_asked_for = exporter.as_deref() == Some("otlp");
        !is_disabled && exporter.as_deref() != Some("none") && (has_endpoint || is_asked_for)
    };
    let signals = bitnet_server::OtlpSignals {
        metrics: is_on("METRICS"),
        traces: is_on("TRACES"),
    };
    for (signal, is_sent) in [("METRICS", signals.metrics), ("TRACES", signals.traces)] {
        let names = [
            format!("OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"),
            "OTEL_EXPORTER_OTLP_PROTOCOL".to_owned(),
        ];
        let found = names.iter().find_map(|name| Some((name, variable(name)?)));
        if let Some((name, protocol)) = found.filter(|(_, protocol)| is_sent && protocol != "grpc")
        {
            return Err(
                WrongUsage(format!("{name} is {protocol}, but only grpc is supported")).into(),
            );
        }
    }
    Ok(signals)
}

/// Address space that serving needs besides the model and its cache: stacks of threads, requests,
/// and the allocator's reserve for each thread.
const HEADROOM_BYTES: u64 = 512 << 20;

/// Fails if a limit on address space (`ulimit -v`) would end the process under load.
pub fn check_headroom() -> anyhow::Result<()> {
    let left = bitnet_guard::address_space_left().unwrap_or(u64::MAX);
    ensure!(
        left >= HEADROOM_BYTES,
        "the limit on memory addresses (ulimit -v) leaves {} MiB beside the model and its cache, but serving takes {} MiB",
        left >> 20,
        HEADROOM_BYTES >> 20
    );
    Ok(())
}

/// Checks the settings against the models, as far as possible without their weights, and prints them
/// as a file of settings.
fn check(arguments: &ServeArguments) -> anyhow::Result<()> {
    served_models::check(arguments)?;
    let mut out = std::io::stdout().lock();
    for setting in settings::effective()? {
        let values: Vec<String> = match setting.name.as_str() {
            // The output does not show keys.
            "api-key" => vec!["\"...\"".to_owned()],
            _ => setting.values.iter().map(|value| in_toml(value)).collect(),
        };
        let value = match &values[..] {
            [] => "true".to_owned(),
            [value] => value.clone(),
            values => format!("[{}]", values.join(", ")),
        };
        writeln!(out, "{} = {value} # {}", setting.name, setting.origin)?;
    }
    Ok(())
}

/// A value in TOML, without quotes if TOML reads the same value without them: numbers, but not `.5`
/// or `1e5`.
fn in_toml(value: &str) -> String {
    use toml::Value;
    let read = format!("value = {value}").parse::<toml::Table>().ok();
    match read.as_ref().and_then(|table| table.get("value")) {
        Some(read @ (Value::Integer(_) | Value::Float(_) | Value::Boolean(_)))
            if read.to_string() == value =>
        {
            value.to_owned()
        }
        _ => Value::String(value.to_owned()).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_toml_reads_differently_are_quoted() {
        for (value, expected) in [
            ("80", "80"),
            ("0.5", "0.5"),
            ("-1", "-1"),
            ("true", "true"),
            (".5", "\".5\""),
            ("1e5", "\"1e5\""),
            ("+5", "\"+5\""),
            ("007", "\"007\""),
            ("1979-05-27", "\"1979-05-27\""),
            ("0x10", "\"0x10\""),
            ("2M", "\"2M\""),
            ("a\nb = 1", "\"\"\"\na\nb = 1\"\"\""),
            ("1 # one", "\"1 # one\""),
            ("[1]", "\"[1]\""),
            ("\"1\"", "'\"1\"'"),
            ("", "\"\""),
        ] {
            assert_eq!(in_toml(value), expected, "{value}");
        }
    }
}
