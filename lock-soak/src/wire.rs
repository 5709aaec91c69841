use std::io;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::event::{Ask, Event};

/// Message that a client sends home, one JSON line each. Once sent, a message arrives even if its
/// sender is killed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Not answered.
    Report(Event),
    Read {
        ask: Ask,
        register: u32,
        token: u64,
    },
    Write {
        ask: Ask,
        register: u32,
        token: u64,
        value: u64,
    },
}

/// Answer of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The register has this value now.
    Value(u64),
    /// The register has seen a larger token.
    Refused,
}

/// One end of a connection of JSON lines.
#[derive(Debug)]
pub(crate) struct Line {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Line {
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        Ok(Self {
            reader: BufReader::new(reader),
            writer,
        })
    }

    pub(crate) async fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.writer.write_all(&line).await
    }

    /// `None` at the end, even where a killed sender left half a line.
    pub(crate) async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let mut line = String::new();
        self.reader.read_line(&mut line).await?;
        if line.ends_with('\n') {
            Ok(Some(serde_json::from_str(&line)?))
        } else {
            Ok(None)
        }
    }
}
