//! Network buffers.

use aventine_api::{
    Disengage, Epoch, ErrorCode, Host, NetAttachment, NetworkBuffer, NetworkStats, PluginError, Side,
};
use aventine_conformance::network::{NetworkBench, rules};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

/// What is wrong with a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    HoldsFromTheStart,
    HoldsNothing,
    ReleasesBackwards,
    SealsTooMuch,
    LetsArpThrough,
    HoldsBothWays,
    ReleasesWhateverIsSealed,
    SealsTwice,
    ForgetsEpochs,
    AsksForNoEpoch,
    DropsInSilence,
    DropsWhatIsHeld,
    KeepsAll,
    TakesTheLastReason,
    EngagesOnce,
    SpeaksOnAStandby,
    ActivatesOneWay,
    SaysNothing,
    ReleasesAtACrash,
}

/// The rule that each fault breaks.
const BROKEN: [(Fault, &str); 19] = [
    (Fault::HoldsFromTheStart, "passes_until_engaged"),
    (Fault::HoldsNothing, "nothing_leaves_before_release"),
    (Fault::ReleasesBackwards, "released_frames_leave_in_order"),
    (Fault::SealsTooMuch, "epochs_end_where_they_were_sealed"),
    (Fault::LetsArpThrough, "every_protocol_is_held"),
    (Fault::HoldsBothWays, "frames_to_the_guest_pass"),
    (Fault::ReleasesWhateverIsSealed, "release_is_idempotent"),
    (Fault::SealsTwice, "seal_is_idempotent"),
    (Fault::ForgetsEpochs, "depth_is_kept"),
    (Fault::AsksForNoEpoch, "a_full_buffer_asks_for_an_epoch"),
    (Fault::DropsInSilence, "nothing_is_lost_in_silence"),
    (Fault::DropsWhatIsHeld, "the_owner_loses_nothing"),
    (Fault::KeepsAll, "the_other_side_owns_what_was_held"),
    (Fault::TakesTheLastReason, "the_first_reason_stands"),
    (Fault::EngagesOnce, "a_new_session_begins_anew"),
    (Fault::SpeaksOnAStandby, "a_standby_is_silent"),
    (Fault::ActivatesOneWay, "activation_opens_both_ways"),
    (Fault::SaysNothing, "a_loss_is_told"),
    (Fault::ReleasesAtACrash, "a_crash_leaves_nothing_behind"),
];

/// A buffer in memory, and both ends of it.
struct State {
    fault: Fault,
    mode: Mode,
    ended: bool,
    engaged: bool,
    held: VecDeque<Vec<u8>>,
    seals: VecDeque<(u64, usize)>,
    open: usize,
    sealed: u64,
    world: VecDeque<Vec<u8>>,
    guest: VecDeque<Vec<u8>>,
    dropped: u64,
    asked: bool,
    gone: bool,
    host: Arc<dyn Host>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Passing,
    Holding,
    Silent,
}

const LIMIT: usize = 1 << 20;

impl State {
    fn new(fault: Fault, side: Side, host: Arc<dyn Host>) -> State {
        let mode = if side == Side::Primary { Mode::Passing } else { Mode::Silent };
        State {
            fault,
            mode: if fault == Fault::HoldsFromTheStart { Mode::Holding } else { mode },
            ended: false,
            engaged: false,
            held: VecDeque::new(),
            seals: VecDeque::new(),
            open: 0,
            sealed: 0,
            world: VecDeque::new(),
            guest: VecDeque::new(),
            dropped: 0,
            asked: false,
            gone: false,
            host,
        }
    }

    fn bytes(&self) -> usize {
        self.held.iter().map(Vec::len).sum()
    }

