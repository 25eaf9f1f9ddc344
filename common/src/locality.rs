//! Where a process runs, as tiers from the largest failure domain to the smallest:
//! `cloud=aws,region=us-east-1,zone=a`.

use crate::{Error, Result};
use std::collections::HashMap;

/// The tiers that say how near two processes are, the largest first.
pub const DOMAINS: [&str; 4] = ["cloud", "region", "zone", "rack"];

/// Reads `TIER=VALUE,..`; an empty text is no locality.
///
/// # Errors
/// When a part is not of that form.
pub fn parse(text: &str) -> Result<HashMap<String, String>> {
    text.split(',')
        .filter(|tier| !tier.trim().is_empty())
        .map(|tier| match tier.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() && !value.trim().is_empty() => {
                Ok((key.trim().to_owned(), value.trim().to_owned()))
            }
            _ => Err(Error::invalid(format!(
                "--locality: {tier:?} is not TIER=VALUE"
            ))),
        })
        .collect()
}

/// How many tiers two localities share, from the largest on: the more, the nearer. A
/// tier that neither names is shared; 0 if one of them names none at all.
pub fn shared(one: &HashMap<String, String>, other: &HashMap<String, String>) -> usize {
    if one.is_empty() || other.is_empty() {
        return 0;
    }
    DOMAINS
        .iter()
        .take_while(|tier| one.get(**tier) == other.get(**tier))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localities_are_tiers() {
        let tiers = parse("cloud=aws, region=us-east-1,zone=a").unwrap();
        assert_eq!(tiers["region"], "us-east-1");
        assert!(parse("zone").is_err() && parse("zone=").is_err());
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn a_zone_of_another_region_is_not_near() {
        let of = |text| parse(text).unwrap();
        let here = of("region=eu,zone=a");
        assert!(shared(&here, &of("region=eu,zone=b")) > shared(&here, &of("region=us,zone=a")));
        assert!(shared(&here, &here) > shared(&here, &of("region=eu,zone=b")));
        assert_eq!(shared(&here, &of("")), 0);
    }
}
