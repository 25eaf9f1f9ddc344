//! Building an index in steps, outside of a transaction block (PROTOCOLS S5):
//!
//! 1. the index is committed as *write-only*: from then on every writer maintains
//!    it, because requests planned before are answered SchemaChanged;
//! 2. the rows that existed are indexed in batches, each a serializable
//!    transaction of its own that checks uniqueness against what it finds;
//! 3. the index becomes public.
//!
//! A build that fails takes the index back; one whose gateway dies is carried on
//! by another ([`builds`]). A new primary key is built the same
//! way, as an index that holds whole rows, and then put in the old one's place.

use super::DdlEnv;
use super::alter::with_primary_key;
use super::builds::{self, BuildId, Driver};
use super::fill::fill;
use super::index::{IndexWish, add_index, exists, wish};
use crate::catalog::{BuildKey, IndexBuild, IndexState, encode};
use crate::error::{Result, SqlError};
use crate::gateway::Gateway;
use crate::session::{DdlRunner, DdlWork, Done, Limits};
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::sql::sqlparser::ast::{self, AlterTableOperation, TableConstraint};
use lineradb_client::{IdempotencyRequest, WriteOptions};
use std::sync::Arc;
use std::time::Duration;

/// How often a build that another gateway drives is looked at.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// What is built.
enum Wish {
    Index(IndexWish, bool),
    PrimaryKey(IndexWish),
}

/// A statement that builds one index, and its table; `None`: another statement.
fn read(statement: &ast::Statement) -> Result<Option<(ast::ObjectName, Wish, &'static str)>> {
    match statement {
        ast::Statement::CreateIndex(create) => Ok(Some((
            create.table_name.clone(),
            Wish::Index(wish(create)?, create.if_not_exists),
            "CREATE INDEX",
        ))),
        ast::Statement::AlterTable(alter) if !alter.if_exists => {
            let [AlterTableOperation::AddConstraint { constraint, .. }] = &alter.operations[..]
            else {
                return Ok(None);
            };
            let wish = match constraint {
                TableConstraint::PrimaryKey(p) => Wish::PrimaryKey(IndexWish::constraint(
                    p.name.as_ref().map(crate::statement::ident),
                    super::index::index_columns(&p.columns)?,
                )),
                TableConstraint::Unique(u) => {
                    super::index::refuse_unique_options(u)?;
                    Wish::Index(
                        IndexWish::constraint(
                            u.name.as_ref().map(crate::statement::ident),
                            super::index::index_columns(&u.columns)?,
                        ),
                        false,
                    )
                }
                _ => return Ok(None),
            };
            Ok(Some((alter.name.clone(), wish, "ALTER TABLE")))
        }
        _ => Ok(None),
    }
}

/// Runs a statement that builds an index, in steps; `None`: it is another
/// statement, or one that has to be done at once.
///
/// # Errors
/// 23505, 23502 and those of the statement and the transaction layer.
pub async fn run(
    runner: &mut DdlRunner<'_>,
    statement: &ast::Statement,
    limits: &Limits,
) -> Result<Option<Done>> {
    let Some((name, wish, tag)) = read(statement)? else {
        return Ok(None);
    };
    let gateway = runner.gateway();
    let driver = Driver::new(gateway);
    // Step 1.
    let mut start = Start {
        statement,
        name: &name,
        wish: &wish,
        build: IndexBuild {
            driver: driver.name.clone(),
            tag: tag.to_owned(),
            idempotency: runner.idempotency().map(|request| BuildKey {
                user: request.user.clone(),
                key: request.key.clone(),
                request_hash: hex::encode(&request.request_hash),
            }),
            ..IndexBuild::default()
        },
        found: None,
    };
    let started = runner.step(limits, &mut start).await;
    let (found, build) = (start.found, start.build);
    let id = match (started, found) {
        (Ok(_), Some(id)) => id,
        // Nothing was to be built, or nothing was begun. A step of unknown outcome
        // may have begun something: the driver is not done.
        (Ok(_), None) => {
            driver.done();
            return Ok(Some(Done::Now(tag.to_owned())));
        }
        (Err(error), _) => {
            if error.sqlstate != "40003" {
                driver.done();
            }
            return Err(error);
        }
    };
    let ended = carry_on(runner, id, &build, limits).await;
    driver.done();
    match ended? {
        Ended::Public => Ok(Some(Done::Now(build.tag))),
        Ended::Before(summary) => Ok(Some(Done::Earlier(summary))),
        Ended::Elsewhere => {
            limits.run(outcome_of(gateway, id)).await?;
            Ok(Some(Done::Now(build.tag)))
        }
    }
}

