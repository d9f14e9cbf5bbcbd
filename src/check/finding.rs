//! What a look at a cluster has found, and how it is told. Pure.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Value, json};

use crate::looked::Told;

/// What is looked at, in the order in which it is told and mended: what stands further up is what the rest stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// The API server's version.
    Version,
    /// Whether sidecars of jobs are native ones.
    NativeSidecars,
    /// The kinds that we read and write.
    Kinds,
    /// The verbs that we use, each as the shipped roles have it.
    Rights,
    /// Our Deployment.
    Server,
    /// The webhook configurations by name.
    Configuration,
    /// Each webhook against the table of endpoints.
    Webhook,
    /// Whom the API server calls before us.
    Order,
    /// Certificates, and whom the webhooks trust.
    Certificate,
    /// Istio's control plane.
    Istio,
    /// How a tenant's pods are in the mesh.
    Mesh,
    /// Katib's controller.
    Katib,
    /// What Katib's metrics collectors wait for.
    WaitAllProcesses,
    /// KServe's controller.
    KServe,
    /// MLflow's answer.
    Mlflow,
    /// A tenant, and what it lacks.
    Tenant,
}

impl Point {
    /// All of them, in that order.
    pub const ALL: [Self; 16] = [
        Self::Version,
        Self::NativeSidecars,
        Self::Kinds,
        Self::Rights,
        Self::Server,
        Self::Configuration,
        Self::Webhook,
        Self::Order,
        Self::Certificate,
        Self::Istio,
        Self::Mesh,
        Self::Katib,
        Self::WaitAllProcesses,
        Self::KServe,
        Self::Mlflow,
        Self::Tenant,
    ];

    /// Its group, and its name in that: fields of the JSON form, which stay as they are.
    #[must_use]
    pub const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Version => ("cluster", "version"),
            Self::NativeSidecars => ("cluster", "native-sidecars"),
            Self::Kinds => ("cluster", "kinds"),
            Self::Rights => ("rights", "verbs"),
            Self::Server => ("server", "replicas"),
            Self::Configuration => ("webhooks", "configuration"),
            Self::Webhook => ("webhooks", "webhook"),
            Self::Order => ("webhooks", "order"),
            Self::Certificate => ("certificates", "certificate"),
            Self::Istio => ("istio", "version"),
            Self::Mesh => ("istio", "mode"),
            Self::Katib => ("katib", "version"),
            Self::WaitAllProcesses => ("katib", "wait-all-processes"),
            Self::KServe => ("kserve", "version"),
            Self::Mlflow => ("mlflow", "health"),
            Self::Tenant => ("tenants", "tenant"),
        }
    }

    /// It is as it should be.
    #[must_use]
    pub fn fine(self, message: impl Into<String>) -> Finding {
        Finding { point: self, state: State::Fine, message: message.into(), mend: None }
    }

    /// It is worth knowing, and nobody has to do anything.
    #[must_use]
    pub fn note(self, message: impl Into<String>) -> Finding {
        Finding { point: self, state: State::Note, message: message.into(), mend: None }
    }

    /// It is not as it should be; a command or a sentence says what to do.
    #[must_use]
    pub fn wrong(self, message: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { point: self, state: State::Wrong, message: message.into(), mend: Some(mend.into()) }
    }

    /// It could not be looked at.
    #[must_use]
    pub fn unseen(self, looking: &str, error: &kube::Error) -> Finding {
        let (message, mend) = match error {
            kube::Error::Api(status) if status.code == 403 => {
                (status.message.clone(), "have somebody look who may, such as a cluster admin")
            }
            error => (error.to_string(), "look again when the API server answers this"),
        };
        Finding {
            point: self,
            state: State::Unseen,
            message: format!("{looking}: not seen: {message}"),
            mend: Some(mend.to_owned()),
        }
    }
}

/// How it stands with something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// As it should be.
    Fine,
    /// Worth knowing.
    Note,
    /// Nobody could tell.
    Unseen,
    /// Not as it should be.
    Wrong,
}

impl State {
    const fn word(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Note => "note",
            Self::Unseen => "UNSEEN",
            Self::Wrong => "WRONG",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub point: Point,
    /// How it stands with it.
    pub state: State,
    /// What was found, as one line.
    pub message: String,
    /// What to do, for what is not as it should be.
    pub mend: Option<String>,
}

impl Finding {
    /// Whether somebody has to do something.
    #[must_use]
    pub fn needs_somebody(&self) -> bool {
        self.state >= State::Unseen
    }
}

/// Everything that was found.
#[derive(Clone, Debug, Default)]
pub struct Report(Vec<Finding>);

/// As many lines of one state are shown of one point: a cluster has hundreds of tenants, a screen has few lines.
const MOST_LINES: usize = 8;

impl Report {
    /// In the order of the points.
    #[must_use]
    pub fn of(mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| finding.point);
        Self(findings)
    }

