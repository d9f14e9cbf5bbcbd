//! Tenancy: every profile's namespace has the Istio objects by which its pods are known to Kubeflow Pipelines.
//!
//! `profile` judges whose a namespace is, `desired` says what it should have, `plan` compares that with what is there;
//! these are pure. `watches` fill the `state` on every replica, `controller` carries the plans out on the one that holds the Lease (`act`
//! writes, `tell` says so, `moving` keeps the header while pods need it, `progress` is what it remembers). `survey` is one look for `tenancy-fixer check`, `overview`
//! one for a person who looks at a running server.

mod act;
mod controller;
mod desired;
mod metrics;
mod moving;
mod narrow;
mod overview;
mod plan;
mod profile;
mod progress;
mod settings;
mod state;
mod survey;
mod tell;
mod watches;

pub use controller::{Context, run};
pub use desired::{Child, ChildKind, Offered, desired};
pub use metrics::Metrics;
pub use overview::{Listed, Overview, Wanted};
pub use plan::{Action, Observed, plan};
pub use profile::{Defaults, Grant, Mesh, NamespaceFacts, ProfileFacts, Verdict, verdict};
pub use settings::Settings;
pub use state::{Known, State};
pub use survey::{Tenant, survey, tenant};
pub use watches::PAGE;
