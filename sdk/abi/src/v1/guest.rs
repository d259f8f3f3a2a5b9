//! The guest's facade.

use super::answer::{Answer, ErrorV1, native};
use super::edge::{Exported, Reporter, known};
use super::host::{bytes, path};
use super::network::NetAttachmentV1;
use abi_stable::std_types::{RBox, ROption, RResult, RSlice, RString, RVec};
use abi_stable::{StableAbi, sabi_trait};
use aventine_api::{Attachments, DiskAttachment, Guest, GuestEvent, Host, PageBitmap, PluginError, Region};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// A fact of the guest's signature.
#[derive(StableAbi)]
#[repr(C)]
pub struct FactV1 {
    pub name: RString,
    pub value: RString,
}

/// A network that the guest can be connected to.
#[derive(StableAbi)]
#[repr(C)]
pub struct AttachedNetworkV1 {
    pub id: RString,
    pub attachment: NetAttachmentV1,
}

/// A disk that the guest can be connected to, and its [`DiskAttachment`]: 1 is `Nbd`, 2 is `VhostUser`.
#[derive(StableAbi)]
#[repr(C)]
pub struct AttachedDiskV1 {
    pub id: RString,
    pub kind: u8,
    pub socket: RVec<u8>,
}

impl AttachedDiskV1 {
    fn of((id, attachment): &(String, DiskAttachment)) -> AttachedDiskV1 {
        let (kind, socket) = match attachment {
            DiskAttachment::Nbd(socket) => (1, socket),
            DiskAttachment::VhostUser(socket) => (2, socket),
        };
        AttachedDiskV1 { id: id.as_str().into(), kind, socket: bytes(socket) }
    }

    fn native(self) -> Result<(String, DiskAttachment), PluginError> {
        let socket = path(self.socket);
        let attachment = match self.kind {
            1 => Some(DiskAttachment::Nbd(socket)),
            2 => Some(DiskAttachment::VhostUser(socket)),
            _ => None,
        };
        Ok((self.id.into_string(), known(attachment, "a kind of disk attachment", self.kind)?))
    }
}

/// [`Attachments`]
#[derive(StableAbi)]
#[repr(C)]
pub struct AttachmentsV1 {
    pub networks: RVec<AttachedNetworkV1>,
    pub disks: RVec<AttachedDiskV1>,
}

/// [`Region`]
#[derive(Clone, Copy, StableAbi)]
#[repr(C)]
pub struct RegionV1 {
    pub first_page: u64,
    pub pages: u64,
    pub host: *mut u8,
}

/// Pages as bits, as [`PageBitmap::words`] has them, and the error that some may be missing for.
#[derive(StableAbi)]
#[repr(C)]
pub struct DirtyV1<'a> {
    pub words: RSlice<'a, u64>,
    pub error: ROption<ErrorV1>,
}

/// [`GuestEvent`]: 1 is `ShutDown`, 2 is `Rebooted`, 3 is `Panicked`, 4 is `Lost`.
#[derive(StableAbi)]
#[repr(C)]
pub struct GuestEventV1 {
    pub kind: u8,
    pub how: RString,
}

/// [`Guest`]
#[sabi_trait]
pub trait GuestV1: Send {
    fn signature(&mut self) -> Answer<RVec<FactV1>>;
    fn start(&mut self, attachments: AttachmentsV1) -> Answer<()>;
    fn regions(&self) -> Answer<RVec<RegionV1>>;
    /// A file descriptor that stays the guest's, or -1.
    fn backing(&self, region: usize) -> Answer<i32>;
    fn pause(&mut self) -> Answer<()>;
    fn start_state(&mut self) -> Answer<()>;
    fn finish_state(&mut self) -> RResult<RSlice<'_, u8>, ErrorV1>;
    /// The answer covers `pages` pages and holds what this call found only.
    fn dirty(&mut self, pages: u64) -> RResult<DirtyV1<'_>, ErrorV1>;
    /// As `dirty`.
    fn populated(&mut self, pages: u64) -> RResult<DirtyV1<'_>, ErrorV1>;
    fn resume(&mut self) -> Answer<()>;
    fn process(&self) -> Answer<ROption<u32>>;
    fn poll(&mut self) -> Answer<ROption<GuestEventV1>>;
    fn activate(&mut self, state: RSlice<'_, u8>) -> Answer<()>;
    fn power_down(&mut self) -> Answer<()>;
    fn outlives(&self) -> Answer<bool>;
    fn kill(&mut self) -> Answer<()>;
}

pub(super) type GuestBox = GuestV1_TO<'static, RBox<()>>;

/// A guest, and the buffers that its answers lend.
pub(super) struct Lending {
    guest: Box<dyn Guest>,
    state: Vec<u8>,
    bits: PageBitmap,
}

impl Lending {
    pub(super) fn export(guest: Box<dyn Guest>) -> GuestBox {
        let lending = Box::new(Lending { guest, state: Vec::new(), bits: PageBitmap::new(0) });
        GuestV1_TO::from_value(Exported::new(lending), sabi_trait::TD_Opaque)
    }

