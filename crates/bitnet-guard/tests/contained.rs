//! A program that starts itself again as its own helper. It checks that a job that breaks a limit
//! ends only its own helper. The jobs cause the faults on purpose.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use bitnet_guard::{Breach, Cancel, Contained, HelperLimits, HelperProgram, answer_jobs};

const LIMITS: HelperLimits = HelperLimits {
    stack_bytes: 1 << 20,
    memory_bytes: 64 << 20,
    time: Duration::from_secs(30),
};

/// The tests with their names.
const TESTS: &[(&str, fn())] = &[
    ("a_job_is_answered", a_job_is_answered),
    (
        "a_stack_that_overflows_ends_its_job_alone",
        a_stack_that_overflows_ends_its_job_alone,
    ),
    #[cfg(target_os = "linux")]
    (
        "memory_without_end_ends_its_job_alone",
        memory_without_end_ends_its_job_alone,
    ),
    (
        "a_job_that_takes_too_long_is_ended",
        a_job_that_takes_too_long_is_ended,
    ),
    ("a_panic_ends_its_job_alone", a_panic_ends_its_job_alone),
    ("a_cancelled_job_ends_at_once", a_cancelled_job_ends_at_once),
    #[cfg(unix)]
    (
        "a_helper_that_a_signal_ended_is_replaced",
        a_helper_that_a_signal_ended_is_replaced,
    ),
    (
        "a_helper_that_cannot_prepare_says_why",
        a_helper_that_cannot_prepare_says_why,
    ),
    (
        "a_program_that_is_not_there_is_an_error",
        a_program_that_is_not_there_is_an_error,
    ),
    ("many_jobs_are_answered", many_jobs_are_answered),
    (
        "a_helper_is_replaced_after_256_jobs",
        a_helper_is_replaced_after_256_jobs,
    ),
    #[cfg(target_os = "linux")]
    (
        "at_most_two_helpers_wait_for_jobs",
        at_most_two_helpers_wait_for_jobs,
    ),
    #[cfg(target_os = "linux")]
    (
        "a_helper_sees_neither_environment_nor_terminal",
        a_helper_sees_neither_environment_nor_terminal,
    ),
    #[cfg(target_os = "linux")]
    (
        "a_helper_ends_with_its_parent",
        a_helper_ends_with_its_parent,
    ),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("helper") => answer_jobs(LIMITS, prepare),
        #[cfg(target_os = "linux")]
        Some("parent") => parent(),
        Some("--list") => {
            TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let wanted = |name: &str| {
        let filters: Vec<_> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    for (name, test) in TESTS.iter().filter(|(name, _)| wanted(name)) {
        test();
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}

fn prepare(first: &[u8]) -> Result<impl FnMut(&[u8]) -> Vec<u8> + use<>, String> {
    match first {
        b"refuse" => Err("no such model".to_owned()),
        first => {
            let first = first.to_vec();
            Ok(move |job: &[u8]| answer(&first, job))
        }
    }
}

fn answer(first: &[u8], job: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(job).expect("a text");
    match text.split_once(' ') {
        Some(("echo", text)) => [first, text.as_bytes()].concat(),
        Some(("recurse", depth)) => recurse(depth.parse().expect("a depth")).to_string().into(),
        Some(("allocate", mib)) => {
            let bytes = mib.parse::<usize>().expect("a size") << 20;
            std::hint::black_box(vec![1u8; bytes])
                .len()
                .to_string()
                .into()
        }
        Some(("sleep", ms)) => {
            std::thread::sleep(Duration::from_millis(ms.parse().expect("a time")));
            b"awake".to_vec()
        }
        Some(("process", ms)) => {
            std::thread::sleep(Duration::from_millis(ms.parse().unwrap_or(0)));
            std::process::id().to_string().into()
        }
        #[cfg(target_os = "linux")]
        Some(("surroundings", _)) => surroundings().into(),
        _ => panic!("{text}"),
    }
}

/// What a helper has from its parent: the number of variables, its standard error, whether it leads
/// a process group of its own, and the maximum size of a core dump.
#[cfg(target_os = "linux")]
fn surroundings() -> String {
    use rustix::process::{Resource, getpgrp, getpid, getrlimit};
    format!(
        "{} {} {} {:?}",
        std::env::vars_os().count(),
        std::fs::read_link("/proc/self/fd/2")
            .expect("a link")
            .display(),
        getpgrp() == getpid(),
        getrlimit(Resource::Core).current,
    )
}

/// Takes a kilobyte of stack for each level of recursion.
fn recurse(depth: usize) -> usize {
    let frame = std::hint::black_box([depth; 128]);
    match depth {
        0 => 0,
        depth => recurse(depth - 1) + frame[depth % 128] / depth,
    }
}

fn contained(limits: HelperLimits, first: &str) -> Contained {
    let program = HelperProgram {
        path: std::env::current_exe().expect("a path"),
        arguments: vec!["helper".to_owned()],
    };
    Contained::new(program, limits, first.into())
}

fn run(contained: &Contained, job: &str) -> Result<String, Breach> {
    let answer = contained.run(job.as_bytes(), &Cancel::default())?;
    Ok(String::from_utf8(answer).expect("UTF-8"))
}

/// Checks that a pool still answers.
#[track_caller]
fn still_answers(contained: &Contained) {
    assert_eq!(run(contained, "echo x").expect("an answer"), "hello x");
}

fn a_job_is_answered() {
    let contained = contained(LIMITS, "hello ");
    let id = run(&contained, "process x").expect("an answer");
    assert_ne!(id, std::process::id().to_string(), "another process");
    assert_eq!(
        run(&contained, "process x").expect("an answer"),
        id,
        "the same again"
    );
    still_answers(&contained);
}

fn a_stack_that_overflows_ends_its_job_alone() {
    let contained = contained(LIMITS, "hello ");
    assert_eq!(run(&contained, "recurse 500").expect("it fits"), "500");
    let breach = run(&contained, "recurse 5000").expect_err("5 MB of stack");
    assert!(matches!(breach, Breach::Memory(_)), "{breach}");
    assert!(breach.to_string().contains("1024 KiB of stack"), "{breach}");
    still_answers(&contained);
}

#[cfg(target_os = "linux")]
fn memory_without_end_ends_its_job_alone() {
    let contained = contained(LIMITS, "hello ");
    assert!(run(&contained, "allocate 16").is_ok());
    let breach = run(&contained, "allocate 1024").expect_err("a gigabyte");
    assert!(matches!(breach, Breach::Memory(_)), "{breach}");
    still_answers(&contained);
}

fn a_job_that_takes_too_long_is_ended() {
    let time = Duration::from_millis(200);
    let contained = contained(HelperLimits { time, ..LIMITS }, "hello ");
    let breach = run(&contained, "sleep 600000").expect_err("ten minutes");
    assert!(matches!(breach, Breach::Time(_)), "{breach}");
    assert_eq!(breach.to_string(), "it takes longer than 0.2 s");
}

fn a_panic_ends_its_job_alone() {
    let contained = contained(LIMITS, "hello ");
    let breach = run(&contained, "nonsense").expect_err("a panic");
    assert!(matches!(breach, Breach::Panic), "{breach}");
    still_answers(&contained);
}

fn a_cancelled_job_ends_at_once() {
    let time = Duration::from_secs(3600);
    let contained = contained(HelperLimits { time, ..LIMITS }, "hello ");
    let cancel = Cancel::default();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let job = scope.spawn(|| contained.run(b"sleep 400000", &cancel));
        std::thread::sleep(Duration::from_millis(300));
        cancel.cancel();
        let breach = job.join().expect("no panic").expect_err("cancelled");
        assert!(matches!(breach, Breach::Cancelled), "{breach}");
    });
    // The job would take 400 s.
    assert!(start.elapsed() < Duration::from_secs(300), "not to its end");
    let breach = contained
        .run(b"echo x", &cancel)
        .expect_err("cancelled before");
    assert!(matches!(breach, Breach::Cancelled), "{breach}");
    still_answers(&contained);
}

#[cfg(unix)]
fn a_helper_that_a_signal_ended_is_replaced() {
    let contained = contained(LIMITS, "hello ");
    let id = run(&contained, "process x").expect("an answer");
    let kill = |id: &str| {
        let mut command = std::process::Command::new("kill");
        assert!(
            command
                .args(["-s", "TERM", id])
                .status()
                .expect("kill runs")
                .success()
        );
    };
    kill(&id);
    still_answers(&contained);
    // End the helper while it runs a job.
    std::thread::scope(|scope| {
        let id = run(&contained, "process x").expect("an answer");
        let job = scope.spawn(|| run(&contained, "sleep 1000"));
        std::thread::sleep(Duration::from_millis(200));
        kill(&id);
        assert_eq!(job.join().expect("no panic").expect("an answer"), "awake");
    });
}

fn a_helper_that_cannot_prepare_says_why() {
    let breach = run(&contained(LIMITS, "refuse"), "echo x").expect_err("a refusal");
    assert!(matches!(breach, Breach::Start(_)) && breach.to_string().contains("no such model"));
}

fn a_program_that_is_not_there_is_an_error() {
    let program = HelperProgram {
        path: "no/such/program".into(),
        arguments: Vec::new(),
    };
    let breach = run(&Contained::new(program, LIMITS, Vec::new()), "x").expect_err("nothing");
    assert!(matches!(breach, Breach::Start(_)), "{breach}");
}

fn many_jobs_are_answered() {
    let contained = contained(LIMITS, "hello ");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..200).for_each(|_| still_answers(&contained)));
        }
    });
}

