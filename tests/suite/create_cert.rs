//! `create-cert.sh` against a real API server: the Secret, the certificate in it, and whom the API server is told to trust.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tenancy_fixer::admission::{Configuration, Endpoint};

use crate::cluster::base64;
use crate::support::{self, Cluster};

/// A namespace and a webhook configuration of this test's own.
struct Scene {
    cluster: Cluster,
    name: String,
    folder: PathBuf,
}

impl Scene {
    fn new(test: &str) -> Self {
        let scene = Self {
            cluster: Cluster::shared(),
            name: format!("cert-{test}-{}", std::process::id()),
            folder: support::folder(&format!("cert-{test}")),
        };
        let rendered = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"))
            .args(["manifests", "--namespace", &scene.name])
            .output()
            .unwrap();
        let mut configuration = tenancy_fixer::yaml::value(&String::from_utf8(rendered.stdout).unwrap()).unwrap();
        configuration["metadata"]["name"] = json!(scene.name);
        for webhook in configuration["webhooks"].as_array_mut().unwrap() {
            webhook["namespaceSelector"] = json!({"matchLabels": {"nobody": "has-this"}});
        }
        scene.cluster.apply(&configuration);
        scene
    }

    /// The validating configuration beside it, as the gate has it.
    fn apply_validating(&self) {
        let rendered = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"))
            .args(["manifests", "validating", "--namespace", &self.name])
            .output()
            .unwrap();
        let mut configuration = tenancy_fixer::yaml::value(&String::from_utf8(rendered.stdout).unwrap()).unwrap();
        configuration["metadata"]["name"] = json!(self.name);
        for webhook in configuration["webhooks"].as_array_mut().unwrap() {
            webhook["namespaceSelector"] = json!({"matchLabels": {"nobody": "has-this"}});
        }
        self.cluster.apply(&configuration);
    }

    fn run(&self, arguments: &[&str]) -> Output {
        create_cert(&self.cluster, &self.name, arguments)
    }

    /// What it says, on both streams; it has to succeed.
    fn said(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {text}");
        assert!(!text.contains("PRIVATE KEY"), "{text}");
        text
    }

    fn secret(&self) -> Option<Value> {
        self.cluster.get("secret", &self.name, "tenancy-fixer-tls")
    }

    /// The caBundle of each webhook that changes objects.
    fn bundles(&self) -> Vec<Option<String>> {
        self.bundles_of("mutatingwebhookconfiguration")
    }

    fn bundles_of(&self, kind: &str) -> Vec<Option<String>> {
        let configuration = self.cluster.get(kind, "default", &self.name).unwrap();
        let bundle = |webhook: &Value| webhook["clientConfig"]["caBundle"].as_str().map(str::to_owned);
        configuration["webhooks"].as_array().unwrap().iter().map(bundle).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        ["tls.crt", "tls.key", "ca.crt"].map(|name| self.folder.join("out").join(name)).into()
    }
}

/// Runs the script for a namespace, and the webhook configuration of the same name.
pub fn create_cert(cluster: &Cluster, name: &str, arguments: &[&str]) -> Output {
    let kubectl = support::root().join("target/venv/bin");
    let path = format!("{}:{}", kubectl.display(), std::env::var("PATH").unwrap());
    Command::new(support::root().join("create-cert.sh"))
        .args(["--namespace", name, "--webhook-configuration", name])
        .args(arguments)
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("PATH", path)
        .output()
        .unwrap()
}

impl Drop for Scene {
    fn drop(&mut self) {
        for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
            self.cluster.try_kubectl(&["delete", kind, &self.name, "--ignore-not-found"]);
        }
        self.cluster.try_kubectl(&["delete", "namespace", &self.name, "--wait=false", "--ignore-not-found"]);
    }
}

fn openssl(arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn the_secret_the_certificate_and_the_trust_fit_and_a_second_run_changes_nothing() {
    let scene = Scene::new("first");
    let out = scene.folder.join("out");
    let out = out.to_str().unwrap();
    scene.said(&["--san", "IP:127.0.0.1", "--out", out]);

    let [certificate, key, ca] = &scene.files()[..] else { panic!("three files") };
    let secret = scene.secret().unwrap();
    assert_eq!(secret["type"], "kubernetes.io/tls");
    for (name, file) in [("tls.crt", certificate), ("tls.key", key), ("ca.crt", ca)] {
        assert_eq!(secret["data"][name], base64(text(file).as_bytes()), "{name}");
    }
    let verified =
        openssl(&["verify", "-purpose", "sslserver", "-CAfile", ca.to_str().unwrap(), certificate.to_str().unwrap()]);
    assert!(verified.ends_with("OK\n"), "{verified}");
    let names = openssl(&["x509", "-in", certificate.to_str().unwrap(), "-noout", "-ext", "subjectAltName"]);
    for name in ["DNS:tenancy-fixer", &format!("DNS:tenancy-fixer.{}.svc", scene.name), "IP Address:127.0.0.1"] {
        assert!(names.contains(name), "{names}");
    }
    let bundle = Some(base64(text(ca).as_bytes()));
    assert!(
        scene.bundles().iter().all(|found| *found == bundle)
            && scene.bundles().len() == Endpoint::of(Configuration::Mutating).count()
    );
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(key).unwrap().permissions()) & 0o077, 0);

    let version = secret["metadata"]["resourceVersion"].clone();
    let said = scene.said(&["--san", "IP:127.0.0.1"]);
    assert!(
        said.contains("kept, valid until")
            && said.contains(&format!("all {} webhooks have the CA", Endpoint::of(Configuration::Mutating).count())),
        "{said}"
    );
    assert_eq!(scene.secret().unwrap()["metadata"]["resourceVersion"], version);

    // A server with these files is one that the API server would trust.
    let made = crate::server::Certificate { ca: ca.clone(), chain: certificate.clone(), key: key.clone() };
    let server = crate::server::Server::start(&made, &[]);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {}});
    assert_eq!(crate::server::post(&server, "/pod/mutate", crate::wire::review(&pod).to_string()).status(), 200);
}

