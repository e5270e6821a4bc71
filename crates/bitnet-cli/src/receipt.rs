//! `--receipt FILE`: writes a record of the run that others can check.

use std::path::Path;

use anyhow::Context;
use bitnet_inference::OpenModel;
use bitnet_kernels::GroupCodes;
use bitnet_models::{InputRounding, ModelInfo};
use bitnet_receipts::{Provenance, Receipt};

use crate::args::{ModelArguments, WrongUsage};

/// Checks that the folder of a receipt exists, before a run takes any time.
pub fn check_folder(path: Option<&Path>) -> anyhow::Result<()> {
    let folder = path
        .and_then(Path::parent)
        .filter(|folder| !folder.as_os_str().is_empty());
    match folder.filter(|folder| !folder.is_dir()) {
        None => Ok(()),
        Some(folder) => Err(WrongUsage(format!(
            "--receipt: there is no folder {}",
            folder.display()
        ))
        .into()),
    }
}

/// Refuses runs that no receipt covers, before they take any time. draft: the most tokens drafted
/// in a step.
pub fn check_covered(
    path: Option<&Path>,
    model: &ModelInfo,
    inputs: InputRounding,
    draft: usize,
) -> anyhow::Result<()> {
    let has_groups = || {
        let layouts = GroupCodes::ALL.map(GroupCodes::name);
        let mut packings = model.packing.split('+');
        packings.any(|packing| layouts.contains(&packing))
    };
    let problem = if inputs == InputRounding::None && has_groups() {
        "products with unrounded inputs (--group-inputs f32)"
    } else if model.config.linear.is_some() && draft > 0 {
        "drafts (--draft) of hybrid models"
    } else {
        return Ok(());
    };
    match path {
        None => Ok(()),
        Some(_) => Err(WrongUsage(format!("--receipt: receipts do not cover {problem}")).into()),
    }
}

/// The facts of a receipt about model and environment. Hashes the model's files. `seed_given`:
/// whether the user chose the seed.
pub fn provenance(
    model: &OpenModel,
    arguments: &ModelArguments,
    seed_given: bool,
) -> anyhow::Result<Provenance> {
    let known = Provenance::of(model, |name| std::env::var(name).ok())
        .with_context(|| format!("cannot read {}", model.source))?;
    Ok(Provenance {
        kernels_requested: arguments.kernels.map(|set| set.name.to_owned()),
        seed_given,
        ..known
    })
}

/// Writes a receipt.
pub fn write(receipt: &Receipt, path: &Path) -> anyhow::Result<()> {
    receipt
        .write(path)
        .with_context(|| format!("cannot write {}", path.display()))
}
