//! The page over HTTP: who may look, as a real API server says it, and what those see who may.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::server::{self, Certificate, Server, block_on};
use crate::support::{self, Cluster, wait_for};
use crate::wire;

/// Where the accounts of these tests are.
const NAMESPACE: &str = "kubeflow-extension";

/// A cluster with the rights of the overlay, and an account that may look.
pub struct Viewers<'c> {
    cluster: &'c Cluster,
    names: String,
    known: OnceLock<String>,
}

impl<'c> Viewers<'c> {
    pub fn of(cluster: &'c Cluster, test: &str) -> Self {
        cluster.apply_shipped_account();
        let roles = "k8s-resources/overlays/page/cluster-role.yaml";
        cluster.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", roles]);
        let names = format!("page-{test}-{}", std::process::id());
        let viewers = Self { cluster, names, known: OnceLock::new() };
        let account = viewers.account("may");
        let binding = viewers.name("binding");
        cluster.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": binding},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "tenancy-fixer-page-viewer"},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}],
        }));
        viewers
    }

    fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.names)
    }

    /// One more account, without any right.
    fn account(&self, name: &str) -> String {
        let name = self.name(name);
        let metadata = json!({"name": name, "namespace": NAMESPACE});
        self.cluster.apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}));
        name
    }

    fn token_for(&self, account: &str, audience: &[&str]) -> String {
        let create = ["create", "token", account, "-n", NAMESPACE, "--duration", "1h"];
        self.cluster.kubectl(&[&create, audience].concat()).trim().to_owned()
    }

    /// A token of the account that may look.
    pub fn token(&self) -> String {
        self.token_for(&self.name("may"), &["--audience", "tenancy-fixer"])
    }

    /// What whoever may look sees of a server.
    pub fn look(&self, server: &Server, path: &str) -> String {
        let token = self.known.get_or_init(|| self.token());
        let answer = look(server, path, token);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// The same token as of long ago, signed by the cluster's own key.
    fn expired(&self) -> String {
        let file = self.cluster.kubeconfig().with_file_name("pki").join("service-accounts.key");
        let key = PrivatePkcs8KeyDer::from_pem_file(&file).unwrap();
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8_der(), &random).unwrap();
        let token = self.token();
        let (head, rest) = token.split_once('.').unwrap();
        let claims = URL_SAFE_NO_PAD.decode(rest.split('.').next().unwrap()).unwrap();
        let mut claims: Value = serde_json::from_slice(&claims).unwrap();
        for claim in ["exp", "iat", "nbf"] {
            claims[claim] = json!(claims[claim].as_u64().unwrap() - 86_400);
        }
        let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = key.sign(&random, signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// Admission under the shipped account, with the page.
    fn serve(&self, flags: &[&str]) -> Server {
        let folder = support::folder(&self.names);
        let kubeconfig = self.cluster.kubeconfig_of_shipped_account(&folder);
        let flags = [&["--page", "true"], flags].concat();
        let environment = [("KUBECONFIG", kubeconfig.as_path())];
        Server::start_with(&Certificate::make(&folder), &["--only", "admission"], &flags, &environment)
    }
}

impl Drop for Viewers<'_> {
    fn drop(&mut self) {
        self.cluster.try_kubectl(&["delete", "clusterrolebinding", &self.name("binding"), "--wait=false"]);
        for account in ["may", "may-not"] {
            let account = self.name(account);
            self.cluster.try_kubectl(&["delete", "serviceaccount", "-n", NAMESPACE, &account, "--wait=false"]);
        }
    }
}

/// What came back.
struct Answered {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

async fn send(server: &Server, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response<Incoming> {
    let stream = TcpStream::connect(server.operations).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", server.operations.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    sender.send_request(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await.unwrap()
}

fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answered {
    block_on(async {
        let response = send(server, method, path, headers, body).await;
        let status = response.status().as_u16();
        let headers = response.headers().iter();
        let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Answered { status, headers, body: String::from_utf8(body.to_vec()).unwrap() }
    })
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// The page, with a token.
fn look(server: &Server, path: &str, token: &str) -> Answered {
    ask(server, "GET", path, &[("authorization", &bearer(token))], "")
}

fn form(token: &str) -> String {
    form_urlencoded::Serializer::new(String::new()).append_pair("token", token).finish()
}

fn review_of(name: &str) -> Value {
    wire::review(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}}))
}