    fn guest_said(&mut self, frame: &[u8]) {
        let passes = match self.mode {
            Mode::Passing => true,
            Mode::Holding => {
                self.fault == Fault::HoldsNothing
                    || (self.fault == Fault::LetsArpThrough && frame[12..14] == [0x08, 0x06])
            }
            Mode::Silent if self.fault == Fault::SpeaksOnAStandby && !self.ended => true,
            Mode::Silent => return,
        };
        if passes {
            self.world.push_back(frame.to_vec());
        } else if self.bytes() + frame.len() > LIMIT {
            self.dropped += u64::from(self.fault != Fault::DropsInSilence);
        } else {
            self.held.push_back(frame.to_vec());
            self.open += 1;
            if self.bytes() > LIMIT / 2
                && !std::mem::replace(&mut self.asked, true)
                && self.fault != Fault::AsksForNoEpoch
            {
                self.host.request_epoch();
            }
        }
    }

    fn world_said(&mut self, frame: &[u8]) {
        let deaf = match self.fault {
            Fault::HoldsBothWays => self.mode == Mode::Holding,
            Fault::ActivatesOneWay => self.engaged || self.sealed == 0,
            _ => false,
        };
        if self.mode != Mode::Silent && !deaf {
            self.guest.push_back(frame.to_vec());
        }
    }

    fn let_out(&mut self, frames: usize) {
        let mut frames = self.held.drain(..frames).collect::<Vec<_>>();
        if self.fault == Fault::ReleasesBackwards {
            frames.reverse();
        }
        self.world.extend(frames);
    }
}

