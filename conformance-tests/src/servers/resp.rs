use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(2);

/// Sends one command to a Redis server and returns its answer as text: a status, a number, a
/// string, or the elements of a flat list, one per line.
pub(super) fn ask(
    address: SocketAddr,
    password: Option<&str>,
    command: &[&str],
) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut replies = BufReader::new(stream.try_clone()?);
    if let Some(password) = password {
        stream.write_all(&encoded(&["AUTH", password]))?;
        read(&mut replies)?;
    }
    stream.write_all(&encoded(command))?;
    read(&mut replies)
}

fn encoded(words: &[&str]) -> Vec<u8> {
    let words: String = std::iter::once(format!("*{}\r\n", words.len()))
        .chain(
            words
                .iter()
                .map(|word| format!("${}\r\n{word}\r\n", word.len())),
        )
        .collect();
    words.into_bytes()
}

fn read(replies: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    replies.read_line(&mut line)?;
    let line = line.trim_end();
    let (kind, rest) = line
        .split_at_checked(1)
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    let length = || rest.parse::<i64>().map_err(io::Error::other);
    match kind {
        "+" | ":" => Ok(rest.to_owned()),
        "-" => Err(io::Error::other(rest.to_owned())),
        "$" => bulk(replies, length()?),
        "*" => {
            let parts: io::Result<Vec<_>> = (0..length()?).map(|_| read(replies)).collect();
            Ok(parts?.join("\n"))
        }
        _ => Err(io::Error::other(format!("not an answer of Redis: {line}"))),
    }
}

fn bulk(replies: &mut impl BufRead, length: i64) -> io::Result<String> {
    let Ok(length) = usize::try_from(length) else {
        return Ok(String::new());
    };
    let mut text = vec![0; length + 2];
    replies.read_exact(&mut text)?;
    text.truncate(length);
    String::from_utf8(text).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let answer = |text: &str| read(&mut text.as_bytes());
        assert_eq!(answer("+OK\r\n").unwrap(), "OK");
        assert_eq!(
            answer("*3\r\n$2\r\nab\r\n:7\r\n$-1\r\n").unwrap(),
            "ab\n7\n"
        );
        assert_eq!(answer("-ERR no\r\n").unwrap_err().to_string(), "ERR no");
        assert!(answer("").is_err() && answer("HTTP/1.1 400\r\n").is_err());
        assert_eq!(encoded(&["GET", "a"]), b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n");
    }
}
