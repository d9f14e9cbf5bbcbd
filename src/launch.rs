//! What the launcher in a tenant's pod is told, in environment variables: the contract between whoever writes them into
//! the pod and the program that reads them (`src/bin/launcher`). Pure: no environment, no files, no clock, and no other
//! module of this library, since all that it names ends up in a binary that is copied into every pod.
//!
//! To add a variable, add it to [`VARIABLES`], to [`Contract::read`] and to [`Contract::environment`]; `launcher --help`
//! shows the table.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

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

/// One variable of the contract.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name in the environment.
    pub name: &'static str,
    /// What holds when it is not set; empty for nothing.
    pub default: &'static str,
    /// What it decides, for people who read `--help`.
    pub meaning: &'static str,
}

/// Whether to do nothing.
pub const DISABLE: Variable = Variable {
    name: "LAUNCHER_DISABLE",
    default: "false",
    meaning: "true: become the command at once, without waiting, markers or quitting",
};
/// Where the proxy says that it is ready (istio-proxy's own probe; `localhost`, since it listens on IPv6 alone in clusters of
/// that kind).
pub const READY_URL: Variable = Variable {
    name: "LAUNCHER_READY_URL",
    default: "http://localhost:15021/healthz/ready",
    meaning: "asked by GET until it answers 2xx; empty: no waiting",
};
/// How long to wait for that (`pilot-agent wait` gives up after the same time).
pub const READY_TIMEOUT: Variable = Variable {
    name: "LAUNCHER_READY_TIMEOUT",
    default: "60s",
    meaning: "how long to wait for the proxy, as 90s, 1m30s or 500ms",
};
/// The start gate.
pub const START_AFTER: Variable = Variable {
    name: "LAUNCHER_START_AFTER",
    default: "",
    meaning: "name of a container whose command has to be running, or finished, before this one starts; needs LAUNCHER_MARKERS",
};
/// How long to wait for that. Longer than for the proxy: a container's image is pulled while the ones before it run.
pub const START_AFTER_TIMEOUT: Variable = Variable {
    name: "LAUNCHER_START_AFTER_TIMEOUT",
    default: "5m",
    meaning: "how long to wait for that container, once the proxy is ready",
};
/// How long that container's command has to have been running. Only time tells us when Katib's collector, which is started
/// here, has looked for the process that it waits for.
pub const START_AFTER_DELAY: Variable = Variable {
    name: "LAUNCHER_START_AFTER_DELAY",
    default: "0s",
    meaning: "how long that container's command is to have been running; not waited for if it has finished",
};
/// What becomes of the command when one of the two waits ends without a result.
pub const TIMEOUT_ACTION: Variable = Variable {
    name: "LAUNCHER_TIMEOUT_ACTION",
    default: "start",
    meaning: "when a wait takes too long: start the command all the same, or fail (end with 69)",
};
/// Where the proxy is asked to quit: pilot-agent first, then Envoy's admin port.
pub const QUIT_URL: Variable = Variable {
    name: "LAUNCHER_QUIT_URL",
    default: "http://localhost:15020/quitquitquit,http://localhost:15000/quitquitquit",
    meaning: "asked by POST at the end, one after the other until one answers 2xx; empty: nobody is asked",
};
/// Where launchers leave word for one another.
pub const MARKERS: Variable = Variable {
    name: "LAUNCHER_MARKERS",
    default: "",
    meaning: "folder that all wrapped containers share and may write to, as an emptyDir on disk",
};
/// Who we are to the others.
pub const CONTAINER: Variable =
    Variable { name: "LAUNCHER_CONTAINER", default: "", meaning: "name of this container; needed with markers" };
/// Who has to have finished before the proxy may go.
pub const CONTAINERS: Variable = Variable {
    name: "LAUNCHER_CONTAINERS",
    default: "",
    meaning: "names of all containers that need the proxy, comma-separated; the last to finish asks it to quit",
};
/// Which end is an end.
pub const RESTART_POLICY: Variable = Variable {
    name: "LAUNCHER_RESTART_POLICY",
    default: "Never",
    meaning: "Never: every end is final; OnFailure: only code 0 is; Always: none is, and the proxy stays",
};

