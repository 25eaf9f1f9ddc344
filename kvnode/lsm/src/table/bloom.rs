//! Bloom filter of a table: says "certainly not here" for most keys that are not here.
//!
//! Blocked: the hash picks one cache line of 64 bytes and all probes fall into it, so a negative answer costs one
//! cache miss (Putze, Sanders, Singler: "Cache-, Hash- and Space-Efficient Bloom Filters", 2007). At the default 10
//! bits per key about 1 % of absent keys pass.

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

/// Builds the filter: the lines, then the number of probes in one byte. No keys make no filter.
pub(super) fn build(hashes: &[u64], bits_per_key: u32) -> Vec<u8> {
    if hashes.is_empty() || bits_per_key == 0 {
        return Vec::new();
    }
    let bits = hashes.len() as u64 * u64::from(bits_per_key);
    let lines = bits.div_ceil(LINE_BYTES as u64 * 8) as usize;
    let probes = probes(bits_per_key);
    let mut filter = vec![0; lines * LINE_BYTES + 1];
    for hash in hashes {
        let start = line(*hash, lines) * LINE_BYTES;
        for bit in bits_of(*hash, probes) {
            filter[start + bit / 8] |= 1 << (bit % 8);
        }
    }
    filter[lines * LINE_BYTES] = probes;
    filter
}

/// False only if no key of this hash was put into the filter. A filter that makes no sense lets everything pass.
#[inline]
pub(super) fn may_contain(filter: &[u8], hash: u64) -> bool {
    let Some((&probes, lines)) = filter.split_last() else {
        return true;
    };
    let (lines, rest) = lines.as_chunks::<LINE_BYTES>();
    let Some(line) = lines.get(line(hash, lines.len())) else {
        return true;
    };
    if !rest.is_empty() || !(1..=16).contains(&probes) {
        return true;
    }
    bits_of(hash, probes).all(|bit| line[bit / 8] & 1 << (bit % 8) != 0)
}

/// The line of a hash: its upper half scaled to the number of lines.
fn line(hash: u64, lines: usize) -> usize {
    (((hash >> 32) * lines as u64) >> 32) as usize
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
    fn no_false_negative_and_about_one_percent_false_positives() {
        let hashes: Vec<u64> = (0u32..20_000).map(|key| hash(&key.to_be_bytes())).collect();
        let filter = build(&hashes, 10);
        assert!(filter.len() <= 20_000 * 10 / 8 + 2 * LINE_BYTES);
        assert!(hashes.iter().all(|hash| may_contain(&filter, *hash)));
        let passed = (20_000u32..60_000)
            .filter(|key| may_contain(&filter, hash(&key.to_be_bytes())))
            .count();
        assert!(passed < 800, "{passed} of 40000 absent keys passed");
    }

    #[test]
    fn nonsense_lets_everything_pass() {
        for filter in [&[][..], &[3], &[0; 10], &[0; 65], &[255; 65]] {
            assert!(may_contain(filter, 42));
        }
    }
}
