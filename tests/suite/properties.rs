//! What holds for every object, not only for those that somebody thought of.

use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode};
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};
use tenancy_fixer::admission::{Configuration, Endpoint, Reviews};
use tenancy_fixer::cluster::steps::Step;
use tenancy_fixer::mutate::{Settings, Surroundings};
use tenancy_fixer::yaml;

use crate::wire::Answered;
use crate::{fixtures, support, wire};

/// Words that mean something to us, so that random objects are not all none of our business.
const WORDS: &[&str] = &[
    "metadata",
    "labels",
    "annotations",
    "spec",
    "template",
    "containers",
    "env",
    "volumes",
    "volumeMounts",
    "name",
    "args",
    "command",
    "runSpec",
    "kind",
    "apiVersion",
    "serviceAccount",
    "serviceAccountName",
    "ownerReferences",
    "projected",
    "sources",
    "runtimePatches",
    "podTemplateOverrides",
    "targetJobs",
    "manager",
    "replicatedJobs",
    "trainingRuntimeSpec",
    "node",
    "kubeflow-extension",
    "kubeflow-extension/applied",
    "notebook-name",
    "sidecar.istio.io/inject",
    "proxy.istio.io/config",
    "true",
    "false",
    "default",
    "volume-kf-pipeline-token",
    "KF_PIPELINES_SA_TOKEN_PATH",
    "/var/run/secrets/kubeflow/pipelines",
    "kubeflow-extension/tenancy-fixer",
    "Trial",
    "kubeflow.org/v1beta1",
    "TrainJob",
    "trainer.kubeflow.org/v1alpha1",
    "~/a",
    "",
    "initContainers",
    "istio-proxy",
    "restartPolicy",
    "Never",
    "tenancy-fixer-launcher",
    "/kubeflow-extension/launcher",
    "/kubeflow-extension/launcher/launcher",
    "--",
    "LAUNCHER_CONTAINERS",
    "KATIB_TRIAL_NAME",
    "metrics-collector",
    "futureField",
    "\u{0}\u{1f}\"\\",
    "ä€😀",
];

/// The only places that an operation of ours may be at, by what stands behind the pod or template; 0 for any number.
const OURS: &[&str] = &[
    "/metadata",
    "/metadata/labels",
    "/metadata/annotations",
    "/metadata/labels/kubeflow-extension",
    "/metadata/labels/sidecar.istio.io~1inject",
    "/metadata/annotations/sidecar.istio.io~1inject",
    "/metadata/annotations/sidecar.istio.io~1nativeSidecar",
    "/metadata/annotations/proxy.istio.io~1config",
    "/metadata/annotations/kubeflow-extension~1creator",
    "/metadata/annotations/kubeflow-extension~1applied",
    "/spec/serviceAccount",
    "/spec/serviceAccountName",
    "/spec/volumes",
    "/spec/volumes/-",
    "/spec/initContainers",
    "/spec/initContainers/-",
    "/command",
    "/args",
    "/args/-",
    "/args/0",
    "/env",
    "/env/-",
    "/env/0",
    "/volumeMounts",
    "/volumeMounts/-",
    "/spec/runtimePatches",
    "/spec/runtimePatches/-",
    "/spec/podTemplateOverrides",
    "/spec/podTemplateOverrides/-",
    "/spec/runSpec",
    "/spec",
];

/// Values that an operation of ours may take the place of, where there is one; elsewhere it only adds.
const REPLACED: &[&str] = &[
    "/metadata/labels/kubeflow-extension",
    "/metadata/labels/sidecar.istio.io~1inject",
    "/metadata/annotations/sidecar.istio.io~1inject",
    "/metadata/annotations/proxy.istio.io~1config",
    "/metadata/annotations/kubeflow-extension~1creator",
    "/metadata/annotations/kubeflow-extension~1applied",
    "/spec/serviceAccount",
    "/spec/serviceAccountName",
    "/spec/runSpec",
    "/command",
    "/args",
    "/args/0",
    "/env/0",
];

/// Notes as somebody might write them.
const NOTES: &[&str] =
    &["", "true", "0.1.0: label,launcher", "9.9.9: cluster-admin", ": ,,kale", "\u{0}\u{1f}😀: label"];

/// A place of an operation, with 0 for the number that it ends with.
fn place(path: &str) -> String {
    match path.rsplit_once('/') {
        Some((before, last)) if last.parse::<usize>().is_ok() => format!("{before}/0"),
        _ => path.to_owned(),
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        select(WORDS).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((select(WORDS), inner), 0..4).prop_map(|members| Value::Object(
                members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
            )),
        ]
    })
}

