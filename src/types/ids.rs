//! Identities. Owns: the grammar `[a-z0-9-]{1,63}` and the minted ids (architecture §10).
//! Always: a value of one of these types is valid; text from outside becomes one only by parsing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::limits::NAME_BYTES_MAX;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text does not match `[a-z0-9-]{1,63}`.
    #[error("'{0}' is not a name: use 1 to 63 of a-z, 0-9 and '-'")]
    Name(String),
    /// The text is not a minted id such as `vm-1-3-17`.
    #[error("'{text}' is not a {kind} id: it looks like {kind}-<region>-<incarnation>-<number>")]
    Minted { kind: &'static str, text: String },
}

fn check_name(text: &str) -> Result<(), IdError> {
    let fits = (1..=NAME_BYTES_MAX).contains(&text.len());
    let clean = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits && clean {
        Ok(())
    } else {
        // Cut, because an error text must not carry a megabyte of somebody's garbage.
        Err(IdError::Name(text.chars().take(80).collect()))
    }
}

macro_rules! serde_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// How a type that is written as text stands in the API's description.
macro_rules! schema_as_text {
    ($name:ident, $pattern:expr, $example:expr) => {
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .pattern(Some($pattern))
                    .examples([$example])
                    .into()
            }
        }
        impl utoipa::ToSchema for $name {}
    };
}
pub(crate) use schema_as_text;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                check_name(text)?;
                Ok(Self(text.to_owned()))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        serde_as_text!($name);
        schema_as_text!($name, "^[a-z0-9-]{1,63}$", "eu-a");
    };
}

name!(
    /// A region: one node process.
    RegionName
);
name!(
    /// A federation of regions; part of every certificate's identity.
    FederationName
);
name!(
    /// A cluster: hosts behind one driver.
    ClusterId
);
name!(
    /// A host process that owns VMs on a machine.
    HostName
);
name!(
    /// What a person calls a VM; unique per (namespace, region).
    VmName
);
name!(
    /// A namespace.
    NamespaceName
);

/// The number of a region: the first part of every id that it mints; never reused (architecture §10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RegionNumber(pub u32);

impl fmt::Display for RegionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! minted {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            /// The region that minted it.
            pub region: RegionNumber,
            /// The counter of that region's store incarnation at the time.
            pub incarnation: u64,
            /// The how-manieth of that incarnation, from 1.
            pub number: u64,
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}-{}-{}-{}", $kind, self.region, self.incarnation, self.number)
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let bad = || IdError::Minted { kind: $kind, text: text.chars().take(80).collect() };
                let mut parts = text.split('-');
                if parts.next() != Some($kind) {
                    return Err(bad());
                }
                let mut number = || -> Result<u64, IdError> {
                    let part = parts.next().ok_or_else(bad)?;
                    // One spelling per id: no sign, no leading zero.
                    if !part.bytes().all(|b| b.is_ascii_digit()) || (part.len() > 1 && part.starts_with('0')) {
                        return Err(bad());
                    }
                    part.parse().map_err(|_| bad())
                };
                let region = u32::try_from(number()?).map_err(|_| bad())?;
                let id = Self { region: RegionNumber(region), incarnation: number()?, number: number()? };
                if parts.next().is_some() {
                    return Err(bad());
                }
                Ok(id)
            }
        }
        serde_as_text!($name);
        schema_as_text!($name, concat!("^", $kind, "(-[0-9]+){3}$"), concat!($kind, "-1-3-17"));
    };
}

minted!(
    /// A VM. Its owner is the minting region unless a transfer says otherwise.
    VmId, "vm"
);
minted!(
    /// A journalled job; a migration is one.
    JobId, "job"
);
minted!(
    /// A migration plan.
    PlanId, "plan"
);
minted!(
    /// An API request, as it appears in errors and in the audit.
    RequestId, "req"
);
minted!(
    /// A fault that a person injected: its number is that of the request that asked for it.
    FaultId, "fault"
);

/// Names one effect at a host, so that repeating it is harmless: who asked, which attempt, which step.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OperationId(String);

impl OperationId {
    /// The operation `step` of `attempt` of a job.
    pub fn of_job(job: JobId, attempt: super::Attempt, step: &str) -> Self {
        Self(format!("{job}/{attempt}/{step}"))
    }
    /// The operation `step` that a client's request asked for.
    pub fn of_request(request: RequestId, step: &str) -> Self {
        Self(format!("{request}/{step}"))
    }
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_the_grammar() {
        for good in ["a", "eu", "eu-west-1", &"x".repeat(63)] {
            assert!(good.parse::<RegionName>().is_ok(), "{good}");
        }
        for bad in ["", "EU", "a_b", "../x", "a b", "é", &"x".repeat(64)] {
            assert!(bad.parse::<RegionName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn minted_ids_have_one_spelling() {
        let id = VmId { region: RegionNumber(1), incarnation: 3, number: 17 };
        assert_eq!(id.to_string(), "vm-1-3-17");
        assert_eq!("vm-1-3-17".parse(), Ok(id));
        for bad in ["vm-1-3", "vm-1-3-17-1", "vm-01-3-1", "job-1-3-17", "vm-+1-3-1", "vm-1-3-", "vm-99999999999-1-1"] {
            assert!(bad.parse::<VmId>().is_err(), "{bad}");
        }
    }
}
