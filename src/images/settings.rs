//! What an installation may decide about asking registries.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::address::{Network, RegistryPattern};
use super::manifest::Platform;
use super::reference::is_authority;
use crate::durations;

/// Settings of the registry client.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Images")]
#[group(skip)]
pub struct Settings {
    /// Whether registries are asked what a container runs that has no command; the gate asks them in any case
    #[arg(long, env = "TENANCY_FIXER_IMAGE_LOOKUPS", value_name = "BOOL", default_value = "true", action = clap::ArgAction::Set)]
    pub image_lookups: bool,

    /// Whether they are asked with the pull secrets of the pod; needs the overlay pull-secrets
    #[arg(long, env = "TENANCY_FIXER_IMAGE_PULL_SECRETS", value_name = "BOOL", default_value = "false", action = clap::ArgAction::Set)]
    pub image_pull_secrets: bool,

    /// Which image is looked at where a name stands for several
    #[arg(long, env = "TENANCY_FIXER_IMAGE_PLATFORM", value_name = "PLATFORM", default_value = "linux/amd64")]
    pub image_platform: Platform,

    /// Longest time that a look at a registry goes on in the background
    #[arg(long, env = "TENANCY_FIXER_IMAGE_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = durations::any)]
    pub image_timeout: Duration,

    /// How long a tag is taken to mean the same image
    #[arg(long, env = "TENANCY_FIXER_IMAGE_TAG_TTL", value_name = "TIME", default_value = "60s", value_parser = durations::any)]
    pub image_tag_ttl: Duration,

    /// How long a registry is left alone after a failed look
    #[arg(long, env = "TENANCY_FIXER_IMAGE_FAILURE_TTL", value_name = "TIME", default_value = "10s", value_parser = durations::any)]
    pub image_failure_ttl: Duration,

    /// Bytes of images' configurations that are kept in memory
    #[arg(long, env = "TENANCY_FIXER_IMAGE_CACHE_BYTES", value_name = "BYTES", default_value = "8388608")]
    pub image_cache_bytes: u64,

    /// Most requests to registries at once; a quarter of them for one tenant
    #[arg(long, env = "TENANCY_FIXER_IMAGE_CONCURRENCY", value_name = "NUMBER", default_value = "32",
          value_parser = clap::value_parser!(u16).range(1..))]
    pub image_concurrency: u16,

    /// Registries that may be asked, as HOST or HOST:PORT with * for any part of the host; all if none is named
    #[arg(long, env = "TENANCY_FIXER_REGISTRY_ALLOW", value_name = "NAMES", value_delimiter = ',')]
    pub registry_allow: Vec<RegistryPattern>,

    /// Hosts that are never asked, nor followed to
    #[arg(long, env = "TENANCY_FIXER_REGISTRY_DENY", value_name = "NAMES", value_delimiter = ',')]
    pub registry_deny: Vec<RegistryPattern>,

    /// Registries that are asked without TLS, as HOST or HOST:PORT
    #[arg(long, env = "TENANCY_FIXER_INSECURE_REGISTRIES", value_name = "NAMES", value_delimiter = ',', value_parser = authority)]
    pub insecure_registries: Vec<String>,

    /// Networks (CIDR) and hosts' names that may be connected to although they are not of the public internet
    #[arg(long, env = "TENANCY_FIXER_REGISTRY_NETWORKS", value_name = "NETWORKS", value_delimiter = ',')]
    pub registry_networks: Vec<Network>,

    /// File with certificates of authorities that are trusted beside those of the public internet, PEM
    #[arg(long, env = "TENANCY_FIXER_REGISTRY_CA_FILE", value_name = "FILE")]
    pub registry_ca_file: Option<PathBuf>,
}

fn authority(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    if is_authority(&lower) { Ok(lower) } else { Err(format!("{text:?} is no registry: expected HOST or HOST:PORT")) }
}
