//! A JSON document read once, borrowed from the request's bytes, and looked at through narrow accessors.
//!
//! Objects of Kubernetes have more fields than any of us knows, so nothing here is ever written back: the document is
//! a flat list of tokens for reading only, and changes are said as [`Patch`](super::patch::Patch) operations.
//! A field of the wrong type is an [`Unexpected`] with its path, never a panic, and costs nothing until it is met.

mod reading;

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

pub use reading::MOST_TOKENS;

/// A document: its tokens in reading order, the root first.
pub struct Document<'a> {
    tokens: Vec<Token<'a>>,
    /// Texts in which an escape had to be resolved, one behind another: a block, not hundreds of thousands of them.
    own: String,
    /// Bytes of the paths of all its objects.
    paths: usize,
}

/// One value, or the key before a value. Containers know where they end, so that a reader can step over them.
enum Token<'a> {
    Null,
    Bool(bool),
    Number,
    Text(&'a str),
    Key(&'a str),
    /// The same two, where they stand in [`Document::own`].
    OwnText(Span),
    OwnKey(Span),
    List {
        end: usize,
    },
    Object {
        end: usize,
    },
}

/// From a byte on, so many. A body of 4 GiB is not read.
#[derive(Clone, Copy)]
struct Span {
    start: u32,
    length: u32,
}

/// A place in a [`Document`].
#[derive(Clone, Copy)]
pub struct Node<'d> {
    document: &'d Document<'d>,
    at: usize,
}

/// A field that is not what Kubernetes says it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Unexpected {
    path: String,
    expected: &'static str,
    found: &'static str,
}

impl fmt::Display for Unexpected {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: expected {}, found {}", self.path, self.expected, self.found)
    }
}

impl std::error::Error for Unexpected {}

impl Document<'_> {
    /// The whole of it.
    #[must_use]
    pub fn root(&self) -> Node<'_> {
        Node { document: self, at: 0 }
    }

    fn own(&self, Span { start, length }: Span) -> &str {
        let at = |place: u32| usize::try_from(place).unwrap_or(usize::MAX);
        self.own.get(at(start)..at(start).saturating_add(at(length))).unwrap_or_default()
    }
}

