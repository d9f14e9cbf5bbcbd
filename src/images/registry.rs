//! The registry's side of a look: requests, logins, redirects, and the limits to all of them
//! (<https://github.com/opencontainers/distribution-spec>).

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, USER_AGENT, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpInfo;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::time::timeout;

use super::address::{Network, RegistryPattern, is_public};
use super::challenge::Challenge;
use super::connector::{Connector, Forbidden};
use super::manifest::{self, ImageConfig, Layer, Platform, Step};
use super::secrets::Login;
use super::why::{Reason, WhyUnknown};
use super::{Digest, Metrics, Reference, Settings};
use crate::trust;

/// Largest manifest, index or configuration. Those of the largest images have a tenth of it.
const LARGEST_DOCUMENT: usize = 1 << 20;
/// Largest answer of a server that gives out tokens.
const LARGEST_TOKEN: usize = 64 << 10;
/// Most hops from a registry to where it keeps its content; two are usual.
const MOST_REDIRECTS: usize = 4;
/// An index may name another one, which hardly any does.
const DEEPEST_INDEX: usize = 3;
/// Largest head of an answer, in bytes.
const LARGEST_HEAD: usize = 32 << 10;
/// Connections that are kept for the next request to the same host, and for how long.
const IDLE_CONNECTIONS: usize = 2;
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

const DIGEST_HEADER: &str = "docker-content-digest";
const US: &str = concat!("tenancy-fixer/", env!("CARGO_PKG_VERSION"));

type HttpClient = Client<HttpsConnector<Connector>, Empty<Bytes>>;

/// All registries that may be asked.
#[derive(Debug)]
pub(super) struct Registries {
    /// For whom the image's name names.
    named: HttpClient,
    /// For whom somebody in the public internet names.
    public: HttpClient,
    allow: Vec<RegistryPattern>,
    deny: Vec<RegistryPattern>,
    insecure: Vec<String>,
    platform: Platform,
    /// How long nothing may come of something that is on its way.
    patience: Duration,
    metrics: Metrics,
}

/// One look at one image, as one login or as nobody.
pub(super) struct Session<'a> {
    registries: &'a Registries,
    image: &'a Reference,
    login: Option<&'a Login>,
    /// Once the registry has asked for it.
    authorization: Option<HeaderValue>,
}

/// An image as its registry has it.
pub(super) struct Found {
    /// How it is run.
    pub(super) config: ImageConfig,
    /// From the lowest to the highest.
    pub(super) layers: Vec<Layer>,
    /// Of the manifest that names them, which is what an attestation is about; an index above it has another digest.
    pub(super) manifest: Digest,
    /// Manifests of attestations that the index has beside it.
    pub(super) attestations: Vec<Digest>,
}

/// What to ask for.
struct Question<'a> {
    method: Method,
    uri: Uri,
    accept: Option<&'static str>,
    authorization: Option<&'a HeaderValue>,
    /// Whether somebody in the public internet wants us to ask.
    named_in_public: bool,
}

pub(super) struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    pub(super) body: Bytes,
    /// Whether that comes from the public internet.
    from_public: bool,
}

/// An answer whose body is still to come.
pub(super) struct Opened<'a> {
    registries: &'a Registries,
    status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
    uri: Uri,
    /// Whether somebody else gives it than was asked.
    from_elsewhere: bool,
    /// Whether that one is in the public internet.
    from_public: bool,
}

impl Opened<'_> {
    /// Reads a body of at most so many bytes.
    pub(super) async fn whole(mut self, limit: usize) -> Result<Answer, WhyUnknown> {
        let patience = self.registries.patience;
        let reading = async {
            let mut body = Vec::new();
            while let Some(piece) = self.piece().await? {
                if body.len() + piece.len() > limit {
                    let message = format!("{} answers with more than {limit} bytes", host(&self.uri));
                    return Err(WhyUnknown::new(Reason::TooLarge, message));
                }
                body.extend_from_slice(&piece);
            }
            Ok(body)
        };
        let body = timeout(patience, reading).await.map_err(|_| late(&self.uri, patience))??.into();
        Ok(Answer { status: self.status, headers: self.headers, body, from_public: self.from_public })
    }

    /// The next piece of the body; `None` behind the last one. Who keeps silent for too long is given up.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, WhyUnknown> {
        loop {
            let patience = self.registries.patience;
            let frame = timeout(patience, self.body.frame()).await.map_err(|_| {
                let message = format!("{} sent nothing for {patience:?}", host(&self.uri));
                WhyUnknown::new(Reason::TimedOut, message)
            })?;
            let Some(frame) = frame else { return Ok(None) };
            if let Ok(piece) = frame.map_err(|error| trouble(&self.uri, &error))?.into_data() {
                self.registries.metrics.read(piece.len());
                return Ok(Some(piece));
            }
        }
    }
}

