//! One client's session: the main loop, the simple protocol, and what both
//! protocols share (results, COPY, errors).

use super::extended::Extended;
use super::link::{Link, Received};
use super::message::{Frontend, Target};
use super::rows::{Progress, Rows, SendError};
use crate::encode::Format;
use crate::error::SqlError;
use crate::metrics;
use crate::session::{CopyIn, CopyOut, Outcome, Session, TransactionStatus};
use futures::StreamExt;
use lineradb_common::clock::{Stopwatch, deadline_after};
use std::io;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A connection after its start-up.
pub struct Connection {
    /// The SQL side.
    pub session: Session,
    /// The wire side.
    pub link: Link,
    /// Prepared statements and portals.
    pub extended: Extended,
    /// After an error in the extended protocol: everything up to Sync is void.
    skipping: bool,
    /// When a client that says nothing more is sent away, and with what error.
    idle: Option<(Instant, SqlError)>,
}

/// What a message led to.
type Handled = Result<(), SendError>;

impl Connection {
    /// A connection whose first ReadyForQuery is sent.
    pub fn new(session: Session, link: Link) -> Self {
        Connection {
            session,
            link,
            extended: Extended::default(),
            skipping: false,
            idle: None,
        }
    }

    /// Serves until the client leaves, the connection breaks, or `drain` is
    /// cancelled and no transaction is open.
    pub async fn serve(mut self, drain: &CancellationToken) {
        if let Err(error) = self.run(drain).await {
            tracing::debug!(%error, "connection ended");
        }
        self.session.close().await;
    }

    async fn run(&mut self, drain: &CancellationToken) -> io::Result<()> {
        self.idle = self.idle_end();
        loop {
            let received = match self.link.buffered() {
                Some(received) => received,
                None => {
                    self.link.flush().await?;
                    let idle = self.session.transaction_status() == TransactionStatus::Idle;
                    let end = self.idle.clone();
                    tokio::select! {
                        biased;
                        () = drain.cancelled(), if idle => {
                            let message =
                                "terminating connection due to administrator command";
                            return self.terminate(&SqlError::new("57P01", message)).await;
                        }
                        more = self.link.fill() => {
                            if more? {
                                continue;
                            }
                            Received::Closed
                        }
                        error = idle_for_long(end) => return self.terminate(&error).await,
                    }
                }
            };
            let message = match received {
                Received::Closed | Received::Message(Frontend::Terminate) => return Ok(()),
                Received::Message(message) => message,
                Received::Bad {
                    error,
                    fatal,
                    extended,
                } => {
                    let error = SqlError::new(error.sqlstate, error.message);
                    if fatal {
                        self.link.output.error("FATAL", &error);
                        return self.link.flush().await;
                    }
                    if !self.skipping {
                        self.session.fail();
                        self.link.output.error("ERROR", &error);
                        self.skipping = extended;
                        if !extended {
                            self.ready();
                        }
                    }
                    continue;
                }
            };
            self.idle = None;
            self.handle(message).await?;
        }
    }

    async fn terminate(&mut self, error: &SqlError) -> io::Result<()> {
        self.link.output.error("FATAL", error);
        self.link.flush().await
    }

    /// What ends the pause that begins with a ReadyForQuery.
    fn idle_end(&self) -> Option<(Instant, SqlError)> {
        let settings = self.session.settings();
        let (timeout, sqlstate, message) = match self.session.transaction_status() {
            TransactionStatus::Idle => (
                settings.idle_session_timeout,
                "57P05",
                "terminating connection due to idle-session timeout",
            ),
            TransactionStatus::InTransaction | TransactionStatus::Failed => (
                settings.idle_in_transaction_timeout,
                "25P03",
                "terminating connection due to idle-in-transaction timeout",
            ),
        };
        timeout.map(|t| (deadline_after(t), SqlError::new(sqlstate, message)))
    }