impl<'d> Node<'d> {
    /// The member of that name; `None` where this is no object, has no such member, or has `null` there.
    /// Of members that stand twice the last one counts, as in the API server.
    #[must_use]
    pub fn get(self, name: &str) -> Option<Node<'d>> {
        self.entries().filter(|(key, _)| *key == name).last().map(|(_, value)| value).filter(|value| !value.is_null())
    }

    /// The value behind several names, as [`get`](Self::get) finds it.
    #[must_use]
    pub fn at(self, names: &[&str]) -> Option<Node<'d>> {
        names.iter().try_fold(self, |node, name| node.get(name))
    }

    /// Every place below that those steps lead to; `*` is every member or item.
    pub fn all_at(self, steps: &[String]) -> Vec<Self> {
        let Some((first, rest)) = steps.split_first() else { return vec![self] };
        match first.as_str() {
            "*" => {
                let members = self.entries().map(|(_, member)| member).chain(self.items());
                members.flat_map(|member| member.all_at(rest)).collect()
            }
            name => self.get(name).map_or_else(Vec::new, |member| member.all_at(rest)),
        }
    }

    /// The members of an object; nothing where this is none.
    pub fn entries(self) -> impl Iterator<Item = (&'d str, Node<'d>)> {
        let (first, end) = match self.token() {
            Some(Token::Object { end }) => (self.at + 1, *end),
            _ => (0, 0),
        };
        Children { document: self.document, next: first, end }.filter_map(|(key, value)| Some((key?, value)))
    }

    /// The items of a list; nothing where this is none.
    pub fn items(self) -> impl Iterator<Item = Node<'d>> {
        let (first, end) = match self.token() {
            Some(Token::List { end }) => (self.at + 1, *end),
            _ => (0, 0),
        };
        Children { document: self.document, next: first, end }.map(|(_, value)| value)
    }

    /// The text, where it is one.
    #[must_use]
    pub fn text(self) -> Option<&'d str> {
        match self.token() {
            Some(Token::Text(text)) => Some(text),
            Some(Token::OwnText(span)) => Some(self.document.own(*span)),
            _ => None,
        }
    }

    /// Whether this is `true`.
    #[must_use]
    pub fn is_true(self) -> bool {
        matches!(self.token(), Some(Token::Bool(true)))
    }

    /// Whether this is `true` or `false`.
    #[must_use]
    pub fn is_boolean(self) -> bool {
        matches!(self.token(), Some(Token::Bool(_)))
    }

    /// Whether this is an object.
    #[must_use]
    pub fn is_object(self) -> bool {
        matches!(self.token(), Some(Token::Object { .. }))
    }

    /// Whether this is a list.
    #[must_use]
    pub fn is_list(self) -> bool {
        matches!(self.token(), Some(Token::List { .. }))
    }

    /// The member of that name, which has to be an object where it stands.
    ///
    /// # Errors
    /// [`Unexpected`] where it is something else; the same holds for the accessors below.
    pub fn object(self, name: &str) -> Result<Option<Node<'d>>, Unexpected> {
        self.member(name, "an object", Node::is_object)
    }

    /// The member of that name, which has to be a list where it stands.
    ///
    /// # Errors
    /// [`Unexpected`] where it is something else.
    pub fn list(self, name: &str) -> Result<Option<Node<'d>>, Unexpected> {
        self.member(name, "a list", Node::is_list)
    }

    /// The member of that name, which has to be a text where it stands.
    ///
    /// # Errors
    /// [`Unexpected`] where it is something else.
    pub fn string(self, name: &str) -> Result<Option<&'d str>, Unexpected> {
        Ok(self.member(name, "a string", |node| node.text().is_some())?.and_then(Node::text))
    }

    /// The member of that name, which has to be `true` or `false` where it stands.
    ///
    /// # Errors
    /// [`Unexpected`] where it is something else.
    pub fn boolean(self, name: &str) -> Result<bool, Unexpected> {
        let member = self.member(name, "true or false", Node::is_boolean)?;
        Ok(member.is_some_and(Node::is_true))
    }

    /// Says that this node should have been `expected`.
    ///
    /// # Errors
    /// [`Unexpected`], unless `right`.
    pub fn expect(self, expected: &'static str, right: bool) -> Result<Node<'d>, Unexpected> {
        if right { Ok(self) } else { Err(Unexpected { path: self.path(), expected, found: self.type_name() }) }
    }

    /// Says that there is more of something in this node than `expected`.
    #[must_use]
    pub fn has_more(self, expected: &'static str) -> Unexpected {
        Unexpected { path: self.path(), expected, found: "more" }
    }

    /// This node, which has to be `right` unless it is `null`, which is `None`.
    ///
    /// # Errors
    /// [`Unexpected`] where it is something else, and not `right`.
    pub fn optional(
        self,
        expected: &'static str,
        right: impl Fn(Node<'d>) -> bool,
    ) -> Result<Option<Node<'d>>, Unexpected> {
        if self.is_null() { Ok(None) } else { self.expect(expected, right(self)).map(Some) }
    }

    fn member(
        self,
        name: &str,
        expected: &'static str,
        right: impl Fn(Node<'d>) -> bool,
    ) -> Result<Option<Node<'d>>, Unexpected> {
        self.get(name).map(|node| node.expect(expected, right(node))).transpose()
    }

    fn token(self) -> Option<&'d Token<'d>> {
        self.document.tokens.get(self.at)
    }

    /// Whether this is `null`, which stands for nothing.
    #[must_use]
    pub fn is_null(self) -> bool {
        matches!(self.token(), Some(Token::Null))
    }

    fn type_name(self) -> &'static str {
        match self.token() {
            Some(Token::Null) | None => "null",
            Some(Token::Bool(_)) => "a boolean",
            Some(Token::Number) => "a number",
            Some(Token::Text(_) | Token::Key(_) | Token::OwnText(_) | Token::OwnKey(_)) => "a string",
            Some(Token::List { .. }) => "a list",
            Some(Token::Object { .. }) => "an object",
        }
    }

    /// Where this node stands, as people write it: `spec.containers[0].args`. Found from the root, since only errors ask.
    fn path(self) -> String {
        let mut path = String::new();
        let mut node = Node { document: self.document, at: 0 };
        while node.at < self.at {
            let member =
                node.entries().map(|(key, value)| (Some(key), value)).chain(node.items().map(|item| (None, item)));
            let Some((index, (key, child))) = member.enumerate().filter(|(_, (_, child))| child.at <= self.at).last()
            else {
                break;
            };
            match key {
                Some(key) if path.is_empty() => path.push_str(key),
                Some(key) => path.extend([".", key]),
                None => path.extend(["[", &index.to_string(), "]"]),
            }
            node = child;
        }
        path
    }
}

