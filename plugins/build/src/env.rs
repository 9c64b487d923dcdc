//! The project's own environment for tools, `.env/` unless `TRT_OPT_ENV` names another folder.

use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone, Debug)]
pub struct Environment {
    pub folder: PathBuf,
    /// Whether missing packages may be installed.
    pub install: bool,
}

impl Environment {
    pub fn new(root: &Path, install: bool) -> Self {
        let folder = std::env::var_os("TRT_OPT_ENV").map_or_else(|| root.join(".env"), PathBuf::from);
        Environment { folder, install }
    }
}

/// Runs a command to its end and gives its standard output; an error holds the command and what it printed.
pub fn run(command: &mut Command) -> Result<String, String> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|e| format!("{shown}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    Err(format!("{shown}: {}\n{}", output.status, text.join("\n").trim()))
}

/// The site-packages folder of a virtual environment `name` that holds exactly `packages` (pinned, `name==version`),
/// made if it is not there. `None` if it is not there and nothing may be installed.
pub fn python_packages(environment: &Environment, name: &str, packages: &[&str]) -> Result<Option<PathBuf>, String> {
    let folder = environment.folder.join(name);
    let stamp = folder.join("packages.txt");
    let wanted = packages.join("\n") + "\n";
    let complete = std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted);
    if !complete {
        if !environment.install {
            return Ok(None);
        }
        let python = if folder.join("bin/python").exists() {
            folder.join("bin/python")
        } else {
            std::fs::create_dir_all(&environment.folder)
                .map_err(|e| format!("{}: {e}", environment.folder.display()))?;
            run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
            folder.join("bin/python")
        };
        run(Command::new(python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(packages))?;
        std::fs::write(&stamp, &wanted).map_err(|e| format!("{}: {e}", stamp.display()))?;
    }
    let lib = folder.join("lib");
    let site = std::fs::read_dir(&lib)
        .map_err(|e| format!("{}: {e}", lib.display()))?
        .filter_map(|entry| entry.ok().map(|e| e.path().join("site-packages")))
        .find(|path| path.is_dir());
    site.map(Some).ok_or_else(|| format!("{} holds no site-packages", lib.display()))
}