/// Every variable, in the order of a container's life.
pub const VARIABLES: &[Variable] = &[
    DISABLE,
    READY_URL,
    READY_TIMEOUT,
    START_AFTER,
    START_AFTER_TIMEOUT,
    START_AFTER_DELAY,
    TIMEOUT_ACTION,
    QUIT_URL,
    MARKERS,
    CONTAINER,
    CONTAINERS,
    RESTART_POLICY,
];

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

/// What launchers tell one another: empty files, so that each is there or not and never half written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The container's command is running.
    Started,
    /// The container's command has ended, and the kubelet will not start it again.
    Finished,
}

impl State {
    fn name(self) -> &'static str {
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
    /// It ends with [`EXIT_LIMIT`].
    Fail,
}

impl AtLimit {
    fn name(self) -> &'static str {
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

/// A place in this pod. Nothing else can be named: who may set the environment of a container must not thereby be able to
/// send requests from it to elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    host: Host,
    port: u16,
    target: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    Localhost,
    Address(IpAddr),
}

impl Url {
    /// Where to connect to, the first that answers. Names are not resolved: `localhost` is both loopback addresses.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let addresses = match self.host {
            Host::Localhost => vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)],
            Host::Address(address) => vec![address],
        };
        addresses.into_iter().map(|address| SocketAddr::new(address, self.port)).collect()
    }

    /// Host and port, as in the `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        match self.host {
            Host::Localhost => format!("localhost:{}", self.port),
            Host::Address(address) => SocketAddr::new(address, self.port).to_string(),
        }
    }

    /// Path and query.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }
}

impl fmt::Display for Url {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "http://{}{}", self.authority(), self.target)
    }
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("http://").ok_or("expected http://")?;
        let (authority, target) = rest.find('/').map_or((rest, "/"), |index| rest.split_at(index));
        // What a request line can carry, so that a line break in a variable does not become a header.
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("expected a path of printable ASCII characters".to_owned());
        }
        let (host, port) = match authority.rsplit_once(':') {
            // The colons of an address in brackets are not the port's.
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| "expected a port from 0 to 65535")?)
            }
            _ => (authority, 80),
        };
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let address = match bracketed {
            Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            None => host.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        };
        let host = match address {
            Some(address) if address.is_loopback() => Host::Address(address),
            None if host == "localhost" => Host::Localhost,
            _ => return Err("only this pod may be asked: expected localhost, 127.0.0.1 or [::1]".to_owned()),
        };
        Ok(Self { host, port, target: target.to_owned() })
    }
}

/// Reads one variable after the other and keeps what is wrong with them.
struct Reader<L> {
    lookup: L,
    complaints: Vec<String>,
}

impl<L: Fn(&str) -> Option<OsString>> Reader<L> {
    fn raw(&self, variable: Variable) -> Option<OsString> {
        (self.lookup)(variable.name)
    }

    /// One value. An empty variable counts as not set, as a pod template that fills it in may leave it.
    fn value<T: Default>(&mut self, variable: Variable, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let found = self.raw(variable).filter(|value| !value.is_empty());
        let understood = found.and_then(|value| {
            let parsed = utf8(&value).and_then(&parse);
            parsed
                .map_err(|reason| self.complain(variable, &value, &format!("{reason}; using {}", variable.default)))
                .ok()
        });
        understood.or_else(|| parse(variable.default).ok()).unwrap_or_default()
    }

    /// One value or none. Here, and below, an empty variable means: none.
    fn optional<T>(&mut self, variable: Variable, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let value = self.raw(variable).unwrap_or_else(|| OsString::from(variable.default));
        if value.is_empty() {
            return None;
        }
        let parsed = utf8(&value).and_then(parse);
        parsed.map_err(|reason| self.complain(variable, &value, &format!("{reason}; going on without"))).ok()
    }

