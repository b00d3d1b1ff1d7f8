//! Sizes and durations in configuration files: `"64 GiB"`, `"300 ms"`, or a bare number of bytes or milliseconds.

use serde::de::{Deserializer, Error, Visitor};

use crate::types::Millis;
use crate::types::units::{GIB, KIB, MIB};

const TIB: u64 = 1024 * GIB;
const SIZES: &[(&str, u64)] = &[("B", 1), ("KiB", KIB), ("MiB", MIB), ("GiB", GIB), ("TiB", TIB)];
const TIMES: &[(&str, u64)] =
    &[("ms", 1), ("s", 1000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("m", 60_000)];

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a size.
    #[error("'{0}' is not a size: write a number and B, KiB, MiB, GiB or TiB, for example \"64 GiB\"")]
    Size(String),
    /// Not a duration.
    #[error("'{0}' is not a duration: write a number and ms, s, min, h or d, for example \"300 ms\"")]
    Duration(String),
}

/// `number unit` as a count of the smallest unit; units are told apart by case only where they must be.
fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number = number.replace('_', "");
    let factor = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()))?.1;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let parsed: f64 = number.parse().ok()?;
    let product = parsed * factor as f64;
    // Beyond 2^53 a fraction no longer says which byte is meant.
    (product.is_finite() && (0.0..=9e15).contains(&product)).then_some(product.round() as u64)
}

/// Bytes from a text such as `64 GiB`.
pub fn bytes(text: &str) -> Result<u64, QuantityError> {
    quantity(text, SIZES).ok_or_else(|| QuantityError::Size(text.chars().take(40).collect()))
}

/// A duration from a text such as `300 ms`.
pub fn millis(text: &str) -> Result<Millis, QuantityError> {
    quantity(text, TIMES).map(Millis).ok_or_else(|| QuantityError::Duration(text.chars().take(40).collect()))
}

/// A number, or a text that `parse` takes.
struct Quantity {
    expected: &'static str,
    parse: fn(&str) -> Result<u64, QuantityError>,
}

impl Visitor<'_> for Quantity {
    type Value = u64;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.expected)
    }
    fn visit_u64<E: Error>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }
    fn visit_i64<E: Error>(self, number: i64) -> Result<u64, E> {
        u64::try_from(number).map_err(|_| E::custom(format!("{number} is negative")))
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        (self.parse)(text).map_err(E::custom)
    }
}

const SIZE: Quantity = Quantity { expected: "a size such as \"64 GiB\", or a number of bytes", parse: bytes };
const DURATION: Quantity = Quantity {
    expected: "a duration such as \"300 ms\", or a number of milliseconds",
    parse: |text| millis(text).map(|ms| ms.0),
};

/// For `#[serde(deserialize_with)]` on bytes.
pub(super) fn size<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    d.deserialize_any(SIZE)
}

/// For `#[serde(deserialize_with)]` on bytes that may be absent.
pub(super) fn size_option<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    size(d).map(Some)
}

/// For `#[serde(deserialize_with)]` on durations.
pub(super) fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Millis, D::Error> {
    d.deserialize_any(DURATION).map(Millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_written_as_people_write_them() {
        for (text, value) in [("64 GiB", 64 * GIB), ("1.5KiB", 1536), ("0 B", 0), ("10_000 mib", 10_000 * MIB)] {
            assert_eq!(bytes(text), Ok(value), "{text}");
        }
        for (text, value) in [("300ms", 300), ("10 s", 10_000), ("1h", 3_600_000), ("0.5 s", 500), ("2 min", 120_000)] {
            assert_eq!(millis(text), Ok(Millis(value)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_quantity_is_refused() {
        for text in ["", "64", "GiB", "64 GB", "-1 GiB", "1e3 B", "99999999999 TiB", "1.2.3 B", "64 GiB x"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        for text in ["", "300", "ms", "3 weeks", "-1 s"] {
            assert!(millis(text).is_err(), "{text}");
        }
    }
}