#[test]
fn the_page_is_off_unless_it_is_switched_on() {
    let server = Server::start(&Certificate::make(&support::folder("page-off")), &[]);
    for path in ["/", "/events", "/page.css", "/page.js", "/sign-in"] {
        let (status, body) = server::get(&server, path);
        assert_eq!((status, &*body), (404, "here are /livez, /readyz and /metrics\n"), "{path}");
    }
    assert_eq!(ask(&server, "POST", "/sign-in", &[], &form("token")).status, 405);
}

#[test]
fn kubernetes_says_who_may_look() {
    let cluster = Cluster::shared();
    let viewers = Viewers::of(&cluster, "who");
    let server = viewers.serve(&[]);
    let other = viewers.account("may-not");
    let (token, wrong) = (viewers.token(), viewers.token_for(&other, &["--audience", "tenancy-fixer"]));

    let nobody = ask(&server, "GET", "/", &[], "");
    assert_eq!((nobody.status, &*nobody.headers["www-authenticate"]), (401, "Bearer realm=\"tenancy-fixer\""));
    assert!(nobody.body.contains("type=\"password\"") && !nobody.body.contains("Reviews"), "{}", nobody.body);
    for path in ["/", "/?q=alice", "/events"] {
        assert_eq!(ask(&server, "GET", path, &[], "").status, 401, "{path}");
        assert_eq!(look(&server, path, &wrong).status, 403, "{path}");
    }
    assert!(look(&server, "/", &wrong).body.contains(&format!("system:serviceaccount:{NAMESPACE}:{other}")));
    let page = look(&server, "/", &token);
    assert_eq!(page.status, 200, "{}", page.body);
    assert!(page.body.contains("No reviews yet") && page.body.contains(&viewers.name("may")), "{}", page.body);

    // A token that is good for the API server alone is not good here, and the other way round.
    let servers_own = look(&server, "/", &viewers.token_for(&viewers.name("may"), &[]));
    assert_eq!(servers_own.status, 401);
    // Not its last character, of which a few bits are nobody's.
    let (text, signature) = token.rsplit_once('.').unwrap();
    let bent: String = signature.chars().rev().collect();
    for (what, token) in [
        ("nonsense", "nonsense".to_owned()),
        ("another signature", format!("{text}.{bent}")),
        ("a long one", "x".repeat(9000)),
        ("nothing", String::new()),
    ] {
        assert_eq!(look(&server, "/", &token).status, 401, "{what}");
    }
    for header in ["Basic YTpi", "Bearer", &*token] {
        assert_eq!(ask(&server, "GET", "/", &[("authorization", header)], "").status, 401, "{header}");
    }
    // Never by the address line, where it would be kept.
    assert_eq!(ask(&server, "GET", &format!("/?token={token}"), &[], "").status, 401);

    // What is taken away is taken away.
    let delete = ["delete", "clusterrolebinding", &*viewers.name("binding")];
    cluster.kubectl(&delete);
    wait_for("the end of the right", || look(&server, "/", &token).status == 403);
    cluster.kubectl(&["delete", "serviceaccount", "-n", NAMESPACE, &viewers.name("may")]);
    wait_for("the end of the account", || look(&server, "/", &token).status == 401);
    let secrets = [&*token, &*wrong];
    assert!(server.lines().iter().all(|line| secrets.iter().all(|secret| !line.to_string().contains(*secret))));
}

#[test]
fn a_token_of_yesterday_opens_nothing() {
    let shared = Cluster::shared();
    let has_key = shared.kubeconfig().with_file_name("pki").join("service-accounts.key").exists();
    // Nobody else's cluster gives away its key.
    let cluster = if has_key { shared } else { Cluster::own("page-expired") };
    let viewers = Viewers::of(&cluster, "expired");
    let server = viewers.serve(&[]);
    let answer = look(&server, "/", &viewers.expired());
    assert_eq!(answer.status, 401);
    assert!(answer.body.contains("token has expired"), "{}", answer.body);
    assert_eq!(look(&server, "/", &viewers.token()).status, 200);
}

