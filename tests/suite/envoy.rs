//! A tenant's requests through a real Envoy: what its EnvoyFilter does to them, and whom a policy lets in.
//!
//! `tests/envoy/istio.rs` renders objects as Istio does, `tests/envoy/proxy.rs` runs an Envoy with the result.

use serde_json::{Value, json};
use tenancy_fixer::cluster::identity::Identity;
use tenancy_fixer::tenancy::{Child, ChildKind, Grant, NamespaceFacts, Offered, desired};

use self::istio::Pod;
use self::proxy::{Envoy, INBOUND, Mesh, Repeated, Upstream};
use crate::support;

#[path = "../envoy/istio.rs"]
mod istio;
#[path = "../envoy/proxy.rs"]
mod proxy;

const TENANT: Pod<'_> = Pod { namespace: "alice", labels: &[("kubeflow-extension", "true"), ("app", "notebook")] };
const PIPELINES: Pod<'_> = Pod { namespace: "kubeflow", labels: &[("app", "ml-pipeline")] };

const PORT: &str = "8888";
const HOST: &str = "ml-pipeline.kubeflow.svc.cluster.local:8888";

/// Names that people have, and names that people choose who have read Envoy's documentation.
const OWNERS: [&str; 14] = [
    "alice@example.com",
    "100%",
    "%",
    "%%",
    "%%%",
    "%REQ(x-evil)%",
    "%PROTOCOL%@example.com",
    r#"Alice "Al" O'Hara"#,
    r"CORP\alice\n",
    "ä@例え.jp",
    "🦀",
    "Alice B. Carol",
    "cn=alice,ou=people,dc=example,dc=com",
    "system:serviceaccount:alice:default-editor",
];

/// What a client may put in front of it, as header lines.
const FORGERIES: [&[&str]; 8] = [
    &[],
    &["kubeflow-userid: eve"],
    &["Kubeflow-UserId: eve"],
    &["kubeflow-userid:"],
    &["kubeflow-userid: eve", "KUBEFLOW-USERID: mallory"],
    &["kubeflow-userid: eve,mallory", "x-evil: mallory"],
    &["kubeflow-userid: \u{e4}", "kubeflow-userid: eve", "kubeflow-userid: eve"],
    &["connection: kubeflow-userid", "kubeflow-userid: eve"],
];

/// The objects that the tenancy controller applies for a tenant's owner, on a living Istio or on one with rbac.istio.io.
fn objects(tenant: &str, owner: &str, service_role_binding: bool) -> Vec<Child> {
    granted(
        tenant,
        &Grant { owner: owner.to_owned(), identity: Identity::Header, owner_only: false },
        service_role_binding,
    )
}

fn granted(tenant: &str, grant: &Grant, service_role_binding: bool) -> Vec<Child> {
    let namespace = NamespaceFacts { uid: "uid".to_owned(), ..NamespaceFacts::default() };
    let offered = Offered { envoy_filter: true, authorization_policy: true, service_role_binding };
    desired(tenant, &namespace, grant, offered, &support::tenancy_settings(&[]))
}

/// The EnvoyFilters of a tenant whose namespace is for its owner only, in either order, since Istio goes by their age.
fn filters_of_owner_only(owner: &str) -> [[Value; 2]; 4] {
    let both = |legacy: bool| {
        let grant = Grant { owner: owner.to_owned(), identity: Identity::Header, owner_only: true };
        let filters =
            granted("alice", &grant, legacy).into_iter().filter(|child| child.object["kind"] == "EnvoyFilter");
        let [first, second] = <[Value; 2]>::try_from(filters.map(|child| child.object).collect::<Vec<_>>()).unwrap();
        [[first.clone(), second.clone()], [second, first]]
    };
    let ([one, two], [three, four]) = (both(false), both(true));
    [one, two, three, four]
}

/// The tenant's EnvoyFilter of both kinds of Istio.
fn ours(owner: &str) -> [Value; 2] {
    [false, true].map(|legacy| {
        let objects = objects("alice", owner, legacy);
        objects.into_iter().find(|child| child.kind == ChildKind::EnvoyFilter).unwrap().object
    })
}

