//! From a review to whom it is about, and from what was found to the answer. Pure.

use std::borrow::Cow;

use super::judge::{Answer, Containers, Finding, Judged, Requirement, verdict};
use super::runtime::RuntimeRef;
use super::settings::{Mode, Unknown};
use super::subject::{self, Container};
use crate::admission::json::{Node, Unexpected};
use crate::admission::{Outcome, Request};
use crate::cluster::kinds::{TemplatePath, Templates, WorkloadKind};

/// What a review is about.
#[derive(Debug)]
pub enum Subject {
    /// There is nothing to look at, and this is the answer.
    Answered(Outcome),
    /// These containers.
    Containers(Vec<Container>),
    /// The container that a TrainJob says this of, and the runtime that has the rest.
    TrainJob(Box<Container>, RuntimeRef),
}

/// Most containers of one job that are looked at; one job has a few.
pub(super) const MOST_CONTAINERS: usize = 16;

/// Kinds of Kubernetes itself that have pod templates and end: group, kind, and where the template is.
const BATCH: &[(&str, &[&str])] =
    &[("Job", &["spec", "template"]), ("CronJob", &["spec", "jobTemplate", "spec", "template"])];

/// Whose containers a review is about. `helpers` are the names of those that are not the job's own.
#[must_use]
pub fn subject(request: &Request<'_>, workloads: &[WorkloadKind], helpers: &[String]) -> Subject {
    if !matches!(request.operation, "CREATE" | "UPDATE") {
        return Subject::Answered(Outcome::unchanged(format!("operation {} changes nothing", request.operation)));
    }
    let Some(object) = request.object else {
        let warning = "tenancy-fixer gate: request.object is missing".to_owned();
        return Subject::Answered(Outcome::puzzled("the review has no object", warning));
    };
    match containers(object, request, workloads, helpers) {
        Ok(subject) => subject,
        Err(unexpected) => {
            let text = unexpected.to_string();
            let field = text.strip_prefix("request.object.").unwrap_or(&text);
            let warning = format!("tenancy-fixer gate: not looked at, since {field}");
            Subject::Answered(Outcome::puzzled("the object is malformed", warning))
        }
    }
}

fn containers(
    object: Node<'_>,
    request: &Request<'_>,
    workloads: &[WorkloadKind],
    helpers: &[String],
) -> Result<Subject, Unexpected> {
    let Some(place) = place(request, workloads) else {
        let (kind, group) = (request.kind, request.group);
        let warning =
            format!("tenancy-fixer gate: not for kind {kind:?} of group {group:?}; check the webhook's rules");
        return Ok(Subject::Answered(Outcome::puzzled("the gate is not for this kind", warning)));
    };
    let found = of_object(object, &place, request.version, helpers)?;
    if request.operation == "UPDATE" && found.is_whole() {
        // What was there before and could not be read is no reason to refuse what is there now.
        let before = request.old_object.and_then(|before| of_object(before, &place, request.version, helpers).ok());
        if before.is_some_and(|before| before == found) {
            return Ok(Subject::Answered(Outcome::unchanged("its containers stay as they were")));
        }
    }
    Ok(match found {
        Found::Containers(containers) => Subject::Containers(containers),
        Found::Trainer(trainer, Ok(runtime)) => Subject::TrainJob(trainer, runtime),
        Found::Trainer(trainer, Err(reason)) => Subject::Containers(vec![trainer.without_runtime(&reason)]),
    })
}

/// Where the containers of a kind are.
enum Place<'w> {
    Template(&'static [&'static str]),
    Templates(&'w [TemplatePath]),
    Runtime,
}

fn place<'w>(request: &Request<'_>, workloads: &'w [WorkloadKind]) -> Option<Place<'w>> {
    if request.group == "batch" {
        let (_, path) = BATCH.iter().find(|(kind, _)| *kind == request.kind)?;
        return Some(Place::Template(path));
    }
    let workload = workloads.iter().find(|workload| workload.is(request.group, request.kind))?;
    Some(match &workload.templates {
        Templates::At(paths) => Place::Templates(paths),
        Templates::OfRuntime => Place::Runtime,
    })
}

