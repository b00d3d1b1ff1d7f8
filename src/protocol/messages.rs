//! The kinds of messages between regions. Owns: their numbers (append only, never reused) and their priority.
//! Not here: what each carries (`bodies.rs`), who answers it (`actors/inbound.rs`).

use std::fmt;

/// Kind of a message. A value may be any number, because it comes from outside: [`Kind::name`] tells known ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u16);

impl Kind {
    /// Between the two sides of a migration.
    pub const MIGRATION: Kind = Kind(1);
    /// What a region says of its clusters, and up to where it has the answers to its durable commands.
    pub const DIRECTORY: Kind = Kind(2);
    /// An API request that another region must answer.
    pub const API: Kind = Kind(3);
    /// A durable command from the sender's outbox: a VM arrived there, or throw away what was received of one.
    pub const ANNOUNCE: Kind = Kind(4);
    /// A sign of life, by datagram.
    pub const HEARTBEAT: Kind = Kind(5);

    /// Every known kind: name and priority. A higher priority is sent first when the link is full; the order is that
    /// of the classes of admission (architecture §3): heartbeat before control before migration before telemetry.
    const KNOWN: [(Kind, &'static str, i32); 5] = [
        (Kind::MIGRATION, "migration", 0),
        (Kind::DIRECTORY, "directory", -10),
        (Kind::API, "api", 10),
        (Kind::ANNOUNCE, "announce", 10),
        (Kind::HEARTBEAT, "heartbeat", 20),
    ];

    /// Its name; none if this build does not know it.
    pub fn name(self) -> Option<&'static str> {
        Self::KNOWN.iter().find(|known| known.0 == self).map(|known| known.1)
    }
    /// Its priority on a shared connection; higher goes first.
    pub fn priority(self) -> i32 {
        Self::KNOWN.iter().find(|known| known.0 == self).map_or(0, |known| known.2)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "kind {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_kinds_never_change() {
        let numbers: Vec<_> = Kind::KNOWN.iter().map(|(kind, name, _)| (kind.0, *name)).collect();
        assert_eq!(numbers, [(1, "migration"), (2, "directory"), (3, "api"), (4, "announce"), (5, "heartbeat")]);
    }
}
