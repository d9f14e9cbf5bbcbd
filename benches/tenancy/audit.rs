//! The API server's audit log: who asked for what, and when.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use tenancy_fixer::tenancy::ChildKind;

/// One request as the API server saw it.
pub(crate) struct Request {
    pub(crate) user: String,
    pub(crate) verb: String,
    /// Plural.
    pub(crate) resource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) code: u16,
    /// When it came.
    pub(crate) received: Timestamp,
    /// When it was answered; of a watch: when its answer began.
    pub(crate) answered: Timestamp,
}

impl Request {
    /// The tenant that a write is for.
    pub(crate) fn tenant(&self) -> Option<&str> {
        let mut kinds = ChildKind::ALL.into_iter().filter(|kind| kind.plural() == self.resource);
        kinds.find_map(|kind| kind.tenant(&self.namespace, &self.name))
    }

    pub(crate) fn writes(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }

    /// Whether it is about no tenant: the lease, Events, discovery.
    pub(crate) fn is_own(&self) -> bool {
        OWN.contains(&self.resource.as_str())
    }
}

/// What requests without a resource are.
const DISCOVERY: &str = "discovery";
/// Resources that are about no tenant.
pub(crate) const OWN: [&str; 3] = ["leases", "events", DISCOVERY];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    stage: String,
    verb: String,
    user: User,
    object_ref: Option<ObjectRef>,
    response_status: Option<Status>,
    request_received_timestamp: String,
    stage_timestamp: String,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ObjectRef {
    resource: String,
    namespace: String,
    name: String,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
}

/// Every request that came at or after a time, in the order of the log.
pub(crate) fn since(folder: &Path, from: Timestamp) -> anyhow::Result<Vec<Request>> {
    let mut requests = Vec::new();
    for file in files(folder)? {
        let reader = BufReader::with_capacity(1 << 20, File::open(&file)?);
        for line in reader.lines() {
            let line: Line = serde_json::from_str(&line?).with_context(|| format!("a line of {}", file.display()))?;
            // A watch is answered for minutes: what counts is that it began.
            let counts = if line.verb == "watch" { "ResponseStarted" } else { "ResponseComplete" };
            let received: Timestamp = line.request_received_timestamp.parse()?;
            if line.stage != counts || received < from {
                continue;
            }
            let object = line.object_ref.unwrap_or_default();
            requests.push(Request {
                user: line.user.username,
                verb: line.verb,
                resource: if object.resource.is_empty() { DISCOVERY.to_owned() } else { object.resource },
                namespace: object.namespace,
                name: object.name,
                code: line.response_status.map_or(0, |status| status.code),
                received,
                answered: line.stage_timestamp.parse()?,
            });
        }
    }
    Ok(requests)
}

/// The log, and what was renamed when it had grown, oldest first.
fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        if name.starts_with("audit-2") {
            files.push(folder.join(name));
        }
    }
    files.sort();
    files.push(folder.join("audit.log"));
    Ok(files)
}
