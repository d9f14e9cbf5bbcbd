//! What the address line says: what is searched for, filtered by, and which part of each list is shown. Nothing in it is secret, and
//! nothing in it changes anything.

use form_urlencoded::Serializer;

/// Characters that are searched for at most; a Kubernetes name has at most 253.
const LONGEST_SEARCH: usize = 253;

/// A list on the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// The last reviews.
    Reviews,
    /// The gate's last verdicts.
    Verdicts,
    /// All tenants.
    Tenants,
    /// All served models.
    Models,
}

impl List {
    /// All of them, as they come on the page.
    pub const ALL: [Self; 4] = [Self::Reviews, Self::Verdicts, Self::Tenants, Self::Models];

    /// Its name: of its section, its template, and of the parameter that has the number of its first row.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reviews => "reviews",
            Self::Verdicts => "verdicts",
            Self::Tenants => "tenants",
            Self::Models => "models",
        }
    }

    /// The parameter by which it is filtered, and what that may be.
    const fn filter(self) -> Option<(&'static str, &'static [&'static str])> {
        match self {
            Self::Reviews => Some(("decision", &["patched", "unchanged", "denied"])),
            Self::Verdicts => Some(("verdict", &["yes", "no", "unknown"])),
            Self::Tenants => Some(("state", &["granted", "refused", "none", "terminating"])),
            Self::Models => None,
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Reviews => 0,
            Self::Verdicts => 1,
            Self::Tenants => 2,
            Self::Models => 3,
        }
    }
}

/// All of it, as far as it means anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    search: String,
    needle: String,
    filters: [Option<&'static str>; 4],
    from: [usize; 4],
}

impl Query {
    /// Reads what stands behind the question mark; whatever means nothing is left out.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let mut query = Self::default();
        for (name, value) in form_urlencoded::parse(text.as_bytes()) {
            if name == "q" {
                query.search = value.trim().chars().take(LONGEST_SEARCH).collect();
                query.needle = query.search.to_lowercase();
            }
            for list in List::ALL {
                if let Some((parameter, words)) = list.filter()
                    && parameter == name
                {
                    query = query.filtered(list, words.iter().copied().find(|word| *word == value));
                }
                if list.name() == name {
                    query = query.moved(list, value.parse().unwrap_or_default());
                }
            }
        }
        query
    }

    /// What is searched for, as it was typed.
    #[must_use]
    pub fn search(&self) -> &str {
        &self.search
    }

    /// The same in lower case.
    #[must_use]
    pub fn needle(&self) -> &str {
        &self.needle
    }

    /// Whether one of these texts has what is searched for.
    #[must_use]
    pub fn finds(&self, texts: &[&str]) -> bool {
        self.needle.is_empty() || texts.iter().any(|text| text.to_lowercase().contains(&self.needle))
    }

    /// What a list is filtered by.
    #[must_use]
    pub fn filter(&self, list: List) -> Option<&'static str> {
        self.filters.get(list.index()).copied().flatten()
    }

    /// Which row of a list is shown first, counted from nothing.
    #[must_use]
    pub fn from(&self, list: List) -> usize {
        self.from.get(list.index()).copied().unwrap_or_default()
    }

    /// The same, with another filter, from the beginning.
    #[must_use]
    pub fn filtered(&self, list: List, filter: Option<&'static str>) -> Self {
        let mut other = self.clone();
        if let Some(place) = other.filters.get_mut(list.index()) {
            *place = filter;
        }
        other.moved(list, 0)
    }

    /// The same, with another row first.
    #[must_use]
    pub fn moved(&self, list: List, from: usize) -> Self {
        let mut other = self.clone();
        if let Some(place) = other.from.get_mut(list.index()) {
            *place = from;
        }
        other
    }

    /// As it stands behind the question mark; parameters that say nothing are left out.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = Serializer::new(String::new());
        if !self.search.is_empty() {
            text.append_pair("q", &self.search);
        }
        for list in List::ALL {
            if let Some(((parameter, _), filter)) = list.filter().zip(self.filter(list)) {
                text.append_pair(parameter, filter);
            }
            if self.from(list) > 0 {
                text.append_pair(list.name(), &self.from(list).to_string());
            }
        }
        text.finish()
    }

    /// A link to it that ends up at the list.
    #[must_use]
    pub fn link(&self, list: List) -> String {
        format!("./?{}#{}", self.text(), list.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_nothing_is_left_out() {
        let query = Query::of(
            "q=+Ali%26ce+&state=refused&decision=x&tenants=50&models=-1&reviews=99999999999999999999999&token=secret",
        );
        assert_eq!((query.search(), query.needle()), ("Ali&ce", "ali&ce"));
        assert_eq!((query.filter(List::Tenants), query.filter(List::Reviews)), (Some("refused"), None));
        assert_eq!((query.from(List::Tenants), query.from(List::Models), query.from(List::Reviews)), (50, 0, 0));
        assert_eq!(query.text(), "q=Ali%26ce&state=refused&tenants=50");
        assert_eq!(Query::of(&query.text()), query);
        assert_eq!(query.filtered(List::Tenants, None).link(List::Tenants), "./?q=Ali%26ce#tenants");
        assert_eq!(Query::of(&format!("q={}", "ä".repeat(100_000))).search().chars().count(), LONGEST_SEARCH);
        assert_eq!(Query::default().link(List::Models), "./?#models");
    }
}
