use crate::{PluginError, Side};
use std::fmt;

/// Names one period of protection, from the first committed checkpoint to its end. Random, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct SessionId(pub [u8; 16]);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// The arbiter's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// The asking side owns the guest.
    Won = 1,
    /// The other side owns the guest.
    Lost = 2,
    /// Nobody owns it yet: ask again. (An arbiter that waits for a person.)
    Undecided = 3,
}

/// The test-and-set that decides who owns the guest once the two hosts have lost each other.
///
/// For each session the first side that claims wins, for ever (or the one that a person names, where the arbiter
/// [waits for one](Arbiter::waits_for_person)); both sides get the same answer however often, whenever and in whatever
/// order they ask. That must hold under crashes and restarts of both hosts and of the arbiter.
pub trait Arbiter: Send {
    /// Claims the guest for `side`. May block for seconds; an error means that nothing is known, and the engine asks
    /// again. Never answers `Lost` unless the other side has won.
    fn claim(&mut self, session: SessionId, side: Side) -> Result<Verdict, PluginError>;

    /// Whether a verdict may take as long as a person takes: nothing that can wait is then made to depend on one. With
    /// `false` a claim that can be asked leads to a verdict by itself.
    fn waits_for_person(&self) -> bool {
        false
    }

    /// Whether the arbiter could be asked now, without claiming anything. May block for seconds.
    fn probe(&mut self) -> Result<(), PluginError>;
}
