//! Serving: a model version with the tag `deploy=true` in MLflow is served by an InferenceService of KServe.
//!
//! One reconciler with two triggers. A delivery of MLflow's (`delivery` says whether it is one, `listener` answers it) and the poll
//! only say which version is to be looked at; then the registry is read again. What there should be is decided by pure parts:
//! `target` (in which namespace), `storage` (read from where), `naming`, `inference_service` and `template` (the object), `status` (what
//! the user reads), `passes` (what a listing means, and what it must not). `watches` fill the `state` on every replica; `controller`
//! works on the one that holds the Lease, with `look` at one version and `act` on the cluster; `resolve` asks MLflow where files are,
//! `registration` keeps MLflow's webhook, `relay` hands deliveries to the replica that works.

mod act;
mod controller;
mod delivery;
mod inference_service;
mod listener;
mod look;
mod metrics;
mod naming;
mod older;
mod overview;
mod passes;
mod registration;
mod relay;
mod resolve;
mod secret;
mod settings;
mod state;
mod status;
mod storage;
mod target;
mod template;
mod watches;

use std::fmt;
use std::sync::Arc;

pub use controller::{Context, run};
pub use delivery::{
    DELIVERY_ID, Data, Delivery, LARGEST_BODY, Meaning, Received, Rejected, SIGNATURE, TIMESTAMP, verify,
};
pub use listener::Listener;
pub use metrics::Metrics;
pub use older::{Older, older};
pub use overview::{Overview, Served, Wanted};
pub use settings::{Mode, Plan, Settings};
pub use state::State;
pub use target::Way;

/// A model version of MLflow's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Where MLflow has workspaces and the settings name them.
    pub workspace: Option<Arc<str>>,
    /// Of the registered model.
    pub name: Arc<str>,
    /// A number, as text.
    pub version: Arc<str>,
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(workspace) = &self.workspace {
            write!(out, "{workspace}/")?;
        }
        write!(out, "{} version {}", self.name, self.version)
    }
}

/// Why a version is not served. Its author reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One word, for logs and metrics.
    pub reason: &'static str,
    /// What is wrong, and what mends it.
    pub message: String,
}

impl Refusal {
    /// Of a reason and a message.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.reason, self.message)
    }
}
