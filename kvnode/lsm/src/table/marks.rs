//! A bit for each piece of a file.

use std::sync::atomic::{AtomicU64, Ordering};

/// A mark per piece, none of them set in the beginning.
pub(super) struct Marks(Vec<AtomicU64>);

impl Marks {
    /// For so many pieces.
    pub fn new(pieces: usize) -> Self {
        Self(
            (0..pieces.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
        )
    }

    /// Runs `verify` unless the piece was found right before: a file stays mapped and is never written again, so once
    /// is enough.
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

    /// True every second time that it is asked about a piece.
    pub fn every_second(&self, piece: usize) -> bool {
        let (word, bit) = (self.0.get(piece / 64), 1 << (piece % 64));
        word.is_some_and(|word| word.fetch_xor(bit, Ordering::Relaxed) & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_verified_until_it_is_right_and_then_never_again() {
        let verified = Marks::new(65);
        for piece in [0, 63, 64] {
            assert_eq!(verified.once(piece, || Err("wrong")), Err("wrong"));
            assert_eq!(verified.once(piece, || Ok::<_, &str>(())), Ok(()));
            assert_eq!(verified.once(piece, || Err("not asked")), Ok(()));
        }
        assert_eq!(verified.once(1, || Err("wrong")), Err("wrong"));
    }

    #[test]
    fn every_second_time_of_each_piece() {
        let marks = Marks::new(65);
        let asked = [0, 64, 0, 0, 64, 0].map(|piece| marks.every_second(piece));
        assert_eq!(asked, [false, false, true, false, true, true]);
    }
}
