//! `xtask bench save`: records a baseline of `cargo bench -- --save-baseline NAME`.

use std::path::{Path, PathBuf};

use super::baselines::{check_name, criterion_folder, load, read_folders};
use super::record;
use crate::WrongUsage;
use crate::circumstances::Circumstances;

#[derive(clap::Args)]
pub struct Options {
    /// The name given to `cargo bench -- --save-baseline`
    name: String,
    /// Name of this machine, the folder under benchmarks/record (default: from the CPU's name)
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,
    /// Folder of the record (default: benchmarks/record)
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// Replace a recorded baseline of the same name
    #[arg(long)]
    force: bool,
}

/// Adds the baseline to `benchmarks/record/MACHINE/DATE.csv`.
pub fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    let name = &options.name;
    check_name(name)?;
    let folder = record::folder(root, options.record.as_deref());
    let criterion = criterion_folder(root);
    let findings = read_folders(&criterion, name)?;
    if findings.is_empty() {
        // Without a record of this name either, this fails and says how to make one. A record does
        // not count as success.
        load(root, &folder, name)?;
        let problem = format!("{} has no baseline {name}", criterion.display());
        return Err(WrongUsage(problem).into());
    }
    if let Some((path, _)) = record::find(&folder, name)?.filter(|_| !options.force) {
        let problem = format!(
            "the baseline {name} is already recorded in {}; --force replaces it",
            path.display()
        );
        return Err(WrongUsage(problem).into());
    }
    let now = Circumstances::now(root)?;
    let machine = options.machine.clone();
    let machine = machine.unwrap_or_else(|| machine_name(&now.cpu));
    check_name(&machine)?;
    let path = record::put(
        &folder,
        [&machine, now.day()],
        name,
        &now.to_string(),
        &findings,
    )?;
    println!(
        "{} benchmarks recorded in {}",
        findings.len(),
        path.display()
    );
    Ok(())
}

/// `AMD EPYC 9354P 32-Core` → `amd-epyc-9354p-32-core`
fn machine_name(cpu: &str) -> String {
    let words = cpu.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<String> = words
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    match words.is_empty() {
        true => "unknown".to_owned(),
        false => words.join("-"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_machine_is_its_cpu_in_lower_case() {
        assert_eq!(
            machine_name("Intel(R) Core(TM) i7 @ 2.60GHz"),
            "intel-r-core-tm-i7-2-60ghz"
        );
        assert_eq!(machine_name(""), "unknown");
    }
}
