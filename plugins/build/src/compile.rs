//! Compiling what changed, several files at a time, and linking.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::SystemTime;

use crate::env::run;
use crate::{Headers, Interface, Toolkit};

pub(crate) struct Plan<'a> {
    pub root: &'a Path,
    pub toolkit: &'a Toolkit,
    pub headers: &'a Headers,
    pub interface: Interface,
    pub archs: &'a [String],
    pub objects: &'a Path,
    pub out: &'a Path,
}

/// What a build did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Names of the sources compiled this time.
    pub compiled: Vec<String>,
    /// Objects that were up to date.
    pub kept: usize,
    pub linked: bool,
}

struct Unit {
    source: PathBuf,
    object: PathBuf,
    program: PathBuf,
    arguments: Vec<String>,
}

impl Unit {
    fn sidecar(&self, extension: &str) -> PathBuf {
        self.object.with_extension(extension)
    }
    fn command_line(&self) -> String {
        format!("{}\n{}\n", self.program.display(), self.arguments.join("\n"))
    }
    fn fresh(&self) -> bool {
        std::fs::read_to_string(self.sidecar("cmd")).is_ok_and(|have| have == self.command_line())
            && modified(&self.object).is_some_and(|built| {
                let dependencies =
                    std::fs::read_to_string(self.sidecar("d")).map(|text| parse_depfile(&text)).unwrap_or_default();
                !dependencies.is_empty()
                    && dependencies.iter().chain([&self.source]).all(|path| modified(path).is_some_and(|t| t <= built))
            })
    }
    fn compile(&self) -> Result<(), String> {
        let _ = std::fs::remove_file(self.sidecar("cmd"));
        run(Command::new(&self.program).args(&self.arguments))
            .map_err(|e| format!("{}\n{e}", self.source.display()))?;
        write(&self.sidecar("cmd"), &self.command_line())
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}
fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// The files that a make rule `target: file file ...` names.
fn parse_depfile(text: &str) -> Vec<PathBuf> {
    let joined = text.replace("\\\n", " ");
    let Some((_, list)) = joined.split_once(": ") else { return Vec::new() };
    let mut files = vec![String::new()];
    let mut escaped = false;
    for c in list.chars() {
        match c {
            '\\' if !escaped => escaped = true,
            c if c.is_whitespace() && !escaped => files.push(String::new()),
            c => {
                if escaped && c != ' ' && c != '#' {
                    files.last_mut().expect("never empty").push('\\');
                }
                escaped = false;
                files.last_mut().expect("never empty").push(c);
            }
        }
    }
    files.into_iter().filter(|f| !f.is_empty()).map(PathBuf::from).collect()
}

impl Plan<'_> {
    pub(crate) fn build(&self, jobs: usize) -> Result<(PathBuf, Outcome), String> {
        for folder in [self.objects, self.out] {
            std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        }
        let mut units = self.kernels()?;
        units.extend(self.adapters()?);
        let (stale, fresh): (Vec<&Unit>, Vec<&Unit>) = units.iter().partition(|u| !u.fresh());

        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let errors = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..jobs.clamp(1, stale.len().max(1)) {
                scope.spawn(|| {
                    while !failed.load(Ordering::Relaxed) {
                        let Some(unit) = stale.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                        if let Err(e) = unit.compile() {
                            failed.store(true, Ordering::Relaxed);
                            errors.lock().expect("no thread panics while holding it").push(e);
                        }
                    }
                });
            }
        });
        let errors = errors.into_inner().expect("no thread panics while holding it");
        if !errors.is_empty() {
            return Err(errors.join("\n\n"));
        }
        let mut outcome = Outcome {
            compiled: stale
                .iter()
                .filter_map(|u| u.source.file_name().map(|n| n.to_string_lossy().into_owned()))
                .collect(),
            kept: fresh.len(),
            linked: false,
        };
        let library = self.out.join("libtrt_opt_plugins.so");
        outcome.linked = self.link(&units, &library)?;
        Ok((library, outcome))
    }

    fn sources(&self, folder: &str, extension: &str) -> Result<Vec<PathBuf>, String> {
        let folder = self.root.join(folder);
        let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
            .map_err(|e| format!("{}: {e}", folder.display()))?
            .filter_map(|entry| entry.ok().map(|e| e.path()))
            .filter(|path| path.extension().is_some_and(|e| e == extension))
            .collect();
        files.sort();
        Ok(files)
    }

    fn kernels(&self) -> Result<Vec<Unit>, String> {
        let folder = self.objects.join(format!("kernels-{}", self.archs.join("-")));
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let mut common: Vec<String> =
            ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-Wall,-fvisibility=hidden", "-cudart", "static", "-ccbin"]
                .map(str::to_owned)
                .to_vec();
        common.push(self.toolkit.cxx.display().to_string());
        let targets = common.len()..common.len() + self.archs.len();
        for arch in self.archs {
            common.push(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
        }
        // PTX of the newest, for architectures yet to come.
        let newest = self
            .archs
            .iter()
            .max_by_key(|a| a.trim_end_matches(|c: char| c.is_ascii_lowercase()).parse::<u32>().unwrap_or(0));
        if let Some(arch) = newest.filter(|a| a.chars().all(|c| c.is_ascii_digit())) {
            common.push(format!("-gencode=arch=compute_{arch},code=compute_{arch}"));
        }
        // The warpgroup instructions are those of sm_90a alone, whose code runs wherever that of sm_90 does.
        let mut warpgroups = common.clone();
        for flag in &mut warpgroups[targets] {
            if flag.ends_with("code=sm_90") {
                *flag = "-gencode=arch=compute_90a,code=sm_90a".to_owned();
            }
        }
        if warpgroups.iter().any(|flag| flag.ends_with("code=sm_90a")) {
            warpgroups.push("-DTRT_OPT_SM90A".to_owned());
        }
        Ok(self
            .sources("plugins/kernels", "cu")?
            .into_iter()
            .map(|source| {
                let name = source.file_stem().unwrap_or_default().to_string_lossy();
                let uses = name == "wide_gemm"
                    || [
                        "wide_mlp",
                        "attn_fused_wide",
                        "block_chain",
                        "block_flow",
                        "tnt_words_wide",
                        "conv_stack",
                        "conv_layer",
                    ]
                    .iter()
                    .any(|&start| name.starts_with(start));
                self.unit(&self.toolkit.nvcc, source, &folder, if uses { &warpgroups } else { &common })
            })
            .collect())
    }

    fn adapters(&self) -> Result<Vec<Unit>, String> {
        let folder = self.objects.join(format!("adapters-trt{}-{}", self.headers.major, self.interface.name()));
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let mut common: Vec<String> =
            ["-std=c++17", "-O2", "-fPIC", "-Wall", "-Wextra", "-Wno-deprecated-declarations", "-fvisibility=hidden"]
                .map(str::to_owned)
                .to_vec();
        common.push(format!("-I{}", self.root.join("plugins/kernels").display()));
        for include in [&self.headers.include, &self.toolkit.include] {
            common.extend(["-isystem".to_owned(), include.display().to_string()]);
        }
        let other = match self.interface {
            Interface::V2 => "v3.cpp",
            Interface::V3 => "v2.cpp",
        };
        let sources = self.sources("plugins/adapters", "cpp")?.into_iter().filter(|s| !s.ends_with(other));
        Ok(sources.map(|source| self.unit(&self.toolkit.cxx, source, &folder, &common)).collect())
    }

    fn unit(&self, program: &Path, source: PathBuf, folder: &Path, common: &[String]) -> Unit {
        let object = folder.join(source.file_stem().unwrap_or_default()).with_extension("o");
        let mut arguments = common.to_vec();
        arguments.extend(["-c", "-MD", "-MF"].map(str::to_owned));
        arguments.push(object.with_extension("d").display().to_string());
        arguments.extend([source.display().to_string(), "-o".to_owned(), object.display().to_string()]);
        Unit { source, object, program: program.to_owned(), arguments }
    }

    fn link(&self, units: &[Unit], library: &Path) -> Result<bool, String> {
        let map = self.root.join(format!("plugins/adapters/exports_{}.map", self.interface.name()));
        let mut command = Command::new(&self.toolkit.cxx);
        command.args(["-shared", "-o"]).arg(library).args(units.iter().map(|u| &u.object));
        command.arg(format!("-Wl,--version-script={}", map.display()));
        command.args([
            "-Wl,-soname,libtrt_opt_plugins.so",
            "-Wl,--no-undefined",
            "-Wl,-Bsymbolic",
            "-Wl,--gc-sections",
            "-Wl,--exclude-libs,ALL",
        ]);
        // Its own C++ runtime where there is one to link: the library then loads beside older ones.
        let archive = run(Command::new(&self.toolkit.cxx).arg("-print-file-name=libstdc++.a")).unwrap_or_default();
        if Path::new(archive.trim()).is_absolute() {
            command.args(["-static-libstdc++", "-static-libgcc"]);
        }
        command.arg(self.toolkit.lib.join("libcudart_static.a")).args(["-lpthread", "-ldl", "-lrt"]);

        let line = format!("{command:?}\n");
        let record = self.objects.join(format!("link-trt{}-{}.cmd", self.headers.major, self.interface.name()));
        let fresh = std::fs::read_to_string(&record).is_ok_and(|have| have == line)
            && modified(library).is_some_and(|built| {
                units.iter().map(|u| &u.object).chain([&map]).all(|path| modified(path).is_some_and(|t| t <= built))
            });
        if fresh {
            return Ok(false);
        }
        run(&mut command)?;
        write(&record, &line)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depfile_lists_every_file_once_unescaped() {
        let text = "obj/a.o: src/a.cu \\\n  /x/with\\ space.h \\\n  b.cuh\n";
        assert_eq!(parse_depfile(text), ["src/a.cu", "/x/with space.h", "b.cuh"].map(PathBuf::from));
        assert!(parse_depfile("").is_empty());
    }

    #[test]
    fn a_unit_is_stale_until_built_and_after_any_change() {
        let folder = std::env::temp_dir().join(format!("trt-opt-unit-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let source = folder.join("a.cpp");
        let header = folder.join("a.h");
        std::fs::write(&source, "#include \"a.h\"\nint f() { return N; }\n").unwrap();
        std::fs::write(&header, "#define N 1\n").unwrap();
        let object = folder.join("a.o");
        let arguments = [
            "-c",
            "-MD",
            "-MF",
            object.with_extension("d").to_str().unwrap(),
            source.to_str().unwrap(),
            "-o",
            object.to_str().unwrap(),
        ]
        .map(str::to_owned)
        .to_vec();
        let mut unit = Unit { source, object, program: "c++".into(), arguments };
        assert!(!unit.fresh());
        unit.compile().unwrap();
        assert!(unit.fresh());
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        std::fs::File::options().write(true).open(&header).unwrap().set_modified(later).unwrap();
        assert!(!unit.fresh());
        unit.compile().unwrap();
        std::fs::File::options().write(true).open(&unit.object).unwrap().set_modified(later).unwrap();
        assert!(unit.fresh());
        unit.arguments.insert(0, "-O1".into());
        assert!(!unit.fresh());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
