//! What the launcher in a tenant's pod is told, in environment variables: the contract between whoever writes them into
//! the pod and the program that reads them (`src/bin/launcher`). Pure: no environment, no files, no clock, and no other
//! module of this library, since all that it names ends up in a binary that is copied into every pod.
//!
//! `variables` is the table of them, `reader` understands values, `words` are those that have few, `url` is the places that can be
//! asked. To add a variable, add it to [`VARIABLES`], to [`Contract::read`] and to [`Contract::environment`]; `launcher --help`
//! shows the table.

mod durations;
mod reader;
mod url;
mod variables;
mod words;

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use self::durations::duration_text;
use self::reader::{Reader, boolean, container_name};

pub use self::durations::duration;
pub use self::url::Url;
pub use self::variables::{
    CONTAINER, CONTAINERS, DISABLE, MARKERS, QUIT_URL, READY_TIMEOUT, READY_URL, RESTART_POLICY, START_AFTER,
    START_AFTER_DELAY, START_AFTER_TIMEOUT, TIMEOUT_ACTION, VARIABLES, Variable,
};
pub use self::words::{AtLimit, RestartPolicy, State};

/// File name of the binary, in our image and in the volume that it copies itself to.
pub const BINARY: &str = "launcher";
/// What stands between the launcher's own arguments and the command.
pub const SEPARATOR: &str = "--";
/// The flag after which the launcher waits and then becomes the command, instead of its parent.
pub const EXEC_FLAG: &str = "--exec";
/// The flag that copies the binary into a folder.
pub const COPY_FLAG: &str = "--copy-to";

/// The command line is not one of ours (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;
/// A limit was reached, and [`AtLimit::Fail`] was asked for (`EX_UNAVAILABLE`).
pub const EXIT_LIMIT: u8 = 69;
/// The system refused what every launcher needs (`EX_OSERR`).
pub const EXIT_SYSTEM: u8 = 71;
/// `--copy-to` could not write (`EX_CANTCREAT`).
pub const EXIT_COPY: u8 = 73;
/// The command is there and cannot be run (POSIX shells).
pub const EXIT_CANNOT_RUN: u8 = 126;
/// The command is not there (POSIX shells).
pub const EXIT_NOT_FOUND: u8 = 127;
/// What is added to the number of the signal that ended the command, or came before it (POSIX shells).
pub const EXIT_SIGNAL: u8 = 128;

/// What a launcher is told, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contract {
    /// Be transparent.
    pub disabled: bool,
    /// Where the proxy says that it is ready; `None` to not wait for it.
    pub ready: Option<Url>,
    /// Limit of that wait.
    pub ready_timeout: Duration,
    /// The container to start after.
    pub start_after: Option<String>,
    /// Limit of that wait, which begins when the first one has ended.
    pub start_after_timeout: Duration,
    /// How long after its start.
    pub start_after_delay: Duration,
    /// What a limit means.
    pub at_limit: AtLimit,
    /// Where the proxy is asked to quit, in this order; empty to not ask.
    pub quit: Vec<Url>,
    /// The shared folder.
    pub markers: Option<PathBuf>,
    /// This container's name.
    pub container: Option<String>,
    /// Everyone who has to finish, this container among them or not.
    pub containers: Vec<String>,
    /// The policy that holds for this container: its own if it has one, or else the pod's.
    pub restart_policy: RestartPolicy,
}

/// Read once: reading its addresses takes longer than a pod's own contract.
static DEFAULT: LazyLock<Contract> = LazyLock::new(|| Contract::read(|_| None).0);

impl Default for Contract {
    fn default() -> Self {
        DEFAULT.clone()
    }
}

impl Contract {
    /// Reads the contract from the variables that `lookup` finds, and says what is wrong with them, in sentences.
    ///
    /// A command runs with a contract that is partly wrong rather than not at all: a URL that cannot be used is left out,
    /// and of anything else the default holds. What would let the proxy quit too early takes the quitting away.
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> (Self, Vec<String>) {
        let mut reader = Reader { lookup, complaints: Vec::new() };
        let mut contract = Self {
            disabled: reader.value(DISABLE, boolean),
            ready: reader.optional(READY_URL, Url::from_str),
            ready_timeout: reader.value(READY_TIMEOUT, duration),
            start_after: reader.optional(START_AFTER, container_name),
            start_after_timeout: reader.value(START_AFTER_TIMEOUT, duration),
            start_after_delay: reader.value(START_AFTER_DELAY, duration),
            at_limit: reader.value(TIMEOUT_ACTION, AtLimit::from_str),
            quit: reader.list(QUIT_URL, Url::from_str).0,
            markers: reader.raw(MARKERS).filter(|folder| !folder.is_empty()).map(PathBuf::from),
            container: reader.optional(CONTAINER, container_name),
            containers: Vec::new(),
            restart_policy: reader.value(RESTART_POLICY, RestartPolicy::from_str),
        };
        let (containers, all_understood) = reader.list(CONTAINERS, container_name);
        contract.containers = containers;
        let mut complaints = reader.complaints;
        contract.make_consistent(all_understood, &mut complaints);
        (contract, complaints)
    }

