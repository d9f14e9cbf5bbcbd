//! What went wrong when MLflow was asked.

use std::fmt;

use hyper::StatusCode;

/// Longest text of somebody else's that we repeat.
const LONGEST_MESSAGE: usize = 500;

/// Why there is no answer to go by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// We could not ask: our own credentials cannot be read, or the request cannot be written.
    Unaskable(String),
    /// No connection, or one that broke off.
    Unreachable(String),
    /// It took longer than the settings allow.
    TimedOut(String),
    /// MLflow, or something between us, answered with an error.
    Refused {
        /// Of HTTP.
        status: StatusCode,
        /// MLflow's `error_code`, where it is MLflow that answered.
        code: Option<String>,
        /// Its message, or the beginning of the body.
        message: String,
    },
    /// More than we read.
    TooLarge(String),
    /// Something else than MLflow's answers look like.
    BadAnswer(String),
}

impl Error {
    /// From an answer that is no success.
    pub(super) fn refused(status: StatusCode, body: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Body {
            error_code: String,
            #[serde(default)]
            message: String,
        }
        match serde_json::from_slice::<Body>(body) {
            Ok(Body { error_code, message }) => {
                Self::Refused { status, code: Some(error_code), message: shortened(&message) }
            }
            Err(_) => Self::Refused { status, code: None, message: shortened(&String::from_utf8_lossy(body)) },
        }
    }

    /// MLflow itself says that what was asked for is not there. A 404 of something between us is no such answer.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.code() == Some("RESOURCE_DOES_NOT_EXIST")
    }

    /// MLflow's `error_code`.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        if let Self::Refused { code, .. } = self { code.as_deref() } else { None }
    }

    /// Whether the same question may be answered later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::TimedOut(_) => true,
            Self::Refused { status, .. } => {
                status.is_server_error() && *status != StatusCode::NOT_IMPLEMENTED
                    || *status == StatusCode::TOO_MANY_REQUESTS
            }
            Self::Unaskable(_) | Self::TooLarge(_) | Self::BadAnswer(_) => false,
        }
    }

    /// One word for metrics.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Unaskable(_) => "unaskable",
            Self::Unreachable(_) => "unreachable",
            Self::TimedOut(_) => "timed_out",
            Self::Refused { .. } => "refused",
            Self::TooLarge(_) => "too_large",
            Self::BadAnswer(_) => "bad_answer",
        }
    }
}

pub(super) fn shortened(text: &str) -> String {
    let end = text.floor_char_boundary(LONGEST_MESSAGE);
    let (shown, rest) = text.split_at(end);
    if rest.is_empty() { shown.to_owned() } else { format!("{shown}...") }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unaskable(text) => write!(out, "MLflow cannot be asked: {text}"),
            Self::Unreachable(text) => write!(out, "MLflow is not reached: {text}"),
            Self::TimedOut(text) => write!(out, "MLflow did not answer in time: {text}"),
            Self::Refused { status, code: Some(code), message } => {
                write!(out, "MLflow answered {} {code}: {message}", status.as_u16())
            }
            Self::Refused { status, code: None, message } => {
                write!(out, "{} was answered, not in MLflow's form: {message:?}", status.as_u16())
            }
            Self::TooLarge(text) => write!(out, "MLflow's answer is too large: {text}"),
            Self::BadAnswer(text) => write!(out, "MLflow's answer cannot be used: {text}"),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mlflow_itself_says_that_something_is_missing() {
        let body =
            br#"{"error_code":"RESOURCE_DOES_NOT_EXIST","message":"Model Version (name=a, version=1) not found"}"#;
        assert!(Error::refused(StatusCode::NOT_FOUND, body).is_missing());
        for other in [&b"<html>404</html>"[..], b"", b"{}", br#"{"error_code":"ENDPOINT_NOT_FOUND"}"#] {
            assert!(!Error::refused(StatusCode::NOT_FOUND, other).is_missing());
        }
    }

    #[test]
    fn what_may_pass_is_known() {
        let refused = |status: u16| Error::refused(StatusCode::from_u16(status).unwrap(), b"");
        for status in [429, 500, 502, 503, 504] {
            assert!(refused(status).may_pass(), "{status}");
        }
        for status in [302, 400, 401, 403, 404, 501] {
            assert!(!refused(status).may_pass(), "{status}");
        }
    }

    #[test]
    fn a_long_answer_is_cut_between_characters() {
        let error = Error::refused(StatusCode::BAD_GATEWAY, "\u{e9}".repeat(LONGEST_MESSAGE).as_bytes());
        assert!(error.to_string().len() < 2 * LONGEST_MESSAGE + 100);
    }
}
