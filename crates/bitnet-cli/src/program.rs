//! [`Program`]: how this program was started: as a process of its own, or inside Python.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bitnet_guard::HelperProgram;

/// How the program was started.
#[derive(Debug)]
pub struct Program {
    /// The arguments; the first is the name of the program.
    pub arguments: Vec<OsString>,
    /// The file with the program's code, whose hash identifies the build; `None` if unknown.
    pub code: Option<PathBuf>,
    /// How to start the program again: the arguments of a command follow.
    pub again: HelperProgram,
}

static PROGRAM: OnceLock<Program> = OnceLock::new();

impl Program {
    /// The program of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let code = std::env::current_exe().ok();
        // On Linux the file that runs now, even if it was replaced since.
        let running = Path::new("/proc/self/exe");
        let path = match running.exists() {
            true => running.to_owned(),
            false => code.clone().unwrap_or_else(|| PathBuf::from("bitnet")),
        };
        Self {
            arguments: std::env::args_os().collect(),
            code,
            again: HelperProgram {
                path,
                arguments: Vec::new(),
            },
        }
    }

    /// Makes this the running program.
    ///
    /// # Panics
    /// If a program runs in this process already.
    pub(crate) fn start(self) {
        assert!(
            PROGRAM.set(self).is_ok(),
            "the program runs once in a process"
        );
    }

    /// The command that starts this program again with `arguments`.
    #[cfg(feature = "server")]
    pub(crate) fn command(&self, arguments: impl IntoIterator<Item = String>) -> HelperProgram {
        let mut command = self.again.clone();
        command.arguments.extend(arguments);
        command
    }
}

/// The running program.
pub(crate) fn running() -> &'static Program {
    PROGRAM.get_or_init(Program::of_process)
}
