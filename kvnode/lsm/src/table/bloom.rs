//! Bloom filter of a table: says "certainly not here" for most keys that are not here.
//!
//! Blocked: the hash picks one cache line of 64 bytes and all probes fall into it, so a negative answer costs one
//! cache miss (Putze, Sanders, Singler: "Cache-, Hash- and Space-Efficient Bloom Filters", 2007). With 10 bits per key
//! about 1 % of absent keys pass, with 15 a seventh of that.

use xxhash_rust::xxh3::xxh3_64;

const LINE_BYTES: usize = 64;

/// Hash of a user key, as the filter stores it.
pub(super) fn hash(user_key: &[u8]) -> u64 {
    xxh3_64(user_key)
}

/// Bits set per key for a filter of this density.
fn probes(bits_per_key: u32) -> u8 {
    // bits * ln 2 is optimal for an unblocked filter, a little less for lines.
    (bits_per_key * 6 / 10).clamp(1, 16) as u8
}

/// Builds the filter: its lines, and the number of probes. No keys make no filter.
pub(super) fn build(hashes: &[u64], bits_per_key: u32) -> (Vec<u8>, u8) {
    let probes = probes(bits_per_key);
    if hashes.is_empty() || bits_per_key == 0 {
        return (Vec::new(), probes);
    }
    let bits = hashes.len() as u64 * u64::from(bits_per_key);
    let lines = bits.div_ceil(LINE_BYTES as u64 * 8) as usize;
    let mut filter = vec![0; lines * LINE_BYTES];
    for hash in hashes {
        let start = line_at(filter.len(), *hash);
        for bit in bits_of(*hash, probes) {
            filter[start + bit / 8] |= 1 << (bit % 8);
        }
    }
    (filter, probes)
}

/// Whether there can be a filter of this length with so many probes.
pub(super) fn makes_sense(bytes: usize, probes: u8) -> bool {
    bytes > 0 && bytes.is_multiple_of(LINE_BYTES) && (1..=16).contains(&probes)
}

/// Where the line of a hash begins in a filter of this length: its upper half scaled to the number of lines.
#[inline]
pub(super) fn line_at(bytes: usize, hash: u64) -> usize {
    let lines = (bytes / LINE_BYTES) as u64;
    (((hash >> 32) * lines) >> 32) as usize * LINE_BYTES
}

/// False only if no key of this hash was put into the line.
#[inline]
pub(super) fn may_contain(line: &[u8], probes: u8, hash: u64) -> bool {
    match line.first_chunk::<LINE_BYTES>() {
        Some(line) => bits_of(hash, probes).all(|bit| line[bit / 8] & 1 << (bit % 8) != 0),
        None => true,
    }
}

/// The bits of a hash within its line: nine bits of each step of a multiplicative walk from its lower half.
#[inline]
fn bits_of(hash: u64, probes: u8) -> impl Iterator<Item = usize> {
    let mut word = hash as u32;
    (0..probes).map(move |_| {
        word = word.wrapping_mul(0x9e37_79b9);
        (word >> 23) as usize
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_false_negative_and_as_few_false_positives_as_the_bits_allow() {
        let hashes: Vec<u64> = (0u32..20_000).map(|key| hash(&key.to_be_bytes())).collect();
        for (bits_per_key, passed_max) in [(10, 600), (15, 100)] {
            let (filter, probes) = build(&hashes, bits_per_key);
            assert!(makes_sense(filter.len(), probes));
            assert!(filter.len() <= 20_000 * bits_per_key as usize / 8 + LINE_BYTES);
            let contains = |hash| may_contain(&filter[line_at(filter.len(), hash)..], probes, hash);
            assert!(hashes.iter().all(|hash| contains(*hash)));
            let passed = (20_000u32..60_000)
                .filter(|key| contains(hash(&key.to_be_bytes())))
                .count();
            assert!(passed < passed_max, "{passed} of 40000 absent keys passed");
        }
    }
}
