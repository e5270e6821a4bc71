//! `bitnet bench`: measures how fast a model runs, as a share of the machine's limits.
//!
//! The limit of prefill is the peak rate of int8 products; the limit of decoding is the rate at
//! which memory is read. On shared machines that rate changes by the minute, so it is measured
//! before each run, and the runs take turns.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitnet_guard::peak_rss_bytes;
use bitnet_inference::{
    Device, DeviceProbe, Engine, EngineOptions, Error, Event, OpenModel, Request, RequestId,
    SamplingParams,
};
use bitnet_kernels::math::median;
use bitnet_kernels::{GroupCodes, Kernel, Packing, READ_PROBE_BYTES, ReadProbe, default_threads};
use bitnet_models::synthetic;
use bitnet_receipts::{Provenance, Receipt};
use bitnet_tokenizers::TokenId;
use serde_json::{Value, json};

use crate::args::{BenchArguments, WrongUsage};
use crate::cache::CacheDefault;
use crate::{bars, receipt, report, session};

/// Times runs of synthetic prompts and prints medians.
pub fn bench(arguments: &BenchArguments) -> anyhow::Result<()> {
    check(arguments)?;
    receipt::check_folder(arguments.receipt.as_deref())?;
    let threads = match &arguments.model.threads[..] {
        [] => vec![default_threads()],
        counts => counts.iter().map(|&n| usize::from(n)).collect(),
    };
    let start = Instant::now();
    let most = threads.iter().copied().max().unwrap_or(1);
    let device = session::named_device(&arguments.model, most)?;
    let whats = whats(arguments);
    let options = engine_options(arguments, &whats);
    let opened = session::open_model(&arguments.model, device, CacheDefault::Off, &|_| {
        Ok(options)
    })?;
    receipt::check_covered(
        arguments.receipt.as_deref(),
        opened.info(),
        opened.load_options.group_inputs,
        0,
    )?;
    let load_time = start.elapsed();

    let mut machines = threads
        .into_iter()
        .map(|n| Machine::new(&opened, device.with_threads(n), options))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let runs = measure(&mut machines, &whats, arguments.repetitions)?;
    if let Some(path) = &arguments.receipt {
        let provenance = receipt::provenance(&opened, &arguments.model, true)?;
        receipt::write(&machines[0].receipt(arguments, &provenance)?, path)?;
    }

    let results = Results {
        opened: &opened,
        device,
        load_time,
        machines: &machines,
        runs: &runs,
        // The probe's buffer is not part of the memory that a model needs.
        memory: peak_rss_bytes().map(|bytes| bytes.saturating_sub(READ_PROBE_BYTES as u64)),
    };
    let mut out = std::io::stdout().lock();
    match arguments.json {
        true => writeln!(out, "{}", results.json())?,
        false => results.write(&mut out)?,
    }
    Ok(())
}