impl Registries {
    pub(super) fn new(settings: &Settings, metrics: Metrics) -> anyhow::Result<Self> {
        let tls = Arc::new(trust::public_and(settings.registry_ca_file.as_deref(), "--registry-ca-file")?);
        let client = |networks: &[Network]| {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(IDLE_CONNECTIONS)
                .http1_max_buf_size(LARGEST_HEAD)
                .build(HttpsConnector::from((Connector::new(networks), Arc::clone(&tls))))
        };
        Ok(Self {
            named: client(&settings.registry_networks),
            public: client(&[]),
            allow: settings.registry_allow.clone(),
            deny: settings.registry_deny.clone(),
            insecure: settings.insecure_registries.clone(),
            platform: settings.image_platform.clone(),
            patience: settings.image_timeout,
            metrics,
        })
    }

    /// Whether the settings let us ask an image's registry at all.
    pub(super) fn check(&self, image: &Reference) -> Result<(), WhyUnknown> {
        let names = [image.registry(), image.authority()];
        let is_in = |patterns: &[RegistryPattern]| names.iter().any(|name| patterns.iter().any(|is| is.is_for(name)));
        if is_in(&self.deny) || !(self.allow.is_empty() || is_in(&self.allow)) {
            let message = format!(
                "the registry {} may not be asked here; see the settings registry-allow and registry-deny",
                image.registry()
            );
            return Err(WhyUnknown::new(Reason::NotAllowed, message));
        }
        Ok(())
    }

    pub(super) fn session<'a>(&'a self, image: &'a Reference, login: Option<&'a Login>) -> Session<'a> {
        Session { registries: self, image, login, authorization: None }
    }

    /// Asks, and follows where the answer leads. Whatever shows who we are goes to the first host only. Nobody in the public
    /// internet leads us to what the settings allow beside it: a tenant's own registry could have us fetch any path of
    /// the cluster's services.
    async fn open(&self, question: Question<'_>) -> Result<Opened<'_>, WhyUnknown> {
        let Question { method, mut uri, accept, mut authorization, mut named_in_public } = question;
        let mut from_elsewhere = false;
        for _ in 0..=MOST_REDIRECTS {
            self.check_hop(&uri)?;
            self.metrics.requested();
            let mut request = Request::builder().method(&method).uri(&uri).header(USER_AGENT, US);
            request = accept.into_iter().fold(request, |request, accept| request.header(ACCEPT, accept));
            request = authorization.into_iter().fold(request, |request, value| request.header(AUTHORIZATION, value));
            let request = request.body(Empty::new()).map_err(|_| bad_answer(&uri, "cannot be asked"))?;
            let client = if named_in_public { &self.public } else { &self.named };
            // Whoever keeps silent does not keep a place from others.
            let response =
                timeout(self.patience, client.request(request)).await.map_err(|_| late(&uri, self.patience))?;
            let response = response.map_err(|error| trouble(&uri, &error))?;
            let (head, body) = response.into_parts();
            // Where it is not known, we are as careful as can be.
            let from_public = head.extensions.get().is_none_or(|info: &HttpInfo| is_public(info.remote_addr().ip()));
            if let Some(location) = head.headers.get(LOCATION).filter(|_| head.status.is_redirection()) {
                let next = location.to_str().ok().and_then(|location| join(&uri, location));
                let next = next.ok_or_else(|| bad_answer(&uri, "sends us to where nobody can go"))?;
                if origin(&next) != origin(&uri) {
                    authorization = None;
                    from_elsewhere = true;
                    named_in_public |= from_public;
                }
                uri = next;
                continue;
            }
            return Ok(Opened {
                registries: self,
                status: head.status,
                headers: head.headers,
                body,
                uri,
                from_elsewhere,
                from_public,
            });
        }
        Err(bad_answer(&uri, "is the last of too many redirects"))
    }

    /// Each host on the way is held to the same rules.
    fn check_hop(&self, uri: &Uri) -> Result<(), WhyUnknown> {
        let authority = uri.authority().map(|authority| authority.as_str().to_ascii_lowercase()).unwrap_or_default();
        let secure = uri.scheme_str() == Some("https");
        let insecure = uri.scheme_str() == Some("http") && self.insecure.contains(&authority);
        if !secure && !insecure {
            let message = format!(
                "{authority} would have to be asked without TLS, which only registries in the setting insecure-registries are"
            );
            return Err(WhyUnknown::new(Reason::NotAllowed, message));
        }
        // user:password@host
        if authority.contains('@') || self.deny.iter().any(|pattern| pattern.is_for(&authority)) {
            let message = format!("{} may not be asked here; see the setting registry-deny", host(uri));
            return Err(WhyUnknown::new(Reason::NotAllowed, message));
        }
        Ok(())
    }
}

