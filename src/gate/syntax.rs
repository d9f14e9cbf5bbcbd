//! Parsing what a stranger wrote: with limits on length and work, and without recursion over what comes out.

use std::ops::{ControlFlow, Deref};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tree_sitter::{Language, Node, ParseOptions, ParseState, Parser, Tree, TreeCursor};

/// The parser reports its progress every hundred operations; code that somebody wrote takes a few for each token.
const MOST_REPORTS: usize = 100_000;

/// A tree takes a hundred times the bytes of the densest source: there is one at a time.
static TURN: Mutex<()> = Mutex::new(());

/// A tree, and the turn of whoever has it: two of them in one thread wait for one another, for ever.
pub(super) struct Parsed {
    tree: Tree,
    _turn: MutexGuard<'static, ()>,
}

impl Deref for Parsed {
    type Target = Tree;

    fn deref(&self) -> &Tree {
        &self.tree
    }
}

/// The tree of a source; `None` where it is longer than `longest` bytes or takes too much work.
pub(super) fn parse(language: &Language, source: &str, longest: usize) -> Option<Parsed> {
    if source.len() > longest {
        return None;
    }
    // Nothing is half done where somebody has panicked with it.
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut parser = Parser::new();
    parser.set_language(language).ok()?;
    let mut reports = 0_usize;
    let mut stop = |_: &ParseState| {
        reports = reports.saturating_add(1);
        if reports > MOST_REPORTS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let options = ParseOptions::new().progress_callback(&mut stop);
    let bytes = source.as_bytes();
    let tree = parser.parse_with_options(&mut |at, _| bytes.get(at..).unwrap_or_default(), None, Some(options))?;
    Some(Parsed { tree, _turn: turn })
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
