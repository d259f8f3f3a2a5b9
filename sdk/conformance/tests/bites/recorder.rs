//! Recorders.

use crate::{Broken, HASTE, Why, expect_bites};
use aventine_api::{
    Channel, ChannelRx, ChannelTx, ErrorCode, Link, LinkAbort, Listener, PluginError, Transport,
};
use aventine_conformance::recorder::{RecorderBench, rules};
use std::cell::Cell;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// What is wrong with a recorder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    ClaimsToBeHeard,
    CutsAtAMebibyte,
    Echoes,
    SleepsOn,
    RecordsOn,
}

/// The rule that each fault breaks.
const BROKEN: Broken<Fault, 5> = [
    (Fault::ClaimsToBeHeard, "it_connects_to_nobody"),
    (Fault::CutsAtAMebibyte, "what_is_sent_is_recorded"),
    (Fault::Echoes, "nothing_ever_comes"),
    (Fault::SleepsOn, "abort_wakes_who_waits"),
    (Fault::RecordsOn, "abort_holds_for_ever"),
];

#[derive(Default)]
struct Record {
    channels: Vec<(String, Vec<u8>)>,
    ended: bool,
}

/// A record in memory: the plugin, its link, and its channels.
#[derive(Clone)]
struct Memory {
    fault: Fault,
    record: Arc<(Mutex<Record>, Condvar)>,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.0.lock().unwrap()
    }
}

fn ended() -> PluginError {
    PluginError::new(ErrorCode::PeerLost, Why("ended"))
}

impl Transport for Memory {
    fn connect(&mut self, _: Duration) -> Result<Box<dyn Link>, PluginError> {
        Ok(Box::new(self.clone()))
    }

    fn listen(&mut self, _: &[String]) -> Result<Box<dyn Listener>, PluginError> {
        Err(PluginError::new(ErrorCode::Config, Why("nobody stands by")))
    }
}

impl Link for Memory {
    fn open(&mut self, name: &str, _: Option<&str>, _: Duration) -> Result<Channel, PluginError> {
        let mut record = self.lock();
        if record.ended {
            return Err(ended());
        }
        record.channels.push((name.to_owned(), Vec::new()));
        let number = record.channels.len() - 1;
        Ok((Box::new(End(self.clone(), number)), Box::new(End(self.clone(), number))))
    }

    fn aborter(&self) -> Arc<dyn LinkAbort> {
        Arc::new(self.clone())
    }

    fn peer(&self) -> String {
        "memory".into()
    }

    fn answers(&self) -> bool {
        self.fault == Fault::ClaimsToBeHeard
    }
}

impl LinkAbort for Memory {
    fn abort(&self) {
        self.lock().ended = true;
        if self.fault != Fault::SleepsOn {
            self.record.1.notify_all();
        }
    }
}

struct End(Memory, usize);

impl ChannelTx for End {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        let mut record = self.0.lock();
        if record.ended && self.0.fault != Fault::RecordsOn {
            return Err(ended());
        }
        let cut = if self.0.fault == Fault::CutsAtAMebibyte { 1 << 20 } else { usize::MAX };
        parts.iter().for_each(|p| record.channels[self.1].1.extend(&p[..p.len().min(cut)]));
        Ok(())
    }
}

impl ChannelRx for End {
    fn recv(&mut self, _: &mut [u8]) -> Result<(), PluginError> {
        let wait = |r: &mut Record| !r.ended;
        if self.0.fault != Fault::Echoes {
            drop(self.0.record.1.wait_while(self.0.lock(), wait).unwrap());
            return Err(ended());
        }
        let said = |r: &mut Record| !r.ended && r.channels[self.1].1.is_empty();
        drop(self.0.record.1.wait_timeout_while(self.0.lock(), Duration::from_millis(1), said).unwrap());
        Ok(())
    }
}

thread_local! {
    /// What is wrong with the recorders that this thread makes.
    static FAULT: Cell<Fault> = const { Cell::new(Fault::None) };
}

struct Desk<const HASTY: bool>(Memory);

impl<const HASTY: bool> RecorderBench for Desk<HASTY> {
    const PATIENCE: Duration = if HASTY { HASTE } else { Duration::from_secs(60) };

    fn start() -> Self {
        Desk(Memory { fault: FAULT.get(), record: Arc::default() })
    }

    fn make(&self) -> Box<dyn Transport> {
        Box::new(self.0.clone())
    }

    fn recorded(&self) -> Vec<(String, Vec<u8>)> {
        self.0.lock().channels.clone()
    }
}

#[test]
fn each_rule_catches_its_fault_by_name() {
    expect_bites(
        [rules::<Desk<false>>(), rules::<Desk<true>>()],
        module_path!(),
        &BROKEN,
        Fault::None,
        &FAULT,
    );
}
