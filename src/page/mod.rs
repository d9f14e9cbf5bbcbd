//! A page to look at, on the port for operations: the last reviews, tenants, the gate's verdicts, served models. It reads what is in memory,
//! changes nothing, and is for those whom Kubernetes lets see it.
//!
//! A request goes [`Page::answer`] → `sessions` (whose token is it) → `access` (may they; asks the API server) → `facts` (a snapshot, of this
//! replica) → `render` (HTML, everything escaped). `live` sends what has changed as server-sent events, `query` is what the address
//! line says, `answers` has the headers that keep a browser from doing anything else.

mod access;
mod answers;
mod facts;
mod live;
mod query;
mod render;
mod sessions;
mod settings;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Body as HttpBody;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue, SET_COOKIE};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use secrecy::SecretString;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::cluster::names;
use access::{Access, Verdict};
pub use facts::{Facts, Sources, Tenants};
pub use live::Body;
pub use query::{List, Query};
pub use render::Renderer;
use sessions::Sessions;
pub use settings::Settings;

/// Pages that are made at once; more wait. One with ten thousand tenants takes some 10 ms of a processor.
const AT_ONCE: usize = 2;
/// Largest form that is read: a token has 1 to 3 KiB.
const LARGEST_FORM: usize = 16 * 1024;
/// Time for it.
const FORM_PATIENCE: Duration = Duration::from_secs(5);

/// Answers; one for all requests.
pub struct Page {
    sources: Sources,
    renderer: Renderer,
    access: Access,
    sessions: Sessions,
    making: Semaphore,
    streams: Arc<Semaphore>,
}

/// Who asks, and how we know.
struct Asker {
    token: Arc<SecretString>,
    /// They have signed in here, and can sign out.
    session: Option<sessions::Id>,
}

impl Page {
    /// Asks the cluster of `client` who may look.
    ///
    /// # Errors
    /// A mistake in the templates, which are part of the binary.
    pub fn new(settings: &Settings, client: kube::Client, sources: Sources) -> anyhow::Result<Self> {
        Ok(Self {
            sources,
            renderer: Renderer::new(settings.page_audiences.first().map_or(names::PROJECT, String::as_str))?,
            access: Access::new(client, settings.page_audiences.clone()),
            sessions: Sessions::default(),
            making: Semaphore::new(AT_ONCE),
            streams: Arc::new(Semaphore::new(live::MOST_STREAMS)),
        })
    }

    /// Whether a path is ours.
    #[must_use]
    pub fn is_ours(path: &str) -> bool {
        matches!(path, "/" | "/events" | "/sign-in" | "/sign-out") || answers::is_file(path)
    }

