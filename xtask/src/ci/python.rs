//! The tests in Python: clients of the server and comparisons of chat templates, with the released
//! packages that they need.
//!
//! `tests/FOLDER/test_NAME.py` runs with `requirements-NAME.txt` if that file exists, else with
//! `requirements.txt`, each in an environment of its own under `target/tools`. The tests of the
//! package `bitnet-rs`, in `crates/bitnet-python/tests`, do the same, with the package's wheel.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::steps::{Step, names, on_path, shown, skipped, step, succeed};

/// Folders below `tests` with tests in Python.
const FOLDERS: [&str; 2] = ["clients", "templates"];

/// Runs all test files. Returns the versions of the packages that the requirements name, by
/// environment.
pub fn run(root: &Path, steps: &mut Vec<Step>) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let program = build(root)?;
    let wheels = build_wheel(root, steps);
    let browser = chromium();
    let packages = npm_packages(root);
    let mut versions = BTreeMap::new();
    if let Ok(packages) = &packages {
        versions.insert("clients-npm".to_owned(), npm_versions(packages)?);
    }
    for folder in FOLDERS {
        let path = root.join("tests").join(folder);
        if !path.is_dir() {
            println!("\n== tests/{folder} does not exist, skipped");
            continue;
        }
        for name in names(&path, "test_", "py")? {
            let requirements = requirements(&path, &name);
            let environment = Environment::open(root, folder, &requirements)?;
            versions.insert(environment.name.clone(), environment.versions()?);
            let mut command = Command::new(&environment.python);
            command.current_dir(root).env("BITNET", &program);
            command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]);
            command.arg(format!("tests/{folder}/{name}.py"));
            if name == "test_eval" {
                succeed(&mut environment.install_package(&wheels))?;
            }
            let needs = match &*name {
                "test_page" => Some(("CHROMIUM", &browser)),
                "test_ai_sdk" | "test_ollama_js" => Some(("NPM_PACKAGES", &packages)),
                _ => None,
            };
            match needs {
                Some((variable, Ok(place))) => drop(command.env(variable, place)),
                Some((_, Err(problem))) => {
                    steps.push(skipped(&command, format!("{problem:#}")));
                    continue;
                }
                None => {}
            }
            steps.push(step(&mut command));
        }
    }
    test_package(root, &program, &wheels, steps, &mut versions)?;
    Ok(versions)
}

/// Lints the package `bitnet-rs`, which `.ci/run` leaves out, and builds its wheel. Returns the
/// folder of the wheel.
fn build_wheel(root: &Path, steps: &mut Vec<Step>) -> PathBuf {
    let mut clippy = Command::new("cargo");
    clippy.current_dir(root).args(["clippy", "--locked"]);
    clippy.args(["-p", "bitnet-python", "--features", "extension"]);
    steps.push(step(clippy.args(["--", "-D", "warnings"])));
    let wheels = root.join("target/tools/wheels");
    let mut wheel = Command::new("python3");
    wheel.current_dir(root).args(["-m", "pip", "wheel"]);
    wheel.args(["--disable-pip-version-check", "--no-deps", ".", "-w"]);
    steps.push(step(wheel.arg(&wheels)));
    wheels
}

/// Runs the tests of the package `bitnet-rs`.
fn test_package(
    root: &Path,
    program: &Path,
    wheels: &Path,
    steps: &mut Vec<Step>,
    versions: &mut BTreeMap<String, Vec<String>>,
) -> anyhow::Result<()> {
    let tests = root.join("crates/bitnet-python/tests");
    for name in names(&tests, "test_", "py")? {
        let environment = Environment::open(root, "python", &requirements(&tests, &name))?;
        versions.insert(environment.name.clone(), environment.versions()?);
        succeed(&mut environment.install_package(wheels))?;
        let mut command = Command::new(&environment.python);
        command.current_dir(&tests).env("BITNET", program);
        command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]);
        steps.push(step(command.arg(format!("{name}.py"))));
    }
    Ok(())
}

/// Builds `bitnet` in release mode. Returns its path, which only Cargo knows.
fn build(root: &Path) -> anyhow::Result<PathBuf> {
    let mut command = Command::new("cargo");
    command.current_dir(root);
    command.args(["build", "--release", "--locked", "-p", "bitnet-cli"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.context("running cargo")?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        shown(&command),
        output.status
    );
    let messages = String::from_utf8(output.stdout).context("reading the output of cargo")?;
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .next_back()
        .context("cargo built no program")
}

/// The requirements file of a test file.
fn requirements(folder: &Path, test: &str) -> PathBuf {
    let name = test.trim_start_matches("test_").replace('_', "-");
    let own = folder.join(format!("requirements-{name}.txt"));
    match own.is_file() {
        true => own,
        false => folder.join("requirements.txt"),
    }
}

/// A Python environment with the packages of a requirements file.
struct Environment {
    name: String,
    python: PathBuf,
    requirements: String,
}

impl Environment {
    /// Opens the environment; makes it if it is missing or the requirements have changed.
    fn open(root: &Path, folder: &str, requirements: &Path) -> anyhow::Result<Self> {
        let read = |path: &Path| {
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
        };
        let stem = requirements
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy();
        let name = format!("{folder}-{stem}");
        let place = root.join("target/tools").join(&name);
        let environment = Self {
            name,
            python: place.join("bin/python"),
            requirements: read(requirements)?,
        };
        let installed = place.join("installed.txt");
        if read(&installed).is_ok_and(|installed| installed == environment.requirements) {
            // The newest releases are what users install today.
            if let Err(error) = succeed(environment.install(requirements).arg("--upgrade")) {
                println!("kept the versions that are installed: {error:#}");
            }
            return Ok(environment);
        }
        succeed(
            Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&place),
        )?;
        succeed(&mut environment.install(requirements))?;
        fs::write(&installed, &environment.requirements)
            .with_context(|| format!("writing {}", installed.display()))?;
        Ok(environment)
    }

    /// The command that installs the packages of a requirements file.
    fn install(&self, requirements: &Path) -> Command {
        let mut install = Command::new(&self.python);
        install.args(["-m", "pip", "install", "-q", "--disable-pip-version-check"]);
        install.arg("-r").arg(requirements);
        install
    }

    /// The command that installs the package `bitnet-rs` from a folder with its wheel.
    fn install_package(&self, wheels: &Path) -> Command {
        let mut install = Command::new(&self.python);
        install.args(["-m", "pip", "install", "-q", "--disable-pip-version-check"]);
        install.args(["--no-index", "--no-deps", "--force-reinstall"]);
        install.arg("--find-links").arg(wheels).arg("bitnet-rs");
        install
    }

    /// `NAME==VERSION` of each package that the requirements name.
    fn versions(&self) -> anyhow::Result<Vec<String>> {
        let mut list = Command::new(&self.python);
        list.args(["-m", "pip", "list", "--format=freeze"]);
        let output = list.arg("--disable-pip-version-check").output();
        let output = output.with_context(|| format!("running {}", shown(&list)))?;
        ensure!(output.status.success(), "{} failed", shown(&list));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(named_versions(&text, &self.requirements))
    }
}

