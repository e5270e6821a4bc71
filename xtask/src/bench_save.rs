//! `xtask bench-save`: files what `cargo bench -- --save-baseline NAME` found, with what it was
//! found on.

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::WrongUsage;
use crate::baselines::{criterion_folder, folders, is_baseline_name, kept_folder, load};
use crate::circumstances::Circumstances;

#[derive(clap::Args)]
pub struct Options {
    /// The name given to `cargo bench -- --save-baseline`
    name: String,
    /// Replace a baseline of that name
    #[arg(long)]
    force: bool,
}

/// Copies the baseline to `benchmarks/baselines/NAME/criterion`, from where copying it back makes
/// it one again.
pub fn run(root: &Path, Options { name, force }: &Options) -> anyhow::Result<()> {
    if !is_baseline_name(name) {
        return Err(WrongUsage(format!("{name:?} is no name of a baseline")).into());
    }
    let (from, to) = (criterion_folder(root), kept_folder(root, name));
    let made = folders(&from, name)?;
    if made.is_empty() {
        // Says how to make one; a kept one is no reason to succeed.
        load(root, name)?;
        return Err(WrongUsage(format!(
            "there is nothing new under the name {name} in {}",
            from.display()
        ))
        .into());
    }
    if to.exists() {
        if !force {
            return Err(WrongUsage(format!(
                "{} is there already; --force replaces it",
                to.display()
            ))
            .into());
        }
        fs::remove_dir_all(&to).with_context(|| format!("removing {}", to.display()))?;
    }
    for folder in &made {
        let kept = to.join(folder.strip_prefix(&from)?);
        fs::create_dir_all(&kept).with_context(|| format!("making {}", kept.display()))?;
        for entry in fs::read_dir(folder)? {
            let file = entry?.path();
            fs::copy(&file, kept.join(file.file_name().unwrap_or_default()))
                .with_context(|| format!("copying {}", file.display()))?;
        }
    }
    let machine = to.with_file_name("machine.json");
    let text = serde_json::to_string_pretty(&Circumstances::now(root)?)? + "\n";
    fs::write(&machine, text).with_context(|| format!("writing {}", machine.display()))?;
    println!("{} benchmarks filed in {}", made.len(), to.display());
    Ok(())
}