/// Goes on with a build whose driver is gone.
///
/// # Errors
/// Those that may go away; a build that cannot succeed is taken back, which is
/// none.
pub async fn resume(
    gateway: &Arc<Gateway>,
    id: BuildId,
    driver: Driver,
    build: &IndexBuild,
) -> Result<()> {
    let idempotency = build.idempotency.as_ref().map(|key| IdempotencyRequest {
        user: key.user.clone(),
        key: key.key.clone(),
        request_hash: hex::decode(&key.request_hash).unwrap_or_default().into(),
    });
    gateway.catalog().refresh().await?;
    let mut runner = DdlRunner::background(gateway, idempotency);
    match carry_on(&mut runner, id, build, &Limits::none()).await {
        Ok(_) => driver.done(),
        Err(error) if error.retryable || error.sqlstate.starts_with("57P") => return Err(error),
        Err(error) => {
            driver.done();
            tracing::warn!(table = id.table, index = id.index, %error, "index build taken back");
        }
    }
    Ok(())
}

/// How a build ended.
enum Ended {
    Public,
    /// The statement had been carried out before, under its idempotency key; this
    /// build is taken back.
    Before(Bytes),
    /// Another driver has it.
    Elsewhere,
}

/// Steps 2 and 3. After an error the index is taken back, or its record still
/// names this driver.
async fn carry_on(
    runner: &mut DdlRunner<'_>,
    id: BuildId,
    build: &IndexBuild,
    limits: &Limits,
) -> Result<Ended> {
    let filled = fill(runner.gateway(), id, build, limits).await;
    if matches!(filled, Ok(false)) {
        return Ok(Ended::Elsewhere);
    }
    // Not bounded by the statement's time.
    let unbounded = Limits::none();
    let end = |publish: bool| End {
        id,
        driver: build.driver.clone(),
        tag: publish.then(|| build.tag.clone()),
        lost: false,
    };
    let published = match filled {
        Ok(_) => {
            let mut publish = end(true);
            match runner.step(&unbounded, &mut publish).await {
                Ok(None) if publish.lost => return Ok(Ended::Elsewhere),
                Ok(None) => return Ok(Ended::Public),
                Ok(Some(earlier)) => Ok(Ended::Before(earlier)),
                // It may be public: whoever looks at the record next will know.
                Err(error) if error.sqlstate == "40003" => return Err(error),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    };
    let mut back = end(false);
    runner.step(&unbounded, &mut back).await?;
    published
}

/// Waits until another driver has finished a build.
async fn outcome_of(gateway: &Arc<Gateway>, id: BuildId) -> Result<()> {
    loop {
        let snapshot = gateway.catalog().refresh().await?;
        let table = snapshot.table_by_id(id.table);
        let found = table.and_then(|t| {
            let mut all = t
                .pending_primary
                .iter()
                .chain(&t.indexes)
                .chain([&t.primary]);
            all.find(|i| i.id == id.index).map(|i| i.state)
        });
        match found {
            Some(IndexState::Public) => return Ok(()),
            Some(IndexState::WriteOnly) => tokio::time::sleep(ASK_EVERY).await,
            None => {
                return Err(SqlError::new(
                    "55000",
                    "the index was dropped, or its build was taken back by another gateway",
                ));
            }
        }
    }
}

/// Step 1: the index becomes write-only.
struct Start<'a> {
    statement: &'a ast::Statement,
    name: &'a ast::ObjectName,
    wish: &'a Wish,
    /// Who drives it.
    build: IndexBuild,
    /// The table and the index; `None`: nothing is left to do.
    found: Option<BuildId>,
}

#[async_trait]
impl DdlWork for Start<'_> {
    async fn run(&mut self, env: &mut DdlEnv<'_>) -> Result<()> {
        self.found = None;
        let table = env.table(self.name)?;
        match self.wish {
            Wish::Index(wish, if_not_exists) => {
                if exists(env, &table, wish, *if_not_exists)? {
                    return Ok(());
                }
                let mut changed = (*table).clone();
                let id = add_index(env, &mut changed, wish.clone(), IndexState::WriteOnly).await?;
                env.change.change_table(changed)?;
                self.found = Some(BuildId {
                    table: table.id,
                    index: id,
                });
            }
            Wish::PrimaryKey(wish) => {
                if !table.indexes.is_empty() || table.pending_primary.is_some() {
                    // The other indexes lead to rows by the old key: all of them
                    // change together.
                    return super::alter_statement(env, self.statement).await;
                }
                let target = with_primary_key(env, &table, wish).await?;
                let mut changed = (*table).clone();
                let mut pending = target.primary;
                pending.id = changed.next_index_id;
                changed.next_index_id += 1;
                pending.state = IndexState::WriteOnly;
                self.found = Some(BuildId {
                    table: table.id,
                    index: pending.id,
                });
                changed.pending_primary = Some(pending);
                env.change.change_table(changed)?;
            }
        }
        if let Some(id) = self.found {
            let record = encode(&self.build)?;
            let txn = env.change.transaction();
            txn.put(id.key(), record, WriteOptions::default())?;
        }
        Ok(())
    }
}