/// The lines `NAME==VERSION` whose package the requirements name.
fn named_versions(installed: &str, requirements: &str) -> Vec<String> {
    let normal = |name: &str| name.to_ascii_lowercase().replace(['_', '.'], "-");
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let named: Vec<String> = requirements
        .lines()
        .map(|line| line.trim().split(|c| !is_name(c)).next().unwrap_or(""))
        .filter(|name| !name.is_empty())
        .map(normal)
        .collect();
    let is_named = |line: &&str| {
        line.split_once("==")
            .is_some_and(|(name, _)| named.contains(&normal(name)))
    };
    installed
        .lines()
        .filter(is_named)
        .map(str::to_owned)
        .collect()
}

/// A folder with the packages of `tests/clients/package.json`, in their newest releases.
fn npm_packages(root: &Path) -> anyhow::Result<PathBuf> {
    let npm = on_path("npm", None).context("there is no npm")?;
    let place = root.join("target/tools/clients-npm");
    fs::create_dir_all(&place).with_context(|| format!("creating {}", place.display()))?;
    let list = root.join("tests/clients/package.json");
    fs::copy(&list, place.join("package.json"))
        .with_context(|| format!("copying {}", list.display()))?;
    let mut install = Command::new(npm);
    install.current_dir(&place);
    install.args(["update", "--silent", "--no-audit", "--no-fund"]);
    succeed(&mut install)?;
    Ok(place)
}

/// `NAME==VERSION` of each package that `package.json` names.
fn npm_versions(place: &Path) -> anyhow::Result<Vec<String>> {
    let read = |path: PathBuf| -> anyhow::Result<Value> {
        let text = fs::read_to_string(&path);
        let text = text.with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
    };
    let list = read(place.join("package.json"))?;
    let names = list["dependencies"].as_object().into_iter().flatten();
    names
        .map(|(name, _)| {
            let package = read(place.join("node_modules").join(name).join("package.json"))?;
            let version = package["version"].as_str().unwrap_or("?");
            Ok(format!("{name}=={version}"))
        })
        .collect()
}

/// Path of Chromium: on PATH, or from Debian's package if it can be installed.
fn chromium() -> anyhow::Result<PathBuf> {
    let known = || {
        ["chromium", "chromium-browser", "google-chrome"]
            .into_iter()
            .find_map(|name| on_path(name, None))
    };
    if let Some(found) = known() {
        return Ok(found);
    }
    on_path("apt-get", None).context("there is no Chromium, and no apt-get to install it")?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    install.args([
        "install",
        "-y",
        "-qq",
        "--no-install-recommends",
        "chromium",
    ]);
    succeed(Command::new("apt-get").args(["update", "-qq"]))
        .and_then(|()| succeed(&mut install))
        .context("Chromium is missing and cannot be installed")?;
    known().context("the package chromium has no Chromium")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_listed_for_the_packages_that_the_requirements_name() {
        let installed = "anyio==4.9.0\nLangChain_OpenAI==1.2.0\nopenai==3.1.0\npytest==8.4.0\n";
        let requirements = "# why\nlangchain-openai==1.*\nopenai[extra]>=3 # newest\n\npytest\n";
        assert_eq!(
            named_versions(installed, requirements),
            ["LangChain_OpenAI==1.2.0", "openai==3.1.0", "pytest==8.4.0"]
        );
    }

    #[test]
    fn versions_of_npm_packages_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        let package = folder.path().join("node_modules/@ai-sdk/openai");
        fs::create_dir_all(&package).unwrap();
        fs::write(package.join("package.json"), r#"{"version": "4.0.118"}"#).unwrap();
        let list = r#"{"dependencies": {"@ai-sdk/openai": "*"}}"#;
        fs::write(folder.path().join("package.json"), list).unwrap();
        assert_eq!(
            npm_versions(folder.path()).unwrap(),
            ["@ai-sdk/openai==4.0.118"]
        );
    }

    #[test]
    fn a_test_file_uses_its_own_requirements_if_there_are_some() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("requirements-lm-eval.txt");
        fs::write(&own, "").unwrap();
        assert_eq!(requirements(folder.path(), "test_lm_eval"), own);
        assert_eq!(
            requirements(folder.path(), "test_openai"),
            folder.path().join("requirements.txt")
        );
    }
}