    async fn handle(&mut self, message: Frontend) -> io::Result<()> {
        if self.skipping && !matches!(message, Frontend::Sync) {
            // A simple query inside a failed pipeline is skipped as well.
            return Ok(());
        }
        let extended = message.is_extended();
        let handled = match message {
            Frontend::Query(sql) => {
                let result = self.query(&sql).await;
                return self.finish_query(result).await;
            }
            Frontend::Sync => {
                self.skipping = false;
                return self.sync().await;
            }
            Frontend::Parse { name, sql, types } => self.parse(name, &sql, &types).await,
            Frontend::Bind(bind) => self.bind(bind),
            Frontend::Describe { target, name } => self.describe(target, &name),
            Frontend::Execute { portal, max_rows } => self.execute(&portal, max_rows).await,
            Frontend::Close { target, name } => {
                match target {
                    Target::Statement => self.session.close_prepared(&name),
                    Target::Portal => self.extended.close_portal(&name),
                }
                self.link.output.closed();
                Ok(())
            }
            Frontend::Flush => return self.link.flush().await,
            // The rest of a COPY that failed.
            Frontend::CopyData(_) | Frontend::CopyDone | Frontend::CopyFail(_) => Ok(()),
            Frontend::FunctionCall => {
                let error = SqlError::unsupported("the function call protocol");
                self.link.output.error("ERROR", &error);
                self.ready();
                Ok(())
            }
            Frontend::Password => {
                let error = SqlError::new("08P01", "unexpected password message");
                self.link.output.error("ERROR", &error);
                self.ready();
                Ok(())
            }
            Frontend::Terminate => Ok(()),
        };
        match handled {
            Ok(()) => Ok(()),
            Err(SendError::Io(error)) => Err(error),
            Err(SendError::Sql(error)) => {
                // It may have come from outside of any statement (a parameter
                // that does not decode).
                self.session.fail();
                self.link.output.error("ERROR", &error);
                self.skipping = extended;
                Ok(())
            }
        }
    }

    /// The simple protocol: every statement of the text, results as they come.
    async fn query(&mut self, sql: &str) -> Handled {
        // A simple query destroys the unnamed statement and portal.
        self.session.close_prepared("");
        self.extended.close_portal("");
        let kind = metrics::kind_of(sql);
        let mut watch = Stopwatch::start();
        let mut query = match self.session.begin_simple(sql) {
            Ok(query) => query,
            Err(error) => {
                metrics::statement(kind, &error.sqlstate, watch.elapsed());
                return Err(error.into());
            }
        };
        let mut any = false;
        while let Some(outcome) = self.session.next_simple(&mut query).await {
            any = true;
            let result = match outcome {
                Ok(outcome) => self.simple_outcome(outcome).await,
                Err(error) => Err(error.into()),
            };
            match result {
                Ok(tag) => metrics::statement(metrics::kind_of(&tag), "00000", watch.elapsed()),
                Err(error) => {
                    if let SendError::Sql(error) = &error {
                        metrics::statement(kind, &error.sqlstate, watch.elapsed());
                    }
                    return Err(error);
                }
            }
            watch = Stopwatch::start();
        }
        if !any {
            self.link.output.empty_query();
        }
        Ok(())
    }

    /// Sends one outcome of a simple query; answers its command tag.
    async fn simple_outcome(&mut self, outcome: Outcome) -> Result<String, SendError> {
        let tag = match outcome {
            Outcome::Rows {
                columns,
                stream,
                tag,
                count,
            } => {
                let formats = vec![Format::Text; columns.len()];
                self.link.output.columns(&columns, &formats);
                let zone = self.session.settings().time_zone.clone();
                let mut rows = Rows::new(stream, &columns, &formats, zone);
                match rows.send(&mut self.link, 0).await? {
                    Progress::Done(sent) => complete_tag(tag, count, sent),
                    Progress::Suspended => tag.to_owned(),
                }
            }
            Outcome::Command { tag, .. } => tag,
            Outcome::CopyIn(copy) => self.copy_in(copy).await?,
            Outcome::CopyOut(copy) => self.copy_out(copy).await?,
            Outcome::Empty => {
                self.link.output.empty_query();
                return Ok(String::new());
            }
        };
        self.news();
        self.link.output.complete(tag.clone());
        Ok(tag)
    }

