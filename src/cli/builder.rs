//! `trt-opt builder`: builds engine after engine in one process, for programs that build many. Starting TensorRT takes
//! seconds, and one builder remembers how fast layers are. `report` and `tune` have engines built so, since TensorRT may
//! crash, and scripts may do the same.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use serde::{Deserialize, Serialize};
use trt_opt::engine::{Builder, Library};
use trt_opt::{Error, Result};

use super::{Global, build, out};

/// Build the engines that lines of standard input ask for, in one process
#[derive(clap::Args)]
#[command(
    after_help = r#"Each line is a JSON array, the arguments that 'trt-opt build' takes but for --tensorrt. Each is answered by a
line on standard output, {"code": 0, "error": null}, with what 'trt-opt build' would exit with and say.

Examples:
  echo '["swin.onnx", "-o", "swin.engine", "--fp16"]' | trt-opt builder"#
)]
pub struct Args {
    /// TensorRT's library, or a folder with it [default: TENSORRT_LIB_DIR, else searched for]
    #[arg(long, value_name = "PATH")]
    tensorrt: Option<PathBuf>,
}

/// A line, as a command line.
#[derive(Parser)]
#[command(name = "build")]
struct Line {
    #[command(flatten)]
    build: build::Args,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    code: u8,
    error: Option<String>,
}

pub fn run(args: Args, global: &Global) -> Result<u8> {
    let library = Library::load(args.tensorrt.as_deref())?;
    let mut builder = None;
    // Standard output is for answers.
    let quiet = Global { quiet: true, ..*global };
    for line in std::io::stdin().lines() {
        let line = line.map_err(Error::io("read", "standard input"))?;
        if line.trim().is_empty() {
            continue;
        }
        let answer = match one(&line, &library, &mut builder, &quiet) {
            Ok(code) => Answer { code, error: None },
            Err(error) => Answer { code: error.exit_code(), error: Some(error.to_string()) },
        };
        let answer = serde_json::to_string(&answer).map_err(|e| Error::Usage(e.to_string()))?;
        out::text(&format!("{answer}\n"))?;
    }
    Ok(0)
}

fn one<'a>(line: &str, library: &'a Library, builder: &mut Option<Builder<'a>>, global: &Global) -> Result<u8> {
    let arguments: Vec<String> = serde_json::from_str(line)
        .map_err(|e| Error::Usage(format!("expected a JSON array of strings, the arguments of build: {e}")))?;
    let line = std::iter::once("build".to_owned()).chain(arguments);
    let Line { build: args } = Line::try_parse_from(line).map_err(|e| Error::Usage(e.to_string().trim().to_owned()))?;
    if args.build.engine.tensorrt.is_some() {
        return Err(Error::Usage("--tensorrt is for the builder, which has one TensorRT for all lines".into()));
    }
    let job = build::Job::new(&args)?;
    if builder.is_none() {
        *builder = Some(Builder::new(library)?);
    }
    let Some(builder) = builder else { unreachable!("it was just made") };
    job.run(library, builder, global)
}

/// Builders to ask, each in a process of its own; as many as are asked at a time. One that crashes takes only the
/// engine that it was building with it.
pub struct Pool {
    program: PathBuf,
    tensorrt: Option<PathBuf>,
    limit: Option<Limit>,
    idle: Mutex<Vec<Process>>,
}

/// When building is over.
#[derive(Clone, Copy)]
struct Limit {
    begin: Instant,
    time: Duration,
}

impl Limit {
    fn left(self) -> Duration {
        self.time.saturating_sub(self.begin.elapsed())
    }

    fn over(self) -> Error {
        Error::CheckFailed(format!("not done within the {} s of --build-time", self.time.as_secs()))
    }
}

struct Process {
    child: Child,
    lines: ChildStdin,
    /// Lines that it writes, until it ends.
    answers: Receiver<String>,
    /// What it says beside its answers.
    log: std::fs::File,
    /// Bytes of that which have been passed on.
    told: u64,
}

impl Pool {
    /// After `limit`, which begins here, nothing is built any more, and what is being built is given up.
    pub fn new(tensorrt: Option<&Path>, limit: Option<Duration>) -> Result<Self> {
        let program = std::env::current_exe().map_err(Error::io("find", "the program itself"))?;
        let limit = limit.map(|time| Limit { begin: Instant::now(), time });
        Ok(Self { program, tensorrt: tensorrt.map(Path::to_owned), limit, idle: Mutex::default() })
    }