/// What an object says of its containers.
#[derive(PartialEq, Eq)]
enum Found {
    Containers(Vec<Container>),
    /// A TrainJob's own part of its runtime, and which that is.
    Trainer(Box<Container>, Result<RuntimeRef, String>),
}

impl Found {
    /// Whether nothing was left out.
    fn is_whole(&self) -> bool {
        match self {
            Self::Containers(found) => {
                found.len() <= MOST_CONTAINERS && found.iter().all(|container| container.unknown.is_none())
            }
            Self::Trainer(trainer, _) => trainer.unknown.is_none(),
        }
    }
}

fn of_object(object: Node<'_>, place: &Place<'_>, version: &str, helpers: &[String]) -> Result<Found, Unexpected> {
    let templates: Vec<Node<'_>> = match place {
        Place::Template(path) => object.at(path).into_iter().collect(),
        Place::Templates(paths) => paths.iter().flat_map(|path| object.all_at(TemplatePath::steps(path))).collect(),
        Place::Runtime => {
            let trainer = subject::trainer(object.at(&["spec", "trainer"]))?;
            let is_small = trainer.size() <= subject::LARGEST;
            let trainer = if is_small { trainer } else { trainer.without_content() };
            return Ok(Found::Trainer(Box::new(trainer), RuntimeRef::of(object, version)));
        }
    };
    let mut found = Vec::new();
    for template in templates {
        found.extend(subject::containers(template, helpers)?.take(MOST_CONTAINERS + 1));
    }
    kept(found).map(Found::Containers)
}

/// At most one more than are looked at, each once, and no more of their bytes than are kept.
pub(super) fn kept(
    containers: impl IntoIterator<Item = Result<Container, Unexpected>>,
) -> Result<Vec<Container>, Unexpected> {
    let (mut found, mut size): (Vec<Container>, usize) = (Vec::new(), 0);
    for container in containers {
        let mut container = container?;
        let own = container.size();
        if size.saturating_add(own) > subject::LARGEST {
            container = container.without_content();
        }
        // Replicas of a distributed job are often alike.
        if !found.contains(&container) {
            size = size.saturating_add(own);
            found.push(container);
        }
        if found.len() > MOST_CONTAINERS {
            break;
        }
    }
    Ok(found)
}

/// What becomes of a job of which that was found.
#[must_use]
pub fn outcome(mode: Mode, unknown: Unknown, containers: Containers, judged: &[Judged]) -> (Answer, Outcome) {
    let answer = verdict(judged, containers);
    if mode == Mode::Off {
        return (answer, Outcome::unchanged("the gate is off"));
    }
    let outcome = match answer {
        Answer::Yes => Outcome::unchanged("it has what is required"),
        Answer::No if mode == Mode::Enforce => refused("it lacks what is required", message(judged, answer)),
        Answer::Unknown if mode == Mode::Enforce && unknown == Unknown::Deny => {
            refused("nobody can tell whether it has what is required", message(judged, answer))
        }
        Answer::No => warned("it lacks what is required", judged, "refused where the gate is enforced"),
        Answer::Unknown => warned("nobody can tell whether it has what is required", judged, "let through unseen"),
    };
    (answer, outcome)
}

fn refused(reason: &'static str, message: String) -> Outcome {
    Outcome { denied: Some(message), ..Outcome::unchanged(reason) }
}

/// The first things first: a warning has less than 256 characters.
fn warned(reason: &'static str, judged: &[Judged], what: &str) -> Outcome {
    let lacking = || judged.iter().filter(|judged| judged.answer() != Answer::Yes);
    let mut warnings: Vec<String> = lacking()
        .flat_map(|judged| {
            let mut findings: Vec<&Finding> =
                judged.findings.iter().filter(|finding| finding.answer != Answer::Yes).collect();
            // Where nothing could be read, it is the same reason for all.
            findings.dedup_by(|one, other| one.text == other.text);
            findings.into_iter().map(move |finding| {
                let Judged { container, image, .. } = judged;
                let asked = asked(finding);
                format!("tenancy-fixer gate: {what}: container {container}: {asked}: {}; image {image}", finding.text)
            })
        })
        .take(MOST_CONTAINERS)
        .collect();
    if warnings.is_empty() {
        warnings.push(format!("tenancy-fixer gate: {what}: the job has no containers of its own"));
    }
    Outcome { warnings, ..Outcome::unchanged(reason) }
}

