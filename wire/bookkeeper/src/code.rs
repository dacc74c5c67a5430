//! How a request ended.

/// An answer's code; each has a number in either form of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    Ok,
    NoLedger,
    NoEntry,
    BadRequest,
    Io,
    /// The master key is not the ledger's, or the connection has not authenticated.
    Unauthorized,
    BadVersion,
    Fenced,
    ReadOnly,
    TooManyRequests,
    /// "I don't know": the node may have lost what it is asked for, so its absence proves nothing.
    UnknownLedgerState,
}

/// With the numbers of the compact and of the protobuf form.
const NUMBERS: [(Code, i32, i32); 11] = [
    (Code::Ok, 0, 0),
    (Code::NoLedger, 1, 402),
    (Code::NoEntry, 2, 403),
    (Code::BadRequest, 100, 404),
    (Code::Io, 101, 501),
    (Code::Unauthorized, 102, 502),
    (Code::BadVersion, 103, 503),
    (Code::Fenced, 104, 504),
    (Code::ReadOnly, 105, 505),
    (Code::TooManyRequests, 106, 506),
    (Code::UnknownLedgerState, 107, 507),
];

impl Code {
    fn row(self) -> &'static (Code, i32, i32) {
        NUMBERS.iter().find(|(code, ..)| *code == self).expect("every code has a row")
    }

    pub fn compact(self) -> i32 {
        self.row().1
    }

    pub fn protobuf(self) -> i32 {
        self.row().2
    }

    /// A number that nobody knows is an error of the peer's side.
    pub fn from_compact(number: i32) -> Self {
        NUMBERS.iter().find(|(_, compact, _)| *compact == number).map_or(Code::Io, |(code, ..)| *code)
    }

    /// See [`Code::from_compact`].
    pub fn from_protobuf(number: i32) -> Self {
        NUMBERS.iter().find(|(.., protobuf)| *protobuf == number).map_or(Code::Io, |(code, ..)| *code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_both_ways() {
        for (code, compact, protobuf) in NUMBERS {
            assert_eq!((code.compact(), code.protobuf()), (compact, protobuf));
            assert_eq!(Code::from_compact(compact), code);
            assert_eq!(Code::from_protobuf(protobuf), code);
        }
        assert_eq!(Code::from_compact(77), Code::Io);
    }
}