    /// Takes away what the rest of the contract cannot carry.
    fn make_consistent(&mut self, all_understood: bool, complaints: &mut Vec<String>) {
        if self.start_after.is_some() && self.markers.is_none() {
            complaints.push(format!("{} needs {}: not waiting for that container", START_AFTER.name, MARKERS.name));
            self.start_after = None;
        }
        let alone = self.containers.iter().all(|name| Some(name) == self.container.as_ref());
        let can_agree = self.markers.is_some() && self.container.is_some();
        if !all_understood || !(alone || can_agree) {
            complaints.push(format!(
                "{} needs {} and {}, and every name in it: the proxy will not be asked to quit",
                CONTAINERS.name, MARKERS.name, CONTAINER.name
            ));
            self.quit.clear();
        }
    }

    /// The variables that say this, without those whose default already does: what goes into a container's `env`.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let default = &*DEFAULT;
        let names = |names: &[String]| OsString::from(names.join(","));
        let urls = |urls: &[Url]| OsString::from(urls.iter().map(Url::to_string).collect::<Vec<_>>().join(","));
        let mut said = Vec::new();
        let mut say = |variable: Variable, is_default: bool, value: &dyn Fn() -> OsString| {
            if !is_default {
                said.push((variable.name, value()));
            }
        };
        say(DISABLE, self.disabled == default.disabled, &|| self.disabled.to_string().into());
        say(READY_URL, self.ready == default.ready, &|| urls(self.ready.as_slice()));
        say(READY_TIMEOUT, self.ready_timeout == default.ready_timeout, &|| duration_text(self.ready_timeout).into());
        say(START_AFTER, self.start_after == default.start_after, &|| names(self.start_after.as_slice()));
        say(START_AFTER_TIMEOUT, self.start_after_timeout == default.start_after_timeout, &|| {
            duration_text(self.start_after_timeout).into()
        });
        say(START_AFTER_DELAY, self.start_after_delay == default.start_after_delay, &|| {
            duration_text(self.start_after_delay).into()
        });
        say(TIMEOUT_ACTION, self.at_limit == default.at_limit, &|| self.at_limit.name().into());
        say(QUIT_URL, self.quit == default.quit, &|| urls(&self.quit));
        say(MARKERS, self.markers == default.markers, &|| self.markers.clone().unwrap_or_default().into_os_string());
        say(CONTAINER, self.container == default.container, &|| names(self.container.as_slice()));
        say(CONTAINERS, self.containers == default.containers, &|| names(&self.containers));
        say(RESTART_POLICY, self.restart_policy == default.restart_policy, &|| self.restart_policy.name().into());
        said
    }

    /// The other containers that have to finish before the proxy may go.
    pub fn others(&self) -> impl Iterator<Item = &str> {
        self.containers.iter().map(String::as_str).filter(|name| Some(*name) != self.container.as_deref())
    }

    /// The file that says this of a container; `None` without a shared folder.
    #[must_use]
    pub fn marker(&self, container: &str, state: State) -> Option<PathBuf> {
        Some(self.markers.as_ref()?.join(format!("{container}.{}", state.name())))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn read(variables: &[(Variable, &str)]) -> (Contract, Vec<String>) {
        let map: HashMap<_, _> =
            variables.iter().map(|(variable, value)| (variable.name, OsString::from(value))).collect();
        Contract::read(|name| map.get(name).cloned())
    }

    #[test]
    fn without_any_variable_the_defaults_of_the_table_hold() {
        let (contract, complaints) = read(&[]);
        assert_eq!(complaints, [""; 0]);
        assert_eq!(contract.ready.as_ref().map(Url::to_string).as_deref(), Some(READY_URL.default));
        assert_eq!(contract.ready_timeout, Duration::from_mins(1));
        assert_eq!(contract.start_after_timeout, Duration::from_mins(5));
        assert_eq!(contract.quit.iter().map(Url::to_string).collect::<Vec<_>>().join(","), QUIT_URL.default);
        assert_eq!((contract.at_limit, contract.restart_policy), (AtLimit::Start, RestartPolicy::Never));
        assert!(!contract.disabled && contract.start_after.is_none() && contract.markers.is_none());
        let written: Vec<_> = VARIABLES.iter().map(|variable| (*variable, variable.default)).collect();
        assert_eq!(read(&written), (contract, Vec::new()), "to write a default is to say nothing");
    }

    #[test]
    fn what_is_written_into_a_pod_is_what_is_read_there() {
        let pod = |container: &str| Contract {
            disabled: true,
            ready: Some("http://127.0.0.1:1/x?y".parse().unwrap()),
            ready_timeout: Duration::from_millis(61_500),
            start_after: Some("metrics-collector".to_owned()),
            start_after_timeout: Duration::from_secs(30),
            start_after_delay: Duration::from_secs(1),
            at_limit: AtLimit::Fail,
            quit: vec!["http://[::1]/quit".parse().unwrap(), "http://localhost:15000/quitquitquit".parse().unwrap()],
            markers: Some(PathBuf::from("/launcher/markers")),
            container: Some(container.to_owned()),
            containers: vec!["train".to_owned(), "metrics-collector".to_owned()],
            restart_policy: RestartPolicy::OnFailure,
        };
        let nothing_to_ask = Contract { ready: None, quit: Vec::new(), ..Contract::default() };
        for contract in [Contract::default(), nothing_to_ask, pod("train"), pod("metrics-collector")] {
            let environment: HashMap<_, _> = contract.environment().into_iter().collect();
            assert_eq!(Contract::read(|name| environment.get(name).cloned()), (contract, Vec::new()));
        }
        assert!(Contract::default().environment().is_empty());
        assert_eq!(pod("train").environment().len(), VARIABLES.len());
    }

    #[test]
    fn a_url_that_is_refused_is_left_out_and_said() {
        let (contract, complaints) =
            read(&[(READY_URL, "http://10.0.0.1/"), (QUIT_URL, "http://10.0.0.1/, http://127.0.0.1:1/quit")]);
        assert_eq!(contract.ready, None);
        assert_eq!(contract.quit.iter().map(Url::to_string).collect::<Vec<_>>(), ["http://127.0.0.1:1/quit"]);
        let wrong = "is \"http://10.0.0.1/\": only this pod may be asked: expected localhost, 127.0.0.1 or [::1]; going on without";
        assert_eq!(complaints, [format!("LAUNCHER_READY_URL {wrong}"), format!("LAUNCHER_QUIT_URL {wrong}")]);
    }

    #[test]
    fn of_values_that_cannot_be_understood_the_default_holds() {
        let (contract, complaints) = read(&[
            (DISABLE, "perhaps"),
            (READY_TIMEOUT, "1 minute"),
            (TIMEOUT_ACTION, "Start"),
            (RESTART_POLICY, "never"),
            (START_AFTER_TIMEOUT, ""),
        ]);
        assert_eq!(contract, Contract::default());
        assert_eq!(
            complaints,
            [
                "LAUNCHER_DISABLE is \"perhaps\": expected true or false; using false",
                "LAUNCHER_READY_TIMEOUT is \"1 minute\": expected a duration such as 90s, 1m30s or 500ms; using 60s",
                "LAUNCHER_TIMEOUT_ACTION is \"Start\": expected start or fail; using start",
                "LAUNCHER_RESTART_POLICY is \"never\": expected Never, OnFailure or Always; using Never",
            ]
        );
    }

    #[test]
    fn who_cannot_know_who_is_last_does_not_ask_the_proxy_to_quit() {
        let quits = |variables: &[(Variable, &str)]| {
            let (contract, complaints) = read(variables);
            assert_eq!(complaints.is_empty(), !contract.quit.is_empty(), "{complaints:?}");
            !contract.quit.is_empty()
        };
        let shared = (MARKERS, "/markers");
        assert!(quits(&[]));
        assert!(quits(&[shared, (CONTAINER, "a")]));
        assert!(quits(&[(CONTAINER, "a"), (CONTAINERS, "a")]), "the only one is the last");
        assert!(quits(&[shared, (CONTAINER, "a"), (CONTAINERS, "a, b,")]));
        assert!(!quits(&[(CONTAINER, "a"), (CONTAINERS, "a,b")]));
        assert!(!quits(&[shared, (CONTAINERS, "a,b")]));
        assert!(!quits(&[shared, (CONTAINER, "a"), (CONTAINERS, "a,../b")]));
    }

    #[test]
    fn a_start_gate_without_a_folder_is_no_gate() {
        let (contract, complaints) = read(&[(START_AFTER, "collector")]);
        assert_eq!(contract.start_after, None);
        assert_eq!(complaints, ["LAUNCHER_START_AFTER needs LAUNCHER_MARKERS: not waiting for that container"]);
    }

    #[test]
    fn markers_stay_in_their_folder() {
        let (contract, _) = read(&[(MARKERS, "/markers"), (CONTAINER, "a"), (CONTAINERS, "a,b,c")]);
        assert_eq!(contract.others().collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(contract.marker("b", State::Finished), Some(PathBuf::from("/markers/b.finished")));
        for name in ["", ".", "..", "a/b", "/etc/passwd", "A", "a b", "a\0", &"a".repeat(64)] {
            assert!(container_name(name).is_err(), "{name:?} is taken");
        }
    }
}
