//! A channel that is slow, stuck, lost, or carries what it should not.

use super::super::DiskBench;
use super::super::desk::{Desk, Seen, done, pattern, size};
use crate::within::within;
use aventine_api::{Disengage, Epoch, ErrorCode, MAX_RECORD, RecordHead};
use std::sync::Arc;

pub(crate) fn records_fit_the_channel<B: DiskBench>(_: &str) -> Seen {
    let size = 3 * MAX_RECORD;
    let mut desk = Desk::<B>::armed(pattern(size, 1))?;
    desk.write(123, &pattern(2 * MAX_RECORD + 5, 2), false)?;
    let sealed = desk.seal(2).and_then(|()| desk.await_staged(2));
    let longest = desk.wire.change(|s| s.longest);
    if longest > MAX_RECORD {
        return Err(format!("a record of {longest} bytes was sent; {MAX_RECORD} is the most"));
    }
    sealed?;
    desk.commit(2)?;
    desk.apply(2)?;
    desk.expect_equal("after a long write")
}

pub(crate) fn seal_does_not_wait<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    desk.wire.stop();
    for i in 0..3 {
        desk.write(i * 1000, &pattern(50_000, i as u8), false)?;
    }
    let Desk { wire, mut primary, standby, model, bench } = desk;
    primary = within(B::PATIENCE, "`seal(2)`, with a channel that is stuck,", move || {
        primary.disk.pausing();
        let sealed = primary.disk.seal(Epoch(2));
        (primary, sealed)
    })
    .and_then(|(primary, sealed)| done("`seal(2)`", sealed).map(|()| primary))?;
    wire.go_on();
    let mut desk = Desk { wire, primary, standby, model, bench };
    desk.await_staged(2)?;
    desk.commit(2)?;
    desk.apply(2)?;
    desk.expect_equal("once the channel went on")
}

pub(crate) fn nothing_waits_in_the_pause<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    for (turn, epoch) in (2..=4_u64).enumerate() {
        desk.wire.stop();
        desk.primary.disk.pausing();
        let data = pattern(size::<B>() / 2, epoch as u8);
        desk.model[turn..turn + data.len()].copy_from_slice(&data);
        let block = Arc::clone(&desk.primary.block);
        let ended = within(B::PATIENCE, "a write and a flush between `pausing` and `seal`", move || {
            block.write(turn as u64, &data, turn == 1)?;
            block.flush()
        })?;
        done("a write and a flush between `pausing` and `seal`", ended)?;
        done("`seal`", desk.primary.disk.seal(Epoch(epoch)))?;
        desk.wire.go_on();
        desk.await_staged(epoch)?;
        desk.commit(epoch)?;
        desk.apply(epoch)?;
        desk.expect_equal("after an epoch whose last writes came in the pause")?;
        done("a flush after `seal`", desk.primary.block.flush())?;
    }
    Ok(())
}

pub(crate) fn a_lost_channel_is_told<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    desk.wire.cut();
    desk.write(0, b"after the loss", false)?;
    for (side, host) in [("primary", &desk.primary.host), ("standby", &desk.standby.host)] {
        match host.wait(B::PATIENCE, |h| h.failed.is_some()).failed {
            Some((ErrorCode::PeerLost, _)) => {}
            Some((code, why)) => return Err(format!("the {side} reported {code:?}, not `PeerLost`: {why}")),
            None => return Err(format!("the {side} reported nothing in {:?}", B::PATIENCE)),
        }
    }
    done("a flush after the loss", desk.primary.block.flush())?;
    desk.expect_primary("after the channel was lost")
}

pub(crate) fn a_lost_channel_holds_nobody<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    desk.wire.stop();
    let block = Arc::clone(&desk.primary.block);
    // More than most buffers hold: the writer may wait for the channel when it is cut.
    let (tx, writer) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let answer = (0..20).try_for_each(|i| block.write(0, &pattern(size::<B>(), i), false));
        let _ = tx.send(answer.and_then(|()| block.flush()));
    });
    if !desk.wire.wait(B::PATIENCE, |s| s.full) {
        return Err("nothing is sent".to_owned());
    }
    desk.wire.cut();
    let ended = writer.recv_timeout(B::PATIENCE);
    let ended = ended.map_err(|_| format!("a write did not return {:?} after the loss", B::PATIENCE))?;
    done("a write during which the channel was lost", ended)?;
    desk.model = pattern(size::<B>(), 19);
    desk.write(7, b"alone", true)?;
    desk.expect_primary("after the channel was lost")?;
    done("`disengage(Owner)`", desk.primary.disk.disengage(Disengage::Owner))
}

/// The standby refuses what `desk` has it receive: epoch 2 is `Corrupt`, and never staged.
fn expect_refusal<B: DiskBench>(mut desk: Desk<B>, before: &[u8], what: &str) -> Seen {
    let heard = desk.standby.host.wait(B::PATIENCE, |h| h.failed.is_some() || h.staged.contains(&2));
    match heard.failed {
        Some((ErrorCode::Corrupt, _)) => {}
        Some((code, why)) => return Err(format!("{what} is reported as {code:?}, not `Corrupt`: {why}")),
        None if heard.staged.contains(&2) => {
            return Err(format!("with {what} epoch 2 was reported as staged"));
        }
        None => return Err(format!("{what} is not reported")),
    }
    if desk.standby.host.heard().staged.contains(&2) {
        return Err(format!("with {what} epoch 2 was reported as staged"));
    }
    desk.expect_standby(before, &format!("after {what}"))?;
    desk.wire.cut();
    desk.activate(1)?;
    desk.expect_standby(before, &format!("activated after {what}"))
}

pub(crate) fn foreign_records_are_refused<B: DiskBench>(_: &str) -> Seen {
    type Change = fn(&mut RecordHead, &mut Vec<u8>);
    let foreign: [(&str, Change); 4] = [
        ("a record of an unknown kind", |head, _| head.kind = 0xee),
        ("a record of an epoch that is past", |head, _| head.epoch = Epoch::COPY),
        ("a record of an epoch that is not open", |head, _| head.epoch = Epoch(9)),
        ("a record that ends after its first byte", |_, bytes| bytes.truncate(1)),
    ];
    for (what, change) in foreign {
        let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
        let before = desk.model.clone();
        desk.wire.change(|s| {
            s.harm = Some(Box::new(move |head, bytes| {
                change(head, bytes);
                true
            }));
        });
        desk.write(77, &pattern(5000, 2), false)?;
        desk.seal(2)?;
        expect_refusal(desk, &before, what)?;
    }
    Ok(())
}

pub(crate) fn harmed_records_are_refused<B: DiskBench>(_: &str) -> Seen {
    for lost in [false, true] {
        let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
        let before = desk.model.clone();
        let mut harmed = false;
        desk.wire.change(|s| {
            // The first one that is long enough to carry the write.
            s.harm = Some(Box::new(move |_, bytes| {
                if bytes.len() < 5000 || std::mem::replace(&mut harmed, true) {
                    return true;
                }
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                !lost
            }));
        });
        desk.write(77, &pattern(5000, 2), false)?;
        desk.seal(2)?;
        let what = if lost { "a record missing" } else { "a bit changed" };
        expect_refusal(desk, &before, what)?;
    }
    Ok(())
}
