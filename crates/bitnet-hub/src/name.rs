//! [`ModelName`]: the name that a user types for a model.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::error::{Error, Result, shown};

/// Short names of published models, and their full names.
pub const SHORT_NAMES: &[(&str, &str)] = &[
    (
        "2b4t",
        "microsoft/bitnet-b1.58-2B-4T-gguf:ggml-model-i2_s.gguf",
    ),
    ("2b4t-packed", "microsoft/bitnet-b1.58-2B-4T"),
    ("2b4t-bf16", "microsoft/bitnet-b1.58-2B-4T-bf16"),
    ("llama3-8b", "HF1BitLLM/Llama3-8B-1.58-100B-tokens"),
    ("falcon3-1b", "tiiuae/Falcon3-1B-Instruct-1.58bit"),
    ("falcon3-3b", "tiiuae/Falcon3-3B-Instruct-1.58bit"),
    ("falcon3-7b", "tiiuae/Falcon3-7B-Instruct-1.58bit"),
    ("falcon3-10b", "tiiuae/Falcon3-10B-Instruct-1.58bit"),
    ("falcon-e-1b", "tiiuae/Falcon-E-1B-Instruct"),
    ("falcon-e-3b", "tiiuae/Falcon-E-3B-Instruct"),
    (
        "bonsai-1.7b",
        "prism-ml/Bonsai-1.7B-gguf:Bonsai-1.7B-Q1_0.gguf",
    ),
    ("bonsai-4b", "prism-ml/Bonsai-4B-gguf:Bonsai-4B-Q1_0.gguf"),
    ("bonsai-8b", "prism-ml/Bonsai-8B-gguf:Bonsai-8B-Q1_0.gguf"),
    (
        "ternary-bonsai-1.7b",
        "prism-ml/Ternary-Bonsai-1.7B-gguf:Ternary-Bonsai-1.7B-Q2_0.gguf",
    ),
    (
        "ternary-bonsai-4b",
        "prism-ml/Ternary-Bonsai-4B-gguf:Ternary-Bonsai-4B-Q2_0.gguf",
    ),
    (
        "ternary-bonsai-8b",
        "prism-ml/Ternary-Bonsai-8B-gguf:Ternary-Bonsai-8B-Q2_0.gguf",
    ),
    (
        "bonsai-2-27b",
        "prism-ml/Ternary-Bonsai-2-27B-gguf:Ternary-Bonsai-2-27B-PTQ1_0.gguf",
    ),
];

/// The default revision.
pub(crate) const MAIN: &str = "main";

/// A model on the Hub: `ORG/NAME`, `ORG/NAME@REVISION`, `ORG/NAME:FILE`, `ORG/NAME@REVISION:FILE`
/// or a short name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    /// `ORG/NAME`
    pub(crate) repo: String,
    /// A branch, a tag or a commit.
    pub(crate) revision: String,
    /// A file in it; without one, the only model.
    pub(crate) file: Option<String>,
}

impl ModelName {
    /// Reads `path` as a name, if nothing exists at that path and it does not look like a file.
    #[must_use]
    pub fn from_path(path: &Path) -> Option<Self> {
        let is_file_name = path
            .extension()
            .is_some_and(|extension| extension == "gguf" || extension == "json");
        let name = path.to_str().filter(|_| !path.exists())?;
        let name = name.parse::<Self>().ok()?;
        // `ORG/NAME:FILE.gguf` also ends like a file.
        (!is_file_name || name.file.is_some()).then_some(name)
    }

    /// `ORG/NAME`
    #[must_use]
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// The named file, if there is one.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }
}

impl FromStr for ModelName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let wrong = |problem: &str| Error::Name {
            name: shown(name),
            problem: problem.to_owned(),
        };
        if let Some(path) = page_path(name) {
            return name_of_page(path)
                .ok_or_else(|| wrong("expected the page of a model"))?
                .parse();
        }
        if let Some((_, long)) = SHORT_NAMES.iter().find(|(short, _)| *short == name) {
            return long.parse();
        }
        let (repo, file) = match name.split_once(':') {
            Some((repo, file)) => (repo, Some(file)),
            None => (name, None),
        };
        let (repo, revision) = repo.split_once('@').unwrap_or((repo, MAIN));
        if !is_repo(repo) {
            let short: Vec<&str> = SHORT_NAMES.iter().map(|(short, _)| *short).collect();
            return Err(wrong(&format!(
                "expected ORG/NAME, ORG/NAME:FILE or one of {}",
                short.join(", ")
            )));
        }
        if !is_safe_path(revision) {
            return Err(wrong("the revision is not valid"));
        }
        if file.is_some_and(|file| !is_safe_path(file)) {
            return Err(wrong("the file is not a valid path in a repository"));
        }
        Ok(Self {
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision != MAIN {
            write!(f, "@{}", self.revision)?;
        }
        match &self.file {
            Some(file) => write!(f, ":{file}"),
            None => Ok(()),
        }
    }
}

/// The path of an address on the Hub's own site, such as `https://huggingface.co/ORG/NAME`.
fn page_path(name: &str) -> Option<&str> {
    let name = name.strip_prefix("https://").unwrap_or(name);
    let path = name
        .strip_prefix("huggingface.co/")
        .or_else(|| name.strip_prefix("hf.co/"))?;
    path.split(['?', '#']).next()
}