#[test]
fn a_configuration_that_lost_its_trust_gets_it_back() {
    let scene = Scene::new("lost");
    scene.said(&[]);
    let before = scene.bundles();
    let wipe = r#"[{"op": "remove", "path": "/webhooks/1/clientConfig/caBundle"}]"#;
    scene.cluster.kubectl(&["patch", "mutatingwebhookconfiguration", &scene.name, "--type=json", "-p", wipe]);
    assert_ne!(scene.bundles(), before);
    let said = scene.said(&[]);
    assert!(
        said.contains(&format!("put the CA into 1 of {} webhooks", Endpoint::of(Configuration::Mutating).count())),
        "{said}"
    );
    assert_eq!(scene.bundles(), before);
}

#[test]
fn the_gates_configuration_is_given_the_same_trust() {
    let scene = Scene::new("validating");
    scene.apply_validating();
    let (mutating, validating) = ("mutatingwebhookconfiguration", "validatingwebhookconfiguration");
    let of_gate = Endpoint::of(Configuration::Validating).count();
    let all = of_gate + Endpoint::of(Configuration::Mutating).count();
    let out = scene.folder.join("out");
    scene.said(&["--out", out.to_str().unwrap()]);
    let bundle = Some(base64(text(&scene.files()[2]).as_bytes()));
    assert_eq!(scene.bundles_of(validating), vec![bundle.clone(); of_gate]);
    assert_eq!(scene.bundles_of(mutating), vec![bundle.clone(); all - of_gate]);
    // It is repaired by itself, and what is right stays as it is.
    let version =
        || scene.cluster.get(mutating, "default", &scene.name).unwrap()["metadata"]["resourceVersion"].clone();
    let before = version();
    let wipe = r#"[{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]"#;
    scene.cluster.kubectl(&["patch", validating, &scene.name, "--type=json", "-p", wipe]);
    scene.said(&[]);
    assert_eq!(scene.bundles_of(validating), vec![bundle; of_gate]);
    assert_eq!(version(), before);
    // A renewal is for both.
    scene.said(&["--renew", "--out", out.to_str().unwrap()]);
    let both = Some(base64(text(&scene.files()[2]).as_bytes()));
    assert_eq!(scene.bundles_of(validating), vec![both.clone(); of_gate]);
    assert_eq!(scene.bundles_of(mutating), vec![both; all - of_gate]);
}

#[test]
fn a_renewed_certificate_leaves_running_servers_trusted() {
    let scene = Scene::new("renew");
    let out = scene.folder.join("out");
    let out = out.to_str().unwrap();
    scene.said(&["--out", out]);
    let [certificate, _, ca] = &scene.files()[..] else { panic!("three files") };
    let (old_ca, old_certificate) = (text(ca), scene.folder.join("old.crt"));
    fs::copy(certificate, &old_certificate).unwrap();
    let said = scene.said(&["--renew", "--out", out]);
    assert!(said.contains("servers take it up by themselves"), "{said}");
    assert_eq!(text(ca).matches("BEGIN CERTIFICATE").count(), 2);
    assert!(text(ca).contains(old_ca.trim()));
    for certificate in [certificate, &old_certificate] {
        openssl(&["verify", "-CAfile", ca.to_str().unwrap(), certificate.to_str().unwrap()]);
    }
    assert_eq!(scene.bundles(), vec![Some(base64(text(ca).as_bytes())); Endpoint::of(Configuration::Mutating).count()]);
}

#[test]
fn a_certificate_without_a_name_that_is_asked_for_is_made_anew() {
    let scene = Scene::new("name");
    scene.said(&[]);
    let said = scene.said(&["--san", "DNS:other.example.org"]);
    assert!(said.contains("its certificate is not for other.example.org"), "{said}");
}

#[test]
fn a_secret_of_somebody_else_stays_theirs_and_nothing_is_left_half_done() {
    let scene = Scene::new("theirs");
    scene.cluster.kubectl(&["create", "namespace", &scene.name]);
    let create =
        ["create", "secret", "generic", "tenancy-fixer-tls", "-n", &scene.name, "--from-literal=tls.crt=theirs"];
    scene.cluster.kubectl(&create);
    let before = scene.secret();
    let output = scene.run(&[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("cannot be written") && said.contains("kubectl-create"),
        "{said}"
    );
    assert_eq!(scene.secret(), before);
    assert!(scene.bundles().iter().all(Option::is_none));
}

#[test]
fn a_dry_run_changes_nothing_and_mistakes_are_named() {
    let scene = Scene::new("dry");
    let said = scene.said(&["--dry-run"]);
    assert!(said.contains("openssl") && said.contains("patch"), "{said}");
    assert!(scene.secret().is_none());
    assert!(scene.cluster.get("namespace", "default", &scene.name).is_none());
    assert!(scene.bundles().iter().all(Option::is_none));

    assert!(scene.said(&["--help"]).starts_with("Usage: create-cert.sh"));
    for (arguments, expected) in [
        (&["--nonsense"][..], "unknown argument --nonsense"),
        (&["--days", "soon"], "--days: expected a number"),
        (&["--san", "127.0.0.1"], "--san: expected DNS:host or IP:address"),
        (&["--secret", "a;b"], "expected a name as Kubernetes has them"),
        (&["--kubeconfig", "/nonexistent"], "the cluster cannot be reached"),
    ] {
        let output = scene.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(expected), "{arguments:?}: {said}");
    }
}
