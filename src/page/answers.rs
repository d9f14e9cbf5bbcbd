//! Answers to a browser, with the headers that keep it from doing anything but show them.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION,
    ORIGIN, REFERRER_POLICY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::{Response, StatusCode};

use super::live::Body;

/// Everything is from here, nothing is inline, nobody frames it, and forms go nowhere else.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; \
                      base-uri 'none'; frame-ancestors 'none'";

/// What every answer says.
const HEADERS: [(HeaderName, &str); 7] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (REFERRER_POLICY, "no-referrer"),
    (CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// What a browser fetches beside the page; the same for everybody.
const FILES: [(&str, &str, &str); 3] = [
    ("/page.css", "text/css; charset=utf-8", include_str!("files/page.css")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("files/page.js")),
    ("/page.svg", "image/svg+xml", include_str!("files/page.svg")),
];

/// Whether there is a file of that path.
pub(super) fn is_file(path: &str) -> bool {
    FILES.iter().any(|(name, ..)| *name == path)
}

/// The file of that path.
pub(super) fn file(path: &str) -> Option<Response<Body>> {
    let (_, kind, text) = FILES.into_iter().find(|(name, ..)| *name == path)?;
    Some(answer(StatusCode::OK, kind, Bytes::from_static(text.as_bytes())))
}

/// A page.
pub(super) fn html(status: StatusCode, html: String) -> Response<Body> {
    let mut response = answer(status, "text/html; charset=utf-8", html);
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tenancy-fixer\""));
    }
    response
}

/// A few words.
pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", text)
}

/// To the page, once something was done.
pub(super) fn back(header: Option<(HeaderName, HeaderValue)>) -> Response<Body> {
    let mut response = text(StatusCode::SEE_OTHER, "");
    // Relative: whatever stands between may have put a path before ours.
    response.headers_mut().insert(LOCATION, HeaderValue::from_static("./"));
    response.headers_mut().extend(header);
    response
}

/// Where another method is expected.
pub(super) fn not_this_method(methods: &'static str) -> Response<Body> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("send {methods}\n"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    response
}

/// A stream of events.
pub(super) fn events(body: Body) -> Response<Body> {
    let mut response = answer(StatusCode::OK, "text/event-stream", "");
    *response.body_mut() = body;
    response
}

/// Whether a form was sent by a page of our own. The cookie's `SameSite` leaves out other sites; to it, other ports of a host are the same
/// site. What is no browser says nothing of this, and has no cookie that somebody else could use.
pub(super) fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("unreadable"));
    if let Some(site) = text(&HeaderName::from_static("sec-fetch-site")) {
        return matches!(site, "same-origin" | "none");
    }
    let Some(origin) = text(&ORIGIN) else { return true };
    origin.split_once("://").is_some_and(|(_, host)| Some(host) == text(&HOST))
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from(Full::new(body.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.extend(HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_other_pages_are_not_taken() {
        let of = |headers: &[(&'static str, &'static str)]| {
            let pair = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
            is_from_here(&headers.iter().copied().map(pair).collect())
        };
        let host = ("host", "localhost:8080");
        assert!(of(&[host]) && of(&[host, ("origin", "http://localhost:8080")]));
        assert!(of(&[host, ("sec-fetch-site", "same-origin"), ("origin", "https://proxy.example")]));
        for other in ["http://localhost:3000", "https://evil.example", "null", "", "localhost:8080"] {
            assert!(!of(&[host, ("origin", other)]), "{other}");
        }
        assert!(!of(&[("origin", "http://localhost:8080")]));
        for site in ["same-site", "cross-site", ""] {
            assert!(!of(&[host, ("origin", "http://localhost:8080"), ("sec-fetch-site", site)]), "{site}");
        }
    }
}