/// Runs all measurements on all machines in turn, `repetitions` times after a round to warm up.
fn measure(
    machines: &mut [Machine],
    whats: &[What],
    repetitions: usize,
) -> anyhow::Result<Vec<Run>> {
    let read = ReadProbe::new(READ_PROBE_BYTES);
    let runs = |machine| {
        whats.iter().map(move |&what| Run {
            machine,
            what,
            samples: Vec::new(),
        })
    };
    let mut runs: Vec<Run> = (0..machines.len()).flat_map(runs).collect();
    let bar = bars::bar((repetitions + 1) * runs.len(), "runs");
    for round in 0..=repetitions {
        for run in &mut runs {
            let sample = machines[run.machine].measure(run.what, &read)?;
            if round > 0 {
                run.samples.push(sample);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(runs)
}

/// All that a benchmark prints.
struct Results<'a> {
    opened: &'a OpenModel,
    device: Device,
    load_time: Duration,
    machines: &'a [Machine],
    runs: &'a [Run],
    /// Bytes at the peak, if the system reports them.
    memory: Option<u64>,
}

impl Results<'_> {
    fn json(&self) -> Value {
        let model = self.opened.info();
        let facts = self.machines[0].engine.facts();
        let runs: Vec<Value> = self
            .runs
            .iter()
            .map(|run| run.json(&self.machines[run.machine]))
            .collect();
        let first = |name: &str| runs.iter().find(|run| run["what"] == name);
        json!({
            "prefill": first("prefill"),
            "decode": first("decode"),
            "runs": runs,
            "threads": self.machines[0].num_threads(),
            "device": device_json(self.device),
            "kernels": self.device.kernel_names(),
            "packing": model.packing,
            "ternary_bytes": model.num_ternary_bytes,
            "head": report::head_json(&facts),
            "ffn_sparsity": report::ffn_sparsity_json(&facts),
            "model": report::model_json(&self.opened.source, model),
            "load_ms": self.load_time.as_secs_f64() * 1e3,
            "peak_rss_bytes": self.memory,
        })
    }

    fn write(&self, out: &mut impl std::io::Write) -> anyhow::Result<()> {
        let model = self.opened.info();
        writeln!(
            out,
            "{} · {} · {} kernels · packing {} · loaded in {:.2} s",
            self.opened.source,
            model.config.architecture_name,
            self.device.kernel_names(),
            model.packing,
            self.load_time.as_secs_f64()
        )?;
        if let Some(gpu) = self.device.adapter() {
            writeln!(out, "{} · {} · {}", gpu.name, gpu.interface, gpu.driver)?;
        }
        for (index, machine) in self.machines.iter().enumerate() {
            let runs: Vec<&Run> = self
                .runs
                .iter()
                .filter(|run| run.machine == index)
                .collect();
            write!(out, "{}", table(machine, &runs)?)?;
        }
        if let Some(line) = report::ffn_sparsity_line(&self.machines[0].engine.facts()) {
            writeln!(out, "zeros in feed-forward networks: {line}")?;
        }
        if let Some(bytes) = self.memory {
            writeln!(out, "peak memory {:.0} MB", bytes as f64 / 1e6)?;
        }
        Ok(())
    }
}

/// The device as JSON: its backend, and the adapter and driver of a GPU.
fn device_json(device: Device) -> Value {
    let gpu = device.adapter();
    json!({
        "backend": device.backend(),
        "adapter": gpu.as_ref().map(|gpu| &gpu.name),
        "interface": gpu.as_ref().map(|gpu| gpu.interface),
        "driver": gpu.as_ref().map(|gpu| &gpu.driver),
    })
}

fn check(arguments: &BenchArguments) -> anyhow::Result<()> {
    let wrong = |what: &str| Err(WrongUsage(format!("a benchmark needs {what}")).into());
    if arguments.prompt == 0 {
        return wrong("at least 1 token of prompt (-p)");
    }
    if arguments.repetitions == 0 {
        return wrong("at least 1 repetition (-r)");
    }
    if arguments.context.contains(&0) || arguments.batch.contains(&0) {
        return wrong("contexts and batches of at least 1");
    }
    Ok(())
}

/// A measurement.
#[derive(Clone, Copy, PartialEq)]
enum What {
    /// A prompt of `tokens` tokens, to its first sampled token.
    Prefill { tokens: usize },
    /// `steps` steps of `batch` sequences at once, each after a prompt of `context` tokens.
    Decode {
        context: usize,
        batch: usize,
        steps: usize,
    },
}

fn whats(arguments: &BenchArguments) -> Vec<What> {
    let (prompt, steps) = (arguments.prompt, arguments.predict);
    let mut whats = vec![What::Prefill { tokens: prompt }];
    if steps > 0 {
        let contexts = if arguments.context.is_empty() {
            &[prompt][..]
        } else {
            &arguments.context
        };
        whats.extend(contexts.iter().map(|&context| What::Decode {
            context,
            batch: 1,
            steps,
        }));
        let batches = arguments.batch.iter().map(|&batch| What::Decode {
            context: prompt,
            batch,
            steps,
        });
        whats.extend(
            batches
                .filter(|batch| !whats.contains(batch))
                .collect::<Vec<_>>(),
        );
    }
    whats
}

/// Bounds with room for all measurements, so that no prompt is computed twice.
fn engine_options(arguments: &BenchArguments, whats: &[What]) -> EngineOptions {
    let room = |what: &What| match *what {
        What::Prefill { tokens } => (tokens + 1, 1),
        What::Decode {
            context,
            batch,
            steps,
        } => (
            context + max_tokens(arguments.model.draft.max, batch, steps),
            batch,
        ),
    };
    let context = whats.iter().map(|what| room(what).0).max().unwrap_or(0);
    let running_max = whats.iter().map(|what| room(what).1).max().unwrap_or(1);
    let cache = context
        + whats
            .iter()
            .map(|what| room(what).0 * room(what).1)
            .max()
            .unwrap_or(0);
    EngineOptions {
        context,
        // Sequences take whole blocks, and the cache keeps some that nothing needs again.
        cache: 2 * cache + running_max * 2 * bitnet_models::KvCache::BLOCK,
        running_max,
        // One for each sequence and each draft.
        states: 2 * running_max,
        // Finish prompts before decoding.
        mixed_chunk: arguments.model.prefill_chunk,
        ..session::engine_options(&arguments.model, context)
    }
}

/// Enough tokens that no sequence ends during a measurement: the first sequences decode while the
/// prompts of the last ones are computed.
fn max_tokens(draft: usize, batch: usize, steps: usize) -> usize {
    (steps + 4 * batch + 4) * (1 + draft)
}

/// Larger than the seed of any measurement.
const RECEIPT_SEED: usize = 1 << 20;

/// An engine with a number of threads, and the limits of the machine with those threads.
struct Machine {
    engine: Engine,
    probe: DeviceProbe,
    /// int8 products per second.
    peak: Option<f64>,
    join: Duration,
    num_prefills: usize,
}

/// The result of one measurement.
#[derive(Clone, Copy)]
struct Sample {
    seconds: f64,
    tokens: usize,
    steps: usize,
    /// Products of weights and activations.
    macs: u64,
    /// Bytes read of weights, embedding rows and cache.
    bytes: u64,
    /// The rate of memory reads just before, in bytes per second.
    read: f64,
}

impl Machine {
    /// Starts an engine on a device and measures the device's limits.
    fn new(opened: &OpenModel, device: Device, options: EngineOptions) -> anyhow::Result<Self> {
        let engine = Engine::new(Arc::clone(&opened.model), None, device, options)?;
        let probe = device.probe()?;
        // The probe measures the peak of multiplications, which says nothing about table lookups.
        let is_looked_up = [Packing::Tl1, Packing::Tl2]
            .iter()
            .any(|packing| opened.info().packing.contains(packing.name()));
        let peak = probe.peak_i8_macs_per_s().filter(|_| !is_looked_up);
        let join = probe.join_latency();
        Ok(Self {
            engine,
            probe,
            peak,
            join,
            num_prefills: 0,
        })
    }

    fn num_threads(&self) -> usize {
        self.engine.device().threads()
    }

    fn measure(&mut self, what: What, read: &ReadProbe) -> anyhow::Result<Sample> {
        let sample = self.measure_once(what, read)?;
        match self.engine.failure() {
            Some(problem) => Err(Error::DeviceFailed(problem).into()),
            None => Ok(sample),
        }
    }

    fn measure_once(&mut self, what: What, read: &ReadProbe) -> anyhow::Result<Sample> {
        match what {
            What::Prefill { tokens } => {
                // With its own salt, the prompt finds nothing in the cache.
                self.num_prefills += 1;
                let salt = Some(self.num_prefills.to_string().into());
                let request = Request {
                    max_tokens: Some(1),
                    cache_salt: salt,
                    ..self.request(0, tokens)
                };
                let id = self.engine.submit(request)?;
                let sample = self.time(read, |engine, events| step_until_tokens(engine, 1, events));
                self.engine.cancel(id);
                Ok(Sample { tokens, ..sample })
            }
            What::Decode {
                context,
                batch,
                steps,
            } => {
                let max_tokens = Some(max_tokens(self.engine.options().draft_max, batch, steps));
                let requests = (0..batch).map(|seed| Request {
                    max_tokens,
                    ..self.request(seed, context)
                });
                let ids = requests
                    .collect::<Vec<_>>()
                    .into_iter()
                    .map(|request| self.engine.submit(request));
                let ids = ids.collect::<Result<Vec<RequestId>, _>>()?;
                step_until_tokens(&mut self.engine, batch, &mut Vec::new());
                let sample = self.time(read, |engine, events| {
                    (0..steps).for_each(|_| engine.step(events))
                });
                for id in ids {
                    self.engine.cancel(id);
                }
                Ok(sample)
            }
        }
    }

    /// A request with a synthetic prompt. With the same seed, a shorter prompt is the beginning of
    /// a longer one.
    fn request(&self, seed: usize, len: usize) -> Request {
        let vocab = self.engine.model().config.vocab_size;
        Request {
            prompt: synthetic::tokens(len, vocab, seed).map(TokenId).collect(),
            sampling: SamplingParams {
                temperature: 0.0,
                ..SamplingParams::default()
            },
            ..Request::default()
        }
    }

    /// Runs whole requests and returns the receipt of the one with the median time.
    fn receipt(
        &mut self,
        arguments: &BenchArguments,
        provenance: &Provenance,
    ) -> anyhow::Result<Receipt> {
        let mut receipts = Vec::new();
        for round in 0..arguments.repetitions {
            // Each prompt is new, and the prefill yields the first token.
            let request = Request {
                max_tokens: Some(arguments.predict + 1),
                ..self.request(RECEIPT_SEED + round, arguments.prompt)
            };
            self.engine.counters().reset();
            let (tokens, finish) = self.engine.complete(request.clone())?;
            receipts.push(Receipt::new(
                &self.engine.facts(),
                &request,
                &tokens,
                &finish,
                provenance,
            )?);
        }
        let time = |receipt: &Receipt| receipt.prefill_ms + receipt.decode_ms;
        receipts.sort_by(|a, b| time(a).total_cmp(&time(b)));
        Ok(receipts.swap_remove((receipts.len() - 1) / 2))
    }

    /// Probes the memory, then times `work`.
    fn time(
        &mut self,
        read: &ReadProbe,
        work: impl FnOnce(&mut Engine, &mut Vec<Event>),
    ) -> Sample {
        let read = self.probe.read_bytes_per_s(read);
        self.engine.counters().reset();
        let steps_before = self.engine.counts().steps;
        let mut events = Vec::new();
        let start = Instant::now();
        work(&mut self.engine, &mut events);
        let seconds = start.elapsed().as_secs_f64();
        let counters = self.engine.counters();
        // The packings of 2 and 1.67 bits count with the same kernels, and so do codes of 2 bits and
        // trits.
        let ternary = [Packing::Two, Packing::Tl1, Packing::Tl2].map(Packing::kernels);
        let of_groups = [GroupCodes::Signs, GroupCodes::TwoBits].map(GroupCodes::kernels);
        Sample {
            seconds,
            tokens: events
                .iter()
                .filter(|event| matches!(event, Event::Token { .. }))
                .count(),
            steps: (self.engine.counts().steps - steps_before) as usize,
            macs: ternary
                .iter()
                .chain(&of_groups)
                .flatten()
                .map(|kernel| counters.get(*kernel).macs)
                .sum(),
            bytes: Kernel::ALL
                .iter()
                .map(|&kernel| counters.get(kernel).bytes)
                .sum(),
            read,
        }
    }
}

/// Steps until `num_requests` requests have sampled a token each.
fn step_until_tokens(engine: &mut Engine, num_requests: usize, events: &mut Vec<Event>) {
    let (mut started, mut num_seen) = (Vec::new(), 0);
    while started.len() < num_requests {
        engine.step(events);
        for event in &events[num_seen..] {
            match event {
                Event::Token { id, .. } if !started.contains(id) => started.push(*id),
                _ => {}
            }
        }
        num_seen = events.len();
    }
}

/// The samples of one measurement on one machine.
struct Run {
    machine: usize,
    what: What,
    samples: Vec<Sample>,
}

impl Run {
    fn summary(&self, figure: impl Fn(&Sample) -> f64) -> Summary {
        let mut values: Vec<f64> = self.samples.iter().map(figure).collect();
        // There is at least one repetition.
        let median = median(&mut values).unwrap_or(f64::NAN);
        Summary {
            median,
            min: values[0],
            max: values[values.len() - 1],
        }
    }

    fn tokens_per_s(&self) -> Summary {
        self.summary(|sample| sample.tokens as f64 / sample.seconds)
    }

    fn step_ms(&self) -> f64 {
        self.summary(|sample| 1e3 * sample.seconds / sample.steps as f64)
            .median
    }

    fn step_bytes(&self) -> f64 {
        self.summary(|sample| sample.bytes as f64 / sample.steps as f64)
            .median
    }

    fn bytes_per_s(&self) -> f64 {
        self.summary(|sample| sample.bytes as f64 / sample.seconds)
            .median
    }

    /// The median ratio of the rate of reads to the rate measured just before.
    fn share_of_read(&self) -> f64 {
        self.summary(|sample| sample.bytes as f64 / sample.seconds / sample.read)
            .median
    }

    fn macs_per_s(&self) -> f64 {
        self.summary(|sample| sample.macs as f64 / sample.seconds)
            .median
    }

    fn json(&self, machine: &Machine) -> Value {
        let Summary { median, min, max } = self.tokens_per_s();
        let (what, context, batch, tokens) = match self.what {
            What::Prefill { tokens } => ("prefill", tokens, 1, tokens),
            What::Decode {
                context,
                batch,
                steps,
            } => ("decode", context, batch, steps * batch),
        };
        json!({
            "what": what,
            "threads": machine.num_threads(),
            "context": context,
            "batch": batch,
            "tokens": tokens,
            "tokens_per_second": { "median": median, "min": min, "max": max },
            "step_ms": self.step_ms(),
            "step_bytes": self.step_bytes(),
            "bytes_per_second": self.bytes_per_s(),
            "read_probe_bytes_per_second": self.summary(|sample| sample.read).median,
            "share_of_read_probe": self.share_of_read(),
            "macs_per_second": self.macs_per_s(),
            "share_of_peak": machine.peak.map(|peak| self.macs_per_s() / peak),
            "join_ns": machine.join.as_nanos() as u64,
        })
    }
}

/// Median, minimum and maximum.
struct Summary {
    median: f64,
    min: f64,
    max: f64,
}

/// The runs of one machine as a table.
fn table(machine: &Machine, runs: &[&Run]) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let n = machine.num_threads();
    write!(out, "\n{n} thread{}", if n == 1 { "" } else { "s" })?;
    let reads: Vec<Summary> = runs
        .iter()
        .map(|run| run.summary(|sample| sample.read / 1e9))
        .collect();
    let least = reads
        .iter()
        .map(|read| read.min)
        .fold(f64::INFINITY, f64::min);
    let most = reads.iter().map(|read| read.max).fold(0.0, f64::max);
    write!(out, ": memory read at {least:.1} to {most:.1} GB/s, ")?;
    if let Some(peak) = machine.peak {
        write!(out, "{:.0} G int8 products/s at most, ", peak / 1e9)?;
    }
    let joined = match machine.engine.device().is_cpu() {
        true => "fork and join",
        false => "an empty submission",
    };
    let join_us = machine.join.as_secs_f64() * 1e6;
    writeln!(out, "{joined} in {join_us:.2} µs")?;
    let one_row = runs
        .iter()
        .find(|run| matches!(run.what, What::Decode { batch: 1, .. }))
        .map(|run| run.step_ms());
    let mut last = "";
    for run in runs {
        let (title, line) = match run.what {
            What::Prefill { tokens } => {
                let peak = machine.peak.map_or_else(String::new, |peak| {
                    format!("{:7.0} %", 1e2 * run.macs_per_s() / peak)
                });
                let rate = run.macs_per_s() / 1e9;
                (
                    "prefill           tokens/s                  G products/s  of peak",
                    format!("{tokens:6} tokens  {}  {rate:12.0} {peak}", speed(run)),
                )
            }
            What::Decode {
                context, batch: 1, ..
            } => (
                "decode            tokens/s                  MB/token    GB/s  of read rate",
                format!("{context:6} before  {}  {}", speed(run), reads_line(run)),
            ),
            What::Decode { batch, .. } => {
                let times =
                    one_row.map_or_else(String::new, |one| format!("{:6.2}", run.step_ms() / one));
                (
                    "batch             tokens/s                   MB/step    GB/s  of read rate  ms/step  times one row",
                    format!(
                        "{batch:6} rows    {}  {} {:8.1}  {times}",
                        speed(run),
                        reads_line(run),
                        run.step_ms()
                    ),
                )
            }
        };
        if title != last {
            writeln!(out, "{title}")?;
            last = title;
        }
        writeln!(out, "{line}")?;
    }
    Ok(out)
}

fn speed(run: &Run) -> String {
    let Summary { median, min, max } = run.tokens_per_s();
    format!("{median:8.1} {:16}", format!("({min:.1}–{max:.1})"))
}

fn reads_line(run: &Run) -> String {
    format!(
        "{:8.1} {:7.1} {:10.0} %",
        run.step_bytes() / 1e6,
        run.bytes_per_s() / 1e9,
        1e2 * run.share_of_read()
    )
}
