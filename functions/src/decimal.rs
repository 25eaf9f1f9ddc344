//! Exact decimal arithmetic over `Decimal128` columns.
//!
//! PostgreSQL's numeric has no practical bound; ours holds 38 digits. A result
//! that needs more is an error (22003), never a rounded or wrapped value.

use crate::error::FunctionError;
use arrow::datatypes::i256;

/// Digits that a decimal holds.
pub const MAX_PRECISION: u8 = 38;
/// Fraction digits of a quotient: PostgreSQL gives at least 16 significant
/// digits and 20 for quotients below one.
pub const DIVISION_SCALE: i8 = 20;

const LIMIT: i128 = 10i128.pow(38);

fn overflow() -> FunctionError {
    FunctionError::new(
        "22003",
        "numeric value out of range: more than 38 digits are not supported",
    )
}

/// Fails when the value has more than 38 digits.
pub fn check(value: i128) -> Result<i128, FunctionError> {
    if value > -LIMIT && value < LIMIT {
        Ok(value)
    } else {
        Err(overflow())
    }
}

/// `10^n`; `n` up to 76.
pub fn pow10(n: u32) -> i256 {
    i256::from_i128(10).checked_pow(n).unwrap_or(i256::MAX)
}

fn narrow(value: i256) -> Result<i128, FunctionError> {
    value.to_i128().ok_or_else(overflow).and_then(check)
}

/// Division that rounds halves away from zero, as numeric does.
pub fn div_round(dividend: i256, divisor: i256) -> Option<i256> {
    let quotient = dividend.checked_div(divisor)?;
    let rest = dividend.checked_rem(divisor)?;
    let twice = rest.wrapping_abs().checked_mul(i256::from_i128(2))?;
    if twice >= divisor.wrapping_abs() {
        let away = if (dividend < i256::ZERO) == (divisor < i256::ZERO) {
            i256::ONE
        } else {
            i256::MINUS_ONE
        };
        quotient.checked_add(away)
    } else {
        Some(quotient)
    }
}

/// `value` at another scale, halves rounded away from zero.
pub fn rescale(value: i128, from: i8, to: i8) -> Result<i128, FunctionError> {
    let wide = i256::from_i128(value);
    let shift = i32::from(to) - i32::from(from);
    let factor = pow10(shift.unsigned_abs());
    let moved = if shift >= 0 {
        wide.checked_mul(factor)
    } else {
        div_round(wide, factor)
    };
    narrow(moved.ok_or_else(overflow)?)
}

/// A product. When its exact scale does not fit, digits are dropped only if
/// they are zeros.
pub fn mul(a: i128, sa: i8, b: i128, sb: i8, scale: i8) -> Result<i128, FunctionError> {
    let product = i256::from_i128(a)
        .checked_mul(i256::from_i128(b))
        .ok_or_else(overflow)?;
    let extra = i32::from(sa) + i32::from(sb) - i32::from(scale);
    if extra <= 0 {
        return narrow(product);
    }
    let factor = pow10(extra.unsigned_abs());
    let rest = product.checked_rem(factor).ok_or_else(overflow)?;
    if rest != i256::ZERO {
        return Err(overflow());
    }
    narrow(product.checked_div(factor).ok_or_else(overflow)?)
}

/// A quotient at `scale` digits after the point.
pub fn div(a: i128, sa: i8, b: i128, sb: i8, scale: i8) -> Result<i128, FunctionError> {
    if b == 0 {
        return Err(FunctionError::division_by_zero());
    }
    // a/10^sa / (b/10^sb) * 10^scale = a * 10^(scale + sb - sa) / b
    let shift = i32::from(scale) + i32::from(sb) - i32::from(sa);
    let wide = i256::from_i128(a);
    let factor = pow10(shift.unsigned_abs());
    let quotient = if shift >= 0 {
        wide.checked_mul(factor)
            .and_then(|n| div_round(n, i256::from_i128(b)))
    } else {
        i256::from_i128(b)
            .checked_mul(factor)
            .and_then(|d| div_round(wide, d))
    };
    narrow(quotient.ok_or_else(overflow)?)
}

