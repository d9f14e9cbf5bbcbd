//! Where MLflow is, and as whom we ask it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, ValueEnum};
use hyper::Uri;
use hyper::header::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};

use crate::durations::positive;

/// Where Kubernetes puts the token of a pod's service account, and a newer one before it expires.
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Settings of MLflow's client.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "MLflow")]
#[group(skip)]
pub struct Settings {
    /// MLflow's tracking server, as `http(s)://HOST[:PORT][/PREFIX]`
    #[arg(long, env = "TENANCY_FIXER_MLFLOW_TRACKING_URI", value_name = "URI", value_parser = tracking_uri)]
    pub mlflow_tracking_uri: Option<Uri>,

    /// As whom MLflow is asked; by default what the other settings give
    #[arg(long, env = "TENANCY_FIXER_MLFLOW_AUTH", value_name = "HOW")]
    pub mlflow_auth: Option<Authentication>,

    /// User of MLflow's basic authentication
    #[arg(long, env = "TENANCY_FIXER_MLFLOW_USERNAME", value_name = "NAME")]
    pub mlflow_username: Option<String>,

    /// The user's password; others on the machine see what stands on a command line, so better a file or the variable
    #[arg(
        long,
        env = "TENANCY_FIXER_MLFLOW_PASSWORD",
        value_name = "TEXT",
        hide_env_values = true,
        hide_default_value = true
    )]
    pub mlflow_password: Option<SecretString>,

    /// File with the user's password, read again for each request
    #[arg(long, env = "TENANCY_FIXER_MLFLOW_PASSWORD_FILE", value_name = "FILE")]
    pub mlflow_password_file: Option<PathBuf>,

    /// Bearer token; better a file or the variable
    #[arg(
        long,
        env = "TENANCY_FIXER_MLFLOW_TOKEN",
        value_name = "TEXT",
        hide_env_values = true,
        hide_default_value = true
    )]
    pub mlflow_token: Option<SecretString>,

    /// File with a bearer token, read again for each request
    #[arg(long, env = "TENANCY_FIXER_MLFLOW_TOKEN_FILE", value_name = "FILE")]
    pub mlflow_token_file: Option<PathBuf>,

    /// File with certificates of authorities that are trusted for MLflow beside those of the public internet, PEM
    #[arg(long, env = "TENANCY_FIXER_MLFLOW_CA_FILE", value_name = "FILE")]
    pub mlflow_ca_file: Option<PathBuf>,

    /// Longest time for one request to MLflow
    #[arg(long, env = "TENANCY_FIXER_MLFLOW_TIMEOUT", value_name = "TIME", default_value = "15s", value_parser = positive)]
    pub mlflow_timeout: Duration,

    /// How often a request that may be repeated is sent again after a failure that may pass
    #[arg(long, env = "TENANCY_FIXER_MLFLOW_RETRIES", value_name = "NUMBER", default_value = "2")]
    pub mlflow_retries: u8,
}

/// As whom MLflow is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Authentication {
    /// As nobody.
    None,
    /// With user name and password.
    Basic,
    /// With a token.
    Bearer,
    /// With the token of our pod's service account (MLflow's plugin kubernetes-auth).
    Kubernetes,
}

/// What a request carries to show who we are. Files are read each time, since what is in them is replaced while we run.
#[derive(Clone, Debug)]
pub(super) enum Credentials {
    Nobody,
    Basic(String, Secret),
    Bearer(Secret),
}

/// A secret, or where it is.
#[derive(Clone, Debug)]
pub(super) enum Secret {
    Text(SecretString),
    File(PathBuf),
}

impl Settings {
    /// Decides as whom we ask.
    ///
    /// # Errors
    /// Settings that contradict each other or are half there, with their names.
    pub(super) fn credentials(&self) -> anyhow::Result<Credentials> {
        let password =
            secret("--mlflow-password", self.mlflow_password.as_ref(), self.mlflow_password_file.as_deref())?;
        let token = secret("--mlflow-token", self.mlflow_token.as_ref(), self.mlflow_token_file.as_deref())?;
        let username = self.mlflow_username.clone().filter(|name| !name.is_empty());
        let has_basic = username.is_some() || password.is_some();
        ensure!(
            !(has_basic && token.is_some()),
            "--mlflow-username and --mlflow-token (or their files) are two ways to say who we are; one of them has to go"
        );
        let how = self.mlflow_auth.unwrap_or(match (has_basic, &token) {
            (true, _) => Authentication::Basic,
            (false, Some(_)) => Authentication::Bearer,
            (false, None) => Authentication::None,
        });
        match (how, username, password, token) {
            (Authentication::None, None, None, None) => Ok(Credentials::Nobody),
            (Authentication::Basic, Some(username), Some(password), None) => {
                ensure!(!username.contains(':'), "--mlflow-username: a colon cannot be in it (RFC 7617)");
                Ok(Credentials::Basic(username, password))
            }
            (Authentication::Basic, None, ..) => bail!("--mlflow-username is missing, with which a password goes"),
            (Authentication::Basic, _, None, _) => {
                bail!(
                    "--mlflow-password-file or the variable TENANCY_FIXER_MLFLOW_PASSWORD is missing, with which --mlflow-username goes"
                )
            }
            (Authentication::Bearer, None, None, Some(token)) => Ok(Credentials::Bearer(token)),
            (Authentication::Bearer, _, _, None) => bail!("--mlflow-auth bearer: --mlflow-token-file is missing"),
            (Authentication::Kubernetes, None, None, None) => {
                Ok(Credentials::Bearer(Secret::File(SERVICE_ACCOUNT_TOKEN.into())))
            }
            (how, ..) => bail!("--mlflow-auth {how:?}: other settings say something else of who we are"),
        }
    }
}

