//! Admission as a protocol: which endpoints there are, how a review is read and answered, how a change is said.
//!
//! Nothing here decides what is changed and nothing here talks to a cluster: the decision is handed in as a function.

pub mod endpoints;
pub mod json;
pub mod manifests;
mod metrics;
pub mod patch;
pub mod review;
mod reviewed;
pub mod service;

pub use endpoints::{Configuration, Endpoint};
pub use review::{About, Outcome, Request, Wanted};
pub use reviewed::Reviewed;
pub use service::Reviews;
