//! The promises, checked after every step of random schedules: both machines, two disks, a network buffer, an arbiter
//! and channels that lose what is in them, with crashes and cuts anywhere.
//!
//! The guest is a counter: each step of it says its number to the world and writes it to both disks. A checkpoint is
//! the counter at its seal, so "explained by the checkpoint" is a comparison of numbers.

use aventine_api::{Disengage, Epoch, Side, Verdict};
use aventine_protocol::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

#[derive(Clone, Debug)]
enum Down {
    End(EndReason),
    Yield,
}

#[derive(Clone, Debug)]
enum Up {
    Ack(Epoch),
    EndAck,
    Failed,
}

/// What the world and both hosts hold.
struct Model {
    primary: Primary,
    standby: Standby,
    primary_up: bool,
    standby_up: bool,
    down: VecDeque<Down>,
    up: VecDeque<Up>,
    pages: VecDeque<(Epoch, bool, u64)>,
    disks: [VecDeque<(Epoch, u64)>; 2],
    cut: bool,
    arbiter: Option<Side>,
    claims: [bool; 2],
    guest_runs: bool,
    counter: u64,
    /// Frames held: (epoch if sealed, number).
    held: VecDeque<(Option<Epoch>, u64)>,
    engaged: bool,
    silent: bool,
    /// The last number the world has heard from the primary's guest.
    heard: u64,
    staged_pages: BTreeMap<Epoch, u64>,
    staged_disks: [BTreeMap<Epoch, u64>; 2],
    image: (u64, [u64; 2]),
    active: Option<u64>,
}

impl Model {
    fn new(depth: u32) -> Model {
        Model {
            primary: Primary::new(depth),
            standby: Standby::new(2),
            primary_up: true,
            standby_up: true,
            down: VecDeque::new(),
            up: VecDeque::new(),
            pages: VecDeque::new(),
            disks: Default::default(),
            cut: false,
            arbiter: None,
            claims: [false; 2],
            guest_runs: true,
            counter: 0,
            held: VecDeque::new(),
            engaged: false,
            silent: false,
            heard: 0,
            staged_pages: BTreeMap::new(),
            staged_disks: Default::default(),
            image: (0, [0; 2]),
            active: None,
        }
    }

    fn guest_step(&mut self) {
        if !(self.primary_up && self.guest_runs) {
            return;
        }
        self.counter += 1;
        if self.engaged {
            self.held.push_back((None, self.counter));
        } else if !self.silent {
            self.say(self.counter);
        }
    }

    fn say(&mut self, number: u64) {
        // An acknowledgement may be on its way while the standby promotes: what it releases is part of what the
        // standby resumed from, like a frame that the network delayed.
        let explained = self.active.is_none_or(|resumed| number <= resumed);
        assert!(explained, "one owner: the primary says what the active standby does not know");
        assert_eq!(number, self.heard + 1, "nothing silent: frames leave in order and none is missing");
        self.heard = number;
    }

    fn seal(&mut self) {
        if !(self.primary_up && self.guest_runs && self.primary.may_seal()) {
            return;
        }
        let (epoch, armed) = self.primary.seal().unwrap();
        self.held.iter_mut().filter(|(e, _)| e.is_none()).for_each(|(e, _)| *e = Some(epoch));
        self.pages.push_back((epoch, armed, self.counter));
        self.disks.iter_mut().for_each(|d| d.push_back((epoch, self.counter)));
    }

    fn primary_event(&mut self, event: PrimaryEvent) {
        if !self.primary_up {
            return;
        }
        let mut actions = Vec::new();
        self.primary.step(event, &mut actions).unwrap();
        for action in actions {
            match action {
                PrimaryAction::Engage => self.engaged = true,
                PrimaryAction::Release(n) => self.release(n),
                PrimaryAction::SendEnd(reason) => self.down.push_back(Down::End(reason)),
                PrimaryAction::SendYield => self.down.push_back(Down::Yield),
                PrimaryAction::Claim => self.claims[0] = true,
                PrimaryAction::Disengage(Disengage::Owner) => self.go_on_alone(),
                PrimaryAction::Disengage(Disengage::NotOwner) => {
                    (self.engaged, self.silent) = (false, true);
                    self.held.clear();
                }
                PrimaryAction::KillGuest => self.guest_runs = false,
            }
        }
    }

    fn release(&mut self, n: Epoch) {
        while self.held.front().is_some_and(|(e, _)| e.is_some_and(|e| e <= n)) {
            assert!(
                self.standby.committed() >= n,
                "output commit: a frame left before its checkpoint was committed"
            );
            if let Some((_, number)) = self.held.pop_front() {
                self.say(number);
            }
        }
    }

