//! The wire: what a review is answered with, bytes in and bytes out, without a socket.

use std::time::Instant;

use base64::Engine as _;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Bytes, Frame};
use hyper::{Request, Response, StatusCode};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tenancy_fixer::admission::service::Decider;
use tenancy_fixer::admission::{self, About, Configuration, Endpoint, Outcome, Reviews, Wanted};
use tenancy_fixer::mutate::{self, Settings, Surroundings};

use crate::support;

/// Decides by what is known beforehand, with nobody around to be asked.
pub struct Alone<'s>(pub &'s Settings, pub &'s Surroundings<'s>);

impl Decider for Alone<'_> {
    type Looked = ();
    type Case = ();

    fn decide(&self, endpoint: Endpoint, request: &admission::Request<'_>, (): &()) -> Outcome {
        mutate::decide(endpoint, request, self.1, self.0)
    }

    async fn look(&self, _: &str, _: Wanted, _: Instant) {}

    fn case(&self, _: Endpoint, _: &admission::Request<'_>) {}

    async fn judge(&self, (): (), _: &About<'_>, _: Instant) -> Outcome {
        Outcome::unchanged("nobody judges here")
    }
}

/// What came of a review.
pub struct Answered {
    pub operations: Vec<Value>,
    pub object: Value,
    pub warnings: Vec<String>,
}

/// A review as the API server sends it, of an object's creation.
pub fn review(object: &Value) -> Value {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (group, version) = text("/apiVersion").rsplit_once('/').unwrap_or(("", text("/apiVersion")));
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": group, "version": version, "kind": text("/kind")},
            "resource": {"group": group, "version": version, "resource": format!("{}s", text("/kind").to_lowercase())},
            "name": text("/metadata/name"),
            "namespace": "alice",
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kubeflow:katib-controller", "groups": ["system:authenticated"]},
            "object": object,
            "oldObject": null,
            "dryRun": false,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
        },
    })
}

/// Sends a review and applies the patch that comes back, by another implementation than ours.
pub fn answered(endpoint: Endpoint, review: &Value, settings: &Settings) -> Answered {
    answered_in(endpoint, review, &Surroundings::unknown(), settings)
}

/// The same in a namespace of which something is known.
pub fn answered_in(
    endpoint: Endpoint,
    review: &Value,
    surroundings: &Surroundings<'_>,
    settings: &Settings,
) -> Answered {
    let (status, body) = post_in(endpoint.path(), Full::from(review.to_string()), surroundings, settings);
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(body["kind"], "AdmissionReview");
    let response = &body["response"];
    assert_eq!(response["uid"], review["request"]["uid"]);
    assert_eq!(response["allowed"], true);
    let operations: Vec<Value> = response["patch"].as_str().map_or(Vec::new(), |patch| {
        assert_eq!(response["patchType"], "JSONPatch");
        let patch = base64::engine::general_purpose::STANDARD.decode(patch).unwrap();
        serde_json::from_slice(&patch).unwrap()
    });
    assert_eq!(response.get("patch").is_some(), !operations.is_empty(), "a patch comes with operations or not at all");
    assert_eq!(response.get("patchType").is_some(), !operations.is_empty());
    let mut object = review["request"]["object"].clone();
    json_patch::patch(&mut object, &serde_json::from_value::<json_patch::Patch>(json!(operations)).unwrap()).unwrap();
    let warnings = response["warnings"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|warning| warning.as_str().unwrap().to_owned())
        .collect();
    Answered { operations, object, warnings }
}

fn post<B>(path: &str, body: B, settings: &Settings) -> (StatusCode, Value)
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
{
    post_in(path, body, &Surroundings::unknown(), settings)
}

/// The status and the body of what a request is answered with.
pub fn post_in<B>(path: &str, body: B, surroundings: &Surroundings<'_>, settings: &Settings) -> (StatusCode, Value)
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
{
    let request = Request::post(path).header("content-type", "application/json").body(body).unwrap();
    let response = send_in(request, surroundings, settings);
    (response.status(), serde_json::from_slice(response.body()).unwrap())
}

/// The answer with its body read.
fn send<B>(request: Request<B>, settings: &Settings) -> Response<Bytes>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
{
    send_in(request, &Surroundings::unknown(), settings)
}

fn send_in<B>(request: Request<B>, surroundings: &Surroundings<'_>, settings: &Settings) -> Response<Bytes>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let reviews = Reviews::new(&mut Registry::default());
        let response = reviews.answer(request, &Alone(settings, surroundings)).await;
        let (head, body) = response.into_parts();
        Response::from_parts(head, body.collect().await.unwrap().to_bytes())
    })
}

fn defaults() -> Settings {
    support::settings(&[] as &[&str])
}

fn notebook() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "analysis-0", "labels": {"notebook-name": "analysis"}},
        "spec": {"containers": [{"name": "analysis", "image": "jupyter-scipy:v1.11.0"}]},
    })
}