fn a_helper_is_replaced_after_256_jobs() {
    let contained = contained(LIMITS, "hello ");
    let id = run(&contained, "process 0").expect("an answer");
    (1..256).for_each(|_| still_answers(&contained));
    assert_ne!(run(&contained, "process 0").expect("an answer"), id);
}

#[cfg(target_os = "linux")]
fn at_most_two_helpers_wait_for_jobs() {
    let contained = contained(LIMITS, "hello ");
    let ids: Vec<String> = std::thread::scope(|scope| {
        let jobs = [0; 5].map(|_| scope.spawn(|| run(&contained, "process 2000")));
        let ids = jobs.map(|job| job.join().expect("no panic").expect("an answer"));
        ids.to_vec()
    });
    let num_running = ids.iter().filter(|id| is_running(id)).count();
    assert!((1..=2).contains(&num_running), "{num_running} of {ids:?}");
}

#[cfg(target_os = "linux")]
fn a_helper_sees_neither_environment_nor_terminal() {
    let contained = contained(LIMITS, "hello ");
    let surroundings = run(&contained, "surroundings x").expect("an answer");
    assert_eq!(surroundings, "0 /dev/null true Some(0)");
}

/// Prints the id of a helper and gives it a long job.
#[cfg(target_os = "linux")]
fn parent() -> ! {
    let time = Duration::from_secs(3600);
    let contained = contained(HelperLimits { time, ..LIMITS }, "hello ");
    println!("{}", run(&contained, "process 0").expect("an answer"));
    let breach = run(&contained, "sleep 3000000");
    panic!("it was killed before: {breach:?}");
}

#[cfg(target_os = "linux")]
fn a_helper_ends_with_its_parent() {
    use std::io::{BufRead, BufReader};
    let mut command = std::process::Command::new(std::env::current_exe().expect("a path"));
    let mut parent = command
        .arg("parent")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut id = String::new();
    BufReader::new(parent.stdout.take().expect("a pipe"))
        .read_line(&mut id)
        .expect("a line");
    assert!(is_running(id.trim()), "{id}");
    parent.kill().expect("it runs");
    parent.wait().expect("a child");
    let start = Instant::now();
    while is_running(id.trim()) {
        // The job would take 50 minutes.
        assert!(start.elapsed() < Duration::from_secs(120), "it still runs");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process exists and has not ended.
#[cfg(target_os = "linux")]
fn is_running(id: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    state.is_some_and(|state| !state.trim().starts_with(['Z', 'X']))
}
