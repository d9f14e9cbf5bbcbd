//! Words of a command line as Python's `shlex` has them, by which MLflow quotes parameters and splits commands.

/// One word that a POSIX shell reads back as it is (`shlex.quote`).
#[must_use]
pub(super) fn quote(word: &str) -> String {
    let is_safe = |character: char| character.is_ascii_alphanumeric() || "_@%+=:,./-".contains(character);
    if !word.is_empty() && word.chars().all(is_safe) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r#"'"'"'"#))
}

/// A line that a POSIX shell reads back as these words (`shlex.join`).
#[must_use]
pub(super) fn join<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    words.into_iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// The words of a line (`shlex.split`): quotes and backslashes mean something, `#`, `;`, `|` and `$` do not.
///
/// # Errors
/// A quotation without its end, or a backslash with nothing behind it.
pub(super) fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' | '\r' | '\n' => words.extend(word.take()),
            '\\' => {
                let escaped = characters.next().ok_or_else(|| format!("nothing behind the last \\ of {line:?}"))?;
                word.get_or_insert_default().push(escaped);
            }
            '\'' | '"' => {
                let quoted = quotation(character, &mut characters);
                let quoted = quoted.ok_or_else(|| format!("no closing {character} in {line:?}"))?;
                word.get_or_insert_default().push_str(&quoted);
            }
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

/// What stands between two quotes, the first of which has been read.
fn quotation(quote: char, characters: &mut impl Iterator<Item = char>) -> Option<String> {
    let mut text = String::new();
    loop {
        match characters.next()? {
            end if end == quote => return Some(text),
            '\\' if quote == '"' => match characters.next()? {
                escaped @ ('"' | '\\') => text.push(escaped),
                other => text.extend(['\\', other]),
            },
            other => text.push(other),
        }
    }
}

/// Operators of the shell that stand as words of their own: whoever writes them means a shell, which a container has not got.
#[must_use]
pub(super) fn operators(words: &[String]) -> Vec<&str> {
    let is_operator = |word: &&str| matches!(*word, "&&" | "||" | "|" | ";" | "&" | ">" | ">>" | "<" | "2>&1");
    words.iter().map(String::as_str).filter(is_operator).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quotes_are_pythons() {
        for (word, quoted) in [
            ("", "''"),
            ("a", "a"),
            ("a/b-c_d.e,f:g=h+i%j@k", "a/b-c_d.e,f:g=h+i%j@k"),
            ("a b", "'a b'"),
            ("it's", r#"'it'"'"'s'"#),
            ("; rm -rf /", "'; rm -rf /'"),
            ("$(id)", "'$(id)'"),
            ("line\nline", "'line\nline'"),
            ("ü", "'ü'"),
        ] {
            assert_eq!(quote(word), quoted);
        }
    }

    #[test]
    fn lines_are_split_as_python_does() {
        for (line, words) in [
            ("python train.py  --alpha 0.5", &["python", "train.py", "--alpha", "0.5"][..]),
            ("--comment 'foo bar'", &["--comment", "foo bar"]),
            (r#"--comment-bis "bar foo""#, &["--comment-bis", "bar foo"]),
            (r#"a\ b "c\"d" "e\f" 'g\h'"#, &["a b", "c\"d", "e\\f", "g\\h"]),
            ("a '' b", &["a", "", "b"]),
            ("a#b # c ; d | $e", &["a#b", "#", "c", ";", "d", "|", "$e"]),
            ("x'y'\"z\"", &["xyz"]),
            ("", &[]),
        ] {
            assert_eq!(split(line).unwrap(), words, "{line}");
        }
        assert!(split("a 'b").unwrap_err().contains("no closing '"));
        assert!(split("a \\").is_err());
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_one_word_again(words in proptest::collection::vec(any::<String>(), 0..5)) {
            let line = join(words.iter().map(String::as_str));
            prop_assert_eq!(split(&line).unwrap(), words);
        }
    }
}
