//! Notebooks: who has made one is written down, so that it is known when its pod comes.
//!
//! Kubeflow's web app creates them under its own account and names its user in an annotation of Kubeflow's, which
//! whoever may write the Notebook may change. Ours is kept: nobody can name anybody but themselves.

use super::Settings;
use super::template::set_metadata;
use super::view::Metadata;
use crate::admission::json::{Node, Unexpected};
use crate::admission::{Outcome, Request};
use crate::cluster::names::{CREATOR_ANNOTATION, NOTEBOOK_CREATOR_ANNOTATION};

pub(super) fn decide(notebook: Node<'_>, request: &Request<'_>, settings: &Settings) -> Result<Outcome, Unexpected> {
    let metadata = Metadata::read(notebook)?;
    let said = metadata.annotation(CREATOR_ANNOTATION);
    let user = Some(request.user).filter(|user| !user.is_empty());
    let is_believed = settings.notebook_accounts.iter().any(|account| account == request.user);
    let creator = if request.operation == "CREATE" {
        if is_believed { metadata.annotation(NOTEBOOK_CREATOR_ANNOTATION).or(said) } else { user }
    } else {
        let old = request.old_object.map(Metadata::read).transpose()?;
        let before = old.and_then(|old| old.annotation(CREATOR_ANNOTATION));
        if is_believed || said == before || said == user {
            return Ok(Outcome::unchanged("the creator is who it was, or says so"));
        }
        before.or(user)
    };
    let Some(creator) = creator else { return Ok(Outcome::unchanged("nobody says who its creator is")) };
    let mut outcome = Outcome { reason: "notebook, with its creator".into(), ..Outcome::default() };
    if said.is_some_and(|said| said != creator) {
        outcome.warnings.push(format!(
            "tenancy-fixer: annotation {CREATOR_ANNOTATION} is {creator:?}: it names nobody but whoever writes it"
        ));
    }
    let annotation = vec![(CREATOR_ANNOTATION, creator.to_owned())];
    set_metadata(&metadata, "", Vec::new(), annotation, &mut outcome.patch);
    Ok(outcome)
}
