//! The facades of a disk's or a network's channel. The host owns both ends.

use super::answer::{Answer, native};
use super::edge::Exported;
use abi_stable::std_types::{RBox, RSlice};
use abi_stable::{StableAbi, sabi_trait};
use aventine_api::{Epoch, PluginError, RecordHead, RecordRx, RecordTx};

/// [`RecordTx`]
#[sabi_trait]
pub trait RecordTxV1: Send {
    fn send(&mut self, epoch: u64, kind: u8, parts: RSlice<'_, RSlice<'_, u8>>) -> Answer<()>;
}

pub(super) type RecordTxBox = RecordTxV1_TO<'static, RBox<()>>;

/// A record that was received; the payload is the receiver's and is valid until the next call.
#[derive(StableAbi)]
#[repr(C)]
pub struct ReceivedV1<'a> {
    pub epoch: u64,
    pub kind: u8,
    pub payload: RSlice<'a, u8>,
}

/// [`RecordRx`]
#[sabi_trait]
pub trait RecordRxV1: Send {
    fn recv(&mut self) -> Answer<ReceivedV1<'_>>;
}

pub(super) type RecordRxBox = RecordRxV1_TO<'static, RBox<()>>;

/// Most parts of one call that are passed on without an allocation.
const FEW: usize = 16;

/// Calls `call` with the same parts spelled another way.
pub(super) fn respelled<A: Copy, B: Copy, R>(
    parts: &[A],
    empty: B,
    spell: impl Fn(A) -> B,
    call: impl FnOnce(&[B]) -> R,
) -> R {
    if parts.len() <= FEW {
        let mut few = [empty; FEW];
        few.iter_mut().zip(parts).for_each(|(to, from)| *to = spell(*from));
        call(&few[..parts.len()])
    } else {
        call(&parts.iter().map(|p| spell(*p)).collect::<Vec<_>>())
    }
}

/// Native parts for the boundary.
pub(super) fn lent<R>(parts: &[&[u8]], call: impl FnOnce(RSlice<'_, RSlice<'_, u8>>) -> R) -> R {
    respelled(parts, RSlice::EMPTY, RSlice::from_slice, |parts| call(RSlice::from_slice(parts)))
}

/// Parts from the boundary, natively.
pub(super) fn borrowed<R>(parts: RSlice<'_, RSlice<'_, u8>>, call: impl FnOnce(&[&[u8]]) -> R) -> R {
    respelled(parts.as_slice(), &[][..], |p: RSlice<'_, u8>| p.as_slice(), call)
}

impl RecordTxV1 for Exported<Box<dyn RecordTx>> {
    fn send(&mut self, epoch: u64, kind: u8, parts: RSlice<'_, RSlice<'_, u8>>) -> Answer<()> {
        let head = RecordHead { epoch: Epoch(epoch), kind };
        self.call(|tx| borrowed(parts, |parts| tx.send(head, parts)))
    }
}

pub(super) struct ImportedRecordTx(pub(super) RecordTxBox);

impl RecordTx for ImportedRecordTx {
    fn send(&mut self, head: RecordHead, parts: &[&[u8]]) -> Result<(), PluginError> {
        native(lent(parts, |parts| self.0.send(head.epoch.0, head.kind, parts)))
    }
}

/// The receiving end, and the buffer that it lends.
pub(super) struct Receiving {
    rx: Box<dyn RecordRx>,
    payload: Vec<u8>,
}

impl RecordRxV1 for Exported<Box<Receiving>> {
    fn recv(&mut self) -> Answer<ReceivedV1<'_>> {
        self.call(|Receiving { rx, payload }| {
            let head = rx.recv(payload)?;
            Ok(ReceivedV1 { epoch: head.epoch.0, kind: head.kind, payload: RSlice::from_slice(payload) })
        })
    }
}

pub(super) struct ImportedRecordRx(pub(super) RecordRxBox);

impl RecordRx for ImportedRecordRx {
    fn recv(&mut self, payload: &mut Vec<u8>) -> Result<RecordHead, PluginError> {
        let received = native(self.0.recv())?;
        payload.clear();
        payload.extend_from_slice(&received.payload);
        Ok(RecordHead { epoch: Epoch(received.epoch), kind: received.kind })
    }
}

pub(super) fn export_tx(tx: Box<dyn RecordTx>) -> RecordTxBox {
    RecordTxV1_TO::from_value(Exported::new(tx), sabi_trait::TD_Opaque)
}

pub(super) fn export_rx(rx: Box<dyn RecordRx>) -> RecordRxBox {
    let receiving = Box::new(Receiving { rx, payload: Vec::new() });
    RecordRxV1_TO::from_value(Exported::new(receiving), sabi_trait::TD_Opaque)
}
