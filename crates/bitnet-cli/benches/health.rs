//! Latency of a server's health probe, connection included: `cargo bench --no-default-features
//! --features cpu,bench -- health`.
//!
//! `health/idle`: `GET /health` of an idle server. `health/busy`: while clients keep its engine
//! busy on the same CPUs; less than 5 ms. `xtask check health-latency` reports the server's own
//! share and the 99th percentile.

#[path = "../../../tests/serve/client.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod client;

use std::process::{Command, Stdio};

use client::Server;
use criterion::{Criterion, criterion_group, criterion_main};

criterion_group!(benches, health);
criterion_main!(benches);

/// Clients that keep the engine busy.
const CONCURRENCY: f64 = 4.0;

fn health(criterion: &mut Criterion) {
    let threads = std::thread::available_parallelism().expect("the number of CPUs");
    let server = Server::start(&["--threads", &threads.to_string(), "--log-level", "error"]);
    let probe = || assert_eq!(server.get("/health").status, 200);
    let mut group = criterion.benchmark_group("health");
    group.bench_function("idle", |bencher| bencher.iter(probe));

    let mut load = Command::new(env!("CARGO_BIN_EXE_bitnet"));
    load.args([
        "bench-server",
        &format!("http://{}", server.address),
        "--requests",
        "1000000",
    ]);
    load.args(["--concurrency", &CONCURRENCY.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut load = load.spawn().expect("the program starts");
    server.wait_until("busy", || {
        server.sample("vllm:num_requests_running") >= CONCURRENCY
    });
    group.bench_function("busy", |bencher| bencher.iter(probe));
    load.kill().expect("the clients are still there");
    load.wait().expect("a child");
}
