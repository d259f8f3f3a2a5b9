//! The cases. What each rule means is told in the table of [`super::rules`].

use super::NetworkBench;
use super::desk::Desk;
use super::frame::{PROTOCOLS, Way, build};
use crate::suite::Seen;
use aventine_api::{Disengage, Epoch, ErrorCode};

/// Bytes of a big frame.
const BIG: usize = 1400;

pub(super) fn passes_until_engaged<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    desk.expect_passing(0..3, "before `engage`")?;
    desk.seal(1)?;
    desk.expect_passing(3..6, "after the seal of the first epoch, before `engage`")
}

pub(super) fn nothing_leaves_before_release<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    desk.engage()?;
    desk.send(0..5)?;
    desk.expect_held(5, "after `engage`")?;
    desk.seal(1)?;
    desk.expect_held(5, "after `seal(1)`, which releases nothing")
}

pub(super) fn released_frames_leave_in_order<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    desk.engage()?;
    desk.send(0..300)?;
    desk.seal(1)?;
    desk.expect_held(300, "before the release")?;
    desk.release(1)?;
    desk.expect(0..300, "after `release(1)`")?;
    desk.expect_held(0, "after all of the epoch has left")
}

pub(super) fn epochs_end_where_they_were_sealed<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    const FLOOD: u32 = 100;
    desk.engage()?;
    desk.send(0..FLOOD)?;
    for epoch in 1..=20 {
        let (first, next) = ((epoch - 1) * FLOOD, epoch * FLOOD);
        desk.seal(epoch.into())?;
        desk.send(next..next + FLOOD / 2)?;
        desk.expect_held(u64::from(FLOOD + FLOOD / 2), "with a sealed epoch and half of the next one")?;
        desk.release(epoch.into())?;
        // The flood goes on while the epoch leaves.
        desk.send(next + FLOOD / 2..next + FLOOD)?;
        desk.expect(first..next, &format!("after `release({epoch})`"))?;
        desk.expect_held(FLOOD.into(), &format!("after all of epoch {epoch} has left"))?;
    }
    Ok(())
}

pub(super) fn every_protocol_is_held<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    let frame = |number: usize| build(Way::FromGuest, PROTOCOLS[number].1, number as u32, 80);
    desk.engage()?;
    for (number, (protocol, _)) in PROTOCOLS.iter().enumerate() {
        desk.send_frame(&frame(number))?;
        desk.expect_held(number as u64 + 1, &format!("with a frame of {protocol} sent last"))?;
    }
    desk.seal(1)?;
    desk.release(1)?;
    for (number, (protocol, _)) in PROTOCOLS.iter().enumerate() {
        desk.expect_frame(&frame(number), &format!("after the release of a frame of {protocol}"))?;
    }
    Ok(())
}

pub(super) fn frames_to_the_guest_pass<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    desk.engage()?;
    desk.send(0..3)?;
    desk.expect_held(3, "after `engage`")?;
    desk.expect_inward(10..20, "while frames from the guest are held")?;
    desk.seal(1)?;
    desk.expect_inward(20..30, "while an epoch is sealed")
}

pub(super) fn release_is_idempotent<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    desk.engage()?;
    desk.send(0..2)?;
    desk.seal(1)?;
    desk.send(2..4)?;
    desk.release(1)?;
    desk.expect(0..2, "after `release(1)`")?;
    desk.release(1)?;
    desk.expect_held(2, "after a second `release(1)`")?;
    desk.seal(2)?;
    desk.release(1)?;
    desk.expect_held(2, "after a third `release(1)`, with epoch 2 sealed")?;
    desk.release(2)?;
    desk.expect(2..4, "after `release(2)`")?;
    desk.release(2)?;
    desk.send(4..5)?;
    desk.expect_held(1, "after a second `release(2)`")
}

pub(super) fn seal_is_idempotent<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    desk.engage()?;
    desk.send(0..2)?;
    desk.seal(1)?;
    desk.send(2..4)?;
    desk.expect_held(4, "before the second seal")?;
    desk.seal(1)?;
    desk.release(1)?;
    desk.expect(0..2, "after `release(1)`")?;
    desk.expect_held(2, "after `seal(1)`, again `seal(1)` and `release(1)`")
}

