//! Every test that needs more than one module. One crate, since each would be linked for itself.
//!
//! To add a test, put it into the module that its sentence belongs to, or add a module here.

// A test crate has no outside that something could be unreachable from.
#![allow(unreachable_pub)]
// A test that cannot go on fails.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, clippy::unwrap_in_result)]

#[path = "suite/api_faults.rs"]
mod api_faults;
#[path = "suite/arrows.rs"]
mod arrows;
#[path = "suite/certificates.rs"]
mod certificates;
#[path = "suite/chart.rs"]
mod chart;
#[path = "suite/check.rs"]
mod check;
#[path = "suite/cluster.rs"]
mod cluster;
#[path = "suite/component.rs"]
mod component;
#[path = "suite/configuration.rs"]
mod configuration;
#[path = "suite/contested_tenancy.rs"]
mod contested_tenancy;
#[path = "suite/create_cert.rs"]
mod create_cert;
#[path = "suite/deploy.rs"]
mod deploy;
#[path = "suite/docs.rs"]
mod docs;
#[path = "suite/entrypoints.rs"]
mod entrypoints;
#[path = "suite/envoy.rs"]
mod envoy;
#[path = "suite/explain.rs"]
mod explain;
#[path = "suite/fixtures.rs"]
mod fixtures;
#[path = "suite/gate.rs"]
mod gate;
#[path = "suite/gate_bills.rs"]
mod gate_bills;
#[path = "suite/gate_command.rs"]
mod gate_command;
#[path = "suite/gate_server.rs"]
mod gate_server;
#[path = "suite/hostile.rs"]
mod hostile;
#[path = "suite/images.rs"]
mod images;
#[path = "suite/installed.rs"]
mod installed;
#[path = "suite/job_end.rs"]
mod job_end;
#[path = "suite/kale.rs"]
mod kale;
#[path = "suite/later_webhook.rs"]
mod later_webhook;
#[path = "suite/launcher.rs"]
mod launcher;
#[path = "suite/launcher_binary.rs"]
mod launcher_binary;
#[path = "suite/launcher_script.rs"]
mod launcher_script;
#[path = "suite/layer.rs"]
mod layer;
#[path = "suite/load.rs"]
mod load;
#[path = "suite/manifests.rs"]
mod manifests;
#[path = "suite/mlflow.rs"]
mod mlflow;
#[path = "suite/monitoring.rs"]
mod monitoring;
#[path = "katib/node.rs"]
mod node;
#[path = "suite/offline.rs"]
mod offline;
#[path = "suite/owner_only.rs"]
mod owner_only;
#[path = "suite/page.rs"]
mod page;
#[path = "suite/page_browser.rs"]
mod page_browser;
#[path = "katib/pod_images.rs"]
mod pod_images;
#[path = "suite/pods.rs"]
mod pods;
#[path = "suite/project_images.rs"]
mod project_images;
#[path = "suite/projects.rs"]
mod projects;
#[path = "suite/properties.rs"]
mod properties;
#[path = "suite/refused_writes.rs"]
mod refused_writes;
#[path = "suite/registry.rs"]
mod registry;
#[path = "katib/rendered.rs"]
mod rendered;
#[path = "suite/serve.rs"]
mod serve;
#[path = "suite/server.rs"]
mod server;
#[path = "suite/server_attack.rs"]
mod server_attack;
#[path = "suite/server_drain.rs"]
mod server_drain;
#[path = "suite/server_limits.rs"]
mod server_limits;
#[path = "suite/server_operations.rs"]
mod server_operations;
#[path = "suite/server_rollout.rs"]
mod server_rollout;
#[path = "suite/server_tls.rs"]
mod server_tls;
#[path = "suite/serving.rs"]
mod serving;
#[path = "suite/serving_deliveries.rs"]
mod serving_deliveries;
#[path = "suite/serving_replays.rs"]
mod serving_replays;
#[path = "suite/stand_in_node.rs"]
mod stand_in_node;
#[path = "suite/support.rs"]
mod support;
#[path = "suite/tenancy.rs"]
mod tenancy;
#[path = "suite/tracking.rs"]
mod tracking;
#[path = "suite/tracking_manifests.rs"]
mod tracking_manifests;
#[path = "suite/tracking_scripts.rs"]
mod tracking_scripts;
#[path = "suite/tracking_workspaces.rs"]
mod tracking_workspaces;
#[path = "suite/trial_end.rs"]
mod trial_end;
#[path = "suite/webhook_orders.rs"]
mod webhook_orders;
#[path = "suite/wire.rs"]
mod wire;
