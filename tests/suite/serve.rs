//! `tenancy-fixer serve` as a process: what it answers over TLS, what it logs, how it starts and ends.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::server::{self, Certificate, Server, block_on};
use crate::{support, wire};

fn notebook() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "analysis-", "labels": {"notebook-name": "analysis"}, "annotations": {"password": "secret-value"}},
        "spec": {"containers": [{"name": "analysis", "image": "a", "env": [{"name": "TOKEN", "value": "secret-value"}]}]},
    })
}

#[test]
fn a_review_is_answered_and_logged_in_one_line_without_secrets() {
    let certificate = Certificate::make(&support::folder("serve-review"));
    let server = Server::start(&certificate, &["--identity", "token"]);
    let mut review = wire::review(&notebook());
    review["request"]["userInfo"] = json!({"username": "alice@example.com", "extra": {"token": ["secret-value"]}});
    let response = server::post(&server, "/pod/mutate", review.to_string());
    assert_eq!(response.status(), 200);
    let line = server.wait_for_line("reviewed", |line| line["message"] == "reviewed");
    assert_eq!(
        ["level", "uid", "namespace", "kind", "name", "operation", "user", "endpoint", "decision", "reason"]
            .map(|field| line[field].as_str().unwrap()),
        [
            "INFO",
            "705ab4f5-6393-11e8-b7cc-42010a800002",
            "alice",
            "Pod",
            "analysis-*",
            "CREATE",
            "alice@example.com",
            "/pod/mutate",
            "patched",
            "notebook pod"
        ]
    );
    assert_eq!(
        line["operations"],
        "add /metadata/labels/kubeflow-extension, add /spec/containers/0/volumeMounts, add /spec/containers/0/env/-, add /spec/volumes, add /metadata/annotations/kubeflow-extension~1applied"
    );
    assert!(line["micros"].is_u64() && line["timestamp"].is_string());
    assert_eq!(server.reviews().len(), 1);
    assert!(!format!("{:?}", server.lines()).contains("secret-value"));
}

#[test]
fn the_first_line_says_version_and_settings() {
    let certificate = Certificate::make(&support::folder("serve-start"));
    let server = Server::start(&certificate, &["--service-account", "runner"]);
    let line = server.wait_for_line("starting", |line| line["message"] == "starting");
    assert_eq!(line["version"], env!("CARGO_PKG_VERSION"));
    assert!(line["settings"].as_str().unwrap().contains("service_account: \"runner\""), "{line}");
}

#[test]
fn a_refused_request_is_logged_and_names_and_users_cannot_forge_lines() {
    let certificate = Certificate::make(&support::folder("serve-refused"));
    let server = Server::start(&certificate, &[]);
    assert_eq!(server::post(&server, "/pod/mutate", "no JSON").status(), 400);
    let line = server.wait_for_line("refused", |line| line["message"] == "refused");
    assert_eq!((line["status"].as_u64(), line["path"].as_str()), (Some(400), Some("/pod/mutate")));

    let mut review = wire::review(&notebook());
    review["request"]["userInfo"]["username"] = json!("eve\n{\"message\":\"forged\"}");
    assert_eq!(server::post(&server, "/pod/mutate", review.to_string()).status(), 200);
    server.wait_for_line("reviewed", |line| line["user"] == "eve\n{\"message\":\"forged\"}");
    assert!(server.lines().iter().all(|line| line["message"] != "forged"));
}

#[test]
fn one_connection_carries_many_requests() {
    let certificate = Certificate::make(&support::folder("serve-keep-alive"));
    let server = Server::start(&certificate, &[]);
    block_on(async {
        let mut stream = server.connect().await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), None);
        for _ in 0..3 {
            let body = wire::review(&notebook()).to_string();
            let head = format!(
                "POST /pod/mutate?timeout=3s HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(body.as_bytes()).await.unwrap();
            let mut answer = vec![0; 4096];
            let length = stream.read(&mut answer).await.unwrap();
            assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK"));
        }
    });
}

#[test]
fn a_body_over_the_limit_is_answered_before_it_is_sent() {
    let certificate = Certificate::make(&support::folder("serve-large"));
    let server = Server::start(&certificate, &[]);
    block_on(async {
        let mut stream = server.connect().await;
        let head = "POST /pod/mutate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 104857600\r\n\r\n{";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The connection is closed behind the answer; without close_notify where the peer still sends.
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 413 Payload Too Large"), "{answer}");
        assert!(answer.contains("connection: close"));
    });
    assert_eq!(server::post(&server, "/pod/mutate", wire::review(&notebook()).to_string()).status(), 200);
}

#[test]
fn probes_answer_and_readiness_ends_with_sigterm() {
    let certificate = Certificate::make(&support::folder("serve-probes"));
    let mut server = Server::start(&certificate, &[]);
    assert_eq!(server::get(&server, "/livez"), (200, "ok\n".to_owned()));
    support::wait_for("the server to be ready", || server::get(&server, "/readyz") == (200, "ok\n".to_owned()));
    assert_eq!(server::get(&server, "/nothing").0, 404);
    server.terminate();
    server.wait_for_line("stopping", |line| line["message"] == "stopping");
    assert_eq!(server.wait(), 0);
    server.wait_for_line("stopped", |line| line["message"] == "stopped");
}