/// A quotient with the digits that PostgreSQL gives it: 16 significant ones at
/// least, counted in steps of four, and those of the operands. What it rounds
/// off is zero here, and what goes beyond `scale` is rounded off.
pub fn quotient(a: i128, sa: i8, b: i128, sb: i8, scale: i8) -> Result<i128, FunctionError> {
    let ((w1, first1), (w2, first2)) = (leading(a, sa), leading(b, sb));
    let weight = w1 - w2 - i32::from(first1 <= first2);
    let digits = (16 - 4 * weight)
        .max(i32::from(sa))
        .max(i32::from(sb))
        .clamp(0, i32::from(scale)) as i8;
    rescale(div(a, sa, b, sb, digits)?, digits, scale)
}

/// The first digit to the base 10,000 of a decimal, and its power.
fn leading(value: i128, scale: i8) -> (i32, u128) {
    let value = value.unsigned_abs();
    let Some(last) = value.checked_ilog10() else {
        return (0, 0);
    };
    let exponent = last as i32 - i32::from(scale);
    let weight = exponent.div_euclid(4);
    let wanted = exponent.rem_euclid(4);
    let shift = wanted - last as i32;
    let factor = 10u128.pow(shift.unsigned_abs());
    let first = if shift >= 0 {
        value * factor
    } else {
        value / factor
    };
    (weight, first)
}

/// Type of a sum or difference.
pub fn add_type(p1: u8, s1: i8, p2: u8, s2: i8) -> (u8, i8) {
    let scale = s1.max(s2);
    let whole = (i32::from(p1) - i32::from(s1)).max(i32::from(p2) - i32::from(s2));
    let precision = (whole + i32::from(scale) + 1).clamp(1, i32::from(MAX_PRECISION));
    (precision.unsigned_abs() as u8, scale)
}

/// Type of a product.
pub fn mul_type(p1: u8, s1: i8, p2: u8, s2: i8) -> (u8, i8) {
    let scale = (i32::from(s1) + i32::from(s2))
        .min(30)
        .max(i32::from(s1.max(s2)));
    let precision = (i32::from(p1) + i32::from(p2) + 1).min(i32::from(MAX_PRECISION));
    (precision.unsigned_abs() as u8, scale as i8)
}

/// Type of a quotient.
pub fn div_type(s1: i8, s2: i8) -> (u8, i8) {
    (MAX_PRECISION, DIVISION_SCALE.max(s1).max(s2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotients_round_half_away_from_zero() {
        assert_eq!(div(1, 0, 3, 0, 4).ok(), Some(3333));
        assert_eq!(div(2, 0, 3, 0, 4).ok(), Some(6667));
        assert_eq!(div(-5, 0, 10, 0, 0).ok(), Some(-1));
        assert_eq!(div(1, 0, 0, 0, 4).unwrap_err().sqlstate, "22012");
    }

    #[test]
    fn quotients_have_postgresqls_digits() {
        // 10 / 3 = 3.3333333333333333, 1 / 3 = 0.33333333333333333333,
        // 100000000 / 3.0 = 33333333.333333333333
        let zeros = |digits: &str, n: usize| (digits.to_owned() + &"0".repeat(n)).parse().ok();
        assert_eq!(quotient(10, 0, 3, 0, 20).ok(), zeros(&"3".repeat(17), 4));
        assert_eq!(quotient(1, 0, 3, 0, 20).ok(), zeros(&"3".repeat(20), 0));
        assert_eq!(
            quotient(100_000_000, 0, 30, 1, 20).ok(),
            zeros(&"3".repeat(20), 8)
        );
        assert_eq!(quotient(0, 0, 3, 0, 20).ok(), Some(0));
        assert_eq!(leading(12_345, 4), (0, 1));
        assert_eq!(leading(12_345, 2), (0, 123));
        assert_eq!(leading(5, 1), (-1, 5000));
    }

    #[test]
    fn products_are_exact_or_an_error() {
        assert_eq!(mul(15, 1, 15, 1, 2).ok(), Some(225));
        assert_eq!(mul(10, 1, 15, 1, 1).ok(), Some(15));
        assert!(mul(15, 1, 15, 1, 1).is_err());
        assert!(mul(10i128.pow(20), 0, 10i128.pow(18), 0, 0).is_err());
    }

    #[test]
    fn rescaling_rounds() {
        assert_eq!(rescale(25, 1, 0).ok(), Some(3));
        assert_eq!(rescale(-25, 1, 0).ok(), Some(-3));
        assert_eq!(rescale(24, 1, 0).ok(), Some(2));
        assert!(rescale(10i128.pow(37), 0, 2).is_err());
    }
}
