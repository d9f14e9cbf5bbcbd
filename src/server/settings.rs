//! What an installation may decide about connections.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::durations;

/// Settings of the port for webhooks. The port for operations has the same times, and small numbers of its own.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connections")]
#[group(skip)]
pub struct Settings {
    /// Time for a TLS handshake
    #[arg(long, env = "TENANCY_FIXER_HANDSHAKE_TIMEOUT", value_name = "DURATION", default_value = "5s", value_parser = durations::positive)]
    pub handshake_timeout: Duration,

    /// Time from the first byte of a request to the end of its head
    #[arg(long, env = "TENANCY_FIXER_HEADER_TIMEOUT", value_name = "DURATION", default_value = "5s", value_parser = durations::positive)]
    pub header_timeout: Duration,

    /// Time for a request's body; the API server sends it at once
    #[arg(long, env = "TENANCY_FIXER_BODY_TIMEOUT", value_name = "DURATION", default_value = "5s", value_parser = durations::positive)]
    pub body_timeout: Duration,

    // The API server keeps a connection for 90 seconds (IdleConnTimeout of Go's http.DefaultTransport). Whoever closes first
    // must be the one who sends: a review that crosses our close is lost, since Go does not repeat a POST.
    /// Time without a request after which a connection is closed; longer than the 90s for which the API server keeps one
    #[arg(long, env = "TENANCY_FIXER_IDLE_TIMEOUT", value_name = "DURATION", default_value = "120s", value_parser = durations::positive)]
    pub idle_timeout: Duration,

    /// Connections in all; more are closed at once. One costs 40 KiB when idle, and up to 64 KiB more in a handshake
    #[arg(long, env = "TENANCY_FIXER_MAX_CONNECTIONS", value_name = "NUMBER", default_value = "256", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,

    // An API server has at most 200 mutating requests in flight (--max-mutating-requests-inflight), but a konnectivity server
    // or a load balancer gives all API servers one address: so one peer may have a lot.
    /// Connections of one address; never more than twice what is still free, so that nobody shuts out everybody else
    #[arg(long, env = "TENANCY_FIXER_MAX_CONNECTIONS_PER_PEER", value_name = "NUMBER", default_value = "160", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections_per_peer: u32,

    /// Requests being read and answered, in all; more are answered with 503 and the request to come again
    #[arg(long, env = "TENANCY_FIXER_MAX_REQUESTS", value_name = "NUMBER", default_value = "256", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_requests: u32,

    /// Bytes of bodies in memory, in all, in MiB; one address gets two thirds, and a body may have 7
    #[arg(long, env = "TENANCY_FIXER_BODY_MEMORY", value_name = "MIB", default_value = "12", value_parser = clap::value_parser!(u32).range(1..4096))]
    pub body_memory: u32,

    /// After SIGTERM: end once no request has come for this long
    #[arg(long, env = "TENANCY_FIXER_DRAIN_QUIET", value_name = "DURATION", default_value = "10s", value_parser = durations::any)]
    pub drain_quiet: Duration,

    /// After SIGTERM: stop taking requests after this long in any case; shorter than the pod's terminationGracePeriodSeconds
    #[arg(long, env = "TENANCY_FIXER_DRAIN_LIMIT", value_name = "DURATION", default_value = "25s", value_parser = durations::any)]
    pub drain_limit: Duration,

    /// Only clients whose certificate one of these authorities has signed, PEM; without it, everybody who reaches the port
    #[arg(long, env = "TENANCY_FIXER_CLIENT_CA", value_name = "FILE")]
    pub client_ca: Option<PathBuf>,

    /// Only clients of one of these names: common name or DNS name of their certificate
    #[arg(
        long,
        env = "TENANCY_FIXER_CLIENT_NAMES",
        value_name = "NAMES",
        value_delimiter = ',',
        requires = "client_ca"
    )]
    pub client_names: Vec<String>,

    // Each thread has memory of its own (an arena of malloc's, a stack), and a pod without a limit on CPU sees all of the
    // node's cores. A review takes less than a tenth of a millisecond.
    /// Threads that serve; by default one for each core, but at most 4
    #[arg(long, env = "TENANCY_FIXER_THREADS", value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

impl Settings {
    /// Threads to serve with on this machine.
    #[must_use]
    pub fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from).min(4);
        self.threads.map_or_else(cores, usize::from)
    }
}
