//! How something of which there is only so much is shared, so that nobody takes all of it.

/// Why there is nothing to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Everything is taken.
    All,
    /// This one has its part.
    One,
}

/// Whether somebody who holds `of_one` of the `all` that are held may have `more`, where there are `total` and nobody gets more than `each`.
///
/// One may hold at most twice as much as would still be free ("dynamic thresholds" of shared switch buffers, Choudhury and Hahne 1998): one
/// alone gets two thirds, two get two fifths each, and a newcomer always finds something.
///
/// # Errors
/// Why not.
pub fn fits(total: usize, each: usize, all: usize, of_one: usize, more: usize) -> Result<(), Full> {
    let free = total.saturating_sub(all).checked_sub(more).ok_or(Full::All)?;
    // Somebody who has nothing yet may have the last one.
    let is_greedy = of_one > 0 && of_one + more > free.saturating_mul(2);
    if is_greedy || of_one + more > each { Err(Full::One) } else { Ok(()) }
}
