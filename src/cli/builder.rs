//! `trt-opt builder`: builds engine after engine in one process, for programs that build many. Starting TensorRT takes
//! seconds, and one builder remembers how fast layers are. `report` and `tune` have engines built so, since TensorRT may
//! crash, and scripts may do the same.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

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
    idle: Mutex<Vec<Process>>,
}

struct Process {
    child: Child,
    lines: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// What it says beside its answers.
    log: std::fs::File,
}

impl Pool {
    pub fn new(tensorrt: Option<&Path>) -> Result<Self> {
        let program = std::env::current_exe().map_err(Error::io("find", "the program itself"))?;
        Ok(Self { program, tensorrt: tensorrt.map(Path::to_owned), idle: Mutex::default() })
    }

    /// Has an engine built, by the arguments of `trt-opt build`.
    pub fn build(&self, arguments: &[String]) -> Result<()> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut process = match idle {
            Some(process) => process,
            None => Process::start(&self.program, self.tensorrt.as_deref())?,
        };
        let answer = match process.ask(arguments) {
            Some(answer) => answer,
            None => return Err(process.end()),
        };
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
        Ok(Self { child, lines, answers: BufReader::new(answers), log })
    }

    /// Nothing if the process has ended or does not make sense.
    fn ask(&mut self, arguments: &[String]) -> Option<Answer> {
        let line = serde_json::to_string(arguments).ok()?;
        writeln!(self.lines, "{line}").and_then(|()| self.lines.flush()).ok()?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).ok()?;
        serde_json::from_str(&answer).ok()
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
