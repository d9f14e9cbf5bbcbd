//! Numbers of ports in names and settings.

/// A port as a URL has it: digits alone. Rust's numbers may have a sign before them, and `host:+443` is no host's name.
#[must_use]
pub fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
