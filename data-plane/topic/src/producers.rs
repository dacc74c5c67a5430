//! The producers of a topic.
