//! Entry points for fuzzing: decoders of the engine on any bytes. It may refuse them, and must not panic, hang
//! or take memory without bound. `fuzz/` has a target of `cargo fuzz` for each; its corpora, and mutations of them,
//! also run in the tests.
//!
//! Most bytes on disk are behind a checksum, which a fuzzer would never get past. So all targets but the two whole
//! files begin behind it.

use crate::batch::operations;
use crate::coding::u64_at;
use crate::log::{LogKind, LogReader};
use crate::manifest::decode_current;
use crate::ranges::RangeSet;
use crate::table::fuzzing as table;
use crate::version::VersionEdit;
use crate::vfs::{SimVfs, Vfs};
use std::path::Path;

/// A decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A data block, or a partition of the index, of a table.
    Block,
    /// A compressed block of a table.
    Compressed,
    /// The top of a table's index.
    Index,
    /// The filter of a table.
    Filter,
    /// Footer, handle and properties of a table.
    FixedParts,
    /// The range deletes of a table.
    RangeDeletes,
    /// The operations in a record of the write-ahead log.
    LogRecord,
    /// An edit in the manifest.
    ManifestEdit,
    /// The file that names the manifest.
    Current,
    /// A blob file, a record of it, or a pointer to one.
    Blob,
    /// A whole table file.
    TableFile,
    /// A whole log file.
    LogFile,
}

impl Target {
    /// All of them.
    pub const ALL: [Target; 12] = [
        Target::Block,
        Target::Compressed,
        Target::Index,
        Target::Filter,
        Target::FixedParts,
        Target::RangeDeletes,
        Target::LogRecord,
        Target::ManifestEdit,
        Target::Current,
        Target::Blob,
        Target::TableFile,
        Target::LogFile,
    ];

    /// The name of its fuzz target and of the folder of its corpus.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Target::Block => "block",
            Target::Compressed => "compressed",
            Target::Index => "index",
            Target::Filter => "filter",
            Target::FixedParts => "fixed_parts",
            Target::RangeDeletes => "range_deletes",
            Target::LogRecord => "log_record",
            Target::ManifestEdit => "manifest_edit",
            Target::Current => "current",
            Target::Blob => "blob",
            Target::TableFile => "table_file",
            Target::LogFile => "log_file",
        }
    }

    /// Decodes.
    pub fn run(self, bytes: &[u8]) {
        match self {
            Target::Block => table::block(bytes),
            Target::Compressed => table::compressed(bytes),
            Target::Index => table::index(bytes),
            Target::Filter => table::filter(bytes),
            Target::FixedParts => table::fixed_parts(bytes),
            Target::RangeDeletes => {
                if let Some(set) = RangeSet::decode(bytes) {
                    let again = RangeSet::decode(&set.encode());
                    assert_eq!(again.as_ref().map(RangeSet::count), Some(set.count()));
                    set.newest(bytes, u64::MAX);
                }
            }
            Target::LogRecord => {
                // It ends: every operation takes a byte at least, and the first malformed one is the last.
                assert!(operations(bytes).count() <= bytes.len() + 1);
            }
            Target::ManifestEdit => {
                if let Ok(edit) = VersionEdit::decode(bytes) {
                    assert!(VersionEdit::decode(&edit.encode()).is_ok());
                }
            }
            Target::Current => {
                // With the checksum that it should have.
                let crc = crc32c::crc32c(bytes).to_le_bytes();
                let _ = decode_current(&[bytes, &crc].concat());
            }
            Target::Blob => table::blob(bytes),
            Target::TableFile => table::file(bytes),
            Target::LogFile => log_file(bytes),
        }
    }
}