/// Sends bytes to the pod endpoint; they have to be refused with 400 and a text that says what is wrong.
fn refused(body: impl Into<Bytes>) -> String {
    let (status, answer) = post("/pod/mutate", Full::new(body.into()), &defaults());
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    assert_eq!((&answer["kind"], &answer["code"]), (&json!("Status"), &json!(400)));
    answer["message"].as_str().unwrap().to_owned()
}

#[test]
fn what_is_no_review_is_refused_with_the_reason() {
    let without = |pointer: &str, name: &str| {
        let mut review = review(&notebook());
        review.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(name);
        review.to_string()
    };
    let with = |pointer: &str, value: Value| {
        let mut review = review(&notebook());
        *review.pointer_mut(pointer).unwrap() = value;
        review.to_string()
    };
    for (body, expected) in [
        (String::new(), "the body is empty"),
        ("not JSON".to_owned(), "cannot be read as JSON"),
        ("{\"apiVersion\": \"admission.k8s.io/v1\", \"kind\": ".to_owned(), "cannot be read as JSON"),
        ("[]".to_owned(), "expected an AdmissionReview, found a list"),
        (without("", "request"), "no request"),
        (without("/request", "uid"), "without uid"),
        (with("/request/uid", json!("")), "without uid"),
        (with("/request/uid", json!(5)), "request.uid: expected a string, found a number"),
        (with("/request/namespace", json!({})), "request.namespace: expected a string, found an object"),
        (with("/request/kind", json!("Pod")), "request.kind: expected an object, found a string"),
        (with("/request", json!("x")), "request: expected an object, found a string"),
        (
            with("/apiVersion", json!("admission.k8s.io/v9")),
            "found kind \"AdmissionReview\" of apiVersion \"admission.k8s.io/v9\"",
        ),
        (with("/apiVersion", json!("admission.k8s.io/v1beta1")), "admission.k8s.io/v1beta1"),
        (with("/kind", json!("Review")), "found kind \"Review\""),
        (without("", "kind"), "found kind \"\""),
    ] {
        let message = refused(body.clone());
        assert!(message.contains(expected), "{body:.200}: {message}");
    }
    assert!(refused(&b"{\"a\": \"\xff\"}"[..]).contains("cannot be read as JSON"));
}

#[test]
fn deep_nesting_is_refused_wherever_it_is() {
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let maps = format!("{}1{}", r#"{"a":"#.repeat(20_000), "}".repeat(20_000));
    let inside = review(&notebook()).to_string().replace("\"jupyter-scipy:v1.11.0\"", &deep);
    for body in [deep, maps, inside] {
        assert!(refused(body).contains("recursion limit"));
    }
}

#[test]
fn wrong_methods_paths_and_types_have_their_own_codes() {
    let request = |method: &str, path: &str, content_type: Option<&str>| {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        send(request.body(Full::from(review(&notebook()).to_string())).unwrap(), &defaults())
    };
    let json = Some("application/json");
    for method in ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"] {
        let response = request(method, "/pod/mutate", json);
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
        assert_eq!(response.headers()["allow"], "POST");
    }
    for path in ["/", "/pod", "/pod/mutate/", "/Pod/mutate", "/nothing"] {
        let response = request("POST", path, json);
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}");
        assert!(String::from_utf8_lossy(response.body()).contains("/pod/mutate, /job/mutate"), "it says what there is");
    }
    for content_type in [None, Some("text/plain"), Some("application/yaml"), Some("application/jsonx"), Some("")] {
        assert_eq!(
            request("POST", "/pod/mutate", content_type).status(),
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "{content_type:?}"
        );
    }
    for content_type in ["application/json; charset=utf-8", "Application/JSON", "application/json ;charset=utf-8"] {
        assert_eq!(request("POST", "/pod/mutate", Some(content_type)).status(), StatusCode::OK, "{content_type}");
    }
    assert_eq!(request("POST", "/pod/mutate?timeout=3s", json).status(), StatusCode::OK);
}

const LIMIT: usize = 7 * 1024 * 1024;

/// A valid review of exactly this size.
fn review_of(size: usize) -> String {
    let mut object = notebook();
    object["metadata"]["annotations"] = json!({"filler": ""});
    let length = review(&object).to_string().len();
    object["metadata"]["annotations"]["filler"] = json!("x".repeat(size - length));
    review(&object).to_string()
}

#[test]
fn bodies_up_to_the_limit_are_read() {
    let (status, answer) = post("/pod/mutate", Full::from(review_of(LIMIT)), &defaults());
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert!(answer["response"]["patch"].is_string());
}

