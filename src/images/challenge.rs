//! What a registry wants from whoever asks (`WWW-Authenticate`, RFC 9110 section 11), and where tokens are had
//! (<https://distribution.github.io/distribution/spec/auth/token/>).

/// One way to show who one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token from somewhere else.
    Bearer {
        /// URL that gives tokens out.
        realm: String,
        /// What the registry is called there.
        service: Option<String>,
    },
}

impl Challenge {
    /// The first that we can meet, tokens before passwords.
    pub(super) fn best<'h>(headers: impl Iterator<Item = &'h str>) -> Option<Self> {
        let mut all: Vec<Self> = headers.filter_map(Self::read).collect();
        let bearer = all.iter().position(|challenge| matches!(challenge, Self::Bearer { .. })).unwrap_or(0);
        (!all.is_empty()).then(|| all.swap_remove(bearer))
    }

    /// Registries send each challenge in a header of its own.
    fn read(header: &str) -> Option<Self> {
        let header = header.trim();
        let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, None);
        for (name, value) in Parameters(rest) {
            if name.eq_ignore_ascii_case("realm") {
                realm = Some(value);
            } else if name.eq_ignore_ascii_case("service") {
                service = Some(value);
            }
        }
        Some(Self::Bearer { realm: realm?, service })
    }
}

/// `name="quoted \" text", other=token`; ends where it makes no sense any more.
struct Parameters<'t>(&'t str);

impl<'t> Iterator for Parameters<'t> {
    type Item = (&'t str, String);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, rest) = self.0.trim_start_matches([' ', ',', '\t']).split_once('=')?;
        let (value, rest) = if let Some(quoted) = rest.strip_prefix('"') {
            unquote(quoted)?
        } else {
            let (token, rest) = rest.split_once(',').unwrap_or((rest, ""));
            (token.trim().to_owned(), rest)
        };
        self.0 = rest;
        Some((name.trim(), value))
    }
}

/// The text up to the closing quote, and what is behind it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(index + 1..)?)),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) }
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let docker = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/python:pull""#;
        let quoted = r#"bearer service="a, \"b\"" , realm="https://a.example/t?x=y""#;
        for (headers, expected) in [
            (vec![docker], Some(bearer("https://auth.docker.io/token", Some("registry.docker.io")))),
            (vec![quoted], Some(bearer("https://a.example/t?x=y", Some("a, \"b\"")))),
            (vec!["Bearer realm=https://a.example/t,service=s"], Some(bearer("https://a.example/t", Some("s")))),
            (vec![r#"Basic realm="Registry Realm""#], Some(Challenge::Basic)),
            (vec!["BASIC"], Some(Challenge::Basic)),
            (vec!["Basic realm=x", r#"Bearer realm="https://a.example/t""#], Some(bearer("https://a.example/t", None))),
            (vec!["Negotiate", "Basic realm=x"], Some(Challenge::Basic)),
            (vec!["Negotiate"], None),
            (vec!["Bearer"], None),
            (vec![r#"Bearer realm="never closed"#], None),
            (vec![r#"Bearer service="no realm""#], None),
            (vec![""], None),
            (vec![], None),
        ] {
            assert_eq!(Challenge::best(headers.iter().copied()), expected, "{headers:?}");
        }
    }
}
