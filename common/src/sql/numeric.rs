//! `numeric`: a decimal of up to 38 digits, exact or an error.

use super::{ValueError, ValueResult};
use std::cmp::Ordering;
use std::fmt;

/// Largest magnitude: 38 nines.
pub(crate) const MANTISSA_MAX: i128 = 10_i128.pow(38) - 1;

/// `mantissa * 10^-scale`.
#[derive(Clone, Copy, Debug)]
pub struct Numeric {
    mantissa: i128,
    scale: u8,
}

fn pow10(n: u32) -> Option<i128> {
    10_i128.checked_pow(n)
}

impl Numeric {
    /// Zero.
    pub const ZERO: Numeric = Numeric {
        mantissa: 0,
        scale: 0,
    };

    /// A value from its digits.
    ///
    /// # Errors
    /// 22003 when it has more than 38 digits.
    pub fn new(mantissa: i128, scale: u8) -> ValueResult<Self> {
        if mantissa.abs() > MANTISSA_MAX || scale > 38 {
            return Err(overflow());
        }
        Ok(Numeric { mantissa, scale })
    }

    /// An integer.
    pub fn from_i64(v: i64) -> Self {
        Numeric {
            mantissa: i128::from(v),
            scale: 0,
        }
    }

    /// The digits without the point.
    pub fn mantissa(self) -> i128 {
        self.mantissa
    }

    /// Digits after the point.
    pub fn scale(self) -> u8 {
        self.scale
    }

    /// Reads `[+-]digits[.digits][e[+-]digits]`.
    ///
    /// # Errors
    /// 22P02 for other text, 22003 for more than 38 digits, 0A000 for NaN and
    /// infinities.
    pub fn parse(text: &str) -> ValueResult<Self> {
        let s = text.trim_matches(|c: char| c.is_ascii_whitespace());
        let bad = || ValueError::syntax("numeric", text);
        if matches!(
            s.trim_start_matches(['+', '-'])
                .to_ascii_lowercase()
                .as_str(),
            "nan" | "infinity" | "inf"
        ) {
            return Err(ValueError::new(
                "0A000",
                format!("the numeric value \"{s}\" is not supported"),
            ));
        }
        let (negative, rest) = match s.as_bytes().first() {
            Some(b'-') => (true, &s[1..]),
            Some(b'+') => (false, &s[1..]),
            _ => (false, s),
        };
        let (digits, exponent) = match rest.find(['e', 'E']) {
            Some(at) => (
                &rest[..at],
                rest[at + 1..].parse::<i32>().map_err(|_| bad())?,
            ),
            None => (rest, 0),
        };
        let mut mantissa: i128 = 0;
        let mut scale: i32 = 0;
        let mut seen_point = false;
        let mut seen_digit = false;
        for b in digits.bytes() {
            match b {
                b'0'..=b'9' => {
                    seen_digit = true;
                    mantissa = mantissa
                        .checked_mul(10)
                        .and_then(|m| m.checked_add(i128::from(b - b'0')))
                        .filter(|m| *m <= MANTISSA_MAX)
                        .ok_or_else(overflow)?;
                    scale += i32::from(seen_point);
                }
                b'.' if !seen_point => seen_point = true,
                _ => return Err(bad()),
            }
        }
        if !seen_digit {
            return Err(bad());
        }
        scale = scale.checked_sub(exponent).ok_or_else(overflow)?;
        while scale > 38 && mantissa % 10 == 0 {
            mantissa /= 10;
            scale -= 1;
            if mantissa == 0 {
                scale = scale.min(38);
            }
        }
        if scale < 0 {
            if mantissa != 0 {
                mantissa = pow10(scale.unsigned_abs())
                    .and_then(|p| mantissa.checked_mul(p))
                    .ok_or_else(overflow)?;
            }
            scale = 0;
        }
        if scale > 38 {
            return Err(overflow());
        }
        Self::new(if negative { -mantissa } else { mantissa }, scale as u8)
    }

    /// Without trailing zeros after the point.
    pub fn normalized(self) -> Self {
        let (mut m, mut s) = (self.mantissa, self.scale);
        while s > 0 && m % 10 == 0 {
            m /= 10;
            s -= 1;
        }
        Numeric {
            mantissa: m,
            scale: s,
        }
    }

    /// With exactly `scale` digits after the point, rounding half away from
    /// zero.
    ///
    /// # Errors
    /// 22003 when more than 38 digits are needed.
    pub fn rescale(self, scale: u8) -> ValueResult<Self> {
        if scale >= self.scale {
            let m = pow10(u32::from(scale - self.scale))
                .and_then(|p| self.mantissa.checked_mul(p))
                .ok_or_else(overflow)?;
            return Self::new(m, scale);
        }
        let divisor = pow10(u32::from(self.scale - scale)).ok_or_else(overflow)?;
        let quotient = self.mantissa / divisor;
        let rest = (self.mantissa % divisor).abs();
        let up = i128::from(rest >= divisor - rest);
        Self::new(quotient + up * self.mantissa.signum(), scale)
    }

