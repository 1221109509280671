//! Why a measurement could not be made: a sentence for whoever runs it.

use std::fmt;

/// The result of what may fail.
pub type Outcome<T> = Result<T, Failure>;

/// A sentence.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    /// Says `why`.
    pub fn new(why: impl Into<String>) -> Failure {
        Failure(why.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure(error.to_string())
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Failure {
        Failure(format!("JSON: {error}"))
    }
}

impl From<quoit::error::Error> for Failure {
    fn from(error: quoit::error::Error) -> Failure {
        Failure(format!("quoit: {error}"))
    }
}
