use std::time::Duration;

/// The last epoch, as the policy sees it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct EpochStats {
    /// How long the guest was paused.
    pub pause: Duration,
    /// Pages captured.
    pub dirty_pages: u64,
    /// Epochs sealed and not acknowledged yet.
    pub in_flight: u32,
    /// From the seal of the last acknowledged epoch to its acknowledgement.
    pub commit: Duration,
}

/// The epoch that is open now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OpenEpoch {
    /// Time since the start of the last pause.
    pub age: Duration,
    /// Frames that the network buffers hold, those of sealed epochs among them.
    pub held_frames: u64,
    /// Bytes of these frames.
    pub held_bytes: u64,
}

/// The longest interval that a policy may answer. What a guest says waits for the end of its epoch: nobody who protects
/// one wants it longer.
pub const LONGEST_EPOCH: Duration = Duration::from_secs(60);

/// Decides when the next epoch ends.
pub trait EpochPolicy: Send {
    /// Time from the start of the last pause to the start of the next. Called once an epoch, guest running. The
    /// engine pauses earlier when a buffer asks for it, later when buffers or the link are full: while one epoch is being sent
    /// and one waits, the open one goes on, and the guest with it.
    ///
    /// Answers at once, for any numbers: the engine's loop stands still meanwhile. More than zero, or the guest never
    /// runs, and at most [`LONGEST_EPOCH`].
    fn interval(&mut self, last: &EpochStats) -> Duration;

    /// Asked between two pauses, guest running, for the first time directly after [`EpochPolicy::interval`]: the time until
    /// it is asked again, at least 100 us; zero ends the epoch now, `None` (the default) leaves it to the interval. Where
    /// buffers or the link are full when it answers zero, the guest is paused until they are not. Never blocks. Not called in a replay of a trace that has no frames.
    fn again(&mut self, open: &OpenEpoch) -> Option<Duration> {
        let _ = open;
        None
    }
}
