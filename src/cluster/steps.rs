//! What admission does to an object, step by step: the table of the words in the annotation that it leaves there.
//!
//! The annotation is a note for people. Whoever may write the object may write the note, so that nothing is ever decided by it.

use std::fmt;

/// One change that admission makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The tenant label, with `true`.
    Label,
    /// The tenant label, with `withheld`.
    Withheld,
    /// An opt-out, handed down to what the object runs.
    OptOut,
    /// A token for Kubeflow Pipelines.
    Identity,
    /// The variables of MLflow's clients.
    Tracking,
    /// The service account.
    ServiceAccount,
    /// What Istio's injection and its order go by.
    Sidecar,
    /// What Katib's metrics collector waits for.
    Collector,
    /// Commands that start after the sidecar and end it.
    Launcher,
    /// Patience for Kale's wait.
    Kale,
}

impl Step {
    /// All of them, in the order of the annotation.
    pub const ALL: [Self; 10] = [
        Self::Label,
        Self::Withheld,
        Self::OptOut,
        Self::Identity,
        Self::Tracking,
        Self::ServiceAccount,
        Self::Sidecar,
        Self::Collector,
        Self::Launcher,
        Self::Kale,
    ];

    /// Its word in the annotation.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Label => "label",
            Self::Withheld => "withheld",
            Self::OptOut => "opt-out",
            Self::Identity => "identity",
            Self::Tracking => "tracking",
            Self::ServiceAccount => "service-account",
            Self::Sidecar => "sidecar",
            Self::Collector => "collector",
            Self::Launcher => "launcher",
            Self::Kale => "kale",
        }
    }

    /// What was done and why, as a clause.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Label => "label kubeflow-extension=true: the Istio objects that give its owner's identity select it",
            Self::Withheld => {
                "label kubeflow-extension=withheld (owner-only): it does not act as the namespace's owner"
            }
            Self::OptOut => "label kubeflow-extension=false, handed down to the pods: they are left alone as it is",
            Self::Identity => "a token for Kubeflow Pipelines, which its SDK finds by itself",
            Self::Tracking => "variables by which MLflow's clients log to the cluster's MLflow",
            Self::ServiceAccount => "a service account that may do something in a tenant's namespace",
            Self::Sidecar => "labels and annotations by which Istio's sidecar is injected, starts first and ends last",
            Self::Collector => "-w false for Katib's metrics collector, which would wait for the sidecar for ever",
            Self::Launcher => "commands that start when the sidecar is ready, and end it when all have finished",
            Self::Kale => "patience for Kale's wait for a pipeline",
        }
    }

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// Some of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps(u16);

impl Steps {
    /// Those that an annotation names; words that are none of ours are passed over.
    #[must_use]
    pub fn read(annotation: &str) -> Self {
        let (_, words) = annotation.split_once(": ").unwrap_or_default();
        let is_named = |step: &Step| words.split(',').any(|word| word == step.name());
        Step::ALL.into_iter().filter(is_named).collect()
    }

    /// With one more.
    pub fn insert(&mut self, step: Step) {
        self.0 |= step.bit();
    }

    /// With those of another, too.
    #[must_use]
    pub const fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// One after the other, in the order of the table.
    pub fn iter(self) -> impl Iterator<Item = Step> {
        Step::ALL.into_iter().filter(move |step| self.0 & step.bit() != 0)
    }
}

impl FromIterator<Step> for Steps {
    fn from_iter<I: IntoIterator<Item = Step>>(steps: I) -> Self {
        let mut all = Self::default();
        for step in steps {
            all.insert(step);
        }
        all
    }
}

/// As the annotation has it: our version, and the words. `0.1.0: label,service-account`
impl fmt::Display for Steps {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(concat!(env!("CARGO_PKG_VERSION"), ": "))?;
        for (index, step) in self.iter().enumerate() {
            out.write_str(if index == 0 { "" } else { "," })?;
            out.write_str(step.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let all: Steps = Step::ALL.into_iter().collect();
        assert_eq!(Steps::read(&all.to_string()), all);
        assert_eq!(all.iter().count(), Step::ALL.len(), "each has a bit of its own");
        let some: Steps = [Step::Launcher, Step::Label].into_iter().collect();
        assert_eq!(some.to_string(), concat!(env!("CARGO_PKG_VERSION"), ": label,launcher"));
        assert_eq!(Steps::read("9.9.9: launcher,unheard-of,label"), some);
    }

    #[test]
    fn what_is_no_note_of_ours_says_nothing() {
        for text in ["", "label", "0.1.0", "0.1.0: ", "0.1.0: labels", "0.1.0:label", "cc30e2"] {
            assert!(Steps::read(text).is_empty(), "{text:?}");
        }
    }
}
