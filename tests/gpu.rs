//! The program on a GPU: Mesa's software driver or any other adapter of this machine. Each test says
//! that it skips if there is none.

use std::path::Path;
use std::process::{Command, Output};

use bitnet_inference::{AdapterFacts, adapters};
use bitnet_receipts::{Receipt, digest, verify};
use serde_json::{Value, json};

/// The adapter of the tests: software, because every machine of CI can have it, or else any other.
fn adapter() -> Option<AdapterFacts> {
    let able = || adapters().into_iter().filter(|gpu| gpu.missing.is_none());
    let found = able().find(|gpu| gpu.is_software).or_else(|| able().next());
    if found.is_none() {
        eprintln!(
            "skipped: no adapter here that can run the kernels (Debian: mesa-vulkan-drivers)"
        );
    }
    found
}

fn bitnet(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bitnet"))
        .args(arguments)
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        // Mesa says on standard error if it is not set.
        .env("XDG_RUNTIME_DIR", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// The output of a command that must succeed, and what it says on standard error.
fn output(arguments: &[&str]) -> (String, String) {
    let result = bitnet(arguments);
    let errors = text(&result.stderr);
    assert!(result.status.success(), "{arguments:?}: {errors}");
    (text(&result.stdout), errors)
}

/// The exit code and the message of a command that must fail.
fn failure(arguments: &[&str]) -> (Option<i32>, String) {
    let result = bitnet(arguments);
    assert!(!result.status.success(), "{arguments:?} must fail");
    (result.status.code(), text(&result.stderr))
}

const STORY: [&str; 6] = ["run", "Once upon a time", "-n", "12", "--temp", "0"];

#[test]
fn devices_lists_the_cpu_and_each_adapter() {
    let (listed, _) = output(&["devices", "--json"]);
    let listed: Value = serde_json::from_str(&listed).expect("one JSON object");
    assert_eq!(
        (&listed["cpu"]["device"], &listed["gpu_support"]),
        (&json!("cpu"), &json!(true))
    );
    let names: Vec<&str> = listed["gpus"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|gpu| gpu["name"].as_str().expect("a name"))
        .collect();
    let found: Vec<String> = adapters().into_iter().map(|gpu| gpu.name).collect();
    assert_eq!(names, found);
    let (lines, _) = output(&["devices"]);
    assert!(
        found.iter().all(|name| lines.contains(name)) && lines.starts_with("cpu "),
        "{lines}"
    );
}

#[test]
fn a_named_gpu_tells_the_story_of_the_cpu() {
    let Some(gpu) = adapter() else { return };
    let (on_cpu, _) = output(&STORY);
    let (on_gpu, errors) = output(&[&STORY[..], &["--device", &gpu.name]].concat());
    assert_eq!(on_gpu, on_cpu, "{errors}");
    let part = gpu.name.split(' ').next().expect("a word").to_uppercase();
    assert_eq!(
        output(&[&STORY[..], &["--device", &part]].concat()).0,
        on_cpu
    );
}

#[test]
fn a_software_adapter_is_used_only_by_name() {
    if adapters().iter().any(|gpu| !gpu.is_software) {
        eprintln!("skipped: this machine has a GPU");
        return;
    }
    let (on_cpu, _) = output(&STORY);
    let (on_auto, note) = output(&[&STORY[..], &["--device", "auto"]].concat());
    assert_eq!(on_auto, on_cpu);
    assert_eq!(note.matches("the CPU runs the model").count(), 1, "{note}");
    let (code, message) = failure(&[&STORY[..], &["--device", "gpu"]].concat());
    assert_eq!(code, Some(1));
    assert!(
        message.contains("no GPU with Vulkan, Metal or DirectX 12"),
        "{message}"
    );
    let (code, message) = failure(&[&STORY[..], &["--device", "no such GPU"]].concat());
    assert_eq!(code, Some(1));
    assert!(
        message.contains("no GPU whose name contains \"no such GPU\""),
        "{message}"
    );
}

#[test]
fn options_that_a_gpu_does_not_have_are_refused_by_name() {
    let Some(gpu) = adapter() else { return };
    for (option, value, word) in [
        ("--head", "screened", "a screened head"),
        ("--ffn-sparsity", "on", "ffn sparsity"),
        ("--packing", "2", "the packing 2"),
    ] {
        let device = ["--device", &gpu.name, option, value];
        let (code, message) = failure(&[&STORY[..], &device].concat());
        assert_eq!(code, Some(1), "{option}");
        assert!(
            message.contains(word) && message.contains(&gpu.name),
            "{option}: {message}"
        );
    }
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_the_numbers_of_all_its_parts() {
    let Some(gpu) = adapter() else { return };
    let on_gpu = ["--device", &gpu.name, "--device-memory"];
    let (code, message) = failure(&[&STORY[..], &on_gpu, &["1"]].concat());
    assert_eq!(code, Some(1));
    let words = [
        &gpu.name,
        "the model needs ",
        "(weights ",
        ", tables ",
        ", key/value cache ",
        ", workspace ",
        "but 1048576 of the limit of 1048576 are available",
    ];
    for word in words {
        assert!(message.contains(word), "{word}: {message}");
    }
    // The weights fit, and a cache of a long context does not: it is counted before they are loaded.
    let long = ["12", "--ctx-size", "1000000", "--kv-type", "f32"];
    let (code, message) = failure(&[&STORY[..], &on_gpu, &long].concat());
    assert_eq!(code, Some(1));
    assert!(message.contains("key/value cache "), "{message}");
    output(&[&STORY[..], &on_gpu, &["200"]].concat());
}

/// A receipt with other contents and the digest that fits them.
fn doctored(receipt: &Value, edit: impl Fn(&mut Value)) -> String {
    let mut receipt = receipt.clone();
    edit(&mut receipt);
    receipt["digest"] = Value::Null;
    receipt["digest"] = json!(digest(&receipt));
    receipt.to_string()
}

fn receipt_of(folder: &Path, arguments: &[&str]) -> (Receipt, Value) {
    let path = folder.join("receipt.json");
    let file = path.to_str().expect("UTF-8");
    output(&[&STORY[..], arguments, &["--receipt", file]].concat());
    let text = std::fs::read_to_string(&path).expect("a receipt");
    let value = serde_json::from_str(&text).expect("JSON");
    (verify(&text).expect("it verifies"), value)
}

/// A change of a receipt.
type Edit = fn(&mut Value);

#[test]
fn receipts_name_the_device_and_no_backend_passes_for_another() {
    let Some(gpu) = adapter() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (on_cpu, cpu) = receipt_of(folder.path(), &[]);
    let (on_gpu, of_gpu) = receipt_of(folder.path(), &["--device", &gpu.name]);
    assert_eq!((on_cpu.backend.as_str(), &on_cpu.device), ("cpu", &None));
    assert_eq!(
        (on_gpu.backend.as_str(), on_gpu.kernel_set.as_str()),
        ("gpu", "wgsl")
    );
    let device = on_gpu.device.as_ref().expect("the device");
    assert_eq!((&device.adapter, &device.driver), (&gpu.name, &gpu.driver));
    assert!(on_gpu.kernels.iter().any(|kernel| kernel == "gpu_i2s_gemv"));
    assert_eq!(on_gpu.output_tokens_sha256, on_cpu.output_tokens_sha256);

    let edits: [(&Value, &str, Edit); 4] = [
        (&cpu, "kernel_set", |r| r["backend"] = json!("gpu")),
        (&cpu, "none of its kernels", |r| {
            r["backend"] = json!("gpu");
            r["kernel_set"] = json!("wgsl");
            r["device"] = json!({ "adapter": "X", "driver": "Y", "interface": "vulkan" });
        }),
        (&of_gpu, "kernel_set", |r| r["backend"] = json!("cpu")),
        (&of_gpu, "no device is named", |r| {
            r.as_object_mut().expect("an object").remove("device");
        }),
    ];
    for (receipt, word, edit) in edits {
        let refusal = verify(&doctored(receipt, edit)).expect_err("a forgery");
        assert!(refusal.problem.contains(word), "{refusal}, expected {word}");
    }
    let unchanged = doctored(&cpu, |_| {});
    verify(&unchanged).expect("the digest of the tests is right");
}

#[test]
fn embeddings_are_the_cpus() {
    let Some(gpu) = adapter() else { return };
    let embed = |device: &str| {
        let texts = ["Once upon a time", "there was a dog"];
        let options = ["--pooling", "mean", "--json", "--device", device];
        let (report, _) = output(&[&["embed"][..], &texts, &options].concat());
        let report: Value = serde_json::from_str(&report).expect("one JSON object");
        let vector = |object: &Value| -> Vec<f64> {
            let numbers = object["embedding"].as_array().expect("a vector").iter();
            numbers.map(|n| n.as_f64().expect("a number")).collect()
        };
        let data = report["data"].as_array().expect("vectors").iter();
        data.map(vector).collect::<Vec<_>>()
    };
    let (on_gpu, on_cpu) = (embed(&gpu.name), embed("cpu"));
    assert_eq!((on_gpu.len(), on_cpu.len()), (2, 2));
    for (a, b) in on_gpu.iter().flatten().zip(on_cpu.iter().flatten()) {
        assert!((a - b).abs() < 1e-5, "{a} and {b}");
    }
}

#[test]
fn bench_and_perplexity_take_the_device() {
    let Some(gpu) = adapter() else { return };
    let bench = [
        "bench", "-p", "8", "-n", "2", "-r", "1", "--json", "--device", &gpu.name,
    ];
    let (report, _) = output(&bench);
    let report: Value = serde_json::from_str(&report).expect("one JSON object");
    assert_eq!(report["device"]["backend"], "gpu");
    assert_eq!(report["device"]["adapter"], json!(gpu.name));
    for run in report["runs"].as_array().expect("runs") {
        assert!(
            run["share_of_read_probe"]
                .as_f64()
                .is_some_and(|share| share > 0.0),
            "{run}"
        );
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("text");
    std::fs::write(
        &file,
        "Once upon a time there was a little girl. ".repeat(6),
    )
    .expect("written");
    let measure = |device: &str| {
        let file = file.to_str().expect("UTF-8");
        let (report, _) = output(&[
            "perplexity",
            "-f",
            file,
            "--ctx",
            "32",
            "--json",
            "--device",
            device,
        ]);
        let report: Value = serde_json::from_str(&report).expect("one JSON object");
        report["perplexity"].as_f64().expect("a number")
    };
    let (on_gpu, on_cpu) = (measure(&gpu.name), measure("cpu"));
    assert!(
        (on_gpu / on_cpu - 1.0).abs() < 1e-4,
        "{on_gpu} and {on_cpu}"
    );
}
