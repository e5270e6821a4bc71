//! A lost device ends requests with an error, and no caller waits for ever.

use bitnet_inference::{EngineOptions, Error, Failure, OpenModel, Piece, Request};
use bitnet_tokenizers::TokenId;

use crate::{device, golden, open};

/// A golden model on the device of the tests.
fn model() -> Option<OpenModel> {
    Some(open(&golden("strict-b158/model-i2_s.gguf"), device()?))
}

fn options(running_max: usize) -> EngineOptions {
    EngineOptions {
        context: 1024,
        cache: 2048,
        running_max,
        ..EngineOptions::default()
    }
}

fn request(max_tokens: usize) -> Request {
    Request {
        prompt: [1, 2, 3].map(TokenId).to_vec(),
        max_tokens: Some(max_tokens),
        ..Request::default()
    }
}

#[test]
fn requests_fail_in_the_engine_and_in_the_queue_and_later_ones_say_why() {
    let Some(model) = model() else { return };
    let driver = model.start(options(1)).expect("an engine");
    let mut running = driver.stream(request(1000)).expect("a thread");
    let waiting = driver.stream(request(4)).expect("a thread");
    let first = running.find(|piece| matches!(piece, Ok(Piece::Token(_))));
    assert!(first.is_some(), "no token before the loss");
    model.model.lose_device();
    for stream in [running, waiting] {
        let failure = stream.wait().expect_err("the device is lost");
        assert!(
            matches!(&failure, Failure::Device(problem) if problem.contains("the device was lost")),
            "{failure:?}"
        );
    }
    // The thread ends, because it has no other weights.
    let error = loop {
        match driver.stream(request(4)) {
            Ok(stream) => drop(stream.wait().expect_err("the device is lost")),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(&error, Error::DeviceFailed(problem) if problem.contains("the device was lost")),
        "{error:?}"
    );
    let error = driver.call(|_| ()).expect_err("the thread has ended");
    assert!(matches!(error, Error::DeviceFailed(_)), "{error:?}");
    let stats = driver.monitor().stats();
    assert_eq!((stats.device_failures, stats.panics), (1, 0));
}

#[test]
fn an_engine_on_the_thread_of_its_caller_fails_before_and_after_its_first_request() {
    let Some(model) = model() else { return };
    let mut used = model.engine(options(1)).expect("an engine");
    let mut unused = model.engine(options(1)).expect("an engine");
    used.complete(request(4)).expect("an answer");
    model.model.lose_device();
    for engine in [&mut used, &mut unused] {
        let error = engine.complete(request(4)).expect_err("no device");
        assert!(matches!(error, Error::DeviceFailed(_)), "{error:?}");
    }
    let error = model.engine(options(1)).err().expect("no device");
    assert!(matches!(error, Error::DeviceFailed(_)), "{error:?}");
}

#[test]
fn likelihoods_fail_with_the_reason() {
    let Some(model) = model() else { return };
    let mut engine = model.engine(options(1)).expect("an engine");
    model.model.lose_device();
    let error = engine.likelihood(&[1, 2, 3].map(TokenId), 1024);
    let error = error.expect_err("no device");
    assert!(matches!(error, Error::DeviceFailed(_)), "{error:?}");
}

#[test]
fn a_model_that_is_opened_again_gives_the_same_tokens() {
    let Some(lost) = model() else { return };
    let tokens = |model: &OpenModel| {
        let mut engine = model.engine(options(1)).expect("an engine");
        engine.complete(request(16)).expect("an answer").0
    };
    let before = tokens(&lost);
    lost.model.lose_device();
    let opened = model().expect("the adapter works");
    assert_eq!(tokens(&opened), before);
}
