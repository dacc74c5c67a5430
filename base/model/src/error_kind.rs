use std::fmt;

/// What a caller can do about an error. Every crate's error type maps to one of these, and each protocol maps
/// these to its own codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    /// Nothing is wrong for long: the same request may succeed when sent again.
    Retry,
    /// Somebody newer owns the resource; this owner must stop.
    Fenced,
    /// The resource is served elsewhere: look it up again.
    Moved,
    NotFound,
    AlreadyExists,
    /// The request can never succeed as it is.
    Invalid,
    /// Not authenticated or not authorized.
    Denied,
    /// A bound (memory, rate, quota) is reached; it is released by others' progress.
    Overloaded,
    /// A dependency cannot be reached or cannot take writes.
    Unavailable,
    /// Stored data fails its checksum or cannot be decoded.
    Corrupt,
    /// An invariant of ours is broken; a person should look.
    Bug,
}

impl ErrorKind {
    pub const ALL: [ErrorKind; 11] = [
        ErrorKind::Retry,
        ErrorKind::Fenced,
        ErrorKind::Moved,
        ErrorKind::NotFound,
        ErrorKind::AlreadyExists,
        ErrorKind::Invalid,
        ErrorKind::Denied,
        ErrorKind::Overloaded,
        ErrorKind::Unavailable,
        ErrorKind::Corrupt,
        ErrorKind::Bug,
    ];

    /// Stable lower-case name, fit for a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            ErrorKind::Retry => "retry",
            ErrorKind::Fenced => "fenced",
            ErrorKind::Moved => "moved",
            ErrorKind::NotFound => "not_found",
            ErrorKind::AlreadyExists => "already_exists",
            ErrorKind::Invalid => "invalid",
            ErrorKind::Denied => "denied",
            ErrorKind::Overloaded => "overloaded",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Bug => "bug",
        }
    }

    /// Whether the same request, unchanged, may succeed later.
    pub const fn is_transient(self) -> bool {
        matches!(self, ErrorKind::Retry | ErrorKind::Moved | ErrorKind::Overloaded | ErrorKind::Unavailable)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
