//! The initial copy.

use super::super::desk::{Desk, Half, Seen, done, pattern, same, size};
use super::super::wire::Wire;
use super::super::{Difference, DiskBench, differs};
use crate::within::within;
use aventine_api::{Disengage, ErrorCode, Side};
use std::sync::Arc;

pub(crate) fn the_copy_is_live<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::apart(pattern(4 * size::<B>(), 1))?;
    desk.wire.change(|s| s.capacity = 1);
    desk.connect()?;
    for i in 0..200_usize {
        desk.write((i * 524_287) % (3 * size::<B>()), &pattern(20_000, i as u8), false)?;
        if i % 20 == 3 {
            desk.trim((i * 77_777) % (3 * size::<B>()), 100_001)?;
        }
    }
    desk.finish_copy()?;
    desk.epoch(1)?;
    desk.expect_equal("after a copy during which the guest wrote")
}

pub(crate) fn the_copy_overwrites<B: DiskBench>(_: &str) -> Seen {
    let mut contents = vec![0; size::<B>()];
    contents[300_000..300_100].fill(7);
    let mut desk = Desk::on(B::new(&contents, Some(&pattern(size::<B>(), 99))), contents)?;
    desk.connect()?;
    desk.finish_copy()?;
    desk.epoch(1)?;
    desk.expect_equal("after a copy over an image that held something else")
}

pub(crate) fn progress_leads_to_the_first_epoch<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::apart(pattern(2 * size::<B>(), 1))?;
    desk.connect()?;
    let mut before = 0;
    loop {
        let progress = desk.primary.disk.progress();
        if progress.total != desk.model.len() as u64 {
            return Err(format!("`progress` says {progress:?} of a disk of {} bytes", desk.model.len()));
        }
        if progress.done > progress.total || progress.done < before {
            return Err(format!("`progress` says {progress:?} after {before} bytes were done"));
        }
        if progress.done == progress.total {
            break;
        }
        if progress.done > before {
            before = progress.done;
        } else if !desk.wire.settle(B::PATIENCE) {
            return Err(format!("the copy stands at {progress:?}"));
        }
        std::thread::yield_now();
    }
    desk.epoch(1)?;
    desk.expect_equal("after the first epoch")
}

pub(crate) fn an_image_that_does_not_fit_is_refused<B: DiskBench>(_: &str) -> Seen {
    if differs::<B>(Difference::OneSize) {
        println!("{:?}: there is nothing to refuse", Difference::OneSize);
        return Ok(());
    }
    for len in [size::<B>() / 2, size::<B>() + 512] {
        let theirs = pattern(len, 5);
        let mut desk = Desk::on(B::new(&pattern(size::<B>(), 1), Some(&theirs)), pattern(size::<B>(), 1))?;
        let (tx, rx) = desk.wire.ends();
        let (listens, answers) = desk.wire.back();
        done("`replicate`", desk.primary.disk.replicate(tx, Some(listens)))?;
        let Desk { mut standby, wire, bench, .. } = desk;
        let answer = within(B::PATIENCE, "`receive`", move || standby.disk.receive(rx, answers))?;
        wire.cut();
        if answer.is_ok() {
            return Err(format!("an image of {len} bytes was taken for a disk of {}", size::<B>()));
        }
        same("the image that was refused", &bench.image(Side::Standby), &theirs, "after `receive`")?;
    }
    Ok(())
}

pub(crate) fn a_session_that_never_began_is_an_error<B: DiskBench>(_: &str) -> Seen {
    let desk = Desk::<B>::apart(pattern(size::<B>(), 1))?;
    let (_, rx) = desk.wire.ends();
    let (_, answers) = desk.wire.back();
    desk.wire.cut();
    let Half { mut disk, .. } = desk.standby;
    match within(B::PATIENCE, "`receive` of a channel that has ended", move || disk.receive(rx, answers))? {
        Err(e) if e.code() == ErrorCode::PeerLost => Ok(()),
        Err(e) => Err(format!("`receive` answers {:?}, not `PeerLost`: {}", e.code(), e.chain())),
        Ok(()) => Err("`receive` is content with a channel that has ended".to_owned()),
    }
}

pub(crate) fn a_new_session_copies_all<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    for session in 2..=3_u8 {
        desk.write(1000, &pattern(5000, session), false)?;
        desk.wire.cut();
        done("`disengage(Owner)`", desk.primary.disk.disengage(Disengage::Owner))?;
        desk.write(90_000, &pattern(5000, session + 9), true)?;
        desk = desk.new_session()?;
        desk.write(700_000, &pattern(5000, session + 18), false)?;
        desk.finish_copy()?;
        desk.epoch(1)?;
        desk.expect_equal(&format!("after the first epoch of session {session}"))?;
        desk.write(3, &pattern(5000, session + 27), false)?;
        desk.epoch(2)?;
        desk.expect_equal(&format!("after the second epoch of session {session}"))?;
    }
    Ok(())
}

pub(crate) fn a_dropped_disk_lets_go<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    let committed = desk.model.clone();
    desk.wire.change(|s| s.capacity = 0);
    desk.write(0, &pattern(50_000, 2), false)?;
    desk.seal(2)?;
    if !desk.wire.wait(B::PATIENCE, |s| s.full) {
        return Err("nothing is sent".to_owned());
    }
    let Desk { wire, primary, standby, bench, model } = desk;
    let threads = Arc::new(wire);
    let kept = Arc::clone(&threads);
    within(B::PATIENCE, "dropping a disk whose channel is stuck", move || {
        let _kept: Arc<Wire> = kept;
        drop((primary, standby));
    })?;
    let again = Half::make(&bench, Side::Primary)?;
    Half::make(&bench, Side::Standby)?;
    let due = if differs::<B>(Difference::CommittedOnly) { committed } else { model };
    same("the primary's disk", &again.read()?, &due, "after it was dropped and made again")
}
