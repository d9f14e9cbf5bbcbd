//! Durations, as Go and Kubernetes write them.

use std::time::Duration;

/// Durations as Go and Kubernetes write them, of whole numbers: `90s`, `1m30s`, `500ms`.
///
/// # Errors
/// Anything else, and more than 64 bits of milliseconds hold.
pub fn duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a duration such as 90s, 1m30s or 500ms";
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let (digits, behind) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let (unit, behind) = behind.split_at(behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len()));
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(EXPECTED.to_owned()),
        };
        let part = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(milliseconds)).ok_or(EXPECTED)?;
        total = total.checked_add(Duration::from_millis(part)).ok_or(EXPECTED)?;
        rest = behind;
    }
    if text.is_empty() { Err(EXPECTED.to_owned()) } else { Ok(total) }
}

/// The inverse of [`duration`], to the millisecond.
pub(super) fn duration_text(duration: Duration) -> String {
    match (duration.as_secs(), duration.subsec_millis()) {
        (seconds, 0) if seconds > 0 && seconds % 60 == 0 => format!("{}m", seconds / 60),
        (seconds, 0) => format!("{seconds}s"),
        (0, milliseconds) => format!("{milliseconds}ms"),
        (seconds, milliseconds) => format!("{seconds}s{milliseconds}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, milliseconds) in
            [("0s", 0), ("500ms", 500), ("60s", 60_000), ("1m30s", 90_000), ("2h", 7_200_000), ("1s5ms", 1_005)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)));
            assert_eq!(duration(&duration_text(Duration::from_millis(milliseconds))), duration(text));
        }
        for text in ["", "60", "s", "-1s", "1.5s", "1 s", "1d", "1S", "99999999999999999999s", "18446744073709551615h"]
        {
            assert!(duration(text).is_err(), "{text:?} is taken");
        }
    }
}
