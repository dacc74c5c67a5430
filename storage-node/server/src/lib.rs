//! A storage node: the log engine behind BookKeeper's wire protocol.
//!
//! [`StorageNode`] is what all connections share. [`serve`] accepts them; connection.rs reads the requests of one in order,
//! adding.rs hands adds to the log in groups, directories.rs
//! knows which of several logs has a ledger, reading.rs works on reads beside them, confirmed.rs knows how far each ledger
//! is confirmed and who waits for more. With metadata, identity.rs and membership.rs make it a member of a cluster, and garbage.rs
//! deletes what no ledger's metadata name; witness.rs notices metadata that were restored from a dump.
//!
//! scrub.rs reads everything now and then, damage.rs remembers which entries cannot be read, and repair.rs copies those from
//! other nodes; healing.rs settles what holes in the log may hide. limbo.rs says what the node answers of ledgers that it may have lost, and
//! until when.
//!
//! identity.rs, witness.rs and noted.rs keep small files, as state_file.rs writes them.
//!
//! What an answer means: an add is answered when it is synced, never before, also if the client would have allowed it. A
//! fence is answered when it is synced. "No such entry" is said only of what certainly is not here; where damage to the
//! log leaves that open, the answer is [`Code::UnknownLedgerState`](geminga_wire_bookkeeper::Code).

mod adding;
mod assembly;
mod confirmed;
mod connection;
mod damage;
mod directories;
mod errors;
mod figures;
mod garbage;
mod healing;
mod identity;
mod limbo;
mod listing;
mod membership;
mod node;
mod noted;
mod read_cache;
mod reading;
mod repair;
mod scrub;
mod serving;
mod state_file;
mod tls;
mod witness;

pub use assembly::{Assembly, Found, assemble};
pub use directories::{Directories, Directory, LedgerTwice};
pub use figures::{Done, ScrubProgress, show_log};
pub use garbage::collect_garbage;
pub use geminga_wire_bookkeeper::DEFAULT_MAX_FRAME_BYTES;
pub use healing::{Asking, Duties, Duty, Ledgers, heal};
pub use identity::{Identity, IdentityError};
pub use listing::LedgerSummary;
pub use membership::{Registration, RegistrationError};
pub use node::{NodeOptions, StorageNode};
pub use repair::{Fetched, Fetching, Replicas, repair};
pub use scrub::{ScrubOptions, Scrubber};
pub use serving::serve;
pub use state_file::StateFileError;
pub use tls::TlsOptions;
pub use witness::{MetadataWitness, Standing, WitnessError, witnessed_ledger_ids_end};
