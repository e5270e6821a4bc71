//! The cost of telemetry in a server: events × cost ÷ time of a request, and a server that exports
//! compared with one that does not.
//!
//! `cargo bench -p bitnet-cli --features bench --bench telemetry [-- [--model FILE] [--rounds N]]`;
//! the default is the built-in model, whose fast tokens make recording relatively most expensive.
//! Linux only: it reads the threads' times.

#[path = "../../../tests/serve/collector.rs"]
mod collector;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bitnet_kernels::math;
use bitnet_server::{
    Arrivals, EventCosts, LoadEndpoint, LoadGeneratorOptions, LoadReport, RequestTimes,
    event_costs, run_load,
};

use collector::Collector;

/// Maximum share of a request's time for recording, and of a core for exporting.
const RECORDING_MAX: f64 = 1e-3;
const EXPORTING_MAX: f64 = 1e-2;
/// Milliseconds between exports: a sixtieth of the default, so that the cost is measurable.
const EXPORT_INTERVAL_MS: &str = "1000";
const CONCURRENCY: usize = 4;

/// A `bitnet serve` process.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    /// Starts a server that exports to this collector, if any.
    fn start(model: Option<&str>, collector: Option<&Collector>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
        command.args(["serve", "--port", "0", "--log-level", "warn"]);
        command.args(model.iter().flat_map(|model| ["-m", model]));
        if let Some(collector) = collector {
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint());
            command.env("OTEL_METRIC_EXPORT_INTERVAL", EXPORT_INTERVAL_MS);
        }
        let mut process = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("a pipe"))
            .read_line(&mut line)
            .expect("a line");
        let url = line
            .trim()
            .strip_prefix("listening on ")
            .expect("an address")
            .to_owned();
        let server = Self { process, url };
        while run_load(&server.load(1, 4)).is_err() {
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn load(&self, num_requests: usize, max_tokens: usize) -> LoadGeneratorOptions {
        LoadGeneratorOptions {
            url: self.url.clone(),
            endpoint: LoadEndpoint::Completions,
            model: None,
            api_key: None,
            arrivals: Arrivals::Closed {
                concurrency: CONCURRENCY,
            },
            num_requests,
            num_warmup: 1,
            prompt_words: 32,
            shared_words: 0,
            as_token_ids: false,
            max_tokens,
            ignore_eos: true,
            temperature: 0.0,
            seed: 0,
            timeout: Duration::from_secs(300),
        }
    }

    fn run(&self, num_requests: usize) -> LoadReport {
        let report = run_load(&self.load(num_requests, 64)).expect("a report");
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        report
    }

    /// CPU seconds of the threads whose names have this beginning.
    fn thread_seconds(&self, beginning: &str) -> f64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.process.id())).expect("threads");
        let nanoseconds = |thread: std::io::Result<fs::DirEntry>| {
            let path = thread.ok()?.path();
            let name = fs::read_to_string(path.join("comm")).ok()?;
            let times = fs::read_to_string(path.join("schedstat")).ok()?;
            name.starts_with(beginning).then_some(())?;
            times.split(' ').next()?.parse::<f64>().ok()
        };
        threads.filter_map(nanoseconds).sum::<f64>() * 1e-9
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already; its failed answers have reported that.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn main() {
    let Some((model, rounds)) = arguments() else {
        return;
    };
    let model = model.as_deref();
    let costs = event_costs().expect("costs");
    print_costs(&costs);

    let collector = Collector::start();
    let (silent, exporting) = (
        Server::start(model, None),
        Server::start(model, Some(&collector)),
    );
    // The number of requests that makes one run take a second or two.
    let start = Instant::now();
    let probe = silent.run(2 * CONCURRENCY);
    let num_requests = (3.0 / start.elapsed().as_secs_f64()).ceil() as usize * CONCURRENCY;

    let share = recording_share(&costs, &probe);
    let own = compare(&silent, &exporting, rounds, num_requests);
    assert!(!collector.collected.metrics().is_empty() && !collector.collected.traces().is_empty());
    assert!(
        share < RECORDING_MAX,
        "recording takes {:.3} % of a request",
        share * 100.0
    );
    assert!(
        own < EXPORTING_MAX,
        "exporting takes {:.2} % of a core",
        own * 100.0
    );
}

