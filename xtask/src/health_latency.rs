//! How long a probe of a saturated server waits: what decides whether a balancer takes it for dead.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::json;

use crate::circumstances::Circumstances;

/// The bound of the histogram that the server's share is told for, in seconds.
const BOUND_S: &str = "0.005";

#[derive(clap::Args)]
pub struct Options {
    /// The program that serves
    #[arg(long, default_value = "target/release/bitnet")]
    bitnet: PathBuf,
    /// The model; the built-in one if not given
    #[arg(short, long)]
    model: Option<PathBuf>,
    /// Clients that keep the engine busy
    #[arg(short, long, default_value_t = 8)]
    concurrency: usize,
    /// Seconds of probing
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Milliseconds from a probe to the next
    #[arg(long, default_value_t = 20)]
    pause_ms: u64,
}

/// Ends the process it holds.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    let mut serve = Command::new(&options.bitnet);
    serve
        .args(["serve", "--port", "0", "--log-level", "error"])
        .stdout(Stdio::piped());
    if let Some(model) = &options.model {
        serve.arg("--model").arg(model);
    }
    let mut server = Running(
        serve
            .spawn()
            .with_context(|| format!("starting {}", options.bitnet.display()))?,
    );
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().context("no output")?).read_line(&mut line)?;
    let url = line
        .trim()
        .strip_prefix("listening on ")
        .context("the server did not say where it listens")?;
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
        url,
        "--requests",
        "100000",
        "--concurrency",
        &options.concurrency.to_string(),
    ]);
    let load = Running(load.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    // Until the server has all of them.
    let let_in = || {
        anyhow::Ok(
            sample(address, "vllm:num_requests_running{")?
                + sample(address, "vllm:num_requests_waiting{")?,
        )
    };
    while let_in().is_ok_and(|requests: f64| requests < options.concurrency as f64) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let before = of_server(address)?;
    let busy = probe(address, Duration::from_secs(options.seconds), options)?;
    let after = of_server(address)?;
    drop(load);
    let [within, all, seconds] = [0, 1, 2].map(|index| after[index] - before[index]);
    ensure!(all > 0.0, "the server has counted no probe");
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
        "{:.2} % of the probes took the server more than 5 ms",
        100.0 * (1.0 - within / all)
    );
    Ok(())
}

/// Asks for /health again and again; how long each answer took, with its connection.
fn probe(address: &str, time: Duration, options: &Options) -> anyhow::Result<Vec<Duration>> {
    let (start, mut out) = (Instant::now(), Vec::new());
    while start.elapsed() < time {
        let sent = Instant::now();
        let (status, _) = get(address, "/health")?;
        out.push(sent.elapsed());
        ensure!(status == 200, "/health is {status}");
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

/// Probes that the server answered within the bound, all, and the seconds they took it, from its
/// own histogram.
fn of_server(address: &str) -> anyhow::Result<[f64; 3]> {
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

/// The sample of /metrics whose line begins so.
fn sample(address: &str, beginning: &str) -> anyhow::Result<f64> {
    let (_, text) = get(address, "/metrics")?;
    let line = text.lines().find(|line| line.starts_with(beginning));
    let value = line
        .and_then(|line| line.rsplit(' ').next())
        .and_then(|value| value.parse().ok());
    value.with_context(|| format!("/metrics has no {beginning}"))
}

/// Status and body of an answer.
fn get(address: &str, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        bail!("{path} is answered by {text:?}")
    };
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok((
        status.with_context(|| format!("{path} is answered by {head:?}"))?,
        body.to_owned(),
    ))
}
