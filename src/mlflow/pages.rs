//! Listings in pages: all of it, or an error. Who acts on what is *not* in a listing needs to know that it was complete.

use std::collections::HashSet;

use serde::de::DeserializeOwned;

use super::{Client, Error};

/// Most pages of one listing, so that a server that never ends does not keep us for ever.
const MOST_PAGES: usize = 10_000;

/// One page, as MLflow answers searches.
pub trait Page: DeserializeOwned {
    /// What it lists.
    type Item;

    /// Its items, and the token of the next page; none or an empty one with the last.
    fn into_parts(self) -> (Vec<Self::Item>, Option<String>);
}

impl Client {
    /// Every item of every page of a `GET`; `size` is how many are asked for at once, and fewer where these are too large.
    ///
    /// # Errors
    /// Any page that fails, and tokens that lead in a circle. There is no listing in part.
    pub async fn list<P: Page>(&self, path: &str, query: &[(&str, &str)], size: usize) -> Result<Vec<P::Item>, Error> {
        let mut items = Vec::new();
        self.each::<P>(path, query, size, |item| items.push(item)).await?;
        Ok(items)
    }

    /// The same without keeping more than a page; `take` gets each item in turn.
    ///
    /// # Errors
    /// As [`list`](Self::list). What was taken before is then not all there is.
    pub async fn each<P: Page>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        mut size: usize,
        mut take: impl FnMut(P::Item),
    ) -> Result<(), Error> {
        let mut token: Option<String> = None;
        let mut seen = HashSet::new();
        for _ in 0..MOST_PAGES {
            let page = self.page::<P>(path, query, &mut size, token.as_deref()).await?;
            let (items, next) = page.into_parts();
            items.into_iter().for_each(&mut take);
            let Some(next) = next.filter(|next| !next.is_empty()) else { return Ok(()) };
            if !seen.insert(next.clone()) {
                return Err(Error::BadAnswer(format!("{path}: page token {next:?} came twice")));
            }
            token = Some(next);
        }
        Err(Error::BadAnswer(format!("{path}: more than {MOST_PAGES} pages")))
    }

    /// One page; a quarter of one, and so on, where the whole is too large. MLflow's tokens are offsets, so the next page
    /// begins where this one ends, however long it is.
    async fn page<P: Page>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        size: &mut usize,
        token: Option<&str>,
    ) -> Result<P, Error> {
        loop {
            let most = size.to_string();
            let mut parameters = query.to_vec();
            parameters.push(("max_results", &most));
            parameters.extend(token.map(|token| ("page_token", token)));
            match self.get(path, &parameters).await {
                Err(Error::TooLarge(_)) if *size > 1 => *size = (*size / 4).max(1),
                answer => return answer,
            }
        }
    }
}
