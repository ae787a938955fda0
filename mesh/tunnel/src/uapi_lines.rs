//! The lines that a UAPI client sends, in a buffer that is wiped.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use zeroize::{Zeroize, Zeroizing};

/// The longest line with its line feed, as in wireguard-go.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// The longest request: ten thousand peers with dozens of prefixes each.
const MAX_REQUEST_BYTES: usize = 16 << 20;

/// What comes next of a client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// A line without its line feed.
    Text(&'a [u8]),
    /// A line is longer than the buffer.
    TooLong,
    /// The request is longer than any can be.
    TooMany,
    /// The client has gone, perhaps in the middle of a line.
    End,
}

/// Reads lines without copies of what may be keys.
pub(crate) struct LineReader<'a> {
    client: &'a UnixStream,
    buffer: Zeroizing<Vec<u8>>,
    /// What is read but not yet taken.
    unread: std::ops::Range<usize>,
    request_bytes: usize,
}

impl<'a> LineReader<'a> {
    pub(crate) fn new(client: &'a UnixStream) -> Self {
        Self {
            client,
            buffer: Zeroizing::new(vec![0; MAX_LINE_BYTES]),
            unread: 0..0,
            request_bytes: 0,
        }
    }

    /// Counts the bytes of a request anew.
    pub(crate) fn begin_request(&mut self) {
        self.request_bytes = 0;
    }

    /// Reads the next line.
    ///
    /// # Errors
    /// What the kernel says, for one when the client is silent for too long.
    pub(crate) fn next_line(&mut self) -> io::Result<Line<'_>> {
        let mut searched = 0;
        loop {
            let text = &self.buffer[self.unread.clone()];
            if let Some(found) = text[searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.unread.start..self.unread.start + searched + found;
                self.unread.start = line.end + 1;
                self.request_bytes += line.len() + 1;
                if self.request_bytes > MAX_REQUEST_BYTES {
                    return Ok(Line::TooMany);
                }
                return Ok(Line::Text(&self.buffer[line]));
            }
            searched = text.len();
            if searched == MAX_LINE_BYTES {
                return Ok(Line::TooLong);
            }
            if self.unread.end == MAX_LINE_BYTES {
                self.buffer.copy_within(self.unread.clone(), 0);
                self.buffer[searched..].zeroize();
                self.unread = 0..searched;
            }
            match self.client.read(&mut self.buffer[self.unread.end..]) {
                Ok(0) => return Ok(Line::End),
                Ok(read) => self.unread.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::thread;

    /// Reads all lines of what is written in pieces of some size, up to what ends them.
    fn lines_of(text: Vec<u8>, piece: usize) -> (Vec<Vec<u8>>, String) {
        let (mut client, server) = UnixStream::pair().unwrap();
        let writer = thread::spawn(move || {
            // The reader goes away at a line that is too long.
            let _ = text
                .chunks(piece)
                .try_for_each(|piece| client.write_all(piece));
        });
        let mut reader = LineReader::new(&server);
        let mut lines = Vec::new();
        let end = loop {
            match reader.next_line().unwrap() {
                Line::Text(line) => lines.push(line.to_vec()),
                end => break format!("{end:?}"),
            }
        };
        drop(server);
        writer.join().unwrap();
        (lines, end)
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        for piece in [1, 7, 4096, 100_000] {
            let long = vec![b'x'; MAX_LINE_BYTES - 1];
            let text = [b"a\n\nbc\n", &*long, b"\n", &*long, b"\nd\ne"].concat();
            let (lines, end) = lines_of(text, piece);
            assert_eq!(
                lines,
                [b"a", &b""[..], b"bc", &long, &long, b"d"],
                "{piece}"
            );
            assert_eq!(end, "End");
        }
    }

    #[test]
    fn a_line_and_a_request_have_a_largest_size() {
        let (lines, end) = lines_of([b"a\n", &*vec![b'x'; MAX_LINE_BYTES]].concat(), 9999);
        assert_eq!((lines.len(), &*end), (1, "TooLong"));
        let (lines, end) = lines_of(b"0123456\n".repeat(3 << 20), 1 << 20);
        assert_eq!((lines.len(), &*end), (2 << 20, "TooMany"));
    }
}