    /// As a value of `numeric(precision, scale)`: rounded, then checked.
    ///
    /// # Errors
    /// 22003 as PostgreSQL words it.
    pub fn fit(self, precision: u8, scale: u8) -> ValueResult<Self> {
        let too_large = || {
            ValueError::new(
                "22003",
                format!(
                    "numeric field overflow: a field with precision {precision}, scale {scale} \
                     must round to an absolute value less than 10^{}",
                    i32::from(precision) - i32::from(scale)
                ),
            )
        };
        let v = self.rescale(scale).map_err(|_| too_large())?;
        match pow10(u32::from(precision)) {
            Some(limit) if v.mantissa.abs() < limit => Ok(v),
            _ => Err(too_large()),
        }
    }

    /// As a value of a bare `numeric` column.
    ///
    /// # Errors
    /// 22003 when it does not fit 28 + 10 digits exactly.
    pub fn fit_bare(self) -> ValueResult<Self> {
        use super::types::BARE_NUMERIC_SCALE;
        let n = self.normalized();
        if n.scale > BARE_NUMERIC_SCALE || n.rescale(BARE_NUMERIC_SCALE).is_err() {
            return Err(ValueError::new(
                "22003",
                format!(
                    "{self} does not fit a column of type numeric exactly (28 digits before and \
                     10 after the point): declare precision and scale, as in numeric(38,20)"
                ),
            ));
        }
        Ok(n)
    }

    /// The nearest integer, half away from zero.
    pub fn round_to_i128(self) -> i128 {
        self.rescale(0).map_or(0, |n| n.mantissa)
    }

    /// The nearest double.
    pub fn to_f64(self) -> f64 {
        /// Powers of ten that a double holds exactly.
        const EXACT_TENS: usize = 23;
        const EXACT_INTEGERS: u128 = 1 << 53;
        const TENS: [f64; EXACT_TENS] = [
            1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
            1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
        ];
        match TENS.get(usize::from(self.scale)) {
            // Of two exact numbers the quotient is rounded once (Clinger 1990).
            Some(ten) if self.mantissa.unsigned_abs() <= EXACT_INTEGERS => {
                self.mantissa as f64 / ten
            }
            _ => self.to_string().parse().unwrap_or(f64::NAN),
        }
    }

    /// The nearest `real`: not that of the nearest double, which may lie on the other
    /// side of a tie.
    pub fn to_f32(self) -> f32 {
        self.to_string().parse().unwrap_or(f32::NAN)
    }

    /// The shortest decimal that reads back as `v`, as PostgreSQL's casts from
    /// floats keep 15 digits.
    ///
    /// # Errors
    /// 22003 beyond 38 digits, 0A000 for NaN and infinities.
    pub fn from_f64(v: f64) -> ValueResult<Self> {
        if !v.is_finite() {
            return Err(ValueError::new(
                "0A000",
                format!("the numeric value \"{v}\" is not supported"),
            ));
        }
        Ok(Self::parse(&format!("{v:.14e}"))?.normalized())
    }

    /// As [`Numeric::from_f64`], with the 6 digits of a `real`.
    ///
    /// # Errors
    /// As there.
    pub fn from_f32(v: f32) -> ValueResult<Self> {
        if !v.is_finite() {
            return Self::from_f64(f64::from(v));
        }
        Ok(Self::parse(&format!("{v:.5e}"))?.normalized())
    }

    fn aligned(self, other: Self) -> ValueResult<(i128, i128, u8)> {
        let scale = self.scale.max(other.scale);
        Ok((
            self.rescale(scale)?.mantissa,
            other.rescale(scale)?.mantissa,
            scale,
        ))
    }

    /// Sum.
    ///
    /// # Errors
    /// 22003 beyond 38 digits; the other operations alike.
    pub fn plus(self, other: Self) -> ValueResult<Self> {
        let (a, b, scale) = self.aligned(other)?;
        Self::new(a.checked_add(b).ok_or_else(overflow)?, scale)
    }

    /// Difference.
    ///
    /// # Errors
    /// 22003.
    pub fn minus(self, other: Self) -> ValueResult<Self> {
        self.plus(other.negated())
    }

    /// Product.
    ///
    /// # Errors
    /// 22003.
    pub fn times(self, other: Self) -> ValueResult<Self> {
        let m = self
            .mantissa
            .checked_mul(other.mantissa)
            .ok_or_else(overflow)?;
        Self::new(m, self.scale + other.scale)
    }

    /// The negative.
    #[must_use]
    pub fn negated(self) -> Self {
        Numeric {
            mantissa: -self.mantissa,
            scale: self.scale,
        }
    }
}

fn overflow() -> ValueError {
    ValueError::new(
        "22003",
        "value overflows numeric format: more than 38 digits",
    )
}

