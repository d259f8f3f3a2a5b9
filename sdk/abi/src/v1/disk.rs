//! The facades of a disk and of its block device.

use super::answer::{Answer, native};
use super::edge::{Exported, Reporter};
use super::host::disengage;
use super::records::{ImportedRecordRx, ImportedRecordTx, RecordRxBox, RecordTxBox, export_rx, export_tx};
use abi_stable::std_types::{RArc, RBox, ROption, RSlice, RSliceMut, RString};
use abi_stable::{StableAbi, sabi_trait};
use aventine_api::{
    BlockDevice, Disengage, Disk, DiskProgress, DiskStats, DiskVerification, Epoch, Host, PluginError,
    RecordRx, RecordTx,
};
use std::sync::Arc;

/// [`BlockDevice`]
#[sabi_trait]
pub trait BlockV1: Send + Sync {
    fn size(&self) -> Answer<u64>;
    fn read(&self, offset: u64, buf: RSliceMut<'_, u8>) -> Answer<()>;
    fn write(&self, offset: u64, data: RSlice<'_, u8>, fua: bool) -> Answer<()>;
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool, fua: bool) -> Answer<()>;
    fn trim(&self, offset: u64, len: u64) -> Answer<()>;
    fn flush(&self) -> Answer<()>;
}

pub(super) type BlockArc = BlockV1_TO<'static, RArc<()>>;

/// [`DiskProgress`]
#[derive(Clone, Copy, StableAbi)]
#[repr(C)]
pub struct DiskProgressV1 {
    pub done: u64,
    pub total: u64,
}

/// [`DiskVerification`]
#[derive(Clone, Copy, StableAbi)]
#[repr(C)]
pub struct DiskVerificationV1 {
    pub running: bool,
    pub total: u64,
    pub done: u64,
    pub differing: u64,
    pub repaired: u64,
}

/// [`DiskStats`]
#[derive(Clone, Copy, StableAbi)]
#[repr(C)]
pub struct DiskStatsV1 {
    pub written_bytes: u64,
    pub replicated_bytes: u64,
    pub buffered_bytes: u64,
}

/// [`Disk`]
#[sabi_trait]
pub trait DiskV1: Send {
    fn depth(&self) -> Answer<u32>;
    fn route(&self) -> Answer<ROption<RString>>;
    fn block(&self) -> Answer<BlockArc>;
    fn replicate(&mut self, tx: RecordTxBox, back: ROption<RecordRxBox>) -> Answer<()>;
    fn progress(&self) -> Answer<DiskProgressV1>;
    fn pausing(&self) -> Answer<()>;
    fn seal(&mut self, epoch: u64) -> Answer<()>;
    fn release(&mut self, epoch: u64) -> Answer<()>;
    fn disengage(&mut self, why: u8) -> Answer<()>;
    fn receive(&mut self, rx: RecordRxBox, back: RecordTxBox) -> Answer<()>;
    fn commit(&mut self, epoch: u64) -> Answer<()>;
    fn apply(&mut self, epoch: u64) -> Answer<()>;
    fn activate(&mut self, epoch: u64) -> Answer<()>;
    fn stats(&self) -> Answer<DiskStatsV1>;
    fn verify(&mut self, repair: bool) -> Answer<()>;
    fn verification(&self) -> Answer<DiskVerificationV1>;
}

pub(super) type DiskBox = DiskV1_TO<'static, RBox<()>>;

impl BlockV1 for Exported<Arc<dyn BlockDevice>> {
    fn size(&self) -> Answer<u64> {
        self.ask(|b| b.size())
    }

    fn read(&self, offset: u64, mut buf: RSliceMut<'_, u8>) -> Answer<()> {
        self.share(|b| b.read(offset, buf.as_mut_slice()))
    }

    fn write(&self, offset: u64, data: RSlice<'_, u8>, fua: bool) -> Answer<()> {
        self.share(|b| b.write(offset, data.as_slice(), fua))
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool, fua: bool) -> Answer<()> {
        self.share(|b| b.write_zeroes(offset, len, may_unmap, fua))
    }

    fn trim(&self, offset: u64, len: u64) -> Answer<()> {
        self.share(|b| b.trim(offset, len))
    }

    fn flush(&self) -> Answer<()> {
        self.share(|b| b.flush())
    }
}

struct ImportedBlock(BlockArc);

impl BlockDevice for ImportedBlock {
    /// Asked each time: a standby's is not known before `receive`. A dead plugin's device has no bytes, and any request
    /// to it is an error.
    fn size(&self) -> u64 {
        native(self.0.size()).unwrap_or(0)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), PluginError> {
        native(self.0.read(offset, RSliceMut::from_mut_slice(buf)))
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), PluginError> {
        native(self.0.write(offset, RSlice::from_slice(data), fua))
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool, fua: bool) -> Result<(), PluginError> {
        native(self.0.write_zeroes(offset, len, may_unmap, fua))
    }

    fn trim(&self, offset: u64, len: u64) -> Result<(), PluginError> {
        native(self.0.trim(offset, len))
    }

    fn flush(&self) -> Result<(), PluginError> {
        native(self.0.flush())
    }
}

impl DiskV1 for Exported<Box<dyn Disk>> {
    fn depth(&self) -> Answer<u32> {
        self.ask(|d| d.depth())
    }

    fn route(&self) -> Answer<ROption<RString>> {
        self.ask(|d| d.route().map(RString::from).into())
    }

