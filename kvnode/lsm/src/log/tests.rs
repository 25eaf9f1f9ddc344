#![allow(clippy::unwrap_used)]
use super::writer::TRIES_SKIPPED;
use super::*;
use crate::error::Result;
use crate::vfs::{SimVfs, Vfs};
use std::path::{Path, PathBuf};

fn write(records: &[(&[u8], bool)]) -> (SimVfs, PathBuf) {
    let (vfs, path) = (SimVfs::new(), PathBuf::from("/1.wal"));
    let mut log = LogWriter::create(&vfs, &path, LogKind::Wal, 1, 0).unwrap();
    log.compress_from(300);
    for (index, (payload, sync)) in records.iter().enumerate() {
        log.append(index as u64, &[payload]).unwrap();
        if *sync {
            log.sync().unwrap();
        }
    }
    (vfs, path)
}

fn read(vfs: &SimVfs, path: &Path) -> Result<(Vec<Vec<u8>>, bool)> {
    let mut reader = LogReader::open(vfs, path, LogKind::Wal, 1)?;
    let mut payloads = Vec::new();
    while let Some(record) = reader.next()? {
        assert_eq!(record.tag, payloads.len() as u64);
        payloads.push(record.payload.to_vec());
    }
    Ok((payloads, reader.is_torn()))
}

#[test]
fn records_come_back() {
    let (vfs, path) = write(&[(b"one", false), (b"", true), (b"three", false)]);
    let expected = vec![b"one".to_vec(), b"".to_vec(), b"three".to_vec()];
    assert_eq!(read(&vfs, &path).unwrap(), (expected, false));
}

#[test]
fn a_log_of_small_writes_is_little_more_than_the_writes() {
    let (vfs, path) = (SimVfs::new(), PathBuf::from("/1.wal"));
    let mut log = LogWriter::create(&vfs, &path, LogKind::Wal, 1, 0).unwrap();
    // The first tag, the longest step, a step back.
    let tags = [1 << 40, (1 << 40) + 1, u64::MAX, 0, 7];
    let written = tags.map(|tag| log.append(tag, &[&[b'v'; 120]]).unwrap() - 120);
    assert_eq!(written, [18, 14, 23, 14, 14]);
    let mut reader = LogReader::open(&vfs, &path, LogKind::Wal, 1).unwrap();
    let read = tags.map(|_| reader.next().unwrap().unwrap().tag);
    assert_eq!(read, tags);
    assert!(reader.next().unwrap().is_none());
}

#[test]
fn any_flip_is_cut_off_or_named() {
    let records: [(&[u8], bool); 4] = [
        (b"first", true),
        (&[7; 300], true),
        (&[8; 400], false),
        (b"fourth", false),
    ];
    let second_end = write(&records[..2]).0.used();
    assert!(second_end < 300, "it was not compressed");
    let length = write(&records).0.used();
    // The kinds of a record differ in the lowest bit.
    for (offset, mask) in (0..length).flat_map(|offset| [(offset, 0x40), (offset, 1)]) {
        let (vfs, path) = write(&records);
        vfs.corrupt(&path, offset, mask).unwrap();
        let result = read(&vfs, &path);
        if offset < second_end {
            assert!(
                result.unwrap_err().is_corruption(),
                "offset {offset} had been synced"
            );
        } else {
            let (payloads, torn) = result.unwrap();
            assert!(
                torn && (2..4).contains(&payloads.len()),
                "offset {offset} was never synced"
            );
        }
    }
}

#[test]
fn long_payloads_are_compressed_where_that_makes_them_shorter() {
    let mut random = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 24) as u8
    })
    .take(1000)
    .collect();
    let (vfs, path) = (SimVfs::new(), PathBuf::from("/1.wal"));
    let mut log = LogWriter::create(&vfs, &path, LogKind::Wal, 1, 0).unwrap();
    log.compress_from(500);
    let mut payloads = vec![vec![7; 499], vec![7; 500], noise];
    payloads.resize(payloads.len() + TRIES_SKIPPED as usize + 1, vec![7; 1000]);
    let mut shorter = Vec::new();
    for payload in &payloads {
        // The leader's batch, and a follower's.
        let (leader, follower) = payload.split_at(payload.len() / 3);
        let written = log.append(0, &[leader, follower]).unwrap();
        shorter.push(written < payload.len() as u64);
    }
    let mut expected = vec![false, true, false];
    expected.resize(3 + TRIES_SKIPPED as usize, false);
    expected.push(true);
    assert_eq!(shorter, expected);
    let mut reader = LogReader::open(&vfs, &path, LogKind::Wal, 1).unwrap();
    for payload in &payloads {
        assert_eq!(reader.next().unwrap().unwrap().payload, payload);
    }
    assert!(reader.next().unwrap().is_none() && !reader.is_torn());
}

#[test]
fn a_reserved_log_ends_where_its_records_end() {
    let (vfs, path) = (SimVfs::new(), PathBuf::from("/1.wal"));
    let mut log = LogWriter::create(&vfs, &path, LogKind::Wal, 1, 1000).unwrap();
    log.append(0, &[b"first"]).unwrap();
    log.sync().unwrap();
    assert_eq!(vfs.map(&path).unwrap().len(), 1000);
    assert_eq!(read(&vfs, &path).unwrap(), (vec![b"first".to_vec()], true));
    log.append(1, &[b"second"]).unwrap();
    log.sync().unwrap();
    log.seal(&vfs).unwrap();
    log.sync().unwrap();
    assert_eq!(vfs.map(&path).unwrap().len() as u64, log.len());
    let records = vec![b"first".to_vec(), b"second".to_vec()];
    assert_eq!(read(&vfs, &path).unwrap(), (records, false));
}

#[test]
fn the_bytes_of_another_log_in_a_value_prove_nothing() {
    let (other, path) = write(&[(b"one", true), (b"two", true), (b"three", true)]);
    let value = other.read(&path).unwrap();
    let (vfs, path) = write(&[(&[b'v'; 100], true), (&value, false)]);
    vfs.truncate(&path, vfs.used() - 1).unwrap();
    let kept = vec![vec![b'v'; 100]];
    assert_eq!(read(&vfs, &path).unwrap(), (kept, true));
}

#[test]
fn any_truncation_is_a_torn_tail() {
    let (vfs, path) = write(&[(b"first", false), (b"second", false)]);
    for length in (0..vfs.used()).rev() {
        vfs.truncate(&path, length).unwrap();
        assert!(read(&vfs, &path).unwrap().0.len() < 2);
    }
}
