//! The seam for spawning: every task and thread of a LineraDB process starts
//! here, with a name, so that a simulator can schedule them and a panic in one
//! is reported instead of vanishing.
#![allow(clippy::disallowed_methods)] // the one place that may spawn

use std::future::Future;
use tokio::task::JoinHandle;

/// Starts a task. A panic inside is logged with the task's name.
pub fn task<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    struct Report(&'static str);
    impl Drop for Report {
        fn drop(&mut self) {
            if std::thread::panicking() {
                tracing::error!(task = self.0, "task panicked");
            }
        }
    }
    tokio::spawn(async move {
        let _report = Report(name);
        future.await
    })
}

/// Starts an operating system thread with a name.
///
/// # Errors
/// When the operating system refuses another thread.
pub fn thread<F, T>(name: &str, f: F) -> std::io::Result<std::thread::JoinHandle<T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    std::thread::Builder::new().name(name.to_owned()).spawn(f)
}

/// Runs blocking work off the I/O workers.
///
/// # Errors
/// When the work panicked or the runtime is shutting down.
pub async fn blocking<F, T>(f: F) -> Result<T, tokio::task::JoinError>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    tokio::task::spawn_blocking(f).await
}

/// Runs work that may block its thread for long in the place where it stands;
/// the other tasks of the thread are given to another one. In a runtime of one
/// thread (tests) it simply runs.
pub fn stalling<T>(f: impl FnOnce() -> T) -> T {
    let several = tokio::runtime::Handle::try_current()
        .is_ok_and(|h| h.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread);
    if several {
        tokio::task::block_in_place(f)
    } else {
        f()
    }
}
