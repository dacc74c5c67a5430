use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The place of an entry in a topic: which ledger, and which entry of it.
///
/// Ordered by ledger, then entry, which is the order of the topic because ledger ids only grow.
/// An entry id of -1 stands before the first entry of its ledger.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    pub ledger_id: u64,
    pub entry_id: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid position '{0}', it should be in the format of <ledger>:<entry>")]
pub struct InvalidPosition(String);

impl Position {
    /// Before every entry. No ledger has the id 0.
    pub const EARLIEST: Position = Position { ledger_id: 0, entry_id: -1 };
    /// After every entry.
    pub const LATEST: Position = Position { ledger_id: u64::MAX, entry_id: i64::MAX };

    pub const fn new(ledger_id: u64, entry_id: i64) -> Self {
        Position { ledger_id, entry_id }
    }

    /// The position after this one in the same ledger, whether or not an entry is there.
    #[must_use]
    pub const fn next(self) -> Self {
        Position { ledger_id: self.ledger_id, entry_id: self.entry_id.saturating_add(1) }
    }

    /// The position before this one in the same ledger; -1 is the lowest entry id.
    #[must_use]
    pub const fn previous(self) -> Self {
        let entry_id = if self.entry_id > 0 { self.entry_id - 1 } else { -1 };
        Position { ledger_id: self.ledger_id, entry_id }
    }

    /// Reads the ids of Pulsar's `MessageIdData`, which sends Java longs as `uint64`:
    /// -1:-1 is the earliest message and MAX:MAX (of `i64`) the latest.
    pub const fn from_wire(ledger_id: u64, entry_id: u64) -> Self {
        if (ledger_id as i64) < 0 {
            Position::EARLIEST
        } else if ledger_id == i64::MAX as u64 {
            Position::LATEST
        } else {
            Position { ledger_id, entry_id: entry_id as i64 }
        }
    }

    /// The inverse of [`Position::from_wire`].
    pub const fn to_wire(self) -> (u64, u64) {
        if self.ledger_id == 0 && self.entry_id == -1 {
            (u64::MAX, u64::MAX)
        } else if self.ledger_id == u64::MAX {
            (i64::MAX as u64, i64::MAX as u64)
        } else {
            (self.ledger_id, self.entry_id as u64)
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.ledger_id, self.entry_id)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidPosition(text.to_owned());
        let (ledger, entry) = text.split_once(':').ok_or_else(invalid)?;
        let ledger_id = ledger.parse().map_err(|_| invalid())?;
        let entry_id = entry.parse().map_err(|_| invalid())?;
        if entry_id < -1 {
            return Err(invalid());
        }
        Ok(Position { ledger_id, entry_id })
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_text_and_wire() {
        let positions = [
            Position::EARLIEST,
            Position::new(0, 0),
            Position::new(3, -1),
            Position::new(3, 7),
            Position::new(4, 0),
            Position::LATEST,
        ];
        assert!(positions.is_sorted());
        for position in positions {
            assert_eq!(position.to_string().parse(), Ok(position));
            let (ledger, entry) = position.to_wire();
            assert_eq!(Position::from_wire(ledger, entry), position);
        }
        assert_eq!(Position::new(3, -1).next(), Position::new(3, 0));
        assert_eq!(Position::new(3, 0).previous(), Position::new(3, -1));
        assert_eq!(Position::new(3, -1).previous(), Position::new(3, -1));
        for bad in ["", "1", "1:", ":1", "1:-2", "-1:3", "a:b", "1:2:3"] {
            assert!(bad.parse::<Position>().is_err(), "{bad}");
        }
    }
}
