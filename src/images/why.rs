//! Why nothing is known about an image.

use std::fmt;

/// In bytes; kubectl prints a warning of this length as one paragraph.
const LONGEST_MESSAGE: usize = 400;

/// What kept us from knowing. The text is for whoever created the pod, and says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WhyUnknown {
    reason: Reason,
    message: String,
}

/// The kinds of trouble, for metrics and for whoever decides by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The look goes on in the background; whoever asks again is told what it found.
    StillLooking,
    /// Too many looks are waiting.
    Busy,
    /// The settings do not let us ask that registry, or connect to where its name leads.
    NotAllowed,
    /// No name service, no connection, no TLS, or a connection that ended early.
    Unreachable,
    /// The registry took too long.
    TimedOut,
    /// These credentials, or nobody's, may not pull it.
    Denied,
    /// There is no such image, or nobody may know that there is.
    NotFound,
    /// The registry wants us to ask later.
    RateLimited,
    /// The registry answered what it should not.
    BadAnswer,
    /// What came is not what the digest promises.
    Corrupt,
    /// Larger than any honest answer.
    TooLarge,
    /// Something other than a container image, or one in a form from before 2016.
    NotAnImage,
    /// The image is not made for the platform that the settings name.
    NoPlatform,
}

impl Reason {
    /// One word for metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StillLooking => "still_looking",
            Self::Busy => "busy",
            Self::NotAllowed => "not_allowed",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::RateLimited => "rate_limited",
            Self::BadAnswer => "bad_answer",
            Self::Corrupt => "corrupt",
            Self::TooLarge => "too_large",
            Self::NotAnImage => "not_an_image",
            Self::NoPlatform => "no_platform",
        }
    }

    /// Whether another login might open it: registries answer 404, too, for what one may not see.
    pub(super) const fn may_be_the_login(self) -> bool {
        matches!(self, Self::Denied | Self::NotFound)
    }
}

impl WhyUnknown {
    /// A registry, which may be a tenant's, has a hand in the text: it is kept short, and on one line.
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        let mut message = message.into().replace(|character: char| !matches!(character, ' '..='~'), "?");
        message.truncate(LONGEST_MESSAGE);
        Self { reason, message }
    }

    /// The kind of trouble.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Bytes that it holds.
    pub(super) fn size(&self) -> usize {
        self.message.len()
    }
}

impl fmt::Display for WhyUnknown {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for WhyUnknown {}
