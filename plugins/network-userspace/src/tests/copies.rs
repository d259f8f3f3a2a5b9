//! Copies of recent frames, from the primary's plugin to the standby's.

use super::*;
use crate::port::FRAME_LIMIT;
use crate::wire::{Frames, Record, Seal, Way};
use aventine_api::RecordHead;
use std::sync::mpsc::{SyncSender, sync_channel};

pub(super) type Sent = (RecordHead, Vec<u8>);

struct Tx(SyncSender<Sent>);
pub(super) struct Rx(pub(super) Receiver<Sent>);

#[derive(Debug, thiserror::Error)]
#[error("the channel has ended")]
struct Ended;

impl RecordTx for Tx {
    fn send(&mut self, head: RecordHead, parts: &[&[u8]]) -> Result<(), PluginError> {
        self.0.send((head, parts.concat())).map_err(|_| PluginError::new(ErrorCode::PeerLost, Ended))
    }
}

impl RecordRx for Rx {
    fn recv(&mut self, payload: &mut Vec<u8>) -> Result<RecordHead, PluginError> {
        let (head, bytes) = self.0.recv().map_err(|_| PluginError::new(ErrorCode::PeerLost, Ended))?;
        *payload = bytes;
        Ok(head)
    }
}

/// A primary with its guest and its channel. Epoch 1 is sealed.
fn copying(room: usize) -> (Rig, Receiver<Sent>) {
    let mut rig = rig(Side::Primary);
    let (tx, rx) = sync_channel(room);
    rig.plugin.replicate(Box::new(Tx(tx))).unwrap();
    rig.plugin.engage().unwrap();
    seal(&mut rig, 1);
    (rig, rx)
}

fn seal(rig: &mut Rig, epoch: u64) {
    rig.plugin.pausing();
    rig.plugin.seal(Epoch(epoch)).unwrap();
}

/// The world sends frames, and they are in the guest's socket on return.
fn offer(rig: &mut Rig, numbers: std::ops::Range<u32>) {
    let before = rig.plugin.stats().received_frames;
    numbers.clone().for_each(|n| send(&mut rig.world, n, 60));
    while rig.plugin.stats().received_frames < before + numbers.len() as u64 {
        std::thread::yield_now();
    }
}

/// Everything that was sent up to the seal of `epoch`.
fn until_seal(rx: &Receiver<Sent>, epoch: u64) -> Vec<Sent> {
    let mut all = Vec::new();
    loop {
        all.push(rx.recv_timeout(LIMIT).unwrap());
        let (head, payload) = all.last().unwrap();
        if matches!(Record::decode(*head, payload), Ok(Record::Seal(s)) if s.epoch == Epoch(epoch)) {
            return all;
        }
    }
}

/// A standby's memory after `records` came and the channel ended.
fn kept(records: &[Sent]) -> Arc<Mutex<Recent>> {
    let (tx, rx) = channel();
    let recent = Recent::start("net0", Box::new(Rx(rx))).unwrap();
    records.iter().for_each(|r| drop(tx.send(r.clone())));
    drop(tx);
    await_thread(&recent);
    recent
}

pub(super) fn await_thread(recent: &Arc<Mutex<Recent>>) {
    while Arc::strong_count(recent) > 1 {
        std::thread::yield_now();
    }
}

/// What a takeover at `epoch` repeats of `records`: to the guest, and from it.
fn repeated(records: &[Sent], epoch: u64) -> (Vec<u32>, Vec<u32>) {
    let Repeat { to_guest, from_guest } = kept(records).lock().unwrap().repeat(Epoch(epoch));
    let number = |f: &Vec<u8>| u32::from_be_bytes(f[..4].try_into().unwrap());
    (to_guest.iter().map(number).collect(), from_guest.iter().map(number).collect())
}

