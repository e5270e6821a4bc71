//! `/v1/files` and `/v1/batches`: files of requests, answered when no client waits.

use std::path::Path;

use serde_json::{Value, json};

use crate::client::{Response, Server, completion, with};

const FILES: &str = "/v1/files";
const BATCHES: &str = "/v1/batches";
const COMPLETIONS: &str = "/v1/completions";

/// A part of a form: its name, the name of the file if it is one, and the content.
type Part<'a> = (&'a str, Option<&'a str>, &'a [u8]);

/// Uploads a form as OpenAI's client for Python does.
fn upload_form(server: &Server, parts: &[Part<'_>], headers: &[(&str, &str)]) -> Response {
    let mut body = Vec::new();
    for (name, filename, content) in parts {
        body.extend_from_slice(b"--boundary\r\ncontent-disposition: form-data; ");
        body.extend_from_slice(format!("name=\"{name}\"").as_bytes());
        if let Some(filename) = filename {
            let rest = format!("; filename=\"{filename}\"\r\ncontent-type: application/x");
            body.extend_from_slice(rest.as_bytes());
        }
        body.extend_from_slice(b"\r\n\r\n");
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--boundary--\r\n");
    let kind = ("content-type", "multipart/form-data; boundary=boundary");
    server.send("POST", FILES, &[&[kind][..], headers].concat(), &body)
}

#[track_caller]
pub fn upload(server: &Server, content: &str) -> Value {
    let file = ("file", Some("in.jsonl"), content.as_bytes());
    let response = upload_form(server, &[("purpose", None, b"batch"), file], &[]);
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

/// The id of an object.
pub fn id(object: &Value) -> &str {
    object["id"].as_str().expect("an id")
}

/// A line that asks for a completion.
fn line(name: &str, more: Value) -> String {
    let body = with(
        completion(format!("Once upon a time {name}"), json!({})),
        more,
    );
    json!({ "custom_id": name, "method": "POST", "url": COMPLETIONS, "body": body }).to_string()
}

fn ask(file: &Value) -> Value {
    json!({ "input_file_id": file["id"], "endpoint": COMPLETIONS, "completion_window": "24h" })
}

fn batch(server: &Server, batch: &Value) -> Value {
    let response = server.get(&format!("{BATCHES}/{}", id(batch)));
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

/// Waits until a batch has ended.
pub fn ended(server: &Server, created: &Value) -> Value {
    let is_end = |batch: &Value| {
        let status = batch["status"].as_str().expect("a status");
        ["completed", "failed", "cancelled", "expired"].contains(&status)
    };
    server.wait_until("ended", || is_end(&batch(server, created)));
    batch(server, created)
}

/// The lines of a file.
#[track_caller]
fn lines(server: &Server, id: &Value) -> Vec<Value> {
    let id = id.as_str().expect("an id");
    let response = server.get(&format!("{FILES}/{id}/content"));
    assert_eq!(response.status, 200, "{}", response.text());
    let text = response.text();
    assert!(text.ends_with('\n'), "{text}");
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

fn names(lines: &[Value]) -> Vec<&str> {
    let names = lines.iter().map(|line| line["custom_id"].as_str());
    names.map(|name| name.expect("a name")).collect()
}

/// The tokens of answers, as the usage of a batch shows them.
fn usage(answers: &[Value]) -> Value {
    let sum = |pointer: &str| -> u64 {
        let bodies = answers.iter().map(|answer| &answer["response"]["body"]);
        let counts = bodies.map(|body| body["usage"].pointer(pointer).and_then(Value::as_u64));
        counts.map(|count| count.expect("a count")).sum()
    };
    let (input, output) = (sum("/prompt_tokens"), sum("/completion_tokens"));
    json!({
        "input_tokens": input,
        "input_tokens_details": { "cached_tokens": sum("/prompt_tokens_details/cached_tokens") },
        "output_tokens": output,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": input + output,
    })
}

/// An empty folder for state, and its path as a text.
fn folder() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state");
    let path = path.to_str().expect("a path").to_owned();
    (folder, path)
}

#[test]
fn the_requests_of_a_file_are_answered_into_files() {
    let (_folder, state) = folder();
    let server = Server::start(&["--state-dir", &state]);
    let content = [
        line("a", json!({})),
        String::new(),
        line("wrong", json!({ "top_p": 7 })),
        line("b", json!({ "max_tokens": 3 })),
    ]
    .join("\n");
    let file = upload(&server, &content);
    assert_eq!(
        (&file["object"], &file["purpose"], &file["filename"]),
        (&json!("file"), &json!("batch"), &json!("in.jsonl"))
    );
    assert_eq!(file["bytes"], content.len());
    let path = format!("{FILES}/{}", id(&file));
    assert_eq!(server.get(&path).json(), file);
    let whole = server.get(&format!("{path}/content"));
    assert_eq!(
        whole.header("content-type"),
        Some("application/octet-stream")
    );
    assert_eq!(whole.text(), content);

    let more = json!({ "metadata": { "of": "me" } });
    let created = server.answer(BATCHES, &with(ask(&file), more));
    assert_eq!(created["object"], "batch");
    assert_eq!(created["metadata"], json!({ "of": "me" }));
    assert_eq!(
        (&created["usage"], &created["model"]),
        (&usage(&[]), &Value::Null)
    );
    let done = ended(&server, &created);
    assert_eq!(done["status"], "completed", "{done}");
    let counts = json!({ "total": 3, "completed": 2, "failed": 1 });
    assert_eq!(done["request_counts"], counts);
    for time in ["in_progress_at", "finalizing_at", "completed_at"] {
        assert!(done[time].is_u64(), "{time} in {done}");
    }
    let answers = lines(&server, &done["output_file_id"]);
    assert_eq!(names(&answers), ["a", "b"]);
    assert_eq!(done["usage"], usage(&answers));
    assert_eq!(done["usage"]["output_tokens"], 24 + 3);
    assert_eq!(done["model"], "stories");
    let direct = server.answer(COMPLETIONS, &completion("Once upon a time a", json!({})));
    let response = &answers[0]["response"];
    assert_eq!(response["status_code"], 200);
    assert!(response["request_id"].is_string());
    assert_eq!(response["body"]["choices"], direct["choices"]);
    assert_eq!(answers[0]["error"], Value::Null);
    let errors = lines(&server, &done["error_file_id"]);
    assert_eq!(names(&errors), ["wrong"]);
    let response = &errors[0]["response"];
    assert_eq!(response["status_code"], 400);
    assert_eq!(response["body"]["error"]["param"], "top_p");
    let output = format!("{FILES}/{}", done["output_file_id"].as_str().expect("id"));
    assert_eq!(server.get(&output).json()["purpose"], "batch_output");
    assert_eq!(server.sample("bitnet_files"), 3.0);
    let text = server.get("/metrics").text();
    for line in [
        "bitnet_batches{status=\"completed\"} 1",
        "bitnet_batch_requests_total{end=\"completed\"} 2",
        "bitnet_batch_requests_total{end=\"failed\"} 1",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }

    let deleted = server.send("DELETE", &path, &[], b"").json();
    let expected = json!({ "id": file["id"], "object": "file", "deleted": true });
    assert_eq!(deleted, expected);
    assert_eq!(server.get(&path).status, 404);
    assert_eq!(server.get(&format!("{path}/content")).status, 404);
    assert_eq!(server.send("DELETE", &path, &[], b"").status, 404);
    // Without this file, there is nothing to answer.
    let (status, code, param) = server.refusal(BATCHES, &ask(&file));
    assert_eq!(
        (status, &*code, param.as_deref()),
        (404, "file_not_found", Some("input_file_id"))
    );
}

#[test]
fn files_and_batches_are_listed_in_pages() {
    let (_folder, state) = folder();
    let server = Server::start(&["--state-dir", &state]);
    let files: Vec<_> = (0..3)
        .map(|n| upload(&server, &line(&n.to_string(), json!({ "max_tokens": 1 }))))
        .collect();
    let batches: Vec<_> = files
        .iter()
        .map(|file| server.answer(BATCHES, &ask(file)))
        .collect();
    for batch in &batches {
        assert_eq!(ended(&server, batch)["status"], "completed");
    }
    let page = |path: &str| {
        let page = server.get(path).json();
        let ids: Vec<_> = page["data"].as_array().expect("a list").iter().collect();
        let ids: Vec<_> = ids.into_iter().map(|object| object["id"].clone()).collect();
        (ids, page["has_more"].as_bool().expect("a boolean"))
    };
    let of = |objects: &[&Value]| objects.iter().map(|o| o["id"].clone()).collect::<Vec<_>>();
    let [a, b, c] = &files[..] else {
        panic!("three")
    };
    let only = "purpose=batch";
    assert_eq!(page(&format!("{FILES}?{only}")), (of(&[c, b, a]), false));
    let query = format!("{FILES}?{only}&order=asc&limit=2");
    assert_eq!(page(&query), (of(&[a, b]), true));
    let query = format!("{FILES}?{only}&order=asc&limit=2&after={}", id(b));
    assert_eq!(page(&query), (of(&[c]), false));
    assert_eq!(page(FILES).0.len(), 6);
    let [a, b, c] = &batches[..] else {
        panic!("three")
    };
    assert_eq!(page(&format!("{BATCHES}?limit=2")), (of(&[c, b]), true));
    let query = format!("{BATCHES}?limit=2&after={}", id(b));
    assert_eq!(page(&query), (of(&[a]), false));
    for wrong in [
        format!("{FILES}?limit=0"),
        format!("{FILES}?order=up"),
        format!("{FILES}?purpose=vision"),
        format!("{FILES}?after=file-1"),
        format!("{BATCHES}?limit=101"),
        format!("{BATCHES}?after=batch_1"),
    ] {
        assert_eq!(server.get(&wrong).status, 400, "{wrong}");
    }
    assert_eq!(server.get(&format!("{BATCHES}/batch_1")).status, 404);
}

#[test]
fn a_file_with_wrong_lines_fails_and_names_them() {
    let (_folder, state) = folder();
    let server = Server::start(&["--state-dir", &state]);
    let fails = |content: &str| {
        let created = server.answer(BATCHES, &ask(&upload(&server, content)));
        let failed = ended(&server, &created);
        assert_eq!(failed["status"], "failed", "{failed}");
        assert!(failed["failed_at"].is_u64());
        assert_eq!(failed["output_file_id"], Value::Null);
        let errors = failed["errors"]["data"].as_array().expect("a list").clone();
        let errors = errors.iter().map(|error| {
            let code = error["code"].as_str().expect("a code").to_owned();
            (error["line"].as_u64(), code)
        });
        errors.collect::<Vec<_>>()
    };
    let content = [
        line("a", json!({})),
        "not JSON".to_owned(),
        line("a", json!({})),
        String::new(),
        line("b", json!({})).replace(COMPLETIONS, "/v1/embeddings"),
        line("c", json!({ "stream": true })),
        line("d", json!({})).replace("POST", "GET"),
    ];
    let expected = [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (5, "invalid_url"),
        (6, "invalid_body"),
        (7, "invalid_method"),
    ]
    .map(|(line, code)| (Some(line), code.to_owned()));
    assert_eq!(fails(&content.join("\n")), expected);
    assert_eq!(fails("\n\n"), [(None, "empty_file".to_owned())]);
}

#[test]
fn a_wrong_form_or_batch_is_refused_by_field() {
    let (_folder, state) = folder();
    let server = Server::start(&["--state-dir", &state]);
    let file: Part<'_> = ("file", Some("x"), b"{}");
    let purpose: Part<'_> = ("purpose", None, b"batch");
    let anchor: Part<'_> = ("expires_after[anchor]", None, b"created_at");
    let seconds: Part<'_> = ("expires_after[seconds]", None, b"3600");
    let stored = upload_form(&server, &[file, seconds, purpose, anchor], &[]).json();
    let created_at = stored["created_at"].as_u64().expect("a time");
    assert_eq!(stored["expires_at"], created_at + 3600);
    for (parts, param) in [
        (vec![file], "purpose"),
        (vec![purpose], "file"),
        (vec![file, ("purpose", None, b"vision")], "purpose"),
        (vec![file, purpose, file], "file"),
        (
            vec![file, purpose, ("frobnicate", None, b"1")],
            "frobnicate",
        ),
        (vec![file, purpose, anchor], "expires_after[seconds]"),
        (vec![file, purpose, seconds], "expires_after[anchor]"),
        (
            vec![
                file,
                purpose,
                anchor,
                ("expires_after[seconds]", None, b"1"),
            ],
            "expires_after[seconds]",
        ),
    ] {
        let refused = upload_form(&server, &parts, &[]);
        assert_eq!(refused.status, 400, "{}", refused.text());
        assert_eq!(refused.json()["error"]["param"], param);
    }
    assert_eq!(server.post(FILES, &json!({})).status, 415);
    let kind = [("content-type", "multipart/form-data; boundary=b")];
    for body in [&b"--b\r\n"[..], b"", b"--b--", b"{}"] {
        let refused = server.send("POST", FILES, &kind, body);
        assert_eq!(refused.status, 400, "{}", refused.text());
    }
    let file = upload(&server, &line("a", json!({ "max_tokens": 1 })));
    for (more, param) in [
        (json!({ "completion_window": "1h" }), "completion_window"),
        (json!({ "endpoint": "/v1/messages" }), "endpoint"),
        (json!({ "input_file_id": null }), "input_file_id"),
        (json!({ "metadata": { "a": 1 } }), "metadata.a"),
        (json!({ "metadata": { "a": "x".repeat(513) } }), "metadata"),
        (json!({ "frobnicate": 1 }), "frobnicate"),
        (
            json!({ "output_expires_after": { "anchor": "created_at", "seconds": 1 } }),
            "output_expires_after.seconds",
        ),
    ] {
        let (status, _, found) = server.refusal(BATCHES, &with(ask(&file), more));
        assert_eq!((status, found.as_deref()), (400, Some(param)));
    }
    assert_eq!(
        server.sample("bitnet_files"),
        2.0,
        "refused uploads leave none"
    );
    let contents = std::fs::read_dir(Path::new(&state).join("files")).expect("a folder");
    assert_eq!(contents.count(), 2);
}

#[test]
fn a_killed_server_goes_on_without_losing_or_repeating_a_line() {
    const NUM_LINES: usize = 60;
    let (_folder, state) = folder();
    let arguments = ["--state-dir", &state, "--running", "4"];
    let mut server = Server::start(&arguments);
    // Every tenth request is refused.
    let more = |n: usize| match n % 10 {
        9 => json!({ "top_p": 7 }),
        _ => json!({ "max_tokens": 40 }),
    };
    let content: Vec<_> = (0..NUM_LINES)
        .map(|n| line(&format!("r{n}"), more(n)))
        .collect();
    let file = upload(&server, &content.join("\n"));
    let created = server.answer(BATCHES, &ask(&file));
    let num_done = |server: &Server| {
        let counts = batch(server, &created)["request_counts"].clone();
        let count = |name: &str| counts[name].as_u64().expect("a number") as usize;
        count("completed") + count("failed")
    };
    for target in [1, 20, 41] {
        server.wait_until("so far", || num_done(&server) >= target);
        let before = num_done(&server);
        // Killed, not stopped.
        drop(server);
        // A line that was not written to its end.
        for entry in std::fs::read_dir(Path::new(&state).join("files")).expect("a folder") {
            let path = entry.expect("an entry").path();
            if !path.ends_with(id(&file)) {
                let mut text = std::fs::read(&path).expect("a file");
                text.extend_from_slice(b"{\"id\":\"batch_r");
                std::fs::write(&path, text).expect("a file");
            }
        }
        server = Server::start(&arguments);
        server.wait_until("resumed", || num_done(&server) >= before);
    }
    let done = ended(&server, &created);
    let counts = json!({ "total": NUM_LINES, "completed": 54, "failed": 6 });
    assert_eq!(
        (&done["status"], &done["request_counts"]),
        (&json!("completed"), &counts)
    );
    let answers = lines(&server, &done["output_file_id"]);
    let errors = lines(&server, &done["error_file_id"]);
    let expected = |is_wrong: bool| -> Vec<String> {
        let numbers = (0..NUM_LINES).filter(|n| (n % 10 == 9) == is_wrong);
        numbers.map(|n| format!("r{n}")).collect()
    };
    assert_eq!(names(&answers), expected(false));
    assert_eq!(names(&errors), expected(true));
    assert_eq!(done["usage"], usage(&answers));
    let body = completion("Once upon a time r58", json!({ "max_tokens": 40 }));
    let direct = server.answer(COMPLETIONS, &body);
    let last = &answers[53]["response"]["body"];
    assert_eq!(last["choices"], direct["choices"]);
}

#[test]
fn a_cancelled_batch_keeps_its_answers() {
    let (_folder, state) = folder();
    let server = Server::start(&["--state-dir", &state, "--running", "2"]);
    let more = json!({ "max_tokens": 100, "ignore_eos": true });
    let content: Vec<_> = (0..200)
        .map(|n| line(&format!("r{n}"), more.clone()))
        .collect();
    let file = upload(&server, &content.join("\n"));
    let created = server.answer(BATCHES, &ask(&file));
    let completed = |batch: &Value| batch["request_counts"]["completed"].as_u64();
    server.wait_until("begun", || completed(&batch(&server, &created)) >= Some(2));
    // It uses its file, and leaves room for clients.
    let path = format!("{FILES}/{}", id(&file));
    assert_eq!(server.send("DELETE", &path, &[], b"").status, 400);
    server.answer(COMPLETIONS, &completion("Hi", json!({ "max_tokens": 2 })));
    assert_eq!(batch(&server, &created)["status"], "in_progress");
    assert_eq!(server.sample("vllm:num_requests_waiting"), 0.0);
    let cancel = format!("{BATCHES}/{}/cancel", id(&created));
    let cancelling = server.send("POST", &cancel, &[], b"").json();
    assert_eq!(cancelling["status"], "cancelling", "{cancelling}");
    let cancelled = ended(&server, &created);
    assert_eq!(cancelled["status"], "cancelled");
    assert!(cancelled["cancelling_at"].is_u64() && cancelled["cancelled_at"].is_u64());
    let answers = lines(&server, &cancelled["output_file_id"]);
    assert_eq!(completed(&cancelled), Some(answers.len() as u64));
    assert!((2..200).contains(&answers.len()));
    let again = server.send("POST", &cancel, &[], b"");
    assert_eq!(again.status, 400);
    assert!(again.text().contains("cancelled"), "{}", again.text());
    assert_eq!(server.send("DELETE", &path, &[], b"").status, 200);
}

#[test]
fn keys_see_only_their_own_files_and_batches() {
    let (_folder, state) = folder();
    let path = Path::new(&state).with_file_name("keys");
    // SHA-256 of `secret` and of `other`.
    let hashes = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b alice\n\
                  d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa bob\n";
    std::fs::write(&path, hashes).expect("a file");
    let keys = path.to_str().expect("a path");
    let limits = ["--key-requests", "1"];
    let arguments = [
        &["--state-dir", &state, "--api-key-file", keys][..],
        &limits,
    ]
    .concat();
    let server = Server::start(&arguments);
    let (alice, bob) = (("x-api-key", "secret"), ("x-api-key", "other"));
    let send = |method: &str, path: &str, key, body: &Value| {
        let headers = [("content-type", "application/json"), key];
        server.send(method, path, &headers, body.to_string().as_bytes())
    };
    let content: Vec<_> = (0..5)
        .map(|n| line(&n.to_string(), json!({ "max_tokens": 1 })))
        .collect();
    let content = content.join("\n");
    let parts: [Part<'_>; 2] = [
        ("purpose", None, b"batch"),
        ("file", Some("x"), content.as_bytes()),
    ];
    assert_eq!(upload_form(&server, &parts, &[]).status, 401);
    let file = upload_form(&server, &parts, &[alice]).json();
    let created = send("POST", BATCHES, alice, &ask(&file)).json();
    let batch = format!("{BATCHES}/{}", id(&created));
    let status = || send("GET", &batch, alice, &Value::Null).json()["status"].clone();
    // Limits a minute do not hold for batches.
    server.wait_until("completed", || status() == "completed");
    let done = send("GET", &batch, alice, &Value::Null).json();
    assert_eq!(done["request_counts"]["completed"], 5);
    let output = format!("{FILES}/{}", done["output_file_id"].as_str().expect("id"));
    for (method, path) in [
        ("GET", batch.clone()),
        ("POST", format!("{batch}/cancel")),
        ("GET", output.clone()),
        ("GET", format!("{output}/content")),
        ("DELETE", output.clone()),
    ] {
        assert_eq!(send(method, &path, bob, &Value::Null).status, 404, "{path}");
    }
    assert_eq!(send("POST", BATCHES, bob, &ask(&file)).status, 404);
    for path in [FILES, BATCHES] {
        let list = |key| send("GET", path, key, &Value::Null).json()["data"].clone();
        assert_eq!(list(bob), json!([]));
        assert_ne!(list(alice), json!([]));
    }
    assert_eq!(send("GET", &output, alice, &Value::Null).status, 200);
}

#[test]
fn sizes_are_bounded_and_the_refusal_has_the_numbers() {
    let (_folder, state) = folder();
    let limits = ["--file-bytes", "2000", "--files-bytes", "2500"];
    let server = Server::start(&[&["--state-dir", &state][..], &limits].concat());
    let send = |len: usize| {
        let content = "x".repeat(len);
        let file = ("file", Some("x"), content.as_bytes());
        upload_form(&server, &[("purpose", None, b"batch"), file], &[])
    };
    let refused = send(2001);
    assert_eq!(refused.status, 413);
    assert!(refused.text().contains("2000 bytes"), "{}", refused.text());
    assert_eq!(send(100_000).status, 413);
    let file = send(2000).json();
    let refused = send(501);
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["error"]["code"], "storage_limit_exceeded");
    assert!(refused.text().contains("2500 bytes"), "{}", refused.text());
    assert_eq!(server.sample("bitnet_files_bytes"), 2000.0);
    let path = format!("{FILES}/{}", id(&file));
    assert_eq!(server.send("DELETE", &path, &[], b"").status, 200);
    // The answers of a batch need room, too.
    let content: Vec<_> = (0..9)
        .map(|n| line(&n.to_string(), json!({ "max_tokens": 1 })))
        .collect();
    let created = server.answer(BATCHES, &ask(&upload(&server, &content.join("\n"))));
    let failed = ended(&server, &created);
    assert_eq!(failed["status"], "failed");
    let error = &failed["errors"]["data"][0];
    assert_eq!(error["code"], "storage_limit_exceeded", "{failed}");
    let completed = failed["request_counts"]["completed"].as_u64();
    let answers = lines(&server, &failed["output_file_id"]);
    assert_eq!(completed, Some(answers.len() as u64));
}

#[test]
fn without_a_folder_files_and_batches_are_refused_by_the_option() {
    let server = Server::start(&[]);
    let file: Part<'_> = ("file", Some("x"), b"{}");
    let refusals = [
        upload_form(&server, &[("purpose", None, b"batch"), file], &[]),
        server.get(FILES),
        server.get("/v1/files/file-1/content"),
        server.get(BATCHES),
        server.post(BATCHES, &json!({})),
        server.send("POST", "/v1/batches/batch_1/cancel", &[], b""),
    ];
    for refusal in refusals {
        assert_eq!(refusal.status, 400);
        let error = &refusal.json()["error"];
        assert_eq!(error["code"], "no_state_dir");
        let message = error["message"].as_str().expect("a text");
        assert!(message.contains("--state-dir"), "{message}");
    }
}
