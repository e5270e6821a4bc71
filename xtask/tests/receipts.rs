//! Which receipts `receipt verify` accepts: edits of every field, with the old digest and with a
//! new one.
#![cfg(feature = "inference")]

use std::sync::LazyLock;

use bitnet_inference::{Device, Engine, EngineOptions, Loaded, Request, SamplingParams, load};
use bitnet_kernels::{Kernel, Packing};
use bitnet_models::{FfnSparsity, HeadMode, KvType, LoadOptions};
use bitnet_receipts::{Parity, Provenance, Receipt, ReceiptGate, digest, model_sha256};
use bitnet_tokenizers::TokenId;
use proptest::prelude::*;
use serde_json::{Value, json};
use xtask::{Rejection, Verifier};

static VERIFIER: LazyLock<Verifier> = LazyLock::new(Verifier::new);

/// The receipt of a real run.
static RECEIPT: LazyLock<Receipt> = LazyLock::new(|| {
    let receipt = receipt_of(&LoadOptions::default(), EngineOptions::default(), 5);
    receipt.with_parity(Parity {
        reference: "elsewhere".to_owned(),
        cosine: Some(0.999),
        exact_match_rate: Some(1.0),
        status: "ok".to_owned(),
    })
});

/// The receipt of a real run with these settings.
fn receipt_of(load_options: &LoadOptions, options: EngineOptions, max_tokens: usize) -> Receipt {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/data/golden/strict-b158/model-i2_s.gguf");
    let device = Device::cpu(1);
    let Loaded { model, .. } = load(&path, load_options, device).expect("the golden model loads");
    let mut engine = Engine::new(model, None, device, options).expect("memory for the cache");
    let request = Request {
        prompt: (1..8).map(TokenId).collect(),
        sampling: SamplingParams {
            logit_bias: vec![(TokenId(3), -1.5)],
            ..SamplingParams::default()
        },
        max_tokens: Some(max_tokens),
        stop_ids: vec![TokenId(511)],
        stop_strings: vec!["never".to_owned()],
        ..Request::default()
    };
    engine.counters().reset();
    let (output, finish) = engine.complete(request.clone()).expect("a good request");
    let provenance = Provenance {
        model_path: path.display().to_string(),
        model_sha256: model_sha256(&path).expect("it can be read"),
        load: load_options.clone(),
        kernels_requested: None,
        seed_given: true,
        bitnet_deterministic: Some("1".to_owned()),
        bitnet_seed: Some("7".to_owned()),
    };
    Receipt::new(&engine.facts(), &request, &output, &finish, &provenance).expect("it verifies")
}

fn value() -> Value {
    serde_json::from_str(&RECEIPT.to_json()).expect("JSON")
}

fn check(receipt: &Value) -> Result<Receipt, Rejection> {
    VERIFIER.verify(&receipt.to_string(), None)
}

/// The receipt with a new digest.
fn resealed(mut receipt: Value) -> Value {
    receipt["digest"] = digest(&receipt).into();
    receipt
}

/// JSON pointers to all fields, items and containers inside a value.
fn pointers(value: &Value, at: &str, out: &mut Vec<String>) {
    let inside: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (format!("{at}/{name}"), value))
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(i, value)| (format!("{at}/{i}"), value))
            .collect(),
        _ => Vec::new(),
    };
    for (pointer, value) in inside {
        pointers(value, &pointer, out);
        out.push(pointer);
    }
}

fn all_pointers() -> Vec<String> {
    let mut out = Vec::new();
    pointers(&value(), "", &mut out);
    out
}

