//! tenancy-fixer closes the holes that Kubeflow leaves between its tenants and its shared services.
//!
//! # The map
//!
//! | module | what it is |
//! |---|---|
//! | [`app`] | the only module that knows everything: builds the parts and runs them |
//! | [`cli`] | the commands, and the settings that they share |
//! | [`settings`] | flags, environment and settings file, in that order |
//! | [`admission`] | the protocol: the table of endpoints, the review, the patch |
//! | [`mlflow`] | a client of MLflow's REST API: connection, limits, complete listings, errors |
//! | [`mutate`] | what admission makes of a pod, a job, a trial; pure |
//! | [`tenancy`] | the Istio objects of each tenant's namespace, kept as they should be |
//! | [`reviewer`] | admission while we serve: the pure decision with namespaces and images around it |
//! | [`explain`] | what was done to one object and why, or which condition failed |
//! | [`gate`] | whether a job logs to MLflow, from its manifest and image |
//! | [`inspect`] | the same from the command line |
//! | [`serving`] | model versions of MLflow's that are tagged `deploy=true`, served by KServe |
//! | [`offline`] | the same without a cluster, for files |
//! | [`projects`] | an MLflow project as a job-like object of any kind: rendered, created, followed |
//! | [`server`] | connections: accept, TLS, limits, drain, probes; knows no Kubernetes |
//! | [`check`] | one look at a cluster, and what is to be done about it |
//! | [`certs`] | the serving certificate: our own, or files that are followed |
//! | [`cluster`] | names and kinds |
//! | [`durations`] | times in settings |
//! | [`images`] | what a registry says of an image; asked safely, and remembered |
//! | [`listing`] | what listings for people have in common: a search, and pages |
//! | [`looked`] | how commands that look once run, print and end |
//! | [`launch`] | what the launcher in a tenant's pod is told; the binary is `src/bin/launcher` |
//! | [`page`] | what a person sees who looks at a running server, and who may |
//! | [`ports`] | numbers of ports in names and settings |
//! | [`recent`] | the last so many of something |
//! | [`share`] | how something of which there is only so much is shared |
//! | [`telemetry`] | logs, and the last words of a process |
//! | [`trust`] | whom clients of ours trust |
//! | [`yaml`] | YAML as kubectl reads it |
//!
//! A request goes `server` → [`admission::service`] → [`reviewer`] → [`mutate::decide`] or [`gate::Gate::review`] and back. `admission`, `server`, `certs`,
//! `cluster` and `images` know no capability, capabilities do not know one another, and a test holds these arrows
//! (`tests/suite/arrows.rs`).

pub mod admission;
pub mod app;
pub mod certs;
pub mod check;
pub mod cli;
pub mod cluster;
pub mod durations;
pub mod explain;
pub mod gate;
pub mod images;
pub mod inspect;
pub mod launch;
pub mod listing;
pub mod looked;
pub mod mlflow;
pub mod mutate;
pub mod offline;
pub mod page;
pub mod ports;
pub mod projects;
pub mod recent;
pub mod reviewer;
pub mod server;
pub mod serving;
pub mod settings;
pub mod share;
pub mod telemetry;
pub mod tenancy;
pub mod trust;
pub mod yaml;
