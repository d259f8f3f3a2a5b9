use crate::{Epoch, PageRun, PluginError};

/// Where decoded pages go.
pub trait PageSink {
    /// The current contents of `pages` pages from `first_page` on, to be changed in place: what was decoded into them last, and
    /// before that anything. Fails for pages that are not all in one [`crate::Region`]: ask page by page for a run that
    /// may go on in the next one.
    fn pages(&mut self, first_page: u64, pages: u64) -> Result<&mut [u8], PluginError>;
}

/// Turns pages into bytes for the wire and back. One instance serves one direction of one link, with batches in
/// order.
pub trait Codec: Send {
    /// Primary: encodes a batch. Appends slices to `out`, pointing into `runs` or into the codec's own memory; the
    /// payload is their concatenation, at most the size of the pages plus 64 bytes for each run.
    fn encode<'a>(
        &'a mut self,
        epoch: Epoch,
        runs: &'a [PageRun<'a>],
        out: &mut Vec<&'a [u8]>,
    ) -> Result<(), PluginError>;

    /// Standby: whether `payload` is well formed and touches only pages below `guest_pages`; answers how many pages
    /// it holds. Called before the epoch commits, for all of its batches before the first is decoded: a payload that passes
    /// can be decoded without an error of the codec's. Others are `Corrupt`.
    fn check(&mut self, payload: &[u8], guest_pages: u64) -> Result<u64, PluginError>;

    /// Standby: writes the pages of a checked payload into `sink`. Called after the epoch is committed, once,
    /// in the order of encoding. Touches no other pages. Fails with the sink.
    fn decode(&mut self, payload: &[u8], sink: &mut dyn PageSink) -> Result<(), PluginError>;
}
