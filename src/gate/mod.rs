//! The gate: does a job log to MLflow? Answered from its manifest and its image, without running anything.
//!
//! `subject` says whose containers are looked at, `image` what is known of an image, `program` what runs in the end (`shell` reads
//! scripts on the way there, `commands` has the names), `code` what that does with MLflow (`python` reads sources), `judge` what follows from it, `review` what the
//! API server is told. All of this is pure. `gather` makes an [`Image`] of layers, `keeper` does it while the API server waits (`secrets` and
//! `runtime` read, `tell` writes).

mod code;
mod commands;
mod files;
mod gather;
mod image;
mod judge;
mod keeper;
mod metrics;
mod program;
mod python;
mod record;
mod review;
mod runtime;
mod secrets;
mod settings;
mod shell;
mod subject;
mod syntax;
mod tell;

pub use files::File;
pub use gather::{Judgements, Question};
pub use image::{Image, LONGEST_TEXT, Package, Wanted, package_at, package_folder, wanted};
pub use judge::{Answer, Containers, Finding, Judged, Requirement, Rule, container, verdict};
pub use keeper::{Case, Gate};
pub use metrics::Metrics;
pub use record::Record;
pub use review::{Subject, outcome, subject};
pub use runtime::RuntimeRef;
pub use settings::{Mode, RuleSettings, Settings, Unknown};
pub use subject::{Container, Value};
