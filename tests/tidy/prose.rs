//! The rule about prose: comments, documentation, messages and names avoid mannered words.

use std::ops::Range;

use super::tree::File;

/// Mannered words and what to write instead.
const MANNERED: &[(&str, &str)] = &[
    ("anew", "again, new"),
    ("are to be", "say who does it, and when"),
    ("are told", "name the sender, or use `receive`"),
    ("called off", "cancelled"),
    ("is to be", "say who does it, and when"),
    ("is told", "name the sender, or use `receives`"),
    ("nobody", "no client, no caller, nothing"),
    ("so many", "n, this number of"),
    ("those of", "repeat the noun"),
    ("what came", "name it: the answer, the bytes"),
    ("whatever is", "name it, or use `any`"),
    ("whoever", "the client, the caller"),
];

/// Whether a file holds prose of ours: code, documentation, scripts.
pub fn has_prose(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let is_text = match name.rsplit_once('.') {
        Some((_, extension)) => ["rs", "md", "toml", "py", "sh", "yml"].contains(&extension),
        None => path.starts_with(".ci/"),
    };
    let is_text = is_text || path.starts_with("docs/") && path.ends_with(".json");
    // The rule's own files name the words.
    is_text && !path.starts_with("tests/data/") && !path.starts_with("tests/tidy/")
}

/// The mannered words in a text, each as `path:line: advice`. A phrase is found across a line
/// break, and in the words of a name.
pub fn mannered_words(path: &str, text: &str) -> Vec<String> {
    let (joined, lines) = join(text);
    let mut out = Vec::new();
    for (phrase, advice) in MANNERED {
        for (at, _) in joined.match_indices(phrase) {
            if is_whole(&joined, at..at + phrase.len()) {
                let line = lines.partition_point(|start| *start <= at);
                out.push((line, format!("{path}:{line}: `{phrase}`: {advice}")));
            }
        }
    }
    out.sort();
    out.into_iter().map(|(_, complaint)| complaint).collect()
}

/// The text in lower case on one line, without the signs of comments and with a space for `_`, and
/// where each line begins.
fn join(text: &str) -> (String, Vec<usize>) {
    let (mut joined, mut starts) = (String::new(), Vec::new());
    for line in text.lines() {
        starts.push(joined.len());
        let bare = line.trim().trim_start_matches(['/', '!', '#', '*', '>']);
        joined += &bare.trim().to_lowercase().replace('_', " ");
        joined.push(' ');
    }
    (joined, starts)
}

fn is_whole(text: &str, range: Range<usize>) -> bool {
    let is_letter = |c: Option<char>| c.is_some_and(char::is_alphabetic);
    !is_letter(text[..range.start].chars().next_back())
        && !is_letter(text[range.end..].chars().next())
}

#[test]
fn a_mannered_word_is_found_in_comments_names_and_across_lines() {
    let found = |text: &str| mannered_words("a.rs", text);
    let kept = [
        "// a new one",
        "fn sonobody() {}",
        "// so much, many",
        "those",
    ];
    assert_eq!(kept.map(|text| found(text).len()), [0; 4]);
    assert_eq!(
        found("//! Fine.\n// The sizes are those\n    // of rows.\nfn nobody_waits() {}\n"),
        [
            "a.rs:2: `those of`: repeat the noun",
            "a.rs:4: `nobody`: no client, no caller, nothing"
        ]
    );
    assert_eq!(found("# Whoever asks").len(), 1);
}

#[test]
fn prose_is_in_code_documents_and_scripts() {
    assert!(has_prose(".ci/run") && has_prose("docs/hub.md") && has_prose("docs/openapi.json"));
    assert!(!has_prose("tests/data/x.md") && !has_prose("models/stories/stories.gguf"));
}

/// The rule over all files with prose.
pub fn prose_is_plain(files: &[&File]) -> Vec<String> {
    files
        .iter()
        .flat_map(|file| mannered_words(&file.path, &file.text))
        .collect()
}
