//! Bytes between sockets and whoever works on them, bounded.
//!
//! A [`Budget`] bounds what many holders keep together. An [`Outbox`] is what waits to be written to one peer, and writes
//! it from whichever thread has just queued. An [`UnfinishedFrame`] is the room for a large frame that is still coming, and a
//! [`Reservation`] that for what is kept.

mod budget;
mod outbox;
mod reservation;
mod socket;
mod unfinished_frame;

pub use budget::Budget;
pub use outbox::{Frames, HARD_LIMIT, Outbox};
pub use reservation::Reservation;
pub use socket::Socket;
pub use unfinished_frame::UnfinishedFrame;
