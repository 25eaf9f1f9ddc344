//! What a client says: framing and decoding of frontend messages.
//!
//! `pgwire`'s message types encode our answers, but its frontend decoder is
//! not used: it reads past the end of a short message and replaces invalid
//! UTF-8 by U+FFFD, which would store another text than the one sent. Here
//! each message is cut out by its length first, every read is checked, and
//! text that is not UTF-8 is refused (22021). Nothing here does I/O.

use bytes::{Buf, Bytes};

/// The longest message a client may send (a COPY chunk, a statement, a Bind).
pub const MAX_MESSAGE: usize = 128 << 20;
/// The longest startup packet, as in PostgreSQL.
pub const MAX_STARTUP: usize = 10_000;

/// A message that cannot be understood: SQLSTATE and sentence.
#[derive(Debug, PartialEq, Eq)]
pub struct BadMessage {
    /// 08P01 for a broken frame, 22021 for text that is not UTF-8.
    pub sqlstate: &'static str,
    /// What is wrong with it.
    pub message: String,
}

impl BadMessage {
    fn protocol(message: impl Into<String>) -> Self {
        BadMessage {
            sqlstate: "08P01",
            message: message.into(),
        }
    }
}

/// What Describe and Close point at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A prepared statement.
    Statement,
    /// A bound statement.
    Portal,
}

/// A message after the startup phase.
#[derive(Debug, PartialEq)]
#[allow(missing_docs)] // the fields are those of the protocol's documentation
pub enum Frontend {
    Query(String),
    Parse {
        name: String,
        sql: String,
        types: Vec<u32>,
    },
    Bind(Bind),
    Describe {
        target: Target,
        name: String,
    },
    Execute {
        portal: String,
        max_rows: i32,
    },
    Close {
        target: Target,
        name: String,
    },
    Sync,
    Flush,
    CopyData(Bytes),
    CopyDone,
    CopyFail(String),
    Terminate,
    Password,
    FunctionCall,
}

impl Frontend {
    /// After an error in one of these, everything up to Sync is skipped.
    pub fn is_extended(&self) -> bool {
        matches!(
            self,
            Frontend::Parse { .. }
                | Frontend::Bind(_)
                | Frontend::Describe { .. }
                | Frontend::Execute { .. }
                | Frontend::Close { .. }
                | Frontend::Flush
        )
    }
}

/// Parameters for a prepared statement.
#[derive(Debug, Default, PartialEq)]
#[allow(missing_docs)] // as above
pub struct Bind {
    pub portal: String,
    pub statement: String,
    pub parameter_formats: Vec<i16>,
    pub parameters: Vec<Option<Bytes>>,
    pub result_formats: Vec<i16>,
}

/// The first packet of a connection.
#[derive(Debug, PartialEq)]
pub enum Startup {
    /// The client asks for TLS.
    Ssl,
    /// The client asks for GSSAPI encryption.
    Gss,
    /// Cancel what another connection runs.
    Cancel {
        /// Of BackendKeyData.
        pid: i32,
        /// Of BackendKeyData.
        secret: i32,
    },
    /// A session begins.
    Session {
        /// Requested protocol: major in the upper 16 bits.
        version: u32,
        /// `user`, `database`, `options` and settings.
        parameters: Vec<(String, String)>,
    },
}

/// Decodes the body of a startup packet (after its length).
///
/// # Errors
/// When it is too short, not terminated or of an unknown kind.
pub fn startup(body: Bytes) -> Result<Startup, BadMessage> {
    let mut reader = Reader { body };
    let code = reader.u32()?;
    match code {
        80_877_103 => Ok(Startup::Ssl),
        80_877_104 => Ok(Startup::Gss),
        80_877_102 => Ok(Startup::Cancel {
            pid: reader.u32()? as i32,
            secret: reader.u32()? as i32,
        }),
        version if version >> 16 == 3 => {
            let mut parameters = Vec::new();
            loop {
                let name = reader.text()?;
                if name.is_empty() {
                    break;
                }
                parameters.push((name, reader.text()?));
            }
            Ok(Startup::Session {
                version,
                parameters,
            })
        }
        version => Err(BadMessage {
            sqlstate: "0A000",
            message: format!(
                "unsupported frontend protocol {}.{}: server supports 3.0",
                version >> 16,
                version & 0xffff
            ),
        }),
    }
}

