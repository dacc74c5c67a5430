//! The protocol as a whole: what is encoded decodes to the same, what is decoded does no harm, and bytes that are written
//! down stay as they are.

mod generated;
mod golden;
mod nonsense;
mod round_trips;