fn log_file(bytes: &[u8]) {
    let (vfs, path) = (SimVfs::new(), Path::new("/log"));
    let written = || {
        vfs.create_dir_all(Path::new("/"))?;
        let mut file = vfs.create(path)?;
        file.append(bytes)?;
        file.sync()
    };
    let written: std::io::Result<()> = written();
    if written.is_err() {
        return;
    }
    // The number that the file says it has.
    let number = u64_at(bytes, 12).unwrap_or(0);
    for kind in [LogKind::Wal, LogKind::Manifest] {
        let Ok(mut reader) = LogReader::open(&vfs, path, kind, number) else {
            continue;
        };
        let mut records = 0;
        while let Ok(Some(_)) = reader.next() {
            records += 1;
            assert!(records <= bytes.len(), "a log does not end");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Background, Compression, Db, Options, TableWriter, WriteBatch, WriteOptions};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use std::path::PathBuf;
    use std::sync::Arc;

    fn corpus(target: Target) -> PathBuf {
        // Asked for when it runs: a build folder may serve several checkouts.
        let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
        let fuzz = Path::new(&package).join("fuzz");
        fuzz.join("corpus").join(target.name())
    }

    /// Real bytes for every target: the files of a small database, and what they consist of.
    fn real() -> Vec<(Target, Vec<u8>)> {
        let vfs = SimVfs::new();
        let dir = Path::new("/db");
        let options = Options {
            compression: Compression::None,
            block_bytes: 256,
            background: Background::Inline,
            blob_value_bytes_min: 64,
            log_compression_bytes_min: 64,
            memtable_bytes: 16 << 10,
            ..Options::with_keyspaces(["data", "locks"])
        };
        let db = Db::open(Arc::new(vfs.clone()), dir, options).unwrap();
        let data = db.keyspace("data").unwrap();
        for n in 0u32..40 {
            let mut batch = WriteBatch::new();
            batch.put(data, format!("key{n:04}").as_bytes(), &n.to_le_bytes());
            if n % 7 == 0 {
                batch.delete(data, format!("key{:04}", n / 2).as_bytes());
                batch.delete_range(data, b"key0030", b"key0034");
            }
            db.write(batch, WriteOptions::SYNC).unwrap();
        }
        let files = |real: &mut Vec<_>| {
            for name in vfs.list(dir).unwrap() {
                let path = dir.join(&name);
                let bytes = vfs.read(&path).unwrap();
                match name.rsplit_once('.') {
                    Some((_, "wal")) => real.push((Target::LogFile, bytes)),
                    Some((_, "blob")) => {
                        let record = table::only_record(&bytes).unwrap();
                        real.push((Target::Blob, record));
                        real.push((Target::Blob, bytes));
                    }
                    Some((_, "sst")) => {
                        real.extend(table::parts(&bytes).unwrap());
                        real.push((Target::TableFile, bytes));
                    }
                    _ if name.starts_with("MANIFEST") => {
                        let number = name.trim_start_matches("MANIFEST-").parse().unwrap();
                        let kind = LogKind::Manifest;
                        let mut reader = LogReader::open(&vfs, &path, kind, number).unwrap();
                        while let Some(record) = reader.next().unwrap() {
                            real.push((Target::ManifestEdit, record.payload.to_vec()));
                        }
                        real.push((Target::LogFile, bytes));
                    }
                    _ if name == "CURRENT" => {
                        real.push((Target::Current, bytes[..bytes.len() - 4].to_vec()));
                    }
                    _ => {}
                }
            }
        };
        // The only large value.
        let mut batch = WriteBatch::new();
        batch.put(data, b"key", &[b'v'; 64]);
        db.write(batch, WriteOptions::SYNC).unwrap();
        let mut batch = WriteBatch::new();
        batch.put(data, b"other", b"value");
        batch.delete(data, b"other");
        batch.delete_range(data, b"a", b"b");
        let mut real = vec![(Target::LogRecord, batch.encoded().to_vec())];
        files(&mut real);
        db.flush().unwrap();
        files(&mut real);
        // A table from outside: what the target for whole files gets to read.
        let path = Path::new("/outside");
        let mut writer =
            TableWriter::create(Arc::new(vfs.clone()), path, &Options::default()).unwrap();
        for n in 0u32..200 {
            writer
                .put(format!("key{n:04}").as_bytes(), &[b'v'; 40])
                .unwrap();
        }
        writer.finish().unwrap();
        real.push((Target::TableFile, vfs.read(path).unwrap()));
        for compression in [Compression::Lz4, Compression::Zstd] {
            let options = Options {
                compression,
                ..Options::default()
            };
            let mut writer = TableWriter::create(Arc::new(vfs.clone()), path, &options).unwrap();
            writer.put(b"key", &[b'v'; 400]).unwrap();
            writer.finish().unwrap();
            let file = vfs.read(path).unwrap();
            real.push((Target::Compressed, table::compressed_block(&file).unwrap()));
        }
        real.retain(|(_, bytes)| !bytes.is_empty());
        real
    }

    #[test]
    #[ignore = "writes fuzz/corpus anew: run it when a format has changed"]
    fn write_corpora() {
        for target in Target::ALL {
            let folder = corpus(target);
            std::fs::create_dir_all(&folder).unwrap();
            let real = real().into_iter().filter(|(of, _)| *of == target);
            for (at, (_, bytes)) in real.enumerate() {
                std::fs::write(folder.join(format!("real-{at}")), bytes).unwrap();
            }
        }
    }

    /// A copy with some bytes changed, cut out or doubled.
    fn mutated(bytes: &[u8], rng: &mut StdRng) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..rng.random_range(1..4) {
            if bytes.is_empty() {
                return bytes;
            }
            let at = rng.random_range(0..bytes.len());
            let end = (at + rng.random_range(1..9)).min(bytes.len());
            match rng.random_range(0..5) {
                0 => bytes[at] ^= 1 << rng.random_range(0..8),
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
                2 => bytes.truncate(at),
                3 => drop(bytes.drain(at..end)),
                _ => {
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        bytes
    }

    #[test]
    fn no_corpus_and_no_mutation_of_it_panics() {
        for target in Target::ALL {
            let mut files = 0;
            let mut names: Vec<PathBuf> = { std::fs::read_dir(corpus(target)).unwrap() }
                .map(|entry| entry.unwrap().path())
                // What a fuzzer has found beside them is not in the repository.
                .filter(|path| {
                    { path.file_name() }.is_some_and(|n| n.to_string_lossy().starts_with("real-"))
                })
                .collect();
            names.sort();
            for path in names {
                let seed = std::fs::read(&path).unwrap();
                target.run(&seed);
                let mut rng = StdRng::seed_from_u64(files);
                for _ in 0..500 {
                    target.run(&mutated(&seed, &mut rng));
                }
                files += 1;
            }
            assert!(files > 0, "{target:?} has no corpus");
        }
    }
}
