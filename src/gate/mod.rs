//! The gate: does a job log to MLflow? Answered from its manifest and its image, without running anything.
//!
//! `subject` says whose containers are looked at, `image` what is known of an image, `program` what runs in the end (`shell` reads
//! scripts on the way there), `code` what that does with MLflow (`python` reads sources), `judge` what follows from it.
//! All of this is pure.

mod code;
mod files;
mod image;
mod judge;
mod program;
mod python;
mod shell;
mod subject;
mod syntax;

pub use files::File;
pub use image::{Image, LONGEST_TEXT, Package, Wanted, package_at, package_folder, wanted};
pub use judge::{Answer, Containers, Finding, Judged, Requirement, Rule, container, verdict};
pub use subject::{Container, Value, containers};