    /// Answers a request to a path of ours; streams end with `stop`.
    pub async fn answer<B>(
        self: Arc<Self>,
        request: Request<B>,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Response<Body>
    where
        B: HttpBody<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
    {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let is_post = matches!(path, "/sign-in" | "/sign-out");
        match head.method {
            Method::POST if is_post && !answers::is_from_here(&head.headers) => {
                answers::text(StatusCode::FORBIDDEN, "this form was not sent by our own page\n")
            }
            Method::POST if path == "/sign-in" => self.sign_in(body).await,
            Method::POST if path == "/sign-out" => self.sign_out(&head.headers),
            Method::GET | Method::HEAD if is_post => answers::back(None),
            Method::GET | Method::HEAD => match answers::file(path) {
                Some(file) => file,
                None => self.shown(&head, stop).await,
            },
            _ => answers::not_this_method(if is_post { "POST" } else { "GET, HEAD" }),
        }
    }

    /// The page or its stream, for those who may see it.
    async fn shown(self: Arc<Self>, head: &Parts, stop: impl Future<Output = ()> + Send + 'static) -> Response<Body> {
        let is_stream = head.uri.path() == "/events";
        let Some(asker) = self.asker(&head.headers) else {
            return self.entrance(StatusCode::UNAUTHORIZED, "");
        };
        let user = match self.access.check(&asker.token).await {
            Verdict::Allowed(user) => user,
            refused => {
                if let (Verdict::Unknown(_), Some(session)) = (&refused, &asker.session) {
                    self.sessions.end(session);
                }
                return self.refused(&refused);
            }
        };
        let query = Query::of(head.uri.query().unwrap_or_default());
        if is_stream {
            return live::stream(self, (query, asker.token), stop);
        }
        let signed_in = asker.session.is_some();
        match self.make(move |page| page.renderer.page(&page.sources.facts(&query), &query, &user, signed_in)).await {
            Ok(html) => answers::html(StatusCode::OK, html),
            Err(message) => {
                warn!(error = message, "making the page");
                answers::text(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be made; the log has more\n")
            }
        }
    }

    /// Makes something where it keeps nobody's review waiting.
    async fn make<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, minijinja::Error> + Send + 'static,
    ) -> Result<T, String> {
        let page = Arc::clone(&self);
        let Ok(_turn) = self.making.acquire().await else { return Err("there are no more turns".to_owned()) };
        let made = spawn_blocking(move || work(&page)).await.map_err(|error| error.to_string())?;
        made.map_err(|error| format!("{error:#}"))
    }

    fn asker(&self, headers: &HeaderMap) -> Option<Asker> {
        if let Some(header) = headers.get(AUTHORIZATION) {
            let (scheme, token) = header.to_str().ok()?.split_once(' ')?;
            let token = Arc::new(SecretString::from(token.trim()));
            return scheme.eq_ignore_ascii_case("bearer").then_some(Asker { token, session: None });
        }
        let (session, token) = self.sessions.find(headers)?;
        Some(Asker { token, session: Some(session) })
    }

    async fn sign_in<B>(&self, body: B) -> Response<Body>
    where
        B: HttpBody<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
    {
        let form = Limited::new(body, LARGEST_FORM).collect();
        let Ok(Ok(form)) = tokio::time::timeout(FORM_PATIENCE, form).await else {
            return self.entrance(StatusCode::BAD_REQUEST, "The form did not arrive, or was larger than a token is.");
        };
        let form = form.to_bytes();
        let token = form_urlencoded::parse(&form).find(|(name, _)| name == "token").map(|(_, value)| value);
        let token = token.as_deref().map(str::trim).filter(|token| !token.is_empty());
        let Some(token) = token.map(SecretString::from).map(Arc::new) else {
            return self.entrance(StatusCode::BAD_REQUEST, "Paste a token.");
        };
        match self.access.check(&token).await {
            Verdict::Allowed(user) => match self.sessions.begin(token, &user) {
                Some(cookie) => answers::back(Some((SET_COOKIE, cookie))),
                None => self.entrance(StatusCode::SERVICE_UNAVAILABLE, "No session could be made; try again."),
            },
            refused => self.refused(&refused),
        }
    }

    fn sign_out(&self, headers: &HeaderMap) -> Response<Body> {
        if let Some((session, _)) = self.sessions.find(headers) {
            self.sessions.end(&session);
        }
        answers::back(Some((SET_COOKIE, HeaderValue::from_static(sessions::FORGET))))
    }

    /// Why somebody does not see the page, and what mends it.
    fn refused(&self, verdict: &Verdict) -> Response<Body> {
        let status = match verdict {
            Verdict::Forbidden(_) => StatusCode::FORBIDDEN,
            Verdict::Busy => StatusCode::TOO_MANY_REQUESTS,
            Verdict::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
            Verdict::Unknown(_) | Verdict::Allowed(_) => StatusCode::UNAUTHORIZED,
        };
        self.entrance(status, &verdict.told())
    }

    fn entrance(&self, status: StatusCode, message: &str) -> Response<Body> {
        match self.renderer.entrance(message) {
            Ok(html) => answers::html(status, html),
            Err(_) => answers::text(status, format!("{message}\n")),
        }
    }
}
