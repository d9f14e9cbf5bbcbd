//! What this project knows of Kubernetes apart from any capability: the names and kinds that it shares with others.

pub mod kinds;
pub mod names;
