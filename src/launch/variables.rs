//! The table of variables.

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
