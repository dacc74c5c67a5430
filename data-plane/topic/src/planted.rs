//! Mistakes for the simulations to find. A release has none of them: they are there with debug assertions only.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The permits for an entry that turns out to be acknowledged already are not given back.
    AckedTakesPermits,
    /// What a consumer gives back gives it permits, which it grants again itself.
    RedeliveryGivesPermits,
    /// A key's entries go to the consumer that has the key now, while another one holds earlier ones.
    KeysDoNotDrain,
}

#[cfg(debug_assertions)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in the subscriptions of this thread.
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
