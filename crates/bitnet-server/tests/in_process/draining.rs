//! A server that gets a signal to stop while a model is being loaded does not wait for the model.
#![cfg(unix)]

use std::process::Command;
use std::sync::mpsc;
use std::thread;

use bitnet_inference::Device;
use bitnet_server::{Ended, ServerEvent, serve};

use crate::{ask, open_model, options, served, spec};

/// Set in the process that gets the signal.
const IS_CHILD: &str = "BITNET_TEST_DRAINS";

/// Runs in a process of its own, because the signal reaches every server of a process.
#[test]
fn requests_that_wait_for_a_model_are_refused_when_the_server_drains() {
    if std::env::var_os(IS_CHILD).is_some() {
        return drain_while_a_model_is_loaded();
    }
    let mut child = Command::new(std::env::current_exe().expect("a path"));
    child.args(["--exact", "--nocapture"]);
    child.arg("draining::requests_that_wait_for_a_model_are_refused_when_the_server_drains");
    let output = child.env(IS_CHILD, "1").output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
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
    let own_id = std::process::id().to_string();
    let signalled = Command::new("kill").args(["-TERM", &own_id]).status();
    assert!(signalled.is_ok_and(|status| status.success()));
    let (status, text) = waits.join().expect("an answer");
    assert!(
        status == 503 && text.contains(r#""code":"draining""#),
        "{text}"
    );
    assert_eq!(told.recv(), Ok(ServerEvent::Draining));
    let ended = server.join().expect("no panic");
    assert!(matches!(ended, Ok(Ended::Drained)), "{ended:?}");
}