    fn go_on_alone(&mut self) {
        self.engaged = false;
        let may = !self.standby.is_armed()
            || self.arbiter == Some(Side::Primary)
            || matches!(self.standby.state(), StandbyState::Ended(_));
        assert!(may, "one owner: the primary goes on alone while the standby may promote");
        for (_, number) in std::mem::take(&mut self.held) {
            self.say(number);
        }
    }

    fn standby_event(&mut self, event: StandbyEvent) {
        if !self.standby_up {
            return;
        }
        let mut actions = Vec::new();
        self.standby.step(event, &mut actions).unwrap();
        for action in actions {
            match action {
                StandbyAction::Commit(n) => {
                    assert!(self.staged_pages.contains_key(&n), "all or nothing: memory is missing");
                    assert!(
                        self.staged_disks.iter().all(|d| d.contains_key(&n)),
                        "one epoch: a disk is missing"
                    );
                }
                StandbyAction::Acknowledge(n) => self.up.push_back(Up::Ack(n)),
                StandbyAction::Apply(n) => {
                    self.image = (self.staged_pages[&n], [0, 1].map(|d| self.staged_disks[d][&n]));
                }
                StandbyAction::SendEndAck => self.up.push_back(Up::EndAck),
                StandbyAction::SendFailed(_) => self.up.push_back(Up::Failed),
                StandbyAction::Claim => self.claims[1] = true,
                StandbyAction::TakeOver(n) => self.take_over(n),
            }
        }
    }

    fn take_over(&mut self, n: Epoch) {
        let (memory, disks) = self.image;
        assert_eq!(
            memory, self.staged_pages[&n],
            "all or nothing: another epoch than the last committed one"
        );
        assert_eq!(disks, [memory; 2], "one epoch number: memory and disks differ");
        assert!(
            memory >= self.heard,
            "output commit: the world heard {}, the guest is at {memory}",
            self.heard
        );
        assert_eq!(self.arbiter, Some(Side::Standby), "one owner: promoted without the arbiter");
        let speaks = self.primary_up && self.guest_runs && !self.engaged && !self.silent;
        assert!(!speaks, "one owner: promoted while the primary speaks");
        self.active = Some(memory);
    }

    fn claim(&mut self, side: Side, reachable: bool) {
        let index = usize::from(side == Side::Standby);
        let up = if index == 0 { self.primary_up } else { self.standby_up };
        if !up || !std::mem::take(&mut self.claims[index]) {
            return;
        }
        let verdict = match reachable {
            false => Verdict::Undecided,
            true if *self.arbiter.get_or_insert(side) == side => Verdict::Won,
            true => Verdict::Lost,
        };
        match side {
            Side::Primary => self.primary_event(PrimaryEvent::Verdict(verdict)),
            Side::Standby => self.standby_event(StandbyEvent::Verdict(verdict)),
        }
    }

    /// Delivers the front of a channel, unless the link is cut.
    fn deliver(&mut self, channel: u8) {
        if self.cut {
            return;
        }
        match channel {
            0 => match self.down.pop_front() {
                Some(Down::End(reason)) => self.standby_event(StandbyEvent::End(reason)),
                Some(Down::Yield) => self.standby_event(StandbyEvent::Yield),
                None => {}
            },
            1 => match self.up.pop_front() {
                Some(Up::Ack(n)) => self.primary_event(PrimaryEvent::Acknowledged(n)),
                Some(Up::EndAck) => self.primary_event(PrimaryEvent::EndAcknowledged),
                Some(Up::Failed) => self.primary_event(PrimaryEvent::StandbyRenounced),
                None => {}
            },
            2 => {
                if let Some((epoch, armed, counter)) = self.pages.pop_front() {
                    self.staged_pages.insert(epoch, counter);
                    self.standby_event(StandbyEvent::PagesStaged { epoch, armed });
                }
            }
            _ => {
                let disk = usize::from(channel % 2);
                if let Some((epoch, counter)) = self.disks[disk].pop_front() {
                    self.staged_disks[disk].insert(epoch, counter);
                    self.standby_event(StandbyEvent::DiskStaged { disk, epoch });
                }
            }
        }
    }

    fn step(&mut self, choice: u8, argument: u8) {
        match choice {
            0..=5 => self.guest_step(),
            6..=8 => self.seal(),
            9 => self.primary_event(PrimaryEvent::Copied),
            10..=19 => self.deliver(argument % 5),
            20 => self.claim(Side::Primary, !argument.is_multiple_of(3)),
            21 => self.claim(Side::Standby, !argument.is_multiple_of(3)),
            _ => self.fault(argument),
        }
    }

