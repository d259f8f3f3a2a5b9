use std::fmt;

/// The number that ties memory, device state, disk writes, network seals, acknowledgements and releases together.
///
/// `Epoch::COPY` (zero) marks what belongs to the initial copy, before there is a checkpoint; real epochs start at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The initial copy: applied as it arrives, because there is no checkpoint yet that it could damage.
    pub const COPY: Epoch = Epoch(0);
    /// The first checkpoint.
    pub const FIRST: Epoch = Epoch(1);

    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }

    /// The epoch before this one; `COPY` stays `COPY`.
    #[must_use]
    pub fn previous(self) -> Epoch {
        Epoch(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