/// Other values for a field: all its names if it has a list of names, some values of its type, some
/// of other types.
fn others(pointer: &str, value: &Value) -> Vec<Value> {
    let mut others = vec![Value::Null, json!({}), json!("x"), json!(-1)];
    let names: Vec<&str> = match pointer {
        "/compute_path" => vec!["real", "fallback", "none"],
        "/backend" => vec!["cpu", "gpu"],
        "/kernel_set" => vec![
            "scalar",
            "avx2",
            "avx512",
            "avx512-vbmi",
            "avx512-zen",
            "neon",
            "neon-dotprod",
        ],
        "/run/packing" => Packing::ALL.map(Packing::name).to_vec(),
        "/run/kv_type" => [KvType::F16, KvType::F32].map(KvType::name).to_vec(),
        "/run/head" => [HeadMode::Full, HeadMode::Screened]
            .map(HeadMode::name)
            .to_vec(),
        _ if pointer.starts_with("/kernels/") => Kernel::ALL.map(Kernel::id).to_vec(),
        _ => Vec::new(),
    };
    others.extend(names.into_iter().map(Value::from));
    match value {
        Value::Bool(on) => others.push(json!(!on)),
        Value::Number(number) => {
            let x = number.as_f64().expect("a number");
            others.extend([
                json!(0),
                json!(x + 1.0),
                json!(2.0 * x),
                json!(0.9 * x),
                json!(1e300),
            ]);
            others.extend(number.as_u64().map(|n| json!(n + 1)));
            others.extend(number.as_u64().map(|n| json!(n / 2)));
        }
        Value::String(text) => {
            others.extend([
                json!(""),
                json!(" "),
                json!(format!("{text}x")),
                json!(text.to_uppercase()),
            ]);
        }
        Value::Array(items) => {
            others.push(json!([]));
            others.push(Value::Array(items.iter().chain(items).cloned().collect()));
        }
        Value::Object(_) | Value::Null => {}
    }
    others
        .retain(|other| other != value && other.as_f64().is_none_or(|x| Some(x) != value.as_f64()));
    others
}

/// The fields that no other field of a receipt determines. Only the digest protects them, or
/// --rerun.
const FREE: &[&str] = &[
    "/timestamp",
    "/deterministic",
    "/prefill_ms",
    "/first_token_ms",
    "/output_tokens_sha256",
    "/peak_rss_bytes",
    "/backend_summary",
    "/environment/",
    "/model/path",
    "/model/sha256",
    "/model/quantization",
    "/model/tied",
    "/run/sampling/",
    "/run/stop_",
    "/run/finish_reason",
    "/run/prefill_chunk",
];

fn is_free(pointer: &str) -> bool {
    // Times and bytes have bounds. The calls of products depend on the number of merged matrices.
    let bounded = ["/bytes", "/ms", "/i2s_gemv/calls", "/i2s_gemm/calls"]
        .iter()
        .any(|end| pointer.ends_with(end));
    bounded && pointer.starts_with("/kernel_counts/")
        || pointer == "/run/draft"
        || [
            "/parity",
            "/parity/reference",
            "/parity/cosine",
            "/parity/exact_match_rate",
            "/parity/status",
        ]
        .contains(&pointer)
        || FREE.iter().any(|free| pointer.starts_with(free))
}

/// Whether a number equals the field's within the tolerance of rates and times.
fn is_close(number: &Value, pointer: &str) -> bool {
    let old = value().pointer(pointer).and_then(Value::as_f64);
    let is_rate = ["/tokens_per_second", "/decode_ms"].contains(&pointer);
    is_rate
        && number
            .as_f64()
            .zip(old)
            .is_some_and(|(new, old)| (new / old - 1.0).abs() < 0.02)
}

#[test]
fn an_unedited_receipt_is_accepted() {
    assert_eq!(check(&value()).expect("it verifies"), *RECEIPT);
}

#[test]
fn an_edit_of_any_field_is_rejected() {
    for pointer in all_pointers() {
        for other in others(&pointer, value().pointer(&pointer).expect("it is there")) {
            let mut edited = value();
            *edited.pointer_mut(&pointer).expect("it is there") = other.clone();
            assert!(check(&edited).is_err(), "{pointer} as {other}");
        }
    }
}

#[test]
fn removed_and_added_fields_are_rejected() {
    for pointer in all_pointers() {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        let mut edited = value();
        match edited.pointer_mut(parent).expect("it is there") {
            Value::Object(fields) => drop(fields.remove(name)),
            Value::Array(items) => drop(items.remove(name.parse().expect("an index"))),
            _ => unreachable!("only these have something inside"),
        }
        assert!(check(&edited).is_err(), "without {pointer}");
        let is_optional = ["/parity", "/digest"].contains(&pointer.as_str())
            || pointer.starts_with("/run/stop_")
            || pointer.starts_with("/run/sampling/logit_bias");
        let resealed = check(&resealed(edited));
        assert!(
            resealed.is_err() || is_optional,
            "without {pointer}, with a new digest"
        );
        let mut edited = value();
        if let Value::Object(fields) = edited.pointer_mut(parent).expect("it is there") {
            fields.insert("more".to_owned(), json!(1));
            assert!(
                check(&self::resealed(edited)).is_err(),
                "more in {parent:?}"
            );
        }
    }
}

