//! Units. Owns: what a number counts. Always: arithmetic is checked or saturating, never wrapping.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Milliseconds of duration.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, utoipa::ToSchema,
)]
pub struct Millis(pub u64);

impl Millis {
    /// As the standard library's duration.
    pub const fn duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
    /// Times `n`, at most `u64::MAX`.
    pub const fn times(self, n: u64) -> Millis {
        Millis(self.0.saturating_mul(n))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// A moment on a monotonic clock, in milliseconds from an origin that only the shell knows.
/// Cores receive it as an input and never ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Tick(pub u64);

impl Tick {
    /// The moment `after` this one.
    pub const fn plus(self, after: Millis) -> Tick {
        Tick(self.0.saturating_add(after.0))
    }
    /// How long after `earlier` this is; zero if it is not.
    pub const fn since(self, earlier: Tick) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }
}

/// A moment on the wall clock, milliseconds since 1970: for people and records, never for a decision.
/// In JSON it is RFC 3339 in UTC, in the store and on the wire the bare number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WallMillis(pub u64);

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

impl fmt::Display for WallMillis {
    /// `2026-11-24T10:00:00.250Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms) = (self.0 / DAY_MS, self.0 % DAY_MS);
        let (year, month, day) = civil_from_days(days);
        let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
    }
}

/// The date of a day since 1970-01-01 (Hinnant's `civil_from_days`, for days that are not negative).
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let of_era = z % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Its inverse.
fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, of_era) = (year / 400, year % 400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * shifted + 2) / 5 + day - 1;
    let of_era = of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    (era * 146_097 + of_era).saturating_sub(719_468)
}

/// Why a text is not a moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a time: write it as 2026-11-24T10:00:00Z")]
pub struct TimeError(String);

impl std::str::FromStr for WallMillis {
    type Err = TimeError;
    /// From RFC 3339 in UTC, with or without a fraction of a second.
    fn from_str(text: &str) -> Result<Self, TimeError> {
        let parse = || -> Option<WallMillis> {
            let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
            let number = |part: &str, digits: usize, range: std::ops::RangeInclusive<u64>| -> Option<u64> {
                let clean = part.len() == digits && part.bytes().all(|b| b.is_ascii_digit());
                part.parse().ok().filter(|n| clean && range.contains(n))
            };
            let mut date = date.splitn(3, '-');
            let year = number(date.next()?, 4, 1970..=9999)?;
            let month = number(date.next()?, 2, 1..=12)?;
            let day = number(date.next()?, 2, 1..=31)?;
            let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
            let mut clock = clock.splitn(3, ':');
            let hour = number(clock.next()?, 2, 0..=23)?;
            let minute = number(clock.next()?, 2, 0..=59)?;
            let second = number(clock.next()?, 2, 0..=60)?;
            let fraction_clean = (1..=9).contains(&fraction.len()) && fraction.bytes().all(|b| b.is_ascii_digit());
            let ms: u64 = format!("{fraction:0<3}").get(..3)?.parse().ok().filter(|_| fraction_clean)?;
            let seconds = (hour * 60 + minute) * 60 + second;
            Some(WallMillis(days_from_civil(year, month, day) * DAY_MS + seconds * 1000 + ms))
        };
        parse().ok_or_else(|| TimeError(text.chars().take(80).collect()))
    }
}

impl Serialize for WallMillis {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.collect_str(self) } else { s.serialize_newtype_struct("WallMillis", &self.0) }
    }
}

impl<'de> Deserialize<'de> for WallMillis {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
        } else {
            u64::deserialize(d).map(WallMillis)
        }
    }
}

impl utoipa::PartialSchema for WallMillis {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
        let format = SchemaFormat::KnownFormat(KnownFormat::DateTime);
        ObjectBuilder::new().schema_type(Type::String).format(Some(format)).into()
    }
}
impl utoipa::ToSchema for WallMillis {}

/// One KiB, MiB, GiB in bytes.
pub const KIB: u64 = 1024;
/// One MiB in bytes.
pub const MIB: u64 = 1024 * KIB;
/// One GiB in bytes.
pub const GIB: u64 = 1024 * MIB;

/// `1536` as `1.5 KiB`, for people.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value.fract() < 0.05 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_rfc_3339_in_json_and_a_bare_number_in_the_store() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_250, "2000-02-29T00:00:00.250Z"),
            (1_763_978_400_000, "2025-11-24T10:00:00.000Z"),
        ] {
            assert_eq!(WallMillis(ms).to_string(), text);
            assert_eq!(text.parse(), Ok(WallMillis(ms)));
            assert_eq!(serde_json::to_string(&WallMillis(ms)).unwrap(), format!("\"{text}\""));
            let bytes = postcard::to_allocvec(&WallMillis(ms)).unwrap();
            assert_eq!(bytes, postcard::to_allocvec(&ms).unwrap());
            assert_eq!(postcard::from_bytes::<WallMillis>(&bytes).unwrap(), WallMillis(ms));
        }
        assert_eq!("2025-11-24T10:00:00Z".parse(), Ok(WallMillis(1_763_978_400_000)));
        for bad in ["", "2025-11-24", "2025-13-24T10:00:00Z", "2025-11-24T10:00:00", "2025-11-24T10:00:00.Z"] {
            assert!(bad.parse::<WallMillis>().is_err(), "{bad}");
        }
        for day in 0..200_000 {
            let (y, m, d) = civil_from_days(day);
            assert_eq!(days_from_civil(y, m, d), day);
        }
    }

    #[test]
    fn bytes_read_as_people_say_them() {
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_bytes(192 * MIB), "192 MiB");
    }
}
