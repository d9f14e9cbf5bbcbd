//! The Lease by which replicas agree on one that writes, as client-go's leader election does it.
//!
//! Written here because the crates that do it (kube-leader-election 0.44, kubert 0.25) would bring a second, older kube into
//! the tree. Time is taken from the local clock only: a holder is given up when its record has not changed for as long as
//! it promised, whatever the clocks of others say.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease as Record, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::names;

/// A holder that is gone is given up after this time; with [`RETRY`] another one is there within 12 seconds.
const DURATION: Duration = Duration::from_secs(10);
/// A holder that could not renew for this time stops, well before another one may begin.
const DEADLINE: Duration = Duration::from_secs(7);
/// Time between two looks or renewals.
const RETRY: Duration = Duration::from_secs(2);

/// The right to write, for a limited time.
#[derive(Clone, Debug)]
pub struct Held(Arc<Mutex<Instant>>);

impl Held {
    /// Whether it still holds at this moment. To be asked right before each write: a process may have been stopped since.
    #[must_use]
    pub fn is_held(&self) -> bool {
        Instant::now() < *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn until(&self, end: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }
}

/// One Lease, and this process as one that would hold it.
pub struct Lease {
    api: Api<Record>,
    name: String,
    holder: String,
    /// The record as it was last seen to change, by its resource version, and when.
    seen: Option<(String, Instant)>,
}

impl Lease {
    /// `holder` has to differ between processes; the pod's name does.
    #[must_use]
    pub fn new(client: Client, namespace: &str, holder: String) -> Self {
        Self::named(client, namespace, names::LEASE, holder)
    }

    /// One of another name.
    #[must_use]
    pub fn named(client: Client, namespace: &str, name: &str, holder: String) -> Self {
        Self { api: Api::namespaced(client, namespace), name: name.to_owned(), holder, seen: None }
    }

    /// Does `work` whenever and as long as the Lease is held; ends when `stop` does, and gives the Lease back.
    pub async fn while_held<W: Future<Output = ()>>(
        mut self,
        mut work: impl FnMut(Held) -> W,
        stop: impl Future<Output = ()>,
    ) {
        let mut stop = std::pin::pin!(stop);
        loop {
            let acquired = tokio::select! {
                biased;
                () = &mut stop => return,
                acquired = self.acquire() => acquired,
            };
            let held = Held(Arc::new(Mutex::new(acquired + DEADLINE)));
            info!(holder = self.holder, "holding the lease: this replica writes");
            let stopped = tokio::select! {
                // Before the work: what has lost the lease must not be polled once more.
                biased;
                () = self.renew(&held) => false,
                () = &mut stop => true,
                () = work(held.clone()) => true,
            };
            held.until(acquired);
            if stopped {
                self.release().await;
                return;
            }
            warn!(holder = self.holder, "lost the lease: this replica no longer writes");
        }
    }

    /// Waits until the Lease is ours; since when.
    async fn acquire(&mut self) -> Instant {
        loop {
            let started = Instant::now();
            match timeout(DEADLINE, self.take(&self.holder.clone())).await {
                Ok(Ok(true)) => return started,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => warn!(%error, "looking at the lease"),
                Err(_) => warn!("looking at the lease timed out"),
            }
            sleep(RETRY).await;
        }
    }

    /// Keeps the Lease; returns when it could not for too long.
    async fn renew(&mut self, held: &Held) {
        while held.is_held() {
            sleep(RETRY).await;
            let started = Instant::now();
            match timeout(RETRY, self.take(&self.holder.clone())).await {
                Ok(Ok(true)) if held.is_held() => held.until(started + DEADLINE),
                Ok(Ok(_)) => return,
                Ok(Err(error)) => warn!(%error, "renewing the lease"),
                Err(_) => warn!("renewing the lease timed out"),
            }
        }
    }

    /// Gives it back, so that another replica need not wait.
    async fn release(&mut self) {
        match timeout(RETRY, self.take("")).await {
            Ok(Ok(true)) => info!("gave the lease back"),
            // It has been another's in the meantime.
            Ok(Ok(false)) => {}
            Ok(Err(error)) => warn!(%error, "giving the lease back"),
            Err(_) => warn!("giving the lease back timed out"),
        }
    }

    /// Writes `holder` into the Lease if that is ours to do; whether it is.
    async fn take(&mut self, holder: &str) -> kube::Result<bool> {
        let Some(mut record) = self.api.get_opt(&self.name).await? else {
            let record = Record {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.spec(None, holder)),
            };
            return written(self.api.create(&PostParams::default(), &record).await);
        };
        let spec = record.spec.take().unwrap_or_default();
        if !self.may_take(record.metadata.resource_version.as_deref().unwrap_or_default(), &spec) {
            return Ok(false);
        }
        record.spec = Some(self.spec(Some(spec), holder));
        // The resource version in it makes this fail if somebody was faster.
        written(self.api.replace(&self.name, &PostParams::default(), &record).await)
    }

    fn may_take(&mut self, version: &str, spec: &LeaseSpec) -> bool {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.holder {
            return true;
        }
        let promised = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(DURATION, Duration::from_secs);
        match &self.seen {
            Some((seen, since)) if seen == version => since.elapsed() > promised,
            _ => {
                self.seen = Some((version.to_owned(), Instant::now()));
                false
            }
        }
    }

    fn spec(&self, before: Option<LeaseSpec>, holder: &str) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let before = before.unwrap_or_default();
        let changes = before.holder_identity.as_deref() != Some(holder);
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            renew_time: Some(now.clone()),
            acquire_time: if changes { Some(now) } else { before.acquire_time },
            lease_transitions: Some(
                before.lease_transitions.unwrap_or_default() + i32::from(changes && holder == self.holder),
            ),
            ..LeaseSpec::default()
        }
    }
}

/// Somebody else's success is no error.
fn written(result: kube::Result<Record>) -> kube::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