    fn block(&self) -> Answer<BlockArc> {
        // Not a part of the disk: when epochs can no longer be sealed, the guest still reads and writes.
        self.ask(|d| BlockV1_TO::from_ptr(RArc::new(Exported::new(d.block())), sabi_trait::TD_Opaque))
    }

    fn replicate(&mut self, tx: RecordTxBox, back: ROption<RecordRxBox>) -> Answer<()> {
        let back = back.into_option().map(|rx| Box::new(ImportedRecordRx(rx)) as Box<dyn RecordRx>);
        self.call(|d| d.replicate(Box::new(ImportedRecordTx(tx)), back))
    }

    fn progress(&self) -> Answer<DiskProgressV1> {
        self.ask(|d| {
            let DiskProgress { done, total } = d.progress();
            DiskProgressV1 { done, total }
        })
    }

    fn pausing(&self) -> Answer<()> {
        self.ask(|d| d.pausing())
    }

    fn seal(&mut self, epoch: u64) -> Answer<()> {
        self.call(|d| d.seal(Epoch(epoch)))
    }

    fn release(&mut self, epoch: u64) -> Answer<()> {
        self.call(|d| d.release(Epoch(epoch)))
    }

    fn disengage(&mut self, why: u8) -> Answer<()> {
        self.last_call(|d| d.disengage(disengage(why)?))
    }

    fn receive(&mut self, rx: RecordRxBox, back: RecordTxBox) -> Answer<()> {
        self.call(|d| d.receive(Box::new(ImportedRecordRx(rx)), Box::new(ImportedRecordTx(back))))
    }

    fn commit(&mut self, epoch: u64) -> Answer<()> {
        self.call(|d| d.commit(Epoch(epoch)))
    }

    fn apply(&mut self, epoch: u64) -> Answer<()> {
        self.call(|d| d.apply(Epoch(epoch)))
    }

    fn activate(&mut self, epoch: u64) -> Answer<()> {
        self.call(|d| d.activate(Epoch(epoch)))
    }

    fn stats(&self) -> Answer<DiskStatsV1> {
        self.ask(|d| {
            let DiskStats { written_bytes, replicated_bytes, buffered_bytes } = d.stats();
            DiskStatsV1 { written_bytes, replicated_bytes, buffered_bytes }
        })
    }

    fn verify(&mut self, repair: bool) -> Answer<()> {
        self.call(|d| d.verify(repair))
    }

    fn verification(&self) -> Answer<DiskVerificationV1> {
        self.ask(|d| {
            let DiskVerification { running, total, done, differing, repaired } = d.verification();
            DiskVerificationV1 { running, total, done, differing, repaired }
        })
    }
}

pub(super) struct ImportedDisk {
    object: DiskBox,
    reporter: Reporter,
    depth: u32,
    route: Option<String>,
    block: Arc<dyn BlockDevice>,
}

impl ImportedDisk {
    pub(super) fn new(object: DiskBox, host: &Arc<dyn Host>) -> Result<ImportedDisk, PluginError> {
        let depth = native(object.depth())?;
        let route = native(object.route())?.into_option().map(RString::into_string);
        let block = Arc::new(ImportedBlock(native(object.block())?));
        Ok(ImportedDisk { object, reporter: Reporter::new(host), depth, route, block })
    }
}

impl Disk for ImportedDisk {
    fn depth(&self) -> u32 {
        self.depth
    }

    fn route(&self) -> Option<String> {
        self.route.clone()
    }

    fn block(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.block)
    }

    fn replicate(
        &mut self,
        tx: Box<dyn RecordTx>,
        back: Option<Box<dyn RecordRx>>,
    ) -> Result<(), PluginError> {
        native(self.object.replicate(export_tx(tx), back.map(export_rx).into()))
    }

    /// A dead plugin's copy is never complete.
    fn progress(&self) -> DiskProgress {
        let DiskProgressV1 { done, total } =
            self.reporter.or(self.object.progress(), DiskProgressV1 { done: 0, total: 1 });
        DiskProgress { done, total }
    }

    fn pausing(&self) {
        self.reporter.or(self.object.pausing(), ());
    }

    fn seal(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        native(self.object.seal(epoch.0))
    }

    fn release(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        native(self.object.release(epoch.0))
    }

    fn disengage(&mut self, why: Disengage) -> Result<(), PluginError> {
        native(self.object.disengage(why as u8))
    }

    fn receive(&mut self, rx: Box<dyn RecordRx>, back: Box<dyn RecordTx>) -> Result<(), PluginError> {
        native(self.object.receive(export_rx(rx), export_tx(back)))
    }

    fn commit(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        native(self.object.commit(epoch.0))
    }

    fn apply(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        native(self.object.apply(epoch.0))
    }

    fn activate(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        native(self.object.activate(epoch.0))
    }

    fn stats(&self) -> DiskStats {
        let answer = self.object.stats().map(|s| DiskStats {
            written_bytes: s.written_bytes,
            replicated_bytes: s.replicated_bytes,
            buffered_bytes: s.buffered_bytes,
        });
        self.reporter.or(answer, DiskStats::default())
    }

    fn verify(&mut self, repair: bool) -> Result<(), PluginError> {
        native(self.object.verify(repair))
    }

    fn verification(&self) -> DiskVerification {
        let answer = self.object.verification().map(|v| DiskVerification {
            running: v.running,
            total: v.total,
            done: v.done,
            differing: v.differing,
            repaired: v.repaired,
        });
        self.reporter.or(answer, DiskVerification::default())
    }
}
