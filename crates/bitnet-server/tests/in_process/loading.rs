//! While the model loads, the server is alive and reports that it is not ready.

use std::sync::mpsc;
use std::thread;

use bitnet_inference::Device;
use bitnet_server::{Error, ServerEvent, serve};

use crate::{ask, open_model, options, served, spec};

#[test]
fn a_server_that_loads_is_alive_but_not_ready() {
    let (go, wait) = mpsc::channel::<()>();
    let (events, told) = mpsc::channel();
    thread::spawn(move || {
        let load = move || {
            // Wait until the test has seen enough, or has failed.
            let _ = wait.recv();
            Ok(served(&open_model(Device::cpu(1)), 64))
        };
        let tell = move |event| {
            // The test may be over.
            let _ = events.send(event);
        };
        serve(options(), vec![spec("golden", load)], tell)
    });
    let Ok(ServerEvent::Listening(address)) = told.recv() else {
        panic!("the server does not listen")
    };
    let tokens = r#"{"prompt": [1, 2, 3], "max_tokens": 2}"#;
    assert_eq!(ask(address, "GET", "/livez", "").0, 200);
    for path in ["/readyz", "/startupz", "/health"] {
        let (status, text) = ask(address, "GET", path, "");
        assert!(
            status == 503 && text.contains(r#"{"status":"loading"}"#),
            "{path}: {text}"
        );
    }
    for (method, path, body) in [
        ("POST", "/v1/completions", tokens),
        ("GET", "/v1/models", ""),
    ] {
        let (status, text) = ask(address, method, path, body);
        assert!(
            status == 503 && text.contains(r#""code":"loading""#),
            "{path}: {text}"
        );
        assert!(text.contains("retry-after: 5\r\n"), "{path}: {text}");
    }
    go.send(()).expect("the loader waits");
    assert_eq!(told.recv(), Ok(ServerEvent::Ready));
    for path in ["/readyz", "/startupz", "/health", "/v1/models"] {
        assert_eq!(ask(address, "GET", path, "").0, 200, "{path}");
    }
    // Without a tokenizer, prompts and answers are token ids.
    let (status, text) = ask(address, "POST", "/v1/completions", tokens);
    assert!(
        status == 200 && text.contains(r#""completion_tokens":2"#),
        "{text}"
    );
    let (status, text) = ask(
        address,
        "POST",
        "/v1/chat/completions",
        r#"{"messages": [{"role": "user", "content": ""}]}"#,
    );
    assert!(
        status == 400 && text.contains("this model has no tokenizer"),
        "{text}"
    );
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_server() {
    let missing = spec("golden", || Err("it is not there".into()));
    let error = serve(options(), vec![missing], |_| {}).expect_err("there is no model");
    assert!(
        matches!(&error, Error::Load(_)) && error.to_string() == "it is not there",
        "{error}"
    );
}
