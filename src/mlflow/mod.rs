//! A small client of MLflow's REST API: whom to ask and as whom (`settings`), one request with its limits and retries
//! (`client`), listings that are complete or an error (`pages`), what went wrong (`error`), the model registry (`registry`), and runs (`runs`).
//!
//! It follows no redirects, so that nobody gets our credentials who was not named by the settings.

mod client;
mod error;
mod pages;
mod registry;
mod runs;
mod settings;

pub use client::{Client, Repeat};
pub use error::Error;
pub use pages::Page;
pub use registry::{Event, ModelVersion, Run, Tag, TestResult, Webhook, WebhookRequest};
pub use runs::{RunStatus, TrackedRun};
pub use settings::{Authentication, Settings, tracking_uri};
