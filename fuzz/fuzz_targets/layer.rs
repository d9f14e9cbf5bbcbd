//! Any bytes as the layers of an image: what comes of them is within limits, and a job that runs it is judged, never with a panic.
//!
//! The first byte says how many layers there are (bits 2 and 3) and whether the bytes are packed first (1: gzip, 2: zstd), so that what is
//! tried reaches the archive within. Each layer but the last has its length before it, in two bytes.
#![no_main]

use std::io::Write as _;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tenancy_fixer::gate::{self, Container, Containers, File, Image, Requirement, Rule};
use tenancy_fixer::images::{Digest, ImageConfig, Limits, unpacked};

/// Small ones, so that they are met.
static LIMITS: LazyLock<Limits> = LazyLock::new(|| Limits {
    compressed: 1 << 20,
    uncompressed: 4 << 20,
    entries: 2000,
    kept: 64 << 10,
    ..Limits::default()
});

static RULE: LazyLock<Rule> = LazyLock::new(|| Rule {
    require: vec![Requirement::Package, Requirement::Logging, Requirement::TrackingUri],
    containers: Containers::Any,
});

fn config() -> ImageConfig {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    ImageConfig {
        digest: Digest::of(b""),
        entrypoint: words(&["/entrypoint.sh"]),
        cmd: words(&["python", "train.py"]),
        env: words(&["PATH=/usr/bin", "PYTHONPATH=/lib:/srv"]),
        workdir: "/app".to_owned(),
        user: String::new(),
        architecture: "amd64".to_owned(),
    }
}

fn packed(packing: u8, content: &[u8]) -> Vec<u8> {
    match packing {
        1 => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(content).expect("memory takes everything");
            encoder.finish().expect("memory takes everything")
        }
        2 => zstd::encode_all(content, 1).expect("memory takes everything"),
        _ => content.to_vec(),
    }
}

fn layers(choice: u8, mut rest: &[u8]) -> Vec<Vec<u8>> {
    let mut layers = Vec::new();
    for _ in 0..(choice >> 2) & 3 {
        let Some((head, behind)) = rest.split_at_checked(2) else { break };
        let length = usize::from(u16::from_le_bytes([head[0], head[1]])).min(behind.len());
        let (layer, behind) = behind.split_at(length);
        layers.push(packed(choice & 3, layer));
        rest = behind;
    }
    layers.push(packed(choice & 3, rest));
    layers
}

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, rest)) = bytes.split_first() else { return };
    let layers = layers(*choice, rest);
    let slices: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let Ok(image) = unpacked::<Image>(&config(), &slices, *LIMITS) else { return };
    let mut kept = 0;
    for (path, file) in image.files.iter() {
        assert!(path.starts_with('/') && !path.contains("/../") && !path.contains("//"), "{path:?}");
        kept += path.len() + if let File::Text(text) | File::Link(text) = file { text.len() } else { 0 };
    }
    assert!(kept <= 2 * (64 << 10), "{kept} bytes are kept");
    let judged = gate::container(&Container::default(), Ok(&image), &RULE);
    assert_eq!(judged.findings.len(), RULE.require.len());
});