/// A secret as text or as file, not both. An empty text is none: a Deployment has an optional Secret's variable so.
fn secret(flag: &str, text: Option<&SecretString>, file: Option<&Path>) -> anyhow::Result<Option<Secret>> {
    let text = text.filter(|text| !text.expose_secret().is_empty());
    match (text, file) {
        (Some(_), Some(_)) => bail!("{flag} and {flag}-file: only one of them can be set"),
        (Some(text), None) => Ok(Some(Secret::Text(text.clone()))),
        (None, Some(file)) => Ok(Some(Secret::File(file.to_owned()))),
        (None, None) => Ok(None),
    }
}

impl Credentials {
    /// The value of the header `Authorization`.
    ///
    /// # Errors
    /// A file that cannot be read, and what no header can carry.
    pub(super) fn header(&self) -> anyhow::Result<Option<HeaderValue>> {
        let text = match self {
            Self::Nobody => return Ok(None),
            Self::Basic(username, password) => {
                let pair = format!("{username}:{}", password.read()?.expose_secret());
                format!("Basic {}", STANDARD.encode(pair))
            }
            Self::Bearer(token) => format!("Bearer {}", token.read()?.expose_secret()),
        };
        let mut value =
            HeaderValue::try_from(text).context("MLflow's token has characters that no header can carry")?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

impl Secret {
    fn read(&self) -> anyhow::Result<SecretString> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(file) => {
                let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
                let text = text.trim_end_matches(['\n', '\r']);
                ensure!(!text.is_empty(), "{} is empty", file.display());
                Ok(text.into())
            }
        }
    }
}

/// A base that paths can be put behind.
///
/// # Errors
/// What is none: folders, databases, URIs with credentials in them.
pub fn tracking_uri(text: &str) -> Result<Uri, String> {
    let expected = "expected http(s)://HOST[:PORT][/PREFIX]";
    let uri: Uri = text.trim_end_matches('/').parse().map_err(|error| format!("{error}; {expected}"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(format!("a server is needed, not a folder or database; {expected}"));
    }
    let authority = uri.authority().map(hyper::http::uri::Authority::as_str).unwrap_or_default();
    if authority.contains('@') {
        return Err(
            "user and password do not belong into it; --mlflow-username and --mlflow-password-file have them".into()
        );
    }
    if authority.is_empty() || uri.query().is_some() {
        return Err(expected.to_owned());
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        settings: Settings,
    }

    fn settings(flags: &[&str]) -> Settings {
        Line::try_parse_from([&["mlflow"], flags].concat()).unwrap_or_else(|error| panic!("{error}")).settings
    }

    fn header(flags: &[&str]) -> Result<Option<String>, String> {
        let credentials = settings(flags).credentials().map_err(|error| format!("{error:#}"))?;
        let value = credentials.header().map_err(|error| format!("{error:#}"))?;
        Ok(value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()))
    }

    #[test]
    fn what_is_set_decides_as_whom_we_ask() {
        assert_eq!(header(&[]), Ok(None));
        let basic = header(&["--mlflow-username=listener", "--mlflow-password=hunter2"]);
        assert_eq!(basic, Ok(Some(format!("Basic {}", STANDARD.encode("listener:hunter2")))));
        assert_eq!(header(&["--mlflow-token=abc"]), Ok(Some("Bearer abc".into())));
        assert_eq!(header(&["--mlflow-password="]), Ok(None), "an optional Secret that is not there");
    }

    #[test]
    fn contradictions_name_the_settings() {
        for (flags, part) in [
            (&["--mlflow-username=a"][..], "--mlflow-password-file"),
            (&["--mlflow-password=a"], "--mlflow-username is missing"),
            (&["--mlflow-username=a", "--mlflow-token=b"], "two ways"),
            (&["--mlflow-token=a", "--mlflow-token-file=b"], "only one of them"),
            (&["--mlflow-auth=kubernetes", "--mlflow-token=a"], "something else"),
            (&["--mlflow-auth=bearer"], "--mlflow-token-file is missing"),
            (&["--mlflow-username=a:b", "--mlflow-password=c"], "colon"),
            (&["--mlflow-token-file=/nowhere/token"], "/nowhere/token"),
            (&["--mlflow-token=a\nb"], "no header"),
        ] {
            let error = header(flags).expect_err(&format!("{flags:?}"));
            assert!(error.contains(part), "{flags:?}: {error}");
        }
    }

    #[test]
    fn a_secret_is_not_printed() {
        let settings = settings(&["--mlflow-username=a", "--mlflow-password=hunter2"]);
        assert!(!format!("{settings:?}").contains("hunter2"));
        assert!(!format!("{:?}", settings.credentials().unwrap().header().unwrap()).contains("aHVudGVyMg"));
    }

    #[test]
    fn a_tracking_uri_is_a_server() {
        assert_eq!(tracking_uri("http://mlflow:5000/").unwrap(), "http://mlflow:5000/");
        assert_eq!(tracking_uri("https://example.org/mlflow/").unwrap().path(), "/mlflow");
        for wrong in [
            "",
            "mlflow:5000",
            "file:///tmp/mlruns",
            "sqlite:///mlflow.db",
            "databricks",
            "http://a:b@mlflow",
            "http://mlflow?x=y",
        ] {
            assert!(tracking_uri(wrong).is_err(), "{wrong}");
        }
    }
}
