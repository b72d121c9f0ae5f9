//! One HTTP/1.1 connection.
//!
//! Ready-made clients open a new connection when the old one breaks and try
//! again. Here a break is what the tests look for, so this client does neither:
//! one TCP connection, kept alive, and every trouble is an error.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// Header fields that are read at most.
const FIELDS: usize = 32;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// The body, whole.
    pub body: Vec<u8>,
    /// The server will close the connection.
    pub closes: bool,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection that is never opened again.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    /// Read and not yet used.
    input: Vec<u8>,
    limit: Duration,
}

impl Connection {
    /// Connects; `limit` is for each request.
    ///
    /// # Errors
    ///
    /// Nobody takes the connection.
    pub fn open(address: SocketAddr, limit: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, limit)
            .with_context(|| format!("can't connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, address, input: Vec::new(), limit })
    }

    /// `PUT`; the answer must be 201 or 204.
    ///
    /// # Errors
    ///
    /// Any other answer or none.
    pub fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        let answer = self.request("PUT", key, Some(value))?;
        ensure!(
            matches!(answer.status, 201 | 204),
            "PUT /{key}: {} {}",
            answer.status,
            answer.text()
        );
        Ok(())
    }

    /// `GET`; `None` for 404.
    ///
    /// # Errors
    ///
    /// An answer other than 200 and 404, or none.
    pub fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>> {
        let answer = self.request("GET", key, None)?;
        match answer.status {
            200 => Ok(Some(answer.body)),
            404 => Ok(None),
            status => bail!("GET /{key}: {status} {}", answer.text()),
        }
    }

    /// Sends a request for `/path` and reads the answer.
    ///
    /// # Errors
    ///
    /// The connection broke, the answer did not come in time or is not HTTP.
    pub fn request(&mut self, method: &str, path: &str, body: Option<&[u8]>) -> Result<Response> {
        let length =
            body.map_or(String::new(), |body| format!("Content-Length: {}\r\n", body.len()));
        let head = format!("{method} /{path} HTTP/1.1\r\nHost: {}\r\n{length}\r\n", self.address);
        let begin = Instant::now();
        self.send_parts(&[head.as_bytes(), body.unwrap_or_default()])
            .and_then(|()| self.response(method == "HEAD"))
            .with_context(|| {
                let seconds = begin.elapsed().as_secs_f32();
                format!("{method} /{path} ({} bytes), {seconds:.1} s", body.map_or(0, <[u8]>::len))
            })
    }

    /// Sends these bytes as they are and reads the answer.
    ///
    /// # Errors
    ///
    /// As for [`request`](Self::request).
    pub fn raw(&mut self, bytes: &[u8]) -> Result<Response> {
        self.send_parts(&[bytes])?;
        self.response(false)
    }

    /// Sends these bytes and reads nothing.
    ///
    /// # Errors
    ///
    /// The connection broke.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.send_parts(&[bytes])
    }

    fn send_parts(&mut self, parts: &[&[u8]]) -> Result<()> {
        self.stream.set_write_timeout(Some(self.limit))?;
        for part in parts {
            self.stream.write_all(part).context("the connection broke while sending")?;
        }
        Ok(())
    }

    /// Reads more; false at the end of the stream.
    fn fill(&mut self) -> Result<bool> {
        self.stream.set_read_timeout(Some(self.limit))?;
        let mut chunk = [0; 64 * 1024];
        let count = self.stream.read(&mut chunk).context("the connection broke")?;
        self.input.extend(chunk.iter().take(count));
        Ok(count > 0)
    }

    fn response(&mut self, head_only: bool) -> Result<Response> {
        loop {
            let head = self.head()?;
            // 100 Continue and its kind come before the answer.
            if head.status >= 200 {
                let body = match head.framing {
                    _ if head_only || head.status == 204 => Vec::new(),
                    Framing::Length(len) => self.take(len)?,
                    Framing::Chunked => self.chunks()?,
                    Framing::Close => {
                        while self.fill()? {}
                        std::mem::take(&mut self.input)
                    }
                };
                return Ok(Response { status: head.status, body, closes: head.closes });
            }
        }
    }

    fn head(&mut self) -> Result<Head> {
        loop {
            if let Some((len, head)) = parse(&self.input)? {
                self.input.drain(..len);
                return Ok(head);
            }
            let begun = if self.input.is_empty() { "before" } else { "within" };
            ensure!(self.fill()?, "the server closed the connection {begun} the answer");
        }
    }

    fn take(&mut self, len: usize) -> Result<Vec<u8>> {
        while self.input.len() < len {
            ensure!(
                self.fill()?,
                "the server closed the connection {} bytes before the body's end",
                len - self.input.len()
            );
        }
        let rest = self.input.split_off(len);
        Ok(std::mem::replace(&mut self.input, rest))
    }

    fn line(&mut self) -> Result<String> {
        loop {
            if let Some(at) = self.input.windows(2).position(|pair| pair == b"\r\n") {
                let mut line = self.take(at + 2)?;
                line.truncate(at);
                return String::from_utf8(line).context("a line is not UTF-8");
            }
            ensure!(self.fill()?, "the server closed the connection within the body");
        }
    }

    fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16)
                .with_context(|| format!("`{line}` is no size of a chunk"))?;
            body.extend(self.take(size)?);
            ensure!(self.line()?.is_empty(), "a chunk is longer than it says");
            if size == 0 {
                return Ok(body);
            }
        }
    }
}

enum Framing {
    Length(usize),
    Chunked,
    Close,
}

struct Head {
    status: u16,
    framing: Framing,
    closes: bool,
}

/// The head at the front of `input` and its length, once it is whole.
fn parse(input: &[u8]) -> Result<Option<(usize, Head)>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(len) = response.parse(input).context("this is not HTTP")? else {
        return Ok(None);
    };
    let status = response.code.context("no status")?;
    let mut head = Head { status, framing: Framing::Close, closes: response.version == Some(0) };
    for field in response.headers.iter() {
        let value = String::from_utf8_lossy(field.value).to_ascii_lowercase();
        match field.name.to_ascii_lowercase().as_str() {
            "content-length" => {
                head.framing = Framing::Length(value.parse().context("Content-Length")?);
            }
            "transfer-encoding" if value == "chunked" => head.framing = Framing::Chunked,
            "connection" => head.closes = value == "close",
            _ => {}
        }
    }
    Ok(Some((len, head)))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A server that reads nothing and answers with `bytes`.
    fn server(bytes: &'static [u8]) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(bytes).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            // Closing before the requests are read would be a reset.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        Connection::open(address, LIMIT).unwrap()
    }

    #[test]
    fn bodies_are_read_by_length_and_by_chunks() {
        let mut connection = server(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n\
              HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc\
              HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1;x\r\nf\r\n0\r\n\r\n\
              HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        );
        connection.put("k", b"abc").unwrap();
        assert_eq!(connection.get("k").unwrap().unwrap(), b"abc");
        assert_eq!(connection.request("GET", "", None).unwrap().body, b"def");
        assert!(connection.request("GET", "none", None).unwrap().closes);
        let error = format!("{:#}", connection.get("k").unwrap_err());
        assert!(error.contains("closed the connection before the answer"), "{error}");
    }

    #[test]
    fn a_short_body_is_an_error() {
        let mut connection = server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc");
        let error = format!("{:#}", connection.get("k").unwrap_err());
        assert!(error.contains("2 bytes before the body's end"), "{error}");
    }
}
