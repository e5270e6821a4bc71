//! `xtask bench servers`: puts servers under the same load in turns, or measures how a long prompt
//! delays other clients.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::{WrongUsage, stats};

/// Maximum time for a server to load its model.
const LOADING: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub struct Options {
    /// A server: a name, and the command that starts it, with {port} in place of its port
    #[arg(
        long = "server",
        value_name = "NAME=COMMAND",
        required_unless_present = "table_only"
    )]
    servers: Vec<String>,
    /// Numbers of simultaneous clients
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1,2,4,8,16"
    )]
    concurrency: Vec<usize>,
    /// Rounds: measurements of each server under each load
    #[arg(long, value_name = "N", default_value_t = 1)]
    rounds: usize,
    /// Requests per client
    #[arg(long, value_name = "N", default_value_t = 1)]
    requests: usize,
    /// Tokens per prompt
    #[arg(long, value_name = "N", default_value_t = 128)]
    prompt_tokens: usize,
    /// Tokens per answer
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_tokens: usize,
    /// Measure instead how a prompt of N tokens changes the gaps between other clients' tokens
    #[arg(long, value_name = "N")]
    long_prompt: Option<usize>,
    /// The program whose `bench-server` makes the load
    #[arg(long, value_name = "FILE", default_value = "target/release/bitnet")]
    bitnet: PathBuf,
    /// A file of JSON lines: each measurement is appended, and the table covers the whole file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Only print the table of the file
    #[arg(long)]
    table_only: bool,
}

/// Starts each server in turn, puts it under load, stops it, and prints the medians of all rounds.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let servers = options
        .servers
        .iter()
        .map(|server| parse(server))
        .collect::<anyhow::Result<Vec<_>>>()?;
    for round in 0..if options.table_only {
        0
    } else {
        options.rounds
    } {
        for &concurrency in &options.concurrency {
            for &(name, command) in &servers {
                let mut record = measure(options, command, concurrency)
                    .with_context(|| format!("measuring {name}"))?;
                record["server"] = name.into();
                let mut file = fs::OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(&options.out)?;
                writeln!(file, "{record}")
                    .with_context(|| format!("writing {}", options.out.display()))?;
                println!(
                    "round {}: {name}, {concurrency} clients: {}",
                    round + 1,
                    summary(&record)
                );
            }
        }
    }
    let text = fs::read_to_string(&options.out)
        .with_context(|| format!("reading {}", options.out.display()))?;
    let records = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<Vec<Value>, _>>()?;
    print!("{}", table(&records));
    Ok(())
}

fn parse(server: &str) -> anyhow::Result<(&str, &str)> {
    let parts = server
        .split_once('=')
        .filter(|(name, command)| !name.is_empty() && command.contains("{port}"));
    parts.with_context(|| {
        WrongUsage(format!(
            "{server:?} is not NAME=COMMAND with {{port}} in it"
        ))
    })
}

/// A server process, killed on drop.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start(command: &str) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut words = command
            .split_whitespace()
            .map(|word| word.replace("{port}", &port.to_string()));
        let program = words.next().unwrap_or_default();
        let process = Command::new(&program)
            .args(words)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = process.with_context(|| format!("starting {program}"))?;
        let mut server = Self {
            process,
            url: format!("http://127.0.0.1:{port}"),
        };
        let start = Instant::now();
        while !is_ready(port) {
            if let Some(status) = server.process.try_wait()? {
                bail!("the server ended while it loaded: {status}");
            }
            ensure!(
                start.elapsed() < LOADING,
                "the server is not ready after {LOADING:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already; its failed answers have reported that.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether `GET /health` returns 200.
fn is_ready(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream
            .write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stream), &mut line)?;
        Ok(line)
    };
    ask().is_ok_and(|line| line.split(' ').nth(1) == Some("200"))
}

/// One server under one load.
fn measure(options: &Options, command: &str, concurrency: usize) -> anyhow::Result<Value> {
    let server = Server::start(command)?;
    let load = |concurrency: usize, requests: usize, prompt: usize, answer: usize, seed: u64| {
        let mut command = Command::new(&options.bitnet);
        command.args([
            "bench-server",
            &server.url,
            "--json",
            "--token-ids",
            "--endpoint",
            "completions",
        ]);
        for (name, value) in [
            ("--concurrency", concurrency),
            ("--requests", requests),
            ("--prompt-words", prompt),
            ("--max-tokens", answer),
        ] {
            command.arg(name).arg(value.to_string());
        }
        command
            .args(["--seed", &seed.to_string()])
            .stdout(Stdio::piped());
        command
    };
    let Some(long) = options.long_prompt else {
        let requests = concurrency * options.requests;
        let output = load(
            concurrency,
            requests,
            options.prompt_tokens,
            options.max_tokens,
            1,
        )
        .output()?;
        return result(&output.stdout);
    };
    result(&load(1, 1, 8, 8, 3).arg("--warmup=0").output()?.stdout)?;
    // The other clients have short prompts and answers that outlast the long prompt. They start at
    // once, without warm-up, so that all of them decode when the long prompt arrives.
    let mut others = load(concurrency, concurrency, 8, options.max_tokens, 1);
    let others = others
        .arg("--warmup=0")
        .spawn()
        .context("starting the load")?;
    std::thread::sleep(Duration::from_millis(1500));
    let output = load(1, 1, long, 1, 2).arg("--warmup=0").output()?;
    let disturbance = result(&output.stdout)?;
    let mut record = result(&others.wait_with_output()?.stdout)?;
    record["long_prompt"] = disturbance["prompt_tokens"].clone();
    record["long_prompt_first_token_ms"] = disturbance["first_token_ms"]["p50"].clone();
    Ok(record)
}

