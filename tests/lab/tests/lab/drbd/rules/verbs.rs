//! What each call asks for.

/// Towards the disk.
pub(super) const MAKE: u8 = 1;
pub(super) const DROP: u8 = 2;
pub(super) const REPLICATE: u8 = 3;
pub(super) const RECEIVE: u8 = 4;
pub(super) const PROGRESS: u8 = 5;
pub(super) const PAUSING: u8 = 6;
pub(super) const SEAL: u8 = 7;
pub(super) const RELEASE: u8 = 8;
pub(super) const DISENGAGE: u8 = 9;
pub(super) const COMMIT: u8 = 10;
pub(super) const APPLY: u8 = 11;
pub(super) const ACTIVATE: u8 = 12;
pub(super) const STATS: u8 = 13;
pub(super) const SIZE: u8 = 20;
pub(super) const READ: u8 = 21;
pub(super) const WRITE: u8 = 22;
pub(super) const ZERO: u8 = 23;
pub(super) const TRIM: u8 = 24;
pub(super) const FLUSH: u8 = 25;

/// Towards the suite: what the disk reports, and what it does with its channel, which has a number.
pub(super) const REQUEST_EPOCH: u8 = 40;
pub(super) const STAGED: u8 = 41;
pub(super) const LOST: u8 = 42;
pub(super) const SEND: u8 = 50;
pub(super) const TAKE: u8 = 51;
pub(super) const LET_GO: u8 = 52;