/// An EnvoyFilter of the tenant that sets headers of requests to ml-pipeline as this says.
fn filter(header: &Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"namespace": "alice", "name": "add-header"},
        "spec": {
            "workloadSelector": {"labels": {"kubeflow-extension": "true"}},
            "configPatches": [{
                "applyTo": "VIRTUAL_HOST",
                "match": {
                    "context": "SIDECAR_OUTBOUND",
                    "routeConfiguration": {"vhost": {"name": HOST, "route": {"name": "default"}}},
                },
                "patch": {"operation": "MERGE", "value": {"request_headers_to_add": [header]}},
            }],
        },
    })
}

/// As a living Istio is told to.
fn modern(value: &str) -> Value {
    filter(
        &json!({"append_action": "OVERWRITE_IF_EXISTS_OR_ADD", "header": {"key": "kubeflow-userid", "value": value}}),
    )
}

/// As an Istio is told to whose Envoy knows no `append_action`.
fn legacy(value: &str) -> Value {
    filter(&json!({"append": false, "header": {"key": "kubeflow-userid", "value": value}}))
}

fn escaped(owner: &str) -> String {
    owner.replace('%', "%%")
}

/// What ml-pipeline is sent by a client that sends these header lines: the users that it would read.
fn users(envoy: &Envoy, upstream: &Upstream, lines: &[&str]) -> Vec<String> {
    assert_eq!(envoy.request(PORT, HOST, lines), 200, "{lines:?}");
    one(upstream)
}

/// The users in the one request that an upstream was sent.
fn one(upstream: &Upstream) -> Vec<String> {
    let [users] = <[_; 1]>::try_from(upstream.values("kubeflow-userid")).expect("one request");
    users.into_iter().map(|user| String::from_utf8(user).unwrap()).collect()
}

#[test]
fn the_upstream_sees_the_owner_once_whoever_the_client_says_it_is() {
    let upstream = Upstream::start();
    for filter in ours("alice@example.com") {
        let envoy = Envoy::start(&TENANT, &[filter], &upstream).unwrap();
        for forgery in FORGERIES {
            assert_eq!(users(&envoy, &upstream, forgery), ["alice@example.com"], "{forgery:?}");
        }
    }
}

#[test]
fn where_only_the_owner_acts_as_the_owner_other_pods_name_nobody() {
    let upstream = Upstream::start();
    for filters in filters_of_owner_only("50%@example.com") {
        let envoy = Envoy::start(&TENANT, &filters, &upstream).unwrap();
        for forgery in FORGERIES {
            assert_eq!(users(&envoy, &upstream, forgery), ["50%@example.com"], "{forgery:?}");
        }
        for labels in [&[][..], &[("kubeflow-extension", "withheld"), ("notebook-name", "theirs")]] {
            let envoy = Envoy::start(&Pod { labels, ..TENANT }, &filters, &upstream).unwrap();
            for forgery in FORGERIES.into_iter().chain([&["kubeflow-userid: 50%@example.com"][..]]) {
                assert_eq!(users(&envoy, &upstream, forgery), [""; 0], "{labels:?}: {forgery:?}");
            }
        }
    }
}

#[test]
fn every_owner_arrives_byte_for_byte() {
    let upstream = Upstream::start();
    let long = "a".repeat(1000);
    for owner in OWNERS.into_iter().chain([long.as_str()]) {
        for filter in ours(owner) {
            let envoy = Envoy::start(&TENANT, &[filter], &upstream).unwrap();
            for forgery in [&[][..], &["kubeflow-userid: eve", "x-evil: mallory"]] {
                assert_eq!(users(&envoy, &upstream, forgery), [owner]);
            }
        }
    }
}

#[test]
fn a_percent_sign_that_is_not_escaped_is_a_command_or_is_refused() {
    let upstream = Upstream::start();
    for filter in [modern("%REQ(x-evil)%"), legacy("%REQ(x-evil)%")] {
        let envoy = Envoy::start(&TENANT, &[filter], &upstream).unwrap();
        assert_eq!(users(&envoy, &upstream, &["x-evil: mallory", "kubeflow-userid: eve"]), ["mallory"]);
        // Nothing to copy is an empty value, which is not set: the client's own stays.
        assert_eq!(users(&envoy, &upstream, &["kubeflow-userid: eve"]), ["eve"]);
    }
    for (owner, error) in [
        ("100%", "Couldn't find valid command at position 3"),
        ("a%b", "Couldn't find valid command at position 1"),
        ("%FOO%", "Not supported field in StreamInfo: FOO"),
    ] {
        let refused = Envoy::start(&TENANT, &[modern(owner)], &upstream).err().expect(owner);
        assert!(refused.contains(error), "{owner}: {refused}");
    }
}

