//! Checkpoints: a second database with the same contents, made of hard links.
//!
//! Tables and blob files never change, so a second name for each and a manifest that lists them are a whole database:
//! cheap, and independent of the first from then on. `CURRENT` comes last: a folder without it is not a database, and
//! an open says so.

use super::Inner;
use crate::error::{Error, Result};
use crate::files::FileName;
use crate::manifest::Manifest;
use std::path::Path;
use std::sync::Arc;

impl Inner {
    /// Makes the checkpoint of what is flushed.
    pub(super) fn checkpoint(&self, target: &Path) -> Result<()> {
        let listed = |error| Error::io("list", target, error);
        self.vfs
            .create_dir_all(target)
            .map_err(|error| Error::io("create", target, error))?;
        if !self.vfs.list(target).map_err(listed)?.is_empty() {
            return Err(Error::InvalidOptions {
                what: format!("the folder {} is not empty", target.display()),
            });
        }
        let (view, mut state) = {
            let manifest = self.manifest.lock();
            // Views with other tables are published under the same lock. The view keeps the files.
            (self.view.load_full(), manifest.state().clone())
        };
        let tables = state.tables.keys();
        let tables = tables.map(|(_, _, number)| FileName::Table(*number));
        for file in tables.chain(state.blobs().into_iter().map(FileName::Blob)) {
            let from = file.path(&self.dir);
            self.vfs
                .link(&from, &file.path(target))
                .map_err(|error| Error::io("link", &from, error))?;
        }
        drop(view);
        // No log comes along.
        state.log_number = 0;
        Manifest::create(Arc::clone(&self.vfs), target, state)?;
        let parent = target.parent().filter(|dir| !dir.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        self.vfs
            .sync_dir(parent)
            .map_err(|error| Error::io("sync", parent, error))
    }
}
