//! One service process: its start, its end, and what is between.

use super::http::http_status;
use crate::proxy::{Peer, Processes};
use anyhow::{Context, Result, anyhow, bail};
use lineradb_common::clock::deadline_after;
use lineradb_common::faults::Fault;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// How long a process may take to become ready on a busy machine.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Lines of a log that an error ends with.
const TAIL_LINES: usize = 30;

/// One service process.
#[derive(Debug)]
pub struct Service {
    /// For people: `kvnode-1`.
    pub name: String,
    /// Who it is to the network.
    pub peer: Peer,
    /// Where it answers `/readyz`.
    pub http: SocketAddr,
    binary: PathBuf,
    arguments: Vec<String>,
    obeys: bool,
    log: PathBuf,
    /// So many bytes of the log are of earlier starts.
    log_before: usize,
    child: Option<Child>,
    processes: Arc<Processes>,
}

impl Service {
    /// A service that does not run yet. What keeps data gets a folder of its
    /// name under `root`; its log lies beside it.
    pub(super) fn new(
        root: &Path,
        peer: Peer,
        binary: &str,
        mut arguments: Vec<String>,
        obeys: bool,
        http: SocketAddr,
        processes: Arc<Processes>,
    ) -> Result<Service> {
        let name = peer.to_string();
        if !matches!(peer, Peer::Gateway(_)) {
            let data = root.join(&name);
            std::fs::create_dir_all(&data)?;
            arguments.extend(["--data".into(), data.display().to_string()]);
        }
        if obeys {
            arguments.push("--faults".into());
        }
        Ok(Service {
            log: root.join(format!("{name}.log")),
            name,
            peer,
            http,
            binary: binary_path(binary)?,
            arguments,
            obeys,
            log_before: 0,
            child: None,
            processes,
        })
    }

    /// Starts the process.
    ///
    /// # Errors
    /// When the binary is missing or its log cannot be opened.
    pub fn start(&mut self) -> Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        self.log_before = usize::try_from(log.metadata()?.len()).unwrap_or(usize::MAX);
        let child = Command::new(&self.binary)
            .args(&self.arguments)
            .stdin(match self.obeys {
                true => Stdio::piped(),
                false => Stdio::null(),
            })
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.binary.display()))?;
        self.processes.started(self.peer, child.id());
        self.child = Some(child);
        Ok(())
    }

    /// `kill -9`: no warning, no flush.
    ///
    /// # Errors
    /// When it was not running.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.take()?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for the exit code.
    ///
    /// # Errors
    /// When it was not running.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM)?;
        Ok(self.take()?.wait()?)
    }

    /// SIGSTOP: the process stands still, its sockets stay open.
    ///
    /// # Errors
    /// When it was not running.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(libc::SIGSTOP)
    }

    /// SIGCONT: it goes on, and knows nothing of the time between.
    ///
    /// # Errors
    /// When it was not running.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(libc::SIGCONT)
    }

    /// Has it break its disk or its clock. One that is ending does not hear it.
    ///
    /// # Errors
    /// When it is not running, or was not started to obey.
    pub fn tell(&mut self, fault: Fault) -> Result<()> {
        let input = self.child.as_mut().and_then(|child| child.stdin.as_mut());
        let input = input.ok_or_else(|| anyhow!("{} does not obey", self.name))?;
        match writeln!(input, "{fault}") {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            told => Ok(told?),
        }
    }

    fn signal(&mut self, signal: libc::c_int) -> Result<()> {
        let pid = self.pid().filter(|_| self.is_running());
        let pid = pid.ok_or_else(|| self.down())?;
        // SAFETY: sends a signal to a child that has not been waited for, so the pid is ours.
        match unsafe { libc::kill(pid as libc::pid_t, signal) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error().into()),
        }
    }

    fn take(&mut self) -> Result<Child> {
        self.processes.ended(self.peer);
        self.child.take().ok_or_else(|| self.down())
    }

    fn down(&self) -> anyhow::Error {
        anyhow!("{} does not run", self.name)
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// True while the process has not ended.
    pub fn is_running(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => false,
        }
    }

    /// How the process has ended, if that was by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok()?
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// When the process ends or does not become ready in time; the message
    /// ends with the last lines of its log.
    pub async fn ready(&mut self) -> Result<()> {
        let deadline = deadline_after(READY_TIMEOUT);
        loop {
            if http_status(self.http, "/readyz")
                .await
                .is_some_and(|s| s == 200)
            {
                return Ok(());
            }
            if !self.is_running() {
                bail!(
                    "{} ended before it was ready:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            if deadline.elapsed() > Duration::ZERO {
                bail!(
                    "{} is not ready after a minute:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The first panic in the log, if there is one: a process goes on without what
    /// panicked, and perhaps nobody notices.
    pub fn panic(&self) -> Option<String> {
        let log = std::fs::read_to_string(&self.log).ok()?;
        let at = log.find(" panicked at ")?;
        let begin = log[..at].rfind('\n').map_or(0, |end| end + 1);
        let lines: Vec<&str> = log[begin..].lines().take(2).collect();
        Some(format!("{}: {}", self.name, lines.join(" ")))
    }

    /// What the process has logged since it was started last.
    pub fn log_since_start(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(log.get(self.log_before..).unwrap_or_default()).into_owned()
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Best effort: it may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Binaries stand beside the running one (or above it, for a test binary).
/// A test that runs alone builds what is missing.
fn binary_path(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let mut folder = here
        .parent()
        .ok_or_else(|| anyhow!("no folder above {}", here.display()))?;
    if folder.ends_with("deps") {
        folder = folder.parent().unwrap_or(folder);
    }
    let path = folder.join(name);
    if !path.is_file() {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--package", name, "--bin", name]);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        let status = build.status().context("running cargo")?;
        if !status.success() || !path.is_file() {
            bail!("{} is missing: run `make build` first", path.display());
        }
    }
    Ok(path)
}
