//! The gate at work: looks at the images of a job while the API server waits, and answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use kube::Client;
use tokio::task::spawn_blocking;
use tokio::time::timeout_at;
use tracing::info;

use super::gather::{Judgements, Question};
use super::judge::{self, Answer, Judged, Rule};
use super::record::Record;
use super::review::{MOST_CONTAINERS, Subject, outcome, subject};
use super::runtime::RuntimeRef;
use super::secrets::{self, Named};
use super::settings::{Mode, Settings};
use super::subject::Container;
use super::tell::Teller;
use super::{Image, Metrics};
use crate::admission::json::Node;
use crate::admission::{About, Outcome, Request};
use crate::cluster::kinds::WorkloadKind;
use crate::images::{Credentials, Lookup, Reference};
use crate::recent::Recent;

/// How long after the deadline of a look its image may still be judged.
const READING: Duration = Duration::from_millis(500);

/// Everything that the gate works with; one for all reviews.
pub struct Gate {
    settings: Settings,
    rule: Arc<Rule>,
    workloads: Vec<WorkloadKind>,
    images: Lookup<Image>,
    judgements: Arc<Judgements>,
    cluster: Option<Cluster>,
    records: Option<Arc<Recent<Record>>>,
    metrics: Metrics,
}

/// What is to be known of one object: everything that the gate keeps of it while it looks.
#[derive(Debug)]
pub struct Case {
    mode: Mode,
    subject: Subject,
    named: Named,
}

/// The cluster that the jobs are in, where we have one.
struct Cluster {
    client: Client,
    teller: Arc<Teller>,
}

impl Gate {
    /// With the kinds of workloads that it knows beside those of Kubernetes.
    #[must_use]
    pub fn new(settings: Settings, workloads: Vec<WorkloadKind>, images: Lookup<Image>, metrics: Metrics) -> Self {
        let rule = Arc::new(settings.rule.rule());
        Self { settings, rule, workloads, images, judgements: Arc::default(), cluster: None, records: None, metrics }
    }

    /// Tells tenants by Events, and reads their pull secrets where the settings say so. `instance` is our name among replicas.
    #[must_use]
    pub fn in_cluster(self, client: Client, instance: &str) -> Self {
        let teller = Arc::new(Teller::new(client.clone(), instance));
        Self { cluster: Some(Cluster { client, teller }), ..self }
    }

    /// Keeps a record of each container that it judges.
    #[must_use]
    pub fn recorded(self, records: Arc<Recent<Record>>) -> Self {
        Self { records: Some(records), ..self }
    }

    /// What is to be known of an object in a namespace that asks for `asked`.
    #[must_use]
    pub fn case(&self, asked: Mode, request: &Request<'_>) -> Case {
        let mode = asked.min(self.settings.gate);
        let subject = match mode {
            Mode::Off => Subject::Answered(Outcome::unchanged("the gate is off")),
            Mode::Warn | Mode::Enforce => subject(request, &self.workloads, &self.settings.rule.gate_helpers),
        };
        Case { mode, subject, named: Named::of(request.object.and_then(first_template)) }
    }

    /// Answers a review by the deadline.
    pub async fn review(&self, case: Case, about: &About<'_>, deadline: Instant) -> Outcome {
        let begin = Instant::now();
        let Case { mode, subject, named } = case;
        let (containers, named) = match subject {
            Subject::Answered(outcome) => return outcome,
            Subject::Containers(containers) => (containers, named),
            Subject::TrainJob(trainer, runtime) => self.runtime(*trainer, &runtime, &about.namespace, named).await,
        };
        let credentials = match timeout_at(deadline.into(), self.credentials(about, named)).await {
            Ok(credentials) => credentials,
            Err(_) => Credentials::of(&about.namespace),
        };
        let (judged, cached) = self.judge(containers, &credentials, deadline).await;
        let (answer, outcome) = outcome(mode, self.settings.gate_unknown, self.settings.rule.gate_containers, &judged);
        self.metrics.judged(answer, mode, cached, begin.elapsed());
        for judged in &judged {
            log(about, judged, cached);
            if let Some(records) = &self.records {
                records.push(Record::of(about, mode, judged, cached));
            }
        }
        if answer != Answer::Yes && !about.dry_run {
            self.tell(about, &outcome);
        }
        outcome
    }

