//! A server that gets a signal to stop while a model is being loaded does not wait for the model.
#![cfg(unix)]

use std::process::Command;
use std::sync::mpsc;
use std::thread;

use bitnet_inference::Device;
use bitnet_server::{Ended, ServerEvent, serve};

use crate::{ask, open_model, options, served, spec};

/// Set in the processes that get the signal.
const IS_CHILD: &str = "BITNET_TEST_DRAINS";

/// Runs `test` in a process of its own, because the signal reaches every server of a process.
/// `name` is the name of the calling test.
fn alone(name: &str, test: fn()) {
    if std::env::var_os(IS_CHILD).is_some() {
        return test();
    }
    let mut child = Command::new(std::env::current_exe().expect("a path"));
    child.args(["--exact", "--nocapture", name]);
    let output = child.env(IS_CHILD, "1").output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}

fn signal_to_stop() {
    let own_id = std::process::id().to_string();
    let signalled = Command::new("kill").args(["-TERM", &own_id]).status();
    assert!(signalled.is_ok_and(|status| status.success()));
}

#[test]
fn requests_that_wait_for_a_model_are_refused_when_the_server_drains() {
    alone(
        "draining::requests_that_wait_for_a_model_are_refused_when_the_server_drains",
        drain_while_a_model_is_loaded,
    );
}

#[test]
fn a_server_that_drains_before_its_only_model_is_loaded_ends_and_never_becomes_ready() {
    alone(
        "draining::a_server_that_drains_before_its_only_model_is_loaded_ends_and_never_becomes_ready",
        drain_before_the_only_model_is_loaded,
    );
}

fn drain_before_the_only_model_is_loaded() {
    let (_never, wait) = mpsc::channel::<()>();
    let (events, told) = mpsc::channel();
    let slow = spec("slow", move || {
        // Until the test is over.
        let _ = wait.recv();
        Err("the test is over".into())
    });
    let tell = move |event| {
        if matches!(event, ServerEvent::Listening(_)) {
            signal_to_stop();
        }
        // The test may be over.
        let _ = events.send(event);
    };
    let ended = serve(options(), vec![slow], tell);
    assert!(matches!(ended, Ok(Ended::Drained)), "{ended:?}");
    let events: Vec<_> = told.try_iter().skip(1).collect();
    assert_eq!(events, [ServerEvent::Draining]);
}

fn drain_while_a_model_is_loaded() {
    let (_never, wait) = mpsc::channel::<()>();
    let (events, told) = mpsc::channel();
    let server = thread::spawn(move || {
        let slow = spec("slow", move || {
            // Until the test is over.
            let _ = wait.recv();
            Err("the test is over".into())
        });
        let fast = spec("fast", || Ok(served(&open_model(Device::cpu(1)), 64)));
        let tell = move |event| {
            // The test may be over.
            let _ = events.send(event);
        };
        serve(options(), vec![fast, slow], tell)
    });
    let Ok(ServerEvent::Listening(address)) = told.recv() else {
        panic!("the server does not listen")
    };
    assert_eq!(told.recv(), Ok(ServerEvent::Ready));
    let complete = move |model: &str| {
        let body = format!(r#"{{"model": "{model}", "prompt": [1, 2], "max_tokens": 2}}"#);
        ask(address, "POST", "/v1/completions", &body)
    };
    assert_eq!(complete("fast").0, 200);
    let waits = thread::spawn(move || complete("slow"));
    let is_loading = || {
        let (_, text) = ask(address, "GET", "/v1/models/slow", "");
        text.contains(r#""value":"loading""#)
    };
    while !is_loading() {
        thread::yield_now();
    }
    signal_to_stop();
    let (status, text) = waits.join().expect("an answer");
    assert!(
        status == 503 && text.contains(r#""code":"draining""#),
        "{text}"
    );
    assert_eq!(told.recv(), Ok(ServerEvent::Draining));
    let ended = server.join().expect("no panic");
    assert!(matches!(ended, Ok(Ended::Drained)), "{ended:?}");
}
