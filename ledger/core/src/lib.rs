//! geminga-ledger