#[test]
fn whoever_signs_in_gets_a_cookie_that_says_nothing() {
    let cluster = Cluster::shared();
    let viewers = Viewers::of(&cluster, "session");
    let server = viewers.serve(&[]);
    let token = viewers.token();
    let wrong = viewers.token_for(&viewers.account("may-not"), &["--audience", "tenancy-fixer"]);
    let sign_in = |headers: &[(&str, &str)], token: &str| ask(&server, "POST", "/sign-in", headers, &form(token));

    for (token, status) in [(&*wrong, 403), ("nonsense", 401), ("", 400)] {
        let refused = sign_in(&[], token);
        assert_eq!((refused.status, refused.headers.get("set-cookie")), (status, None));
        assert!(refused.body.contains("role=\"alert\""));
        assert!(token.is_empty() || !refused.body.contains(token), "nothing is given back");
    }
    assert_eq!(sign_in(&[], &"x".repeat(20_000)).status, 400);
    let origin = format!("http://{}", server.operations);
    for headers in [[("origin", "http://localhost:3000")], [("origin", "null")], [("sec-fetch-site", "same-site")]] {
        assert_eq!(sign_in(&headers, &token).status, 403, "{headers:?}");
    }
    let welcome = sign_in(&[("origin", &origin), ("sec-fetch-site", "same-origin")], &token);
    assert_eq!((welcome.status, &*welcome.headers["location"]), (303, "./"), "{}", welcome.body);
    let cookie = &welcome.headers["set-cookie"];
    for attribute in ["; HttpOnly", "; SameSite=Strict", "; Path=/"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    let name = cookie.split(';').next().unwrap();
    assert!(name.len() < 80 && !token.contains(name.split('=').nth(1).unwrap()), "{cookie}");
    let page = ask(&server, "GET", "/", &[("cookie", name)], "");
    assert_eq!(page.status, 200);
    assert!(page.body.contains("Sign out") && !page.body.contains(&token));
    assert!(!look(&server, "/", &token).body.contains("Sign out"), "whoever brings a header has no session");
    // A header that is wrong is not made good by a cookie.
    assert_eq!(ask(&server, "GET", "/", &[("cookie", name), ("authorization", "Bearer x")], "").status, 401);

    assert_eq!(ask(&server, "GET", "/sign-out", &[("cookie", name)], "").status, 303);
    assert_eq!(ask(&server, "POST", "/sign-out", &[("cookie", name), ("sec-fetch-site", "same-site")], "").status, 403);
    assert_eq!(ask(&server, "GET", "/", &[("cookie", name)], "").status, 200, "nobody else signs me out");
    let farewell = ask(&server, "POST", "/sign-out", &[("cookie", name)], "");
    assert!(farewell.status == 303 && farewell.headers["set-cookie"].contains("Max-Age=0"));
    assert_eq!(ask(&server, "GET", "/", &[("cookie", name)], "").status, 401);

    let line = server.wait_for_line("the log", |line| line["message"] == "signed in to the page");
    assert!(line["user"].as_str().unwrap().ends_with(&viewers.name("may")));
    let log = server.lines();
    let secrets = [&token, &wrong, &name.split('=').nth(1).unwrap().to_owned()];
    assert!(log.iter().all(|line| secrets.iter().all(|secret| !line.to_string().contains(*secret))));
}

/// Everybody who reaches the port can have us ask, in our name.
#[test]
fn who_guesses_asks_the_api_server_a_few_times_and_keeps_nobody_out() {
    let cluster = Cluster::shared();
    let viewers = Viewers::of(&cluster, "guesses");
    let server = viewers.serve(&[]);
    let token = viewers.token();
    assert_eq!(look(&server, "/", &token).status, 200);
    let began = Instant::now();
    let answers: Vec<u16> = (0..200).map(|number| look(&server, "/", &format!("guess-{number}")).status).collect();
    let asked = answers.iter().filter(|status| **status == 401).count();
    let most = 20 + usize::try_from(began.elapsed().as_millis() / 500).unwrap() + 1;
    assert!(asked <= most && answers.contains(&429), "{asked} of at most {most}");
    // Whoever was in stays in, also when the API server has to be asked again; and nobody keeps the probes from an answer.
    wait_for("another question", || {
        assert_eq!(look(&server, "/", &token).status, 200);
        look(&server, "/", &format!("guess-{}", began.elapsed().as_nanos())).status == 429
            && began.elapsed() > Duration::from_secs(11)
    });
    assert_eq!(server::get(&server, "/livez").0, 200);
}

#[test]
fn every_answer_keeps_a_browser_from_doing_more_than_showing_it() {
    let cluster = Cluster::shared();
    let viewers = Viewers::of(&cluster, "headers");
    let server = viewers.serve(&[]);
    let token = viewers.token();
    for (path, token, kind) in [
        ("/", &*token, "text/html; charset=utf-8"),
        ("/", "", "text/html; charset=utf-8"),
        ("/page.css", "", "text/css; charset=utf-8"),
        ("/page.js", "", "text/javascript; charset=utf-8"),
        ("/page.svg", "", "image/svg+xml"),
    ] {
        let answer = look(&server, path, token);
        let policy = &answer.headers["content-security-policy"];
        for part in ["default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("data:") && !policy.contains('*'), "{policy}");
        for (header, value) in [
            ("content-type", kind),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(answer.headers[header], value, "{path}");
        }
        assert!(
            !answer.body.contains(" style=") && !answer.body.contains("<style") && !answer.body.contains(" onclick")
        );
    }
    for (method, path) in [("POST", "/"), ("PUT", "/sign-in"), ("DELETE", "/"), ("POST", "/events")] {
        let answer = ask(&server, method, path, &[("authorization", &bearer(&token))], "");
        assert_eq!(answer.status, 405, "{method} {path}");
        assert!(answer.headers.contains_key("allow"));
    }
    // What was there before is still there.
    assert_eq!(server::get(&server, "/metrics").0, 200);
    wait_for("readiness", || server::get(&server, "/readyz").0 == 200);
}

#[test]
fn names_that_somebody_chose_are_text_and_nothing_else() {
    let cluster = Cluster::shared();
    let viewers = Viewers::of(&cluster, "names");
    let server = viewers.serve(&[]);
    let token = viewers.token();
    let hostile = [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "' autofocus onfocus='alert(1)",
        "</section></main><h1>owned</h1>",
        "{{ 7 * 7 }}{% raw %}",
        "&lt;b&gt;x&#x3c;",
        "javascript:alert(1)",
        "\u{202e}gnp.exe\u{2028}",
        "a\nevent: part\ndata: {}\n\n",
    ];
    for text in hostile {
        let mut review = review_of(text);
        for field in ["namespace", "operation", "uid"] {
            review["request"][field] = json!(text);
        }
        review["request"]["kind"]["kind"] = json!(text);
        review["request"]["userInfo"]["username"] = json!(text);
        assert_eq!(server::post(&server, "/pod/mutate", review.to_string()).status(), 200);
    }
    let events = first_events(&server, "/events", &token, hostile.len() * 50);
    let of_events = events.iter().map(|event| event["html"].as_str().unwrap()).collect();
    let mut texts = vec![look(&server, "/", &token).body, of_events];
    for text in hostile {
        let query = form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let found = look(&server, &format!("/?q={query}&state={query}&tenants={query}"), &token);
        assert_eq!(found.status, 200, "{text}");
        texts.push(found.body);
    }
    for html in &texts {
        for raw in ["<script>alert", "<img", "<h1>owned", "onfocus='alert", "href=\"javascript", "<b>x"] {
            assert!(!html.contains(raw), "{raw:?} in {html}");
        }
    }
    assert!(texts[0].contains("&lt;script&gt;alert(1)&lt;&#x2f;script&gt;"), "{}", texts[0]);
    assert!(texts[0].contains("{{ 7 * 7 }}") && texts[0].contains("&amp;lt;b&amp;gt;x"), "{}", texts[0]);
}

/// Events of a stream, as far as they come before so many bytes of HTML have.
fn first_events(server: &Server, path: &str, token: &str, bytes: usize) -> Vec<Value> {
    block_on(async {
        let mut stream = Stream::open(server, path, token).await;
        let mut events = Vec::new();
        while events.iter().map(|event: &Value| event["html"].as_str().unwrap().len()).sum::<usize>() < bytes {
            events.push(stream.next().await.expect("there is more"));
        }
        events
    })
}

/// Server-sent events as a browser reads them.
struct Stream {
    body: Incoming,
    text: String,
}

impl Stream {
    async fn open(server: &Server, path: &str, token: &str) -> Self {
        let response = send(server, "GET", path, &[("authorization", &bearer(token))], "").await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body(), text: String::new() }
    }

    /// The next event's data; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let data = event.lines().find_map(|line| line.strip_prefix("data: ")).map(str::to_owned);
                let rest = rest.to_owned();
                self.text = rest;
                if let Some(data) = data {
                    return Some(serde_json::from_str(&data).unwrap());
                }
            }
            let frame =
                tokio::time::timeout(Duration::from_secs(20), self.body.frame()).await.expect("something comes");
            self.text.push_str(std::str::from_utf8(&frame?.unwrap().into_data().unwrap()).unwrap());
        }
    }
}

