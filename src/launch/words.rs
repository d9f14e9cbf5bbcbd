//! Values that have few words: what containers tell one another, what a limit means, which end is an end.

use std::str::FromStr;

/// What launchers tell one another: empty files, so that each is there or not and never half written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The container's command is running.
    Started,
    /// The container's command has ended, and the kubelet will not start it again.
    Finished,
}

impl State {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Finished => "finished",
        }
    }
}

/// What a launcher does when a wait has taken too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtLimit {
    /// It starts the command: a proxy that is late is often not needed at all.
    #[default]
    Start,
    /// It ends with [`super::EXIT_LIMIT`].
    Fail,
}

impl AtLimit {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Fail => "fail",
        }
    }
}

impl FromStr for AtLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Start, Self::Fail];
        all.into_iter().find(|action| action.name() == text).ok_or_else(|| "expected start or fail".to_owned())
    }
}

/// When the kubelet starts a container again, as in `spec.restartPolicy` of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Not at all.
    #[default]
    Never,
    /// When it has failed.
    OnFailure,
    /// Whenever it has ended.
    Always,
}

impl RestartPolicy {
    /// Whether a container that has ended with this code stays ended.
    #[must_use]
    pub fn is_final(self, code: u8) -> bool {
        match self {
            Self::Never => true,
            Self::OnFailure => code == 0,
            Self::Always => false,
        }
    }

    /// As Kubernetes spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Never => "Never",
            Self::OnFailure => "OnFailure",
            Self::Always => "Always",
        }
    }
}

impl FromStr for RestartPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Never, Self::OnFailure, Self::Always];
        let found = all.into_iter().find(|policy| policy.name() == text);
        found.ok_or_else(|| "expected Never, OnFailure or Always".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_end_is_one_after_which_the_kubelet_does_nothing() {
        let finals = |policy: RestartPolicy| [0, 1, 143].map(|code| policy.is_final(code));
        assert_eq!(finals(RestartPolicy::Never), [true, true, true]);
        assert_eq!(finals(RestartPolicy::OnFailure), [true, false, false]);
        assert_eq!(finals(RestartPolicy::Always), [false, false, false]);
    }
}
