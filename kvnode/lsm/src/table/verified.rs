//! Which pieces of a file were found to be what their checksums say.

use std::sync::atomic::{AtomicU64, Ordering};

/// A bit per piece, set once its checksum was found right: a table stays mapped and is never written again, so once
/// is enough.
pub(super) struct Verified(Vec<AtomicU64>);

impl Verified {
    /// For so many pieces, none of them looked at.
    pub fn new(pieces: usize) -> Self {
        Self(
            (0..pieces.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
        )
    }

    /// Runs `verify` unless the piece was found right before.
    #[inline]
    pub fn once<E>(&self, piece: usize, verify: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let (word, bit) = (self.0.get(piece / 64), 1 << (piece % 64));
        if word.is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0) {
            return Ok(());
        }
        verify()?;
        if let Some(word) = word {
            word.fetch_or(bit, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_verified_until_it_is_right_and_then_never_again() {
        let verified = Verified::new(65);
        for piece in [0, 63, 64] {
            assert_eq!(verified.once(piece, || Err("wrong")), Err("wrong"));
            assert_eq!(verified.once(piece, || Ok::<_, &str>(())), Ok(()));
            assert_eq!(verified.once(piece, || Err("not asked")), Ok(()));
        }
        assert_eq!(verified.once(1, || Err("wrong")), Err("wrong"));
    }
}
