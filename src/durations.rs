//! Times in settings, as Go and Kubernetes write them: `500ms`, `90s`, `1m30s`, `8760h`.

use std::time::Duration;

use k8s_openapi::jiff::SignedDuration;

/// A time that may be nothing, for clap.
///
/// # Errors
/// What is expected instead.
pub fn any(text: &str) -> Result<Duration, String> {
    let found = text.parse::<SignedDuration>().ok().and_then(|found| Duration::try_from(found).ok());
    found.ok_or_else(|| format!("{text:?} is no time: expected one such as 500ms, 5s, 1m30s or 8760h"))
}

/// A time, for clap.
///
/// # Errors
/// What is expected instead.
pub fn positive(text: &str) -> Result<Duration, String> {
    let found = any(text)?;
    if found.is_zero() { Err("expected more than nothing".to_owned()) } else { Ok(found) }
}

/// The same for what is compared with points in time.
///
/// # Errors
/// What is expected instead.
pub fn positive_signed(text: &str) -> Result<SignedDuration, String> {
    SignedDuration::try_from(positive(text)?).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written_elsewhere() {
        for (text, milliseconds) in
            [("500ms", 500), ("90s", 90_000), ("1m30s", 90_000), ("8760h", 31_536_000_000), ("0s", 0)]
        {
            assert_eq!(any(text), Ok(Duration::from_millis(milliseconds)), "{text}");
            assert_eq!(positive(text).is_ok(), milliseconds > 0, "{text}");
            assert_eq!(positive_signed(text).is_ok(), milliseconds > 0, "{text}");
        }
        for wrong in ["", "30", "-1s", "soon", "1 fortnight", "9999999999999999999h"] {
            assert!(any(wrong).unwrap_err().contains("expected one such as 500ms"), "{wrong}");
        }
    }
}
