//! Passes the compiler's version and target to the crate, for receipts.

use std::process::Command;

fn main() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let rustc = Command::new(variable("RUSTC")).arg("--version").output();
    let version = rustc.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    println!(
        "cargo::rustc-env=BITNET_RUST_VERSION={}",
        version.unwrap_or_else(|_| "unknown".to_owned())
    );
    println!(
        "cargo::rustc-env=BITNET_OS={}-{}",
        variable("CARGO_CFG_TARGET_OS"),
        variable("CARGO_CFG_TARGET_ARCH")
    );
    println!("cargo::rerun-if-changed=build.rs");
}
