//! `xtask bench compare` and `bench save` as programs: their output for Criterion's files and the
//! record, and their exit codes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

/// Writes a benchmark's folder as Criterion does.
fn write(criterion: &Path, baseline: &str, id: &str, median_ns: f64, share: Option<f64>) {
    let folder = criterion.join(id).join(baseline);
    fs::create_dir_all(&folder).unwrap();
    let interval = json!({"confidence_level": 0.95, "lower_bound": 0.99 * median_ns, "upper_bound": 1.01 * median_ns});
    let estimate = json!({"point_estimate": median_ns, "standard_error": 0.1, "confidence_interval": interval});
    let estimates = json!({"mean": estimate, "median": estimate, "slope": null});
    fs::write(folder.join("estimates.json"), estimates.to_string()).unwrap();
    fs::write(
        folder.join("benchmark.json"),
        json!({"full_id": id, "title": id}).to_string(),
    )
    .unwrap();
    if let Some(share) = share {
        fs::write(
            folder.join("read_probe.json"),
            json!({"share": share}).to_string(),
        )
        .unwrap();
    }
}

fn xtask(criterion: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command
        .env("CRITERION_HOME", criterion)
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn the_exit_code_shows_the_worst_band() {
    let folder = tempfile::tempdir().unwrap();
    for (baseline, factor, share) in [
        ("test-a", 1.0, 0.9),
        ("test-watch", 1.08, 0.9),
        ("test-slow", 1.15, 0.9),
        ("test-slower", 1.3, 0.5),
    ] {
        write(
            folder.path(),
            baseline,
            "quantization_sizes/I2S/1024",
            230.0 * factor,
            None,
        );
        write(
            folder.path(),
            baseline,
            "ternary gemv/memory",
            1e6,
            Some(share),
        );
        // A folder of Criterion's own, which is not a baseline.
        write(
            folder.path(),
            "new",
            "quantization_sizes/I2S/1024",
            1.0,
            None,
        );
    }
    let code = |arguments: &[&str]| {
        let output = xtask(folder.path(), &[&["bench", "compare"], arguments].concat());
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stdout).unwrap()
                + std::str::from_utf8(&output.stderr).unwrap(),
        )
    };
    let (exit, text) = code(&["test-a", "test-a"]);
    assert_eq!(exit, 0, "{text}");
    assert!(
        text.contains("2 benchmarks, 2 ok, 0 to watch, 0 to investigate, 0 to escalate"),
        "{text}"
    );
    assert_eq!(code(&["test-a", "test-watch"]).0, 0);
    assert_eq!(code(&["test-a", "test-slow"]).0, 10);
    assert_eq!(code(&["test-a", "test-slower"]).0, 20);
    assert_eq!(
        code(&["test-slower", "test-a"]).0,
        0,
        "faster is no regression"
    );
    assert_eq!(
        code(&["test-a", "test-slow", "--again", "test-watch"]).0,
        10
    );
    assert_eq!(
        code(&["test-a", "test-slow", "--again", "test-slower"]).0,
        0,
        "the noise is wider than the change"
    );

    let (exit, text) = code(&["test-a", "test-slower", "--format", "json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((exit, &report["worst"]), (20, &json!("escalate")));
    assert_eq!(report["benchmarks"][1]["unit"], "share of read");
    assert_eq!(report["benchmarks"][1]["new"], 0.5);
    let (_, text) = code(&["test-a", "test-slow", "--format", "markdown"]);
    assert!(
        text.contains(
            "| quantization_sizes/I2S/1024 | 230.0 ns | 264.5 ns | 15.0 % worse (noise 0.0 %) |"
        ),
        "{text}"
    );

    for wrong in [
        &["test-a"] as &[_],
        &["test-a", "test-none"],
        &["../x", "test-a"],
        &["test-a", "test-a", "--format", "x"],
    ] {
        let (exit, text) = code(wrong);
        assert_eq!(exit, 2, "{wrong:?}: {text}");
    }
    for wrong in ["test-none", "../test-a"] {
        let saved = xtask(folder.path(), &["bench", "save", wrong]);
        assert_eq!(saved.status.code(), Some(2), "{saved:?}");
    }
}

#[test]
fn a_saved_baseline_is_compared_without_criterions_files() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let record = folder.path().join("record");
    let record = ["--record", record.to_str().unwrap()];
    write(&first, "test-a", "sizes/1, 2", 100.0, None);
    write(&first, "test-a", "memory", 1e6, Some(0.9));
    let save = |arguments: &[&str]| {
        let head = ["bench", "save", "test-a", "--machine", "zen4"];
        let output = xtask(&first, &[&head, &record[..], arguments].concat());
        output.status.code()
    };
    assert_eq!(save(&[]), Some(0));
    assert_eq!(save(&[]), Some(2), "recorded already");
    assert_eq!(save(&["--force"]), Some(0));
    write(&second, "test-b", "sizes/1, 2", 115.0, None);
    write(&second, "test-b", "memory", 1e6, Some(0.9));
    let compare = ["bench", "compare", "test-a", "test-b"];
    let output = xtask(&second, &[&compare, &record[..]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(10), "{text}");
    assert!(
        text.contains("15.0 % worse") && text.contains("2 benchmarks, 1 ok"),
        "{text}"
    );
}

#[test]
fn the_recorded_baseline_of_zen4_is_compared_by_its_old_command() {
    let folder = tempfile::tempdir().unwrap();
    let output = xtask(folder.path(), &["bench-compare", "zen4", "zen4"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("38 benchmarks, 38 ok"), "{text}");
}
