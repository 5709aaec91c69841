use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(5);

/// Sends a GET request and returns the body of the answer.
pub(super) fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    request(connect(address)?, "GET", path, "")
}

/// Sends a POST request with a JSON body and returns the body of the answer.
pub(super) fn post(address: SocketAddr, path: &str, json: &str) -> io::Result<String> {
    request(connect(address)?, "POST", path, json)
}

/// Sends one HTTP/1.1 request on a stream that has time limits; an error unless the status is 200.
pub(super) fn request(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    json: &str,
) -> io::Result<String> {
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{json}",
        json.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(io::Error::other(format!(
            "{method} {path}: {} {body}",
            head.lines().next().unwrap_or_default()
        ))),
    }
}

/// As [`post`], for a server that may be frozen.
pub(super) fn post_within(
    limit: Duration,
    address: SocketAddr,
    path: &str,
    json: &str,
) -> io::Result<String> {
    request(connect_within(limit, address)?, "POST", path, json)
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    connect_within(LIMIT, address)
}

fn connect_within(limit: Duration, address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}