/// Decodes one message from its type byte and its body (without the length).
///
/// # Errors
/// When the type is unknown or the body does not hold what the type promises.
pub fn decode(kind: u8, body: Bytes) -> Result<Frontend, BadMessage> {
    let mut reader = Reader { body };
    let message = match kind {
        b'Q' => Frontend::Query(reader.text()?),
        b'P' => {
            let (name, sql) = (reader.text()?, reader.text()?);
            let count = reader.count(4)?;
            let types = (0..count).map(|_| reader.u32()).collect::<Result<_, _>>()?;
            Frontend::Parse { name, sql, types }
        }
        b'B' => {
            let (portal, statement) = (reader.text()?, reader.text()?);
            let parameter_formats = reader.formats()?;
            let count = reader.count(4)?;
            let mut parameters = Vec::with_capacity(count);
            for _ in 0..count {
                let length = reader.u32()? as i32;
                parameters.push(match usize::try_from(length) {
                    Ok(length) => Some(reader.bytes(length)?),
                    Err(_) if length == -1 => None,
                    Err(_) => return Err(BadMessage::protocol("invalid parameter length")),
                });
            }
            Frontend::Bind(Bind {
                portal,
                statement,
                parameter_formats,
                parameters,
                result_formats: reader.formats()?,
            })
        }
        b'D' => Frontend::Describe {
            target: reader.target()?,
            name: reader.text()?,
        },
        b'C' => Frontend::Close {
            target: reader.target()?,
            name: reader.text()?,
        },
        b'E' => Frontend::Execute {
            portal: reader.text()?,
            max_rows: reader.u32()? as i32,
        },
        b'S' => Frontend::Sync,
        b'H' => Frontend::Flush,
        b'd' => return Ok(Frontend::CopyData(reader.body)),
        b'c' => Frontend::CopyDone,
        b'f' => Frontend::CopyFail(reader.text()?),
        b'X' => Frontend::Terminate,
        b'p' => return Ok(Frontend::Password),
        b'F' => return Ok(Frontend::FunctionCall),
        other => {
            return Err(BadMessage::protocol(format!(
                "invalid frontend message type {other}"
            )));
        }
    };
    if reader.body.has_remaining() {
        return Err(BadMessage::protocol("invalid message format"));
    }
    Ok(message)
}

struct Reader {
    body: Bytes,
}

impl Reader {
    fn need(&self, count: usize) -> Result<(), BadMessage> {
        if self.body.remaining() < count {
            return Err(BadMessage::protocol("insufficient data left in message"));
        }
        Ok(())
    }

    fn u16(&mut self) -> Result<u16, BadMessage> {
        self.need(2)?;
        Ok(self.body.get_u16())
    }

    fn u32(&mut self) -> Result<u32, BadMessage> {
        self.need(4)?;
        Ok(self.body.get_u32())
    }

    fn bytes(&mut self, count: usize) -> Result<Bytes, BadMessage> {
        self.need(count)?;
        Ok(self.body.split_to(count))
    }

    /// A number of elements that fit into what is left.
    fn count(&mut self, size: usize) -> Result<usize, BadMessage> {
        let count = usize::from(self.u16()?);
        self.need(count * size)?;
        Ok(count)
    }

    fn formats(&mut self) -> Result<Vec<i16>, BadMessage> {
        let count = self.count(2)?;
        (0..count)
            .map(|_| match self.u16()? {
                format @ (0 | 1) => Ok(format as i16),
                other => Err(BadMessage::protocol(format!(
                    "unsupported format code: {other}"
                ))),
            })
            .collect()
    }

    fn target(&mut self) -> Result<Target, BadMessage> {
        self.need(1)?;
        match self.body.get_u8() {
            b'S' => Ok(Target::Statement),
            b'P' => Ok(Target::Portal),
            other => Err(BadMessage::protocol(format!(
                "invalid DESCRIBE or CLOSE message subtype {other}"
            ))),
        }
    }

    fn text(&mut self) -> Result<String, BadMessage> {
        let Some(end) = self.body.iter().position(|&byte| byte == 0) else {
            return Err(BadMessage::protocol("invalid string in message"));
        };
        let text = self.body.split_to(end);
        self.body.advance(1);
        match std::str::from_utf8(&text) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(BadMessage {
                sqlstate: "22021",
                message: format!(
                    "invalid byte sequence for encoding \"UTF8\": 0x{:02x}",
                    text[error.valid_up_to()]
                ),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bind_with_a_null_and_a_value() {
        let body = b"\0s\0\0\x01\0\x01\0\x02\xff\xff\xff\xff\0\0\0\x02ab\0\0";
        let Ok(Frontend::Bind(bind)) = decode(b'B', Bytes::from_static(body)) else {
            panic!("not a Bind");
        };
        assert_eq!(bind.statement, "s");
        assert_eq!(bind.parameter_formats, [1]);
        assert_eq!(bind.parameters, [None, Some(Bytes::from_static(b"ab"))]);
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_and_never_changed() {
        let error = decode(b'Q', Bytes::from_static(b"select '\xff'\0")).unwrap_err();
        assert_eq!(error.sqlstate, "22021");
        assert!(error.message.ends_with("0xff"), "{}", error.message);
    }

    #[test]
    fn a_message_that_lies_about_its_content_is_a_protocol_error() {
        for (kind, body) in [
            (b'B', &b"\0\0\0\x05"[..]),
            (b'P', b"\0select 1\0\xff\xff"),
            (b'E', b"\0\0"),
            (b'Q', b"select 1"),
            (b'S', b"x"),
            (b'?', b""),
        ] {
            assert_eq!(decode(kind, body.into()).unwrap_err().sqlstate, "08P01");
        }
    }

    #[test]
    fn startup_packets() {
        let mut body = 196_608u32.to_be_bytes().to_vec();
        body.extend(b"user\0ada\0database\0lineradb\0\0");
        assert_eq!(
            startup(body.into()).unwrap(),
            Startup::Session {
                version: 196_608,
                parameters: vec![
                    ("user".into(), "ada".into()),
                    ("database".into(), "lineradb".into())
                ]
            }
        );
        assert_eq!(
            startup(80_877_103u32.to_be_bytes().to_vec().into()).unwrap(),
            Startup::Ssl
        );
        assert!(startup(Bytes::from_static(b"\0\x02\0\0")).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(kind: u8, body: Vec<u8>) {
            let _ = decode(kind, body.clone().into());
            let _ = startup(body.into());
        }
    }
}
