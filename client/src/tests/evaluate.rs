//! How the cluster in memory answers each kind of request.

use super::fake::{Intent, PAGE_ROWS, Record, Store, error, now_us, to_arrow, to_span};
use crate::Span;
use bytes::Bytes;
use lineradb_common::Timestamp;
use lineradb_proto::shard::v1::*;
use std::collections::BTreeMap;

/// A coordinator that has been silent for so long is dead.
const DEAD_AFTER_US: u64 = 5_000_000;

impl Store {
    pub fn evaluate(&mut self, request: Request) -> Result<(reply::Body, u64), Box<Error>> {
        let mut observed = 0;
        let body = match request.body.expect("a body") {
            request::Body::Get(mut get) => {
                if get.read_ts == 0 {
                    get.read_ts = Timestamp::from_micros(now_us()).raw();
                }
                self.check_schema(&request.schema, get.read_ts)?;
                let mut values = Vec::new();
                for key in &get.keys {
                    let value = self.read(key, get.read_ts, &get.txn_id)?;
                    observed = observed.max(value.version_ts);
                    values.push(value);
                }
                reply::Body::Get(GetReply {
                    read_ts: get.read_ts,
                    values,
                })
            }
            request::Body::Scan(scan) => {
                self.check_schema(&request.schema, scan.read_ts)?;
                let span = to_span(scan.span.as_ref());
                let limit = match scan.limit {
                    0 => PAGE_ROWS,
                    n => PAGE_ROWS.min(n as usize),
                };
                let (pairs, resume) =
                    self.rows(&span, scan.reverse, limit, scan.read_ts, &scan.txn_id)?;
                observed = pairs.iter().map(|p| p.version_ts).max().unwrap_or(0);
                reply::Body::Scan(ScanReply {
                    pairs,
                    more: resume.is_some(),
                    resume: resume.unwrap_or_default(),
                    read_ts: scan.read_ts,
                })
            }
            request::Body::Fragment(f) => {
                self.check_schema(&request.schema, f.read_ts)?;
                let span = to_span(f.span.as_ref());
                let (pairs, resume) =
                    self.rows(&span, f.reverse, PAGE_ROWS, f.read_ts, &f.txn_id)?;
                let examined = match (&resume, f.reverse) {
                    (Some(r), false) => Span::new(span.start, r.clone()),
                    (Some(r), true) => Span::new(r.clone(), span.end),
                    (None, _) => span,
                };
                let mut rows: BTreeMap<Bytes, Bytes> =
                    pairs.into_iter().map(|p| (p.key, p.value)).collect();
                for write in f.overlay.iter().filter(|w| examined.contains(&w.key)) {
                    match &write.value {
                        Some(value) => rows.insert(write.key.clone(), value.clone()),
                        None => rows.remove(&write.key),
                    };
                }
                reply::Body::Fragment(FragmentReply {
                    arrow_ipc: to_arrow(&rows),
                    more: resume.is_some(),
                    resume: resume.unwrap_or_default(),
                    rows_examined: rows.len() as u64,
                })
            }
            request::Body::LockingRead(lock) => {
                let meta = lock.txn.expect("txn");
                for key in &lock.keys {
                    if self.locks.get(key).is_some_and(|t| *t != meta.id) {
                        let code = if lock.wait {
                            ErrorCode::LockTimeout
                        } else {
                            ErrorCode::Locked
                        };
                        return Err(error(code, "held"));
                    }
                    let foreign = self.foreign_intents(&Span::point(key), u64::MAX, &meta.id);
                    if !foreign.is_empty() {
                        return Err(self.locked(&foreign));
                    }
                }
                let newest = lock.keys.iter().filter_map(|k| self.newest(k, u64::MAX));
                let at = newest
                    .map(|(ts, _)| ts)
                    .max()
                    .unwrap_or(0)
                    .max(lock.read_ts);
                self.check_schema(&request.schema, at)?;
                let mut values = Vec::new();
                for key in &lock.keys {
                    self.locks.insert(key.clone(), meta.id.clone());
                    values.push(self.read(key, at, &meta.id)?);
                }
                observed = values.iter().map(|v| v.version_ts).max().unwrap_or(0);
                reply::Body::LockingRead(LockingReadReply {
                    values,
                    read_ts: at,
                })
            }
            request::Body::OnePhaseCommit(c) => {
                let meta = c.txn.expect("txn");
                let s = self.admit(&meta, c.read_ts, &c.writes)?;
                if s > c.read_ts && c.reads_elsewhere {
                    return Ok((
                        reply::Body::OnePhaseCommit(OnePhaseCommitReply {
                            commit_ts: 0,
                            needs_ts: s,
                        }),
                        0,
                    ));
                }
                for span in &c.reads {
                    let span = to_span(Some(span));
                    if let Some(key) = self.changed(&span, c.read_ts, s, &meta.id) {
                        let mut e = error(ErrorCode::WriteConflict, "a read changed");
                        e.key = key;
                        return Err(e);
                    }
                    self.reads.push((span, s, meta.id.clone()));
                }
                self.check_schema(&request.schema, s)?;
                for write in c.writes {
                    if let Some(write::Target::Key(key)) = write.target {
                        self.put_version(key, s, write.value, meta.id.clone());
                    }
                }
                reply::Body::OnePhaseCommit(OnePhaseCommitReply {
                    commit_ts: s,
                    needs_ts: 0,
                })
            }
            request::Body::Prewrite(p) => {
                let meta = p.txn.expect("txn");
                let s = self.admit(&meta, p.read_ts.max(p.min_ts), &p.writes)?;
                self.check_schema(&request.schema, s)?;
                for write in p.writes {
                    if let Some(write::Target::Key(key)) = write.target {
                        let intent = Intent {
                            meta: meta.clone(),
                            ts: s,
                            value: write.value,
                        };
                        self.intents.insert(key, intent);
                    }
                }
                let staged = s <= p.min_ts && !p.staged_keys.is_empty();
                if staged {
                    let at = (meta.anchor, meta.id);
                    self.staged.insert(at.clone(), p.staged_keys);
                    self.records.entry(at).or_insert(Record::Staging(s));
                }
                reply::Body::Prewrite(PrewriteReply {
                    timestamp: s,
                    staged,
                })
            }
            request::Body::CommitRecord(c) => {
                let meta = c.txn.expect("txn");
                let at = (meta.anchor, meta.id);
                let outcome = match self.records.get(&at) {
                    Some(Record::Committed(ts)) => commit_record_reply::Outcome::Committed(*ts),
                    Some(Record::Aborted) => commit_record_reply::Outcome::Aborted(true),
                    None | Some(Record::Staging(_)) => {
                        self.records.insert(at, Record::Committed(c.commit_ts));
                        commit_record_reply::Outcome::Committed(c.commit_ts)
                    }
                };
                reply::Body::CommitRecord(CommitRecordReply {
                    outcome: Some(outcome),
                })
            }
            request::Body::Push(p) => {
                let at = (p.anchor.clone(), p.txn_id.clone());
                let found = self.records.get(&at).copied().or_else(|| {
                    let versions = self.data.iter();
                    let mut versions = versions.filter(|((k, _), _)| *k == p.anchor);
                    let version = versions.find(|(_, v)| v.writer == p.txn_id)?;
                    Some(Record::Committed(version.0.1.0))
                });
                let age = now_us().saturating_sub(Timestamp::from_raw(p.attempt_ts).micros());
                let status = match found {
                    Some(Record::Committed(ts)) => push_reply::Status::Committed(ts),
                    Some(Record::Aborted) => push_reply::Status::Aborted(true),
                    Some(Record::Staging(_)) if p.force => {
                        self.records.insert(at, Record::Aborted);
                        push_reply::Status::Aborted(true)
                    }
                    Some(Record::Staging(ts)) if age > DEAD_AFTER_US => {
                        push_reply::Status::Staging(Staging {
                            commit_ts: ts,
                            keys: self.staged[&at].clone(),
                        })
                    }
                    None if p.force || age > DEAD_AFTER_US => {
                        self.records.insert(at, Record::Aborted);
                        push_reply::Status::Aborted(true)
                    }
                    None | Some(Record::Staging(_)) => push_reply::Status::Pending(true),
                };
                reply::Body::Push(PushReply {
                    status: Some(status),
                })
            }
            request::Body::QueryIntents(q) => {
                let there = |key: &Bytes| {
                    let intent = self.intents.get(key);
                    intent.is_some_and(|i| i.meta.id == q.txn_id && i.ts <= q.commit_ts)
                };
                let all_there = q.keys.iter().all(there);
                for key in &q.keys {
                    let read = (Span::point(key), q.commit_ts, Bytes::new());
                    self.reads.push(read);
                }
                reply::Body::QueryIntents(QueryIntentsReply { all_there })
            }
            request::Body::Recover(r) => {
                let at = (r.anchor, r.txn_id);
                let status = match self.records.get(&at) {
                    Some(Record::Committed(ts)) => recover_reply::Status::Committed(*ts),
                    Some(Record::Aborted) => recover_reply::Status::Aborted(true),
                    Some(Record::Staging(ts)) if *ts == r.staged_ts => match r.commit {
                        true => {
                            self.records.insert(at, Record::Committed(r.staged_ts));
                            recover_reply::Status::Committed(r.staged_ts)
                        }
                        false => {
                            self.records.insert(at, Record::Aborted);
                            recover_reply::Status::Aborted(true)
                        }
                    },
                    Some(Record::Staging(_)) | None => recover_reply::Status::Changed(true),
                };
                reply::Body::Recover(RecoverReply {
                    status: Some(status),
                })
            }
            request::Body::Resolve(r) => {
                for key in r.keys {
                    if self
                        .intents
                        .get(&key)
                        .is_some_and(|i| i.meta.id == r.txn_id)
                    {
                        let intent = self.intents.remove(&key).expect("it is there");
                        if r.commit_ts != 0 {
                            self.put_version(key, r.commit_ts, intent.value, r.txn_id.clone());
                        }
                    }
                }
                reply::Body::Resolve(ResolveReply {})
            }
            request::Body::ForgetRecords(f) => {
                for record in f.records {
                    self.records.remove(&(record.anchor, record.txn_id));
                }
                reply::Body::ForgetRecords(ForgetRecordsReply {})
            }
            request::Body::Refresh(r) => {
                self.check_schema(&request.schema, r.to_ts)?;
                let mut bad = None;
                for span in &r.spans {
                    let span = to_span(Some(span));
                    let foreign = self.foreign_intents(&span, r.to_ts, &r.txn_id);
                    if !foreign.is_empty() {
                        return Err(self.locked(&foreign));
                    }
                    bad = bad.or(self.changed(&span, r.from_ts, r.to_ts, &r.txn_id));
                    self.reads.push((span, r.to_ts, r.txn_id.clone()));
                }
                reply::Body::Refresh(RefreshReply {
                    ok: bad.is_none(),
                    key: bad.unwrap_or_default(),
                })
            }
            request::Body::Changes(c) => {
                let span = to_span(c.span.as_ref());
                if c.after.as_ref().is_some_and(|a| a.timestamp < self.oldest) {
                    let mut e = error(ErrorCode::TimestampOutOfRange, "collected");
                    e.oldest_ts = self.oldest;
                    return Err(e);
                }
                let foreign = self.foreign_intents(&span, c.to_ts, &Bytes::new());
                if !foreign.is_empty() {
                    return Err(self.locked(&foreign));
                }
                self.reads.push((span.clone(), c.to_ts, Bytes::new()));
                observed = c.to_ts;
                reply::Body::Changes(self.changes(&span, &c))
            }
            request::Body::AwaitWrite(w) => {
                let span = to_span(w.span.as_ref());
                let seen = w.recent.map_or(0, |recent| recent.seen);
                let written = self
                    .data
                    .keys()
                    .any(|(key, at)| span.contains(key) && at.0 > seen);
                reply::Body::AwaitWrite(AwaitWriteReply { written })
            }
            request::Body::HeartbeatLocks(_) => reply::Body::HeartbeatLocks(HeartbeatLocksReply {}),
            request::Body::ReleaseLocks(r) => {
                self.locks.retain(|_, t| *t != r.txn_id);
                reply::Body::ReleaseLocks(ReleaseLocksReply {})
            }
            request::Body::ListLocks(_) => reply::Body::ListLocks(ListLocksReply::default()),
            request::Body::Close(_) => reply::Body::Close(CloseReply {
                closed: Some(Closed {
                    timestamp: Timestamp::from_micros(now_us()).raw(),
                    index: 1,
                }),
            }),
            request::Body::WhoLeads(_) => unreachable!("answered by leaders and followers alike"),
            request::Body::Split(s) => {
                self.split(&s.split_key);
                reply::Body::Split(SplitReply {
                    split_key: s.split_key,
                })
            }
        };
        Ok((body, observed))
    }
}