/// Everything that its author has to know: `kubectl` prints it as it is.
fn message(judged: &[Judged], answer: Answer) -> String {
    let mut lines = vec![match answer {
        Answer::Unknown => {
            "nobody can tell whether this job logs to MLflow, which the gate of this namespace wants to know".to_owned()
        }
        _ => "this job does not log to MLflow, which the gate of this namespace requires".to_owned(),
    }];
    if judged.is_empty() {
        lines.push("it has no containers of its own".to_owned());
    }
    let mut mends: Vec<&str> = Vec::new();
    let mut lacking = judged.iter().filter(|judged| judged.answer() != Answer::Yes);
    for judged in lacking.clone().take(MOST_CONTAINERS) {
        let digest = judged.digest.as_ref().map_or(Cow::Borrowed("not read"), |digest| Cow::Borrowed(digest.as_str()));
        lines.push(format!("container {}, image {} ({digest}):", judged.container, judged.image));
        for finding in &judged.findings {
            let answer = match finding.answer {
                Answer::Yes => "yes",
                Answer::No => "no",
                Answer::Unknown => "cannot be told",
            };
            lines.push(format!("  {} {answer}: {}", asked(finding), finding.text));
            if finding.answer == Answer::No && !mends.contains(&mend(finding.requirement)) {
                mends.push(mend(finding.requirement));
            }
        }
    }
    if lacking.nth(MOST_CONTAINERS).is_some() {
        lines.push(format!("and more containers than the {MOST_CONTAINERS} that are looked at"));
    }
    if !mends.is_empty() {
        lines.push(format!("to mend it: {}", mends.join("; ")));
    }
    lines.join("\n")
}

fn asked(finding: &Finding) -> &'static str {
    match finding.requirement {
        Requirement::Package => "has the package mlflow?",
        Requirement::Logging => "logs to MLflow?",
        Requirement::TrackingUri => "knows where to log?",
    }
}

