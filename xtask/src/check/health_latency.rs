//! `xtask check health-latency`: the latency of `/health` while the server is saturated, which
//! decides whether a load balancer considers it dead.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::json;

use crate::circumstances::Circumstances;

/// The limit, in seconds: a bucket bound of the server's histogram.
const BOUND_S: &str = "0.005";

#[derive(clap::Args)]
pub struct Options {
    /// The server program
    #[arg(long, default_value = "target/release/bitnet")]
    bitnet: PathBuf,
    /// The model (default: the built-in one)
    #[arg(short, long)]
    model: Option<PathBuf>,
    /// Number of clients that keep the engine busy
    #[arg(short, long, default_value_t = 8)]
    concurrency: usize,
    /// Duration of probing, in seconds
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Pause between probes, in milliseconds
    #[arg(long, default_value_t = 20)]
    pause_ms: u64,
}

/// A process, killed on drop.
struct Running(Child);

impl Running {
    /// Starts a server. Returns it with its URL.
    fn serve(options: &Options) -> anyhow::Result<(Self, String)> {
        let mut serve = Command::new(&options.bitnet);
        serve
            .args(["serve", "--port", "0", "--log-level", "error"])
            .stdout(Stdio::piped());
        if let Some(model) = &options.model {
            serve.arg("--model").arg(model);
        }
        let mut server = Self(
            serve
                .spawn()
                .with_context(|| format!("starting {}", options.bitnet.display()))?,
        );
        let mut line = String::new();
        BufReader::new(server.0.stdout.take().context("no output")?).read_line(&mut line)?;
        let url = line
            .trim()
            .strip_prefix("listening on ")
            .context("the server did not print its address")?;
        Ok((server, url.to_owned()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    let (_server, url) = Running::serve(options)?;
    let address = url.trim_start_matches("http://");
    while get(address, "/readyz")?.0 != 200 {
        std::thread::sleep(Duration::from_millis(50));
    }
    let idle = probe(
        address,
        Duration::from_secs(options.seconds.div_ceil(4)),
        options,
    )?;
    let mut load = Command::new(&options.bitnet);
    load.args([
        "bench-server",
        &url,
        "--requests",
        "100000",
        "--concurrency",
        &options.concurrency.to_string(),
    ]);
    let load = Running(load.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    // Wait until the server has admitted or queued all of them.
    let admitted = || {
        anyhow::Ok(
            sample(address, "vllm:num_requests_running{")?
                + sample(address, "vllm:num_requests_waiting{")?,
        )
    };
    while admitted().is_ok_and(|requests: f64| requests < options.concurrency as f64) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let before = server_histogram(address)?;
    let busy = probe(address, Duration::from_secs(options.seconds), options)?;
    let after = server_histogram(address)?;
    drop(load);
    let [within, all, seconds] = [0, 1, 2].map(|index| after[index] - before[index]);
    ensure!(all > 0.0, "the server counted no probes");
    let report = json!({
        "circumstances": Circumstances::now(root)?,
        "model": options.model.as_ref().map_or("built-in".into(), |path| path.display().to_string()),
        "concurrency": options.concurrency,
        "probes": all,
        "server_share_within_5_ms": within / all,
        "server_mean_ms": 1e3 * seconds / all,
        "client_ms": percentiles(busy),
        "client_idle_ms": percentiles(idle),
    });
    println!("{report:#}");
    ensure!(
        within / all >= 0.99,
        "{:.2} % of the probes took longer than 5 ms on the server",
        100.0 * (1.0 - within / all)
    );
    Ok(())
}

/// Requests /health repeatedly for a duration. Returns the time of each request, connection
/// included.
fn probe(address: &str, time: Duration, options: &Options) -> anyhow::Result<Vec<Duration>> {
    let (start, mut out) = (Instant::now(), Vec::new());
    while start.elapsed() < time {
        let sent = Instant::now();
        let (status, _) = get(address, "/health")?;
        out.push(sent.elapsed());
        ensure!(status == 200, "/health returned {status}");
        std::thread::sleep(Duration::from_millis(options.pause_ms));
    }
    Ok(out)
}

fn percentiles(mut times: Vec<Duration>) -> serde_json::Value {
    times.sort_unstable();
    let ms = |share: f64| {
        times[((share * times.len() as f64).ceil() as usize).clamp(1, times.len()) - 1]
            .as_secs_f64()
            * 1e3
    };
    json!({ "p50": ms(0.5), "p99": ms(0.99), "max": ms(1.0) })
}

/// From the server's own histogram: probes answered within the limit, all probes, and their total
/// seconds.
fn server_histogram(address: &str) -> anyhow::Result<[f64; 3]> {
    let name = "http_server_request_duration_seconds";
    let labels =
        "http_route=\"/health\",http_request_method=\"GET\",http_response_status_code=\"200\"";
    let within = sample(
        address,
        &format!("{name}_bucket{{{labels},le=\"{BOUND_S}\"}}"),
    )?;
    let all = sample(address, &format!("{name}_count{{{labels}}}"))?;
    Ok([
        within,
        all,
        sample(address, &format!("{name}_sum{{{labels}}}"))?,
    ])
}

/// The value of the first line of /metrics with this beginning.
fn sample(address: &str, beginning: &str) -> anyhow::Result<f64> {
    let (_, text) = get(address, "/metrics")?;
    let line = text.lines().find(|line| line.starts_with(beginning));
    let value = line
        .and_then(|line| line.rsplit(' ').next())
        .and_then(|value| value.parse().ok());
    value.with_context(|| format!("/metrics has no {beginning}"))
}

/// Sends a GET request and returns the response's status and body.
fn get(address: &str, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        bail!("{path} returned an invalid response: {text:?}")
    };
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok((
        status.with_context(|| format!("{path} returned an invalid response: {head:?}"))?,
        body.to_owned(),
    ))
}
