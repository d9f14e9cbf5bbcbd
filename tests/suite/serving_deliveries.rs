//! Deliveries as a real MLflow has sent them, byte for byte: each is taken at its time, and none that is bent.

use std::fs;

use tenancy_fixer::serving::{DELIVERY_ID, Meaning, Received, SIGNATURE, TIMESTAMP, verify};

use crate::support;

/// A captured request.
struct Captured {
    file: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Captured {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    fn received(&self) -> Received<'_> {
        let header = |name: &str| self.header(name).map(str::as_bytes);
        Received {
            signature: header(SIGNATURE),
            delivery_id: header(DELIVERY_ID),
            timestamp: header(TIMESTAMP),
            body: &self.body,
        }
    }

    fn time(&self) -> i64 {
        self.header(TIMESTAMP).unwrap().parse().unwrap()
    }

    fn secret(&self) -> &'static str {
        if self.file.starts_with("workspace") { "s3cr3t" } else { "whsec-test-0123456789" }
    }
}

fn captured() -> Vec<Captured> {
    let folder = support::root().join("tests/fixtures/mlflow-deliveries");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |file: &std::path::PathBuf| {
        let text = fs::read_to_string(file).unwrap();
        let (head, body) = text.split_once("\n\n").unwrap();
        let headers = head.lines().skip(1).map(|line| line.split_once(": ").unwrap());
        let headers: Vec<_> = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        let body = body.as_bytes().to_vec();
        let captured = Captured { file: file.file_name().unwrap().display().to_string(), headers, body };
        assert_eq!(captured.header("content-length").unwrap(), captured.body.len().to_string(), "{}", captured.file);
        captured
    };
    files.iter().map(read).collect()
}

fn status(received: &Received<'_>, secret: &str, now: i64) -> u16 {
    verify(received, &[secret], now).map_or_else(|rejected| rejected.status.as_u16(), |_| 200)
}

#[test]
fn each_is_taken_within_its_time_and_means_what_it_says() {
    let all = captured();
    assert!(all.len() >= 16, "{}", all.len());
    for captured in &all {
        let (received, time) = (captured.received(), captured.time());
        if captured.file.starts_with("unsigned") {
            let rejected = verify(&received, &[captured.secret()], time).unwrap_err();
            assert_eq!(
                (rejected.status.as_u16(), &*rejected.detail),
                (400, "Missing required headers: x-mlflow-signature")
            );
            continue;
        }
        let (id, delivery) =
            verify(&received, &[captured.secret()], time + 7).unwrap_or_else(|e| panic!("{}: {e:?}", captured.file));
        assert_eq!(Some(id), captured.header(DELIVERY_ID));
        let is_of_tag = captured.file.contains("model_version_tag");
        let expected = Meaning::Look { name: "fraud-\u{e9}".into(), version: "1".into() };
        assert_eq!(delivery.meaning() == expected, is_of_tag, "{}: {delivery:?}", captured.file);
        assert_eq!(delivery.workspace.is_some(), captured.file.starts_with("workspace"));
        assert_eq!(status(&received, captured.secret(), time + 301), 401, "{} is stale", captured.file);
        assert_eq!(status(&received, captured.secret(), time - 31), 401, "{} is of the future", captured.file);
        assert_eq!(status(&received, "another secret", time), 401, "{}", captured.file);
    }
}

#[test]
fn none_is_taken_that_is_bent_by_a_single_byte() {
    for captured in captured().iter().filter(|captured| !captured.file.starts_with("unsigned")) {
        let (received, time) = (captured.received(), captured.time());
        for index in 0..captured.body.len() {
            for flipped in [1_u8, 0x20, 0x80] {
                let mut body = captured.body.clone();
                body[index] ^= flipped;
                assert_ne!(
                    status(&Received { body: &body, ..received }, captured.secret(), time),
                    200,
                    "{} byte {index}",
                    captured.file
                );
            }
        }
        let bent = |bytes: &[u8], index: usize| {
            let mut bent = bytes.to_vec();
            bent[index] ^= 1;
            bent
        };
        for index in 0..received.delivery_id.unwrap().len() {
            let id = bent(received.delivery_id.unwrap(), index);
            assert_ne!(status(&Received { delivery_id: Some(&id), ..received }, captured.secret(), time), 200);
        }
        for index in 0..received.timestamp.unwrap().len() {
            let timestamp = bent(received.timestamp.unwrap(), index);
            assert_ne!(status(&Received { timestamp: Some(&timestamp), ..received }, captured.secret(), time), 200);
        }
        let signature = received.signature.unwrap();
        for index in 0..signature.len() {
            let signature = bent(signature, index);
            assert_ne!(status(&Received { signature: Some(&signature), ..received }, captured.secret(), time), 200);
        }
        for end in [0, 3, signature.len() - 1] {
            assert_ne!(
                status(&Received { signature: Some(&signature[..end]), ..received }, captured.secret(), time),
                200
            );
        }
        for end in [0, captured.body.len() - 1] {
            assert_ne!(status(&Received { body: &captured.body[..end], ..received }, captured.secret(), time), 200);
        }
        // Moving the border between what is signed moves what it means.
        let (id, timestamp) = (captured.header(DELIVERY_ID).unwrap(), captured.header(TIMESTAMP).unwrap());
        let longer = format!("{id}.{timestamp}");
        assert_ne!(
            status(&Received { delivery_id: Some(longer.as_bytes()), ..received }, captured.secret(), time),
            200
        );
    }
}
