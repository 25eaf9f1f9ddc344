//! What a replica has written lately: the keys of the versions that apply has
//! put into the engine since somebody began to ask for changes.
//!
//! Whoever follows the changes of a span asks many times a second what is new.
//! The engine has no index by time: it would walk all that the memtable holds of
//! the span each time. With this list the question costs what there is to answer.
//!
//! ```text
//!   first          settled          end
//!     | k1 k2 k3 ... |  k7 k8 k9     |
//!       visible         being written
//! ```
//!
//! Each key has a place, counted up over the life of the list. What stands before
//! `settled` is visible to every snapshot taken after `settled` was read; what a
//! snapshot holds and is not before `settled` stands behind it. So whoever reads
//! `settled`, takes a snapshot, and finds in it nothing above a timestamp *t* but
//! what stands at or behind a place *p*, needs to look at nothing but the list
//! behind the smaller of *p* and `settled` to find everything above *t* later.
//!
//! The list is bounded, and kept only while it is asked for. A place that is not
//! in it any more, or belongs to another list (`epoch`: another replica, a restart,
//! a snapshot that was installed), answers nothing: the span is walked then.

use bytes::Bytes;
use lineradb_common::clock::Stopwatch;
use lineradb_common::random;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::watch;

/// Keys in the list, and their bytes.
const KEYS_MAX: usize = 1 << 16;
const BYTES_MAX: usize = 4 << 20;
/// Nobody has asked for so long: the list is given up.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// Whoever was woken for nothing looks again after this: many may wait for a write to
/// few keys of a shard in which much is written.
const PAUSE: Duration = Duration::from_millis(10);

/// Where the list stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Names the list.
    pub epoch: u64,
    /// The place of the oldest key in it.
    pub first: u64,
    /// What stands before this place is visible.
    pub settled: u64,
}

/// The list of one replica.
pub struct Tail {
    state: Mutex<State>,
    /// A copy of `settled`, and the epoch, for those who wait.
    changed: watch::Sender<(u64, u64)>,
}

#[derive(Default)]
struct State {
    /// 0: nothing is kept.
    epoch: u64,
    first: u64,
    settled: u64,
    keys: VecDeque<Bytes>,
    bytes: usize,
    /// Between [`Tail::begin`] and [`Tail::end`].
    writing: bool,
    asked: Option<Stopwatch>,
}

impl State {
    fn end(&self) -> u64 {
        self.first + self.keys.len() as u64
    }

    fn give_up(&mut self) {
        self.first = self.end();
        self.settled = self.first;
        self.keys = VecDeque::new();
        self.bytes = 0;
        self.epoch = 0;
    }

    fn push(&mut self, key: &[u8]) {
        // Copied: a slice would keep the whole log entry.
        self.keys.push_back(Bytes::copy_from_slice(key));
        self.bytes += key.len();
        while self.keys.len() > KEYS_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.keys.pop_front() else {
                break;
            };
            self.bytes -= oldest.len();
            self.first += 1;
        }
    }
}

impl Default for Tail {
    fn default() -> Self {
        Tail {
            state: Mutex::default(),
            changed: watch::Sender::new((0, 0)),
        }
    }
}

impl Tail {
    /// These versions are about to be put into the engine. One batch at a time.
    pub fn begin(&self, keys: &[Bytes]) {
        let mut state = self.state.lock();
        state.writing = true;
        if state.epoch == 0 {
            return;
        }
        let forgotten = |asked: &Stopwatch| asked.elapsed() > FORGOTTEN_AFTER;
        if state.asked.as_ref().is_none_or(forgotten) {
            state.give_up();
            return;
        }
        for key in keys {
            state.push(key);
        }
    }

    /// They are visible.
    pub fn end(&self) {
        let mut state = self.state.lock();
        state.writing = false;
        state.settled = state.end();
        let now = (state.epoch, state.settled);
        drop(state);
        self.changed.send_if_modified(|seen| {
            let news = *seen != now;
            *seen = now;
            news
        });
    }