impl fmt::Display for Numeric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.mantissa < 0 { "-" } else { "" };
        let digits = self.mantissa.unsigned_abs().to_string();
        let scale = self.scale as usize;
        if scale == 0 {
            return write!(f, "{sign}{digits}");
        }
        let digits = format!("{digits:0>width$}", width = scale + 1);
        let (int, frac) = digits.split_at(digits.len() - scale);
        write!(f, "{sign}{int}.{frac}")
    }
}

impl PartialEq for Numeric {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Numeric {}

impl PartialOrd for Numeric {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Numeric {
    fn cmp(&self, other: &Self) -> Ordering {
        match self.aligned(*other) {
            Ok((a, b, _)) => a.cmp(&b),
            // One does not fit the other's scale: integer parts differ.
            Err(_) => {
                let whole = |n: &Numeric| n.mantissa / pow10(u32::from(n.scale)).unwrap_or(1);
                whole(self).cmp(&whole(other))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(s: &str) -> Numeric {
        Numeric::parse(s).unwrap()
    }

    #[test]
    fn text_comes_back_exactly() {
        for s in [
            "0",
            "1",
            "-1.50",
            "0.001",
            "12345678901234567890.123456789012345678",
            "99999999999999999999999999999999999999",
        ] {
            assert_eq!(n(s).to_string(), s);
        }
        assert_eq!(n("1.5e3").to_string(), "1500");
        assert_eq!(n("15e-1").to_string(), "1.5");
        assert_eq!(n(" +.5 ").to_string(), "0.5");
        assert_eq!(n("0e100").to_string(), "0");
    }

    #[test]
    fn floats_are_rounded_once() {
        // Nearest to a tie between two reals, which the nearest double lies on.
        assert_eq!(n("16777217.0000000001").to_f32(), 16_777_218.0);
        assert_eq!(n("-9007199254740993").to_f64(), -9_007_199_254_740_992.0);
        assert_eq!(n("0.1").to_f64(), 0.1);
        assert_eq!(n("0").to_f64().to_bits(), 0);
    }

    proptest::proptest! {
        #[test]
        fn doubles_are_what_their_text_reads_as(
            mantissa in proptest::prop_oneof![-(10_i128.pow(38) - 1)..10_i128.pow(38), -(1_i128 << 54)..1 << 54],
            scale in 0_u8..38,
        ) {
            let number = Numeric::new(mantissa, scale).unwrap();
            proptest::prop_assert_eq!(number.to_f64(), number.to_string().parse::<f64>().unwrap());
        }
    }

    #[test]
    fn what_is_no_number_or_too_long_is_refused() {
        for s in ["", ".", "1.2.3", "abc", "1e", "--1"] {
            assert_eq!(Numeric::parse(s).unwrap_err().sqlstate, "22P02", "{s}");
        }
        for s in ["1e38", "999999999999999999999999999999999999999", "1e-39"] {
            assert_eq!(Numeric::parse(s).unwrap_err().sqlstate, "22003", "{s}");
        }
        assert_eq!(Numeric::parse("NaN").unwrap_err().sqlstate, "0A000");
    }

    #[test]
    fn rounding_is_half_away_from_zero() {
        assert_eq!(n("2.5").rescale(0).unwrap().to_string(), "3");
        assert_eq!(n("-2.5").rescale(0).unwrap().to_string(), "-3");
        assert_eq!(n("2.4999").rescale(0).unwrap().to_string(), "2");
        assert_eq!(n("1.005").fit(10, 2).unwrap().to_string(), "1.01");
        assert_eq!(n("99.995").fit(4, 2).unwrap_err().sqlstate, "22003");
        assert_eq!(n("1.00000000001").fit_bare().unwrap_err().sqlstate, "22003");
    }

    #[test]
    fn values_of_different_scale_compare() {
        assert_eq!(n("1.50"), n("1.5"));
        assert!(
            n("99999999999999999999999999999999999999")
                > n("0.00000000000000000000000000000000000001")
        );
        assert!(
            n("-99999999999999999999999999999999999999")
                < n("0.00000000000000000000000000000000000001")
        );
    }

    #[test]
    fn arithmetic_is_checked() {
        assert_eq!(n("1.5").plus(n("0.25")).unwrap().to_string(), "1.75");
        assert_eq!(n("1.5").times(n("-2.0")).unwrap().to_string(), "-3.00");
        let max = n("99999999999999999999999999999999999999");
        assert_eq!(max.plus(n("1")).unwrap_err().sqlstate, "22003");
    }

    #[test]
    fn floats_become_short_decimals() {
        assert_eq!(Numeric::from_f64(0.1).unwrap().to_string(), "0.1");
        assert_eq!(
            Numeric::from_f64(1e20).unwrap().to_string(),
            "100000000000000000000"
        );
        assert_eq!(Numeric::from_f32(3.7).unwrap().to_string(), "3.7");
    }
}