impl<'a> Session<'a> {
    /// What a tag means just now.
    pub(super) async fn digest(&mut self, tag: &str) -> Result<Digest, WhyUnknown> {
        let path = format!("manifests/{tag}");
        // Asked so, it does not count as a pull.
        let head = self.get(Method::HEAD, &path).await;
        let named = match &head {
            Ok(answer) => answer.headers.get(DIGEST_HEADER).and_then(|value| value.to_str().ok()?.parse().ok()),
            // Some registries do not know HEAD.
            Err(why) if why.reason() == Reason::BadAnswer => None,
            Err(why) => return Err(why.clone()),
        };
        match named {
            Some(digest) => Ok(digest),
            None => Ok(Digest::of(&self.get(Method::GET, &path).await?.body)),
        }
    }

    /// The image that a digest means.
    pub(super) async fn image(&mut self, digest: &Digest) -> Result<Found, WhyUnknown> {
        let mut at = digest.clone();
        let mut of_index = Vec::new();
        for _ in 0..DEEPEST_INDEX {
            let answer = self.content("manifests", &at).await?;
            let content_type =
                answer.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            match manifest::step(&answer.body, content_type, &self.registries.platform)? {
                Step::Manifest { next, attestations } => {
                    at = next;
                    of_index = attestations;
                }
                Step::Image { config, layers } => {
                    let config = manifest::config(&self.content("blobs", &config).await?.body, digest.clone())?;
                    return Ok(Found { config, layers, manifest: at, attestations: of_index });
                }
            }
        }
        Err(WhyUnknown::new(Reason::NotAnImage, "its index names an index that names an index"))
    }

    /// A manifest or a small blob, compared with its digest.
    pub(super) async fn content(&mut self, kind: &str, digest: &Digest) -> Result<Answer, WhyUnknown> {
        let answer = self.get(Method::GET, &format!("{kind}/{digest}")).await?;
        if digest.is_of(&answer.body) {
            Ok(answer)
        } else {
            let message = format!("the registry {} has something else under {digest}", self.image.registry());
            Err(WhyUnknown::new(Reason::Corrupt, message))
        }
    }

    /// How long nothing may come of something that is on its way.
    pub(super) fn patience(&self) -> Duration {
        self.registries.patience
    }