/// Step 3: the index becomes public, or is taken back.
struct End {
    id: BuildId,
    driver: String,
    /// The command tag, to make it public.
    tag: Option<String>,
    /// Another one drives the build: nothing was done.
    lost: bool,
}

#[async_trait]
impl DdlWork for End {
    async fn run(&mut self, env: &mut DdlEnv<'_>) -> Result<()> {
        let txn = env.change.transaction();
        let named = builds::read(txn, self.id).await?;
        self.lost = named.is_none_or(|build| build.driver != self.driver);
        if self.lost {
            return Ok(());
        }
        txn.delete(self.id.key(), WriteOptions::default())?;
        finish(env, self.id.table, self.id.index, self.tag.is_some())
    }

    fn completes(&self) -> Option<String> {
        self.tag.clone()
    }
}

/// Makes the index public, or takes it back.
fn finish(env: &mut DdlEnv<'_>, table: u32, index: u32, publish: bool) -> Result<()> {
    let Some(table) = env.catalog().table_by_id(table).cloned() else {
        return match publish {
            true => Err(SqlError::new("42P01", "the table was dropped meanwhile")),
            false => Ok(()),
        };
    };
    let mut changed = (*table).clone();
    if let Some(pending) = changed.pending_primary.take_if(|p| p.id == index) {
        if publish {
            let old = std::mem::replace(&mut changed.primary, pending);
            changed.primary.state = IndexState::Public;
            changed.columns.retain(|c| !c.hidden);
            for c in &mut changed.columns {
                if changed.primary.columns.contains(&c.id) {
                    c.nullable = false;
                }
            }
            env.change.change_table(changed)?;
            return env.change.leave_garbage(&table.index_span(old.id));
        }
        env.change.change_table(changed)?;
        return env.change.leave_garbage(&table.index_span(index));
    }
    let Some(at) = changed.indexes.iter().position(|i| i.id == index) else {
        return match publish {
            true => Err(SqlError::new("42704", "the index was dropped meanwhile")),
            false => Ok(()),
        };
    };
    if publish {
        changed.indexes[at].state = IndexState::Public;
        env.change.change_table(changed)?;
        return Ok(());
    }
    changed.indexes.remove(at);
    env.change.change_table(changed)?;
    env.change.leave_garbage(&table.index_span(index))
}
