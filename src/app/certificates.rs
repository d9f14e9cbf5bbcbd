//! What TLS serves with: files, or certificates of our own.

use std::future::Future;
use std::pin::Pin;

use anyhow::{Context as _, bail};
use prometheus_client::registry::Registry;
use tokio_rustls::TlsAcceptor;
use tracing::warn;

use super::{client, instance, own_pod};
use crate::certs;
use crate::cli::Serve;
use crate::server;

/// Work that goes on beside the rest.
type BoxedWork = Pin<Box<dyn Future<Output = ()>>>;

/// What TLS serves with, and the work of keeping that up to date until `stop`. `readiness` hears why we should not be called.
pub(super) async fn prepared(
    settings: &Serve,
    registry: &mut Registry,
    readiness: impl Fn(Option<String>) + Send + Sync + 'static,
    stop: impl Future<Output = ()> + 'static,
) -> anyhow::Result<(TlsAcceptor, BoxedWork)> {
    let resolver = certs::Resolver::default();
    let clients = settings.connections.client_ca.as_deref();
    let clients = clients.map(|ca| server::clients(ca, &settings.connections.client_names)).transpose()?;
    let tls = TlsAcceptor::from(certs::server_config(resolver.clone(), clients)?);
    let metrics = certs::Metrics::register(registry);
    let kept: BoxedWork = match (settings.tls_cert.clone(), settings.tls_key.clone()) {
        (Some(certificate), Some(key)) => {
            let files = certs::Files { certificate, key };
            let pair = files.load()?;
            let witness = witness(settings.in_cluster.context.clone()).await;
            Box::pin(certs::follow(files, pair, resolver, metrics, witness, readiness, stop))
        }
        (None, None) => {
            let certificates = settings.in_cluster.certificates.clone();
            let policy = certificates.policy()?;
            let client = client(settings.in_cluster.context.clone())
                .await
                .context("certificates of our own need a cluster; --tls-cert and --tls-key do without")?;
            let readiness = Box::new(readiness);
            let instance = instance();
            let context =
                certs::Context { client, settings: certificates, policy, resolver, metrics, instance, readiness };
            Box::pin(certs::keep(context, stop))
        }
        (Some(_), None) => bail!("--tls-cert: --tls-key is missing; both or neither"),
        (None, Some(_)) => bail!("--tls-key: --tls-cert is missing; both or neither"),
    };
    Ok((tls, kept))
}

/// Who tells of a certificate in files, where we run in a pod. It is served with all the same.
async fn witness(context: Option<String>) -> Option<certs::Witness> {
    let pod = own_pod()?;
    match client(context).await {
        Ok(client) => Some(certs::Witness::new(client, pod, instance())),
        Err(error) => {
            warn!(error = format!("{error:#}"), "nobody is told of certificates by Events");
            None
        }
    }
}