    /// The registry's name, as the image has it.
    pub(super) fn registry(&self) -> &'a str {
        self.image.registry()
    }

    /// What is counted.
    pub(super) fn metrics(&self) -> &'a Metrics {
        &self.registries.metrics
    }

    /// Something of this image that is too large to be read at once. Whoever reads it compares it with its digest.
    pub(super) async fn blob(&mut self, digest: &Digest) -> Result<Opened<'a>, WhyUnknown> {
        self.open(Method::GET, &format!("blobs/{digest}")).await
    }

    /// A document of this image's repository that no digest speaks for, such as a tag's manifest.
    pub(super) async fn document(&mut self, path: &str) -> Result<Answer, WhyUnknown> {
        self.get(Method::GET, path).await
    }

    async fn get(&mut self, method: Method, path: &str) -> Result<Answer, WhyUnknown> {
        self.open(method, path).await?.whole(LARGEST_DOCUMENT).await
    }

    /// Asks the registry for something of this image, and logs in when it wants us to.
    async fn open(&mut self, method: Method, path: &str) -> Result<Opened<'a>, WhyUnknown> {
        let authority = self.image.authority();
        let insecure = self.registries.insecure.iter().any(|registry| registry == authority);
        let scheme = if insecure { "http" } else { "https" };
        let uri: Uri =
            format!("{scheme}://{authority}/v2/{}/{path}", self.image.repository()).parse().map_err(|_| {
                WhyUnknown::new(
                    Reason::NotAllowed,
                    format!("{} has a name that cannot be asked for", self.image.registry()),
                )
            })?;
        let mut answer = self.ask(&method, &uri).await?;
        if answer.status == StatusCode::UNAUTHORIZED && self.authorization.is_none() && !answer.from_elsewhere {
            // To its end, so that the connection can be used again.
            let refusal = answer.whole(LARGEST_DOCUMENT).await?;
            self.authorization = Some(self.authorize(&refusal).await?);
            answer = self.ask(&method, &uri).await?;
        }
        let registry = self.image.registry();
        match answer.status {
            StatusCode::OK => Ok(answer),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.denied()),
            StatusCode::NOT_FOUND => {
                let message = format!("the registry {registry} has no such image, or does not show it to this pod");
                Err(WhyUnknown::new(Reason::NotFound, message))
            }
            StatusCode::TOO_MANY_REQUESTS => Err(rate_limited(registry)),
            status => {
                let message = format!("the registry {registry} answers with HTTP status {}", status.as_u16());
                Err(WhyUnknown::new(Reason::BadAnswer, message))
            }
        }
    }

    async fn ask(&self, method: &Method, uri: &Uri) -> Result<Opened<'a>, WhyUnknown> {
        let question = Question {
            method: method.clone(),
            uri: uri.clone(),
            accept: Some(manifest::ACCEPT),
            authorization: self.authorization.as_ref(),
            named_in_public: false,
        };
        self.registries.open(question).await
    }

    /// What shows the registry who we are, after it has refused us.
    async fn authorize(&self, refusal: &Answer) -> Result<HeaderValue, WhyUnknown> {
        let wanted = refusal.headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        match (Challenge::best(wanted), self.login) {
            (Some(Challenge::Bearer { realm, service }), _) => {
                self.token(&realm, service.as_deref(), refusal.from_public).await
            }
            (Some(Challenge::Basic), Some(login)) => basic(login).ok_or_else(|| self.denied()),
            _ => Err(self.denied()),
        }
    }

    /// Gets a token that is good for pulling this repository and nothing else. The registry names who gives tokens out, and
    /// it alone is shown the login, as it would be to the registry itself.
    async fn token(&self, realm: &str, service: Option<&str>, from_public: bool) -> Result<HeaderValue, WhyUnknown> {
        let registry = self.image.registry();
        let scope = format!("repository:{}:pull", self.image.repository());
        let uri = token_uri(realm, service, &scope).ok_or_else(|| {
            let message = format!("the registry {registry} sends us for a token to where nobody can go");
            WhyUnknown::new(Reason::BadAnswer, message)
        })?;
        let authorization = self.login.map(|login| basic(login).ok_or_else(|| self.denied())).transpose()?;
        let question = Question {
            method: Method::GET,
            uri: uri.clone(),
            accept: None,
            authorization: authorization.as_ref(),
            named_in_public: from_public,
        };
        let answer = self.registries.open(question).await?.whole(LARGEST_TOKEN).await?;
        match answer.status {
            StatusCode::OK => bearer(&answer.body).ok_or_else(|| bad_answer(&uri, "gives out no token")),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.denied()),
            StatusCode::TOO_MANY_REQUESTS => Err(rate_limited(registry)),
            status => {
                Err(bad_answer(&uri, &format!("answers the request for a token with HTTP status {}", status.as_u16())))
            }
        }
    }

    fn denied(&self) -> WhyUnknown {
        let (registry, repository) = (self.image.registry(), self.image.repository());
        let message = if self.login.is_some() {
            format!("the registry {registry} does not let the pod's pull secret read {repository}")
        } else {
            format!("the registry {registry} does not let anybody read {repository} without a pull secret")
        };
        WhyUnknown::new(Reason::Denied, message)
    }
}

fn token_uri(realm: &str, service: Option<&str>, scope: &str) -> Option<Uri> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(service.map(|service| ("service", service))).append_pair("scope", scope);
    let separator = if realm.contains('?') { '&' } else { '?' };
    let uri: Uri = format!("{realm}{separator}{}", query.finish()).parse().ok()?;
    uri.authority().is_some().then_some(uri)
}

