//! What an installation may decide about the page.

use clap::Args;

use crate::cluster::names;

/// Settings of the page.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Page")]
#[group(skip)]
pub struct Settings {
    /// Whether the port for operations has a page that shows reviews, tenants, verdicts and models to those whom Kubernetes lets; needs the
    /// rights of k8s-resources/overlays/page
    #[arg(long, env = "TENANCY_FIXER_PAGE", value_name = "BOOL", default_value = "false", action = clap::ArgAction::Set)]
    pub page: bool,

    /// Reviews that are kept for it, and as many judgements of the gate; each takes some 600 bytes of memory, and never more than 5 KiB
    #[arg(long, env = "TENANCY_FIXER_PAGE_REVIEWS", value_name = "NUMBER", default_value = "500", value_parser = clap::value_parser!(u16).range(1..=5000))]
    pub page_reviews: u16,

    // A token with the API server's own audience would be good for all that its owner may do, should we be taken over.
    /// Audiences of which a token has to have one; the API server's own one lets in whoever may use that with the same token
    #[arg(long, env = "TENANCY_FIXER_PAGE_AUDIENCES", value_name = "NAMES", value_delimiter = ',', default_value = names::PROJECT)]
    pub page_audiences: Vec<String>,
}
