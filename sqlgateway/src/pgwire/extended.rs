//! The extended protocol: prepared statements, portals, and their messages.

use super::connection::{Connection, complete_tag};
use super::message::{Bind, Target};
use super::rows::{Progress, Rows, SendError};
use crate::encode::{self, Format};
use crate::error::SqlError;
use crate::metrics;
use crate::session::{Outcome, Prepared, ResultColumn};
use crate::statement::Statement;
use lineradb_common::clock::Stopwatch;
use lineradb_common::sql::{Datum, SqlType};
use std::collections::HashMap;
use std::sync::Arc;

/// Portals of a connection; prepared statements belong to the session, where SQL
/// finds them as well.
#[derive(Default)]
pub struct Extended {
    portals: HashMap<String, Portal>,
}

/// A bound statement.
struct Portal {
    prepared: Arc<Prepared>,
    formats: Vec<Format>,
    state: State,
}

enum State {
    Bound(Vec<Datum>),
    Running(Running),
    Done,
}

struct Running {
    rows: Rows,
    tag: &'static str,
    count: bool,
}

impl Extended {
    /// Closes a portal, which need not exist.
    pub fn close_portal(&mut self, name: &str) {
        self.portals.remove(name);
    }

    /// Portals end with their transaction.
    pub fn close_portals(&mut self) {
        self.portals.clear();
    }
}

impl Connection {
    /// Parse.
    ///
    /// # Errors
    /// Those of planning; 42P05 when the name is taken.
    pub async fn parse(&mut self, name: String, sql: &str, types: &[u32]) -> Result<(), SendError> {
        self.session.refuse_taken(&name)?;
        let types = types
            .iter()
            .map(|oid| declared_type(*oid))
            .collect::<Result<Vec<_>, _>>()?;
        let mut statements = self.session.parse(sql)?;
        let statement = match (statements.pop(), statements.is_empty()) {
            (Some(statement), true) => statement,
            (None, _) => Statement::empty(),
            (Some(_), false) => {
                let message = "cannot insert multiple commands into a prepared statement";
                return Err(SqlError::syntax(message).into());
            }
        };
        let prepared = self.session.prepare(statement, &types).await?;
        self.session.keep_parsed(name, prepared, sql)?;
        self.link.output.parsed();
        Ok(())
    }