    /// Values between commas, without those that cannot be understood, and whether there were none of these.
    fn list<T>(&mut self, variable: Variable, parse: impl Fn(&str) -> Result<T, String>) -> (Vec<T>, bool) {
        let value = self.raw(variable).unwrap_or_else(|| OsString::from(variable.default));
        let mut all_understood = true;
        let mut values = Vec::new();
        match utf8(&value) {
            Err(reason) => {
                self.complain(variable, &value, &reason);
                all_understood = false;
            }
            Ok(text) => {
                for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
                    match parse(item) {
                        Ok(parsed) => values.push(parsed),
                        Err(reason) => {
                            self.complain(variable, OsStr::new(item), &format!("{reason}; going on without"));
                            all_understood = false;
                        }
                    }
                }
            }
        }
        (values, all_understood)
    }

    fn complain(&mut self, variable: Variable, value: &OsStr, reason: &str) {
        self.complaints.push(format!("{} is {:?}: {reason}", variable.name, value.to_string_lossy()));
    }
}

fn utf8(value: &OsStr) -> Result<&str, String> {
    value.to_str().ok_or_else(|| "expected UTF-8".to_owned())
}

fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "1" => Ok(true),
        "false" | "no" | "0" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// A DNS label, as Kubernetes wants a container's name to be: no path can be made of it.
fn container_name(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.is_empty() || text.len() > 63 || !text.bytes().all(fits) {
        return Err("expected the name of a container".to_owned());
    }
    Ok(text.to_owned())
}

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
fn duration_text(duration: Duration) -> String {
    match (duration.as_secs(), duration.subsec_millis()) {
        (seconds, 0) if seconds > 0 && seconds % 60 == 0 => format!("{}m", seconds / 60),
        (seconds, 0) => format!("{seconds}s"),
        (0, milliseconds) => format!("{milliseconds}ms"),
        (seconds, milliseconds) => format!("{seconds}s{milliseconds}ms"),
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
    fn no_url_leads_out_of_the_pod() {
        for (text, addresses) in [
            ("http://localhost:15021/healthz/ready", "127.0.0.1:15021 [::1]:15021"),
            ("http://127.0.0.1:15021/healthz/ready", "127.0.0.1:15021"),
            ("http://127.8.9.10/", "127.8.9.10:80"),
            ("http://[::1]:9/a?b=c", "[::1]:9"),
            ("http://localhost", "127.0.0.1:80 [::1]:80"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!(url.addresses().iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), addresses);
            assert_eq!(url.to_string().parse(), Ok(url));
        }
        for text in [
            "http://169.254.169.254/latest/meta-data",
            "http://10.0.0.1:80/",
            "http://0.0.0.0:15021/",
            "http://[::]:80/",
            "http://[::ffff:127.0.0.1]:80/",
            "http://localhost.evil.example/",
            "http://evil.example:80/",
            "http://127.0.0.1@evil.example/",
            "http://evil.example#@127.0.0.1/",
            "http://127.0.0.1.evil.example/",
            "http://127.1/",
            "http://2130706433/",
            "http://LOCALHOST/",
            "http://localhost:99999/",
            "http://localhost:/",
            "http://[::1/",
            "http:///path",
            "http://",
            "https://localhost/",
            "file:///etc/passwd",
            "localhost:15021",
            "http://localhost/a b",
            "http://localhost/\r\nX-Header: 1",
            "http://localhost/\u{e9}",
            "http://localhost\r\n/",
        ] {
            assert!(text.parse::<Url>().is_err(), "{text:?} is taken");
        }
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
    fn a_final_end_is_one_after_which_the_kubelet_does_nothing() {
        let finals = |policy: RestartPolicy| [0, 1, 143].map(|code| policy.is_final(code));
        assert_eq!(finals(RestartPolicy::Never), [true, true, true]);
        assert_eq!(finals(RestartPolicy::OnFailure), [true, false, false]);
        assert_eq!(finals(RestartPolicy::Always), [false, false, false]);
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
