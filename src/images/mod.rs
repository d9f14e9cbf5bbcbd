//! Facts about an image, asked of its registry: how it is to be run, and what is in it. Nothing is run, and nothing is written.
//!
//! `reference`, `digest`, `secrets`, `challenge`, `manifest`, `bill` read what people and registries write, `address` says where we may
//! go; these are pure. `connector` and `registry` are the edge, `attached` finds what others have said of an image, `layers` reads its
//! files, `turns` and `readers` share that out among tenants, `lookup` remembers.
//!
//! Names of images are tenants' choice, and so are the registries behind them: an answer is believed as far as its digest,
//! limited in size, time and redirects, and never led from to where the settings do not let us go.

mod address;
mod attached;
mod bill;
mod challenge;
mod connector;
mod digest;
mod layers;
mod lookup;
mod manifest;
mod metrics;
pub mod pull_secrets;
mod readers;
mod reference;
mod registry;
mod secrets;
mod settings;
mod turns;
mod why;

pub use address::{Network, RegistryPattern};
pub use bill::Listed;
pub use digest::Digest;
pub use layers::{Contents, File, Files, Limits, Local, Progress, Want, Watcher, absolute, local, unpacked};
pub use lookup::{Fact, Images, Lookup};
pub use manifest::{ImageConfig, Platform};
pub use metrics::Metrics;
pub use reference::{Reference, Target};
pub use secrets::{Credentials, SecretForm};
pub use settings::Settings;
pub use why::{Reason, WhyUnknown};