#[test]
fn an_inconsistent_edit_with_a_new_digest_is_rejected() {
    for pointer in all_pointers()
        .iter()
        .filter(|pointer| !is_free(pointer) && *pointer != "/digest")
    {
        for other in others(pointer, value().pointer(pointer).expect("it is there")) {
            if is_close(&other, pointer) {
                continue;
            }
            let mut edited = value();
            *edited.pointer_mut(pointer).expect("it is there") = other.clone();
            assert!(check(&resealed(edited)).is_err(), "{pointer} as {other}");
        }
    }
}

#[test]
fn kernels_that_did_not_run_are_rejected() {
    let refused = |edited: Value, what: &str| {
        let run = edited["run"].clone();
        assert!(
            check(&resealed(edited)).is_err(),
            "{what}: {} {} {}",
            run["packing"],
            run["head"],
            run["draft"]
        );
    };
    for (index, packing) in Packing::ALL.into_iter().cycle().take(16).enumerate() {
        let [is_sparse, is_screened, drafts] = [index & 4 != 0, index & 8 != 0, index % 3 == 0];
        let load_options = LoadOptions {
            packing: Some(packing),
            ffn_sparsity: if is_sparse {
                FfnSparsity::On
            } else {
                FfnSparsity::Off
            },
            head: if is_screened {
                HeadMode::Screened
            } else {
                HeadMode::Full
            },
            ..LoadOptions::default()
        };
        let options = EngineOptions {
            prefill_chunk: [1, 4, 128][index % 3],
            draft_max: if drafts { 3 } else { 0 },
            ..EngineOptions::default()
        };
        let value: Value =
            serde_json::from_str(&receipt_of(&load_options, options, 30).to_json()).expect("JSON");
        check(&value).expect("it verifies");
        let ran = |id: &str| value["kernel_counts"].get(id).is_some();
        for missing in Kernel::ALL
            .map(Kernel::id)
            .into_iter()
            .filter(|id| !ran(id))
        {
            let mut edited = value.clone();
            edited["kernels"]
                .as_array_mut()
                .expect("a list")
                .push(json!(missing));
            edited["kernel_counts"][missing] =
                json!({ "calls": 1, "macs": 0, "macs_skipped": 0, "bytes": 0 });
            refused(edited, missing);
            for (at, id) in value["kernels"]
                .as_array()
                .expect("a list")
                .iter()
                .enumerate()
            {
                let mut edited = value.clone();
                edited["kernels"][at] = json!(missing);
                let counts = edited["kernel_counts"].as_object_mut().expect("an object");
                let count = counts
                    .remove(id.as_str().expect("an id"))
                    .expect("it is counted");
                counts.insert(missing.to_owned(), count);
                refused(edited, &format!("{missing} in place of {id}"));
            }
        }
        for (field, other) in [
            ("kv_type", KvType::F32.name()),
            (
                "head",
                if is_screened {
                    HeadMode::Full
                } else {
                    HeadMode::Screened
                }
                .name(),
            ),
        ] {
            let mut edited = value.clone();
            edited["run"][field] = json!(other);
            refused(edited, &format!("{field} as {other}"));
        }
        for other in Packing::ALL.into_iter().filter(|other| *other != packing) {
            if is_sparse && [packing, other] == [Packing::Two, Packing::FiveThirds] {
                // The kernels are the same, and the bytes are few enough for the smaller packing.
                continue;
            }
            let mut edited = value.clone();
            edited["run"]["packing"] = json!(other.name());
            refused(edited, &format!("packing as {}", other.name()));
        }
    }
}

/// Edits a kernel's count as if it had skipped all its work.
fn skip_all(receipt: &mut Value, kernel: &str) {
    let count = &mut receipt["kernel_counts"][kernel];
    count["macs_skipped"] = json!(
        count["macs_skipped"].as_u64().expect("a count") + count["macs"].as_u64().expect("a count")
    );
    count["macs"] = json!(0);
}

