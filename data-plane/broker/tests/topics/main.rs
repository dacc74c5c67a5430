//! Topics of a broker on metadata and ledgers in memory, as connections see them.

mod backlog;
mod completions;
mod deduplication;
mod deleting;
mod deposed;
mod events;
mod fixture;
mod idle;
mod inactive;
mod joining;
mod liveness;
mod non_persistent;
mod overload;
mod ownership;
mod policies;
mod reloading;
mod replaying;
mod stats;
mod unacked;
