//! What listings for people have in common, whatever they list: a search, and pages.

/// Whether a text has another one in it, which is in lower case, whatever the case of its own letters.
#[must_use]
pub fn has(text: &str, search: &str) -> bool {
    search.is_empty() || text.to_lowercase().contains(search)
}

/// Where the page that was asked for begins: a page that is no more is the last one that is.
#[must_use]
pub fn begin(matching: usize, from: usize, count: usize) -> usize {
    from.min(matching.saturating_sub(1) / count.max(1) * count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_no_more_is_the_last_one() {
        assert_eq!((begin(100, 50, 25), begin(100, 100, 25), begin(101, 1 << 40, 25)), (50, 75, 100));
        assert_eq!((begin(0, 25, 25), begin(10, 5, 0)), (0, 0));
    }

    #[test]
    fn letters_are_found_in_either_case() {
        assert!(has("User@Example.org", "user@") && has("anything", ""));
        assert!(!has("", "x"));
    }
}
