//! The network buffer's facade.

use super::answer::{Answer, native};
use super::edge::{Exported, Reporter, known};
use super::host::{bytes, disengage, path};
use super::records::{ImportedRecordRx, ImportedRecordTx, RecordRxBox, RecordTxBox, export_rx, export_tx};
use abi_stable::std_types::{RBox, RVec};
use abi_stable::{StableAbi, sabi_trait};
use aventine_api::{
    Disengage, Epoch, Host, NetAttachment, NetworkBuffer, NetworkStats, PluginError, RecordRx, RecordTx,
};
use std::path::Path;
use std::sync::Arc;

/// [`NetAttachment`]: 1 is `Stream`, 2 is `Served`, 3 is `Tap`.
#[derive(StableAbi)]
#[repr(C)]
pub struct NetAttachmentV1 {
    pub kind: u8,
    pub target: RVec<u8>,
}

impl From<&NetAttachment> for NetAttachmentV1 {
    fn from(attachment: &NetAttachment) -> NetAttachmentV1 {
        let (kind, target) = match attachment {
            NetAttachment::Stream(path) => (1, path.as_path()),
            NetAttachment::Served(path) => (2, path.as_path()),
            NetAttachment::Tap(name) => (3, Path::new(name)),
        };
        NetAttachmentV1 { kind, target: bytes(target) }
    }
}

impl NetAttachmentV1 {
    pub(super) fn native(self) -> Result<NetAttachment, PluginError> {
        let target = path(self.target);
        let attachment = match self.kind {
            1 => Some(NetAttachment::Stream(target)),
            2 => Some(NetAttachment::Served(target)),
            3 => Some(NetAttachment::Tap(target.to_string_lossy().into_owned())),
            _ => None,
        };
        known(attachment, "a kind of attachment", self.kind)
    }
}

/// [`NetworkStats`]
#[derive(Clone, Copy, StableAbi)]
#[repr(C)]
pub struct NetworkStatsV1 {
    pub held_frames: u64,
    pub held_bytes: u64,
    pub sent_frames: u64,
    pub received_frames: u64,
    pub dropped_frames: u64,
    pub uncopied_frames: u64,
}

/// [`NetworkBuffer`]
#[sabi_trait]
pub trait NetworkV1: Send {
    fn depth(&self) -> Answer<u32>;
    fn attachment(&self) -> Answer<NetAttachmentV1>;
    fn replicate(&mut self, tx: RecordTxBox) -> Answer<()>;
    fn pausing(&mut self) -> Answer<()>;
    fn engage(&mut self) -> Answer<()>;
    fn seal(&mut self, epoch: u64) -> Answer<()>;
    fn release(&mut self, epoch: u64) -> Answer<()>;
    fn disengage(&mut self, why: u8) -> Answer<()>;
    fn receive(&mut self, rx: RecordRxBox) -> Answer<()>;
    fn suspect(&mut self, suspected: bool) -> Answer<()>;
    fn activate(&mut self, epoch: u64) -> Answer<()>;
    fn stats(&self) -> Answer<NetworkStatsV1>;
}

pub(super) type NetworkBox = NetworkV1_TO<'static, RBox<()>>;

impl NetworkV1 for Exported<Box<dyn NetworkBuffer>> {
    fn depth(&self) -> Answer<u32> {
        self.ask(|n| n.depth())
    }

    fn attachment(&self) -> Answer<NetAttachmentV1> {
        self.ask(|n| (&n.attachment()).into())
    }

    fn replicate(&mut self, tx: RecordTxBox) -> Answer<()> {
        self.call(|n| n.replicate(Box::new(ImportedRecordTx(tx))))
    }

    fn pausing(&mut self) -> Answer<()> {
        self.call(|n| {
            n.pausing();
            Ok(())
        })
    }

    fn engage(&mut self) -> Answer<()> {
        self.call(|n| n.engage())
    }

    fn seal(&mut self, epoch: u64) -> Answer<()> {
        self.call(|n| n.seal(Epoch(epoch)))
    }

    fn release(&mut self, epoch: u64) -> Answer<()> {
        self.call(|n| n.release(Epoch(epoch)))
    }

    fn disengage(&mut self, why: u8) -> Answer<()> {
        self.last_call(|n| n.disengage(disengage(why)?))
    }

    fn receive(&mut self, rx: RecordRxBox) -> Answer<()> {
        self.call(|n| n.receive(Box::new(ImportedRecordRx(rx))))
    }

    fn suspect(&mut self, suspected: bool) -> Answer<()> {
        self.call(|n| {
            n.suspect(suspected);
            Ok(())
        })
    }

