//! MLflow projects that run as any job-like object of Kubernetes.
//!
//! Pure: `mlproject`, `parameters`, `shell` (what a project says and what a user gives), `template`, `object` (what is created),
//! `status` (what it says of itself). The edges: `source` (folders and Git), `backend` (files), `image` (building), `cluster`,
//! `watcher` and `logs` (Kubernetes), `tracking` (MLflow). `follow` waits for all of them; `command` is the whole from the
//! outside in, `settings` its flags.

mod backend;
mod cluster;
mod command;
mod follow;
mod image;
mod logs;
mod mlproject;
mod object;
mod parameters;
mod settings;
mod shell;
mod source;
mod status;
mod template;
mod tracking;
mod watcher;

pub use command::run;
pub use settings::Command;