    fn fault(&mut self, argument: u8) {
        match argument {
            0..=9 => self.primary_event(PrimaryEvent::LinkLost),
            10..=19 => self.standby_event(StandbyEvent::PeerLost),
            20..=24 => (self.primary_up, self.guest_runs) = (false, false),
            25..=27 => self.standby_up = false,
            28..=32 => self.cut = true,
            33..=36 => self.primary_event(PrimaryEvent::End(EndReason::Stopped)),
            37..=39 => {
                self.guest_runs = false;
                self.primary_event(PrimaryEvent::GuestLost);
            }
            40..=42 => self.standby_event(StandbyEvent::Failed("disk full".into())),
            43..=44 => {
                self.guest_runs = false;
                self.primary_event(PrimaryEvent::End(EndReason::GuestShutDown));
            }
            _ => {}
        }
    }

    /// From here on nothing new fails: silence is noticed, messages arrive, the arbiter answers.
    fn settle(&mut self) {
        for round in 0..10 {
            for channel in 0..5 {
                (0..100).for_each(|_| self.deliver(channel));
            }
            let over = |s: &StandbyState| matches!(s, StandbyState::Ended(_) | StandbyState::Active);
            let silence = self.cut || !self.standby_up || !self.primary_up || over(self.standby.state());
            if round > 2 && silence {
                self.primary_event(PrimaryEvent::LinkLost);
                self.standby_event(StandbyEvent::PeerLost);
            }
            self.claim(Side::Primary, true);
            self.claim(Side::Standby, true);
        }
        if !self.primary_up || !self.guest_runs {
            return;
        }
        match self.primary.state() {
            PrimaryState::Copying | PrimaryState::Arming => {
                assert!(!self.engaged, "never muted: {:?}", self.primary);
            }
            PrimaryState::Protected => assert_eq!(*self.standby.state(), StandbyState::Following),
            PrimaryState::Alone => {
                assert_eq!(self.heard, self.counter, "never muted: everything held is out");
            }
            state => panic!("never frozen: {state:?} with a running guest"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn hold_under_random_schedules(
        depth in 1u32..5,
        steps in proptest::collection::vec((0u8..23, any::<u8>()), 0..250),
    ) {
        let mut model = Model::new(depth);
        for (choice, argument) in steps {
            model.step(choice, argument);
        }
        model.settle();
    }
}

#[test]
fn a_killed_primary_is_taken_over_at_its_last_committed_epoch() {
    let mut model = Model::new(2);
    model.primary_event(PrimaryEvent::Copied);
    for _ in 0..3 {
        model.guest_step();
        model.seal();
        (2..5).chain([1]).for_each(|c| model.deliver(c));
    }
    assert_eq!((model.standby.committed(), model.heard), (Epoch(3), 3));
    model.guest_step();
    model.seal();
    model.deliver(2); // memory of epoch 4 arrives, its disk writes do not
    (model.primary_up, model.guest_runs) = (false, false);
    model.standby_event(StandbyEvent::PeerLost);
    model.claim(Side::Standby, true);
    assert_eq!(model.active, Some(3));
}

#[test]
fn an_acknowledgement_out_of_order_ends_protection() {
    let mut primary = Primary::new(4);
    let mut actions = Vec::new();
    primary.step(PrimaryEvent::Copied, &mut actions).unwrap();
    primary.seal().unwrap();
    let violation = primary.step(PrimaryEvent::Acknowledged(Epoch(2)), &mut actions).unwrap_err();
    assert!(violation.to_string().contains("Epoch 2 was acknowledged"), "{violation}");
    assert_eq!(*primary.state(), PrimaryState::Alone);
    assert_eq!(actions, [PrimaryAction::Disengage(Disengage::Owner)]);
}

#[test]
fn parts_out_of_order_disarm_the_standby() {
    let mut standby = Standby::new(1);
    let mut actions = Vec::new();
    let event = StandbyEvent::DiskStaged { disk: 0, epoch: Epoch(2) };
    let violation = standby.step(event, &mut actions).unwrap_err();
    assert_eq!(violation.to_string(), "Disk 0 is complete for epoch 2, but epoch 1 comes next");
    assert!(matches!(&actions[..], [StandbyAction::SendFailed(_)]));
    assert_eq!(*standby.state(), StandbyState::Ended(None));
}

#[test]
fn an_unarmed_standby_never_promotes() {
    let mut standby = Standby::new(0);
    let mut actions = Vec::new();
    standby.step(StandbyEvent::PagesStaged { epoch: Epoch(1), armed: false }, &mut actions).unwrap();
    standby.step(StandbyEvent::PeerLost, &mut actions).unwrap();
    assert_eq!(*standby.state(), StandbyState::Ended(None));
    assert!(!actions.contains(&StandbyAction::Claim));
}