#[test]
fn larger_bodies_are_refused_without_reading_on() {
    let declared = Request::post("/pod/mutate")
        .header("content-type", "application/json")
        .header("content-length", (LIMIT + 1).to_string())
        .body(unreadable())
        .unwrap();
    let response = send(declared, &defaults());
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(response.headers()["connection"], "close");

    // 100 MiB in frames of 1 MiB; the eighth one is the last that anybody may ask for.
    let mut frames = 0;
    let frame = Bytes::from(vec![b' '; 1024 * 1024]);
    let body = StreamBody::new(stream_of(|| {
        frames += 1;
        assert!(frames <= 8, "it reads on");
        (frames <= 100).then(|| Ok::<_, std::io::Error>(Frame::data(frame.clone())))
    }));
    let (status, answer) = post("/pod/mutate", body, &defaults());
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{answer}");
}

/// A body that nobody may ask for anything.
fn unreadable() -> impl Body<Data = Bytes, Error = std::io::Error> {
    StreamBody::new(stream_of(|| -> Option<Result<Frame<Bytes>, std::io::Error>> { panic!("it reads") }))
}

/// A stream of what a function gives.
fn stream_of<T>(next: impl FnMut() -> Option<T> + Unpin) -> impl futures_core::Stream<Item = T> + Unpin {
    struct Stream<F>(F);

    impl<T, F: FnMut() -> Option<T> + Unpin> futures_core::Stream for Stream<F> {
        type Item = T;

        fn poll_next(mut self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Option<T>> {
            std::task::Poll::Ready((self.0)())
        }
    }

    Stream(next)
}

#[test]
fn a_body_that_breaks_off_is_refused() {
    let mut sent = false;
    let body = StreamBody::new(stream_of(move || {
        let first = !std::mem::replace(&mut sent, true);
        Some(if first { Ok(Frame::data(Bytes::from_static(b"{"))) } else { Err(std::io::Error::other("gone")) })
    }));
    let (status, answer) = post("/pod/mutate", body, &defaults());
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer["message"].as_str().unwrap().contains("could not be read"));
}

#[test]
fn only_creations_are_changed_and_a_dry_run_is_one() {
    // An update matters where only the owner acts as the owner; this namespace is not such a one.
    for operation in ["UPDATE", "DELETE", "CONNECT", "", "SOMETHING"] {
        let mut review = review(&notebook());
        review["request"]["operation"] = json!(operation);
        let answered = answered(Endpoint::PodMutate, &review, &defaults());
        assert_eq!((answered.operations.len(), answered.warnings.len()), (0, 0), "{operation}");
    }
    let mut deletion = review(&notebook());
    deletion["request"]["operation"] = json!("DELETE");
    deletion["request"]["object"] = Value::Null;
    deletion["request"]["oldObject"] = notebook();
    assert!(answered(Endpoint::PodMutate, &deletion, &defaults()).operations.is_empty());

    let mut connection = review(&notebook());
    connection["request"]["operation"] = json!("CONNECT");
    connection["request"]["object"] =
        json!({"kind": "PodExecOptions", "apiVersion": "v1", "command": ["sh"], "container": "main"});
    assert!(answered(Endpoint::PodMutate, &connection, &defaults()).operations.is_empty());

    let mut dry_run = review(&notebook());
    dry_run["request"]["dryRun"] = json!(true);
    let expected = answered(Endpoint::PodMutate, &review(&notebook()), &defaults()).operations;
    assert_eq!(answered(Endpoint::PodMutate, &dry_run, &defaults()).operations, expected);
    assert_eq!(expected[0], json!({"op": "add", "path": "/metadata/labels/kubeflow-extension", "value": "true"}));
    let note = json!({"kubeflow-extension/applied": "0.1.0: label"});
    assert_eq!(expected[1..], [json!({"op": "add", "path": "/metadata/annotations", "value": note})]);
}

#[test]
fn a_kind_that_the_endpoint_is_not_for_is_told() {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"labels": {"notebook-name": "a"}}});
    for endpoint in Endpoint::of(Configuration::Mutating) {
        let answered = answered(endpoint, &review(&service), &defaults());
        assert!(answered.operations.is_empty());
        let expected = format!(
            "tenancy-fixer: {} is not for kind \"Service\" of group \"\"; check the webhook's rules",
            endpoint.path()
        );
        assert_eq!(answered.warnings, [expected]);
    }
    let mut nothing = review(&notebook());
    nothing["request"]["object"] = Value::Null;
    assert_eq!(
        answered(Endpoint::PodMutate, &nothing, &defaults()).warnings,
        ["tenancy-fixer: request.object is missing"]
    );
}

#[test]
fn duplicate_members_count_as_the_api_server_counts_them() {
    let review = review(&notebook()).to_string().replace(
        "\"notebook-name\":\"analysis\"",
        "\"notebook-name\":\"analysis\",\"kubeflow-extension\":\"true\",\"kubeflow-extension\":\"false\"",
    );
    let (status, answer) = post("/pod/mutate", Full::from(review), &defaults());
    assert_eq!(status, StatusCode::OK);
    assert!(answer["response"].get("patch").is_none(), "the last one opts out");
}
