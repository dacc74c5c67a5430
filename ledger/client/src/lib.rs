//! geminga-ledger-client
