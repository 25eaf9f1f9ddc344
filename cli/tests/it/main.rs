//! `lineradb` as programs use it: flags, JSON, exit codes, signals.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

fn lineradb(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lineradb"));
    command.args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    lineradb(arguments).output().unwrap()
}

fn json_of(bytes: &[u8]) -> Value {
    let text = std::str::from_utf8(bytes).unwrap();
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A running `lineradb dev`; killed and removed with it.
struct Dev {
    process: Child,
    ready: Value,
    data: PathBuf,
}

impl Dev {
    fn start(name: &str) -> Dev {
        let data = std::env::temp_dir().join(format!("lineradb-cli-{name}-{}", std::process::id()));
        let mut command = lineradb(&["dev", "--json", "--kvnodes", "1"]);
        for port in ["--pg-port", "--http-port", "--kv-port", "--meta-port"] {
            command.args([port, "0"]);
        }
        command.arg("--data").arg(&data);
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(process.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        Dev {
            process,
            ready: json_of(line.as_bytes()),
            data,
        }
    }

    fn text(&self, pointer: &str) -> &str {
        self.ready.pointer(pointer).unwrap().as_str().unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

#[test]
fn a_cluster_for_programs() {
    let mut dev = Dev::start("json");
    assert_eq!(dev.ready["ready"], true);
    let url = dev.text("/pg").to_owned();
    let kv = dev.text("/kv/0").to_owned();

    let sql = |text: &str| run(&["sql", "--json", "--url", &url, "-c", text]);
    let selected = sql("SELECT 1 AS a, 'x' AS b");
    assert!(selected.status.success());
    assert_eq!(json_of(&selected.stdout), json!([{"a": 1, "b": "x"}]));
    let failed = sql("SELECT 1/0");
    assert_eq!(failed.status.code(), Some(1));
    assert!(failed.stdout.is_empty());
    assert_eq!(json_of(&failed.stderr)["error"]["code"], "22012");

    let kv = |arguments: &[&str]| {
        let mut all = vec!["kv", "--json", "--address", &kv];
        all.extend(arguments);
        run(&all)
    };
    assert!(kv(&["put", "k", "v"]).status.success());
    assert_eq!(json_of(&kv(&["get", "k"]).stdout)["value"], "v");
    let pairs = json_of(&kv(&["scan"]).stdout);
    assert_eq!(pairs[0]["key"], "k");
    assert!(kv(&["delete", "k"]).status.success());
    let gone = kv(&["get", "k"]);
    assert_eq!(gone.status.code(), Some(1));
    assert_eq!(json_of(&gone.stdout)["found"], false);
    let wrong = kv(&["get", "\\xzz"]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(json_of(&wrong.stderr)["error"]["message"].is_string());

    // A port that is taken is named with the flag that changes it.
    let port = url.rsplit(['/', ':']).nth(1).unwrap();
    let folder = dev.data.join("other");
    let mut other = lineradb(&["dev", "--pg-port", port, "--http-port", "0"]);
    other.args(["--kv-port", "0", "--meta-port", "0"]);
    let refused = other.arg("--data").arg(&folder).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(
        message.contains(port) && message.contains("--pg-port"),
        "{message}"
    );

    // SIGTERM drains and ends with 0.
    let pid = dev.process.id().to_string();
    assert!(Command::new("kill").arg(&pid).status().unwrap().success());
    assert!(dev.process.wait().unwrap().success());
}

#[test]
fn flags() {
    for arguments in [&["--version"][..], &["--help"], &["sql", "--help"]] {
        assert!(run(arguments).status.success(), "{arguments:?}");
    }
    for arguments in [&["dev", "--no-such-flag"][..], &["dev", "--kvnodes", "2"]] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    let nobody = [
        "sql",
        "--json",
        "--url",
        "postgres://127.0.0.1:1/x",
        "-c",
        "SELECT 1",
    ];
    let refused = run(&nobody);
    assert_eq!(refused.status.code(), Some(1));
    assert!(json_of(&refused.stderr)["error"]["message"].is_string());
}
