//! YAML as `kubectl` reads it: several documents, YAML 1.1's booleans and octal numbers, JSON as well.

use std::io::Cursor;

use anyhow::{Context, anyhow};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::{Options, Spanned};

/// One document of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document<T> {
    /// Counted from 1; documents without content do not count.
    pub number: usize,
    /// The line it begins in, counted from 1.
    pub line: u64,
    /// What it says.
    pub content: T,
}

/// Reads every document of a text that came from `file`.
///
/// # Errors
/// Syntax errors, with file, document and line.
pub fn documents<T: DeserializeOwned + 'static>(file: &str, text: &str) -> anyhow::Result<Vec<Document<T>>> {
    if text.trim_start().starts_with(['{', '[']) {
        return json_documents(file, text);
    }
    let mut reader = Cursor::new(text);
    let mut documents = Vec::new();
    for (index, document) in serde_saphyr::read_with_options::<_, Spanned<T>>(&mut reader, options()).enumerate() {
        let number = index + 1;
        let document = document.map_err(|error| {
            let line = error.location().map_or(0, |location| location.line());
            anyhow!("{file}: document {number}, line {line}: {}", first_line(&error))
        })?;
        documents.push(Document { number, line: document.referenced.line(), content: document.value });
    }
    Ok(documents)
}

/// JSON may be indented by tabs and written one value behind another, which YAML does not know.
fn json_documents<T: DeserializeOwned>(file: &str, text: &str) -> anyhow::Result<Vec<Document<T>>> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<T>();
    let mut documents = Vec::new();
    loop {
        let number = documents.len() + 1;
        let behind = text.get(stream.byte_offset()..).unwrap_or_default();
        let space = behind.len() - behind.trim_start().len();
        let line = text.get(..stream.byte_offset() + space).unwrap_or_default().matches('\n').count() as u64 + 1;
        let Some(content) = stream.next() else { return Ok(documents) };
        let content = content.with_context(|| format!("{file}: document {number}, line {line}"))?;
        documents.push(Document { number, line, content });
    }
}

/// Reads a text of one document.
///
/// # Errors
/// What is wrong, in one line.
pub fn value(text: &str) -> anyhow::Result<Value> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| anyhow!(first_line(&error)))
}

/// Writes a value as one document.
///
/// # Errors
/// None that JSON values can cause; the serializer's signature allows for them.
pub fn to_string(value: &Value) -> anyhow::Result<String> {
    // Folding a long line is legible to nobody who greps for it.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: true, folded_wrap_chars: 1_000_000 };
    let mut text = String::new();
    serde_saphyr::to_fmt_writer_with_options(&mut text, value, options).context("writing YAML")?;
    Ok(text)
}

fn options() -> Options {
    serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false }
}

fn first_line(error: &serde_saphyr::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_counted_with_their_lines() {
        let documents: Vec<Document<Value>> =
            documents("f.yaml", "# first\na: 1\n---\n---\nb: yes\nmode: 0644\n").unwrap();
        let found: Vec<_> = documents.iter().map(|document| (document.number, document.content.to_string())).collect();
        assert_eq!(found, [(1, r#"{"a":1}"#.to_owned()), (2, r#"{"b":true,"mode":420}"#.to_owned())]);
        assert_eq!(documents.iter().map(|document| document.line).collect::<Vec<_>>(), [2, 5]);
    }

    #[test]
    fn json_is_read_one_value_behind_another() {
        let documents: Vec<Document<Value>> = documents("f.json", "{\n\t\"a\": 1\n}\n{\"b\": 2}\n").unwrap();
        assert_eq!(
            documents.iter().map(|document| (document.number, document.line)).collect::<Vec<_>>(),
            [(1, 1), (2, 4)]
        );
    }

    #[test]
    fn an_error_names_file_document_and_line() {
        let error = documents::<Value>("f.yaml", "a: 1\n---\nb: [1\nc: 2\n").unwrap_err().to_string();
        assert!(error.starts_with("f.yaml: document 2, line "), "{error}");
        let error = format!("{:#}", documents::<Value>("f.json", "{\"a\": 1}\n{\"b\": }\n").unwrap_err());
        assert!(error.starts_with("f.json: document 2, line 2: "), "{error}");
    }

    #[test]
    fn what_is_written_is_read_back_as_it_was() {
        for text in [
            "a\nb\n",
            " leading",
            "trailing ",
            "yes",
            "0644",
            "1e3",
            "null",
            "~",
            "",
            "#no comment",
            "a: b",
            "- x",
            "é\u{1}\t",
            "line\n\n",
            "\n",
        ] {
            let value = serde_json::json!({"text": text, "list": [text, {"deep": text}]});
            assert_eq!(super::value(&to_string(&value).unwrap()).unwrap(), value, "{text:?}");
        }
        let long = format!("{} {}", "word ".repeat(100), "end");
        let value = serde_json::json!({"text": long, "numbers": [1, -2, 1.5, 18_446_744_073_709_551_615_u64], "empty": [{}, []]});
        assert_eq!(super::value(&to_string(&value).unwrap()).unwrap(), value);
    }
}
