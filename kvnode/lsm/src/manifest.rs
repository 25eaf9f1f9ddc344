//! The manifest: the log of edits that says which tables, logs and keyspaces a database has.
//!
//! An edit counts once its record is synced. `CURRENT` names the manifest in use. A new manifest, which begins with
//! one edit that holds everything, is written at each open and when the old one has grown long; it takes over by
//! the rename of `CURRENT`, so at any moment exactly one manifest is valid. Nothing is ever appended to a manifest
//! of an earlier run: what may be torn at its end stays behind with it.

use crate::coding::u32_at;
use crate::error::{Error, Result};
use crate::files::FileName;
use crate::log::{LogKind, LogReader, LogWriter};
use crate::table::TableMeta;
use crate::types::SeqNo;
use crate::version::VersionEdit;
use crate::vfs::Vfs;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A manifest is written anew when it is longer than this and than twice what it began with.
const BYTES_MAX: u64 = 4 << 20;
/// Tag of every record: they need none.
const TAG: u64 = 0;

/// The sum of all edits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ManifestState {
    pub keyspaces: Vec<String>,
    /// Tables by keyspace, level and number.
    pub tables: BTreeMap<(u32, usize, u64), TableMeta>,
    pub flushed_seqno: SeqNo,
    pub log_number: u64,
    pub next_file_number: u64,
}

impl ManifestState {
    /// Adds an edit; an edit that does not fit says why and leaves the state undefined.
    pub fn apply(&mut self, edit: &VersionEdit) -> Result<(), String> {
        for (id, name) in &edit.keyspaces {
            if *id as usize != self.keyspaces.len() || self.keyspaces.contains(name) {
                return Err(format!(
                    "keyspace {name:?} with id {id} does not follow the {} before",
                    self.keyspaces.len()
                ));
            }
            self.keyspaces.push(name.clone());
        }
        for (keyspace, level, number) in &edit.removed {
            if self.tables.remove(&(*keyspace, *level, *number)).is_none() {
                return Err(format!("table {number} is dropped but not there"));
            }
        }
        for (keyspace, level, meta) in &edit.added {
            if *keyspace as usize >= self.keyspaces.len() {
                return Err(format!(
                    "table {} is in unknown keyspace {keyspace}",
                    meta.number
                ));
            }
            self.tables
                .insert((*keyspace, *level, meta.number), meta.clone());
        }
        self.flushed_seqno = edit.flushed_seqno.unwrap_or(self.flushed_seqno);
        self.log_number = edit.log_number.unwrap_or(self.log_number);
        self.next_file_number = edit.next_file_number.unwrap_or(self.next_file_number);
        Ok(())
    }

    /// Numbers of the blob files that tables point to.
    pub fn blobs(&self) -> BTreeSet<u64> {
        let blobs = self.tables.values().flat_map(|meta| &meta.blobs);
        blobs.map(|blob| blob.file).collect()
    }

    /// One edit that says everything.
    fn to_edit(&self) -> VersionEdit {
        let keyspaces = self
            .keyspaces
            .iter()
            .enumerate()
            .map(|(id, name)| (id as u32, name.clone()))
            .collect();
        let tables = self.tables.iter();
        VersionEdit {
            keyspaces,
            added: tables
                .map(|((keyspace, level, _), meta)| (*keyspace, *level, meta.clone()))
                .collect(),
            removed: Vec::new(),
            flushed_seqno: Some(self.flushed_seqno),
            log_number: Some(self.log_number),
            next_file_number: Some(self.next_file_number),
        }
    }
}

/// Reads the state that `CURRENT` leads to; `None` if there is no database yet.
pub(crate) fn recover(vfs: &dyn Vfs, dir: &Path) -> Result<Option<ManifestState>> {
    let current = FileName::Current.path(dir);
    if !vfs
        .exists(&current)
        .map_err(|error| Error::io("look for", &current, error))?
    {
        return Ok(None);
    }
    let number = read_current(vfs, &current)?;
    let path = FileName::Manifest(number).path(dir);
    let mut reader = LogReader::open(vfs, &path, LogKind::Manifest, number)?;
    let (mut state, mut edits) = (ManifestState::default(), 0);
    while let Some(record) = reader.next()? {
        if record.payload.is_empty() {
            continue;
        }
        let applied = VersionEdit::decode(record.payload).and_then(|edit| state.apply(&edit));
        applied.map_err(|what| Error::corruption(&path, "version edit", record.offset, what))?;
        edits += 1;
    }
    if edits == 0 {
        // The first edit was synced before CURRENT was made to point here.
        return Err(Error::corruption(
            &path,
            "version edit",
            reader.offset(),
            "the first edit is missing",
        ));
    }
    if reader.is_torn() {
        tracing::info!(path = %path.display(), offset = reader.offset(), "cut a torn edit off the manifest");
    }
    Ok(Some(state))
}

