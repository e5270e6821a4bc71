//! `/v1/embeddings`: vectors equal the reference's, in any company.

use serde_json::{Value, json};

use crate::client::Server;

const PATH: &str = "/v1/embeddings";
const FOLDER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/data/golden-graphs/qwen3-embedding"
);

fn serve(more: &[&str]) -> Server {
    let model = format!("{FOLDER}/model.gguf");
    let arguments = ["-m", &model, "--ctx-size", "64"];
    Server::start(&[&arguments[..], more].concat())
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(format!("{FOLDER}/{name}")).expect("a readable file")
}

/// The tokens of the golden model.
fn tokens() -> Vec<Value> {
    let json: Value = serde_json::from_slice(&file("tokens.json")).expect("JSON");
    json["tokens"].as_array().expect("a list").clone()
}

/// The reference's hidden state of a position, scaled to length 1.
fn expected(position: usize) -> Vec<f32> {
    let bytes = file("hidden-int8.npy");
    let header = 10 + u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    let values = bytes[header..].chunks_exact(4);
    let values: Vec<f32> = values
        .map(|value| f32::from_le_bytes(value.try_into().expect("four bytes")))
        .collect();
    let hidden = values.len() / tokens().len();
    let row = &values[position * hidden..(position + 1) * hidden];
    let length = row.iter().map(|value| value * value).sum::<f32>().sqrt();
    row.iter().map(|value| value / length).collect()
}

fn numbers(vector: &Value) -> Vec<f32> {
    let list = vector.as_array().expect("a list");
    list.iter()
        .map(|number| number.as_f64().expect("a number") as f32)
        .collect()
}

#[test]
fn vectors_of_token_ids_equal_the_reference_in_order() {
    let server = serve(&["--kv-type", "f32"]);
    let tokens = tokens();
    let lens = [24, 1, 9, 24];
    let inputs: Vec<&[Value]> = lens.iter().map(|len| &tokens[..*len]).collect();
    let answer = server.answer(PATH, &json!({ "input": inputs, "user": "me" }));
    assert_eq!(answer["object"], "list");
    assert_eq!(
        answer["usage"],
        json!({ "prompt_tokens": 58, "total_tokens": 58 })
    );
    for (index, len) in lens.into_iter().enumerate() {
        let item = &answer["data"][index];
        assert_eq!(
            (&item["object"], &item["index"]),
            (&json!("embedding"), &json!(index))
        );
        let found = numbers(&item["embedding"]);
        let expected = expected(len - 1);
        let pairs = found.iter().zip(&expected);
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == expected.len() && worst < 1e-5, "{worst:e}");
    }
    let alone = server.answer(PATH, &json!({ "input": &tokens[..9] }));
    assert_eq!(
        alone["data"][0]["embedding"],
        answer["data"][2]["embedding"]
    );
}

#[test]
fn a_long_list_of_texts_is_answered_in_order_and_text_is_as_its_tokens() {
    let server = serve(&["--queue-requests", "40"]);
    let texts: Vec<String> = (0..100).map(|n| format!("text {}", n % 7)).collect();
    let answer = server.answer(PATH, &json!({ "input": texts }));
    let vector = |index: usize| &answer["data"][index]["embedding"];
    assert_eq!(answer["data"].as_array().map(Vec::len), Some(100));
    for index in 7..100 {
        assert_eq!(vector(index), vector(index % 7), "{index}");
    }
    assert_ne!(vector(0), vector(1));
    let tokens = server.answer("/tokenize", &json!({ "prompt": "text 3" }));
    let by_ids = server.answer(PATH, &json!({ "input": tokens["tokens"] }));
    assert_eq!(&by_ids["data"][0]["embedding"], vector(3));
    let count = |text: &String| {
        let tokens = server.answer("/tokenize", &json!({ "prompt": text }));
        tokens["count"].as_u64().expect("a number")
    };
    let total: u64 = texts.iter().map(count).sum();
    assert_eq!(answer["usage"]["prompt_tokens"], total);
}

#[test]
fn vectors_come_in_base64_and_shortened() {
    let server = serve(&[]);
    let ask = |more: Value| {
        let mut request = json!({ "input": "a text" });
        let more = more.as_object().expect("an object").clone();
        request.as_object_mut().expect("an object").extend(more);
        server.answer(PATH, &request)["data"][0]["embedding"].clone()
    };
    let whole = numbers(&ask(json!({ "encoding_format": "float" })));
    let text = ask(json!({ "encoding_format": "base64" }));
    // Four characters for each three bytes.
    assert_eq!(
        text.as_str().map(str::len),
        Some((whole.len() * 4).div_ceil(3) * 4)
    );
    let short = numbers(&ask(json!({ "dimensions": 5 })));
    let length = whole[..5].iter().map(|value| value * value).sum::<f32>();
    for (short, whole) in short.iter().zip(&whole) {
        assert!((short - whole / length.sqrt()).abs() < 1e-6);
    }
    assert_eq!(short.len(), 5);
}

#[test]
fn invalid_requests_for_vectors_are_refused_by_field() {
    let server = serve(&[]);
    let long: Vec<u32> = vec![1; 65];
    for (request, field) in [
        (json!({ "input": [] }), "input"),
        (json!({ "input": "" }), "input"),
        (json!({ "input": [[1], []] }), "input"),
        (json!({ "input": [301] }), "input"),
        (json!({ "input": long }), "input"),
        (json!({ "input": vec!["a"; 2049] }), "input"),
        (json!({ "input": { "text": "a" } }), "input"),
        (json!({ "input": "a", "dimensions": 0 }), "dimensions"),
        (json!({ "input": "a", "dimensions": 129 }), "dimensions"),
        (
            json!({ "input": "a", "encoding_format": "int8" }),
            "encoding_format",
        ),
        (json!({ "input": "a", "truncate": true }), "truncate"),
        (json!({ "input": "a", "model": "other" }), "model"),
    ] {
        let (status, code, param) = server.refusal(PATH, &request);
        assert!(matches!(status, 400 | 404), "{request}: {status} {code}");
        assert_eq!(param.as_deref(), Some(field), "{request}: {code}");
    }
}

#[test]
fn a_chat_model_gives_vectors_only_if_the_operator_says_how() {
    let refusal = Server::start(&[]).post(PATH, &json!({ "input": "a" }));
    assert_eq!(refusal.status, 400);
    assert!(refusal.text().contains("--pooling"), "{}", refusal.text());
    for pooling in ["last", "mean", "cls"] {
        let server = Server::start(&["--pooling", pooling]);
        let answer = server.answer(PATH, &json!({ "input": "Once upon a time" }));
        let vector = numbers(&answer["data"][0]["embedding"]);
        let length: f32 = vector.iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-5, "{pooling}: {length}");
    }
}
