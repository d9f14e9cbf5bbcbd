//! From a snapshot to HTML. Pure. Every text is escaped where it is written: names are what tenants choose.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Error, UndefinedBehavior, Value, context};

use super::facts::Facts;
use super::query::{List, Query};
use crate::cluster::names;

/// Templates, all of them HTML.
const TEMPLATES: [(&str, &str); 9] = [
    ("page", include_str!("files/page.html")),
    ("entrance", include_str!("files/entrance.html")),
    ("overview", include_str!("files/overview.html")),
    ("reviews", include_str!("files/reviews.html")),
    ("verdicts", include_str!("files/verdicts.html")),
    ("tenants", include_str!("files/tenants.html")),
    ("models", include_str!("files/models.html")),
    ("head", include_str!("files/head.html")),
    ("pages", include_str!("files/pages.html")),
];

/// Makes pages.
pub struct Renderer(Environment<'static>);

/// A part of the page that can be put in place of what it was before.
#[derive(Debug)]
pub(super) struct Part {
    /// The id of its section.
    pub(super) name: &'static str,
    /// Another one for another text.
    pub(super) digest: String,
    pub(super) html: String,
}

impl Part {
    fn of(name: &'static str, html: String) -> Self {
        let mut hasher = DefaultHasher::new();
        html.hash(&mut hasher);
        Self { name, digest: format!("{:016x}", hasher.finish()), html }
    }
}

/// Lists as they come on the page: title, what is counted, and whether they can be filtered.
const LISTS: [(List, &str, &str, bool); 4] = [
    (List::Reviews, "Reviews", "in memory", true),
    (List::Verdicts, "Gate", "in memory", true),
    (List::Tenants, "Tenants", "known", true),
    (List::Models, "Served models", "known", false),
];

impl Renderer {
    /// Reads the templates; `audience` is that of a token that opens the page.
    ///
    /// # Errors
    /// A mistake in one, with its line.
    pub fn new(audience: &str) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.add_filter("number", number);
        environment.add_filter("word", word);
        environment.add_filter("tone", tone);
        environment.add_filter("query", query);
        environment.add_global("page_url", names::PAGE_URL);
        environment.add_global("project", names::PROJECT);
        environment.add_global("namespace", names::NAMESPACE);
        environment.add_global("audience", audience.to_owned());
        for (name, text) in TEMPLATES {
            environment.add_template(name, text)?;
        }
        Ok(Self(environment))
    }

    /// The whole page, for a user who may see it.
    ///
    /// # Errors
    /// A mistake in a template.
    pub fn page(&self, facts: &Facts, query: &Query, user: &str, signed_in: bool) -> Result<String, Error> {
        let parts: Vec<Value> = self
            .parts(facts, query)?
            .into_iter()
            .map(|part| context! { name => part.name, digest => part.digest, html => Value::from_safe_string(part.html) })
            .collect();
        self.0.get_template("page")?.render(context! {
            parts,
            user,
            signed_in,
            search => query.search(),
            events => format!("events?{}", query.text()),
            instance => &facts.instance,
            version => facts.version,
            reviewed => facts.reviewed,
        })
    }

    /// What changes of it.
    ///
    /// # Errors
    /// A mistake in a template.
    pub(super) fn parts(&self, facts: &Facts, query: &Query) -> Result<Vec<Part>, Error> {
        let facts = Value::from(Serde(facts));
        let mut cards = Vec::new();
        let mut parts = Vec::new();
        for (list, title, unit, filters) in LISTS {
            let (name, rows) = (list.name(), facts.get_attr(list.name())?);
            let about = context! { id => name, list => rows, title, unit, filters, search => query.search() };
            let safe =
                |template: &str| self.0.get_template(template)?.render(about.clone()).map(Value::from_safe_string);
            let surroundings = context! { head => safe("head")?, pages => safe("pages")?, ..facts.clone() };
            parts.push(Part::of(name, self.0.get_template(name)?.render(surroundings)?));
            cards.push(about);
        }
        let overview = self.0.get_template("overview")?.render(context! { cards, ..facts.clone() })?;
        parts.insert(0, Part::of("overview", overview));
        Ok(parts)
    }

    /// Where one signs in, and why one has to.
    ///
    /// # Errors
    /// A mistake in the template.
    pub fn entrance(&self, message: &str) -> Result<String, Error> {
        self.0.get_template("entrance")?.render(context! { message })
    }
}

/// A number as people read it: `10,000`.
fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A word of ours as people read it.
fn word(word: &str) -> String {
    match word {
        "none" => "nothing granted",
        "NotReady" => "not ready",
        "Ready" => "ready",
        "Deploying" => "deploying",
        "yes" => "logs to MLflow",
        "no" => "does not",
        "unknown" => "nobody can tell",
        other => other,
    }
    .to_owned()
}

/// How a word of ours is coloured; nothing is said by colour alone.
fn tone(word: &str) -> &'static str {
    match word {
        "granted" | "Ready" | "yes" => "good",
        "refused" | "denied" | "no" | "NotReady" => "bad",
        "unknown" | "terminating" => "warn",
        "patched" | "Deploying" => "info",
        _ => "plain",
    }
}

/// A text as a value in an address.
fn query(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
