//! Names of content by what is in it: `sha256:...` and `sha512:...` (OCI image specification, descriptor.md).

use std::fmt;
use std::str::FromStr;

use ring::digest::{self, Algorithm};
use serde::{Deserialize, Deserializer, de};

/// The algorithms that the specification registers, and how many hexadecimal digits each has.
const ALGORITHMS: &[(&str, usize, &Algorithm)] = &[("sha256", 64, &digest::SHA256), ("sha512", 128, &digest::SHA512)];

/// A digest that is well formed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Digest(String);

impl Digest {
    /// The SHA-256 of some content.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(format!("sha256:{}", hexadecimal(&digest::SHA256, content)))
    }

    /// Whether it is the digest of that content.
    #[must_use]
    pub fn is_of(&self, content: &[u8]) -> bool {
        self.0.split_once(':').is_some_and(|(name, expected)| {
            let algorithm = ALGORITHMS.iter().find(|(known, ..)| *known == name);
            algorithm.is_some_and(|(_, _, algorithm)| hexadecimal(algorithm, content) == expected)
        })
    }

    /// For content that comes in pieces.
    pub(super) fn verifier(&self) -> Option<Verifier> {
        let (name, expected) = self.0.split_once(':')?;
        let (_, _, algorithm) = ALGORITHMS.iter().find(|(known, ..)| *known == name)?;
        Some(Verifier { context: digest::Context::new(algorithm), expected: expected.to_owned() })
    }

    /// `ALGORITHM:HEX`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Compares content with its digest piece by piece.
pub(super) struct Verifier {
    context: digest::Context,
    expected: String,
}

impl Verifier {
    pub(super) fn update(&mut self, piece: &[u8]) {
        self.context.update(piece);
    }

    /// Whether that was all of it.
    pub(super) fn matches(self) -> bool {
        written(self.context.finish().as_ref()) == self.expected
    }
}

fn hexadecimal(algorithm: &'static Algorithm, content: &[u8]) -> String {
    written(digest::digest(algorithm, content).as_ref())
}

fn written(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl fmt::Display for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let well_formed = text.split_once(':').is_some_and(|(name, hexadecimal)| {
            let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            let known = |(algorithm, length, _): &(&str, usize, _)| *algorithm == name && *length == hexadecimal.len();
            ALGORITHMS.iter().any(known) && hexadecimal.bytes().all(digit)
        });
        if well_formed {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("{text:?} is no digest: expected sha256: and 64 hexadecimal digits in lower case"))
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_checked_by_the_algorithm_that_is_named() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").as_str(), empty);
        let digest: Digest = empty.parse().unwrap();
        assert!(digest.is_of(b"") && !digest.is_of(b" "));
        let longer = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e";
        assert!(longer.parse::<Digest>().unwrap().is_of(b""));
        for wrong in ["", "sha256:", "sha256:E3B0", "sha512:e3b0", "md5:d41d8cd98f00b204e9800998ecf8427e", "../x"] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }
}
