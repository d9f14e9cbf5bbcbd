//! The end of a process while clients go on: nobody's review is lost, and the end has an end.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::load::{self, Load};
use crate::server::{self, Certificate, Server, block_on};
use crate::support::{self, wait_for};

fn start(test: &str, flags: &[&str]) -> Server {
    Server::start(&Certificate::make(&support::folder(test)), flags)
}

/// Clients that have not heard yet go on for a second, on connections that they keep and on new ones.
#[test]
fn sigterm_under_load_loses_no_request_and_closes_connections_by_their_answers() {
    let mut server = start("drain-load", &["--drain-quiet", "500ms"]);
    let load = Load::on(&server.target(), 8, Duration::from_millis(2));
    wait_for("the load", || server.reviews_so_far() > 100);
    server.terminate();
    let told = Instant::now();
    wait_for("the end of readiness", || server::get(&server, "/readyz").0 == 503);
    assert!(told.elapsed() < Duration::from_millis(500), "at once");
    let at_signal = server.reviews_so_far();
    std::thread::sleep(Duration::from_secs(1));
    assert!(server.reviews_so_far() > at_signal + 20, "it goes on serving");
    let report = load.end();
    eprintln!("{}", report.line("SIGTERM under load"));
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
    assert!(report.connections > 8 + 20, "each answer closes its connection: {}", report.connections);
    let quiet = Instant::now();
    assert_eq!(server.wait(), 0);
    assert!(quiet.elapsed() < Duration::from_secs(3), "{:?} after the last request", quiet.elapsed());
}

#[test]
fn answers_say_close_and_a_connection_without_requests_is_kept_till_the_end() {
    let mut server = start("drain-idle", &["--drain-quiet", "1s"]);
    block_on(async {
        let (mut idle, mut busy) = (server.connect().await, server.connect().await);
        let head = format!(
            "POST /pod/mutate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            load::review().len()
        );
        let request = [head.as_bytes(), &load::review()].concat();
        for stream in [&mut idle, &mut busy] {
            stream.write_all(&request).await.unwrap();
            let mut answer = vec![0; 4096];
            let length = stream.read(&mut answer).await.unwrap();
            let answer = String::from_utf8_lossy(&answer[..length]);
            assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("connection: close"), "{answer}");
        }
        server.terminate();
        server.wait_for_line("the drain", |line| line["message"] == "stopping");
        let told = Instant::now();
        busy.write_all(&request).await.unwrap();
        let mut answer = Vec::new();
        busy.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
        // A close that crosses a request loses it, so the other one is let be until nobody is expected any more.
        let mut nothing = Vec::new();
        idle.read_to_end(&mut nothing).await.unwrap();
        assert!(nothing.is_empty());
        assert!(told.elapsed() > Duration::from_millis(900), "closed after {:?}", told.elapsed());
    });
    assert_eq!(server.wait(), 0);
}

#[test]
fn the_end_comes_at_the_limit_though_requests_go_on() {
    let mut server = start("drain-limit", &["--drain-quiet", "60s", "--drain-limit", "1s"]);
    let load = Load::on(&server.target(), 2, Duration::from_millis(5));
    wait_for("the load", || server.reviews_so_far() > 10);
    server.terminate();
    let told = Instant::now();
    assert_eq!(server.wait(), 0);
    let took = told.elapsed();
    // Whoever comes afterwards finds a closed port.
    load.end();
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_request_without_end_does_not_keep_the_process() {
    let flags = ["--drain-quiet", "0s", "--drain-limit", "500ms", "--body-timeout", "60s"];
    let mut server = start("drain-stuck", &flags);
    block_on(async {
        let mut stream = server.connect().await;
        stream
            .write_all(b"POST /pod/mutate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{")
            .await
            .unwrap();
        wait_for("the request", || server.metric("tenancy_fixer_server_connections{state=\"request\"}") == 1);
        server.terminate();
        let told = Instant::now();
        assert_eq!(server.wait(), 0);
        assert!(told.elapsed() < Duration::from_secs(6), "{:?}", told.elapsed());
    });
    server.wait_for_line("the warning", |line| line["message"] == "requests were still open at the end");
}

#[test]
fn a_second_signal_ends_faster() {
    for second in ["TERM", "INT"] {
        let mut server = start(&format!("drain-twice-{second}"), &["--drain-quiet", "60s"]);
        server.terminate();
        server.wait_for_line("the drain", |line| line["message"] == "stopping");
        assert_eq!(server::post(&server, "/pod/mutate", load::review()).status(), 200, "it still serves");
        server.signal(second);
        let told = Instant::now();
        assert_eq!(server.wait(), 0);
        assert!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
    }
}
