//! geminga-metadata-sql
