//! `lineradb sql`: a SQL shell over the PostgreSQL protocol, in the manner of
//! psql: multi-line statements up to `;`, aligned tables, `\d`, `\timing`,
//! Ctrl-C cancels the running statement.
//!
//! It is an ordinary client (tokio-postgres, simple protocol): what it can do,
//! any driver can. A script (`-c`, `-f`, standard input that is no terminal)
//! stops at its first error and exits with 1.

mod meta;
mod run;
mod split;
mod table;

use anyhow::{Context, Result};
use lineradb_common::spawn;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use run::Shell;
use split::{Open, Splitter};

/// Flags of `lineradb sql`.
#[derive(Clone, Debug, clap::Args)]
pub struct SqlArgs {
    /// Where the server listens.
    #[arg(
        long,
        env = "LINERADB_URL",
        default_value = "postgres://lineradb@127.0.0.1:5432/lineradb"
    )]
    pub url: String,
    /// Run this text and exit; may be given several times.
    #[arg(short = 'c', long = "command", value_name = "SQL")]
    pub commands: Vec<String>,
    /// Run this file and exit (`-` is standard input).
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Print each result as a JSON array of objects, and errors as JSON objects
    /// (on standard error).
    #[arg(long)]
    pub json: bool,
    /// Print one line per value.
    #[arg(short = 'x', long)]
    pub expanded: bool,
}

/// Runs the shell until its script ends or the user leaves.
///
/// # Errors
/// When the server cannot be reached or a file cannot be read.
pub async fn run(args: SqlArgs) -> Result<ExitCode> {
    let mut shell = Shell::connect(&args).await?;
    if args.commands.is_empty() && args.files.is_empty() {
        if std::io::stdin().is_terminal() {
            return interactive(shell).await;
        }
        return Ok(script(&mut shell, &read_stdin().await?).await);
    }
    for command in &args.commands {
        let ok = if command.trim_start().starts_with('\\') {
            shell.meta(command.trim()).await
        } else {
            // One message: several statements are one implicit transaction.
            shell.simple(command).await
        };
        if !ok {
            return Ok(ExitCode::FAILURE);
        }
    }
    for file in &args.files {
        let text = if file.as_os_str() == "-" {
            read_stdin().await?
        } else {
            std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?
        };
        let code = script(&mut shell, &text).await;
        if code != ExitCode::SUCCESS {
            return Ok(code);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn read_stdin() -> Result<String> {
    let read = || {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    };
    spawn::blocking(read)
        .await?
        .context("reading standard input")
}

/// Runs a script, statement by statement, up to its first error.
async fn script(shell: &mut Shell, text: &str) -> ExitCode {
    let mut splitter = Splitter::default();
    let mut lines = text.split_inclusive('\n');
    while let Some(line) = lines.next() {
        if splitter.open() == Open::Nothing && line.trim_start().starts_with('\\') {
            if !shell.meta(line.trim()).await {
                return ExitCode::FAILURE;
            }
            if shell.quit {
                return ExitCode::SUCCESS;
            }
            continue;
        }
        for statement in splitter.push(line) {
            let ok = if run::is_copy_in(&statement) {
                // The data follow in the script, up to `\.`.
                let data: Vec<&str> = lines
                    .by_ref()
                    .take_while(|line| line.trim_end() != "\\.")
                    .collect();
                shell.copy_in(&statement, data.concat()).await
            } else {
                shell.simple(&statement).await
            };
            if !ok {
                return ExitCode::FAILURE;
            }
        }
    }
    match splitter.take() {
        Some(rest) if !shell.simple(&rest).await => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

async fn interactive(mut shell: Shell) -> Result<ExitCode> {
    println!("{}", shell.greeting().await);
    let history =
        std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".lineradb_history"));
    let mut editor = DefaultEditor::new()?;
    if let Some(path) = &history {
        // No history yet is no error.
        let _ = editor.load_history(path);
    }
    let mut splitter = Splitter::default();
    while !shell.quit {
        let prompt = shell.prompt(splitter.open());
        let (returned, line) = spawn::blocking(move || {
            let line = editor.readline(&prompt);
            (editor, line)
        })
        .await?;
        editor = returned;
        let line = match line {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                splitter = Splitter::default();
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        };
        if !line.trim().is_empty() {
            let _ = editor.add_history_entry(line.as_str());
        }
        // In the middle of a statement, too: it goes on afterwards.
        if splitter.open() != Open::Quoted && line.trim_start().starts_with('\\') {
            shell.meta(line.trim()).await;
            continue;
        }
        for statement in splitter.push(&format!("{line}\n")) {
            if run::is_copy_in(&statement) {
                eprintln!("COPY FROM STDIN needs a script: lineradb sql -f FILE");
            } else {
                shell.simple(&statement).await;
            }
        }
    }
    if let Some(path) = &history {
        let _ = editor.save_history(path);
    }
    Ok(ExitCode::SUCCESS)
}