/// The model and the number of rounds; `None` if the arguments are for other benchmarks.
fn arguments() -> Option<(Option<String>, usize)> {
    let (mut model, mut rounds) = (None, 20);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {}
            "--model" => model = arguments.next(),
            "--rounds" => {
                rounds = arguments
                    .next()
                    .and_then(|rounds| rounds.parse().ok())
                    .expect("a number of rounds")
            }
            // Arguments for the other benchmarks, such as filters and baselines: there is nothing
            // to run here.
            _ => return None,
        }
    }
    Some((model, rounds))
}

fn ns(seconds: f64) -> f64 {
    seconds * 1e9
}

fn print_costs(costs: &EventCosts) {
    println!(
        "ns: token {:.0}, step {:.0}, answer {:.0}, request {:.0}, request for OpenTelemetry {:.0}, scrape {:.0}",
        ns(costs.token),
        ns(costs.step),
        ns(costs.answer),
        ns(costs.http),
        ns(costs.otlp),
        ns(costs.scrape)
    );
}

/// The mean time of a report's requests, in seconds.
fn mean_total(report: &LoadReport) -> f64 {
    let total = |times: &RequestTimes| times.total.as_secs_f64();
    report.answered.iter().map(total).sum::<f64>() / report.answered.len() as f64
}

/// Prints and returns the share of a request's time that recording takes: the cost of its tokens,
/// as many steps, its answer and its end.
fn recording_share(costs: &EventCosts, probe: &LoadReport) -> f64 {
    let tokens = probe
        .answered
        .iter()
        .map(|times| times.output_tokens)
        .sum::<usize>() as f64
        / probe.answered.len() as f64;
    let request = mean_total(probe);
    let recording = tokens * (costs.token + costs.step) + costs.answer + costs.http + costs.otlp;
    let share = recording / request;
    println!(
        "{tokens:.0} tokens x ({:.0} + {:.0}) + {:.0} + {:.0} + {:.0} ns = {:.1} us of {:.2} ms: {:.4} % of a request",
        ns(costs.token),
        ns(costs.step),
        ns(costs.answer),
        ns(costs.http),
        ns(costs.otlp),
        recording * 1e6,
        request * 1e3,
        share * 100.0
    );
    share
}

/// Runs both servers in turn and prints how they differ. Returns the share of a core that the
/// exporter's own threads take.
fn compare(silent: &Server, exporting: &Server, rounds: usize, num_requests: usize) -> f64 {
    let own = |server: &Server| server.thread_seconds("OpenTelemetry");
    let http = |server: &Server| server.thread_seconds("bitnet-http");
    let before = [own(exporting), http(exporting), http(silent)];
    let (mut differences, mut spent) = (Vec::new(), [0.0; 2]);
    for round in 0usize..rounds {
        let mut times = [0.0; 2];
        for which in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            let report = [silent, exporting][which].run(num_requests);
            times[which] = mean_total(&report);
            spent[which] += report.elapsed.as_secs_f64();
        }
        differences.push(times[1] / times[0] - 1.0);
    }
    let [low, high] = math::median_interval(&mut differences).expect("a round");
    let middle = math::median(&mut differences).expect("a round");
    println!(
        "exporting every second against not at all, {rounds} pairs of {num_requests} requests: {:+.2} % of a request's time \
         (95 % interval {:+.2} % to {:+.2} %)",
        middle * 100.0,
        low * 100.0,
        high * 100.0
    );
    // CPU time of the server's own threads, which also ran during the other server's turn, and its
    // share of the threads that serve both.
    let carrying = (http(exporting) - before[1]) / spent[1] - (http(silent) - before[2]) / spent[0];
    let own = (own(exporting) - before[0]) / (spent[0] + spent[1]);
    println!(
        "exporter: {:.3} % of a core by its own threads, {:+.3} % more by those that serve",
        own * 100.0,
        carrying * 100.0
    );
    own
}
