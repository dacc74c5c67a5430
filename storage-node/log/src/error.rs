use std::io;

/// Why appended entries are not durable. The entries of a failed call may still turn up after a crash, never in part
/// wrong; a fenced ledger hides them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    #[error("the disk is full but for the reserve")]
    DiskFull,
    #[error("the ledger is fenced or deleted")]
    Fenced,
    #[error("the master key is not the ledger's")]
    WrongKey,
    #[error("damage to the log leaves open whether the ledger is fenced")]
    Unknown,
    #[error("an earlier append to the ledger failed: it takes no more")]
    GivenUp,
    #[error("too many bytes wait to be written")]
    Overloaded,
    #[error("{bytes} bytes in one call are more than a log segment can hold")]
    TooLarge { bytes: u64 },
    #[error("the log is read-only: {0}")]
    ReadOnly(String),
    #[error("writing the log failed: {0}")]
    Io(String),
    #[error("the log is closed")]
    Closed,
}

/// Why an entry could not be read. Only the `NoSuch…` variants say that something is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("ledger {ledger} does not exist")]
    NoSuchLedger { ledger: u64 },
    #[error("entry {ledger}:{entry} does not exist")]
    NoSuchEntry { ledger: u64, entry: u64 },
    /// The entry may have been acknowledged and cannot be read: the answer is "unknown", not "absent".
    #[error("ledger {ledger}, entry {entry:?}: {detail}")]
    Corrupt { ledger: u64, entry: Option<u64>, detail: String },
    #[error("reading the log failed: {0}")]
    Io(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FenceError {
    /// The ledger is fenced, but damage to the log leaves open what its last entry is.
    #[error(transparent)]
    Unknown(#[from] ReadError),
    #[error(transparent)]
    NotDurable(#[from] AppendError),
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("another process uses the log in {0}")]
    Locked(String),
    #[error("{action} in {folder}")]
    Io { action: &'static str, folder: String, source: io::Error },
    #[error("segment file {file} has format version {version}; this program reads up to {known}")]
    NewerFormat { file: String, version: u16, known: u16 },
}
