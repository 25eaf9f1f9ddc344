//! Transactions over HTTP: sessions that wait between requests, found by an id
//! that nobody can guess. One that is idle for too long is rolled back: the
//! client that left it may hold locks.

use super::error::HttpError;
use crate::error::SqlError;
use crate::session::Session;
use axum::http::StatusCode;
use lineradb_common::clock::Stopwatch;
use lineradb_common::random;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;

/// An idle transaction lives this long.
pub const IDLE_MAX: Duration = Duration::from_secs(60);
/// Open transactions of one gateway.
const OPEN_MAX: usize = 1_000;

/// A waiting session; `None` while a request uses it.
struct Waiting {
    session: Option<Session>,
    since: Stopwatch,
}

/// The open transactions.
#[derive(Default)]
pub struct Transactions {
    open: Mutex<HashMap<String, Waiting>>,
}

/// A transaction in use: give it back with [`Transactions::put`], or drop its
/// entry with [`Transactions::end`].
pub struct Taken {
    /// Its id.
    pub id: String,
    /// Its session.
    pub session: Session,
}

impl Transactions {
    /// Keeps a session whose transaction has begun; answers the id.
    ///
    /// # Errors
    /// 429 when too many are open; the session comes back to be closed.
    pub fn open(&self, session: Session) -> Result<String, (HttpError, Session)> {
        let mut open = self.open.lock();
        if open.len() >= OPEN_MAX {
            let error = HttpError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "53300",
                format!("{OPEN_MAX} transactions are open"),
            );
            return Err((error, session));
        }
        let id = random::uuid().simple().to_string();
        open.insert(
            id.clone(),
            Waiting {
                session: Some(session),
                since: Stopwatch::start(),
            },
        );
        Ok(id)
    }

    /// Takes a transaction for one request.
    ///
    /// # Errors
    /// 404 for an unknown id, 409 while another request uses it.
    pub fn take(&self, id: &str) -> Result<Taken, HttpError> {
        let mut open = self.open.lock();
        let waiting = open.get_mut(id).ok_or_else(|| unknown(id))?;
        match waiting.session.take() {
            Some(session) => Ok(Taken {
                id: id.to_owned(),
                session,
            }),
            None => Err(HttpError::new(
                StatusCode::CONFLICT,
                "55006",
                format!("another request is using transaction {id}"),
            )),
        }
    }

    /// Gives a transaction back.
    pub fn put(&self, id: &str, session: Session) {
        if let Some(waiting) = self.open.lock().get_mut(id) {
            waiting.session = Some(session);
            waiting.since = Stopwatch::start();
        }
    }

    /// Forgets a transaction that ended.
    pub fn end(&self, id: &str) {
        self.open.lock().remove(id);
    }

    /// Removes what has been idle for `max`; the sessions are to be closed.
    pub fn expire(&self, max: Duration) -> Vec<Session> {
        self.open
            .lock()
            .extract_if(|_, waiting| waiting.session.is_some() && waiting.since.elapsed() >= max)
            .filter_map(|(_, waiting)| waiting.session)
            .collect()
    }
}

fn unknown(id: &str) -> HttpError {
    let mut error = HttpError::new(
        StatusCode::NOT_FOUND,
        "25P01",
        format!("there is no transaction {id:?}"),
    );
    error.error = SqlError::with_hint(
        error.error,
        format!("It has ended, or it was idle for {} s.", IDLE_MAX.as_secs()),
    );
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_transaction_is_404() {
        let Err(error) = Transactions::default().take("nope") else {
            panic!("found");
        };
        assert_eq!(error.status, StatusCode::NOT_FOUND);
        assert_eq!(error.error.sqlstate, "25P01");
    }
}
