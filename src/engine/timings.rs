//! Timing caches as files.

use std::path::Path;

use super::error::{Error, Result};

/// Nothing if there is no such file yet.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(vec![]),
        Err(source) => Err(Error::File { action: "read", path: path.to_owned(), source }),
        Ok(bytes) if super::compiled_for().major == 8 => Ok(without_myelin(bytes)),
        Ok(bytes) => Ok(bytes),
    }
}

/// Before the text: the number of its bytes, the tags of an array of bytes, and the number again.
const TAGS: [u8; 6] = [0x01, 0x80, 0x03, 0x80, 0x01, 0x00];

/// What the text begins with.
const TEXT: &[u8] = b"file_format_version=";

/// Where the header has the number of bytes that follow the header, and where those begin.
const SIZE: std::ops::Range<usize> = 16..24;

/// TensorRT 8.6.0 does not read what it wrote of Myelin, the compiler behind its larger fusions ("Myelin error from
/// unknown graph"), and then takes none of the timings. Without that last part, a text, it takes the others.
///
/// How such a file is laid out is known from files alone; one that differs is returned as it is.
fn without_myelin(mut bytes: Vec<u8>) -> Vec<u8> {
    let number =
        |range: std::ops::Range<usize>| bytes.get(range).and_then(|b| Some(u64::from_le_bytes(b.try_into().ok()?)));
    let text = bytes.windows(TEXT.len()).rposition(|w| w == TEXT);
    let Some((text, first)) = text.and_then(|text| Some((text, text.checked_sub(16 + TAGS.len())?))) else {
        return bytes;
    };
    let length = (bytes.len() - text) as u64;
    let known = bytes.starts_with(b"ptrt")
        && first >= SIZE.end
        && number(SIZE) == Some((bytes.len() - SIZE.end) as u64)
        && number(first..first + 8) == Some(length)
        && bytes[first + 8..text - 8] == TAGS
        && number(text - 8..text) == Some(length);
    if known {
        bytes.truncate(text);
        bytes[first..first + 8].fill(0);
        bytes[text - 8..].fill(0);
        let size = (text - SIZE.end) as u64;
        bytes[SIZE].copy_from_slice(&size.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with some timings and a text of Myelin.
    fn file(timings: &[u8], text: &[u8]) -> Vec<u8> {
        let length = (text.len() as u64).to_le_bytes();
        let body = [timings, &length[..], &TAGS, &length, text].concat();
        let mut header = b"ptrt\0\0\0\0\xec\0\0\0\0\0\0\0".to_vec();
        header.extend((body.len() as u64).to_le_bytes());
        [header, body].concat()
    }

    #[test]
    fn only_the_text_goes() {
        let timings = b"file_format_version= may be among the timings";
        let text = b"file_format_version=1\n0.0.0.0_0.0.0.0_0.0.0.0_0123456789\n1 2 3.5e-03\n";
        assert_eq!(without_myelin(file(timings, text)), file(timings, b""));
        assert_eq!(without_myelin(file(timings, b"")), file(timings, b""));
    }

    #[test]
    fn what_is_laid_out_otherwise_stays() {
        let whole = file(b"timings", b"file_format_version=1\n");
        let mut others = vec![vec![], TEXT.to_vec(), whole[..whole.len() - 1].to_vec(), [&whole[..], b"x"].concat()];
        for at in [0, 16, whole.len() - 30] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            others.push(changed);
        }
        for other in others {
            assert_eq!(without_myelin(other.clone()), other);
        }
    }
}