pub(super) fn depth_is_kept<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    let depth = desk.bench.buffer().depth().min(8);
    if depth == 0 {
        return Err("`depth` is 0; a buffer must hold one sealed epoch at least".to_owned());
    }
    desk.engage()?;
    for epoch in 1..=depth {
        desk.send(epoch * 10..epoch * 10 + 2)?;
        desk.seal(epoch.into())?;
    }
    desk.send((depth + 1) * 10..(depth + 1) * 10 + 2)?;
    desk.expect_held(u64::from(depth + 1) * 2, "with as many epochs sealed as `depth` says")?;
    for epoch in 1..=depth {
        desk.release(epoch.into())?;
        desk.expect(epoch * 10..epoch * 10 + 2, &format!("after `release({epoch})`"))?;
        desk.expect_held(u64::from(depth + 1 - epoch) * 2, &format!("after all of epoch {epoch} has left"))?;
    }
    Ok(())
}

pub(super) fn a_full_buffer_asks_for_an_epoch<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    desk.engage()?;
    for epoch in 1..=2 {
        let frames = fill::<B>(3, 4);
        for number in 0..frames {
            desk.send_frame(&big(number))?;
        }
        if !desk.was_asked() {
            return Err(format!(
                "three quarters of the limit are held in epoch {epoch}, and no epoch was asked for"
            ));
        }
        desk.seal(epoch)?;
        desk.release(epoch)?;
        for number in 0..frames {
            desk.expect_frame(&big(number), &format!("after `release({epoch})`"))?;
        }
        desk.expect_held(0, "after all has left")?;
    }
    Ok(())
}

pub(super) fn nothing_is_lost_in_silence<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    desk.engage()?;
    let before = desk.bench.buffer().stats().dropped_frames;
    let all = fill::<B>(2, 1);
    let mut sent = 0;
    while sent < all && desk.bench.guest_sends(&big(sent)) {
        sent += 1;
    }
    let held = desk.bench.buffer().stats().held_bytes;
    if held > B::LIMIT + (64 << 10) {
        return Err(format!("{held} bytes are held; the limit is {}", B::LIMIT));
    }
    let (mut arrived, mut epoch, mut dropped) = (0, 0, 0);
    let complete = desk.wait(|desk| {
        epoch += 1;
        if let Err(why) = desk.seal(epoch).and_then(|()| desk.release(epoch)) {
            return Some(Err(why));
        }
        while desk.arrived().is_some() {
            arrived += 1;
        }
        dropped = desk.bench.buffer().stats().dropped_frames - before;
        (arrived + dropped >= u64::from(sent)).then_some(Ok(()))
    });
    match complete {
        Some(Ok(())) if arrived + dropped == u64::from(sent) => Ok(()),
        Some(Err(why)) => Err(why),
        _ => Err(format!("of {sent} frames {arrived} came, and {dropped} are counted as dropped")),
    }
}

pub(super) fn the_owner_loses_nothing<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    desk.engage()?;
    desk.send(0..200)?;
    desk.seal(1)?;
    desk.send(200..400)?;
    desk.expect_held(400, "before `disengage`")?;
    desk.disengage(Disengage::Owner)?;
    desk.send(400..410)?;
    desk.expect(0..410, "after `disengage(Owner)`")?;
    desk.expect_passing(410..413, "after `disengage(Owner)`")?;
    desk.expect_held(0, "after `disengage(Owner)`")
}

pub(super) fn the_other_side_owns_what_was_held<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    desk.engage()?;
    desk.send(0..3)?;
    desk.seal(1)?;
    desk.send(3..5)?;
    desk.expect_held(5, "before `disengage`")?;
    desk.disengage(Disengage::NotOwner)?;
    desk.send(5..8)?;
    desk.release(1)?;
    desk.expect_held(0, "after `disengage(NotOwner)`")?;
    match desk.bench.buffer().engage() {
        Err(e) if e.code() == ErrorCode::Refused => {}
        Err(e) => {
            return Err(format!(
                "`engage` after `disengage(NotOwner)` is an error, but not `Refused`: {}",
                e.chain()
            ));
        }
        Ok(()) => return Err("`engage` after `disengage(NotOwner)` is not refused".to_owned()),
    }
    let activated = desk.bench.buffer().activate(Epoch(1));
    drop(activated);
    desk.send(8..9)?;
    desk.expect_held(0, "after `disengage(NotOwner)`, whatever is asked then")
}