/// A change at some place of an object.
#[derive(Clone, Debug)]
enum Bend {
    Replace(Index, Value),
    Insert(Index, &'static str, Value),
    Remove(Index),
}

fn bend() -> impl Strategy<Value = Bend> {
    prop_oneof![
        (any::<Index>(), any_json()).prop_map(|(place, value)| Bend::Replace(place, value)),
        (any::<Index>(), select(WORDS), any_json()).prop_map(|(place, key, value)| Bend::Insert(place, key, value)),
        any::<Index>().prop_map(Bend::Remove),
    ]
}

fn pointers(value: &Value, prefix: &str, found: &mut Vec<String>) {
    found.push(prefix.to_owned());
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                pointers(member, &format!("{prefix}/{}", key.replace('~', "~0").replace('/', "~1")), found);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                pointers(item, &format!("{prefix}/{index}"), found);
            }
        }
        _ => {}
    }
}

fn apply(bend: &Bend, object: &mut Value) {
    let mut places = Vec::new();
    pointers(object, "", &mut places);
    // The kind stays, so that the endpoint is still the right one.
    places.retain(|place| !place.is_empty() && place != "/kind" && place != "/apiVersion");
    if places.is_empty() {
        return;
    }
    match bend {
        Bend::Replace(place, value) => *object.pointer_mut(place.get(&places[..]).as_str()).unwrap() = value.clone(),
        Bend::Insert(place, key, value) => match object.pointer_mut(place.get(&places[..]).as_str()).unwrap() {
            Value::Object(members) => drop(members.insert((*key).to_owned(), value.clone())),
            Value::Array(items) => items.push(value.clone()),
            other => *other = value.clone(),
        },
        Bend::Remove(place) => {
            let (parent, key) = place.get(places.as_slice()).rsplit_once('/').unwrap();
            match object.pointer_mut(parent).unwrap() {
                Value::Object(members) => drop(members.remove(&key.replace("~1", "/").replace("~0", "~"))),
                Value::Array(items) => drop(items.remove(key.parse().unwrap())),
                _ => {}
            }
        }
    }
}

/// An endpoint, an object of its fixtures with some places bent, and settings.
fn bent_object() -> impl Strategy<Value = (Endpoint, Value, Settings)> {
    let objects: Vec<(Endpoint, Value)> = Endpoint::of(Configuration::Mutating)
        .flat_map(|endpoint| fixtures::objects(endpoint).into_iter().map(move |(_, object)| (endpoint, object)))
        .collect();
    let flags: &[&[&str]] = &[
        &[],
        &["--identity=token"],
        &["--train-job-patches=pod-template-overrides", "--native-sidecars=false"],
        &["--sidecar-lifecycle=shell"],
    ];
    (select(objects), prop::collection::vec(bend(), 0..6), select(flags)).prop_map(
        |((endpoint, mut object), bends, flags)| {
            for bend in &bends {
                apply(bend, &mut object);
            }
            (endpoint, object, support::settings(flags))
        },
    )
}