fn read_current(vfs: &dyn Vfs, path: &Path) -> Result<u64> {
    let bytes = vfs
        .map(path)
        .map_err(|error| Error::io("read", path, error))?;
    decode_current(&bytes).map_err(|what| Error::corruption(path, "file", 0, what))
}

/// The number of the manifest that the contents of `CURRENT` name.
pub(crate) fn decode_current(bytes: &[u8]) -> Result<u64, &'static str> {
    let split = bytes.len().saturating_sub(4);
    if u32_at(bytes, split) != Some(crc32c::crc32c(&bytes[..split])) {
        return Err("contents do not match their checksum");
    }
    let name = std::str::from_utf8(&bytes[..split]).ok();
    match name.and_then(|name| FileName::parse(name.trim_end())) {
        Some(FileName::Manifest(number)) => Ok(number),
        _ => Err("does not name a manifest"),
    }
}

/// The manifest in use.
pub(crate) struct Manifest {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    number: u64,
    log: LogWriter,
    /// At this length it is written anew.
    bytes_max: u64,
    state: ManifestState,
}

impl Manifest {
    /// Writes a new manifest that begins with `state` and makes it the current one. Uses up one file number.
    pub fn create(vfs: Arc<dyn Vfs>, dir: &Path, mut state: ManifestState) -> Result<Self> {
        let number = state.next_file_number;
        state.next_file_number += 1;
        let path = FileName::Manifest(number).path(dir);
        let mut log = LogWriter::create(&*vfs, &path, LogKind::Manifest, number, 0)?;
        append_synced(&mut log, &state.to_edit())?;
        let sync_dir = |vfs: &dyn Vfs| {
            vfs.sync_dir(dir)
                .map_err(|error| Error::io("sync", dir, error))
        };
        sync_dir(&*vfs)?;
        let (temporary, current) = (FileName::Temporary.path(dir), FileName::Current.path(dir));
        let mut contents = format!("MANIFEST-{number:06}\n").into_bytes();
        contents.extend_from_slice(&crc32c::crc32c(&contents).to_le_bytes());
        let mut file = vfs
            .create(&temporary)
            .map_err(|error| Error::io("create", &temporary, error))?;
        file.append(&contents)
            .map_err(|error| Error::io("write", &temporary, error))?;
        file.sync()
            .map_err(|error| Error::io("sync", &temporary, error))?;
        vfs.rename(&temporary, &current)
            .map_err(|error| Error::io("rename", &temporary, error))?;
        sync_dir(&*vfs)?;
        Ok(Self {
            vfs,
            dir: dir.to_owned(),
            number,
            bytes_max: BYTES_MAX.max(2 * log.len()),
            log,
            state,
        })
    }

    pub fn state(&self) -> &ManifestState {
        &self.state
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    /// Makes an edit durable. After an error the manifest must not be used any more (rule D3).
    pub fn commit(&mut self, edit: &VersionEdit) -> Result<()> {
        append_synced(&mut self.log, edit)?;
        let applied = self.state.apply(edit);
        applied.map_err(|what| Error::corruption(&self.dir, "version edit", self.log.len(), what))
    }

    /// Writes the manifest anew if it has grown long. `allocate` draws a file number.
    pub fn roll_if_long(&mut self, allocate: impl FnOnce() -> u64) -> Result<()> {
        if self.log.len() < self.bytes_max {
            return Ok(());
        }
        let mut state = self.state.clone();
        state.next_file_number = allocate();
        let old = FileName::Manifest(self.number).path(&self.dir);
        *self = Self::create(Arc::clone(&self.vfs), &self.dir, state)?;
        // What cannot be removed now is an orphan that the next open removes.
        let _ = self.vfs.remove(&old);
        Ok(())
    }
}

/// The empty record after a synced edit proves that it was synced. No edit is empty.
fn append_synced(log: &mut LogWriter, edit: &VersionEdit) -> Result<()> {
    log.append(TAG, &[&edit.encode()])?;
    log.sync()?;
    log.append(TAG, &[])?;
    Ok(())
}