fn basic(login: &Login) -> Option<HeaderValue> {
    let pair = SecretString::from(format!("{}:{}", login.user, login.password.expose_secret()));
    sensitive(&format!("Basic {}", STANDARD.encode(pair.expose_secret())))
}

/// Reads the answer of a server that gives tokens out; the field has two names.
fn bearer(body: &[u8]) -> Option<HeaderValue> {
    #[derive(Deserialize)]
    struct Token {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Token = serde_json::from_slice(body).ok()?;
    let token = answer.token.or(answer.access_token)?;
    sensitive(&format!("Bearer {token}"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    // Debug does not print it.
    value.set_sensitive(true);
    Some(value)
}

/// Scheme, host and port: who a login is meant for.
fn origin(uri: &Uri) -> (Option<&str>, String, Option<u16>) {
    let default = match uri.scheme_str() {
        Some("https") => Some(443),
        Some("http") => Some(80),
        _ => None,
    };
    (uri.scheme_str(), host(uri).to_ascii_lowercase(), uri.port_u16().or(default))
}

fn host(uri: &Uri) -> &str {
    uri.host().unwrap_or_default()
}

/// Where a redirect leads (RFC 3986 section 5.2, as far as registries go).
fn join(from: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let absolute = if location.contains("://") && !location.starts_with('/') {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    absolute.parse().ok().filter(|uri: &Uri| uri.authority().is_some())
}

fn bad_answer(uri: &Uri, what: &str) -> WhyUnknown {
    WhyUnknown::new(Reason::BadAnswer, format!("{} {what}", host(uri)))
}

fn rate_limited(registry: &str) -> WhyUnknown {
    let message =
        format!("the registry {registry} has been asked too often (HTTP status 429); a pull secret raises its limit");
    WhyUnknown::new(Reason::RateLimited, message)
}

/// What kept us from an answer.
fn trouble(uri: &Uri, error: &(dyn Error + 'static)) -> WhyUnknown {
    let chain = || std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source());
    if let Some(forbidden) = chain().find_map(|error| error.downcast_ref::<Forbidden>()) {
        return WhyUnknown::new(Reason::NotAllowed, forbidden.to_string());
    }
    let cause = chain().last().map(ToString::to_string).unwrap_or_default();
    WhyUnknown::new(Reason::Unreachable, format!("{} cannot be asked: {cause}", host(uri)))
}

fn late(uri: &Uri, patience: Duration) -> WhyUnknown {
    WhyUnknown::new(Reason::TimedOut, format!("{} did not answer within {patience:?}", host(uri)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_where_it_says() {
        let from: Uri = "https://ghcr.io/v2/a/blobs/sha256:x?y".parse().unwrap();
        for (location, expected) in [
            ("https://cdn.example/x?y=z#f", Some("https://cdn.example/x?y=z")),
            ("http://cdn.example/x", Some("http://cdn.example/x")),
            ("//cdn.example/x", Some("https://cdn.example/x")),
            ("/other?to=https://cdn.example", Some("https://ghcr.io/other?to=https://cdn.example")),
            ("other", Some("https://ghcr.io/v2/a/blobs/other")),
            ("https://", None),
            ("", Some("https://ghcr.io/v2/a/blobs/")),
        ] {
            assert_eq!(join(&from, location).map(|uri| uri.to_string()).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn a_login_is_for_scheme_host_and_port() {
        let same = |one: &str, other: &str| origin(&one.parse().unwrap()) == origin(&other.parse().unwrap());
        assert!(same("https://ghcr.io/a", "https://GHCR.io:443/b"));
        for other in
            ["http://ghcr.io/", "https://ghcr.io:444/", "https://ghcr.io.evil.example/", "https://evil.example/"]
        {
            assert!(!same("https://ghcr.io/", other), "{other}");
        }
    }

    #[test]
    fn a_token_is_a_header_or_nothing() {
        assert_eq!(bearer(br#"{"token":"t","access_token":"u"}"#).unwrap(), "Bearer t");
        assert_eq!(bearer(br#"{"access_token":"u","expires_in":1}"#).unwrap(), "Bearer u");
        for wrong in [
            "",
            "{}",
            r#"{"token":1}"#,
            r#"{"token":"a
Host: b"}"#,
        ] {
            assert_eq!(bearer(wrong.as_bytes()), None, "{wrong}");
        }
        assert!(!format!("{:?}", bearer(br#"{"token":"hunter2"}"#)).contains("hunter2"));
    }
}