    /// Judges containers one beside the other, and says whether all that it took was known before.
    pub async fn judge(
        &self,
        containers: Vec<Container>,
        credentials: &Credentials,
        deadline: Instant,
    ) -> (Vec<Judged>, bool) {
        let too_many = containers.len().saturating_sub(MOST_CONTAINERS);
        let looked_at = containers.len().saturating_sub(too_many);
        let mut looks = containers.into_iter();
        let looking: Vec<_> =
            looks.by_ref().take(looked_at).map(|container| self.one(container, credentials, deadline)).collect();
        let (mut judged, cached): (Vec<Judged>, Vec<bool>) = join_all(looking).await.into_iter().unzip();
        let reason = format!("the job has more than {MOST_CONTAINERS} containers");
        judged.extend(looks.map(|container| judge::container(&container, Err(&reason), &self.rule)));
        (judged, cached.into_iter().all(|cached| cached))
    }

    async fn one(&self, container: Container, credentials: &Credentials, deadline: Instant) -> (Judged, bool) {
        let unknown = |container: &Container, reason: &str| judge::container(container, Err(reason), &self.rule);
        if container.unknown.is_some() {
            return (unknown(&container, ""), true);
        }
        let image: Reference = match container.image.as_str() {
            "" => return (unknown(&container, "its image is named elsewhere"), true),
            name => match name.parse() {
                Ok(image) => image,
                Err(error) => return (unknown(&container, &format!("its image cannot be asked for: {error}")), true),
            },
        };
        let question = Question {
            container: Arc::new(container),
            rule: Arc::clone(&self.rule),
            judgements: Arc::clone(&self.judgements),
        };
        let looking = async {
            let (found, cached) = self.images.contents(&image, credentials, &question, deadline).await;
            match found {
                Ok(image) => (judged(&question, image).await, cached),
                Err(why) => (unknown(&question.container, &why.to_string()), cached),
            }
        };
        // Reading the code takes its time, too, and what is found is remembered.
        let late = || (unknown(&question.container, "its code is still being read; try again in a few seconds"), false);
        timeout_at((deadline + READING).into(), looking).await.unwrap_or_else(|_| late())
    }

    /// The containers of a TrainJob: its runtime's, with what it says itself.
    async fn runtime(
        &self,
        trainer: Container,
        runtime: &RuntimeRef,
        namespace: &str,
        named: Named,
    ) -> (Vec<Container>, Named) {
        let client = self.cluster.as_ref().map(|cluster| &cluster.client);
        match runtime.read(client, namespace, &trainer, &self.settings.rule.gate_helpers).await {
            Ok(found) => found,
            Err(reason) => (vec![trainer.without_runtime(&reason)], named),
        }
    }

    async fn credentials(&self, about: &About<'_>, named: Named) -> Credentials {
        match &self.cluster {
            Some(cluster) if self.settings.gate_pull_secrets => {
                secrets::credentials(&cluster.client, &about.namespace, named).await
            }
            _ => Credentials::of(&about.namespace),
        }
    }

    fn tell(&self, about: &About<'_>, outcome: &Outcome) {
        let Some(cluster) = &self.cluster else { return };
        let (reason, said) = match &outcome.denied {
            Some(denied) => ("GateRefused", denied.clone()),
            None => ("GateWarned", outcome.warnings.join("\n")),
        };
        let (teller, about) = (Arc::clone(&cluster.teller), about.clone().into_owned());
        // Nobody waits for it.
        tokio::spawn(async move { teller.tell(&about.namespace, (&about.kind, &about.name), reason, &said).await });
    }
}

/// Where nothing is remembered, sources are read again, which is not for the threads that everybody shares.
async fn judged(question: &Question, image: Arc<Image>) -> Judged {
    let judged = if let Some(judged) = question.recall(&image) {
        judged
    } else {
        let asked = question.clone();
        let given_up = || Arc::new(judge::container(&question.container, Err("it was given up"), &question.rule));
        spawn_blocking(move || asked.judge(&image)).await.unwrap_or_else(|_| given_up())
    };
    // Containers that are alike differ in nothing that is said of them.
    Judged::clone(&judged)
}

/// The pod template that the object's own secrets stand in.
fn first_template(object: Node<'_>) -> Option<Node<'_>> {
    let spec = object.get("spec")?;
    spec.get("template").or_else(|| spec.at(&["jobTemplate", "spec", "template"])).or_else(|| {
        spec.entries().find_map(|(_, replicas)| replicas.entries().find_map(|(_, one)| one.get("template")))
    })
}

/// One line for each container, beside the line of the review.
fn log(about: &About<'_>, judged: &Judged, cached: bool) {
    let findings: Vec<String> = judged
        .findings
        .iter()
        .map(|finding| format!("{}: {}: {}", finding.requirement, finding.answer.name(), finding.text))
        .collect();
    info!(
        uid = &*about.uid,
        namespace = &*about.namespace,
        container = judged.container,
        image = judged.image,
        digest = judged.digest,
        verdict = judged.answer().name(),
        findings = findings.join("; "),
        cached,
        "judged"
    );
}
