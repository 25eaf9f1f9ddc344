//! Names of the files in a database folder.
//!
//! | name | what |
//! |---|---|
//! | `LOCK` | lock file with the process id of the holder |
//! | `CURRENT` | names the manifest in use, with a checksum |
//! | `MANIFEST-000007` | log of version edits |
//! | `000012.wal` | write-ahead log |
//! | `000013.sst` | table |
//! | `000014.blob` | large values of tables |
//! | `CURRENT.tmp` | the next `CURRENT`, of no meaning after a crash |
//!
//! Numbers come from one counter and are never used twice.

use std::path::{Path, PathBuf};

/// What a file is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileName {
    Lock,
    Current,
    Manifest(u64),
    Wal(u64),
    Table(u64),
    Blob(u64),
    Temporary,
}

impl FileName {
    /// The path of the file in a database folder.
    pub fn path(self, dir: &Path) -> PathBuf {
        dir.join(match self {
            Self::Lock => "LOCK".to_owned(),
            Self::Current => "CURRENT".to_owned(),
            Self::Manifest(number) => format!("MANIFEST-{number:06}"),
            Self::Wal(number) => format!("{number:06}.wal"),
            Self::Table(number) => format!("{number:06}.sst"),
            Self::Blob(number) => format!("{number:06}.blob"),
            Self::Temporary => "CURRENT.tmp".to_owned(),
        })
    }

    /// Reads a name; `None` for files that are not ours.
    pub fn parse(name: &str) -> Option<Self> {
        // Larger ones are not ours: there would be none after them.
        let number = |text: &str| text.parse().ok().filter(|number| *number < u64::MAX >> 2);
        if let Some(text) = name.strip_prefix("MANIFEST-") {
            return number(text).map(Self::Manifest);
        }
        match (name, name.rsplit_once('.')) {
            ("LOCK", _) => Some(Self::Lock),
            ("CURRENT", _) => Some(Self::Current),
            (_, Some((text, "wal"))) => number(text).map(Self::Wal),
            (_, Some((text, "sst"))) => number(text).map(Self::Table),
            (_, Some((text, "blob"))) => number(text).map(Self::Blob),
            ("CURRENT.tmp", _) => Some(Self::Temporary),
            _ => None,
        }
    }

    /// The number in the name.
    pub fn number(self) -> Option<u64> {
        match self {
            Self::Manifest(number)
            | Self::Wal(number)
            | Self::Table(number)
            | Self::Blob(number) => Some(number),
            Self::Lock | Self::Current | Self::Temporary => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        use FileName::*;
        for file in [
            Lock,
            Current,
            Manifest(3),
            Wal(1_234_567),
            Table(0),
            Blob(14),
            Temporary,
        ] {
            let path = file.path(Path::new("/db"));
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            assert_eq!(FileName::parse(&name.unwrap_or_default()), Some(file));
        }
        assert_eq!(FileName::parse("notes.txt"), None);
        assert_eq!(FileName::parse("x.sst"), None);
    }
}