/// A handle to it: the plugin.
struct Memory(Arc<Mutex<State>>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Why(&'static str);

impl NetworkBuffer for Memory {
    fn depth(&self) -> u32 {
        3
    }

    fn attachment(&self) -> NetAttachment {
        NetAttachment::Tap("memory".into())
    }

    fn engage(&mut self) -> Result<(), PluginError> {
        let mut state = self.lock();
        match state.mode {
            Mode::Holding => {}
            Mode::Silent => return Err(PluginError::new(ErrorCode::Refused, Why("not ours"))),
            Mode::Passing if state.fault == Fault::EngagesOnce && state.engaged => {}
            Mode::Passing => (state.mode, state.sealed, state.ended) = (Mode::Holding, 0, false),
        }
        state.engaged = true;
        Ok(())
    }

    fn seal(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        let mut state = self.lock();
        if state.gone && state.fault != Fault::SaysNothing {
            return Err(PluginError::new(ErrorCode::Io, Why("gone")));
        }
        let again = state.fault == Fault::SealsTwice && epoch.0 == state.sealed;
        if epoch.0 > state.sealed || again {
            let mut open = std::mem::take(&mut state.open);
            if state.fault == Fault::SealsTooMuch && epoch.0 == 3 {
                (open, state.open) = (open - 1, 1);
            }
            if state.fault == Fault::ForgetsEpochs && !state.seals.is_empty() {
                state.seals.back_mut().unwrap().1 += open;
            } else {
                state.seals.push_back((epoch.0, open));
            }
            (state.sealed, state.asked) = (epoch.0, false);
        }
        Ok(())
    }

    fn release(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        let mut state = self.lock();
        let careless = state.fault == Fault::ReleasesWhateverIsSealed;
        while let Some(&(sealed, frames)) = state.seals.front() {
            if sealed > epoch.0 && !careless {
                break;
            }
            state.seals.pop_front();
            state.let_out(frames);
        }
        Ok(())
    }

    fn disengage(&mut self, why: Disengage) -> Result<(), PluginError> {
        let mut state = self.lock();
        if std::mem::replace(&mut state.ended, true) && state.fault != Fault::TakesTheLastReason {
            return Ok(());
        }
        match why {
            Disengage::Owner => {
                state.mode = Mode::Passing;
                if state.fault == Fault::DropsWhatIsHeld {
                    state.held.pop_front();
                }
                let all = state.held.len();
                state.let_out(all);
            }
            Disengage::NotOwner => {
                state.mode = Mode::Silent;
                if state.fault != Fault::KeepsAll {
                    state.held.clear();
                }
            }
        }
        state.seals.clear();
        state.open = 0;
        Ok(())
    }

    fn activate(&mut self, _: Epoch) -> Result<(), PluginError> {
        let mut state = self.lock();
        if state.mode == Mode::Silent && !state.ended {
            state.mode = Mode::Passing;
        }
        Ok(())
    }

    fn stats(&self) -> NetworkStats {
        let state = self.lock();
        NetworkStats {
            held_frames: state.held.len() as u64,
            held_bytes: state.bytes() as u64,
            dropped_frames: state.dropped,
            ..NetworkStats::default()
        }
    }
}

thread_local! {
    /// What is wrong with the buffers that this thread makes.
    static FAULT: std::cell::Cell<Fault> = const { std::cell::Cell::new(Fault::None) };
}

struct Desk {
    state: Arc<Mutex<State>>,
    buffer: Memory,
    host: Arc<dyn Host>,
}

impl NetworkBench for Desk {
    const LIMIT: u64 = LIMIT as u64;
    // Everything here happens at once.
    const PATIENCE: std::time::Duration = std::time::Duration::from_millis(200);

    fn start(side: Side, host: Arc<dyn Host>) -> Self {
        let state = Arc::new(Mutex::new(State::new(FAULT.get(), side, Arc::clone(&host))));
        Desk { buffer: Memory(Arc::clone(&state)), state, host }
    }

    fn place(&self) -> String {
        String::new()
    }

    fn make(_: &str, side: Side, host: Arc<dyn Host>) -> Box<dyn NetworkBuffer> {
        // In a process that dies; its guest's frames are there already.
        let mut state = State::new(Fault::None, side, host);
        state.held.extend([vec![0; 60], vec![0; 60], vec![0; 60], vec![0; 60]]);
        Box::new(Memory(Arc::new(Mutex::new(state))))
    }

    fn stop(&mut self) {}

    fn connect(&mut self) {
        // What is sent from here on is the other process's.
        let mut state = self.state.lock().unwrap();
        state.mode = Mode::Holding;
    }

    fn restart(&mut self) {
        let held = std::mem::take(&mut self.state.lock().unwrap().held);
        *self = Desk::start(Side::Primary, Arc::clone(&self.host));
        if FAULT.get() == Fault::ReleasesAtACrash {
            self.state.lock().unwrap().world.extend(held);
        }
    }

    fn buffer(&mut self) -> &mut dyn NetworkBuffer {
        &mut self.buffer
    }

    fn guest_sends(&mut self, frame: &[u8]) -> bool {
        self.state.lock().unwrap().guest_said(frame);
        true
    }

    fn world_receives(&mut self) -> Option<Vec<u8>> {
        self.state.lock().unwrap().world.pop_front()
    }

    fn world_sends(&mut self, frame: &[u8]) {
        self.state.lock().unwrap().world_said(frame);
    }

    fn guest_receives(&mut self) -> Option<Vec<u8>> {
        self.state.lock().unwrap().guest.pop_front()
    }

    fn vanish(&mut self) {
        self.state.lock().unwrap().gone = true;
    }
}

/// The rules that a buffer with this fault is caught by.
fn caught(fault: Fault) -> Vec<&'static str> {
    FAULT.set(fault);
    let broken = rules::<Desk>().into_iter().filter_map(|rule| {
        let violation = rule.check(module_path!()).err()?;
        let text = violation.to_string();
        assert!(text.contains(rule.name) && text.contains(rule.meaning), "{text}");
        Some(violation.rule)
    });
    broken.collect()
}

#[test]
fn a_sound_buffer_keeps_every_rule() {
    assert_eq!(caught(Fault::None), Vec::<&str>::new());
}

#[test]
fn each_rule_catches_its_fault_by_name() {
    for (fault, rule) in BROKEN {
        let caught = caught(fault);
        assert!(caught.contains(&rule), "{fault:?} is not caught by {rule}, but by {caught:?}");
    }
}

#[test]
fn every_rule_has_a_fault() {
    let broken = BROKEN.map(|(_, rule)| rule);
    let rules = rules::<Desk>().into_iter().map(|r| r.name).collect::<Vec<_>>();
    assert_eq!(rules, broken);
}

#[test]
#[ignore = "started by the rule a_crash_leaves_nothing_behind"]
fn controller_that_crashes() {
    aventine_conformance::network::controller::<Desk>();
}