    /// Has `find` set bits of `pages` pages.
    fn find(
        &mut self,
        pages: u64,
        find: impl FnOnce(&mut dyn Guest, &mut PageBitmap) -> Result<(), PluginError>,
    ) -> DirtyV1<'_> {
        if self.bits.pages() == pages {
            self.bits.clear();
        } else {
            self.bits = PageBitmap::new(pages);
        }
        let found = find(&mut *self.guest, &mut self.bits);
        let error = found.err().map(|e| ErrorV1::from(&e)).into();
        DirtyV1 { words: RSlice::from_slice(self.bits.words()), error }
    }
}

impl GuestV1 for Exported<Box<Lending>> {
    fn signature(&mut self) -> Answer<RVec<FactV1>> {
        let fact = |(name, value): (String, String)| FactV1 { name: name.into(), value: value.into() };
        self.call(|g| Ok(g.guest.signature()?.into_iter().map(fact).collect()))
    }

    fn start(&mut self, attachments: AttachmentsV1) -> Answer<()> {
        self.call(|g| {
            let network = |n: AttachedNetworkV1| Ok((n.id.into_string(), n.attachment.native()?));
            let networks =
                attachments.networks.into_iter().map(network).collect::<Result<_, PluginError>>()?;
            let disks =
                attachments.disks.into_iter().map(AttachedDiskV1::native).collect::<Result<_, _>>()?;
            g.guest.start(&Attachments { networks, disks })
        })
    }

    fn regions(&self) -> Answer<RVec<RegionV1>> {
        let region = |r: Region| RegionV1 { first_page: r.first_page, pages: r.pages, host: r.host.as_ptr() };
        self.ask(|g| g.guest.regions().into_iter().map(region).collect())
    }

    fn backing(&self, region: usize) -> Answer<i32> {
        self.ask(|g| g.guest.backing(region).map_or(-1, |fd| fd.as_raw_fd()))
    }

    fn pause(&mut self) -> Answer<()> {
        self.call(|g| g.guest.pause())
    }

    fn start_state(&mut self) -> Answer<()> {
        self.call(|g| g.guest.start_state())
    }

    fn finish_state(&mut self) -> RResult<RSlice<'_, u8>, ErrorV1> {
        self.call(|Lending { guest, state, .. }| {
            guest.finish_state(state)?;
            Ok(RSlice::from_slice(state))
        })
    }

    fn dirty(&mut self, pages: u64) -> RResult<DirtyV1<'_>, ErrorV1> {
        self.call(|g| Ok(g.find(pages, |guest, bits| guest.dirty(bits))))
    }

    fn populated(&mut self, pages: u64) -> RResult<DirtyV1<'_>, ErrorV1> {
        self.call(|g| Ok(g.find(pages, |guest, bits| guest.populated(bits))))
    }

    fn resume(&mut self) -> Answer<()> {
        self.call(|g| g.guest.resume())
    }

    fn process(&self) -> Answer<ROption<u32>> {
        self.ask(|g| g.guest.process().into())
    }

    fn poll(&mut self) -> Answer<ROption<GuestEventV1>> {
        let event = |(kind, how): (u8, String)| GuestEventV1 { kind, how: how.into() };
        self.call(|g| {
            let seen = g.guest.poll()?.map(|seen| match seen {
                GuestEvent::ShutDown => (1, String::new()),
                GuestEvent::Rebooted => (2, String::new()),
                GuestEvent::Panicked => (3, String::new()),
                GuestEvent::Lost { how } => (4, how),
            });
            Ok(seen.map(event).into())
        })
    }

    fn activate(&mut self, state: RSlice<'_, u8>) -> Answer<()> {
        self.call(|g| g.guest.activate(state.as_slice()))
    }

    fn power_down(&mut self) -> Answer<()> {
        self.call(|g| g.guest.power_down())
    }

    fn outlives(&self) -> Answer<bool> {
        self.ask(|g| g.guest.outlives())
    }

    fn kill(&mut self) -> Answer<()> {
        self.call(|g| g.guest.kill())
    }
}

