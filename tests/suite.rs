//! Every test that needs more than one module. One crate, since each would be linked for itself.
//!
//! To add a test, put it into the module that its sentence belongs to, or add a module here.

// A test crate has no outside that something could be unreachable from.
#![allow(unreachable_pub)]
// A test that cannot go on fails.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, clippy::unwrap_in_result)]

#[path = "suite/arrows.rs"]
mod arrows;
#[path = "suite/cluster.rs"]
mod cluster;
#[path = "suite/create_cert.rs"]
mod create_cert;
#[path = "suite/deploy.rs"]
mod deploy;
#[path = "suite/envoy.rs"]
mod envoy;
#[path = "suite/fixtures.rs"]
mod fixtures;
#[path = "suite/gate.rs"]
mod gate;
#[path = "suite/gate_command.rs"]
mod gate_command;
#[path = "suite/gate_server.rs"]
mod gate_server;
#[path = "suite/images.rs"]
mod images;
#[path = "suite/later_webhook.rs"]
mod later_webhook;
#[path = "suite/launcher.rs"]
mod launcher;
#[path = "suite/layer.rs"]
mod layer;
#[path = "suite/manifests.rs"]
mod manifests;
#[path = "suite/offline.rs"]
mod offline;
#[path = "suite/properties.rs"]
mod properties;
#[path = "suite/registry.rs"]
mod registry;
#[path = "suite/serve.rs"]
mod serve;
#[path = "suite/server.rs"]
mod server;
#[path = "suite/support.rs"]
mod support;
#[path = "suite/tenancy.rs"]
mod tenancy;
#[path = "suite/trial_end.rs"]
mod trial_end;
#[path = "suite/wire.rs"]
mod wire;
