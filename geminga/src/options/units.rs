//! Sizes and times as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes, written like `512MiB`, `1GB` or `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

/// Largest first in each family, so that the first that divides a size is the one to write it in.
const SIZE_UNITS: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("kB", 1_000),
    ("B", 1),
];

impl ByteSize {
    pub const fn new(bytes: u64) -> Self {
        ByteSize(bytes)
    }

    pub const fn mib(count: u64) -> Self {
        ByteSize(count << 20)
    }

    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || format!("'{text}' is not a size like 512MiB, 1GB or 4096");
        let (number, unit) = split(text).ok_or_else(invalid)?;
        let scale = match unit {
            "" => 1,
            unit => {
                let same = |(name, _): &&(&str, u64)| name.eq_ignore_ascii_case(unit);
                SIZE_UNITS.iter().find(same).ok_or_else(invalid)?.1
            }
        };
        number.checked_mul(scale).map(ByteSize).ok_or_else(|| format!("'{text}' is too large"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = SIZE_UNITS.iter().find(|(_, scale)| self.0 >= *scale && self.0.is_multiple_of(*scale));
        let (name, scale) = unit.unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / scale)
    }
}

/// A span of time, written like `500ms`, `30s`, `5m`, `4h` or `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(std::time::Duration);

const TIME_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl Duration {
    pub const fn from_secs(seconds: u64) -> Self {
        Duration(std::time::Duration::from_secs(seconds))
    }

    pub const fn get(self) -> std::time::Duration {
        self.0
    }
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || format!("'{text}' is not a time like 500ms, 30s, 5m, 4h or 7d");
        let (number, unit) = split(text).ok_or_else(invalid)?;
        let (_, scale) = TIME_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
        let ms = number.checked_mul(*scale).ok_or_else(|| format!("'{text}' is too long"))?;
        Ok(Duration(std::time::Duration::from_millis(ms)))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis() as u64;
        let unit = TIME_UNITS.iter().find(|(_, scale)| ms >= *scale && ms.is_multiple_of(*scale));
        let (name, scale) = unit.unwrap_or(&("ms", 1));
        write!(f, "{}{name}", ms / scale)
    }
}

/// Splits digits from what follows them.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size like 512MiB, 1GB or 4096")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes).map(ByteSize).map_err(|_| E::custom("a size is not negative"))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes, shown) in [
            ("512MiB", 512 << 20, "512MiB"),
            ("1GB", 1_000_000_000, "1GB"),
            (" 64 kib ", 64 << 10, "64KiB"),
            ("4097", 4097, "4097B"),
            ("0", 0, "0B"),
            ("1024MiB", 1 << 30, "1GiB"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size.bytes(), size.to_string().as_str()), (bytes, shown), "{text}");
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        for bad in ["", "MiB", "-1", "1.5GB", "1XB", "1 2", "99999999999TiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn times() {
        for (text, ms, shown) in
            [("500ms", 500, "500ms"), ("30s", 30_000, "30s"), ("60m", 3_600_000, "1h"), ("0s", 0, "0ms")]
        {
            let time: Duration = text.parse().unwrap();
            assert_eq!((time.get().as_millis(), time.to_string().as_str()), (ms, shown), "{text}");
        }
        for bad in ["", "30", "s", "1 week", "1.5s"] {
            assert!(bad.parse::<Duration>().is_err(), "{bad}");
        }
    }
}