    /// Bind.
    ///
    /// # Errors
    /// 26000 for an unknown statement, 08P01 for wrong counts, and those of the
    /// parameters' values.
    pub fn bind(&mut self, bind: Bind) -> Result<(), SendError> {
        let prepared = self.session.prepared(&bind.statement)?;
        if !bind.portal.is_empty() && self.extended.portals.contains_key(&bind.portal) {
            let message = format!("cursor \"{}\" already exists", bind.portal);
            return Err(SqlError::new("42P03", message).into());
        }
        let types = &prepared.parameter_types;
        if bind.parameters.len() != types.len() {
            let message = format!(
                "bind message supplies {} parameters, but prepared statement \"{}\" requires {}",
                bind.parameters.len(),
                bind.statement,
                types.len()
            );
            return Err(SqlError::new("08P01", message).into());
        }
        let formats = Format::spread(&bind.parameter_formats, types.len()).map_err(|given| {
            let message = format!(
                "bind message has {given} parameter formats but {} parameters",
                types.len()
            );
            SqlError::new("08P01", message)
        })?;
        let zone = &self.session.settings().time_zone;
        let parameters = bind
            .parameters
            .iter()
            .zip(types)
            .zip(formats)
            .map(|((value, sql_type), format)| match value {
                None => Ok(Datum::Null),
                Some(bytes) => encode::from_wire(*sql_type, format.code(), bytes, zone),
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(SqlError::from)?;
        let width = prepared.columns.as_ref().map_or(0, |c| c.len());
        let formats = match Format::spread(&bind.result_formats, width) {
            Ok(formats) => formats,
            // No columns, and a format for all of none.
            Err(_) if width == 0 => Vec::new(),
            Err(given) => {
                let message = format!(
                    "bind message has {given} result formats but query has {width} columns"
                );
                return Err(SqlError::new("08P01", message).into());
            }
        };
        let portal = Portal {
            prepared,
            formats,
            state: State::Bound(parameters),
        };
        self.extended.portals.insert(bind.portal, portal);
        self.link.output.bound();
        Ok(())
    }

    /// Describe.
    ///
    /// # Errors
    /// 26000 or 34000 for an unknown name.
    pub fn describe(&mut self, target: Target, name: &str) -> Result<(), SendError> {
        let (columns, formats): (Option<Arc<[ResultColumn]>>, Vec<Format>) = match target {
            Target::Statement => {
                let prepared = self.session.prepared(name)?;
                self.link.output.parameters(&prepared.parameter_types);
                let columns = prepared.columns.clone();
                // Not known before Bind: zero, as PostgreSQL says.
                let formats = vec![Format::Text; columns.as_ref().map_or(0, |c| c.len())];
                (columns, formats)
            }
            Target::Portal => {
                let portal = self.extended.portals.get(name);
                let portal = portal.ok_or_else(|| unknown_portal(name))?;
                let columns = portal.prepared.columns.clone();
                (columns, portal.formats.clone())
            }
        };
        match columns {
            Some(columns) => self.link.output.columns(&columns, &formats),
            None => self.link.output.no_data(),
        }
        Ok(())
    }

    /// Execute.
    ///
    /// # Errors
    /// Those of the statement, or of the connection.
    pub async fn execute(&mut self, name: &str, max_rows: i32) -> Result<(), SendError> {
        let Some(portal) = self.extended.portals.get_mut(name) else {
            return Err(unknown_portal(name).into());
        };
        let prepared = Arc::clone(&portal.prepared);
        if prepared.statement.is_empty() {
            self.link.output.empty_query();
            return Ok(());
        }
        let state = std::mem::replace(&mut portal.state, State::Done);
        let formats = std::mem::take(&mut portal.formats);
        let kind = metrics::kind_of(prepared.statement.text());
        let watch = Stopwatch::start();
        let result = self
            .run_portal(&prepared, state, &formats, max_rows.max(0) as usize)
            .await;
        match &result {
            Err(SendError::Sql(error)) => {
                metrics::statement(kind, &error.sqlstate, watch.elapsed());
            }
            Ok(_) => metrics::statement(kind, "00000", watch.elapsed()),
            Err(SendError::Io(_)) => {}
        }
        let state = result?;
        // Gone when the statement ended the transaction and its portals.
        if let Some(portal) = self.extended.portals.get_mut(name) {
            portal.state = state;
            portal.formats = formats;
        }
        Ok(())
    }

    async fn run_portal(
        &mut self,
        prepared: &Arc<Prepared>,
        state: State,
        formats: &[Format],
        limit: usize,
    ) -> Result<State, SendError> {
        let mut running = match state {
            State::Done => {
                let (tag, count) = match &prepared.columns {
                    Some(_) => ("SELECT", true),
                    None => {
                        let message = "portal cannot be run again";
                        return Err(SqlError::new("55000", message).into());
                    }
                };
                self.link.output.complete(complete_tag(tag, count, 0));
                return Ok(State::Done);
            }
            State::Running(running) => running,
            State::Bound(parameters) => {
                // A statement that is alone may be a transaction of its own.
                let alone = self.link.sync_follows();
                self.session.set_pipelined(!alone);
                match self.session.execute(prepared, parameters).await? {
                    Outcome::Rows {
                        columns,
                        stream,
                        tag,
                        count,
                    } => {
                        unchanged(prepared, &columns)?;
                        let zone = self.session.settings().time_zone.clone();
                        Running {
                            rows: Rows::new(stream, &columns, formats, zone),
                            tag,
                            count,
                        }
                    }
                    outcome => {
                        let tag = match outcome {
                            Outcome::Command { tag, .. } => tag,
                            Outcome::CopyIn(copy) => self.copy_in(copy).await?,
                            Outcome::CopyOut(copy) => self.copy_out(copy).await?,
                            Outcome::Empty | Outcome::Rows { .. } => {
                                self.link.output.empty_query();
                                return Ok(State::Done);
                            }
                        };
                        self.news();
                        self.link.output.complete(tag);
                        return Ok(State::Done);
                    }
                }
            }
        };
        match running.rows.send(&mut self.link, limit).await? {
            Progress::Suspended => {
                self.link.output.suspended();
                Ok(State::Running(running))
            }
            Progress::Done(sent) => {
                self.news();
                let tag = complete_tag(running.tag, running.count, sent);
                self.link.output.complete(tag);
                Ok(State::Done)
            }
        }
    }
}

fn unknown_portal(name: &str) -> SqlError {
    SqlError::new("34000", format!("portal \"{name}\" does not exist"))
}

/// 0 and `unknown` leave the type to the planner.
fn declared_type(oid: u32) -> Result<Option<SqlType>, SqlError> {
    match oid {
        0 => Ok(None),
        oid => match SqlType::from_oid(oid) {
            Some(SqlType::Unknown) => Ok(None),
            Some(sql_type) => Ok(Some(sql_type)),
            None => Err(SqlError::unsupported(format!(
                "a parameter of the type with OID {oid}"
            ))),
        },
    }
}

/// Rows of another shape than the one described would be misread.
fn unchanged(prepared: &Prepared, columns: &[ResultColumn]) -> Result<(), SqlError> {
    let described = prepared.columns.as_deref().unwrap_or_default();
    let same = described.len() == columns.len()
        && described
            .iter()
            .zip(columns)
            .all(|(a, b)| a.sql_type.oid() == b.sql_type.oid());
    if same {
        return Ok(());
    }
    Err(SqlError::new(
        "0A000",
        "cached plan must not change result type",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_types() {
        assert_eq!(declared_type(0).unwrap(), None);
        assert_eq!(declared_type(705).unwrap(), None);
        assert_eq!(declared_type(23).unwrap(), Some(SqlType::Int4));
        assert_eq!(declared_type(3_802).unwrap_err().sqlstate, "0A000");
    }
}
