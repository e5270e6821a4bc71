//! The tree that the rules read: its files, and Rust files as tokens.

use std::path::Path;
use std::sync::LazyLock;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::prose;

/// A file with its path from the root, `/` between the parts.
pub struct File {
    pub path: String,
    pub text: String,
}

/// A Rust file as tokens, without comments.
pub struct Source {
    pub file: File,
    /// `Err` if the text is not Rust.
    pub words: Result<Vec<Word>, String>,
}

/// A token: an identifier, a literal, a sign or a bracket.
#[derive(Debug)]
pub struct Word {
    pub text: String,
    pub line: usize,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let words = match text.parse() {
            Ok(tokens) => {
                let mut words = Vec::new();
                flatten(tokens, &mut words);
                Ok(words)
            }
            Err(error) => Err(error.to_string()),
        };
        Self {
            file: File {
                path: path.to_owned(),
                text: text.to_owned(),
            },
            words,
        }
    }

    pub fn words(&self) -> &[Word] {
        self.words.as_deref().unwrap_or_default()
    }

    /// The tokens before the unit tests, which come last.
    pub fn program_words(&self) -> &[Word] {
        let begins_tests = |at: &usize| {
            let after = self.words()[at + 7..].iter().map(|word| &*word.text);
            let mut after = after.skip_while(|word| ["pub", "(", "crate", ")"].contains(word));
            after.next() == Some("mod")
        };
        let tests = self
            .sequences(&["#", "[", "cfg", "(", "test", ")", "]"])
            .find(begins_tests);
        &self.words()[..tests.unwrap_or(self.words().len())]
    }

    /// The indices where a sequence of tokens begins.
    pub fn sequences<'a>(&'a self, sequence: &'a [&str]) -> impl Iterator<Item = usize> + 'a {
        let words = self.words().windows(sequence.len()).enumerate();
        words
            .filter(move |(_, words)| {
                words
                    .iter()
                    .zip(sequence)
                    .all(|(word, text)| word.text == *text)
            })
            .map(|(at, _)| at)
    }

    /// The tokens of each `#[…]` and `#![…]`, without the brackets.
    pub fn attributes(&self) -> impl Iterator<Item = &[Word]> {
        let words = self.words();
        words
            .iter()
            .enumerate()
            .filter(|(_, word)| word.text == "#")
            .filter_map(|(at, _)| {
                let open = at + 1 + usize::from(words.get(at + 1)?.text == "!");
                (words.get(open)?.text == "[").then(|| &words[open + 1..closing(words, open)])
            })
    }

    pub fn at(&self, word: &Word) -> String {
        format!("{}:{}", self.file.path, word.line)
    }
}

pub fn flatten(tokens: TokenStream, words: &mut Vec<Word>) {
    for token in tokens {
        let line = token.span().start().line;
        match token {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                words.push(Word {
                    text: open.to_owned(),
                    line,
                });
                flatten(group.stream(), words);
                words.push(Word {
                    text: close.to_owned(),
                    line: group.span_close().start().line,
                });
            }
            token => words.push(Word {
                text: token.to_string(),
                line,
            }),
        }
    }
}

/// The index of the bracket that closes the one at `open`.
pub fn closing(words: &[Word], open: usize) -> usize {
    let mut depth = 0usize;
    for (at, word) in words.iter().enumerate().skip(open) {
        match &*word.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    words.len()
}

/// The files of the repository that the rules read.
pub struct Tree {
    pub sources: Vec<Source>,
    pub manifests: Vec<File>,
    /// Other text: documentation and scripts.
    pub documents: Vec<File>,
    pub root_entries: Vec<String>,
    pub ignored: Vec<String>,
}

pub static TREE: LazyLock<Tree> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let gitignore =
        std::fs::read_to_string(root.join(".gitignore")).expect(".gitignore can be read");
    let ignored: Vec<_> = gitignore
        .lines()
        .map(|line| line.trim_matches('/').to_owned())
        .collect();
    let mut tree = Tree {
        sources: vec![],
        manifests: vec![],
        documents: vec![],
        root_entries: list(&root),
        ignored,
    };
    read(&mut tree, &root, "");
    tree
});

pub fn list(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder can be listed");
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<_> = entries
        .map(|entry| name(entry).into_string().expect("a name in UTF-8"))
        .collect();
    names.sort();
    names
}

pub fn read(tree: &mut Tree, folder: &Path, prefix: &str) {
    for name in list(folder) {
        let (path, on_disk) = (format!("{prefix}{name}"), folder.join(&name));
        if name == ".git" || tree.ignored.contains(&path) || tree.ignored.contains(&name) {
            continue;
        }
        if on_disk.is_dir() {
            read(tree, &on_disk, &format!("{path}/"));
        } else if prose::has_prose(&path) {
            let text = std::fs::read_to_string(&on_disk).expect("the file can be read");
            match &*name {
                "Cargo.toml" => tree.manifests.push(File { path, text }),
                name if name.ends_with(".rs") => tree.sources.push(Source::new(&path, &text)),
                _ => tree.documents.push(File { path, text }),
            }
        }
    }
}
