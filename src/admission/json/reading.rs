//! From bytes to tokens: serde_json reads, and this writes down what comes, within limits.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Document, Span, Text, Token};

/// Tokens that a document may have: keys and values. `[1,1,...]` has one for every two bytes of a body and would take a
/// dozen times its memory. So many take 6 MiB. An object of
/// 1.5 MiB, which is what etcd stores, may have one for every six bytes: `{"name":"V1","value":"b"}`, has one for five,
/// so that 50,000 of them are the most.
pub const MOST_TOKENS: usize = 256 * 1024;

/// Of the objects of Kubernetes, in the mean: room for so many is made at once, and grows where they are shorter.
const BYTES_OF_A_TOKEN: usize = 9;

/// Bytes that the paths of all objects in a document may have together: a change of many objects below a key of a megabyte would name
/// that key as often. Of 50,000 variables of a pod they have 3 MiB.
const MOST_PATHS: usize = 8 * 1024 * 1024;
/// Of an item's place in a list, in a path.
const INDEX: usize = 6;
/// Who set which field, which the API server writes into `metadata` before it asks us (KEP-555). Nobody here looks at it: it is read
/// over, as if it did not stand there.
const MANAGED_FIELDS: &str = "managedFields";

impl<'a> Document<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// What is not UTF-8, not JSON, has more than [`MOST_TOKENS`], or objects below keys that are too long for so many.
    pub fn read(body: &'a [u8]) -> Result<Self, serde_json::Error> {
        // All of it at once: serde_json would look at each text anew.
        let text = std::str::from_utf8(body).map_err(|error| {
            serde_json::Error::custom(format_args!("it is not UTF-8 from byte {} on", error.valid_up_to()))
        })?;
        let mut document = Self::with_room(body.len() / BYTES_OF_A_TOKEN);
        let mut deserializer = serde_json::Deserializer::from_str(text);
        Builder { document: &mut document, path: 0 }.deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(document)
    }

    fn with_room(tokens: usize) -> Self {
        Document { tokens: Vec::with_capacity(tokens.min(MOST_TOKENS)), own: String::new(), paths: 0 }
    }
}

impl<'de> Deserialize<'de> for Document<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut document = Document::with_room(0);
        Builder { document: &mut document, path: 0 }.deserialize(deserializer)?;
        Ok(document)
    }
}

/// Writes one value, with all in it, behind the tokens so far.
struct Builder<'b, 'a> {
    document: &'b mut Document<'a>,
    /// Bytes of the path to it.
    path: usize,
}

impl<'a> Builder<'_, 'a> {
    fn push<E: Error>(&mut self, token: Token<'a>) -> Result<(), E> {
        if self.document.tokens.len() >= MOST_TOKENS {
            return Err(E::custom(format_args!("more than {MOST_TOKENS} keys and values")));
        }
        self.document.tokens.push(token);
        Ok(())
    }

    fn keep<E: Error>(&mut self, text: &str) -> Result<Span, E> {
        let own = &mut self.document.own;
        let place = |number: usize| u32::try_from(number).map_err(|_| E::custom("too long a document"));
        let span = Span { start: place(own.len())?, length: place(text.len())? };
        own.push_str(text);
        Ok(span)
    }

    fn close(&mut self, opened: usize, token: impl FnOnce(usize) -> Token<'a>) {
        let end = self.document.tokens.len();
        if let Some(place) = self.document.tokens.get_mut(opened) {
            *place = token(end);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Builder<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Builder<'_, 'de> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("any JSON value")
    }

    fn visit_unit<E: Error>(mut self) -> Result<(), E> {
        self.push(Token::Null)
    }

    fn visit_bool<E: Error>(mut self, value: bool) -> Result<(), E> {
        self.push(Token::Bool(value))
    }

    fn visit_i64<E: Error>(mut self, _: i64) -> Result<(), E> {
        self.push(Token::Number)
    }

    fn visit_u64<E: Error>(mut self, _: u64) -> Result<(), E> {
        self.push(Token::Number)
    }

    fn visit_f64<E: Error>(mut self, _: f64) -> Result<(), E> {
        self.push(Token::Number)
    }

    fn visit_borrowed_str<E: Error>(mut self, text: &'de str) -> Result<(), E> {
        self.push(Token::Text(text))
    }

    fn visit_str<E: Error>(mut self, text: &str) -> Result<(), E> {
        let span = self.keep(text)?;
        self.push(Token::OwnText(span))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        let opened = self.document.tokens.len();
        self.push(Token::List { end: 0 })?;
        let path = self.path + INDEX;
        while items.next_element_seed(Builder { document: self.document, path })?.is_some() {}
        self.close(opened, |end| Token::List { end });
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        let opened = self.document.tokens.len();
        self.push(Token::Object { end: 0 })?;
        self.document.paths += self.path;
        if self.document.paths > MOST_PATHS {
            return Err(A::Error::custom("its keys are too long for so many objects below them"));
        }
        while let Some(Text(key)) = members.next_key()? {
            if key == MANAGED_FIELDS {
                members.next_value::<IgnoredAny>()?;
                continue;
            }
            let path = self.path + 1 + key.len();
            let key = match key {
                Cow::Borrowed(key) => Token::Key(key),
                Cow::Owned(key) => Token::OwnKey(self.keep(&key)?),
            };
            self.push(key)?;
            members.next_value_seed(Builder { document: self.document, path })?;
        }
        self.close(opened, |end| Token::Object { end });
        Ok(())
    }
}
