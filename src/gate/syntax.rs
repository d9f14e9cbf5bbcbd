//! Parsing what a stranger wrote: with limits on length and work, and without recursion over what comes out.

use std::ops::ControlFlow;

use tree_sitter::{Language, Node, ParseOptions, ParseState, Parser, Tree, TreeCursor};

/// The parser reports its progress every hundred operations; code that somebody wrote takes a few for each token.
const MOST_REPORTS: usize = 100_000;

/// The tree of a source; `None` where it is longer than `longest` bytes or takes too much work.
pub(super) fn parse(language: &Language, source: &str, longest: usize) -> Option<Tree> {
    if source.len() > longest {
        return None;
    }
    let mut parser = Parser::new();
    parser.set_language(language).ok()?;
    let mut reports = 0_usize;
    let mut stop = |_: &ParseState| {
        reports = reports.saturating_add(1);
        if reports > MOST_REPORTS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let options = ParseOptions::new().progress_callback(&mut stop);
    let bytes = source.as_bytes();
    parser.parse_with_options(&mut |at, _| bytes.get(at..).unwrap_or_default(), None, Some(options))
}

/// Visits every node in the order of the source, until `visit` has seen enough.
pub(super) fn each<'t>(tree: &'t Tree, mut visit: impl FnMut(Node<'t>) -> ControlFlow<()>) {
    let mut cursor: TreeCursor<'t> = tree.walk();
    loop {
        if visit(cursor.node()).is_break() {
            return;
        }
        if cursor.goto_first_child() {
            continue;
        }
        while !cursor.goto_next_sibling() {
            if !cursor.goto_parent() {
                return;
            }
        }
    }
}
