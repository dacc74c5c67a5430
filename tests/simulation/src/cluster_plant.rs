//! Bugs that are planted to see that the simulation of a cluster finds them.

use geminga_ensemble::Bug;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    None,
    /// In the state machines of ledgers.
    Client(Bug),
    /// In subscriptions and their dispatchers.
    Topic(geminga_topic::Bug),
    /// In the storage engine.
    Engine(geminga_log::Bug),
    /// A node answers before it has synced.
    AckBeforeSync,
    /// A node takes a failed sync for a good one.
    IgnoreSyncError,
    /// A node says of what it finds damaged, or misses behind damage, that it does not exist.
    DamagedIsAbsent,
    /// A node takes a data directory that is missing or was given up for an empty one.
    LostDirectoryIsEmpty,
    /// Whoever asks a node does not look whether it is the one that is meant: an empty one that came to its address is believed.
    EmptyNodeIsTrusted,
    /// A node that gave a directory up counts as settled while writers may still count on what is gone.
    OpenIsSettled,
    /// Readers do not check digests.
    NoDigestCheck,
    /// A broker whose predecessor's lease has expired does not fence: nobody writes any more, it believes.
    TrustLease,
    /// Fencing goes by the first request only: reads of a recovery do not fence.
    ReadsDoNotFence,
    /// A node that has deleted a ledger takes entries for it as for a new one.
    DeletedIsForgotten,
    /// A cursor reset stores its target as the mark-delete position.
    SeekStoresReadPosition,
    /// An acknowledgement is confirmed when it is queued.
    AckBeforeDurable,
    /// Trimming goes by mark-delete positions that are not durable.
    TrimByMemory,
    /// Deduplication does not hear of what was stored after its snapshot.
    NoReplay,
    /// A message whose first sending is not durable yet gets a receipt.
    UnknownIsDuplicate,
    /// After a message has failed, those sent behind it on the same connection are taken.
    LaterMessagesPass,
    /// An owner writes metadata without looking whether its bundle is still its own.
    Unguarded,
    /// A ledger is created without looking whether its bundle is still its owner's.
    UnguardedCreation,
    /// A new ledger's id is greater than those in the topic's list, and not than those that were trimmed.
    LedgerIdsGoBack,
    /// The parts of a bundle take its place before they have its acknowledgements.
    PartsBeforeLogs,
    /// A split whose outcome was not known, and that comes late, drops what was acknowledged since (was so).
    LateSplits,
    /// A record of a cursor log whose outcome was not known, and that comes once the log was opened again, takes back what was found (was so).
    LateLogRecords,
    /// A bundle that nobody owns is taken without looking whether it was split meanwhile (was so).
    SplitBundlesAreTaken,
    /// An owner does not look again, once it has read a bundle's log, whether the bundle is still its own (was so).
    OpensWhatItLost,
    /// A session that had run out goes on without reading who took what.
    LapsedSessionsGoOn,
    /// An owner whose session has run out takes consumers as if it knew of all acknowledgements.
    LapsedOwnersAdmit,
    /// An owner that does not know what became of a topic's deletion serves on (was so).
    UnsureDeletionsServeOn,
    /// An owner that was deposed finishes its split.
    DeposedSplits,
    /// A broker goes on with ids of a block of which storage has taken one for a deleted ledger's.
    RefusedIdsAreUsed,
    /// A ledger that its owner's record says to be closed, and whose own metadata do not say so yet, is not read.
    OpenLedgersAreNotRead,
}
