//! The secret by which deliveries are signed. One from a file is followed: MLflow goes on signing with the one before until its cache
//! has forgotten it, so that one counts for some time as well.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use secrecy::{ExposeSecret as _, SecretString};

/// How long the secret before counts: MLflow's cache keeps webhooks for 60 s, and an attempt may be as old as a delivery may be.
const OVERLAP: Duration = Duration::from_mins(6);

/// How to come by one.
pub(super) const HOW: &str = "Without a secret anybody could send deliveries. Make one with: kubectl create secret generic \
     mlflow-webhook-secret -n mlflow --from-literal=secret=$(openssl rand -base64 32)";

/// The secret now, and the one before. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Secrets {
    file: Option<Arc<PathBuf>>,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    now: Option<SecretString>,
    before: Option<(SecretString, Instant)>,
}

impl Secrets {
    /// Of a text or of a file; there may be none.
    pub(super) fn new(text: Option<SecretString>, file: Option<PathBuf>) -> anyhow::Result<Self> {
        let text = text.filter(|text| !text.expose_secret().is_empty());
        if text.is_some() && file.is_some() {
            bail!(
                "--mlflow-webhook-secret (MLFLOW_KSERVE_MLFLOW_WEBHOOK_SECRET) and --mlflow-webhook-secret-file: only one of them can be set"
            );
        }
        let known = Known { now: text, before: None };
        let secrets = Self { file: file.map(Arc::new), known: Arc::new(Mutex::new(known)) };
        secrets.read_again()?;
        Ok(secrets)
    }

    pub(super) fn is_there(&self) -> bool {
        self.now().is_some()
    }

    /// By which MLflow is to sign.
    pub(super) fn now(&self) -> Option<SecretString> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).now.clone()
    }

    /// By which a delivery may be signed.
    pub(super) fn accepted(&self) -> Vec<SecretString> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.before.as_ref().filter(|(_, since)| since.elapsed() < OVERLAP);
        known.now.iter().chain(before.map(|(secret, _)| secret)).cloned().collect()
    }

    /// Looks whether the file has another one by now; whether it has.
    pub(super) fn read_again(&self) -> anyhow::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let text = match fs::read_to_string(&**file) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("{} (--mlflow-webhook-secret-file) is not there. {HOW}", file.display())
            }
            text => text.with_context(|| format!("reading {} (--mlflow-webhook-secret-file)", file.display()))?,
        };
        let text = text.trim_end_matches(['\n', '\r']);
        ensure!(!text.is_empty(), "{} (--mlflow-webhook-secret-file) is empty", file.display());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.now.as_ref().is_some_and(|now| now.expose_secret() == text) {
            return Ok(false);
        }
        known.before = known.now.replace(text.into()).map(|before| (before, Instant::now()));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_followed_and_the_secret_before_counts_for_a_while() {
        let file = std::env::temp_dir().join(format!("tenancy-fixer-secret-{}", std::process::id()));
        fs::write(&file, "one\n").unwrap();
        let secrets = Secrets::new(None, Some(file.clone())).unwrap();
        fs::write(&file, "two").unwrap();
        assert!(secrets.read_again().unwrap());
        assert!(!secrets.read_again().unwrap());
        let accepted: Vec<_> = secrets.accepted().iter().map(|secret| secret.expose_secret().to_owned()).collect();
        assert_eq!(accepted, ["two", "one"]);
        fs::write(&file, "").unwrap();
        assert!(secrets.read_again().is_err());
        assert_eq!(secrets.now().unwrap().expose_secret(), "two");
        fs::remove_file(&file).unwrap();
    }

    #[test]
    fn an_empty_text_is_none() {
        assert!(!Secrets::new(Some("".into()), None).unwrap().is_there());
        assert!(Secrets::new(Some("a".into()), Some("/nowhere".into())).is_err());
        assert!(Secrets::new(None, Some("/nowhere".into())).is_err());
    }
}
