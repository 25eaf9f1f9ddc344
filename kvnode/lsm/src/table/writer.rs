//! [`TableWriter`]: tables written outside of a database, to be ingested by one.

use super::reader::external_meta;
use super::{TableBuilder, TableOptions};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::ranges::RangeSet;
use crate::types::{KEY_BYTES_MAX, Kind, Trailer, VALUE_BYTES_MAX};
use crate::vfs::Vfs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Writes a table file of keys and values for [`Db::ingest`](crate::Db::ingest), anywhere, without a database.
///
/// Keys come in ascending order, each once. The file is of use once [`TableWriter::finish`] has returned: by then its
/// contents and its name are on stable storage (what rule D2 asks of a file that a log entry names).
pub struct TableWriter {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    builder: TableBuilder,
    last_key: Option<Vec<u8>>,
}

impl TableWriter {
    /// Creates the file. Blocks, filter and compression are those of `options`.
    pub fn create(vfs: Arc<dyn Vfs>, path: &Path, options: &Options) -> Result<Self> {
        options.validate()?;
        let options = TableOptions {
            block_bytes: options.block_bytes,
            bloom_bits_per_key: options.bloom_bits_per_key,
            // It is not known yet which keyspace the keys are for.
            version_bytes: 0,
            compression: options.compression,
            compression_later: options.compression,
        };
        Ok(Self {
            builder: TableBuilder::create(&*vfs, path, 0, options)?,
            vfs,
            path: path.to_owned(),
            last_key: None,
        })
    }

    /// Adds the next key.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        for (what, bytes, bytes_max) in [
            ("key", key.len(), KEY_BYTES_MAX),
            ("value", value.len(), VALUE_BYTES_MAX),
        ] {
            if bytes > bytes_max {
                let (bytes, bytes_max) = (bytes as u64, bytes_max as u64);
                return Err(Error::TooLarge {
                    what,
                    bytes,
                    bytes_max,
                });
            }
        }
        if self.last_key.as_deref().is_some_and(|last| last >= key) {
            return Err(Error::InvalidTable {
                path: self.path.clone(),
                what: "keys must come in ascending order, each once".to_owned(),
            });
        }
        let last_key = self.last_key.get_or_insert_default();
        last_key.clear();
        last_key.extend_from_slice(key);
        self.builder.add(key, Trailer::new(0, Kind::Put), value)
    }

    /// Bytes written so far, without the block being filled: the time to begin another table.
    pub fn bytes(&self) -> u64 {
        self.builder.bytes()
    }

    /// Ends the table and syncs file and folder. A table without a key is refused.
    pub fn finish(self) -> Result<()> {
        if self.last_key.is_none() {
            return Err(Error::InvalidTable {
                path: self.path,
                what: "a table has at least one key".to_owned(),
            });
        }
        self.builder.finish(&RangeSet::default())?;
        let dir = folder_of(&self.path);
        self.vfs
            .sync_dir(dir)
            .map_err(|error| Error::io("sync", dir, error))?;
        // Whoever says that a table is done has read what it says about itself.
        external_meta(&*self.vfs, &self.path).map(drop)
    }
}

/// The folder of a file; that of a bare name is the current one.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_lies_in_the_current_folder() {
        assert_eq!(folder_of(Path::new("table")), Path::new("."));
        assert_eq!(folder_of(Path::new("in/table")), Path::new("in"));
        assert_eq!(folder_of(Path::new("/table")), Path::new("/"));
    }
}
