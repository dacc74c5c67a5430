//! Mistakes that real systems made, for the simulation to find. A release has none of them: they are there with debug assertions only.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Entries are confirmed while the ensemble changes, though the metadata may never say so (BookKeeper 1591).
    ConfirmBeforeMetadata,
    /// A recovery begins with entry 0 and edits finished fragments.
    RecoverFromTheStart,
    /// What the replaced node had is counted for the new one (BookKeeper 4651).
    KeepAcksOfReplaced,
    /// A recovery writes down where it puts entries before all of them are there.
    EarlyFragments,
    /// One node's "no such entry" is taken for the ledger's end.
    OneDenialIsEnough,
    /// A repair names a node in the metadata before it has everything.
    NameBeforeCopied,
    /// A repair copies an entry to one place of its write set only.
    CopyHalfTheStripes,
    /// A repair believes a node that comes in that it has what it says, without reading it.
    TrustLists,
    /// A repair that finds other metadata than it looked at writes its own over them.
    OverwriteConflicts,
    /// A repair replaces nodes of the fragment that a writer is writing to.
    RepairWritersEnd,
}

#[cfg(debug_assertions)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in the state machines of this thread.
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
