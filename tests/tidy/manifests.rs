//! Rules about manifests: reasons for dependencies, the arrows between crates, READMEs.

use super::ARROWS;
use super::tree::File;

/// A dependency in a manifest.
pub struct Dependency<'a> {
    line: usize,
    /// `dev-dependencies`, for instance.
    section: &'a str,
    name: &'a str,
    /// Whether it has a comment beside or above it, or needs none because the crate is ours or the
    /// workspace has the comment.
    has_reason: bool,
}

pub fn dependencies(manifest: &File) -> Vec<Dependency<'_>> {
    let (mut out, mut section, mut open, mut comment_above) = (Vec::new(), "", 0, false);
    for (index, line) in manifest.text.lines().enumerate() {
        let line = line.trim();
        if open == 0 && line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
        } else if let (0, Some((key, value)), true) = (
            open,
            line.split_once('='),
            section.ends_with("dependencies"),
        ) {
            let name = key.trim().split('.').next().unwrap_or_default();
            let inherited = key.contains(".workspace") || value.contains("workspace = true");
            let has_reason =
                comment_above || inherited || value.contains("# ") || value.contains("path = ");
            out.push(Dependency {
                line: index + 1,
                section,
                name,
                has_reason,
            });
        }
        let code = line.split('#').next().unwrap_or_default();
        open += code.matches(['[', '{']).count();
        open -= code.matches([']', '}']).count();
        comment_above = line.starts_with('#');
    }
    out
}

pub fn every_dependency_has_a_reason(manifests: &[File]) -> Vec<String> {
    let mut out = Vec::new();
    for manifest in manifests {
        for Dependency { line, name, .. } in dependencies(manifest)
            .iter()
            .filter(|dependency| !dependency.has_reason)
        {
            out.push(format!(
                "{}:{line}: say in a comment what {name} is for",
                manifest.path
            ));
        }
        for line in manifest
            .text
            .lines()
            .filter(|line| line.starts_with('[') && line.contains("dependencies."))
        {
            out.push(format!(
                "{}: {line}: write the dependency on one line, with its reason",
                manifest.path
            ));
        }
    }
    out
}

pub fn the_arrows_hold(manifests: &[File]) -> Vec<String> {
    let mut out = Vec::new();
    for manifest in manifests {
        let Some(package) = manifest
            .path
            .strip_prefix("crates/")
            .and_then(|path| path.strip_suffix("/Cargo.toml"))
        else {
            continue;
        };
        let Some((_, may_use)) = ARROWS.iter().find(|(name, _)| *name == package) else {
            out.push(format!(
                "{}: {package} is not on the map: use a crate that is, or draw it (ARROWS)",
                manifest.path
            ));
            continue;
        };
        for Dependency {
            line,
            section,
            name,
            ..
        } in dependencies(manifest)
        {
            let ours = name.starts_with("bitnet-")
                && !section.contains("dev-dependencies")
                && !may_use.contains(&name);
            if ours || name == "xtask" {
                let at = format!("{}:{line}", manifest.path);
                out.push(format!(
                    "{at}: {package} may not use {name}: move the code to where the arrows allow it"
                ));
            }
        }
    }
    out
}

/// `cargo bench` also runs every library and program without `bench = false`, with Cargo's own
/// harness, which rejects Criterion's arguments.
pub fn criterion_alone_benches(manifests: &[File]) -> Vec<String> {
    let crates = manifests
        .iter()
        .filter(|manifest| manifest.path.starts_with("crates/"));
    let broken =
        crates.filter(|manifest| !manifest.text.lines().any(|line| line == "bench = false"));
    broken
        .map(|manifest| {
            format!(
                "{}: say bench = false below [lib] or [[bin]]",
                manifest.path
            )
        })
        .collect()
}

pub fn every_package_has_a_readme(manifests: &[File], documents: &[File]) -> Vec<String> {
    let folders = manifests.iter().filter_map(|manifest| {
        let folder = manifest.path.strip_suffix("Cargo.toml")?;
        (!folder.is_empty()).then_some(folder)
    });
    let has_readme = |folder: &&str| {
        let readme = format!("{folder}README.md");
        documents.iter().any(|file| file.path == readme)
    };
    folders
        .filter(|folder| !has_readme(folder))
        .map(|folder| format!("{folder}README.md: say what the package is for, with an example"))
        .collect()
}
