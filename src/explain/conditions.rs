//! What may have kept us from an object: the table of words that `-o json` has.

/// One condition that is to hold, named by how it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The webhooks are not installed.
    NoWebhooks,
    /// The webhook of its kind is not called for what we think.
    MatchConditions,
    /// The object was there before them.
    BeforeWebhooks,
    /// It was created while nobody answered, or under other rules.
    NotCalled,
    /// Its namespace is no Profile's.
    NamespaceNotOfProfile,
    /// Its namespace is never looked at.
    NamespaceNeverLookedAt,
    /// Its namespace wants to be left alone.
    NamespaceOptedOut,
    /// The object wants to be left alone, or something inside it.
    OptedOut,
    /// A pod of no notebook, and of none of our jobs.
    NotANotebook,
    /// A job of no Trial, that does not ask.
    NotOfATrial,
    /// A pod in the host's network.
    HostNetwork,
    /// A static pod's mirror.
    MirrorPod,
    /// A pod of KServe's.
    KServePod,
    /// Something stands in the way of what should be done.
    NotPossible,
    /// It does not act as the owner, since the owner has not made it.
    Withheld,
    /// It runs under an account that nobody lets through.
    ServiceAccount,
    /// It has no sidecar, and needs one.
    NoSidecar,
    /// Its namespace is granted nothing.
    NothingGranted,
    /// Its namespace lacks something that it should have.
    TenantLacks,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::NoWebhooks,
        Self::MatchConditions,
        Self::BeforeWebhooks,
        Self::NotCalled,
        Self::NamespaceNotOfProfile,
        Self::NamespaceNeverLookedAt,
        Self::NamespaceOptedOut,
        Self::OptedOut,
        Self::NotANotebook,
        Self::NotOfATrial,
        Self::HostNetwork,
        Self::MirrorPod,
        Self::KServePod,
        Self::NotPossible,
        Self::Withheld,
        Self::ServiceAccount,
        Self::NoSidecar,
        Self::NothingGranted,
        Self::TenantLacks,
    ];

    /// Its word, which stays as it is.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoWebhooks => "no-webhooks",
            Self::MatchConditions => "match-conditions",
            Self::BeforeWebhooks => "before-webhooks",
            Self::NotCalled => "not-called",
            Self::NamespaceNotOfProfile => "namespace-not-of-profile",
            Self::NamespaceNeverLookedAt => "namespace-never-looked-at",
            Self::NamespaceOptedOut => "namespace-opted-out",
            Self::OptedOut => "opted-out",
            Self::NotANotebook => "not-a-notebook",
            Self::NotOfATrial => "not-of-a-trial",
            Self::HostNetwork => "host-network",
            Self::MirrorPod => "mirror-pod",
            Self::KServePod => "kserve-pod",
            Self::NotPossible => "not-possible",
            Self::Withheld => "withheld",
            Self::ServiceAccount => "service-account",
            Self::NoSidecar => "no-sidecar",
            Self::NothingGranted => "nothing-granted",
            Self::TenantLacks => "tenant-lacks",
        }
    }

    /// It has failed so; a command or a sentence says what to do.
    pub(super) fn failed(self, message: impl Into<String>, mend: impl Into<String>) -> Failed {
        Failed { condition: self, message: message.into(), mend: mend.into() }
    }
}

/// A condition that has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// Which one.
    pub(super) condition: Condition,
    /// How, as one line.
    pub(super) message: String,
    /// What to do.
    pub(super) mend: String,
}
