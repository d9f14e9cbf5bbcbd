//! What a person sees of tenants on a running server: how many are how, and some of them with all that is known. Nothing is asked of
//! the cluster; there may be ten thousand, and reviews wait for whoever reads what is known, so that it is read in small parts.

use std::collections::BTreeMap;

use clap::ValueEnum as _;

use super::state::Facts;
use super::survey::said;
use super::{Defaults, Settings, State, Verdict, plan, verdict};
use crate::listing::{self, has};

/// Tenants that are judged while reviews and watches wait: some 50 µs.
const AT_ONCE: usize = 128;

/// Which tenants are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'w> {
    /// Part of a name or owner, in lower case; all where it is empty.
    pub search: &'w str,
    /// [`Listed::state`].
    pub state: Option<&'w str>,
    /// How many are left out at the beginning.
    pub from: usize,
    /// How many come at most.
    pub count: usize,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Namespace and Profile.
    pub name: String,
    /// `granted`, `refused`, `none` or `terminating`.
    pub state: &'static str,
    /// Whom its pods act as, or who its Profile says the owner is.
    pub owner: String,
    /// How they prove it; empty where nothing is granted.
    pub identity: String,
    /// Whether that is for what the owner has made alone.
    pub owner_only: bool,
    /// Why nothing is granted, and what mends it.
    pub message: String,
    /// What should be there and is not, or should not and is.
    pub lacks: Vec<String>,
}

/// Some of them, and how many there are.
#[derive(Clone, Debug, Default)]
pub struct Overview {
    /// Whether all of them have been listed.
    pub listed: bool,
    /// How many there are in each state, whatever was wanted.
    pub states: BTreeMap<&'static str, usize>,
    /// How many are as wanted.
    pub matching: usize,
    /// Where the first one of these stands among them.
    pub from: usize,
    /// Those that were wanted: what is refused first, then by name.
    pub tenants: Vec<Listed>,
}

impl State {
    /// Looks at all of them.
    #[must_use]
    pub fn overview(&self, defaults: Defaults, settings: &Settings, wanted: Wanted<'_>) -> Overview {
        let mut overview = Overview::default();
        let mut names: Vec<String> = {
            let facts = self.read();
            overview.listed = facts.offered.is_some();
            let of_children = facts.children.keys().map(|(_, tenant)| tenant);
            facts
                .profiles
                .keys()
                .chain(of_children.filter(|tenant| !facts.profiles.contains_key(*tenant)))
                .cloned()
                .collect()
        };
        names.sort_unstable();
        names.dedup();
        let mut found: Vec<(u8, &str)> = Vec::new();
        for names in names.chunks(AT_ONCE) {
            let facts = self.read();
            for name in names {
                let (state, owner) = facts.brief(name, defaults);
                *overview.states.entry(state).or_default() += 1;
                let is_wanted = wanted.state.is_none_or(|wanted| wanted == state)
                    && (has(name, wanted.search) || has(owner, wanted.search));
                if is_wanted {
                    found.push((rank(state), name.as_str()));
                }
            }
        }
        found.sort_by_key(|(rank, _)| *rank);
        overview.matching = found.len();
        overview.from = listing::begin(found.len(), wanted.from, wanted.count);
        for (_, name) in found.iter().skip(overview.from).take(wanted.count) {
            overview.tenants.push(self.read().tenant(name, defaults, settings));
        }
        overview
    }
}

/// What an admin should see first.
fn rank(state: &str) -> u8 {
    u8::from(state != "refused")
}

impl Facts {
    /// State and owner.
    fn brief(&self, name: &str, defaults: Defaults) -> (&'static str, &str) {
        let profile = self.profiles.get(name);
        let verdict = verdict(name, self.namespaces.get(name), profile, defaults);
        (verdict.state(), profile.map_or("", |profile| profile.owner_name.as_str()))
    }

