//! Who may use the device, and whose epochs it has, on either side and after a takeover.

use super::super::desk::{Desk, Seen, done, pattern, same, size};
use super::super::{Difference, DiskBench, differs};
use aventine_api::{Disengage, Side};

pub(crate) fn a_standby_is_readable<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::apart(pattern(size::<B>(), 1))?;
    desk.connect()?;
    desk.standby.expect_readable::<B>("after `receive`")?;
    desk.finish_copy()?;
    for epoch in 1..=3 {
        desk.write(500, &pattern(5000, epoch as u8), false)?;
        desk.epoch(epoch)?;
        desk.expect_equal(&format!("after epoch {epoch}"))?;
    }
    Ok(())
}

pub(crate) fn a_standby_is_not_writable<B: DiskBench>(_: &str) -> Seen {
    let desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    let written = desk.standby.writes();
    if !written.is_empty() {
        return Err(format!("a standby carries out {written:?}"));
    }
    desk.expect_equal("after changes that were refused")
}

pub(crate) fn activation_ends_at_its_epoch<B: DiskBench>(_: &str) -> Seen {
    for applied in [1, 2] {
        let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
        desk.write(0, &pattern(5000, 2), false)?;
        desk.seal(2)?;
        let at_two = desk.model.clone();
        desk.write(2500, &pattern(5000, 3), false)?;
        desk.seal(3)?;
        desk.await_staged(3)?;
        let sent = desk.wire.sent();
        desk.write(0, &pattern(9000, 4), false)?;
        desk.await_staged(2)?;
        desk.commit(2)?;
        desk.apply(applied)?;
        desk.wire.pass(sent, B::PATIENCE);
        desk.activate(2)?;
        desk.expect_standby(&at_two, "after `activate(2)`")?;
        // The primary does not know yet; the channel may have ended, or take what is sent.
        let sent = desk.wire.sent();
        desk.write(0, &pattern(9000, 5), false)?;
        let _either = desk.seal(4);
        desk.wire.pass(sent, B::PATIENCE);
        desk.expect_standby(&at_two, "when more came after `activate(2)`")?;
        let written = desk.standby.writes();
        if written.len() != 4 {
            return Err(format!("after `activate` the device carries out {written:?} only"));
        }
        done("a flush after `activate`", desk.standby.block.flush())?;
        let mut due = at_two;
        due[5..12].copy_from_slice(b"written");
        due[50..59].fill(0);
        desk.expect_standby(&due, "after writes to the disk that was taken over")?;
        desk.wire.cut();
        desk.expect_standby(&due, "when the channel was lost after that")?;
    }
    Ok(())
}

pub(crate) fn the_owner_goes_on_alone<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    let at_one = desk.model.clone();
    desk.write(0, &pattern(5000, 2), false)?;
    for again in ["once", "twice"] {
        done(format_args!("`disengage(Owner)`, {again}"), desk.primary.disk.disengage(Disengage::Owner))?;
        desk.write(2500, &pattern(5000, 3), true)?;
        desk.zero(10_000, 99, true, false)?;
        desk.trim(20_000, 9)?;
        done("a flush of the owner's", desk.primary.block.flush())?;
        desk.expect_primary(&format!("after `disengage(Owner)`, {again}"))?;
    }
    same("the owner's image", &desk.bench.image(Side::Primary), &desk.model, "after `disengage(Owner)`")?;
    desk.wire.settle(B::PATIENCE);
    let due = if differs::<B>(Difference::AppliedBelow) { &desk.model } else { &at_one };
    desk.expect_standby(due, "after the primary went on alone")
}

pub(crate) fn the_other_sides_guest_is_shut_out<B: DiskBench>(_: &str) -> Seen {
    let desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    let Desk { mut primary, wire, model, bench, .. } = desk;
    for why in [Disengage::NotOwner, Disengage::NotOwner] {
        done(format_args!("`disengage({why:?})`"), primary.disk.disengage(why))?;
        let written = primary.writes();
        if !written.is_empty() {
            return Err(format!("after `disengage(NotOwner)` the device carries out {written:?}"));
        }
        if primary.block.read(0, &mut [0; 16]).is_ok() {
            return Err("after `disengage(NotOwner)` the device can be read".to_owned());
        }
    }
    drop(wire);
    same("the image", &bench.image(Side::Primary), &model, "after `disengage(NotOwner)`")
}
