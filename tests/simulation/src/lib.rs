//! Deterministic simulations: a seed decides everything, a failure names its seed, and the same seed gives the same trace.

pub mod auto_recovery_simulation;
pub mod auto_recovery_truth;
pub mod dispatch_oracle;
pub mod dispatch_simulation;
pub mod dispatch_topic;
pub mod ensemble_node;
pub mod ensemble_simulation;
pub mod ledger_engine;
pub mod ledger_oracle;
pub mod ledger_owner;
pub mod ledger_producers;
pub mod ledger_simulation;
pub mod ledger_store;
