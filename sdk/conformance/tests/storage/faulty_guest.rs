//! A guest that keeps every rule but the one that its fault breaks.
//!
//! ```text
//!  page 0       count, written last in each round
//!  page 1 .. 8  the count, one after the other
//!  page 9 ..    empty
//! ```
//! A thread of this process is its processor, and a process that does nothing stands for the one it would run in.

use aventine_api::{
    Attachments, ErrorCode, Guest, GuestEvent, PAGE_SIZE, PageBitmap, PluginError, Region, Side,
};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Command, Stdio};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// What is wrong with a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    None,
    SignsWithItsSide,
    MovesItsRegion,
    BacksWithAnotherFile,
    TellsNoProcess,
    StartsRunning,
    IgnoresPause,
    CountsItsPauses,
    CountsItsResumes,
    TracksFromTheFirstCall,
    MissesAPage,
    ForgetsNothing,
    ClearsTheBits,
    PopulatesTooLittle,
    PopulatedClearsDirty,
    SavesIntoMemory,
    AppendsItsState,
    TalksAll,
    WaitsForPowerDown,
    StartsFull,
    StaysPaused,
    ActivatesClean,
    ActivatesDirty,
    TakesAnyState,
    SaysNothing,
    RevivesAfterKill,
    LivesOn,
}

