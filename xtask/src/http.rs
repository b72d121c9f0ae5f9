//! As much of an HTTP client as it takes to see whether a node answers.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Most bytes of an answer that are read.
const ANSWER_MAX: u64 = 64 * 1024;

/// Sends `GET path` and gives the status of the answer.
///
/// # Errors
///
/// No connection, no answer in time, or not one of HTTP.
pub fn get_status(address: SocketAddr, path: &str, timeout: Duration) -> io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    // The status line is all that matters; a server that keeps the connection open is fine.
    while !answer.contains(&b'\n') && (answer.len() as u64) < ANSWER_MAX {
        match stream.read(&mut chunk)? {
            0 => break,
            count => answer.extend(chunk.iter().take(count)),
        }
    }
    let line = String::from_utf8_lossy(&answer);
    line.strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|status| status.trim().parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "this is not HTTP"))
}