/// The children of a container, each with its key where it has one.
struct Children<'d> {
    document: &'d Document<'d>,
    next: usize,
    end: usize,
}

impl<'d> Iterator for Children<'d> {
    type Item = (Option<&'d str>, Node<'d>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let key = match self.document.tokens.get(self.next)? {
            Token::Key(key) => Some(*key),
            Token::OwnKey(span) => Some(self.document.own(*span)),
            _ => None,
        };
        self.next += usize::from(key.is_some());
        let value = Node { document: self.document, at: self.next };
        self.next = match value.token()? {
            Token::List { end } | Token::Object { end } => *end,
            _ => self.next + 1,
        };
        Some((key, value))
    }
}

/// A text that is borrowed wherever JSON has no escape in it. (serde's own `Cow` is always owned inside an `Option`.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text<'a>(pub Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a string")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(TextVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document<'_> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn members_are_found_by_name_and_null_is_absent() {
        let text = r#"{"a":{"b":[1,{"c":"x"}],"n":null},"z":true}"#;
        let document = document(text);
        let root = document.root();
        assert_eq!(root.at(&["a", "b"]).unwrap().items().count(), 2);
        assert_eq!(root.at(&["a", "b"]).unwrap().items().nth(1).unwrap().get("c").unwrap().text(), Some("x"));
        assert!(root.at(&["a", "n"]).is_none());
        assert!(root.get("z").unwrap().is_true());
        assert!(root.get("missing").is_none());
    }

    #[test]
    fn the_last_of_two_members_counts() {
        assert_eq!(document(r#"{"a":"first","a":"last"}"#).root().get("a").unwrap().text(), Some("last"));
    }

    #[test]
    fn who_manages_which_field_is_read_over() {
        let document = document(r#"{"metadata":{"managedFields":[{"fieldsV1":{"f:spec":{}}}],"name":"x"}}"#);
        let metadata = document.root().get("metadata").unwrap();
        assert_eq!(metadata.entries().map(|(key, _)| key).collect::<Vec<_>>(), ["name"]);
        assert!(Document::read(br#"{"managedFields":[}]}"#).is_err(), "it has to be JSON all the same");
    }

    #[test]
    fn many_objects_below_a_long_key_are_refused() {
        let objects = |key: usize, count: usize| {
            let text = format!(r#"{{"{}":[{}]}}"#, "k".repeat(key), vec!["{}"; count].join(","));
            Document::read(text.as_bytes()).err().map(|error| error.to_string())
        };
        assert_eq!(objects(300, 20_000), None);
        assert!(objects(1_000_000, 20_000).unwrap().starts_with("its keys are too long"));
    }

    #[test]
    fn texts_with_escapes_are_read_too() {
        assert_eq!(document(r#"{"a\"b":"c\nd"}"#).root().get("a\"b").unwrap().text(), Some("c\nd"));
    }

    #[test]
    fn a_wrong_type_is_named_with_its_path() {
        let document = document(r#"{"spec":{"containers":[{"args":[]},{"args":7}]}}"#);
        let container = document.root().at(&["spec", "containers"]).unwrap().items().nth(1).unwrap();
        let Err(error) = container.list("args") else { panic!("a number is no list") };
        assert_eq!(error.to_string(), "spec.containers[1].args: expected a list, found a number");
    }
}
