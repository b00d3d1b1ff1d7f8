//! Errors as clients see them (architecture §10). Owns: codes, their HTTP status, their CLI exit code.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The code of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// The request is malformed; nothing was changed.
    InvalidArgument,
    /// Who asks is not known.
    Unauthenticated,
    /// Who asks may not.
    PermissionDenied,
    /// There is no such thing.
    NotFound,
    /// It clashes with what is there or what runs.
    Conflict,
    /// A condition that the request names, or needs, does not hold.
    PreconditionFailed,
    /// Nothing fits.
    Unschedulable,
    /// It would exceed a quota.
    QuotaExceeded,
    /// Too much at once; try again after `retryAfterMs`.
    Busy,
    /// The majority of voters can't be reached.
    NoQuorum,
    /// Something that is needed does not answer.
    Unavailable,
    /// It took longer than it may.
    DeadlineExceeded,
    /// Whether it was done is not known; repeating with the same key is safe.
    OutcomeUnknown,
    /// A bug or a broken machine; the text says what to report.
    Internal,
}

impl ErrorCode {
    /// Its HTTP status.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::InvalidArgument => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::PreconditionFailed => 412,
            Self::Unschedulable | Self::QuotaExceeded => 422,
            Self::Busy => 429,
            Self::Internal => 500,
            Self::NoQuorum | Self::Unavailable => 503,
            Self::DeadlineExceeded | Self::OutcomeUnknown => 504,
        }
    }
    /// The exit code of a CLI command that got it.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::InvalidArgument => 2,
            Self::Unauthenticated
            | Self::PermissionDenied
            | Self::Conflict
            | Self::PreconditionFailed
            | Self::Unschedulable
            | Self::QuotaExceeded => 3,
            Self::NotFound => 4,
            Self::Busy | Self::NoQuorum | Self::Unavailable => 5,
            Self::DeadlineExceeded | Self::OutcomeUnknown => 6,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_value(self).ok().and_then(|v| v.as_str().map(str::to_owned));
        f.write_str(text.as_deref().unwrap_or("INTERNAL"))
    }
}

/// An error that a person can act on: what was attempted on what and why it failed (`message`), what to do (`hint`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error, utoipa::ToSchema)]
#[error("{message}")]
pub struct ApiError {
    /// Its code.
    pub code: ErrorCode,
    /// What was attempted, on what, and why it failed.
    pub message: String,
    /// What a program may want to know.
    #[serde(default)]
    pub details: serde_json::Value,
    /// What to do next.
    #[serde(default)]
    pub hint: String,
}

impl ApiError {
    /// An error without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: serde_json::Value::Null, hint: String::new() }
    }
    /// The same with a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
    /// The same with details.
    pub fn details(mut self, details: serde_json::Value) -> Self {
        self.details = details;
        self
    }
}

/// An error with its causes, each said once: some errors quote their cause, others leave it to be asked for.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::num::ParseIntError;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Reading {
        #[error("reading")]
        Quiet(#[source] ParseIntError),
        #[error("reading: {0}")]
        Quoting(#[source] ParseIntError),
    }

    #[test]
    fn each_cause_is_said_once() {
        let cause = || "x".parse::<u8>().expect_err("it is no number");
        assert_eq!(chain(&Reading::Quiet(cause())), "reading: invalid digit found in string");
        assert_eq!(chain(&Reading::Quoting(cause())), "reading: invalid digit found in string");
    }
}
