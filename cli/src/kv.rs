//! `lineradb kv`: the key-value API from the command line. Any kvnode will do:
//! it answers for every key.
//!
//! Keys and values are bytes. On the command line and in the output they are
//! text where they are UTF-8, else `\x` and hexadecimal digits (as bytea is in
//! SQL); a literal text that begins with `\x` is given in that form too.

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use lineradb_proto::kv::v1::kv_client::KvClient;
use lineradb_proto::kv::v1::{
    DeleteRequest, GetRequest, PutRequest, ScanRequest, WatchRequest, change,
};
use serde_json::json;
use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Reads and writes keys.
#[derive(Debug, Args)]
pub struct KvArgs {
    /// Any kvnode.
    #[arg(
        long,
        global = true,
        env = "LINERADB_KV_ADDRESS",
        default_value = "127.0.0.1:9090"
    )]
    pub address: String,
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// Give up after so many milliseconds.
    #[arg(long, global = true, default_value_t = 10_000)]
    pub timeout_ms: u64,
    /// What to do.
    #[command(subcommand)]
    pub command: KvCommand,
}

/// What `lineradb kv` does.
#[derive(Debug, Subcommand)]
pub enum KvCommand {
    /// Print the value of a key; exit code 1 when there is none.
    Get {
        /// The key.
        key: String,
    },
    /// Write a value.
    Put {
        /// The key.
        key: String,
        /// The value; `-` reads it from standard input.
        value: String,
        /// Make repeats of this command take effect once.
        #[arg(long, default_value = "")]
        idempotency_key: String,
    },
    /// Delete a key.
    Delete {
        /// The key.
        key: String,
        /// Make repeats of this command take effect once.
        #[arg(long, default_value = "")]
        idempotency_key: String,
    },
    /// List pairs in key order, from one snapshot.
    Scan {
        /// First key.
        #[arg(default_value = "")]
        start: String,
        /// First key that is not listed; none: to the end.
        #[arg(default_value = "")]
        end: String,
        /// At most so many; 0: all.
        #[arg(long, default_value_t = 0)]
        limit: u64,
        /// From the end.
        #[arg(long)]
        reverse: bool,
    },
    /// Print changes as they are committed, until interrupted.
    Watch {
        /// The key; none: all keys, or those that --prefix names.
        #[arg(default_value = "", conflicts_with = "prefix")]
        key: String,
        /// All keys that begin like this.
        #[arg(long, default_value = "")]
        prefix: String,
        /// Changes after this timestamp, such as a version; 0: from now on.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// End after so many changes; 0: never.
        #[arg(long, default_value_t = 0)]
        limit: u64,
    },
}

/// Runs the command.
///
/// # Errors
/// When the node does not answer, or answers an error.
pub async fn run(args: KvArgs) -> anyhow::Result<ExitCode> {
    let mut client = connect(&args.address).await?;
    let timeout = Duration::from_millis(args.timeout_ms);
    match &args.command {
        KvCommand::Get { key } => {
            let request = GetRequest {
                key: parse(key)?.into(),
            };
            let reply = client
                .get(with_timeout(request, timeout))
                .await
                .map_err(describe)?
                .into_inner();
            if args.json {
                let value = reply.found.then(|| show(&reply.value));
                println!(
                    "{}",
                    json!({"key": key, "found": reply.found, "value": value, "version": reply.version.to_string()})
                );
            } else if reply.found {
                println!("{}", show(&reply.value));
            } else {
                eprintln!("no such key");
            }
            Ok(ExitCode::from(u8::from(!reply.found)))
        }
        KvCommand::Put {
            key,
            value,
            idempotency_key,
        } => {
            let value = if value == "-" {
                let mut bytes = Vec::new();
                std::io::stdin()
                    .lock()
                    .read_to_end(&mut bytes)
                    .context("standard input cannot be read")?;
                bytes
            } else {
                parse(value)?
            };
            let request = PutRequest {
                key: parse(key)?.into(),
                value: value.into(),
                idempotency_key: idempotency_key.clone(),
            };
            let reply = client
                .put(with_timeout(request, timeout))
                .await
                .map_err(describe)?
                .into_inner();
            done(&args, reply.header.map_or(0, |h| h.timestamp));
            Ok(ExitCode::SUCCESS)
        }
        KvCommand::Delete {
            key,
            idempotency_key,
        } => {
            let request = DeleteRequest {
                key: parse(key)?.into(),
                idempotency_key: idempotency_key.clone(),
            };
            let reply = client
                .delete(with_timeout(request, timeout))
                .await
                .map_err(describe)?
                .into_inner();
            done(&args, reply.header.map_or(0, |h| h.timestamp));
            Ok(ExitCode::SUCCESS)
        }
        KvCommand::Scan {
            start,
            end,
            limit,
            reverse,
        } => {
            let request = ScanRequest {
                start: parse(start)?.into(),
                end: parse(end)?.into(),
                reverse: *reverse,
                limit: *limit,
            };
            scan(&mut client, with_timeout(request, timeout), args.json).await
        }
        KvCommand::Watch {
            key,
            prefix,
            from,
            limit,
        } => {
            let request = WatchRequest {
                key: parse(key)?.into(),
                prefix: parse(prefix)?.into(),
                from_timestamp: *from,
                ..WatchRequest::default()
            };
            watch(&mut client, request, *limit, args.json).await
        }
    }
}

