//! geminga-admin-api
