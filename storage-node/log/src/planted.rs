//! Mistakes that real systems made, for the simulation to find. A release has none of them: they are there with debug assertions only.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A segment whose header is not whole counts as one in which nothing is live, and is reclaimed (BookKeeper 4607).
    TornHeaderIsGarbage,
    /// A file that has got another name is relied on before that name is durable.
    RenameWithoutSync,
    /// Checksums of records do not cover where they belong.
    ChecksumWithoutPlace,
    /// The index of a segment is taken without its checksums.
    IndexUnchecked,
    /// What the log keeps of its state, which segments it has and which ledgers were deleted, is taken without its checksums.
    StateUnchecked,
    /// A segment whose file is shorter than it was ends where the file does.
    ShortFileIsWhole,
    /// An add does not see a fence that is on its way, as through another handle of the ledger (BookKeeper 4701).
    AddPassesFence,
    /// The last that is written of explicit last add confirmed counts, and not the greatest.
    LacGoesBack,
}

#[cfg(debug_assertions)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in the engines that this thread drives.
///
/// # Panics
/// When a bug is to be planted in a release.
pub fn plant(bug: Option<Bug>) {
    #[cfg(debug_assertions)]
    PLANTED.set(bug);
    #[cfg(not(debug_assertions))]
    assert!(bug.is_none(), "a release has no bugs to plant: {bug:?}");
}

pub(crate) fn is_planted(_bug: Bug) -> bool {
    #[cfg(debug_assertions)]
    return PLANTED.get() == Some(_bug);
    #[cfg(not(debug_assertions))]
    false
}
