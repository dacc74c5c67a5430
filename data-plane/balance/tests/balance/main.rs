//! The balancer before a simulated cluster. Seeded; `BALANCE_SEED=n` runs the large ones with another seed, and
//! `cargo test -p geminga-balance --test balance -- --nocapture` prints their figures.

mod cluster;
mod large;
mod load;
mod measures;
mod oracle;
mod properties;
mod small;
mod traffic;
