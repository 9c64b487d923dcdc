//! Writing to standard output and standard error.

use std::io::Write;

use serde::Serialize;
use trt_opt::{Error, Result};

pub const BOLD: &str = "\x1b[1m";
pub const DIM: &str = "\x1b[2m";
pub const RED: &str = "\x1b[31m";
pub const GREEN: &str = "\x1b[32m";
pub const YELLOW: &str = "\x1b[33m";
pub const CYAN: &str = "\x1b[36m";
pub const RESET: &str = "\x1b[0m";

/// Writes text to standard output; colours are dropped where they are not wanted.
pub fn text(text: &str) -> Result<()> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::io("write", "standard output"))
}

/// Writes a value as JSON, indented, and a line break.
pub fn json(value: &impl Serialize) -> Result<()> {
    let mut json = to_json(value)?;
    json.push('\n');
    text(&json)
}

pub fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|e| Error::Usage(format!("the result cannot be written as JSON: {e}")))
}

pub fn error(error: &Error) {
    let _ = writeln!(anstream::stderr(), "{RED}{BOLD}error:{RESET} {error}");
}

pub fn warning(text: &str) {
    let _ = writeln!(anstream::stderr(), "{YELLOW}{BOLD}warning:{RESET} {text}");
}