/// Why it is overwritten: the predecessor's filter asked Envoy to append, which is also what Envoy does unasked.
#[test]
fn a_header_that_is_appended_leaves_the_clients_own_in_front() {
    let upstream = Upstream::start();
    let header = json!({"key": "kubeflow-userid", "value": "alice@example.com"});
    for filter in [filter(&json!({"append": true, "header": header})), filter(&json!({"header": header}))] {
        let envoy = Envoy::start(&TENANT, &[filter], &upstream).unwrap();
        assert_eq!(users(&envoy, &upstream, &[]), ["alice@example.com"]);
        assert_eq!(users(&envoy, &upstream, &["kubeflow-userid: eve"]), ["eve", "alice@example.com"]);
    }
}

#[test]
fn envoy_warns_of_the_legacy_field_and_refuses_both_at_once() {
    let upstream = Upstream::start();
    let envoy = Envoy::start(&TENANT, &[legacy("alice")], &upstream).unwrap();
    assert!(envoy.log().contains("Using deprecated option 'envoy.config.core.v3.HeaderValueOption.append'"));
    let envoy = Envoy::start(&TENANT, &[modern("alice")], &upstream).unwrap();
    assert!(!envoy.log().contains("deprecated"), "{}", envoy.log());

    let header = json!({"key": "kubeflow-userid", "value": "alice"});
    let both = json!({"append": false, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD", "header": header});
    let refused = Envoy::start(&TENANT, &[filter(&both)], &upstream).err().unwrap();
    assert!(refused.contains("Both append and append_action are set and it's not allowed"), "{refused}");
}

/// Envoys before 1.24 overlook `append_action`, and so append. Removing comes first in every Envoy since 1.9, so with it
/// one form is right for all of them, without a warning, and also where the value turns out empty.
#[test]
fn a_header_that_is_removed_first_needs_no_word_on_appending() {
    let upstream = Upstream::start();
    for (name, arrives) in [("alice", &["alice"][..]), ("", &[]), ("%REQ(x-none)%", &[])] {
        let silent = filter(&json!({"header": {"key": "kubeflow-userid", "value": name}}));
        for mut filter in [silent, modern(name)] {
            let virtual_host = &mut filter["spec"]["configPatches"][0]["patch"]["value"];
            virtual_host["request_headers_to_remove"] = json!(["kubeflow-userid"]);
            let envoy = Envoy::start(&TENANT, &[filter], &upstream).unwrap();
            for forgery in FORGERIES {
                assert_eq!(users(&envoy, &upstream, forgery), arrives, "{name:?}: {forgery:?}");
            }
            assert!(!envoy.log().contains("deprecated"), "{}", envoy.log());
        }
    }
}

#[test]
fn every_name_of_the_service_is_covered_and_no_other_service() {
    let upstream = Upstream::start();
    let envoy = Envoy::start(&TENANT, &[modern("alice")], &upstream).unwrap();
    let user = |port: &str, host: &str| {
        assert_eq!(envoy.request(port, host, &["kubeflow-userid: eve"]), 200, "{host}");
        one(&upstream)
    };
    for host in [
        "ml-pipeline.kubeflow.svc.cluster.local:8888",
        "ml-pipeline.kubeflow.svc.cluster.local",
        "ML-Pipeline.kubeflow.svc.cluster.local:8888",
        "ml-pipeline.kubeflow",
        "ml-pipeline.kubeflow.svc:8888",
        "10.96.11.1:8888",
    ] {
        assert_eq!(user("8888", host), ["alice"], "{host}");
    }
    for (port, host) in [
        ("8888", "other.kubeflow.svc.cluster.local:8888"),
        ("8888", "example.com"),
        ("80", "other.kubeflow.svc.cluster.local"),
        ("80", "ml-pipeline-ui.kubeflow.svc.cluster.local"),
        ("80", "ml-pipeline.kubeflow.svc.cluster.local"),
    ] {
        assert_eq!(user(port, host), ["eve"], "{host}");
    }
}

#[test]
fn a_pod_without_the_tenants_label_is_left_alone() {
    let upstream = Upstream::start();
    for pod in [
        Pod { labels: &[("app", "notebook")], ..TENANT },
        Pod { labels: &[("kubeflow-extension", "false")], ..TENANT },
        Pod { namespace: "bob", ..TENANT },
    ] {
        let envoy = Envoy::start(&pod, &[modern("alice")], &upstream).unwrap();
        assert_eq!(users(&envoy, &upstream, &["kubeflow-userid: eve"]), ["eve"]);
        assert_eq!(users(&envoy, &upstream, &[]), [""; 0]);
    }
}

#[test]
fn patches_add_up_in_the_order_of_their_objects() {
    let upstream = Upstream::start();
    let other = filter(&json!({"append": false, "header": {"key": "x-team", "value": "blue"}}));
    let envoy = Envoy::start(&TENANT, &[other, modern("alice")], &upstream).unwrap();
    assert_eq!(users(&envoy, &upstream, &["x-team: red", "kubeflow-userid: eve"]), ["alice"]);
    assert_eq!(envoy.request(PORT, HOST, &["x-team: red"]), 200);
    assert_eq!(upstream.values("x-team"), [[b"blue"]]);
    // A tenant can write EnvoyFilters only if it is allowed to; this is what it could do then.
    let envoy = Envoy::start(&TENANT, &[modern("alice"), modern("eve")], &upstream).unwrap();
    assert_eq!(users(&envoy, &upstream, &[]), ["eve"]);
}

/// A refusal does not hit the header alone: Istio sends all virtual hosts of a port at once, and the pod keeps the last
/// ones that Envoy took.
#[test]
fn owners_that_would_end_the_header_or_are_too_long_make_envoy_refuse_the_routes() {
    let upstream = Upstream::start();
    let refused = |owner: &str| Envoy::start(&TENANT, &[modern(&escaped(owner))], &upstream).err();
    for owner in ["alice\r", "alice\nkubeflow-userid: eve", "alice\r\nx-more: eve", "ali\0ce"] {
        let error = refused(owner).expect(owner);
        assert!(
            error.contains(r#"HeaderValueValidationError.Value: value does not match regex pattern "^[^\x00\n\r]*$""#)
        );
    }
    let too_long = "HeaderValueValidationError.Value: value length must be at most 16384 bytes";
    assert!(refused(&"a".repeat(16384)).is_none());
    assert!(refused(&"a".repeat(16385)).is_some_and(|error| error.contains(too_long)));
    // Escaped ones count twice.
    assert!(refused(&"%".repeat(8193)).is_some_and(|error| error.contains(too_long)));
}

#[test]
fn owners_with_other_control_characters_are_taken_and_then_fail_every_request() {
    let upstream = Upstream::start();
    for owner in ["ali\u{1}ce", "ali\u{1b}[0mce", "alice\u{7f}", "ali\u{b}ce", "ali\u{1f}ce"] {
        let envoy = Envoy::start(&TENANT, &[modern(owner)], &upstream).unwrap();
        assert_eq!(envoy.request(PORT, HOST, &["kubeflow-userid: eve"]), 503, "{owner:?}");
        assert_eq!(upstream.values("kubeflow-userid"), Vec::<Vec<Vec<u8>>>::new());
    }
    // Unicode's own are bytes like any other to it, also those that nobody sees.
    for owner in ["ali\u{85}ce", "\u{a0}alice", "alice\u{202e}", "\u{feff}alice", "al\u{200b}ice", "ali\tce"] {
        let envoy = Envoy::start(&TENANT, &[modern(owner)], &upstream).unwrap();
        assert_eq!(users(&envoy, &upstream, &["kubeflow-userid: eve"]), [owner]);
    }
}

#[test]
fn an_owner_without_a_name_lets_the_clients_own_header_through() {
    let upstream = Upstream::start();
    for filter in [modern(""), legacy("")] {
        let envoy = Envoy::start(&TENANT, &[filter], &upstream).unwrap();
        assert_eq!(users(&envoy, &upstream, &["kubeflow-userid: eve"]), ["eve"]);
        assert_eq!(users(&envoy, &upstream, &[]), [""; 0]);
    }
}

/// Tenants, ml-pipeline, and the policies between them.
struct Scene {
    mesh: Mesh,
    upstream: Upstream,
    guard: Envoy,
}

impl Scene {
    fn new(policies: &[Value]) -> Self {
        Self::with(Repeated::OneByOne, policies)
    }

    fn with(repeated: Repeated, policies: &[Value]) -> Self {
        let (mesh, upstream) = (Mesh::new(), Upstream::start());
        let identity = mesh.identity("cluster.local/ns/kubeflow/sa/ml-pipeline");
        let guard = Envoy::guard(&PIPELINES, policies, repeated, &identity, &upstream).unwrap();
        Self { mesh, upstream, guard }
    }

    /// A pod's way to ml-pipeline, through its own sidecar.
    fn pod(&self, account: &str, pod: &Pod<'_>, filters: &[Value]) -> Envoy {
        let identity = self.mesh.identity(&format!("cluster.local/ns/{}/sa/{account}", pod.namespace));
        Envoy::start_meshed(pod, filters, &identity, &self.guard).unwrap()
    }

    /// A hostile pod's: nothing is set, so it may claim what it likes.
    fn bare(&self, namespace: &str, account: &str) -> Envoy {
        self.pod(account, &Pod { namespace, labels: &[] }, &[])
    }

    /// The users that ml-pipeline would read, if it is asked at all.
    fn ask(&self, pod: &Envoy, lines: &[&str]) -> Option<Vec<String>> {
        match pod.request(PORT, HOST, lines) {
            200 => Some(one(&self.upstream)),
            403 => None,
            status => panic!("{status} for {lines:?}"),
        }
    }
}

/// An AuthorizationPolicy that binds a tenant's principal and its owner's name.
fn policy(tenant: &str, owner: &str) -> Value {
    let objects = objects(tenant, owner, false);
    objects.into_iter().find(|child| child.kind == ChildKind::AuthorizationPolicy).unwrap().object
}

/// Kubeflow's own for ml-pipeline (kubeflow/pipelines, manifests/kustomize/base/installs/multi-user).
fn policy_of_kubeflow() -> Value {
    json!({
        "apiVersion": "security.istio.io/v1beta1",
        "kind": "AuthorizationPolicy",
        "metadata": {"namespace": "kubeflow", "name": "ml-pipeline"},
        "spec": {
            "selector": {"matchLabels": {"app": "ml-pipeline"}},
            "rules": [
                {"from": [{"source": {"principals": [
                    "cluster.local/ns/kubeflow/sa/ml-pipeline",
                    "cluster.local/ns/kubeflow/sa/ml-pipeline-ui",
                ]}}]},
                {"when": [{"key": "request.headers[kubeflow-userid]", "notValues": ["*"]}]},
            ],
        },
    })
}

#[test]
fn a_tenant_gets_through_as_its_owner_and_as_nobody_else() {
    let scene = Scene::new(&[policy("alice", "alice@example.com"), policy("bob", "bob@example.com")]);
    let tenant = scene.pod("default-editor", &TENANT, &[modern("alice@example.com")]);
    for forgery in FORGERIES {
        assert_eq!(scene.ask(&tenant, forgery).unwrap(), ["alice@example.com"]);
    }
    let bare = scene.bare("alice", "default-editor");
    assert_eq!(scene.ask(&bare, &["Kubeflow-UserId:   alice@example.com  "]).unwrap(), ["alice@example.com"]);
    for forged in [
        &[][..],
        &["kubeflow-userid:"],
        &["kubeflow-userid: bob@example.com"],
        &["kubeflow-userid: ALICE@example.com"],
        &["kubeflow-userid: alice@example.com.evil"],
        &["kubeflow-userid: *"],
        &["kubeflow-userid: alice@example.com,bob@example.com"],
        &["kubeflow-userid: mallory", "kubeflow-userid: bob@example.com"],
    ] {
        assert_eq!(scene.ask(&bare, forged), None, "{forged:?}");
    }
}

/// What owner-only stops, and what it does not: the policy knows the namespace's service account, not its pods.
#[test]
fn a_contributors_pod_that_sends_the_owners_name_is_refused_unless_it_bypasses_its_sidecar() {
    let scene = Scene::new(&[policy("alice", "alice@example.com")]);
    let [filters, ..] = filters_of_owner_only("alice@example.com");
    let withheld = Pod { namespace: "alice", labels: &[("kubeflow-extension", "withheld")] };
    let claim = &["kubeflow-userid: alice@example.com"];
    assert_eq!(scene.ask(&scene.pod("default-editor", &withheld, &filters), claim), None);
    assert_eq!(scene.ask(&scene.pod("default-editor", &TENANT, &filters), &[]).unwrap(), ["alice@example.com"]);
    // Without the filter that comes with owner-only it would be let through.
    assert_eq!(
        scene.ask(&scene.pod("default-editor", &withheld, &filters[1..]), claim).unwrap(),
        ["alice@example.com"]
    );
    // So is a pod that has got a workload certificate by itself and speaks for itself.
    assert_eq!(scene.ask(&scene.bare("alice", "default-editor"), claim).unwrap(), ["alice@example.com"]);
}

#[test]
fn another_principal_with_the_owners_name_is_refused() {
    let scene = Scene::new(&[policy("alice", "alice@example.com"), policy("bob", "bob@example.com")]);
    for (namespace, account) in [("bob", "default-editor"), ("alice", "default-viewer"), ("alice", "default-editor2")] {
        let bare = scene.bare(namespace, account);
        assert_eq!(scene.ask(&bare, &["kubeflow-userid: alice@example.com"]), None, "{namespace}/{account}");
    }
    // Past the sidecar, in plain text, there is no principal at all.
    assert_eq!(scene.guard.request(INBOUND, HOST, &["kubeflow-userid: alice@example.com"]), 403);
}

#[test]
fn beside_kubeflows_own_policy_only_requests_without_the_header_are_added() {
    let scene = Scene::new(&[policy_of_kubeflow(), policy("alice", "alice@example.com")]);
    let tenant = scene.pod("default-editor", &TENANT, &[modern("alice@example.com")]);
    assert_eq!(scene.ask(&tenant, &["kubeflow-userid: bob@example.com"]).unwrap(), ["alice@example.com"]);
    let bare = scene.bare("alice", "default-editor");
    assert_eq!(scene.ask(&bare, &["kubeflow-userid: bob@example.com"]), None);
    assert_eq!(scene.ask(&bare, &["authorization: Bearer token"]).unwrap(), [""; 0]);
    assert_eq!(scene.ask(&scene.bare("kubeflow", "ml-pipeline-ui"), &["kubeflow-userid: bob"]).unwrap(), ["bob"]);
}

/// What the classic recipe of kubeflow/pipelines#4440 does: any tenant is any user.
#[test]
fn a_policy_without_the_headers_value_lets_a_tenant_be_anybody() {
    let mut classic = policy("alice", "alice@example.com");
    classic["spec"]["rules"][0].as_object_mut().unwrap().remove("when");
    let scene = Scene::new(&[classic]);
    let bare = scene.bare("alice", "default-editor");
    assert_eq!(scene.ask(&bare, &["kubeflow-userid: bob@example.com"]).unwrap(), ["bob@example.com"]);
}

#[test]
fn every_owner_gets_through_their_own_policy() {
    let long = "a".repeat(1000);
    for owner in OWNERS.into_iter().chain([long.as_str()]) {
        let scene = Scene::new(&[policy("alice", owner)]);
        let tenant = scene.pod("default-editor", &TENANT, &[modern(&escaped(owner))]);
        assert_eq!(scene.ask(&tenant, &["kubeflow-userid: eve"]).unwrap(), [owner]);
        assert_eq!(scene.ask(&scene.bare("alice", "default-editor"), &["kubeflow-userid: eve"]), None);
    }
}

/// Why an owner with a star at either end is not granted anything: to a policy it is a pattern.
#[test]
fn an_owner_with_a_star_at_an_end_would_be_many_users() {
    for (owner, others) in [
        ("*", ["eve", "root@example.com"]),
        ("*@example.com", ["eve@example.com", "@example.com"]),
        ("alice*", ["alice@example.com", "alice"]),
    ] {
        let scene = Scene::new(&[policy("alice", owner)]);
        let bare = scene.bare("alice", "default-editor");
        for other in others {
            assert_eq!(scene.ask(&bare, &[&format!("kubeflow-userid: {other}")]).unwrap(), [other], "{owner}");
        }
    }
    let scene = Scene::new(&[policy("alice", "al*ce")]);
    let bare = scene.bare("alice", "default-editor");
    assert_eq!(scene.ask(&bare, &["kubeflow-userid: alice"]), None);
    assert_eq!(scene.ask(&bare, &["kubeflow-userid: al*ce"]).unwrap(), ["al*ce"]);
}

/// Why an owner with space around the name is not granted anything: the next one on the way takes it off.
#[test]
fn an_owner_with_space_around_the_name_never_gets_through() {
    for owner in [" alice", "alice ", "\talice", " "] {
        let upstream = Upstream::start();
        let envoy = Envoy::start(&TENANT, &[modern(owner)], &upstream).unwrap();
        assert_eq!(users(&envoy, &upstream, &["kubeflow-userid: eve"]), [owner]);

        let scene = Scene::new(&[policy("alice", owner)]);
        let tenant = scene.pod("default-editor", &TENANT, &[modern(owner)]);
        assert_eq!(scene.ask(&tenant, &[]), None);
        // With a policy for nobody in particular it would be somebody else.
        let mut classic = policy("alice", owner);
        classic["spec"]["rules"][0].as_object_mut().unwrap().remove("when");
        let scene = Scene::new(&[classic]);
        let tenant = scene.pod("default-editor", &TENANT, &[modern(owner)]);
        assert_eq!(scene.ask(&tenant, &[]).unwrap(), [owner.trim()]);
    }
}

/// What the policy cannot do: say that there is only one. Kubeflow Pipelines refuses two; whatever else is put behind
/// such a policy has to do so as well. The tenant's own filter leaves one, but a hostile pod has no filter.
#[test]
fn a_policy_lets_the_owner_bring_a_second_user_along() {
    let policies = [policy("alice", "alice@example.com")];
    let two = [
        ["kubeflow-userid: alice@example.com", "kubeflow-userid: bob@example.com"],
        ["kubeflow-userid: bob@example.com", "kubeflow-userid: alice@example.com"],
    ];
    let scene = Scene::new(&policies);
    let bare = scene.bare("alice", "default-editor");
    assert_eq!(scene.ask(&bare, &two[0]).unwrap(), ["alice@example.com", "bob@example.com"]);
    assert_eq!(scene.ask(&bare, &two[1]).unwrap(), ["bob@example.com", "alice@example.com"]);
    assert_eq!(scene.ask(&scene.bare("bob", "default-editor"), &two[0]), None);
    // To an Envoy of before March 2026 both together are one user, whom no policy knows.
    let scene = Scene::with(Repeated::Joined, &policies);
    let bare = scene.bare("alice", "default-editor");
    for lines in two {
        assert_eq!(scene.ask(&bare, &lines), None);
    }
}

/// Why a comma is not harmless everywhere: an Envoy of before March 2026 takes two users for the one with the comma.
#[test]
fn an_owner_with_a_comma_may_be_sent_as_two_users_to_an_old_envoy() {
    let policies = [policy("alice", "bob,alice")];
    let two = &["kubeflow-userid: bob", "kubeflow-userid: alice"];
    let scene = Scene::with(Repeated::Joined, &policies);
    assert_eq!(scene.ask(&scene.bare("alice", "default-editor"), two).unwrap(), ["bob", "alice"]);
    let scene = Scene::new(&policies);
    assert_eq!(scene.ask(&scene.bare("alice", "default-editor"), two), None);
    let tenant = scene.pod("default-editor", &TENANT, &[modern("bob,alice")]);
    assert_eq!(scene.ask(&tenant, two).unwrap(), ["bob,alice"]);
}