#[test]
fn doctored_receipts_are_rejected_by_the_right_gate() {
    type Doctor = fn(&mut Value);
    let cases: [(&str, ReceiptGate, Doctor); 29] = [
        ("nothing generated at no speed", ReceiptGate::Rates, |r| {
            r["tokens_generated"] = json!(0);
            r["tokens_per_second"] = json!(0.0);
        }),
        ("a kernel that did not run", ReceiptGate::Kernels, |r| {
            r["kernels"]
                .as_array_mut()
                .expect("a list")
                .push(json!("tl2_gemv_fast"));
        }),
        (
            "a known kernel that did not run",
            ReceiptGate::Kernels,
            |r| {
                let ran = r["kernels"].as_array().expect("a list").clone();
                let other = bitnet_kernels::Kernel::ALL
                    .iter()
                    .map(|k| k.id())
                    .find(|id| !ran.contains(&json!(id)));
                r["kernels"]
                    .as_array_mut()
                    .expect("a list")
                    .push(json!(other.unwrap_or("i2s_gemm_wide")));
            },
        ),
        ("a kernel that is not listed", ReceiptGate::Kernels, |r| {
            r["kernels"]
                .as_array_mut()
                .expect("a list")
                .retain(|id| id != "rope_apply");
        }),
        ("no kernels", ReceiptGate::Kernels, |r| {
            r["kernels"] = json!([])
        }),
        ("work that was not done", ReceiptGate::Work, |r| {
            r["kernel_counts"]["i2s_gemv"]["macs"] = json!(
                r["kernel_counts"]["i2s_gemv"]["macs"]
                    .as_u64()
                    .expect("a count")
                    / 2
            );
        }),
        ("skipped work in place of none", ReceiptGate::Work, |r| {
            r["kernel_counts"]["i2s_gemv"]["macs_skipped"] = json!(1)
        }),
        ("work moved between kernels", ReceiptGate::Work, |r| {
            r["kernel_counts"]["i2s_gemv"]["macs"] = json!(
                r["kernel_counts"]["i2s_gemv"]["macs"]
                    .as_u64()
                    .expect("a count")
                    - 7
            );
            r["kernel_counts"]["i2s_gemm"]["macs"] = json!(
                r["kernel_counts"]["i2s_gemm"]["macs"]
                    .as_u64()
                    .expect("a count")
                    + 7
            );
        }),
        ("a call too many", ReceiptGate::Work, |r| {
            let calls = r["kernel_counts"]["rope_apply"]["calls"]
                .as_u64()
                .expect("a count");
            r["kernel_counts"]["rope_apply"]["calls"] = json!(calls + 1);
        }),
        ("products that were hardly called", ReceiptGate::Work, |r| {
            r["kernel_counts"]["i2s_gemv"]["calls"] = json!(1)
        }),
        (
            "logits that were hardly asked for",
            ReceiptGate::Work,
            |r| {
                r["kernel_counts"]["logits_projection"]["calls"] = json!(1);
            },
        ),
        ("weights that were not read", ReceiptGate::Work, |r| {
            r["kernel_counts"]["i2s_gemv"]["bytes"] = json!(1)
        }),
        ("a cache that was not read", ReceiptGate::Work, |r| {
            r["kernel_counts"]["attention_real"]["bytes"] = json!(1)
        }),
        ("all products skipped", ReceiptGate::Work, |r| {
            skip_all(r, "i2s_gemv")
        }),
        ("all attention skipped", ReceiptGate::Work, |r| {
            skip_all(r, "attention_real")
        }),
        ("all logits skipped", ReceiptGate::Work, |r| {
            skip_all(r, "logits_projection")
        }),
        ("an unknown packing", ReceiptGate::Schema, |r| {
            r["run"]["packing"] = json!("1.5")
        }),
        ("an unknown head", ReceiptGate::Schema, |r| {
            r["run"]["head"] = json!("auto")
        }),
        ("parity with nothing", ReceiptGate::Schema, |r| {
            r["parity"]["cosine"] = Value::Null
        }),
        ("a deeper model", ReceiptGate::Work, |r| {
            r["model"]["layers"] = json!(3)
        }),
        ("more tokens at the same speed", ReceiptGate::Work, |r| {
            r["tokens_generated"] = json!(9);
            r["tokens_requested"] = json!(9);
            r["decode_ms"] = json!(2.0 * r["decode_ms"].as_f64().expect("a time"));
        }),
        (
            "a rate that its times do not give",
            ReceiptGate::Rates,
            |r| {
                r["tokens_per_second"] =
                    json!(1.02 * r["tokens_per_second"].as_f64().expect("a rate"));
            },
        ),
        ("a mock", ReceiptGate::Hygiene, |r| {
            r["kernels"][0] = json!("i2s_gemv_MOCK")
        }),
        ("a name with blanks", ReceiptGate::Hygiene, |r| {
            r["kernels"][0] = json!("i2s gemv")
        }),
        ("products of floats", ReceiptGate::FloatProducts, |r| {
            r["kernels"]
                .as_array_mut()
                .expect("a list")
                .push(json!("dequant_gemv"));
            r["kernel_counts"]["dequant_gemv"] = r["kernel_counts"]["i2s_gemv"].clone();
        }),
        ("a path that is not real", ReceiptGate::ComputePath, |r| {
            r["compute_path"] = json!("fallback")
        }),
        ("a GPU that did nothing", ReceiptGate::Backend, |r| {
            r["backend"] = json!("gpu")
        }),
        ("another kernel set", ReceiptGate::Backend, |r| {
            let other = if r["kernel_set"] == "scalar" {
                "avx2"
            } else {
                "scalar"
            };
            r["kernel_set"] = json!(other);
        }),
        ("another prompt", ReceiptGate::Digest, |r| {
            r["run"]["prompt_tokens"][0] = json!(2)
        }),
    ];
    for (what, gate, doctor) in cases {
        let mut doctored = value();
        doctor(&mut doctored);
        match check(&resealed(doctored)) {
            Err(Rejection::Gate(refusal)) => assert_eq!(refusal.gate, gate, "{what}: {refusal}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn a_repeated_field_is_rejected() {
    let text = value().to_string();
    for (field, twice) in [
        (
            "\"tokens_per_second\":",
            "\"tokens_per_second\":1e9,\"tokens_per_second\":",
        ),
        (
            "\"i2s_gemv\":",
            "\"i2s_gemv\":{\"bytes\":1,\"calls\":1,\"macs\":1,\"macs_skipped\":0},\"i2s_gemv\":",
        ),
        ("\"macs\":", "\"macs\":1,\"macs\":"),
    ] {
        let edited = text.replacen(field, twice, 1);
        assert_ne!(edited, text);
        assert!(VERIFIER.verify(&edited, None).is_err(), "{field}");
    }
}

#[test]
fn the_receipts_in_the_repository_are_accepted() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = root.join("benchmarks/receipts");
    let entries = folder.read_dir().expect("the folder of receipts");
    let paths: Vec<_> = entries.map(|entry| entry.expect("a file").path()).collect();
    assert!(paths.contains(&folder.join("inference.json")), "{paths:?}");
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("a receipt");
        VERIFIER
            .verify(&text, None)
            .unwrap_or_else(|rejection| panic!("{}: {rejection}", path.display()));
    }
}

#[test]
fn a_consistent_forgery_is_accepted() {
    // No check of the text alone can detect this; --rerun does.
    let mut forged = value();
    forged["output_tokens_sha256"] = json!("0".repeat(64));
    for field in ["prefill_ms", "decode_ms", "first_token_ms"] {
        forged[field] = json!(forged[field].as_f64().expect("a time") * 0.5);
    }
    for phase in ["prefill_forward", "decode_forward"] {
        forged["kernel_counts"][phase]["ms"] = json!(1e-6);
    }
    forged["tokens_per_second"] =
        json!(forged["tokens_per_second"].as_f64().expect("a rate") * 2.0);
    check(&resealed(forged)).expect("it is consistent");
}

#[test]
fn every_field_of_a_receipt_is_in_the_schema() {
    let schema: Value = serde_json::from_str(xtask::SCHEMA).expect("JSON");
    let names = |object: &Value| {
        object
            .as_object()
            .expect("an object")
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    for (fields, described) in [
        (value(), &schema["properties"]),
        (
            value()["environment"].clone(),
            &schema["properties"]["environment"]["properties"],
        ),
        (
            value()["model"].clone(),
            &schema["properties"]["model"]["properties"],
        ),
        (
            value()["run"].clone(),
            &schema["properties"]["run"]["properties"],
        ),
    ] {
        let mut described = names(described);
        // Only some receipts have these.
        let optional = [
            "device",
            "signature",
            "hybrid",
            "group_inputs",
            "draft_adapts",
        ];
        described.retain(|name| !optional.contains(&name.as_str()));
        assert_eq!(names(&fields), described);
    }
}

#[test]
fn signatures_are_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    // The keys of RFC 8032's first two tests, as OpenSSL writes them.
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    };
    let private = write(
        "private.pem",
        "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n",
    );
    let public = write(
        "public.pem",
        "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n",
    );
    let other_private = write(
        "other_private.pem",
        "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEzNCJso/5banbbDRuwRTg9bijGfNaumJNqM9u1PuKb7\n-----END PRIVATE KEY-----\n",
    );
    let other = write(
        "other.pem",
        "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAPUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=\n-----END PUBLIC KEY-----\n",
    );
    let (key, other) = (
        xtask::read_verifying_key(&public).expect("a key"),
        xtask::read_verifying_key(&other).expect("a key"),
    );
    let signing = xtask::read_signing_key(&private).expect("a key");
    assert!(
        xtask::read_signing_key(&public).is_err() && xtask::read_verifying_key(&private).is_err()
    );

    let signed = xtask::sign(RECEIPT.clone(), &signing).to_json();
    VERIFIER.verify(&signed, Some(&key)).expect("it verifies");
    VERIFIER.verify(&signed, None).expect("it verifies");
    let refused =
        |text: &str, key| matches!(VERIFIER.verify(text, key), Err(Rejection::Signature(_)));
    assert!(refused(&signed, Some(&other)), "another key");
    assert!(refused(&RECEIPT.to_json(), Some(&key)), "no signature");
    // The digest does not cover the signature. Only the key detects a removed or replaced one.
    let signing = xtask::read_signing_key(&other_private).expect("a key");
    for signed_otherwise in [
        RECEIPT.to_json(),
        xtask::sign(RECEIPT.clone(), &signing).to_json(),
    ] {
        VERIFIER
            .verify(&signed_otherwise, None)
            .expect("it is consistent");
        assert!(refused(&signed_otherwise, Some(&key)));
    }
    let mut edited: Value = serde_json::from_str(&signed).expect("JSON");
    edited["environment"]["CPU"] = json!("a faster one");
    assert!(
        refused(&resealed(edited).to_string(), None),
        "with a new digest"
    );
    let mut edited: Value = serde_json::from_str(&signed).expect("JSON");
    edited["signature"]["value"] = json!("0".repeat(128));
    assert!(refused(&edited.to_string(), None), "another signature");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_number_is_rejected(
        pick in any::<prop::sample::Index>(),
        integer in any::<u64>(),
        float in any::<f64>().prop_filter("a number", |x| x.is_finite()),
        take_float in any::<bool>(),
        reseal in any::<bool>(),
    ) {
        let value = value();
        let numbers: Vec<String> =
            all_pointers().into_iter().filter(|p| value.pointer(p).is_some_and(Value::is_number)).collect();
        let pointer = &numbers[pick.index(numbers.len())];
        let old = value.pointer(pointer).expect("it is there").as_f64();
        let new = if take_float { json!(float) } else { json!(integer) };
        prop_assume!(new.as_f64() != old && !(reseal && is_free(pointer)));
        prop_assume!(!(reseal && is_close(&new, pointer)));
        let mut edited = value.clone();
        *edited.pointer_mut(pointer).expect("it is there") = new.clone();
        let edited = if reseal { resealed(edited) } else { edited };
        prop_assert!(check(&edited).is_err(), "{} as {}", pointer, new);
    }

    #[test]
    fn a_changed_character_is_rejected(at in any::<prop::sample::Index>(), letter in "[ -~]") {
        // Edits of the file that change its meaning, unlike edits of white space or of the form of
        // a number.
        let text = RECEIPT.to_json();
        let at = at.index(text.len());
        let mut edited = text.clone();
        edited.replace_range(at..=at, &letter);
        let meaning = serde_json::from_str::<Value>(&edited).ok();
        prop_assume!(meaning.as_ref() != Some(&value()));
        prop_assert!(VERIFIER.verify(&edited, None).is_err(), "{:?} at {}", letter, at);
    }
}
