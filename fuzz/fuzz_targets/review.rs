//! Any bytes at any endpoint: a valid answer or a 4xx, never a panic; and what an answer makes of an object is not changed again.
//!
//! The first byte chooses the endpoint and the settings, the rest is the body.
#![no_main]

use std::sync::LazyLock;
use std::time::Instant;

use base64::Engine as _;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use libfuzzer_sys::{Corpus, fuzz_target};
use prometheus_client::registry::Registry;
use serde_json::Value;
use tenancy_fixer::admission::service::Decider;
use tenancy_fixer::admission::{self, About, Endpoint, Outcome, Reviews, Wanted};
use tenancy_fixer::cli::{Cli, Command};
use tenancy_fixer::mutate::{self, Settings, Surroundings};

static SETTINGS: LazyLock<Vec<Settings>> = LazyLock::new(|| {
    let flags: [&[&str]; 4] = [
        &["--launcher-image=image"],
        &["--identity=token", "--sidecar-lifecycle=shell"],
        &["--train-job-patches=pod-template-overrides", "--native-sidecars=false"],
        &["--owner-only=true", "--launcher-image=image"],
    ];
    let settings = |flags: &&[&str]| {
        let arguments = ["tenancy-fixer", "mutate", "-f", "-"].iter().chain(*flags).map(Into::into).collect();
        let Command::Mutate(mutate) = Cli::from_arguments(arguments).expect("the flags are right").command else {
            unreachable!("mutate was asked for")
        };
        mutate.mutation
    };
    flags.iter().map(settings).collect()
});

struct Alone(&'static Settings);

impl Decider for Alone {
    type Looked = ();
    type Case = ();

    fn decide(&self, endpoint: Endpoint, request: &admission::Request<'_>, (): &()) -> Outcome {
        mutate::decide(endpoint, request, &Surroundings::unknown(), self.0)
    }

    async fn look(&self, _: &str, _: Wanted, _: Instant) {}

    fn case(&self, _: Endpoint, _: &admission::Request<'_>) {}

    async fn judge(&self, (): (), _: &About<'_>, _: Instant) -> Outcome {
        Outcome::unchanged("nobody judges here")
    }
}

/// Status and body of the answer.
fn answer(endpoint: Endpoint, settings: &'static Settings, body: Vec<u8>) -> (u16, Value) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let request = Request::post(endpoint.path()).header("content-type", "application/json");
        let request = request.body(Full::new(Bytes::from(body))).expect("a request");
        let reviews = Reviews::new(&mut Registry::default());
        let (head, body) = reviews.answer(request, &Alone(settings)).await.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        (head.status.as_u16(), serde_json::from_slice(&body).expect("every answer is JSON"))
    })
}

/// The object with the answer's patch applied, by another implementation than ours.
fn patched(mut object: Value, answer: &Value) -> Option<Value> {
    let patch = base64::engine::general_purpose::STANDARD.decode(answer["response"]["patch"].as_str()?).expect("base64");
    let patch: json_patch::Patch = serde_json::from_slice(&patch).expect("a JSON Patch");
    json_patch::patch(&mut object, &patch).expect("the patch fits its object");
    Some(object)
}

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Some((choice, body)) = bytes.split_first() else { return Corpus::Reject };
    let endpoint = Endpoint::ALL[usize::from(choice & 15) % Endpoint::ALL.len()];
    let settings = &SETTINGS[usize::from(choice >> 4) % SETTINGS.len()];
    let (status, first) = answer(endpoint, settings, body.to_vec());
    if status != 200 {
        assert!((400..500).contains(&status), "{first}");
        assert!(first["message"].as_str().is_some_and(|message| !message.is_empty()), "{first}");
        return Corpus::Keep;
    }
    let mut review: Value = serde_json::from_slice(body).expect("an answered review is JSON");
    assert_eq!(first["response"]["uid"], review["request"]["uid"]);
    for warning in first["response"]["warnings"].as_array().into_iter().flatten() {
        assert!(warning.as_str().is_some_and(|warning| warning.len() < 256), "{first}");
    }
    let Some(after) = patched(review["request"]["object"].clone(), &first) else { return Corpus::Keep };
    // An UPDATE of what we have made of it is none.
    review["request"]["object"] = after;
    let (status, again) = answer(endpoint, settings, review.to_string().into_bytes());
    assert_eq!(status, 200, "{again}");
    assert!(again["response"].get("patch").is_none(), "a second review changes its own result: {review}");
    Corpus::Keep
});
