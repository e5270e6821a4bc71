//! Replaces the part of a document between `<!-- xtask NAME -->` and `<!-- end -->`.

use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::Context;

/// The byte range of the part with that name.
pub fn place(text: &str, name: &str) -> anyhow::Result<Range<usize>> {
    let (begin, end) = (format!("<!-- xtask {name} -->\n"), "<!-- end -->\n");
    let start = text.find(&begin).map(|at| at + begin.len());
    let place = start.and_then(|start| Some(start..start + text[start..].find(end)?));
    place.with_context(|| format!("the lines {begin:?} and {end:?} are missing"))
}

/// Replaces the part with that name.
pub fn write(path: &Path, name: &str, new: &str) -> anyhow::Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let place = place(&text, name).with_context(|| path.display().to_string())?;
    fs::write(
        path,
        [&text[..place.start], new, &text[place.end..]].concat(),
    )
    .with_context(|| format!("writing {}", path.display()))
}
