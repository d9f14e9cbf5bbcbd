//! What each port answers with.

use std::pin::Pin;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode, Uri};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::serve::until;
use crate::admission::Reviews;
use crate::admission::service::Refusal;
use crate::reviewer::Reviewer;
use crate::server::probes::{self, Readiness};
use crate::server::{Body, Stage};
use crate::{page, serving};

type BoxedAnswer<B> = Pin<Box<dyn Future<Output = Response<B>> + Send>>;

/// Of the webhooks' port: reviews, and MLflow's deliveries.
pub(super) fn admission(
    reviewer: Reviewer,
    reviews: Reviews,
    serving: Option<serving::Listener>,
) -> impl Fn(Request<Body>) -> BoxedAnswer<Full<Bytes>> + Send + Sync + 'static {
    let shared = Arc::new((reviewer, reviews));
    move |request| {
        if let Some(listener) = serving.clone().filter(|_| serving::Listener::is_ours(request.uri().path(), false)) {
            return Box::pin(async move { listener.answer(request).await });
        }
        let shared = Arc::clone(&shared);
        Box::pin(async move {
            let (reviewer, reviews) = &*shared;
            let request = request.map(|body| body.map_err(|error| Refusal::new(error.status(), error.to_string())));
            reviews.answer(request, reviewer).await
        })
    }
}

/// Of the port for operations: probes, metrics, the page, and MLflow's deliveries.
pub(super) fn operations(
    readiness: Readiness,
    registry: Registry,
    serving: Option<serving::Listener>,
    page: Option<Arc<page::Page>>,
    end: watch::Receiver<Stage>,
) -> impl Fn(Request<Body>) -> BoxedAnswer<page::Body> + Send + Sync + 'static {
    let registry = Arc::new(registry);
    move |request| {
        if let Some(listener) = serving.clone().filter(|_| serving::Listener::is_ours(request.uri().path(), true)) {
            return Box::pin(async move { listener.answer(request).await.map(page::Body::from) });
        }
        if let Some(page) = page.clone().filter(|_| page::Page::is_ours(request.uri().path())) {
            let end = until(&end);
            return Box::pin(async move { page.answer(request, end).await });
        }
        let (readiness, registry) = (readiness.clone(), Arc::clone(&registry));
        Box::pin(async move {
            let metrics = || {
                let mut text = String::new();
                // Writing to a String does not fail.
                let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
                text
            };
            probes::answer(&request, &readiness, metrics).map(page::Body::from)
        })
    }
}

/// For people and probes, in plain text.
pub(super) fn refused_operation(_: &Uri, status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{message}\n")));
    *response.status_mut() = status;
    response
}
