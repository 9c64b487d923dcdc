//! A buffered writer that prost can encode into.

use std::io::{self, Write};

use bytes::buf::UninitSlice;
use bytes::{Buf, BufMut};

/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 18;
/// Slices from this size on are written without a copy into the buffer.
const DIRECT: usize = 1 << 14;

/// Collects small pieces and writes large ones straight from where they are, so that a message of any size is
/// encoded without being held in memory, and its weights go from the mapped input to the file.
///
/// Encoding cannot fail, so the first error is kept, and [`finish`](Self::finish) returns it.
pub(super) struct Sink<W: Write> {
    writer: W,
    buffer: Vec<u8>,
    written: u64,
    error: Option<io::Error>,
}

impl<W: Write> Sink<W> {
    pub fn new(writer: W) -> Self {
        Self { writer, buffer: Vec::with_capacity(BUFFER), written: 0, error: None }
    }

    /// Bytes taken so far.
    pub fn position(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Writes what is left; gives back the writer and the number of bytes.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.drain();
        match self.error {
            Some(error) => Err(error),
            None => self.writer.flush().map(|()| (self.writer, self.written)),
        }
    }

    fn drain(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        self.write(&buffer);
        self.buffer = buffer;
        self.buffer.clear();
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.error.is_none() {
            self.error = self.writer.write_all(bytes).err();
        }
        self.written += bytes.len() as u64;
    }
}

// SAFETY: `chunk_mut` and `advance_mut` are those of one `Vec`, whose capacity is not touched between them.
unsafe impl<W: Write> BufMut for Sink<W> {
    fn remaining_mut(&self) -> usize {
        usize::MAX
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        // SAFETY: the caller has filled `count` bytes of `chunk_mut`, which came from this `Vec`.
        unsafe { self.buffer.advance_mut(count) }
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        if self.buffer.len() == self.buffer.capacity() {
            self.drain();
        }
        self.buffer.chunk_mut()
    }

    fn put_slice(&mut self, bytes: &[u8]) {
        if self.buffer.len() + bytes.len() > self.buffer.capacity() || bytes.len() >= DIRECT {
            self.drain();
        }
        if bytes.len() >= DIRECT {
            self.write(bytes);
        } else {
            self.buffer.extend_from_slice(bytes);
        }
    }

    fn put<T: Buf>(&mut self, mut bytes: T) {
        while bytes.has_remaining() {
            let chunk = bytes.chunk();
            let len = chunk.len();
            self.put_slice(chunk);
            bytes.advance(len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_pieces_stay_in_order() {
        let mut want = Vec::new();
        let mut sink = Sink::new(Vec::new());
        for i in 0..2000u32 {
            let piece = vec![i as u8; (i as usize * 37) % (2 * DIRECT)];
            sink.put_slice(&piece);
            sink.put_u32(i);
            want.extend_from_slice(&piece);
            want.extend_from_slice(&i.to_be_bytes());
            assert_eq!(sink.position(), want.len() as u64);
        }
        let (got, written) = sink.finish().unwrap();
        assert_eq!((got.len() as u64, got), (written, want));
    }

    #[test]
    fn the_first_error_is_returned() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut sink = Sink::new(Full);
        sink.put_bytes(0, BUFFER + 1);
        assert_eq!(sink.finish().err().map(|e| e.kind()), Some(io::ErrorKind::StorageFull));
    }
}