pub(super) fn the_first_reason_stands<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    desk.engage()?;
    desk.send(0..2)?;
    desk.disengage(Disengage::Owner)?;
    desk.disengage(Disengage::Owner)?;
    desk.disengage(Disengage::NotOwner)?;
    desk.expect(0..2, "after `disengage(Owner)`")?;
    desk.expect_passing(2..4, "after `disengage(Owner)`, then `disengage(NotOwner)`")
}

pub(super) fn a_new_session_begins_anew<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    for session in 0..3 {
        let first = session * 10;
        desk.engage()?;
        desk.send(first..first + 2)?;
        desk.seal(1)?;
        desk.send(first + 2..first + 4)?;
        desk.expect_held(4, &format!("in session {}", session + 1))?;
        desk.release(1)?;
        desk.expect(first..first + 2, "after `release(1)`")?;
        desk.expect_held(2, "after `release(1)`")?;
        desk.disengage(Disengage::Owner)?;
        desk.expect(first + 2..first + 4, "after `disengage(Owner)`")?;
        desk.expect_passing(first + 4..first + 6, "between two sessions")?;
    }
    Ok(())
}

pub(super) fn a_standby_is_silent<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    desk.send(0..20)?;
    desk.expect_nothing("on a standby before `activate`")?;
    desk.activate()?;
    desk.send(20..22)?;
    // Had one of the first ones been kept, it would come first.
    desk.expect(20..22, "after `activate`")
}

pub(super) fn activation_opens_both_ways<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    desk.activate()?;
    desk.expect_passing(0..3, "after `activate`")?;
    desk.engage()?;
    desk.send(3..6)?;
    desk.expect_held(3, "after `activate` and `engage`")?;
    desk.seal(1)?;
    desk.release(1)?;
    desk.expect(3..6, "after `release(1)`")?;
    desk.disengage(Disengage::Owner)?;
    desk.expect_passing(6..8, "after `disengage(Owner)`")
}

pub(super) fn a_loss_is_told<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    desk.engage()?;
    desk.send(0..2)?;
    desk.expect_held(2, "after `engage`")?;
    desk.bench.vanish();
    let mut epoch = 0;
    let told = desk.wait(|desk| {
        epoch += 1;
        let refused = desk.seal(epoch).and_then(|()| desk.release(epoch)).is_err();
        (refused || desk.failure().is_some()).then_some(())
    });
    told.ok_or_else(|| format!("nothing was told in {epoch} epochs"))?;
    // Whatever is gone, the other side may own the guest.
    desk.disengage(Disengage::NotOwner)
}

pub(super) fn a_crash_leaves_nothing_behind<B: NetworkBench>(desk: &mut Desk<B>) -> Seen {
    desk.crash(0..4)?;
    desk.expect_passing(10..12, "once there is a new buffer")?;
    desk.engage()?;
    desk.send(12..14)?;
    desk.expect_held(2, "once the new buffer holds")?;
    desk.seal(1)?;
    desk.release(1)?;
    desk.expect(12..14, "once the new buffer releases")
}

impl<B: NetworkBench> Desk<B> {
    fn disengage(&mut self, why: Disengage) -> Seen {
        let done = self.bench.buffer().disengage(why);
        done.map_err(|e| format!("`disengage({why:?})` failed: {}", e.chain()))
    }

    fn activate(&mut self) -> Seen {
        self.bench.buffer().activate(Epoch(7)).map_err(|e| format!("`activate` failed: {}", e.chain()))
    }
}

fn big(number: u32) -> Vec<u8> {
    build(Way::FromGuest, &[0x88, 0xb5], number, BIG)
}

/// How many big frames are this part of the limit.
fn fill<B: NetworkBench>(times: u64, of: u64) -> u32 {
    u32::try_from(B::LIMIT * times / of / BIG as u64).unwrap_or(u32::MAX)
}
