//! After the command: when nobody needs the proxy any more, it is asked to quit.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use tenancy_fixer::launch::{Contract, Url};

use crate::markers::Markers;
use crate::{http, say};

/// How long one address has for its answer. pilot-agent answers before it does anything.
const ANSWER: Duration = Duration::from_secs(2);

/// Tells the others that this container has ended with this code, and lets the proxy go if it was the last.
///
/// Nothing is said about what goes well once a command has failed: with `terminationMessagePolicy: FallbackToLogsOnError`
/// the end of the log is the termination message, and that is the command's.
pub(crate) fn after(code: u8, contract: &Contract, markers: &Markers<'_>) {
    let note = |what: &str| {
        if code == 0 {
            say(what);
        }
    };
    let policy = contract.restart_policy;
    if !policy.is_final(code) {
        markers.stopped();
        note(&format!("not asking the proxy to quit (the container starts again: restart policy {})", policy.name()));
        return;
    }
    markers.finished();
    let unfinished = markers.unfinished();
    if contract.quit.is_empty() {
        note("not asking the proxy to quit (nobody to ask)");
    } else if unfinished.is_empty() {
        ask(&contract.quit, note);
    } else {
        note(&format!("not asking the proxy to quit (not finished: {})", unfinished.join(", ")));
    }
}

/// Asks one address after the other, until one agrees.
fn ask(urls: &[Url], note: impl Fn(&str)) {
    let mut refusals = Vec::new();
    let mut gone = true;
    for url in urls {
        let until = Instant::now() + ANSWER;
        match http::send("POST", url, ANSWER).and_then(|mut stream| http::status(&mut stream, until)) {
            Ok(status @ 200..=299) => return note(&format!("asked the proxy to quit ({url} answers {status})")),
            Ok(status) => {
                gone = false;
                refusals.push(format!("{url} answers {status}"));
            }
            Err(error) => {
                gone &= error.kind() == ErrorKind::ConnectionRefused;
                refusals.push(format!("{url}: {error}"));
            }
        }
    }
    if gone {
        note("not asking the proxy to quit (it is gone)");
    } else {
        say(&format!("the proxy does not quit ({})", refusals.join("; ")));
    }
}
