//! One HTTP/1.1 request to this pod, and the status of its answer; all that is needed of HTTP, so no crate for it.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tenancy_fixer::launch::Url;

/// The longest status line that we read; real ones have some twenty bytes.
const LONGEST_STATUS_LINE: usize = 1024;

/// Connects and sends a request without a body.
pub(crate) fn send(method: &str, url: &Url, limit: Duration) -> io::Result<TcpStream> {
    let mut stream = connect(url, limit)?;
    stream.set_write_timeout(Some(limit))?;
    let request = format!(
        "{method} {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: launcher/{}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        url.target(),
        url.authority(),
        env!("CARGO_PKG_VERSION"),
    );
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}

fn connect(url: &Url, limit: Duration) -> io::Result<TcpStream> {
    let mut first = None;
    for address in url.addresses() {
        match TcpStream::connect_timeout(&address, limit) {
            Ok(stream) => return Ok(stream),
            // Of several addresses the first one's reason counts: the others are for machines that do without the first.
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

/// Reads the status of the answer. Whoever sends it byte by byte has no longer for it.
pub(crate) fn status(stream: &mut TcpStream, until: Instant) -> io::Result<u16> {
    let mut line = Vec::new();
    let mut buffer = [0; 256];
    while !line.contains(&b'\n') {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend(buffer.iter().take(count));
        if line.len() > LONGEST_STATUS_LINE {
            break;
        }
    }
    parse_status(&line).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))
}

/// The number in `HTTP/1.1 200 OK`.
fn parse_status(line: &[u8]) -> Option<u16> {
    let mut words = line.split(u8::is_ascii_whitespace);
    words.next().filter(|version| version.starts_with(b"HTTP/1."))?;
    let number = std::str::from_utf8(words.next()?).ok()?;
    number.parse().ok().filter(|_| number.len() == 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_from_the_first_line() {
        assert_eq!(parse_status(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n"), Some(200));
        assert_eq!(parse_status(b"HTTP/1.0 503\r\n"), Some(503));
        for wrong in
            ["", "\r\n", "HTTP/1.1\r\n", "HTTP/2 200\r\n", "HTTP/1.1 20\r\n", "HTTP/1.1 abc\r\n", "SSH-2.0-x\r\n"]
        {
            assert_eq!(parse_status(wrong.as_bytes()), None, "{wrong:?}");
        }
    }
}