    fn tenant(&self, name: &str, defaults: Defaults, settings: &Settings) -> Listed {
        let offered = self.offered.unwrap_or_default();
        let (verdict, children) = self.judge(name, defaults, offered, settings);
        let found = |kind| self.children.get(&(kind, name.to_owned())).cloned();
        let lacks = match verdict {
            // All of it goes by itself; and before all is listed, nobody knows.
            Verdict::Terminating => Vec::new(),
            _ if self.offered.is_none() => Vec::new(),
            _ => plan(&children, found).iter().map(|action| said(action, name)).collect(),
        };
        let mut tenant = Listed {
            name: name.to_owned(),
            state: verdict.state(),
            owner: self.profiles.get(name).map(|profile| profile.owner_name.clone()).unwrap_or_default(),
            identity: String::new(),
            owner_only: false,
            message: String::new(),
            lacks,
        };
        match verdict {
            Verdict::Tenant(grant) => {
                let identity = grant.identity.to_possible_value();
                tenant.identity = identity.map(|value| value.get_name().to_owned()).unwrap_or_default();
                tenant.owner_only = grant.owner_only;
            }
            Verdict::None(reason) => reason.clone_into(&mut tenant.message),
            Verdict::Refused { message, .. } => tenant.message = message,
            Verdict::Terminating => "on its way out".clone_into(&mut tenant.message),
        }
        tenant
    }
}

#[cfg(test)]
mod tests {
    use super::super::{NamespaceFacts, ProfileFacts};
    use super::*;
    use crate::cluster::identity::Identity;

    const DEFAULTS: Defaults = Defaults { identity: Identity::Token, owner_only: false };

    fn settings() -> Settings {
        use clap::{Args as _, FromArgMatches as _};
        let command = Settings::augment_args(clap::Command::new("test"));
        Settings::from_arg_matches(&command.get_matches_from(["test"])).unwrap()
    }

    fn state(tenants: usize) -> State {
        let state = State::default();
        for number in 0..tenants {
            let name = format!("tenant-{number:05}");
            let owner = format!("User{number}@example.org");
            let agrees = !number.is_multiple_of(1000);
            let namespace =
                NamespaceFacts { owner: Some(owner.clone()).filter(|_| agrees), ..NamespaceFacts::default() };
            let profile = ProfileFacts { uid: String::new(), owner_kind: "User".to_owned(), owner_name: owner };
            let mut facts = state.write();
            facts.namespaces.insert(name.clone(), namespace);
            facts.profiles.insert(name, profile);
        }
        state
    }

    #[test]
    fn ten_thousand_are_counted_and_some_are_shown() {
        let state = state(10_000);
        let (defaults, settings) = (DEFAULTS, settings());
        let look = |wanted| state.overview(defaults, &settings, wanted);
        let all = look(Wanted { count: 25, ..Wanted::default() });
        assert_eq!(all.states, BTreeMap::from([("granted", 9_990), ("refused", 10)]));
        assert_eq!((all.matching, all.tenants.len()), (10_000, 25));
        assert!(all.tenants.iter().take(10).all(|tenant| tenant.state == "refused"), "what needs somebody comes first");
        assert!(all.tenants[0].message.contains("make them agree"));
        let found = look(Wanted { search: "user77@", count: 25, ..Wanted::default() });
        assert_eq!((found.matching, found.tenants[0].name.as_str()), (1, "tenant-00077"));
        let refused = look(Wanted { state: Some("refused"), from: 5, count: 25, ..Wanted::default() });
        assert_eq!((refused.matching, refused.from, refused.tenants.len()), (10, 0, 10), "there is one page of them");
        let beyond = look(Wanted { from: 1 << 40, count: 25, ..Wanted::default() });
        assert_eq!((beyond.from, beyond.tenants.len()), (9_975, 25));
        assert!(look(Wanted::default()).tenants.is_empty());
    }

    #[test]
    fn a_change_is_seen() {
        let state = state(1);
        let before = state.changes();
        drop(state.write());
        assert_ne!(state.changes(), before);
        assert!(!state.overview(DEFAULTS, &settings(), Wanted::default()).listed);
    }
}
