//! The arbiter's facade.

use super::answer::{Answer, native};
use super::edge::{Exported, known};
use super::host::side;
use abi_stable::std_types::RBox;
use abi_stable::{StableAbi, sabi_trait};
use aventine_api::{Arbiter, PluginError, SessionId, Side, Verdict};

/// [`SessionId`]
#[derive(Clone, Copy, StableAbi)]
#[repr(C)]
pub struct SessionV1 {
    pub id: [u8; 16],
}

/// [`Arbiter`]
#[sabi_trait]
pub trait ArbiterV1: Send {
    fn claim(&mut self, session: SessionV1, side: u8) -> Answer<u8>;
    fn waits_for_person(&self) -> Answer<bool>;
    fn probe(&mut self) -> Answer<()>;
}

pub(super) type ArbiterBox = ArbiterV1_TO<'static, RBox<()>>;

impl ArbiterV1 for Exported<Box<dyn Arbiter>> {
    fn claim(&mut self, session: SessionV1, number: u8) -> Answer<u8> {
        self.call(|a| Ok(a.claim(SessionId(session.id), side(number)?)? as u8))
    }

    fn waits_for_person(&self) -> Answer<bool> {
        self.ask(|a| a.waits_for_person())
    }

    fn probe(&mut self) -> Answer<()> {
        self.call(|a| a.probe())
    }
}

pub(super) struct ImportedArbiter {
    object: ArbiterBox,
    waits_for_person: bool,
}

impl ImportedArbiter {
    pub(super) fn new(object: ArbiterBox) -> Result<ImportedArbiter, PluginError> {
        Ok(ImportedArbiter { waits_for_person: native(object.waits_for_person())?, object })
    }
}

fn verdict(number: u8) -> Result<Verdict, PluginError> {
    let all = [Verdict::Won, Verdict::Lost, Verdict::Undecided];
    known(all.into_iter().find(|v| *v as u8 == number), "a verdict", number)
}

impl Arbiter for ImportedArbiter {
    fn claim(&mut self, session: SessionId, side: Side) -> Result<Verdict, PluginError> {
        verdict(native(self.object.claim(SessionV1 { id: session.0 }, side as u8))?)
    }

    fn waits_for_person(&self) -> bool {
        self.waits_for_person
    }

    fn probe(&mut self) -> Result<(), PluginError> {
        native(self.object.probe())
    }
}