    /// What the engine holds is, or will be, another thing than the sum of what
    /// was told here; or whoever waits had better look again.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        state.give_up();
        let now = (0, state.settled);
        drop(state);
        self.changed.send_replace(now);
    }

    /// Where the list stands; it is kept from now on. Before the snapshot is
    /// taken. `None`: a batch of which it knows nothing is being written; the next
    /// one who asks may have more luck.
    pub fn ask(&self) -> Option<Mark> {
        let mut state = self.state.lock();
        if state.epoch == 0 {
            if state.writing {
                return None;
            }
            state.epoch = u64::from_le_bytes(random::bytes()).max(1);
        }
        state.asked = Some(Stopwatch::start());
        Some(Mark {
            epoch: state.epoch,
            first: state.first,
            settled: state.settled,
        })
    }

    /// The keys in `[lower, upper)` from a place on, with their places; `None`:
    /// they are not all there any more.
    pub fn since(
        &self,
        epoch: u64,
        place: u64,
        lower: &[u8],
        upper: &[u8],
    ) -> Option<Vec<(u64, Bytes)>> {
        let state = self.state.lock();
        if state.epoch != epoch || epoch == 0 || place < state.first {
            return None;
        }
        let skip = (place - state.first).min(state.keys.len() as u64) as usize;
        let found = (state.first + skip as u64..).zip(state.keys.range(skip..));
        let inside = found.filter(|(_, key)| &key[..] >= lower && &key[..] < upper);
        Some(inside.map(|(place, key)| (place, key.clone())).collect())
    }

    /// Returns when something in `[lower, upper)` behind a place is visible, or
    /// when that cannot be told.
    pub async fn written(&self, epoch: u64, mut place: u64, lower: &[u8], upper: &[u8]) {
        let mut changed = self.changed.subscribe();
        let mut woken = false;
        loop {
            changed.borrow_and_update();
            let Some(settled) = self.ask().map(|mark| mark.settled) else {
                return;
            };
            match self.since(epoch, place, lower, upper) {
                Some(found) if found.iter().all(|(at, _)| *at >= settled) => {}
                _ => return,
            }
            place = place.max(settled);
            if woken {
                tokio::time::sleep(PAUSE).await;
            }
            if changed.changed().await.is_err() {
                return;
            }
            woken = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    const ALL: (&[u8], &[u8]) = (b"", b"\xff");

    fn write(tail: &Tail, keys: &[&str]) {
        let keys: Vec<Bytes> = keys
            .iter()
            .map(|k| Bytes::copy_from_slice(k.as_bytes()))
            .collect();
        tail.begin(&keys);
        tail.end();
    }

    fn names(found: Option<Vec<(u64, Bytes)>>) -> Option<String> {
        let names = found?
            .into_iter()
            .map(|(_, key)| String::from_utf8(key.to_vec()).unwrap());
        Some(names.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn what_was_written_since_is_there_in_order() {
        let tail = Tail::default();
        write(&tail, &["before"]);
        let mark = tail.ask().unwrap();
        write(&tail, &["b", "a"]);
        write(&tail, &["c"]);
        let since =
            |place, lower: &[u8], upper: &[u8]| names(tail.since(mark.epoch, place, lower, upper));
        assert_eq!(since(mark.settled, ALL.0, ALL.1).unwrap(), "b a c");
        assert_eq!(since(mark.settled, b"b", b"c").unwrap(), "b");
        assert_eq!(since(mark.settled + 1, ALL.0, ALL.1).unwrap(), "a c");
        assert_eq!(since(mark.settled + 9, ALL.0, ALL.1).unwrap(), "");
        assert_eq!(tail.ask().unwrap().settled, mark.settled + 3);
        assert!(
            tail.since(mark.epoch ^ 1, mark.settled, ALL.0, ALL.1)
                .is_none()
        );
        tail.reset();
        assert!(since(mark.settled, ALL.0, ALL.1).is_none());
        let other = tail.ask().unwrap();
        assert_ne!(other.epoch, mark.epoch);
        assert!(other.settled >= mark.settled + 3);
    }

    /// A batch that was begun before the list was: nothing says what it holds, and
    /// no snapshot says whether it is in.
    #[test]
    fn a_list_does_not_begin_in_the_middle_of_a_batch() {
        let tail = Tail::default();
        tail.begin(&[Bytes::from_static(b"unseen")]);
        assert_eq!(tail.ask(), None);
        tail.end();
        assert!(tail.ask().is_some());
    }

    #[test]
    fn what_is_being_written_is_not_settled() {
        let tail = Tail::default();
        let before = tail.ask().unwrap();
        tail.begin(&[Bytes::from_static(b"a")]);
        let during = tail.ask().unwrap();
        assert_eq!(during, before);
        assert_eq!(
            names(tail.since(during.epoch, during.settled, ALL.0, ALL.1)).unwrap(),
            "a"
        );
        tail.end();
        assert_eq!(tail.ask().unwrap().settled, before.settled + 1);
    }

    #[test]
    fn it_is_bounded_and_says_so() {
        let tail = Tail::default();
        let mark = tail.ask().unwrap();
        let key = Bytes::from(vec![b'k'; BYTES_MAX / 4]);
        for _ in 0..5 {
            tail.begin(std::slice::from_ref(&key));
            tail.end();
        }
        assert!(tail.since(mark.epoch, mark.settled, ALL.0, ALL.1).is_none());
        let now = tail.ask().unwrap();
        assert_eq!(now.epoch, mark.epoch);
        let kept = tail.since(now.epoch, now.first, ALL.0, ALL.1).unwrap();
        assert_eq!(kept.len(), 4);
        assert_eq!(kept[3].0 + 1, now.settled);
    }

    #[tokio::test]
    async fn whoever_waits_is_told_of_what_concerns_him() {
        let tail = Tail::default();
        let mark = tail.ask().unwrap();
        let mut wait = Box::pin(tail.written(mark.epoch, mark.settled, b"m", b"n"));
        assert!((&mut wait).now_or_never().is_none());
        write(&tail, &["a", "z"]);
        assert!((&mut wait).now_or_never().is_none());
        tail.begin(&[Bytes::from_static(b"m1")]);
        assert!((&mut wait).now_or_never().is_none());
        tail.end();
        wait.await;
        let from = tail.ask().unwrap();
        assert!(
            tail.written(mark.epoch, mark.settled, b"m", b"n")
                .now_or_never()
                .is_some()
        );
        let mut wait = Box::pin(tail.written(from.epoch, from.settled, b"m", b"n"));
        assert!((&mut wait).now_or_never().is_none());
        tail.reset();
        wait.await;
    }
}