pub(super) struct ImportedGuest {
    object: GuestBox,
    reporter: Reporter,
}

impl ImportedGuest {
    pub(super) fn new(object: GuestBox, host: &Arc<dyn Host>) -> ImportedGuest {
        ImportedGuest { object, reporter: Reporter::new(host) }
    }
}

/// Takes bits over; those that came with an error are as good as the others.
fn take(answer: RResult<DirtyV1<'_>, ErrorV1>, into: &mut PageBitmap) -> Result<(), PluginError> {
    let DirtyV1 { words, error } = native(answer)?;
    if words.len() != into.words().len() {
        return Err(
            ErrorV1::internal("The guest plugin named the dirty pages of another size of memory").into()
        );
    }
    into.merge_words(words.as_slice());
    error.into_option().map_or(Ok(()), |e| Err(e.into()))
}

fn event(event: GuestEventV1) -> Result<GuestEvent, PluginError> {
    let how = event.how.into_string();
    let seen = match event.kind {
        1 => Some(GuestEvent::ShutDown),
        2 => Some(GuestEvent::Rebooted),
        3 => Some(GuestEvent::Panicked),
        4 => Some(GuestEvent::Lost { how }),
        _ => None,
    };
    known(seen, "what the guest did", event.kind)
}

impl Guest for ImportedGuest {
    fn signature(&mut self) -> Result<Vec<(String, String)>, PluginError> {
        let facts = native(self.object.signature())?;
        Ok(facts.into_iter().map(|f| (f.name.into_string(), f.value.into_string())).collect())
    }

    fn start(&mut self, attachments: &Attachments) -> Result<(), PluginError> {
        let networks = attachments.networks.iter();
        let networks = networks
            .map(|(id, a)| AttachedNetworkV1 { id: id.as_str().into(), attachment: a.into() })
            .collect();
        let disks = attachments.disks.iter().map(AttachedDiskV1::of).collect();
        native(self.object.start(AttachmentsV1 { networks, disks }))
    }

    fn regions(&self) -> Vec<Region> {
        let regions = self.reporter.or(self.object.regions(), RVec::new()).into_iter();
        // A region without memory is none; the engine finds that pages are missing.
        regions
            .filter_map(|r| {
                Some(Region { first_page: r.first_page, pages: r.pages, host: NonNull::new(r.host)? })
            })
            .collect()
    }

    fn backing(&self, region: usize) -> Option<BorrowedFd<'_>> {
        let fd = self.reporter.or(self.object.backing(region), -1);
        // SAFETY: the plugin keeps what it answered open for as long as the guest is borrowed; -1 is taken out before.
        (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    fn pause(&mut self) -> Result<(), PluginError> {
        native(self.object.pause())
    }

    fn start_state(&mut self) -> Result<(), PluginError> {
        native(self.object.start_state())
    }

    fn finish_state(&mut self, state: &mut Vec<u8>) -> Result<(), PluginError> {
        let saved = native(self.object.finish_state())?;
        state.clear();
        state.extend_from_slice(saved.as_slice());
        Ok(())
    }

    fn dirty(&mut self, dirty: &mut PageBitmap) -> Result<(), PluginError> {
        take(self.object.dirty(dirty.pages()), dirty)
    }

    fn populated(&mut self, pages: &mut PageBitmap) -> Result<(), PluginError> {
        take(self.object.populated(pages.pages()), pages)
    }

    fn resume(&mut self) -> Result<(), PluginError> {
        native(self.object.resume())
    }

    fn process(&self) -> Option<u32> {
        self.reporter.or(self.object.process(), ROption::RNone).into_option()
    }

    fn poll(&mut self) -> Result<Option<GuestEvent>, PluginError> {
        let seen = native(self.object.poll())?.into_option();
        seen.map(event).transpose()
    }

    fn activate(&mut self, state: &[u8]) -> Result<(), PluginError> {
        native(self.object.activate(RSlice::from_slice(state)))
    }

    fn power_down(&mut self) -> Result<(), PluginError> {
        native(self.object.power_down())
    }

    fn outlives(&self) -> bool {
        self.reporter.or(self.object.outlives(), false)
    }

    fn kill(&mut self) -> Result<(), PluginError> {
        native(self.object.kill())
    }
}
