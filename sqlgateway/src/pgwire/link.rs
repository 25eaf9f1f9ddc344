//! The two buffers of a connection: framed messages in, gathered messages out.

use super::message::{self, BadMessage, Frontend, MAX_MESSAGE, MAX_STARTUP};
use super::output::Output;
use super::stream::Stream;
use bytes::{Buf, Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A connection: its stream and its buffers.
pub struct Link {
    /// The bytes' way.
    pub stream: Stream,
    /// Received, not decoded yet.
    pub input: BytesMut,
    /// To be sent.
    pub output: Output,
}

/// A received message, or why there is none.
pub enum Received {
    /// A message.
    Message(Frontend),
    /// Something that is none. `fatal`: the frames can no longer be told apart.
    Bad {
        /// What is wrong.
        error: BadMessage,
        /// The connection must end.
        fatal: bool,
        /// An extended-protocol message: skip to Sync.
        extended: bool,
    },
    /// The client went away.
    Closed,
}

impl Link {
    /// A link without anything received yet.
    pub fn new(stream: Stream) -> Self {
        Link {
            stream,
            input: BytesMut::with_capacity(8 << 10),
            output: Output::default(),
        }
    }

    /// The body of the next start-up packet; `None` when the client went away.
    ///
    /// # Errors
    /// When the connection breaks or the packet is too long.
    pub async fn startup(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(length) = self.length_at(0) {
                if !(8..=MAX_STARTUP).contains(&length) {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "invalid length of startup packet",
                    ));
                }
                if self.input.len() >= length {
                    let mut packet = self.input.split_to(length);
                    packet.advance(4);
                    return Ok(Some(packet.freeze()));
                }
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Ok(None);
            }
        }
    }

    fn length_at(&self, at: usize) -> Option<usize> {
        let bytes = self.input.get(at..at + 4)?;
        Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    }

    /// A message that is already here.
    pub fn buffered(&mut self) -> Option<Received> {
        let length = self.length_at(1)?;
        let kind = self.input[0];
        if !(4..=MAX_MESSAGE).contains(&length) {
            return Some(Received::Bad {
                error: BadMessage {
                    sqlstate: "08P01",
                    message: format!("invalid message length {length}"),
                },
                fatal: true,
                extended: false,
            });
        }
        if self.input.len() < length + 1 {
            // One allocation for a long message instead of many.
            self.input.reserve(length + 1 - self.input.len());
            return None;
        }
        let mut frame = self.input.split_to(length + 1);
        frame.advance(5);
        Some(match message::decode(kind, frame.freeze()) {
            Ok(message) => Received::Message(message),
            Err(error) => Received::Bad {
                fatal: !b"QPBDCESHdcfXpF".contains(&kind),
                extended: b"PBDCEH".contains(&kind),
                error,
            },
        })
    }

    /// True when the client is known to have nothing but Sync to come in this
    /// pipeline: the statement that runs now is its last.
    pub fn sync_follows(&self) -> bool {
        let mut at = 0;
        while let Some(kind) = self.input.get(at) {
            match kind {
                b'S' => return true,
                // Close and Flush run nothing.
                b'C' | b'H' => match self.length_at(at + 1) {
                    Some(length) => at += length + 1,
                    None => return false,
                },
                _ => return false,
            }
        }
        false
    }

    /// Reads more; false when the client went away. Cancel safe: what was read
    /// is in the buffer.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn fill(&mut self) -> io::Result<bool> {
        Ok(self.stream.read_buf(&mut self.input).await? > 0)
    }

    /// The next message. Sends what is pending before it waits.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn receive(&mut self) -> io::Result<Received> {
        loop {
            if let Some(received) = self.buffered() {
                return Ok(received);
            }
            self.flush().await?;
            if !self.fill().await? {
                return Ok(Received::Closed);
            }
        }
    }

    /// Sends what is pending.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn flush(&mut self) -> io::Result<()> {
        if !self.output.buffer.is_empty() {
            self.stream.write_all(&self.output.buffer).await?;
            self.output.buffer.clear();
            self.stream.flush().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lineradb_common::spawn;
    use tokio::net::{TcpListener, TcpStream};

    async fn pair() -> (Link, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = spawn::task("client", TcpStream::connect(address));
        let (server, _) = listener.accept().await.unwrap();
        let client = client.await.unwrap().unwrap();
        (Link::new(Stream::Plain(server)), client)
    }

    #[tokio::test]
    async fn messages_are_cut_out_by_their_length() {
        let (mut link, mut client) = pair().await;
        client
            .write_all(b"Q\0\0\0\x05\0S\0\0\0\x04Q\0\0")
            .await
            .unwrap();
        let message = |received| match received {
            Received::Message(message) => message,
            _ => panic!("no message"),
        };
        let first = message(link.receive().await.unwrap());
        assert_eq!(first, Frontend::Query(String::new()));
        assert!(link.sync_follows());
        assert_eq!(message(link.receive().await.unwrap()), Frontend::Sync);
        assert!(!link.sync_follows());
        drop(client);
        assert!(matches!(link.receive().await, Ok(Received::Closed)));
    }

    #[tokio::test]
    async fn a_length_beyond_the_limit_ends_the_connection() {
        let (mut link, mut client) = pair().await;
        client.write_all(b"Q\x7f\xff\xff\xff").await.unwrap();
        assert!(matches!(
            link.receive().await,
            Ok(Received::Bad { fatal: true, .. })
        ));
    }

    #[tokio::test]
    async fn sync_behind_close_and_flush_follows() {
        let (mut link, _client) = pair().await;
        link.input
            .extend_from_slice(b"C\0\0\0\x06S\0H\0\0\0\x04S\0\0\0\x04");
        assert!(link.sync_follows());
        link.input.clear();
        link.input.extend_from_slice(b"C\0\0\0\x06S\0P");
        assert!(!link.sync_follows());
    }
}