    async fn finish_query(&mut self, result: Handled) -> io::Result<()> {
        if result.is_err() {
            self.session.fail();
        }
        // Also after an error: what the query left open is rolled back.
        let ended = self.session.sync().await;
        match (result, ended) {
            (Err(SendError::Io(error)), _) => return Err(error),
            (Err(SendError::Sql(error)), _) | (Ok(()), Err(error)) => {
                self.link.output.error("ERROR", &error);
            }
            (Ok(()), Ok(())) => {}
        }
        self.ready();
        Ok(())
    }

    async fn sync(&mut self) -> io::Result<()> {
        // Rows that were not fetched belong to the transaction that ends now.
        if self.session.transaction_status() == TransactionStatus::Idle {
            self.extended.close_portals();
        }
        if let Err(error) = self.session.sync().await {
            self.link.output.error("ERROR", &error);
        }
        self.ready();
        Ok(())
    }

    fn ready(&mut self) {
        let status = self.session.transaction_status();
        if status != TransactionStatus::InTransaction {
            self.extended.close_portals();
        }
        self.news();
        self.link.output.ready(status);
        self.idle = self.idle_end();
    }

    /// Notices and changed settings, before the message that ends a statement.
    pub fn news(&mut self) {
        for notice in self.session.take_notices() {
            self.link.output.notice(&notice);
        }
        for (name, value) in self.session.take_parameter_changes() {
            self.link.output.parameter(name, value);
        }
    }

    /// Receives the data of a COPY; answers the command tag.
    pub async fn copy_in(&mut self, mut copy: CopyIn) -> Result<String, SendError> {
        self.link.output.copy_in(copy.columns().len());
        loop {
            let message = match self.link.receive().await? {
                Received::Message(message) => message,
                Received::Bad { error, .. } => {
                    copy.fail(&mut self.session, &error.message).await;
                    return Err(SqlError::new(error.sqlstate, error.message).into());
                }
                Received::Closed => {
                    copy.fail(&mut self.session, "connection lost").await;
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            };
            match message {
                Frontend::CopyData(data) => {
                    if let Err(error) = copy.write(&data).await {
                        copy.fail(&mut self.session, &error.message).await;
                        return Err(error.into());
                    }
                }
                Frontend::CopyDone => {
                    let rows = copy.finish(&mut self.session).await?;
                    return Ok(format!("COPY {rows}"));
                }
                Frontend::CopyFail(message) => {
                    return Err(copy.fail(&mut self.session, &message).await.into());
                }
                // Drivers pipeline the Sync right behind the Execute.
                Frontend::Flush | Frontend::Sync => {}
                _ => {
                    let message = "unexpected message type during COPY from stdin";
                    copy.fail(&mut self.session, message).await;
                    return Err(SqlError::new("08P01", message).into());
                }
            }
        }
    }

    /// Sends the data of a COPY; answers the command tag.
    pub async fn copy_out(&mut self, mut copy: CopyOut) -> Result<String, SendError> {
        self.link.output.copy_out(copy.columns);
        let mut total = 0;
        while let Some(piece) = copy.stream.next().await {
            let piece = piece?;
            total += piece.rows;
            let mut start = 0;
            // One message per row, as the protocol promises and drivers rely on.
            for end in piece.ends {
                self.link.output.copy_data(&piece.data[start..end]);
                start = end;
                if self.link.output.buffer.len() >= super::output::FLUSH_AT {
                    self.link.flush().await?;
                }
            }
        }
        self.link.output.copy_done();
        Ok(format!("COPY {total}"))
    }
}

/// Returns when a pause has lasted too long; never, when nothing ends it.
async fn idle_for_long(end: Option<(Instant, SqlError)>) -> SqlError {
    match end {
        Some((at, error)) => {
            tokio::time::sleep_until(at).await;
            error
        }
        None => std::future::pending().await,
    }
}

/// `SELECT` and 3 to `SELECT 3`.
pub fn complete_tag(tag: &str, count: bool, rows: u64) -> String {
    if count {
        format!("{tag} {rows}")
    } else {
        tag.to_owned()
    }
}