#[test]
fn a_review_shows_up_by_itself_and_streams_end_with_the_server() {
    let cluster = Cluster::shared();
    let viewers = Viewers::of(&cluster, "events");
    let mut server = viewers.serve(&[]);
    let token = viewers.token();
    block_on(async {
        let mut stream = Stream::open(&server, "/events?q=live-", &token).await;
        let mut seen = Vec::new();
        while seen.len() < 5 {
            seen.push(stream.next().await.unwrap()["id"].as_str().unwrap().to_owned());
        }
        assert_eq!(
            seen,
            ["overview", "reviews", "verdicts", "tenants", "models"],
            "first all, as they stand on the page"
        );
        for number in 0..3 {
            let name = format!("live-{number}");
            let target = server.target();
            let review = review_of(&name).to_string();
            std::thread::spawn(move || target.post("/pod/mutate", review)).join().unwrap();
            let began = Instant::now();
            loop {
                let event = stream.next().await.unwrap();
                assert!(
                    event["id"] == "overview" || event["id"] == "reviews",
                    "what is as before is not sent: {event}"
                );
                if event["html"].as_str().unwrap().contains(&name) {
                    eprintln!("a review is seen after {:.0?}", began.elapsed());
                    break;
                }
            }
        }
        server.terminate();
        while stream.next().await.is_some() {}
    });
    assert_eq!(server.wait(), 0);
}

