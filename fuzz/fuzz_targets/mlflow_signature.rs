//! Whatever comes to the path of MLflow's webhook: headers and body in, a verdict out.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenancy_fixer::serving::{Received, verify};

const SECRET: &str = "fuzz";
const NOW: i64 = 1_234_567_890;

fuzz_target!(|bytes: &[u8]| {
    // Three headers and a body, each ended by a line feed; one that is empty is not there.
    let mut parts = bytes.splitn(4, |byte| *byte == b'\n');
    let mut header = || parts.next().filter(|part| !part.is_empty());
    let (signature, delivery_id, timestamp) = (header(), header(), header());
    let body = parts.next().unwrap_or_default();
    let received = Received { signature, delivery_id, timestamp, body };
    match verify(&received, &[SECRET], NOW) {
        Ok((id, delivery)) => {
            // Nobody guesses a signature: this is one of the corpus, unbent.
            assert!(!id.is_empty() && id.bytes().all(|byte| byte.is_ascii_graphic()));
            let _ = delivery.meaning();
        }
        Err(rejected) => assert!(matches!(rejected.status.as_u16(), 400 | 401) && !rejected.detail.is_empty()),
    }
    assert!(verify(&received, &[], NOW).is_err());
    assert!(verify(&received, &[""], NOW).is_err());
});