#[test]
fn a_request_that_is_open_at_sigterm_is_answered() {
    let certificate = Certificate::make(&support::folder("serve-drain"));
    let mut server = Server::start(&certificate, &[]);
    block_on(async {
        let mut stream = server.connect().await;
        let body = wire::review(&notebook()).to_string();
        let head = format!(
            "POST /pod/mutate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // Says that the head has been read and the body is waited for.
        let mut go_on = [0; 25];
        stream.read_exact(&mut go_on).await.unwrap();
        assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
        server.terminate();
        server.wait_for_line("stopping", |line| line["message"] == "stopping");
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.starts_with(b"HTTP/1.1 200 OK"), "{}", String::from_utf8_lossy(&answer));
    });
    assert_eq!(server.wait(), 0);
}

/// Runs `serve` to its end, which has to be a failure; what it says on standard error.
fn failure(certificate: &Certificate, flags: &[&str]) -> String {
    let process = server::command(certificate, flags).stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    assert!(!process.status.success());
    String::from_utf8(process.stderr).unwrap()
}

#[test]
fn what_keeps_it_from_starting_is_said_and_left_for_the_kubelet() {
    let folder = support::folder("serve-failure");
    let certificate = Certificate::make(&folder);
    let termination_log = folder.join("termination-log");
    std::fs::write(&termination_log, "").unwrap();
    let log_flag = ["--termination-log", termination_log.to_str().unwrap()];

    let missing = Certificate { chain: folder.join("nothing.crt"), ..certificate.clone() };
    let error = failure(&missing, &log_flag);
    assert!(error.contains("reading the certificate") && error.contains("nothing.crt"), "{error}");
    assert!(std::fs::read_to_string(&termination_log).unwrap().contains("nothing.crt"));

    let empty = folder.join("empty.crt");
    std::fs::write(&empty, "no PEM").unwrap();
    let error = failure(&Certificate { chain: empty, ..certificate.clone() }, &[]);
    assert!(error.contains("no certificate in") && error.contains("create-cert.sh"), "{error}");

    let other = folder.join("other");
    std::fs::create_dir(&other).unwrap();
    let error = failure(&Certificate { key: Certificate::make(&other).key, ..certificate.clone() }, &[]);
    assert!(error.contains("using the key") && error.contains("with the certificate"), "{error}");

    let taken = Server::start(&certificate, &[]);
    let error = failure(&certificate, &["--listen", &taken.address.to_string()]);
    assert!(error.contains(&format!("listening on {} (--listen)", taken.address)), "{error}");
}

#[test]
fn settings_come_from_flags_environment_and_file_in_that_order() {
    let folder = support::folder("serve-settings");
    let certificate = Certificate::make(&folder);
    let config = folder.join("settings.yaml");
    std::fs::write(
        &config,
        "service-account: from-file\nreplaced-service-accounts: [one, two]\nnative-sidecars: false\nidentity: token\n",
    )
    .unwrap();
    let mut process = server::command(
        &certificate,
        &["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--identity", "header"],
    )
    .arg("--config")
    .arg(&config)
    .env("TENANCY_FIXER_SERVICE_ACCOUNT", "from-environment")
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    let mut first = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(process.stdout.take().unwrap()), &mut first).unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
    for expected in [
        "identity: Header",
        "service_account: \\\"from-environment\\\"",
        "[\\\"one\\\", \\\"two\\\"]",
        "native_sidecars: false",
    ] {
        assert!(first.contains(expected), "{expected} in {first}");
    }
}

#[test]
fn mistakes_in_the_settings_file_are_named_with_their_line() {
    let folder = support::folder("serve-mistakes");
    let certificate = Certificate::make(&folder);
    for (text, expected) in [
        ("identity: header\nidentty: token\n", "line 2: unknown setting \"identty\"; did you mean \"identity\"?"),
        ("\n\nfilename: x\n", "line 3: unknown setting \"filename\""),
        ("identity: [token, {a: b}]\n", "setting \"identity\" in line 1: expected a scalar or a list of scalars"),
        ("listen: 127.0.0.1:0\nidentity: Token\n", "(line 2 of"),
        ("identity: [token\n", "line 1"),
        ("- identity\n", "line 1: expected mapping"),
        ("a: 1\n---\nb: 2\n", "expected one document, found 2"),
    ] {
        let config = folder.join("settings.yaml");
        std::fs::write(&config, text).unwrap();
        let error = failure(&certificate, &["--config", config.to_str().unwrap()]);
        assert!(error.contains(expected) && error.contains("settings.yaml"), "{text:?}: {error}");
    }
    let error = failure(&certificate, &["--config", "/nonexistent/settings.yaml"]);
    assert!(error.contains("reading the settings file /nonexistent/settings.yaml"), "{error}");
}
