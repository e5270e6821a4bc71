//! The rules about imports: a file uses its own storey and lower ones, and imports form no large
//! circle.

use std::collections::{BTreeMap, BTreeSet};

use super::tree::{Source, Word, closing};
use super::{ARROWS, CIRCLE_FILES_MAX, STOREYS};

/// For each file of a package's `src`, the files of `src` that it imports.
pub fn imports<'a>(sources: &'a [Source], package: &str) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let src = format!("crates/{package}/src/");
    let inside: Vec<(Vec<&str>, &Source)> = sources
        .iter()
        .filter_map(|source| Some((source.file.path.strip_prefix(&*src)?, source)))
        .map(|(path, source)| (module_path(path), source))
        .collect();
    let by_module: BTreeMap<&[&str], &str> = inside
        .iter()
        .map(|(module, source)| (&**module, &*source.file.path))
        .collect();
    let of_file = |(module, source): &(Vec<&'a str>, &'a Source)| {
        let used = used_paths(source.program_words(), module, &by_module);
        let files = used.iter().filter_map(|path| {
            (0..=path.len())
                .rev()
                .find_map(|len| by_module.get(&path[..len]))
                .copied()
        });
        let others = files.filter(|file| *file != source.file.path);
        (&*source.file.path, others.collect())
    };
    inside.iter().map(of_file).collect()
}

/// The module path of a file of `src`: `a::b` for `a/b.rs` and `a/b/mod.rs`.
pub fn module_path(path: &str) -> Vec<&str> {
    let mut parts: Vec<_> = path.trim_end_matches(".rs").split('/').collect();
    parts.pop_if(|last| ["mod", "lib", "main"].contains(last));
    parts
}

/// The paths that begin with `crate`, `super` or a child of this module, relative to the crate's
/// root.
pub fn used_paths<'a>(
    words: &'a [Word],
    module: &[&'a str],
    modules: &BTreeMap<&[&'a str], &str>,
) -> Vec<Vec<&'a str>> {
    let mut out = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let is = |at: usize, text: &str| words.get(at).is_some_and(|word| word.text == text);
        let begins_a_path = is(at + 1, ":") && is(at + 2, ":") && !(at > 0 && is(at - 1, ":"));
        let child = [module, &[&*word.text]].concat();
        let base = match &*word.text {
            _ if !begins_a_path => continue,
            "crate" => vec![],
            "super" => module[..module.len().saturating_sub(1)].to_vec(),
            _ if modules.contains_key(&*child) => child,
            _ => continue,
        };
        expand(&words[at + 3..], base, &mut out);
    }
    out
}

/// Follows a path, and the braces of a `use`, from the word after its first `::`.
pub fn expand<'a>(words: &'a [Word], mut path: Vec<&'a str>, out: &mut Vec<Vec<&'a str>>) {
    let Some(first) = words.first() else { return };
    if first.text == "{" {
        let end = closing(words, 0);
        let mut at = 1;
        while at < end {
            expand(&words[at..end], path.clone(), out);
            let mut depth = 0;
            while at < end && !(depth == 0 && words[at].text == ",") {
                depth += i32::from(words[at].text == "{") - i32::from(words[at].text == "}");
                at += 1;
            }
            at += 1;
        }
        return;
    }
    match &*first.text {
        "super" => drop(path.pop()),
        "self" => {}
        name => path.push(name),
    }
    match words {
        [_, a, b, rest @ ..] if a.text == ":" && b.text == ":" => expand(rest, path, out),
        _ => out.push(path),
    }
}

pub fn the_storeys_hold(sources: &[Source]) -> Vec<String> {
    let mut out = Vec::new();
    for (package, storeys) in STOREYS {
        let src = format!("crates/{package}/src/");
        let storey_of = |file: &str| {
            let inside = file.strip_prefix(&*src)?;
            storeys.iter().position(|storey| {
                inside
                    .strip_prefix(storey)
                    .is_some_and(|rest| rest.starts_with('/'))
            })
        };
        let imports = imports(sources, package);
        for (file, used) in &imports {
            for used in used {
                if let (Some(own), Some(other)) = (storey_of(file), storey_of(used))
                    && other > own
                {
                    out.push(format!(
                        "{file}: uses {used}, a storey above it: move the code up or what it uses down"
                    ));
                }
            }
        }
    }
    out
}

/// In every crate, few files import one another in a circle.
pub fn circles_are_small(sources: &[Source]) -> Vec<String> {
    let mut out = Vec::new();
    for (package, _) in ARROWS {
        for circle in circles(&imports(sources, package)) {
            if circle.len() > CIRCLE_FILES_MAX {
                let files: Vec<_> = circle.into_iter().collect();
                out.push(format!(
                    "{}: {} files import one another in a circle: move what they share to a file below them, and import it from there",
                    files.join(", "),
                    files.len()
                ));
            }
        }
    }
    out
}

/// The sets of two or more files that reach each other by imports.
pub fn circles<'a>(imports: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<BTreeSet<&'a str>> {
    let reach = |from: &'a str| {
        let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            for next in imports.get(file).into_iter().flatten() {
                if reached.insert(*next) {
                    open.push(next);
                }
            }
        }
        reached
    };
    let reached: BTreeMap<_, _> = imports.keys().map(|file| (*file, reach(file))).collect();
    let circle_of = |(file, reached_from): (&&'a str, &BTreeSet<&'a str>)| {
        let back = |other: &&&str| reached.get(**other).is_some_and(|set| set.contains(file));
        reached_from
            .iter()
            .filter(back)
            .copied()
            .collect::<BTreeSet<_>>()
    };
    reached
        .iter()
        .map(circle_of)
        .filter(|circle| circle.len() > 1)
        .collect()
}