/// The report of `bench-server --json`; an error if a request failed.
fn result(stdout: &[u8]) -> anyhow::Result<Value> {
    let report: Value = serde_json::from_slice(stdout).context("bench-server printed no report")?;
    let failed = report["failed"]
        .as_object()
        .is_some_and(|failed| !failed.is_empty());
    ensure!(!failed, "requests failed: {}", report["failed"]);
    Ok(report)
}

fn number(record: &Value, path: &str) -> f64 {
    record
        .pointer(path)
        .and_then(Value::as_f64)
        .unwrap_or(f64::NAN)
}

/// Tokens per second during decoding, without the time for prompts: clients ÷ time per token.
fn decode_rate(record: &Value) -> f64 {
    number(record, "/concurrency") * 1e3 / number(record, "/token_ms/p50")
}

fn summary(record: &Value) -> String {
    let gaps = [number(record, "/gap_ms/p50"), number(record, "/gap_ms/p99")];
    format!(
        "{:.1} tokens/s, {:.1} while decoding; first token {:.0} ms, gaps {:.1} ms, p99 {:.1} ms ({:.2} x)",
        number(record, "/output_tokens_per_second"),
        decode_rate(record),
        number(record, "/first_token_ms/p50"),
        gaps[0],
        gaps[1],
        gaps[1] / gaps[0]
    )
}

/// The medians of all records of each server and load, as Markdown.
fn table(records: &[Value]) -> String {
    let mut groups = BTreeMap::<_, Vec<&Value>>::new();
    for record in records {
        let key = (
            record["long_prompt"].as_u64().unwrap_or(0),
            record["concurrency"].as_u64().unwrap_or(0),
            record["server"].as_str().unwrap_or("?"),
        );
        groups.entry(key).or_default().push(record);
    }
    let mut text = String::from(
        "\n| long prompt | clients | server | rounds | tokens/s | decode tokens/s | first token, ms | gap, ms | p99 gap | p99 / median |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for ((long, concurrency, server), records) in groups {
        let median = |value: &dyn Fn(&Value) -> f64| {
            stats::median(records.iter().map(|record| value(record))).unwrap_or(f64::NAN)
        };
        let at = |path: &'static str| median(&|record| number(record, path));
        let ratio = median(&|record| number(record, "/gap_ms/p99") / number(record, "/gap_ms/p50"));
        text += &format!(
            "| {long} | {concurrency} | {server} | {} | {:.1} | {:.1} | {:.0} | {:.1} | {:.1} | {ratio:.2} |\n",
            records.len(),
            at("/output_tokens_per_second"),
            median(&decode_rate),
            at("/first_token_ms/p50"),
            at("/gap_ms/p50"),
            at("/gap_ms/p99"),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_has_the_medians_of_each_server_and_load() {
        let record = |server: &str, rate: f64| {
            json!({
                "server": server, "concurrency": 2, "output_tokens_per_second": rate, "token_ms": { "p50": 50.0 },
                "first_token_ms": { "p50": 100.0 }, "gap_ms": { "p50": 50.0, "p99": 75.0 },
            })
        };
        let records = [
            record("a", 9.0),
            record("b", 1.0),
            record("a", 30.0),
            record("a", 10.0),
        ];
        let text = table(&records);
        assert!(
            text.contains("| 0 | 2 | a | 3 | 10.0 | 40.0 | 100 | 50.0 | 75.0 | 1.50 |\n"),
            "{text}"
        );
        assert!(text.contains("| 0 | 2 | b | 1 | 1.0 | 40.0 |"), "{text}");
    }

    #[test]
    fn a_server_is_a_name_and_a_command_with_a_port() {
        assert!(matches!(
            parse("a=b --port {port}"),
            Ok(("a", "b --port {port}"))
        ));
        assert!(parse("a=b").is_err() && parse("=b {port}").is_err() && parse("b {port}").is_err());
    }
}