#[test]
fn a_checkpoint_covers_what_the_guest_had_read_before_the_pause() {
    let (mut rig, rx) = copying(1000);
    offer(&mut rig, 0..3);
    assert_eq!([0; 3].map(|_| receive(&mut rig.guest)), [0, 1, 2]);
    seal(&mut rig, 2);
    offer(&mut rig, 3..6);
    assert_eq!(receive(&mut rig.guest), 3);
    rig.plugin.pausing(); // two are unread
    offer(&mut rig, 6..7);
    assert_eq!([0; 3].map(|_| receive(&mut rig.guest)), [4, 5, 6]); // QEMU reads in the pause, too
    rig.plugin.seal(Epoch(3)).unwrap();
    offer(&mut rig, 7..8);
    seal(&mut rig, 4);
    let records = until_seal(&rx, 4);
    assert_eq!(repeated(&records, 1).0, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(repeated(&records, 2).0, [3, 4, 5, 6, 7]);
    // Frame 3 was read, but the socket was not seen empty: repeated once too often rather than lost.
    assert_eq!(repeated(&records, 3).0, [3, 4, 5, 6, 7]);
    assert_eq!(repeated(&records, 4).0, [7]);
}

#[test]
fn output_is_repeated_for_committed_epochs_that_are_not_released() {
    let (mut rig, rx) = copying(1000);
    for epoch in 2..=4 {
        send(&mut rig.guest, epoch * 10, 60);
        send(&mut rig.guest, epoch * 10 + 1, 1500);
        seal(&mut rig, epoch.into());
    }
    rig.plugin.release(Epoch(2)).unwrap();
    send(&mut rig.guest, 50, 60);
    seal(&mut rig, 5);
    send(&mut rig.guest, 60, 60); // in no checkpoint
    seal(&mut rig, 6);
    let records = until_seal(&rx, 6);
    let without_last_seal = &records[..records.len() - 1];
    assert_eq!(repeated(&records, 3).1, [30, 31]);
    assert_eq!(repeated(&records, 5).1, [30, 31, 40, 41, 50]);
    assert_eq!(repeated(without_last_seal, 6).1, [30, 31, 40, 41, 50]);
    assert_eq!(repeated(without_last_seal, 7).1, [30, 31, 40, 41, 50]);
    assert_eq!(repeated(without_last_seal, 8), (vec![], vec![]), "copies no longer come");
    assert_eq!(repeated(&records[..1], 0), (vec![], vec![]));
}

#[test]
fn what_passed_without_being_held_is_not_repeated() {
    let mut rig = rig(Side::Primary);
    let (tx, rx) = sync_channel(1000);
    rig.plugin.replicate(Box::new(Tx(tx))).unwrap();
    send(&mut rig.guest, 1, 60);
    assert_eq!(receive(&mut rig.world), 1);
    offer(&mut rig, 2..3);
    assert_eq!(receive(&mut rig.guest), 2);
    seal(&mut rig, 1);
    assert_eq!(repeated(&until_seal(&rx, 1), 1), (vec![], vec![]));
}

#[test]
fn a_stuck_channel_costs_the_oldest_copies_and_nothing_else() {
    let (mut rig, rx) = copying(0);
    let frames = 8000u32; // 12 MB
    let mut guest = rig.guest.try_clone().unwrap();
    let reader = std::thread::spawn(move || (0..frames).for_each(|n| assert_eq!(receive(&mut guest), n)));
    for (epoch, first) in (0..frames).step_by(100).enumerate() {
        (first..first + 100).for_each(|n| send(&mut rig.world, n, 1500));
        while rig.plugin.stats().received_frames < u64::from(first + 100) {
            std::thread::yield_now();
        }
        seal(&mut rig, epoch as u64 + 2);
    }
    reader.join().unwrap();
    let uncopied = rig.plugin.stats().uncopied_frames;
    let records = until_seal(&rx, 81);
    let bytes: usize = records.iter().map(|(_, payload)| payload.len()).sum();
    assert!(bytes < 3 << 20 && uncopied > 5000, "{bytes} bytes, {uncopied} frames without a copy");
    let (to_guest, _) = repeated(&records, 80);
    assert_eq!(to_guest.last(), Some(&(frames - 1)), "the newest are there");
    assert!(to_guest.is_sorted());
}

#[test]
fn an_epochs_share_is_bounded() {
    let (mut rig, rx) = copying(1000);
    let mut guest = rig.guest.try_clone().unwrap();
    let reader = std::thread::spawn(move || (0..40).for_each(|n| assert_eq!(receive(&mut guest), n)));
    (0..20).for_each(|n| send(&mut rig.world, n, FRAME_LIMIT));
    while rig.plugin.stats().received_frames < 20 {
        std::thread::yield_now();
    }
    seal(&mut rig, 2);
    (20..40).for_each(|n| send(&mut rig.world, n, 60));
    reader.join().unwrap();
    seal(&mut rig, 3);
    let copied = (0..3).chain(20..40).collect::<Vec<u32>>();
    assert_eq!(repeated(&until_seal(&rx, 3), 1).0, copied);
    assert_eq!(rig.plugin.stats().uncopied_frames, 17);
}

#[test]
fn a_channel_that_ends_ends_the_copies_alone() {
    let (mut rig, rx) = copying(0);
    drop(rx);
    offer(&mut rig, 0..5);
    send(&mut rig.guest, 9, 60);
    seal(&mut rig, 2);
    rig.plugin.release(Epoch(2)).unwrap();
    assert_eq!(receive(&mut rig.world), 9);
    assert_eq!([0; 5].map(|_| receive(&mut rig.guest)), [0, 1, 2, 3, 4]);
    while rig.plugin.stats().uncopied_frames < 6 {
        std::thread::yield_now();
    }
    assert!(rig.said.try_recv().is_err(), "nobody hears of it");
}

/// Records as a primary sends them: frames of both ways, numbered like their contents.
pub(super) fn frames(way: Way, numbers: std::ops::Range<u32>) -> Sent {
    let mut frames = Frames::new(way, numbers.start.into());
    for n in numbers {
        let mut frame = vec![0; 60];
        frame[..4].copy_from_slice(&n.to_be_bytes());
        frames.add(&frame);
    }
    (frames.head(), frames.payload)
}

pub(super) fn sealed(epoch: u64, to_guest: u64, from_guest: u64) -> Sent {
    let seal = Seal { epoch: Epoch(epoch), to_guest, from_guest, released: Epoch(epoch - 1) };
    (seal.head(), seal.payload())
}

#[test]
fn a_takeover_repeats_once_in_order_and_before_anything_else() {
    let mut rig = rig(Side::Standby);
    let (tx, rx) = channel();
    rig.plugin.receive(Box::new(Rx(rx))).unwrap();
    let records = [
        frames(Way::ToGuest, 0..10),
        frames(Way::FromGuest, 0..4),
        sealed(1, 4, 0),
        sealed(2, 6, 3),
        frames(Way::ToGuest, 12..14), // two were not copied
    ];
    records.into_iter().for_each(|r| tx.send(r).unwrap());
    drop(tx);
    await_thread(rig.plugin.recent.as_ref().unwrap());
    rig.plugin.activate(Epoch(2)).unwrap();
    rig.plugin.activate(Epoch(2)).unwrap();
    send(&mut rig.world, 100, 60);
    send(&mut rig.guest, 200, 60);
    assert_eq!([0; 7].map(|_| receive(&mut rig.guest)), [6, 7, 8, 9, 12, 13, 100]);
    assert_eq!([0; 4].map(|_| receive(&mut rig.world)), [0, 1, 2, 200]);

    // The same plugin on the side that is a primary from now on.
    let (tx, rx) = sync_channel(1000);
    rig.plugin.replicate(Box::new(Tx(tx))).unwrap();
    seal(&mut rig, 1);
    rig.plugin.engage().unwrap();
    send(&mut rig.guest, 300, 60);
    offer(&mut rig, 400..401);
    seal(&mut rig, 2);
    assert_eq!(receive(&mut rig.guest), 400);
    assert_quiet(&mut rig);
    assert_eq!(repeated(&until_seal(&rx, 2), 1).0, [400]);
}

#[test]
fn what_is_damaged_is_not_repeated() {
    let good = [frames(Way::ToGuest, 0..3), sealed(1, 0, 0)];
    assert_eq!(repeated(&good, 1).0, [0, 1, 2]);
    let mut cut = frames(Way::ToGuest, 3..5);
    cut.1.pop();
    for bad in
        [cut, frames(Way::ToGuest, 2..3), sealed(1, 3, 0), (RecordHead { epoch: Epoch(2), kind: 9 }, vec![])]
    {
        let records = [&good[..], &[bad]].concat();
        assert_eq!(repeated(&records, 1), (vec![], vec![]));
    }
}

#[test]
fn a_standbys_memory_is_bounded() {
    let big = |first| {
        let mut frames = Frames::new(Way::ToGuest, first);
        (0..3).for_each(|_| frames.add(&vec![0; FRAME_LIMIT]));
        (frames.head(), frames.payload)
    };
    let mut records = vec![sealed(1, 0, 0)];
    records.extend((0..100).map(|n| big(n * 3)));
    let Repeat { to_guest, .. } = kept(&records).lock().unwrap().repeat(Epoch(1));
    assert!((30..=4 * (1 << 20) / FRAME_LIMIT).contains(&to_guest.len()), "{}", to_guest.len());
}