#[test]
fn those_who_look_take_no_connection_that_a_probe_needs() {
    let cluster = Cluster::shared();
    let viewers = Viewers::of(&cluster, "streams");
    let server = viewers.serve(&[]);
    let token = viewers.token();
    block_on(async {
        let mut streams = Vec::new();
        for _ in 0..8 {
            streams.push(Stream::open(&server, "/events", &token).await);
        }
        let headers = [("authorization", &*bearer(&token))];
        assert_eq!(send(&server, "GET", "/events", &headers, "").await.status(), 503);
        assert_eq!(send(&server, "GET", "/", &headers, "").await.status(), 200, "the page itself needs no stream");
        assert_eq!(send(&server, "GET", "/livez", &[], "").await.status(), 200);
        drop(streams.pop());
        let began = Instant::now();
        while send(&server, "GET", "/events", &headers, "").await.status() != 200 {
            assert!(began.elapsed() < Duration::from_secs(20), "whoever goes makes room");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn only_the_last_reviews_are_kept_and_little_of_each() {
    let cluster = Cluster::shared();
    let viewers = Viewers::of(&cluster, "kept");
    let server = viewers.serve(&["--page-reviews", "30"]);
    let token = viewers.token();
    for number in 0..100 {
        let mut review = review_of(&format!("pod-{number:03}-"));
        review["request"]["object"]["spec"] = json!({"secret": "inside-the-object"});
        server::post(&server, "/pod/mutate", review.to_string());
    }
    let page = look(&server, "/", &token).body;
    assert!(page.contains("30 in memory") && page.contains("1 to 15 of 30"), "{page}");
    assert!(page.contains("pod-099-") && page.contains("pod-085-") && !page.contains("pod-084-"), "the newest first");
    let second = look(&server, "/?reviews=15", &token).body;
    assert!(second.contains("16 to 30 of 30") && second.contains("pod-070-") && !second.contains("pod-069-"));
    assert!(look(&server, "/?q=POD-080", &token).body.contains("1 of 30 in memory"));
    assert!(!page.contains("inside-the-object"));
    let denied = look(&server, "/?decision=denied", &token).body;
    assert!(denied.contains("None of the last reviews is as asked for"));
}
