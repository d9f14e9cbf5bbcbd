//! What decides on reviews while we serve: the pure decision, and what it may want to know of namespaces and images.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use futures::future::join_all;
use tokio::time::timeout_at;

use crate::admission::service::Decider;
use crate::admission::{About, Endpoint, Outcome, Request, Reviewed, Wanted};
use crate::gate::{self, Gate, Mode};
use crate::images::{Credentials, Images, Reference, pull_secrets};
use crate::mutate::{self, ImageCommand, ImageCommands, Surroundings};
use crate::recent::Recent;
use crate::tenancy;

/// The parts that a decision may ask.
pub struct Reviewer {
    /// Of mutation; `None` where that is switched off.
    pub mutation: Option<mutate::Settings>,
    /// What namespaces say of themselves.
    pub namespaces: Arc<tenancy::State>,
    /// The image that brings the launcher, where the settings do not name it and it is known by now.
    pub launcher: Arc<OnceLock<String>>,
    /// Whom to ask what an image runs; `None` for nobody.
    pub images: Option<Images>,
    /// Whom to ask for pull secrets; `None` for nobody.
    pub secrets: Option<kube::Client>,
    /// Judges jobs; `None` where that is switched off.
    pub gate: Option<Gate>,
    /// Where answers are kept for whoever looks later; `None` for nowhere.
    pub reviews: Option<Arc<Recent<Reviewed>>>,
}

const OFF: &str = "this capability is switched off";

impl Decider for Reviewer {
    type Looked = ImageCommands;
    type Case = Option<gate::Case>;

    fn decide(&self, endpoint: Endpoint, request: &Request<'_>, images: &ImageCommands) -> Outcome {
        let Some(settings) = &self.mutation else { return Outcome::unchanged(OFF) };
        let known = self.namespaces.known(request.namespace);
        let surroundings = Surroundings {
            identity: known.identity,
            owner_only: known.owner_only,
            owner: known.owner.as_deref(),
            creator_of: &|notebook| self.namespaces.creator(request.namespace, notebook),
            launcher_image: self.launcher.get().map(String::as_str),
            images,
        };
        mutate::decide(endpoint, request, &surroundings, settings)
    }

    async fn look(&self, namespace: &str, wanted: Wanted, until: Instant) -> ImageCommands {
        let Some(images) = &self.images else { return ImageCommands::new() };
        let credentials = self.credentials(namespace, &wanted.pull_secrets, until).await;
        let commands = join_all(wanted.images.iter().map(|image| command(images, image, &credentials, until))).await;
        wanted.images.into_iter().zip(commands).collect()
    }

    fn case(&self, endpoint: Endpoint, request: &Request<'_>) -> Option<gate::Case> {
        let mode = match endpoint {
            Endpoint::JobValidate => Mode::Enforce,
            Endpoint::JobValidateWarn => Mode::Warn,
            _ => Mode::Off,
        };
        self.gate.as_ref().map(|gate| gate.case(mode, request))
    }

    async fn judge(&self, case: Option<gate::Case>, about: &About<'_>, until: Instant) -> Outcome {
        match self.gate.as_ref().zip(case) {
            Some((gate, case)) => gate.review(case, about, until).await,
            None => Outcome::unchanged(OFF),
        }
    }

    fn decided(&self, endpoint: Endpoint, about: &About<'_>, outcome: &Outcome, started: Instant) {
        if let Some(reviews) = &self.reviews {
            reviews.push(Reviewed::of(endpoint, about, outcome, started.elapsed()));
        }
    }
}

impl Reviewer {
    async fn credentials(&self, namespace: &str, names: &[String], until: Instant) -> Credentials {
        let Some(client) = self.secrets.as_ref().filter(|_| !names.is_empty()) else {
            return Credentials::of(namespace);
        };
        let read = timeout_at(until.into(), pull_secrets::credentials(client, namespace, names)).await;
        read.unwrap_or_else(|_| Credentials::of(namespace))
    }
}

async fn command(
    images: &Images,
    image: &str,
    credentials: &Credentials,
    until: Instant,
) -> Result<ImageCommand, String> {
    let reference: Reference = image.parse()?;
    let config = images.config(&reference, credentials, until).await.map_err(|why| why.to_string())?;
    Ok(ImageCommand { entrypoint: config.entrypoint.clone(), cmd: config.cmd.clone() })
}