    /// What to do first: what the rest stands on, and of that what is known to be wrong.
    #[must_use]
    pub fn first(&self) -> Option<&Finding> {
        let of = |state| self.0.iter().find(move |finding| finding.state == state);
        of(State::Wrong).or_else(|| of(State::Unseen))
    }
}

impl Told for Report {
    fn is_sound(&self) -> bool {
        !self.0.iter().any(Finding::needs_somebody)
    }

    /// By group, and at the end what to do first.
    fn text(&self) -> String {
        let mut text = String::new();
        let mut group = "";
        let mut shown = (None, 0);
        for (index, finding) in self.0.iter().enumerate() {
            let of = (finding.point, finding.state);
            let is_like = |other: &Finding| (other.point, other.state) == of;
            shown = if shown.0 == Some(of) { (Some(of), shown.1 + 1) } else { (Some(of), 1) };
            if shown.1 > MOST_LINES {
                let is_last = !self.0.get(index + 1).is_some_and(is_like);
                if is_last {
                    let _ = writeln!(text, "{:14}       and {} more: -o json has all", "", shown.1 - MOST_LINES);
                }
                continue;
            }
            let name = finding.point.names().0;
            let heading = if name == group { "" } else { name };
            group = name;
            let _ = writeln!(text, "{heading:<14}{:<7}{}", finding.state.word(), finding.message);
            if let Some(mend) = &finding.mend {
                let _ = writeln!(text, "{:14}    ->  {mend}", "");
            }
        }
        match self.first() {
            None => text.push_str("sound: nothing is to be done\n"),
            Some(finding) => {
                let mend = finding.mend.as_deref().unwrap_or_default();
                let count = self.0.iter().filter(|finding| finding.needs_somebody()).count();
                let _ = writeln!(text, "findings: {count}; first ({}): {mend}", finding.point.names().0);
            }
        }
        text
    }

    fn json(&self) -> Value {
        let findings: Vec<Value> = self.0.iter().map(Finding::json).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "sound": self.is_sound(),
            "first": self.first().map(Finding::json),
            "findings": findings,
        })
    }
}

impl Finding {
    fn json(&self) -> Value {
        let (group, check) = self.point.names();
        let mut value = json!({"group": group, "check": check, "state": self.state, "message": self.message});
        if let (Some(mend), Some(members)) = (&self.mend, value.as_object_mut()) {
            members.insert("mend".to_owned(), mend.as_str().into());
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_rest_stands_on_is_to_be_done_first() {
        let forbidden = kube::core::Status { code: 403, message: "no".to_owned(), ..Default::default() };
        let unseen = Point::Version.unseen("the version", &kube::Error::Api(Box::new(forbidden)));
        let report = Report::of(vec![
            Point::Tenant.wrong("alice lacks something", "wait"),
            Point::Webhook.wrong("it is not there", "apply it"),
            unseen.clone(),
            Point::Kinds.fine("all"),
        ]);
        assert!(!report.is_sound());
        assert_eq!(report.first().unwrap().point, Point::Webhook, "what is wrong comes before what was not seen");
        assert!(report.text().ends_with("findings: 3; first (webhooks): apply it\n"), "{}", report.text());
        assert_eq!(report.json()["first"]["mend"], "apply it");
        assert_eq!(report.json()["findings"][0]["state"], "unseen");
        assert_eq!(Report::of(vec![unseen]).first().unwrap().point, Point::Version);
    }

    #[test]
    fn a_thousand_tenants_fit_a_screen() {
        let tenants = (0..1000).map(|index| Point::Tenant.fine(format!("tenant {index}"))).collect();
        let text = Report::of(tenants).text();
        assert_eq!(text.lines().count(), MOST_LINES + 2);
        assert!(text.contains("and 992 more: -o json has all\n"), "{text}");
        assert!(text.ends_with("sound: nothing is to be done\n"));
    }

    #[test]
    fn every_point_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = Point::ALL.into_iter().map(Point::names).collect();
        assert_eq!(names.len(), Point::ALL.len());
        assert!(Point::ALL.is_sorted());
    }
}
