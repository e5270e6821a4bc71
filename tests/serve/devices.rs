//! `bitnet serve` on a GPU: Mesa's software driver or any other adapter of this machine.

use bitnet_inference::adapters;
use serde_json::json;

use crate::client::{Server, completion};

#[test]
fn a_server_on_a_gpu_answers_as_on_the_cpu() {
    let able = |software| {
        let mut found = adapters().into_iter();
        found.find(|gpu| gpu.missing.is_none() && gpu.is_software == software)
    };
    let Some(gpu) = able(true).or_else(|| able(false)) else {
        eprintln!("skipped: no adapter here that can run the kernels");
        return;
    };
    let body = completion(
        "Once upon a time",
        json!({ "max_tokens": 8, "temperature": 0 }),
    );
    let text = |arguments: &[&str]| {
        let server = Server::start(arguments);
        server.answer("/v1/completions", &body)["choices"][0]["text"].clone()
    };
    // The cache has its default size, which a binding of the adapter may not hold.
    assert_eq!(text(&["--device", &gpu.name]), text(&[]));
}
