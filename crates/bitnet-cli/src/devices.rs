//! `bitnet devices`: lists the devices that can run a model.

use std::io::Write;

use bitnet_inference::{AdapterFacts, GPU_SUPPORT, adapters, cpu_name};
use bitnet_kernels::{KernelSet, default_threads};
use serde_json::{Value, json};

use crate::args::DevicesArguments;

/// Prints the CPU and the GPUs.
pub fn devices(arguments: &DevicesArguments) -> anyhow::Result<()> {
    let (set, gpus) = (KernelSet::detect(), adapters());
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let cpu = json!({
            "device": "cpu",
            "name": cpu_name(),
            "kernels": set.name,
            "threads": default_threads(),
        });
        let gpus: Vec<Value> = gpus.iter().map(gpu_json).collect();
        let object = json!({ "cpu": cpu, "gpus": gpus, "gpu_support": GPU_SUPPORT });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    let threads = default_threads();
    writeln!(
        out,
        "cpu     {} · {} kernels · {threads} threads",
        cpu_name(),
        set.name
    )?;
    for gpu in &gpus {
        writeln!(out, "{}", gpu_line(gpu))?;
    }
    if !GPU_SUPPORT {
        writeln!(
            out,
            "this program was built without support for GPUs (feature gpu)"
        )?;
    } else if gpus.is_empty() {
        writeln!(
            out,
            "no GPU was found: Vulkan needs its loader (libvulkan1) and a driver"
        )?;
    }
    Ok(())
}

fn gpu_line(gpu: &AdapterFacts) -> String {
    let name = if gpu.is_software || gpu.missing.is_some() {
        "NAME"
    } else {
        "gpu"
    };
    let lacks = gpu.missing.as_ref();
    let lacks = lacks.map_or_else(String::new, |missing| {
        format!(" · cannot run: no {missing}")
    });
    format!(
        "{name:7} {} · {} · {} · {}{lacks}",
        gpu.name, gpu.kind, gpu.interface, gpu.driver
    )
}

fn gpu_json(gpu: &AdapterFacts) -> Value {
    json!({
        "device": "gpu",
        "name": gpu.name,
        "kind": gpu.kind,
        "interface": gpu.interface,
        "driver": gpu.driver,
        "software": gpu.is_software,
        "binding_bytes_max": gpu.binding_bytes_max,
        "missing": gpu.missing,
    })
}
