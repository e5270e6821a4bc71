//! Rules about files: where they lie, and that Cargo reaches them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use super::ROOT;
use super::tree::{File, Source};

pub fn root_holds_only_what_is_listed(entries: &[String], ignored: &[String]) -> Vec<String> {
    let known = |entry: &&String| ROOT.contains(&&***entry) || ignored.contains(entry);
    let stray = entries.iter().filter(|entry| !known(entry));
    stray
        .map(|entry| format!("{entry}: move it into a folder, or list it in ROOT of tests/tidy.rs"))
        .collect()
}

pub fn every_file_is_rust(sources: &[Source]) -> Vec<String> {
    let error = |source: &Source| {
        source
            .words
            .as_ref()
            .err()
            .map(|error| format!("{}: {error}", source.file.path))
    };
    sources.iter().filter_map(error).collect()
}

pub fn every_file_says_what_it_is_for(sources: &[Source]) -> Vec<String> {
    let bare = sources
        .iter()
        .filter(|source| !source.file.text.starts_with("//!"));
    bare.map(|source| {
        format!(
            "{}: begin it with `//!` and what it is for",
            source.file.path
        )
    })
    .collect()
}

pub fn every_file_is_reached(sources: &[Source], manifests: &[File]) -> Vec<String> {
    let by_path: BTreeMap<_, _> = sources
        .iter()
        .map(|source| (&*source.file.path, source))
        .collect();
    let roots: BTreeSet<String> = manifests
        .iter()
        .flat_map(|manifest| crate_roots(manifest, sources))
        .collect();
    let mut reached = BTreeSet::new();
    let mut open: Vec<String> = roots.iter().cloned().collect();
    while let Some(path) = open.pop() {
        if let Some(source) = by_path.get(&*path)
            && reached.insert(path.clone())
        {
            open.extend(modules(source, roots.contains(&path)));
        }
    }
    let lost = by_path.keys().filter(|path| !reached.contains(**path));
    lost.map(|path| {
        format!(
            "{path}: no crate root reaches it: add a `mod` or a `path` in Cargo.toml, or delete it"
        )
    })
    .collect()
}

/// The crate roots that Cargo finds by itself, and the ones that the manifest names.
pub fn crate_roots(manifest: &File, sources: &[Source]) -> Vec<String> {
    let package = manifest
        .path
        .strip_suffix("Cargo.toml")
        .expect("a manifest's path");
    let found = sources
        .iter()
        .map(|source| &source.file.path)
        .filter(|path| {
            let inside = path.strip_prefix(package).filter(|_| !package.is_empty());
            let parts: Vec<_> = inside
                .into_iter()
                .flat_map(|inside| inside.split('/'))
                .collect();
            matches!(
                parts[..],
                ["build.rs"]
                    | ["src", "lib.rs" | "main.rs"]
                    | ["src", "bin", _]
                    | ["src", "bin", _, "main.rs"]
                    | ["tests" | "benches" | "examples", _]
                    | ["tests" | "benches" | "examples", _, "main.rs"]
            )
        });
    let mut target = false;
    let named = manifest.text.lines().filter_map(|line| {
        if line.starts_with('[') {
            target =
                ["[lib]", "[[bin]]", "[[test]]", "[[bench]]", "[[example]]"].contains(&line.trim());
        }
        let path = line
            .strip_prefix("path = \"")
            .filter(|_| target)?
            .split('"')
            .next()?;
        Some(joined(package, path))
    });
    found.cloned().chain(named).collect()
}

/// `path` from `folder`, with its `..` resolved.
pub fn joined(folder: &str, path: &str) -> String {
    let mut out = PathBuf::new();
    for part in Path::new(folder).join(path).components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            part => out.push(part),
        }
    }
    out.to_str().expect("made of strings").to_owned()
}

/// The files that `mod name;` in a file can refer to.
pub fn modules(source: &Source, is_root: bool) -> Vec<String> {
    let (folder, name) = source
        .file
        .path
        .rsplit_once('/')
        .unwrap_or(("", &source.file.path));
    let home = match is_root || name == "mod.rs" {
        true => folder.to_owned(),
        false => source.file.path.trim_end_matches(".rs").to_owned(),
    };
    let (mut depth, mut inline, mut out) = (0, Vec::<(usize, &str)>::new(), Vec::new());
    for (at, words) in source.words().windows(3).enumerate() {
        match [&*words[0].text, &words[1].text, &words[2].text] {
            ["mod", name, "{"] => inline.push((depth, name)),
            ["mod", name, ";"] => {
                let inside: String = inline.iter().map(|(_, name)| format!("{name}/")).collect();
                out.push(format!("{home}/{inside}{name}.rs"));
                out.push(format!("{home}/{inside}{name}/mod.rs"));
                // `#[path = "…"] mod name;`, from the file's folder.
                if let ["path", "=", path, "]"] = source.words()[at.saturating_sub(4)..at]
                    .iter()
                    .map(|word| &*word.text)
                    .collect::<Vec<_>>()[..]
                {
                    out.push(joined(folder, path.trim_matches('"')));
                }
            }
            ["{", ..] => depth += 1,
            ["}", ..] => {
                depth -= 1;
                inline.pop_if(|(outside, _)| *outside == depth);
            }
            _ => {}
        }
    }
    out
}