    /// Has an engine built, by the arguments of `trt-opt build`.
    pub fn build(&self, arguments: &[String]) -> Result<()> {
        if let Some(limit) = self.limit.filter(|limit| limit.left().is_zero()) {
            return Err(limit.over());
        }
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut process = match idle {
            Some(process) => process,
            None => Process::start(&self.program, self.tensorrt.as_deref())?,
        };
        let answer = match process.ask(arguments, self.limit) {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(process.end()),
            Err(over) => {
                process.kill();
                return Err(over);
            }
        };
        if let Some(said) = process.news() {
            // The model's name is the first argument.
            tracing::warn!("building {}: {said}", arguments.first().map_or("an engine", String::as_str));
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(process);
        match answer {
            Answer { code: 0, .. } => Ok(()),
            Answer { code, error } => {
                Err(Error::CheckFailed(error.unwrap_or_else(|| format!("it would exit with {code}"))))
            }
        }
    }
}

impl Process {
    fn start(program: &Path, tensorrt: Option<&Path>) -> Result<Self> {
        let log = tempfile::tempfile().map_err(Error::io("make", "a temporary file"))?;
        let mut command = Command::new(program);
        command.arg("builder");
        if let Some(path) = tensorrt {
            command.arg("--tensorrt").arg(path);
        }
        let stderr = log.try_clone().map_err(Error::io("open", "a temporary file"))?;
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).spawn();
        let mut child = started.map_err(Error::io("start", program))?;
        let (lines, answers) = (child.stdin.take(), child.stdout.take());
        let (Some(lines), Some(answers)) = (lines, answers) else { unreachable!("both are piped") };
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(answers).lines().map_while(std::result::Result::ok);
            lines.map(|line| sender.send(line)).find(std::result::Result::is_err)
        });
        Ok(Self { child, lines, answers: receiver, log, told: 0 })
    }

    /// Nothing if the process has ended or does not make sense; an error if it takes too long.
    fn ask(&mut self, arguments: &[String], limit: Option<Limit>) -> Result<Option<Answer>> {
        let line = serde_json::to_string(arguments).map_err(|e| Error::Usage(e.to_string()))?;
        if writeln!(self.lines, "{line}").and_then(|()| self.lines.flush()).is_err() {
            return Ok(None);
        }
        let answer = match limit {
            Some(limit) => match self.answers.recv_timeout(limit.left()) {
                Err(RecvTimeoutError::Timeout) => return Err(limit.over()),
                answer => answer.ok(),
            },
            None => self.answers.recv().ok(),
        };
        Ok(answer.and_then(|line| serde_json::from_str(&line).ok()))
    }

    /// What it has said since it was last asked this, warnings above all.
    fn news(&mut self) -> Option<String> {
        use std::os::unix::fs::FileExt;
        // Where it writes next is not to be moved, so no seek.
        let read = self.log.metadata().and_then(|log| {
            let mut said = vec![0; log.len().saturating_sub(self.told) as usize];
            self.log.read_exact_at(&mut said, self.told)?;
            Ok(said)
        });
        let said = match read {
            Ok(said) => said,
            Err(why) => return Some(format!("what the process that builds engines says cannot be read: {why}")),
        };
        self.told += said.len() as u64;
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        (!said.is_empty()).then_some(said)
    }

    /// In the middle of a build. What it was writing is a temporary file.
    fn kill(mut self) {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        if let Err(why) = killed {
            tracing::warn!("a process that builds engines cannot be stopped: {why}");
        }
    }

    /// Why it gave no answer.
    fn end(mut self) -> Error {
        // Its input ends here, and with it the process, if it has not crashed.
        drop(self.lines);
        let status = self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        let mut said = vec![];
        let read = self.log.seek(SeekFrom::Start(0)).and_then(|_| self.log.read_to_end(&mut said));
        let said = match read {
            Ok(_) => String::from_utf8_lossy(&said).trim().to_owned(),
            Err(error) => format!("what it said cannot be read: {error}"),
        };
        Error::CheckFailed(format!("the process that builds engines ended with {status}: {said}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pool whose builders are a shell script.
    fn pool(script: &str, limit: Option<Duration>) -> (tempfile::TempDir, Pool) {
        let dir = tempfile::tempdir().unwrap();
        let [text, program] = ["text", "builder"].map(|name| dir.path().join(name));
        std::fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
        // Not written by this process: a child that another test starts at that moment would have the file open for writing, so that
        // it could not be run.
        let copied = Command::new("install").arg("-m755").args([&text, &program]).status().unwrap();
        assert!(copied.success());
        let limit = limit.map(|time| Limit { begin: Instant::now(), time });
        (dir, Pool { program, tensorrt: None, limit, idle: Mutex::default() })
    }

    #[test]
    fn answers_are_of_the_engine_asked_for() {
        let script = r#"while read line; do case "$line" in *bad*) echo '{"code":1,"error":"it is bad"}';; *) echo '{"code":0,"error":null}';; esac; done"#;
        let (_dir, pool) = pool(script, Some(Duration::from_secs(600)));
        pool.build(&["good".into()]).unwrap();
        assert_eq!(pool.build(&["bad".into()]).unwrap_err().to_string(), "it is bad");
        pool.build(&["good".into()]).unwrap();
        assert_eq!(pool.idle.lock().unwrap().len(), 1);
    }

    #[test]
    fn what_a_builder_says_is_told_once() {
        let script = r#"echo warming up >&2; while read line; do echo "warning: $line" >&2; echo '{"code":0,"error":null}'; done"#;
        let (_dir, pool) = pool(script, None);
        let mut process = Process::start(&pool.program, None).unwrap();
        for name in ["one", "two"] {
            assert_eq!(process.ask(&[name.into()], None).unwrap().unwrap().code, 0);
            let said = process.news().unwrap();
            assert!(said.contains(name) && (name == "one" || !said.contains("one")), "{said}");
        }
        assert_eq!(process.news(), None);
    }

    #[test]
    fn a_build_that_takes_too_long_is_given_up() {
        let (_dir, pool) = pool("exec sleep 1000", Some(Duration::from_millis(50)));
        for _ in 0..2 {
            let why = pool.build(&["model".into()]).unwrap_err().to_string();
            assert!(why.contains("--build-time"), "{why}");
        }
        assert!(pool.idle.lock().unwrap().is_empty());
    }

    #[test]
    fn a_builder_that_ends_says_what_it_said() {
        let (_dir, pool) = pool("read line; echo 'out of memory' >&2; exit 3", None);
        let why = pool.build(&["model".into()]).unwrap_err().to_string();
        assert!(why.contains("out of memory") && why.contains('3'), "{why}");
    }
}
