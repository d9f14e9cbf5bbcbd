//! Every test that needs more than one module. One crate, since each would be linked for itself.
//!
//! To add a test, put it into the module that its sentence belongs to, or add a module here.

#[path = "suite/fixtures.rs"]
mod fixtures;
#[path = "suite/support.rs"]
mod support;
#[path = "suite/wire.rs"]
mod wire;
