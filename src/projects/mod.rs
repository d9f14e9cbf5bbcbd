//! MLflow projects that run as any job-like object of Kubernetes.
//!
//! Pure: `mlproject`, `parameters`, `shell` (what a project says and what a user gives), `template`, `object` (what is created),
//! `status` (what it says of itself).

mod mlproject;
mod object;
mod parameters;
mod shell;
mod status;
mod template;