/// The name of the model, the revision or the file that a page shows: `ORG/NAME`, optionally
/// followed by `/tree/REVISION`, or by `/blob/REVISION/FILE` and similar paths.
fn name_of_page(path: &str) -> Option<String> {
    let mut parts = path.trim_end_matches('/').splitn(5, '/');
    let (org, repo) = (parts.next()?, parts.next()?);
    match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => Some(format!("{org}/{repo}")),
        (Some("tree"), Some(revision), None) => Some(format!("{org}/{repo}@{revision}")),
        (Some("blob" | "resolve"), Some(revision), Some(file)) => {
            Some(format!("{org}/{repo}@{revision}:{file}"))
        }
        _ => None,
    }
}

/// Whether this can be a repository: two words that the Hub allows.
fn is_repo(repo: &str) -> bool {
    let is_word = |word: &str| {
        (1..=96).contains(&word.len())
            && word
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && !word.starts_with(['-', '.'])
            && !word.ends_with(['-', '.'])
            && !word.contains("--")
            && !word.contains("..")
    };
    repo.split_once('/')
        .is_some_and(|(org, name)| is_word(org) && is_word(name))
}

/// Whether this, appended to a folder, always stays inside it, on every system: plain names with
/// slashes between them.
pub(crate) fn is_safe_path(path: &str) -> bool {
    let is_name = |name: &str| {
        !name.is_empty()
            && name.len() <= 255
            && !matches!(name, "." | "..")
            && !name.chars().any(|c| {
                c.is_control() || matches!(c, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|')
            })
            && !name.ends_with([' ', '.'])
    };
    path.len() <= 1024 && path.split('/').all(is_name)
}

/// Whether this is a commit: 40 hex digits, as git writes them.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_lower_hex(text)
}

pub(crate) fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_exist_or_look_like_files_are_not_names() {
        for (path, is_name) in [
            ("2b4t", true),
            ("bonsai-1.7b", true),
            ("org/name", true),
            ("org/name:model.gguf", true),
            ("org/model.gguf", false),
            ("tokenizer.json", false),
            ("/no/such/folder", false),
            (env!("CARGO_MANIFEST_DIR"), false),
        ] {
            let name = ModelName::from_path(Path::new(path));
            assert_eq!(name.is_some(), is_name, "{path}");
        }
    }

    #[test]
    fn a_displayed_name_parses_to_the_same_name() {
        for name in [
            "org/name",
            "org/na.me-1_x@v1",
            "org/name:a/b.gguf",
            "o/n@refs/pr/1:model.gguf",
        ] {
            assert_eq!(
                name.parse::<ModelName>()
                    .map(|name| name.to_string())
                    .ok()
                    .as_deref(),
                Some(name)
            );
        }
        for (short, long) in SHORT_NAMES {
            assert_eq!(
                short
                    .parse::<ModelName>()
                    .map(|name| name.to_string())
                    .ok()
                    .as_deref(),
                Some(*long)
            );
        }
        let named = "org/name@main:f"
            .parse::<ModelName>()
            .map(|name| name.to_string());
        assert_eq!(named.ok().as_deref(), Some("org/name:f"));
    }

    #[test]
    fn page_addresses_are_parsed_as_names() {
        for (page, name) in [
            ("https://huggingface.co/org/name", "org/name"),
            ("https://huggingface.co/org/name/", "org/name"),
            ("huggingface.co/org/name?library=x", "org/name"),
            ("hf.co/org/name:a.gguf", "org/name:a.gguf"),
            ("https://hf.co/org/name/tree/main", "org/name"),
            ("https://hf.co/org/name/tree/v1", "org/name@v1"),
            (
                "https://huggingface.co/org/name/blob/main/a/b.gguf",
                "org/name:a/b.gguf",
            ),
            (
                "https://huggingface.co/org/name/resolve/v1/a.gguf?download=true",
                "org/name@v1:a.gguf",
            ),
        ] {
            let parsed = page.parse::<ModelName>().map(|name| name.to_string());
            assert_eq!(parsed.ok().as_deref(), Some(name), "{page}");
        }
        for wrong in [
            "https://huggingface.co/",
            "https://huggingface.co/org",
            "https://huggingface.co/datasets/org/name",
            "https://huggingface.co/org/name/discussions/1",
            "https://huggingface.co/org/name/blob/main",
            "https://example.org/org/name",
            "https://huggingface.co/org/name/blob/main/../x",
        ] {
            assert!(wrong.parse::<ModelName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_that_lead_out_of_the_cache_are_invalid() {
        let wrong = [
            "",
            "name",
            "a/b/c",
            "../b",
            "a/..",
            "a/-b",
            "a--b/c",
            "a/b c",
            "a/b:",
            "a/b:../c",
            "a/b:/etc/passwd",
            "a/b:c//d",
            "a/b:c/./d",
            "a/b:c\\d",
            "a/b:C:x",
            "a/b@..",
            "a/b@",
            "a/b:x\n",
            "/a/b",
            "a/b:c/..",
            "a/b:nul.",
            "a/é",
        ];
        for name in wrong {
            assert!(name.parse::<ModelName>().is_err(), "{name:?}");
        }
    }
}