pub(crate) const PAGES: usize = 64;
/// Pages that it writes in each round, from the first on.
const USED: usize = 9;
const WORDS: usize = PAGE_SIZE / 8;
const STATE: &[u8; 8] = b"STATE OK";

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Why(&'static str);

fn error(why: &'static str) -> PluginError {
    PluginError::new(ErrorCode::Internal, Why(why))
}

/// The machine: memory, dirty pages, and whether it runs.
struct Machine {
    fault: Fault,
    memory: Vec<AtomicU64>,
    dirty: Vec<AtomicBool>,
    runs: AtomicBool,
    ends: AtomicBool,
    /// Held through each round.
    round: Mutex<()>,
}

impl Machine {
    fn write(&self, page: usize, value: u64) {
        self.memory[page * WORDS].store(value, Ordering::SeqCst);
        if !(self.fault == Fault::MissesAPage && page == 5) {
            self.dirty[page].store(true, Ordering::SeqCst);
        }
    }

    fn process(&self) {
        while !self.ends.load(Ordering::SeqCst) {
            if self.runs.load(Ordering::SeqCst) {
                let round = self.round.lock().unwrap();
                // Asked again: `pause` may have waited for the round before.
                if self.runs.load(Ordering::SeqCst) {
                    let count = self.memory[0].load(Ordering::SeqCst) + 1;
                    (1..USED).for_each(|page| self.write(page, count));
                    self.write(0, count);
                }
                drop(round);
            }
            thread::yield_now();
        }
    }

    fn run(&self, runs: bool) {
        self.runs.store(runs, Ordering::SeqCst);
        drop(self.round.lock().unwrap());
    }
}

pub(crate) struct Faulty {
    fault: Fault,
    side: Side,
    machine: Option<Arc<Machine>>,
    elsewhere: Arc<Vec<AtomicU64>>,
    thread: Option<JoinHandle<()>>,
    process: Option<Child>,
    file: Option<File>,
    active: bool,
    killed: bool,
    asked: bool,
    /// `dirty` was asked.
    told: bool,
    end_told: bool,
    pauses: i32,
}

impl Faulty {
    pub(crate) fn new(fault: Fault, side: Side) -> Faulty {
        Faulty {
            fault,
            side,
            machine: None,
            elsewhere: Arc::new(zeroes()),
            thread: None,
            process: None,
            file: None,
            active: side == Side::Primary,
            killed: false,
            asked: false,
            told: false,
            end_told: false,
            pauses: 1,
        }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn alive(&mut self) -> bool {
        let killed = self.killed && !self.is(Fault::RevivesAfterKill);
        !killed && self.process.as_mut().is_some_and(|p| p.try_wait().unwrap().is_none() || self.killed)
    }

    /// The machine of a guest that may be asked for anything.
    fn machine(&mut self) -> Result<Arc<Machine>, PluginError> {
        let alive = self.alive();
        match &self.machine {
            Some(machine) if self.active && alive => Ok(Arc::clone(machine)),
            _ => Err(error("nothing of it runs")),
        }
    }

    fn end(&mut self) {
        if let Some(machine) = &self.machine {
            machine.run(false);
        }
        if let Some(process) = &mut self.process {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

fn zeroes() -> Vec<AtomicU64> {
    (0..PAGES * WORDS).map(|_| AtomicU64::new(0)).collect()
}

impl Guest for Faulty {
    fn signature(&mut self) -> Result<Vec<(String, String)>, PluginError> {
        let mut facts = vec![("pages".to_owned(), PAGES.to_string())];
        if self.is(Fault::SignsWithItsSide) {
            facts.push(("side".to_owned(), self.side.name().to_owned()));
        }
        Ok(facts)
    }

    fn start(&mut self, _: &Attachments) -> Result<(), PluginError> {
        // It ends with its input, if it is not killed before.
        let process = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        self.process = Some(process.unwrap());
        let machine = Arc::new(Machine {
            fault: self.fault,
            memory: zeroes(),
            dirty: (0..PAGES).map(|_| AtomicBool::new(false)).collect(),
            runs: AtomicBool::new(self.is(Fault::StartsRunning) && self.active),
            ends: AtomicBool::new(false),
            round: Mutex::new(()),
        });
        if self.is(Fault::StartsFull) && self.side == Side::Standby {
            machine.write(40, 1);
        }
        if self.is(Fault::BacksWithAnotherFile) {
            let file = tempfile::tempfile().unwrap();
            file.set_len((PAGES * PAGE_SIZE) as u64).unwrap();
            self.file = Some(file);
        }
        let processor = Arc::clone(&machine);
        self.thread = Some(thread::spawn(move || processor.process()));
        self.machine = Some(machine);
        Ok(())
    }

    fn regions(&self) -> Vec<Region> {
        let Some(machine) = &self.machine else { return Vec::new() };
        let moved = self.is(Fault::MovesItsRegion) && self.asked;
        let memory = if moved { &self.elsewhere } else { &machine.memory };
        vec![Region { first_page: 0, pages: PAGES as u64, host: NonNull::from(&memory[0]).cast() }]
    }

    fn backing(&self, _: usize) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(File::as_fd)
    }

    fn pause(&mut self) -> Result<(), PluginError> {
        let machine = self.machine()?;
        self.asked = true;
        self.pauses = if self.is(Fault::CountsItsPauses) { self.pauses + 1 } else { 1 };
        if self.is(Fault::IgnoresPause) {
            return Ok(());
        }
        machine.run(false);
        Ok(())
    }

    fn start_state(&mut self) -> Result<(), PluginError> {
        let machine = self.machine()?;
        if self.is(Fault::SavesIntoMemory) {
            let before = machine.memory[50 * WORDS].load(Ordering::SeqCst);
            machine.write(50, before + 1);
        }
        Ok(())
    }

    fn finish_state(&mut self, state: &mut Vec<u8>) -> Result<(), PluginError> {
        let machine = self.machine()?;
        if !self.is(Fault::AppendsItsState) {
            state.clear();
        }
        state.extend_from_slice(STATE);
        state.extend(machine.memory[0].load(Ordering::SeqCst).to_le_bytes());
        Ok(())
    }

    fn dirty(&mut self, dirty: &mut PageBitmap) -> Result<(), PluginError> {
        let machine = self.machine()?;
        if self.is(Fault::ClearsTheBits) {
            dirty.clear();
        }
        let forgets = self.is(Fault::TracksFromTheFirstCall) && !self.told;
        self.told = true;
        for (page, bit) in machine.dirty.iter().enumerate() {
            let is = if self.is(Fault::ForgetsNothing) {
                bit.load(Ordering::SeqCst)
            } else {
                bit.swap(false, Ordering::SeqCst)
            };
            if is && !forgets {
                dirty.set_range(page as u64, 1);
            }
        }
        Ok(())
    }

    fn populated(&mut self, pages: &mut PageBitmap) -> Result<(), PluginError> {
        let machine = self.machine()?;
        for page in 0..PAGES {
            let words = &machine.memory[page * WORDS..][..WORDS];
            let lacks = self.is(Fault::PopulatesTooLittle) && page == 3;
            if words.iter().any(|w| w.load(Ordering::SeqCst) != 0) && !lacks {
                pages.set_range(page as u64, 1);
            }
            if self.is(Fault::PopulatedClearsDirty) {
                machine.dirty[page].store(false, Ordering::SeqCst);
            }
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), PluginError> {
        let machine = self.machine()?;
        self.pauses = match self.fault {
            Fault::CountsItsPauses => (self.pauses - 1).max(0),
            _ => 0,
        };
        if self.pauses == 0 {
            // Resumed twice, it needs to be paused twice.
            if self.is(Fault::CountsItsResumes) && machine.runs.load(Ordering::SeqCst) {
                let machine = Arc::clone(&machine);
                thread::spawn(move || {
                    while machine.runs.load(Ordering::SeqCst) {
                        thread::yield_now();
                    }
                    machine.runs.store(true, Ordering::SeqCst);
                });
            }
            machine.run(true);
        }
        Ok(())
    }

    fn process(&self) -> Option<u32> {
        // One that nobody has.
        let none = self.is(Fault::TellsNoProcess).then_some(u32::MAX);
        self.process.as_ref().map(|p| none.unwrap_or(p.id()))
    }

    fn poll(&mut self) -> Result<Option<GuestEvent>, PluginError> {
        if self.is(Fault::TalksAll) {
            return Ok(Some(GuestEvent::Rebooted));
        }
        let alive = self.alive();
        if alive || self.killed || self.is(Fault::SaysNothing) || std::mem::replace(&mut self.end_told, true)
        {
            return Ok(None);
        }
        if let Some(machine) = &self.machine {
            machine.run(false);
        }
        Ok(Some(GuestEvent::Lost { how: "its process is gone".into() }))
    }

    fn activate(&mut self, state: &[u8]) -> Result<(), PluginError> {
        let sound = state.len() == 16 && state.starts_with(STATE);
        let machine = self.machine.clone().ok_or_else(|| error("not started"))?;
        if !sound && !self.is(Fault::TakesAnyState) {
            self.kill()?;
            return Err(error("the state is damaged"));
        }
        self.active = true;
        // As a hypervisor writes while it takes in the state.
        machine.write(30, machine.memory[0].load(Ordering::SeqCst) + 1);
        match self.fault {
            Fault::ActivatesClean => machine.dirty.iter().for_each(|d| d.store(false, Ordering::SeqCst)),
            Fault::ActivatesDirty => machine.dirty.iter().for_each(|d| d.store(true, Ordering::SeqCst)),
            _ => {}
        }
        machine.run(!self.is(Fault::StaysPaused));
        Ok(())
    }

    fn power_down(&mut self) -> Result<(), PluginError> {
        let machine = self.machine()?;
        while self.is(Fault::WaitsForPowerDown) && !machine.ends.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        Ok(())
    }

    fn outlives(&self) -> bool {
        false
    }

    fn kill(&mut self) -> Result<(), PluginError> {
        self.end();
        self.killed = true;
        Ok(())
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        if self.is(Fault::LivesOn) {
            // The process has its input until this one ends.
            std::mem::forget(self.process.take());
        }
        self.end();
        if let Some(machine) = &self.machine {
            machine.ends.store(true, Ordering::SeqCst);
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}
