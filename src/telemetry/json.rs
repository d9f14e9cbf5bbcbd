//! One event as one JSON object: as tracing-subscriber's own format has it, flattened, in a fraction of its time. That one writes each
//! quote and comma through a layer of its own, and takes longer than the decision that the line is about.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The format. Spans are left out: there are none here.
#[derive(Debug)]
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        out.write_str("{\"timestamp\":\"")?;
        SystemTime.format_time(&mut out)?;
        out.write_str("\",\"level\":\"")?;
        out.write_str(event.metadata().level().as_str())?;
        out.write_char('"')?;
        let mut fields = Fields { out, written: Ok(()) };
        event.record(&mut fields);
        let Fields { mut out, written } = fields;
        written?;
        out.write_str("}\n")
    }
}

struct Fields<'w> {
    out: Writer<'w>,
    written: fmt::Result,
}

impl Fields<'_> {
    fn member(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        let out = &mut self.out;
        let name = field.name();
        let member = || {
            out.write_str(",\"")?;
            out.write_str(name.strip_prefix("r#").unwrap_or(name))?;
            out.write_str("\":")?;
            value(out)
        };
        if self.written.is_ok() {
            self.written = member();
        }
    }

    fn plain(&mut self, field: &Field, value: impl fmt::Display) {
        self.member(field, |out| write!(out, "{value}"));
    }

    fn text(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        self.member(field, |out| {
            out.write_char('"')?;
            Escaped(out).write_fmt(value)?;
            out.write_char('"')
        });
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.member(field, |out| {
            out.write_char('"')?;
            Escaped(out).write_str(value)?;
            out.write_char('"')
        });
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, |out| out.write_str(if value { "true" } else { "false" }));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, value);
    }

    /// JSON has no word for what is not finite.
    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() { self.plain(field, value) } else { self.member(field, |out| out.write_str("null")) }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.text(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format_args!("{value:?}"));
    }
}

/// The inside of a JSON string (RFC 8259, section 7).
struct Escaped<'o, 'w>(&'o mut Writer<'w>);

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, mut text: &str) -> fmt::Result {
        let is_special = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
        while let Some(at) = text.bytes().position(is_special) {
            // Special bytes are characters of their own.
            let (plain, rest) = text.split_at(at);
            self.0.write_str(plain)?;
            let mut characters = rest.chars();
            match characters.next() {
                Some('"') => self.0.write_str("\\\"")?,
                Some('\\') => self.0.write_str("\\\\")?,
                Some('\n') => self.0.write_str("\\n")?,
                Some('\r') => self.0.write_str("\\r")?,
                Some('\t') => self.0.write_str("\\t")?,
                Some(control) => write!(self.0, "\\u{:04x}", u32::from(control))?,
                None => {}
            }
            text = characters.as_str();
        }
        self.0.write_str(text)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().map_err(|_| std::io::Error::other("poisoned"))?.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The lines of some events, by our format and by tracing-subscriber's, but for the time.
    fn lines(events: impl Fn()) -> [Vec<Value>; 2] {
        let (ours, theirs) = (Kept::default(), Kept::default());
        let (writer, other) = (ours.clone(), theirs.clone());
        let base = || tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_target(false);
        let subscriber = base().event_format(Json).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, &events);
        let json = base().json().flatten_event(true).with_current_span(false).with_span_list(false);
        tracing::subscriber::with_default(json.with_writer(move || other.clone()).finish(), &events);
        [ours, theirs].map(|kept| {
            let bytes = kept.0.lock().unwrap();
            let lines = std::str::from_utf8(&bytes).unwrap().lines();
            let without_time = |line: &str| {
                let mut line: Value = serde_json::from_str(line).expect(line);
                assert_eq!(line["timestamp"].take().as_str().unwrap().len(), "2026-11-28T21:30:59.123456Z".len());
                line
            };
            lines.map(without_time).collect()
        })
    }

    #[test]
    fn it_says_the_same_as_tracing_subscribers_own() {
        let [ours, theirs] = lines(|| {
            tracing::info!(uid = "1", dry_run = true, warnings = 0_usize, micros = 41_u64, offset = -3, "reviewed");
            tracing::warn!(error = %"quote \" backslash \\ tab \t", name = ?"line\nline", share = 0.5, "a {}", "message\r\u{1}\u{7f}ü");
            let error: Box<dyn std::error::Error + 'static> = "of the \"disk\"".into();
            tracing::error!(error = &*error, r#type = "x", huge = u128::MAX, nothing = Option::<u8>::None, "failed");
            tracing::debug!(nan = f64::NAN);
        });
        assert_eq!(ours.len(), 4);
        assert_eq!(ours, theirs);
        assert_eq!(ours[0]["message"], json!("reviewed"));
    }
}
