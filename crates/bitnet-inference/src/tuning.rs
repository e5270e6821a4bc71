//! [`Tuning`]: the file in which `bitnet tune` remembers the fastest ternary kernel for each matrix
//! shape, for each CPU, instruction set and number of threads.

use std::path::{Path, PathBuf};

use bitnet_kernels::Packing;
use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::machine::cpu_name;

/// How ternary weights are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TernaryKernel {
    /// By int8 products.
    I2s,
    /// By looking up products in tables, as the TL1 format allows.
    Tl1,
    /// By looking up products in tables, as the TL2 format allows.
    Tl2,
}

impl TernaryKernel {
    /// All kernels.
    pub const ALL: [Self; 3] = [Self::I2s, Self::Tl1, Self::Tl2];

    /// The name in options and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::I2s => "i2s",
            Self::Tl1 => "tl1",
            Self::Tl2 => "tl2",
        }
    }

    /// The packing of weights for this kernel; `i2s` is the packing for [`Self::I2s`].
    #[must_use]
    pub fn packing(self, i2s: Packing) -> Packing {
        match self {
            Self::I2s => i2s,
            Self::Tl1 => Packing::Tl1,
            Self::Tl2 => Packing::Tl2,
        }
    }
}

/// The time of one product with one token for each kernel, for matrices of one shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TunedShape {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// The fastest kernel.
    pub fastest: TernaryKernel,
    /// Microseconds with int8 products.
    pub i2s_us: f64,
    /// Microseconds with TL1 tables.
    pub tl1_us: f64,
    /// Microseconds with TL2 tables.
    pub tl2_us: f64,
}

/// The measurements on one CPU with one instruction set and number of threads.
#[derive(Serialize, Deserialize)]
struct TunedMachine {
    cpu: String,
    kernels: String,
    threads: usize,
    shapes: Vec<TunedShape>,
}

impl TunedMachine {
    fn is_this(&self, device: Device) -> bool {
        self.cpu == cpu_name()
            && self.kernels == device.kernels().name
            && self.threads == device.threads()
    }
}

/// The contents of a tuning file.
#[derive(Serialize, Deserialize)]
pub struct Tuning {
    /// The version of the program that measured. The kernels of other versions differ in speed, so
    /// their measurements are not used.
    version: String,
    machines: Vec<TunedMachine>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            machines: Vec::new(),
        }
    }
}

impl Tuning {
    /// The file of the measurements: `bitnet/tuning.json` in the user's cache folder. `variable`
    /// returns the value of an environment variable. `None` if the variables name no folder.
    #[must_use]
    pub fn path(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
        let cache = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
        let cache = cache.or_else(|| Some(variable("HOME")?.join(".cache")))?;
        Some(cache.join("bitnet/tuning.json"))
    }

    /// Reads a file. Returns an empty tuning if there is no file, or another version of the program
    /// wrote it.
    ///
    /// # Errors
    /// If the file cannot be read or is damaged.
    pub fn read(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            text => text.map_err(|source| Error::TuningFile {
                path: path.to_owned(),
                source,
            })?,
        };
        let tuning: Self = serde_json::from_str(&text).map_err(|source| Error::DamagedTuning {
            path: path.to_owned(),
            source,
        })?;
        if tuning.version == env!("CARGO_PKG_VERSION") {
            Ok(tuning)
        } else {
            Ok(Self::default())
        }
    }

    /// The fastest packing for each shape measured on this machine, for
    /// [`LoadOptions::packings`](bitnet_models::LoadOptions::packings); empty without measurements.
    #[must_use]
    pub fn packings(&self, device: Device) -> Vec<((usize, usize), Packing)> {
        let machine = self.machines.iter().find(|machine| machine.is_this(device));
        machine
            .map_or(&[][..], |machine| &machine.shapes)
            .iter()
            .map(|shape| {
                let packing = shape.fastest.packing(device.kernels().packing);
                ((shape.rows, shape.cols), packing)
            })
            .collect()
    }

    /// Adds measurements on this machine and replaces older ones of the same shapes.
    pub fn add(&mut self, device: Device, shapes: &[TunedShape]) {
        let known = self.shapes_of(device);
        known.retain(|old| {
            !shapes
                .iter()
                .any(|new| (new.rows, new.cols) == (old.rows, old.cols))
        });
        known.extend_from_slice(shapes);
    }

    /// The shapes measured on this machine. Adds the machine if it is new.
    fn shapes_of(&mut self, device: Device) -> &mut Vec<TunedShape> {
        let index = self
            .machines
            .iter()
            .position(|machine| machine.is_this(device))
            .unwrap_or_else(|| {
                self.machines.push(TunedMachine {
                    cpu: cpu_name(),
                    kernels: device.kernels().name.to_owned(),
                    threads: device.threads(),
                    shapes: Vec::new(),
                });
                self.machines.len() - 1
            });
        &mut self.machines[index].shapes
    }

    /// Writes the file atomically, and its folder if there is none.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let write = || {
            let folder = path.parent().unwrap_or(Path::new("."));
            std::fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.persist(path)?;
            Ok(())
        };
        write().map_err(|source| Error::TuningFile {
            path: path.to_owned(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(rows: usize, fastest: TernaryKernel) -> TunedShape {
        TunedShape {
            rows,
            cols: 32,
            fastest,
            i2s_us: 1.0,
            tl1_us: 2.0,
            tl2_us: 3.0,
        }
    }

    #[test]
    fn measurements_are_found_on_the_same_machine_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new/tuning.json");
        assert!(
            Tuning::read(&path)
                .expect("no file is no error")
                .machines
                .is_empty()
        );
        let device = Device::cpu;
        let mut tuning = Tuning::default();
        tuning.add(
            device(2),
            &[shape(8, TernaryKernel::I2s), shape(16, TernaryKernel::Tl2)],
        );
        tuning.add(device(2), &[shape(8, TernaryKernel::Tl1)]);
        tuning.write(&path).expect("it can be written");
        let read = Tuning::read(&path).expect("it can be read");
        assert_eq!(
            read.packings(device(2)),
            [((16, 32), Packing::Tl2), ((8, 32), Packing::Tl1)]
        );
        assert_eq!(read.packings(device(3)), []);
    }

    #[test]
    fn files_of_other_versions_are_ignored_and_damaged_files_are_errors() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tuning.json");
        let device = Device::cpu;
        let mut tuning = Tuning::default();
        tuning.add(device(1), &[shape(8, TernaryKernel::Tl1)]);
        "0.0.0".clone_into(&mut tuning.version);
        tuning.write(&path).expect("it can be written");
        assert_eq!(
            Tuning::read(&path)
                .expect("it can be read")
                .packings(device(1)),
            []
        );
        std::fs::write(&path, "{").expect("it can be written");
        let error = Tuning::read(&path).err().expect("damaged").to_string();
        assert!(error.contains("tuning.json"), "{error}");
    }
}
