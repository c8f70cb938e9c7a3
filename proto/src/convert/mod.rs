//! Conversions between wire messages and the policy core's types. Every wire message may be hostile: what is missing,
//! unknown or out of range is an error that names the field, never a default.

mod name;
mod resource;
mod rule;

use std::fmt;

use thiserror::Error;

pub use name::{address_from_bytes, address_to_bytes, digest_from_bytes};
pub use rule::RuleTable;

pub(crate) use resource::{
    Shared, resource_from_wire, resource_name_from_wire, resource_name_to_wire, resource_to_wire,
};
pub(crate) use rule::{port_set_from_wire, port_set_to_wire, rule_name_from_wire};

/// A message that does not mean anything: which field, and why.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("field {field}: {problem}")]
pub struct WireError {
    /// Path of the field in its message: `upserts[3].binding.peer`.
    pub field: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Problem {
    /// It is required.
    Missing,
    /// The text is not the name of a trust profile.
    NotAProfile(String),
    /// The enum value is none that this version knows, or "unspecified".
    UnknownEnum(i32),
    /// So many bytes, and not so many.
    Length {
        /// Bytes received.
        got: usize,
        /// Bytes expected.
        want: &'static str,
    },
    /// The number is above its limit.
    TooLarge {
        /// The number received.
        got: u64,
        /// The largest one allowed.
        limit: u64,
    },
    /// The index points past the end of the chunk's table.
    NoSuchIndex {
        /// The index received.
        index: u32,
        /// Length of the table.
        length: usize,
    },
    /// A port set that leaves positions out, overlaps, or has a list of alternatives without an end.
    Shape(&'static str),
    /// A text that is no pattern of DNS names.
    NoName(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("missing"),
            Self::UnknownEnum(number) => write!(
                f,
                "{number} is not a value this version knows; are both ends of one version?"
            ),
            Self::Length { got, want } => write!(f, "{got} bytes instead of {want}"),
            Self::TooLarge { got, limit } => write!(f, "{got} is above the limit of {limit}"),
            Self::NoSuchIndex { index, length } => write!(f, "index {index} into a table of {length}"),
            Self::Shape(what) => f.write_str(what),
            Self::NotAProfile(text) => write!(f, "{text:?} is not the name of a trust profile"),
            Self::NoName(text) => write!(f, "{text:?} is no pattern of DNS names"),
        }
    }
}

impl WireError {
    /// An error of the field itself.
    pub fn new(field: impl Into<String>, problem: Problem) -> Self {
        Self {
            field: field.into(),
            problem,
        }
    }

    /// The same error seen from the message that has the field.
    #[must_use]
    pub fn inside(mut self, outer: impl fmt::Display) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }
}

/// Adds the outer field's name to an error.
pub(crate) trait Inside<T> {
    fn inside(self, outer: impl fmt::Display) -> Result<T, WireError>;
}

impl<T> Inside<T> for Result<T, WireError> {
    fn inside(self, outer: impl fmt::Display) -> Self {
        self.map_err(|error| error.inside(outer))
    }
}

/// A required field.
pub(crate) fn required<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or_else(|| WireError::new(field, Problem::Missing))
}

/// A number that has to fit a smaller type.
pub(crate) fn narrow<T: TryFrom<u32>>(field: &'static str, number: u32, limit: u64) -> Result<T, WireError> {
    T::try_from(number).map_err(|_| {
        WireError::new(
            field,
            Problem::TooLarge {
                got: u64::from(number),
                limit,
            },
        )
    })
}