/// Enough for every run; PROPTEST_CASES asks for more.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(3000);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// Reviewing what a review has made changes nothing, and what a review changes is what we name.
    #[test]
    fn every_object_is_right_after_one_review((endpoint, object, settings) in bent_object()) {
        let Answered { object: after, operations, warnings } = wire::answered(endpoint, &wire::review(&object), &settings);
        let again = wire::answered(endpoint, &wire::review(&after), &settings);
        prop_assert_eq!(&again.operations, &[] as &[Value], "after {:?}", &operations);
        for operation in &operations {
            let path = operation["path"].as_str().unwrap();
            let place = place(path);
            let ours = OURS.iter().any(|ours| place.ends_with(ours)) || path.contains("/runtimePatches/");
            prop_assert!(ours, "{} is not ours", path);
            let replaces = object.pointer(path).is_some_and(|found| !found.is_null());
            let allowed = REPLACED.iter().any(|ours| place.ends_with(ours)) || path.contains("/runtimePatches/");
            prop_assert!(!replaces || allowed, "{} is not ours to replace", path);
        }
        for warning in warnings {
            prop_assert!(warning.len() < 256, "{}", warning);
        }
    }

    /// Where only the owner acts as the owner, nothing that somebody else makes or changes has the label afterwards that
    /// makes its pods the owner's, however it is bent; and a second review has nothing to add.
    #[test]
    fn nothing_of_somebody_elses_is_the_owners((endpoint, object, settings) in bent_object(), update in any::<bool>()) {
        let surroundings = Surroundings { owner: Some("alice@example.com"), owner_only: Some(true), ..Surroundings::unknown() };
        let review = |object: &Value| {
            let mut review = wire::review(object);
            review["request"]["userInfo"]["username"] = json!("bob@example.com");
            if update {
                review["request"]["operation"] = json!("UPDATE");
                review["request"]["oldObject"] = json!({"metadata": {}});
            }
            review
        };
        let after = wire::answered_in(endpoint, &review(&object), &surroundings, &settings).object;
        let again = wire::answered_in(endpoint, &review(&after), &surroundings, &settings);
        prop_assert!(again.operations.is_empty(), "{:?}", again.operations);
        if endpoint != Endpoint::NotebookMutate {
            let mut places = Vec::new();
            let of_text = after.pointer("/spec/runSpec").and_then(Value::as_str).and_then(|text| yaml::value(text).ok());
            let objects = [Some(&after), of_text.as_ref()];
            for object in objects.into_iter().flatten() {
                pointers(object, "", &mut places);
                for place in &places {
                    // Of what has pods made of it its own label says nothing, but for what hands it down.
                    let counts = [Endpoint::PodMutate, Endpoint::ExperimentMutate].contains(&endpoint);
                    let own = place.is_empty() && !counts;
                    let label = object.pointer(&format!("{place}/metadata/labels/kubeflow-extension"));
                    prop_assert!(own || label != Some(&json!("true")), "{} in {}", place, object);
                }
            }
        }
    }

    /// Whatever a note says that somebody has put on an object, all else is decided as it is without.
    #[test]
    fn nothing_is_decided_by_the_note((endpoint, object, settings) in bent_object(), note in select(NOTES)) {
        const NOTE: &str = "kubeflow-extension/applied";
        let with = |annotations: Value| {
            let mut object = object.clone();
            object["metadata"] = json!({"labels": object["metadata"]["labels"], "annotations": annotations});
            let Answered { object: mut after, warnings, .. } = wire::answered(endpoint, &wire::review(&object), &settings);
            let written = after["metadata"]["annotations"].as_object_mut().unwrap().remove(NOTE);
            (after, warnings, written)
        };
        let (after, warnings, written) = with(json!({"other": "1", NOTE: note}));
        let (expected, expected_warnings, expected_note) = with(json!({"other": "1"}));
        prop_assert_eq!((after, warnings), (expected, expected_warnings));
        if expected_note.is_some() {
            // And a note that is ours has words of ours alone.
            let (_, words) = written.as_ref().and_then(Value::as_str).unwrap().split_once(": ").unwrap();
            prop_assert!(words.split(',').all(|word| Step::ALL.iter().any(|step| step.name() == word)), "{}", words);
        } else {
            prop_assert_eq!(written, Some(json!(note)));
        }
    }

    /// Another webhook's container, added after us, is seen to when we are called again, and nothing is doubled.
    #[test]
    fn a_container_that_is_added_later_gets_its_identity_once(name in select(&["added", "istio-proxy"][..]), first in any::<bool>()) {
        let settings = support::settings(&["--identity=token"]);
        let notebook = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"notebook-name": "a"}}, "spec": {"containers": [{"name": "a"}]}});
        let mut once = wire::answered(Endpoint::PodMutate, &wire::review(&notebook), &settings).object;
        let containers = once["spec"]["containers"].as_array_mut().unwrap();
        containers.insert(usize::from(!first), json!({"name": name}));
        let twice = wire::answered(Endpoint::PodMutate, &wire::review(&once), &settings).object;
        prop_assert_eq!(twice["spec"]["volumes"].as_array().unwrap().len(), 1);
        for container in twice["spec"]["containers"].as_array().unwrap() {
            let expected = usize::from(container["name"] != "istio-proxy");
            prop_assert_eq!(container["env"].as_array().map_or(0, Vec::len), expected);
            prop_assert_eq!(container["volumeMounts"].as_array().map_or(0, Vec::len), expected);
        }
    }

    /// Bytes that are no review are refused, and nothing panics.
    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in any::<Index>(), endpoint in select(&Endpoint::ALL[..])) {
        let whole = wire::review(&json!({"apiVersion": "v1", "kind": "Pod"})).to_string().into_bytes();
        let cut = cut.index(whole.len());
        let mut body = whole[..cut].to_vec();
        body.extend(bytes);
        let settings = support::settings(&[] as &[&str]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let reviews = Reviews::new(&mut Registry::default());
        let status = runtime.block_on(async {
            let request = Request::post(endpoint.path()).header("content-type", "application/json").body(Full::<hyper::body::Bytes>::from(body)).unwrap();
            let response = reviews.answer(request, &wire::Alone(&settings, &Surroundings::unknown())).await;
            let status = response.status();
            let answer: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
            assert!(answer.is_object());
            status
        });
        prop_assert!(status == StatusCode::BAD_REQUEST || status == StatusCode::OK);
    }
}
