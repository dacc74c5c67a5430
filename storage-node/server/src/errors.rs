//! The log's errors as codes of the protocol.

use geminga_flow::HARD_LIMIT;
use geminga_log::{AppendError, FenceError, ReadError};
use geminga_wire_bookkeeper::{Code, FrameError};

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("the peer does not read: more than {} MiB wait for it", HARD_LIMIT >> 20)]
    NotReading,
    #[error("something was sent between the begin of TLS and its handshake")]
    EarlyTls,
    #[error("a frame of {0} bytes does not come to its end while others wait")]
    SlowFrame(u64),
}

pub fn of_append(error: &AppendError) -> Code {
    match error {
        AppendError::Fenced | AppendError::GivenUp => Code::Fenced,
        AppendError::WrongKey => Code::Unauthorized,
        AppendError::Unknown => Code::UnknownLedgerState,
        AppendError::DiskFull | AppendError::ReadOnly(_) => Code::ReadOnly,
        AppendError::Overloaded => Code::TooManyRequests,
        AppendError::TooLarge { .. } => Code::BadRequest,
        AppendError::Io(_) | AppendError::Closed => Code::Io,
    }
}

pub fn of_read(error: &ReadError) -> Code {
    match error {
        ReadError::NoSuchLedger { .. } => Code::NoLedger,
        ReadError::NoSuchEntry { .. } => Code::NoEntry,
        ReadError::Corrupt { .. } => Code::UnknownLedgerState,
        ReadError::Io(_) => Code::Io,
    }
}

/// A fence that is not durable did not happen.
pub fn of_fence(error: &FenceError) -> Code {
    match error {
        FenceError::Unknown(error) => of_read(error),
        FenceError::NotDurable(AppendError::WrongKey) => Code::Unauthorized,
        FenceError::NotDurable(_) => Code::Io,
    }
}
