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

/// Decides when the next epoch ends.
pub trait EpochPolicy: Send {
    /// Time from the start of the last pause to the start of the next. Called once an epoch, guest running. The
    /// engine pauses earlier when a buffer asks for it, later when buffers or the link are full.
    fn interval(&mut self, last: &EpochStats) -> Duration;
}
