//! The text of `report.json`: a run, a row and a goal a line, so that profiles take little room and a row that changes is a line that does.

use std::io::{Result, Write};

use serde_json::ser::Formatter;

/// How deep what begins a line is at most: fields of the report are 1 deep, and the runs, rows and goals in them 2.
const DEEPEST: usize = 2;

/// JSON without spaces, and with line breaks down to [`DEEPEST`].
#[derive(Default)]
pub struct Lines {
    depth: usize,
}

impl Lines {
    fn open<W: Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> Result<()> {
        self.depth += 1;
        writer.write_all(bracket)
    }

    fn next<W: Write + ?Sized>(&self, writer: &mut W, first: bool) -> Result<()> {
        if !first {
            writer.write_all(b",")?;
        }
        self.end_line(writer)
    }

    fn close<W: Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> Result<()> {
        self.end_line(writer)?;
        self.depth -= 1;
        writer.write_all(bracket)
    }

    fn end_line<W: Write + ?Sized>(&self, writer: &mut W) -> Result<()> {
        if self.depth <= DEEPEST { writer.write_all(b"\n") } else { Ok(()) }
    }
}

impl Formatter for Lines {
    fn begin_array<W: Write + ?Sized>(&mut self, writer: &mut W) -> Result<()> {
        self.open(writer, b"[")
    }

    fn begin_array_value<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> Result<()> {
        self.next(writer, first)
    }

    fn end_array<W: Write + ?Sized>(&mut self, writer: &mut W) -> Result<()> {
        self.close(writer, b"]")
    }

    fn begin_object<W: Write + ?Sized>(&mut self, writer: &mut W) -> Result<()> {
        self.open(writer, b"{")
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> Result<()> {
        self.next(writer, first)
    }

    fn end_object<W: Write + ?Sized>(&mut self, writer: &mut W) -> Result<()> {
        self.close(writer, b"}")
    }
}
