//! Bytes to numbers and back. Every decoder takes a slice and moves it forward; running out of bytes is `None`,
//! never a panic, because the input is a disk.

/// Longest varint of a `u64`.
pub(crate) const VARINT_BYTES_MAX: usize = 10;

/// Appends `value` as LEB128.
pub(crate) fn put_varint(buffer: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        buffer.push(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.push(value as u8);
}

/// How many bytes [`put_varint`] takes for a number.
pub(crate) fn varint_length(value: u64) -> usize {
    (64 - value.max(1).leading_zeros() as usize).div_ceil(7)
}

/// Reads a LEB128 number; refuses more than 64 bits.
#[inline]
pub(crate) fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let (&first, rest) = input.split_first()?;
    if first < 0x80 {
        *input = rest;
        return Some(u64::from(first));
    }
    let mut value = u64::from(first & 0x7f);
    for index in 1..VARINT_BYTES_MAX {
        let byte = *input.get(index)?;
        if index == VARINT_BYTES_MAX - 1 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *input = input.get(index + 1..)?;
            return Some(value);
        }
    }
    None
}

/// Reads a LEB128 number that must fit a `usize`.
#[inline]
pub(crate) fn take_length(input: &mut &[u8]) -> Option<usize> {
    usize::try_from(take_varint(input)?).ok()
}

/// Reads `count` bytes.
#[inline]
pub(crate) fn take_bytes<'a>(input: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, rest) = input.split_at_checked(count)?;
    *input = rest;
    Some(head)
}

/// Appends a length and the bytes.
pub(crate) fn put_prefixed(buffer: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(buffer, bytes.len() as u64);
    buffer.extend_from_slice(bytes);
}

/// Reads a length and that many bytes.
pub(crate) fn take_prefixed<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_length(input)?;
    take_bytes(input, length)
}

/// The little-endian `u32` at `offset`.
#[inline]
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let (word, _) = bytes.get(offset..)?.split_first_chunk()?;
    Some(u32::from_le_bytes(*word))
}

/// The little-endian `u64` at `offset`.
#[inline]
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let (word, _) = bytes.get(offset..)?.split_first_chunk()?;
    Some(u64::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varint_round_trip(value: u64, tail: Vec<u8>) {
            let mut buffer = Vec::new();
            put_varint(&mut buffer, value);
            prop_assert!(buffer.len() <= VARINT_BYTES_MAX);
            prop_assert_eq!(buffer.len(), varint_length(value));
            buffer.extend_from_slice(&tail);
            let mut input = &buffer[..];
            prop_assert_eq!(take_varint(&mut input).unwrap(), value);
            prop_assert_eq!(input, &tail[..]);
        }

        #[test]
        fn decoders_never_panic(bytes: Vec<u8>, offset in 0usize..64) {
            take_varint(&mut &bytes[..]);
            take_prefixed(&mut &bytes[..]);
            u32_at(&bytes, offset);
            u64_at(&bytes, offset);
        }
    }
}
