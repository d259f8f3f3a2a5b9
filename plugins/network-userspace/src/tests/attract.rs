//! The world's frames go where the guest lives, or is about to.

use super::copies::{Rx, await_thread, frames, sealed};
use super::*;
use crate::attract::{Addresses, By};
use crate::wire::{Frames, Way};

const ADDRESS: [u8; 6] = [0x52, 0x54, 0, 0, 0, 7];

/// A frame that the guest sends.
fn spoken() -> Vec<u8> {
    [&[2; 6][..], &ADDRESS, &[8, 0], &[0; 46]].concat()
}

fn announcement(by: By) -> Vec<u8> {
    let mut addresses = Addresses::default();
    addresses.learn(&spoken());
    addresses.announcements(by).next().unwrap()
}

fn send_frame(to: &mut UnixStream, frame: &[u8]) {
    to.write_all(&[&(frame.len() as u32).to_be_bytes(), frame].concat()).unwrap();
}

fn receive_frame(from: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    from.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    from.read_exact(&mut frame).unwrap();
    frame
}

/// A standby that suspects its primary, and has told the world where the guest is.
fn suspecting() -> Rig {
    let mut rig = rig(Side::Standby);
    let (tx, rx) = channel();
    rig.plugin.receive(Box::new(Rx(rx))).unwrap();
    let mut copied = Frames::new(Way::FromGuest, 0);
    copied.add(&spoken());
    tx.send((copied.head(), copied.payload)).unwrap();
    [frames(Way::ToGuest, 0..3), sealed(1, 1, 1)].into_iter().for_each(|r| tx.send(r).unwrap());
    drop(tx);
    await_thread(rig.plugin.recent.as_ref().unwrap());
    rig.plugin.suspect(true);
    assert_eq!(receive_frame(&mut rig.world), announcement(By::Standby));
    rig
}

/// The world sends frames, and the standby has kept them on return.
fn keep(rig: &mut Rig, numbers: std::ops::Range<u32>) {
    let before = rig.plugin.pump.with(|p| p.kept());
    numbers.clone().for_each(|n| send(&mut rig.world, n, 60));
    let deadline = std::time::Instant::now() + LIMIT;
    while rig.plugin.pump.with(|p| p.kept()) < before + numbers.len() {
        assert!(std::time::Instant::now() < deadline, "frames of the world are not kept");
        std::thread::yield_now();
    }
}

#[test]
fn what_the_world_sends_meanwhile_follows_what_is_repeated() {
    let mut rig = suspecting();
    // The living primary's answer is no frame for the guest.
    send_frame(&mut rig.world, &announcement(By::Primary));
    keep(&mut rig, 100..103);
    rig.plugin.activate(Epoch(1)).unwrap();
    send(&mut rig.world, 200, 60);
    assert_eq!([0; 6].map(|_| receive(&mut rig.guest)), [1, 2, 100, 101, 102, 200]);
    // Not a standby's: an old primary that still lives would answer, and draw the frames back.
    assert_eq!(receive_frame(&mut rig.world), announcement(By::Primary), "switches learn at once");
    assert_eq!(receive_frame(&mut rig.world), spoken());
}

#[test]
fn a_primary_that_is_heard_again_ends_it() {
    let mut rig = suspecting();
    keep(&mut rig, 100..103);
    rig.plugin.suspect(false);
    rig.plugin.suspect(true);
    assert_eq!(receive_frame(&mut rig.world), announcement(By::Standby));
    keep(&mut rig, 103..104);
    rig.plugin.activate(Epoch(1)).unwrap();
    assert_eq!([0; 3].map(|_| receive(&mut rig.guest)), [1, 2, 103]);
}

#[test]
fn a_living_primary_draws_the_frames_back() {
    let mut rig = rig(Side::Primary);
    send_frame(&mut rig.guest, &spoken());
    assert_eq!(receive_frame(&mut rig.world), spoken());
    rig.plugin.engage().unwrap();
    send_frame(&mut rig.world, &announcement(By::Standby));
    assert_eq!(receive_frame(&mut rig.world), announcement(By::Primary), "held frames do not delay it");
    send_frame(&mut rig.world, &announcement(By::Primary));
    assert_quiet(&mut rig);
    rig.plugin.disengage(Disengage::NotOwner).unwrap();
    assert_eq!(rig.world.read(&mut [0]).unwrap(), 0, "a side without the guest says nothing");
}