const fn mend(requirement: Requirement) -> &'static str {
    match requirement {
        Requirement::Package => "install mlflow in the image (pip install mlflow)",
        Requirement::Logging => {
            "call mlflow.autolog(), or log with mlflow.log_metric and the like, in the code that the job runs"
        }
        Requirement::TrackingUri => "set MLFLOW_TRACKING_URI in the container's env",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::json::Document;

    fn read(request: &serde_json::Value) -> Vec<String> {
        let review =
            serde_json::json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
                .to_string();
        let document: Document<'_> = serde_json::from_str(&review).unwrap();
        let request = Request::read(&document).unwrap();
        match subject(&request, WorkloadKind::known(), &["wait".to_owned()]) {
            Subject::Containers(found) => found.into_iter().map(|container| container.name).collect(),
            Subject::TrainJob(trainer, _) => vec![trainer.name],
            Subject::Answered(outcome) => vec![outcome.reason.into_owned()],
        }
    }

    fn request(group: &str, kind: &str, spec: &serde_json::Value) -> serde_json::Value {
        serde_json::json!({"uid": "1", "operation": "CREATE", "kind": {"group": group, "version": "v1", "kind": kind}, "object": {"spec": spec}})
    }

    fn template(names: &[&str]) -> serde_json::Value {
        let containers: Vec<_> =
            names.iter().map(|name| serde_json::json!({"name": name, "image": format!("i/{name}")})).collect();
        serde_json::json!({"spec": {"containers": containers, "initContainers": [{"name": "first", "image": "i"}]}})
    }

    #[test]
    fn every_kind_has_its_containers() {
        let own = template(&["train", "wait"]);
        let found = |group: &str, kind: &str, spec: serde_json::Value| read(&request(group, kind, &spec));
        assert_eq!(found("batch", "Job", serde_json::json!({"template": own})), ["train"]);
        assert_eq!(
            found("batch", "CronJob", serde_json::json!({"jobTemplate": {"spec": {"template": own}}})),
            ["train"]
        );
        let replicas = serde_json::json!({"pytorchReplicaSpecs": {"Master": {"template": own}, "Worker": {"template": own}, "Other": {"template": template(&["other"])}}});
        assert_eq!(found("kubeflow.org", "PyTorchJob", replicas), ["train", "other"]);
        let trainer = serde_json::json!({"runtimeRef": {"name": "torch"}, "trainer": {"image": "i"}});
        assert_eq!(found("trainer.kubeflow.org", "TrainJob", trainer), ["trainer"]);
        assert!(read(&request("", "Pod", &serde_json::json!({})))[0].contains("not for this kind"));
        // A name alone does not get anybody by.
        assert_eq!(found("batch", "Job", serde_json::json!({"template": template(&["wait"])})), ["wait"]);
    }

    #[test]
    fn an_update_is_judged_if_it_changes_a_container() {
        let mut request = request(
            "batch",
            "CronJob",
            &serde_json::json!({"suspend": true, "jobTemplate": {"spec": {"template": template(&["a"])}}}),
        );
        request["operation"] = "UPDATE".into();
        request["oldObject"] = serde_json::json!({"spec": {"jobTemplate": {"spec": {"template": template(&["a"])}}}});
        assert!(read(&request)[0].contains("as they were"));
        request["oldObject"] = serde_json::json!({"spec": {"jobTemplate": {"spec": {"template": template(&["b"])}}}});
        assert_eq!(read(&request), ["a"]);
        request["operation"] = "DELETE".into();
        assert!(read(&request)[0].contains("changes nothing"));
    }

    fn judged(answer: Answer) -> Judged {
        let finding = Finding { requirement: Requirement::Logging, answer, text: "found this".to_owned() };
        Judged {
            container: "train".to_owned(),
            image: "registry/image:v1".to_owned(),
            digest: Some("sha256:abc".to_owned()),
            findings: vec![finding],
        }
    }

    #[test]
    fn the_answer_is_by_mode() {
        let say = |mode, unknown, answer| {
            let (_, outcome) = outcome(mode, unknown, Containers::All, &[judged(answer)]);
            (outcome.denied.is_some(), outcome.warnings.len())
        };
        for (mode, unknown, answer, expected) in [
            (Mode::Off, Unknown::Deny, Answer::No, (false, 0)),
            (Mode::Warn, Unknown::Deny, Answer::No, (false, 1)),
            (Mode::Warn, Unknown::Deny, Answer::Unknown, (false, 1)),
            (Mode::Enforce, Unknown::Allow, Answer::No, (true, 0)),
            (Mode::Enforce, Unknown::Allow, Answer::Unknown, (false, 1)),
            (Mode::Enforce, Unknown::Deny, Answer::Unknown, (true, 0)),
            (Mode::Enforce, Unknown::Deny, Answer::Yes, (false, 0)),
        ] {
            assert_eq!(say(mode, unknown, answer), expected, "{mode:?} {unknown:?} {answer:?}");
        }
        let (_, outcome) = outcome(Mode::Enforce, Unknown::Allow, Containers::Any, &[judged(Answer::No)]);
        let message = outcome.denied.unwrap();
        for part in
            ["container train", "registry/image:v1", "sha256:abc", "logs to MLflow? no: found this", "to mend it"]
        {
            assert!(message.contains(part), "{part} in {message}");
        }
    }

    #[test]
    fn an_answer_has_an_end() {
        let judged: Vec<Judged> = (0..1000).map(|_| judged(Answer::No)).collect();
        let (_, refused) = outcome(Mode::Enforce, Unknown::Allow, Containers::All, &judged);
        let message = refused.denied.unwrap();
        assert!(message.len() < 10_000 && message.contains("and more containers than the 16"), "{message}");
        let (_, warned) = outcome(Mode::Warn, Unknown::Allow, Containers::All, &judged);
        assert_eq!(warned.warnings.len(), MOST_CONTAINERS);
    }
}
