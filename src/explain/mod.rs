//! `tenancy-fixer explain`: what we did to one object and why, or which condition failed.
//!
//! `kinds` knows what may be asked about, `facts` reads it and what is around it, `judge` runs the decisions again as the rules stand now
//! (pure), `conditions` is the table of what may have failed, `told` is how it is told.

mod conditions;
mod facts;
mod judge;
mod kinds;
mod told;

use anyhow::Context as _;
use kube::Client;

pub use conditions::Condition;
pub use judge::Explanation;

use crate::cli::Explain;
use crate::tenancy;

/// Explains what the command line names.
///
/// # Errors
/// A kind or an object that is not there, and what the API server refuses or does not answer.
pub async fn look(client: &Client, settings: &Explain) -> anyhow::Result<Vec<Explanation>> {
    let in_cluster = &settings.in_cluster;
    let mut explanations = Vec::new();
    for subject in facts::subjects(client, settings).await? {
        let defaults =
            tenancy::Defaults { identity: in_cluster.mutation.identity, owner_only: in_cluster.mutation.owner_only };
        let namespace = subject.namespace();
        let tenant = tenancy::tenant(client, namespace, &in_cluster.tenancy, defaults)
            .await
            .with_context(|| format!("reading namespace {namespace}, its Profile and what it has"))?;
        let surroundings = facts::around(client, &subject, in_cluster, tenant).await?;
        explanations.push(judge::explain(&subject, &surroundings, in_cluster)?);
    }
    Ok(explanations)
}
