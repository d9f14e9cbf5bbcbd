//! Connections to where `address` lets us go. The addresses that are judged are the very ones that are connected to, so that
//! a name cannot mean one thing when it is looked at and another when it is used.

use std::error::Error;
use std::fmt;
use std::future::{Future, ready};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use super::address::{Network, is_allowed};

/// Longest time for one address; the look as a whole has its own limit.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

type Boxed<T> = Pin<Box<dyn Future<Output = Result<T, Box<dyn Error + Send + Sync>>> + Send>>;

/// Opens TCP connections.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    tcp: HttpConnector<Resolver>,
    networks: Arc<[Network]>,
}

/// A connection that we do not open.
#[derive(Debug)]
pub(super) struct Forbidden {
    host: String,
    address: IpAddr,
}

impl Connector {
    pub(super) fn new(networks: &[Network]) -> Self {
        let networks: Arc<[Network]> = networks.into();
        let mut tcp = HttpConnector::new_with_resolver(Resolver { networks: Arc::clone(&networks) });
        // TLS comes on top.
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        Self { tcp, networks }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Boxed<Self::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let host = uri.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        // Whoever is named by address is connected to without asking the resolver.
        if let Ok(address) = bare.parse()
            && !is_allowed(host, address, &self.networks)
        {
            return Box::pin(ready(Err(Forbidden { host: host.to_owned(), address }.into())));
        }
        let connecting = self.tcp.call(uri);
        Box::pin(async { Ok(connecting.await?) })
    }
}

/// The system's resolver, without the addresses that are not for us.
#[derive(Clone, Debug)]
pub(super) struct Resolver {
    networks: Arc<[Network]>,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Boxed<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let networks = Arc::clone(&self.networks);
        let host = name.as_str().to_owned();
        let resolving = GaiResolver::new().call(name);
        Box::pin(async move {
            let (allowed, forbidden): (Vec<_>, Vec<_>) =
                resolving.await?.partition(|address| is_allowed(&host, address.ip(), &networks));
            match forbidden.first() {
                Some(address) if allowed.is_empty() => Err(Forbidden { host, address: address.ip() }.into()),
                _ => Ok(allowed.into_iter()),
            }
        })
    }
}

impl fmt::Display for Forbidden {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, address } = self;
        write!(out, "{host} is at {address}, which is not of the public internet; --registry-networks can allow it")
    }
}

impl Error for Forbidden {}
