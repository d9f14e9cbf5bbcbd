//! What the launchers of a pod tell one another, through a folder that they share.
//!
//! Each writes that it has finished before it looks at the others. So of two that finish at the same moment at least one sees
//! both, and nobody sees a finish that is not there.

use std::fs::{self, File};
use std::io::ErrorKind;

use tenancy_fixer::launch::{Contract, State};

use crate::say;

/// The markers of a pod, as one of its containers sees them.
pub(crate) struct Markers<'c> {
    contract: &'c Contract,
}

impl<'c> Markers<'c> {
    pub(crate) fn of(contract: &'c Contract) -> Self {
        Self { contract }
    }

    /// Takes back what stands there of this container.
    pub(crate) fn clear(&self) {
        self.remove(State::Started);
        self.remove(State::Finished);
    }

    /// The command of this container is running.
    pub(crate) fn started(&self) {
        self.write(State::Started);
    }

    /// The command of this container has ended, and may be started again.
    pub(crate) fn stopped(&self) {
        self.remove(State::Started);
    }

    /// The command of this container has ended for good. In this order, so that it is never neither running nor finished.
    pub(crate) fn finished(&self) {
        self.write(State::Finished);
        self.stopped();
    }

    /// Whether another container's command runs.
    pub(crate) fn has_started(&self, other: &str) -> bool {
        self.is_there(other, State::Started)
    }

    /// Whether another container's command has run and will not do so again.
    pub(crate) fn has_finished(&self, other: &str) -> bool {
        self.is_there(other, State::Finished)
    }

    /// The other containers that still need the proxy.
    pub(crate) fn unfinished(&self) -> Vec<&'c str> {
        self.contract.others().filter(|other| !self.is_there(other, State::Finished)).collect()
    }

    fn is_there(&self, container: &str, state: State) -> bool {
        self.contract.marker(container, state).is_some_and(|file| file.exists())
    }

    fn write(&self, state: State) {
        let Some(file) = self.contract.container.as_ref().and_then(|own| self.contract.marker(own, state)) else {
            return;
        };
        // An empty file: it is there or it is not.
        if let Err(error) = File::create(&file) {
            say(&format!("the other containers are not told (writing {}: {error})", file.display()));
        }
    }

    fn remove(&self, state: State) {
        let Some(file) = self.contract.container.as_ref().and_then(|own| self.contract.marker(own, state)) else {
            return;
        };
        match fs::remove_file(&file) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => say(&format!("the other containers are not told (removing {}: {error})", file.display())),
        }
    }
}
