//! What this project knows of Kubernetes apart from any capability: names and kinds that it shares with others, and the
//! Lease by which replicas agree on who writes, and the pod that we run in.

pub mod identity;
pub mod kinds;
pub mod lease;
pub mod names;
pub mod own_pod;
pub mod refusal;
pub mod steps;
