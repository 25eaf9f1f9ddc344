//! What the sessions of a gateway are doing: `pg_stat_activity` and
//! `lineradb_internal.transactions`.

use lineradb_common::TxnId;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The sessions of a gateway.
#[derive(Debug, Default)]
pub struct Activities(Mutex<BTreeMap<i32, Arc<Activity>>>);

/// One session.
#[derive(Debug)]
pub struct Activity {
    /// The process id that its client was told.
    pub pid: i32,
    /// Who is connected.
    pub user: String,
    /// When it was opened, microseconds since 1970.
    pub began_us: i64,
    now: Mutex<Doing>,
}

/// What a session is doing.
#[derive(Clone, Debug)]
pub struct Doing {
    /// The name that the client gave itself.
    pub application_name: String,
    /// The last statement.
    pub query: Arc<str>,
    /// When that began.
    pub query_us: i64,
    /// It runs.
    pub runs: bool,
    /// The open transaction.
    pub transaction: Option<Open>,
}

/// An open transaction.
#[derive(Clone, Debug)]
pub struct Open {
    /// Its id, by which locks are known.
    pub id: TxnId,
    /// Its level, as SHOW gives it.
    pub isolation: &'static str,
    /// It writes nothing.
    pub read_only: bool,
    /// When it began.
    pub began_us: i64,
    /// Statements that ran in it.
    pub statements: u64,
    /// Only ROLLBACK is left.
    pub failed: bool,
}

impl Activities {
    /// A session that was opened.
    pub fn open(&self, pid: i32, user: &str, application_name: &str, now_us: i64) -> Arc<Activity> {
        let activity = Arc::new(Activity {
            pid,
            user: user.to_owned(),
            began_us: now_us,
            now: Mutex::new(Doing {
                application_name: application_name.to_owned(),
                query: "".into(),
                query_us: now_us,
                runs: false,
                transaction: None,
            }),
        });
        self.0.lock().insert(pid, Arc::clone(&activity));
        activity
    }

    /// A session that has ended.
    pub fn close(&self, pid: i32) {
        self.0.lock().remove(&pid);
    }

    /// All sessions, by process id.
    pub fn all(&self) -> Vec<(Arc<Activity>, Doing)> {
        let all: Vec<_> = self.0.lock().values().cloned().collect();
        { all.into_iter() }
            .map(|activity| {
                let now = activity.now.lock().clone();
                (activity, now)
            })
            .collect()
    }
}

impl Activity {
    /// A statement begins.
    pub fn begin(&self, query: &Arc<str>, application_name: &str, now_us: i64) {
        let mut now = self.now.lock();
        now.query = Arc::clone(query);
        now.query_us = now_us;
        now.runs = true;
        if now.application_name != application_name {
            now.application_name = application_name.to_owned();
        }
    }

    /// It runs in this transaction.
    pub fn runs_in(&self, transaction: Open) {
        self.now.lock().transaction = Some(transaction);
    }

    /// Its transaction is over.
    pub fn leaves(&self) {
        self.now.lock().transaction = None;
    }

    /// It is over; what stays open.
    pub fn end(&self, transaction: Option<Open>) {
        let mut now = self.now.lock();
        now.runs = false;
        now.transaction = transaction;
    }
}

impl Doing {
    /// In `pg_stat_activity`'s words.
    pub fn state(&self) -> &'static str {
        match (self.runs, &self.transaction) {
            (true, _) => "active",
            (false, Some(open)) if open.failed => "idle in transaction (aborted)",
            (false, Some(_)) => "idle in transaction",
            (false, None) => "idle",
        }
    }
}