    fn activate(&mut self, epoch: u64) -> Answer<()> {
        self.call(|n| n.activate(Epoch(epoch)))
    }

    fn stats(&self) -> Answer<NetworkStatsV1> {
        self.ask(|n| {
            let s = n.stats();
            NetworkStatsV1 {
                held_frames: s.held_frames,
                held_bytes: s.held_bytes,
                sent_frames: s.sent_frames,
                received_frames: s.received_frames,
                dropped_frames: s.dropped_frames,
                uncopied_frames: s.uncopied_frames,
            }
        })
    }
}

pub(super) struct ImportedNetwork {
    object: NetworkBox,
    reporter: Reporter,
    depth: u32,
    attachment: NetAttachment,
}

impl ImportedNetwork {
    pub(super) fn new(object: NetworkBox, host: &Arc<dyn Host>) -> Result<ImportedNetwork, PluginError> {
        let depth = native(object.depth())?;
        let attachment = native(object.attachment())?.native()?;
        Ok(ImportedNetwork { object, reporter: Reporter::new(host), depth, attachment })
    }
}

impl NetworkBuffer for ImportedNetwork {
    fn depth(&self) -> u32 {
        self.depth
    }

    fn attachment(&self) -> NetAttachment {
        self.attachment.clone()
    }

    fn replicate(&mut self, tx: Box<dyn RecordTx>) -> Result<(), PluginError> {
        native(self.object.replicate(export_tx(tx)))
    }

    fn pausing(&mut self) {
        self.reporter.or(self.object.pausing(), ());
    }

    fn engage(&mut self) -> Result<(), PluginError> {
        native(self.object.engage())
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

    fn receive(&mut self, rx: Box<dyn RecordRx>) -> Result<(), PluginError> {
        native(self.object.receive(export_rx(rx)))
    }

    fn suspect(&mut self, suspected: bool) {
        self.reporter.or(self.object.suspect(suspected), ());
    }

    fn activate(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        native(self.object.activate(epoch.0))
    }

    fn stats(&self) -> NetworkStats {
        let answer = self.object.stats().map(|s| NetworkStats {
            held_frames: s.held_frames,
            held_bytes: s.held_bytes,
            sent_frames: s.sent_frames,
            received_frames: s.received_frames,
            dropped_frames: s.dropped_frames,
            uncopied_frames: s.uncopied_frames,
        });
        self.reporter.or(answer, NetworkStats::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi_stable::sabi_trait;
    use aventine_api::ErrorCode;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Panics in `seal`, and the second time that it is disengaged.
    struct Panicking(Arc<AtomicU32>);

    impl NetworkBuffer for Panicking {
        fn depth(&self) -> u32 {
            1
        }
        fn attachment(&self) -> NetAttachment {
            NetAttachment::Tap("tap0".into())
        }
        fn engage(&mut self) -> Result<(), PluginError> {
            Ok(())
        }
        fn seal(&mut self, _: Epoch) -> Result<(), PluginError> {
            panic!("a defect")
        }
        fn release(&mut self, _: Epoch) -> Result<(), PluginError> {
            unreachable!("a dead plugin is not called")
        }
        fn disengage(&mut self, _: Disengage) -> Result<(), PluginError> {
            assert_eq!(self.0.fetch_add(1, Ordering::Relaxed), 0, "another defect");
            Ok(())
        }
        fn activate(&mut self, _: Epoch) -> Result<(), PluginError> {
            Ok(())
        }
        fn stats(&self) -> NetworkStats {
            NetworkStats::default()
        }
    }

    struct Deaf;

    impl Host for Deaf {
        fn request_epoch(&self) {}
        fn staged(&self, _: Epoch) {}
        fn failed(&self, _: PluginError) {}
    }

    #[test]
    fn a_dead_buffer_can_still_give_the_guest_its_network_back() {
        let disengaged = Arc::new(AtomicU32::new(0));
        let native: Box<dyn NetworkBuffer> = Box::new(Panicking(Arc::clone(&disengaged)));
        let object = NetworkV1_TO::from_value(Exported::new(native), sabi_trait::TD_Opaque);
        let host: Arc<dyn Host> = Arc::new(Deaf);
        let mut buffer = ImportedNetwork::new(object, &host).unwrap();
        buffer.engage().unwrap();
        assert!(buffer.seal(Epoch(1)).unwrap_err().chain().ends_with("a defect"));
        assert_eq!(buffer.release(Epoch(1)).unwrap_err().code(), ErrorCode::Internal);
        buffer.disengage(Disengage::Owner).unwrap();
        assert_eq!(disengaged.load(Ordering::Relaxed), 1);
        assert!(buffer.disengage(Disengage::Owner).unwrap_err().chain().contains("another defect"));
    }
}
