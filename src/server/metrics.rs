//! What the server counts, in the words of Prometheus. No label comes from outside: there are as many series as words here.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Shared by whoever counts; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    connections: Family<StateLabel, Gauge>,
    /// Those of it: each request moves its connection three times, and a lookup takes a lock and a hash.
    states: [(&'static str, Gauge); 4],
    accepted: Counter,
    rejected: Family<ReasonLabel, Counter>,
    body_bytes: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Why a connection or a request was not served to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// There are as many connections as there may be.
    Connections,
    /// This peer has as many of them as it may.
    PeerConnections,
    /// The process has no file descriptor or memory left.
    Accept,
    /// TLS could not be agreed on, or the client is not allowed in.
    Handshake,
    /// The handshake took too long.
    HandshakeTimeout,
    /// A head took too long.
    HeaderTimeout,
    /// A body took too long.
    BodyTimeout,
    /// An answer took too long, or nobody read it.
    AnswerTimeout,
    /// No request came.
    IdleTimeout,
    /// What came is no HTTP, or more of it than is taken.
    Protocol,
    /// There are as many requests as there may be.
    Requests,
    /// Bodies take as much memory as they may.
    Memory,
    /// The handler panicked.
    Panic,
}

impl Rejection {
    const fn word(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::PeerConnections => "peer_connections",
            Self::Accept => "accept",
            Self::Handshake => "handshake",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::HeaderTimeout => "header_timeout",
            Self::BodyTimeout => "body_timeout",
            Self::AnswerTimeout => "answer_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::Protocol => "protocol",
            Self::Requests => "requests",
            Self::Memory => "memory",
            Self::Panic => "panic",
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let connections: Family<StateLabel, Gauge> = Family::default();
        let state = |state| (state, connections.get_or_create(&StateLabel { state }).clone());
        Self {
            states: ["handshake", "idle", "head", "request"].map(state),
            connections,
            accepted: Counter::default(),
            rejected: Family::default(),
            body_bytes: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Registers them under their names.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let server = registry.sub_registry_with_prefix("server");
        server.register(
            "connections",
            "Open connections by what they are waiting for: handshake, idle, head, request",
            metrics.connections.clone(),
        );
        server.register("accepted", "Connections that came", metrics.accepted.clone());
        server.register(
            "rejected",
            "Connections and requests that were not served to their end, by reason",
            metrics.rejected.clone(),
        );
        server.register("body_bytes", "Bytes of requests' bodies in memory", metrics.body_bytes.clone());
        metrics
    }

    pub(super) fn accepted(&self) {
        self.accepted.inc();
    }

    pub(super) fn moved(&self, from: Option<&'static str>, to: Option<&'static str>) {
        let gauge = |state| self.states.iter().find(|(found, _)| Some(*found) == state).map(|(_, gauge)| gauge);
        if let Some(gauge) = gauge(from) {
            gauge.dec();
        }
        if let Some(gauge) = gauge(to) {
            gauge.inc();
        }
    }

    pub(super) fn rejected(&self, why: Rejection) {
        self.rejected.get_or_create(&ReasonLabel { reason: why.word() }).inc();
    }

    pub(super) fn body_bytes_taken(&self, bytes: usize) {
        self.body_bytes.inc_by(i64::try_from(bytes).unwrap_or_default());
    }

    pub(super) fn body_bytes_freed(&self, bytes: usize) {
        self.body_bytes.dec_by(i64::try_from(bytes).unwrap_or_default());
    }
}