/// One line for each change.
async fn watch(
    client: &mut KvClient<Channel>,
    request: WatchRequest,
    limit: u64,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let mut messages = client.watch(request).await.map_err(describe)?.into_inner();
    let mut count = 0;
    while let Some(message) = messages.message().await.map_err(describe)? {
        for change in message.changes {
            let (key, put) = (show(&change.key), change.kind() == change::Kind::Put);
            let value = put.then(|| show(&change.value));
            if as_json {
                let version = change.version.to_string();
                println!(
                    "{}",
                    json!({"key": key, "value": value, "version": version})
                );
            } else {
                match value {
                    Some(value) => println!("{} put {key} {value}", change.version),
                    None => println!("{} delete {key}", change.version),
                }
            }
            count += 1;
            if count == limit {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
    bail!("the node has ended the watch")
}

async fn scan(
    client: &mut KvClient<Channel>,
    request: tonic::Request<ScanRequest>,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let mut pages = client.scan(request).await.map_err(describe)?.into_inner();
    let mut pairs = Vec::new();
    while let Some(page) = pages.message().await.map_err(describe)? {
        pairs.extend(page.pairs);
    }
    if as_json {
        let pairs = pairs.iter().map(|pair| {
            json!({
                "key": show(&pair.key),
                "value": show(&pair.value),
                "version": pair.version.to_string(),
            })
        });
        println!("{}", serde_json::Value::Array(pairs.collect()));
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = table(["key", "value"]);
    let count = pairs.len();
    for pair in pairs {
        table.add_row([show(&pair.key), show(&pair.value)]);
    }
    println!("{table}");
    println!("({count} {})", if count == 1 { "pair" } else { "pairs" });
    Ok(ExitCode::SUCCESS)
}

async fn connect(address: &str) -> anyhow::Result<KvClient<Channel>> {
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .with_context(|| format!("{address:?} is not an address; write host:port"))?
        .connect_timeout(Duration::from_secs(3))
        .connect()
        .await
        .with_context(|| {
            format!("no kvnode answers at {address}; name another one with --address")
        })?;
    Ok(KvClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

fn with_timeout<T>(message: T, timeout: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(timeout);
    request
}

fn describe(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{:?}: {}", status.code(), status.message())
}

fn done(args: &KvArgs, timestamp: u64) {
    if args.json {
        println!("{}", json!({"timestamp": timestamp.to_string()}));
    } else {
        println!("OK");
    }
}

/// An aligned table with a header line.
pub(crate) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_BORDERS_ONLY_CONDENSED);
    table.set_header(header);
    table
}

/// Bytes for people: text, or `\x` and hexadecimal digits.
pub(crate) fn show(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.starts_with("\\x") && !text.chars().any(char::is_control) => {
            text.to_owned()
        }
        _ => {
            let digits: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            format!("\\x{digits}")
        }
    }
}

/// The bytes that a command-line argument means.
pub(crate) fn parse(text: &str) -> anyhow::Result<Vec<u8>> {
    let Some(digits) = text.strip_prefix("\\x") else {
        return Ok(text.as_bytes().to_vec());
    };
    if digits.len() % 2 != 0 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        bail!("{text:?}: after \\x come pairs of hexadecimal digits");
    }
    (0..digits.len())
        .step_by(2)
        .map(|i| Ok(u8::from_str_radix(&digits[i..i + 2], 16)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_showing_and_parsing() {
        for bytes in [
            &b""[..],
            b"plain text",
            "grüße".as_bytes(),
            b"\\xff",
            &[0, 255, 16],
            b"line\nbreak",
        ] {
            assert_eq!(parse(&show(bytes)).unwrap(), bytes);
        }
        assert_eq!(show(&[0, 255]), "\\x00ff");
        assert!(parse("\\x0").is_err());
        assert!(parse("\\xzz").is_err());
    }
}
