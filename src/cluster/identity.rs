//! How a tenant's pods prove to Kubeflow Pipelines who they are: for admission and for the objects of a namespace alike.

use std::str::FromStr;

use clap::ValueEnum;

/// Mode of an installation or of one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Identity {
    /// By the header that the mesh adds for pods with the tenant label.
    Header,
    /// By a token of its service account, which Pipelines' SDK finds by itself; works without a mesh.
    Token,
    /// `header` where pods have sidecars, `token` otherwise.
    Auto,
}

/// As in a namespace's annotation; nothing is guessed.
impl FromStr for Identity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "header" => Ok(Self::Header),
            "token" => Ok(Self::Token),
            "auto" => Ok(Self::Auto),
            other => Err(format!("{other:?} is none of header, token, auto")),
        }
    }
}
