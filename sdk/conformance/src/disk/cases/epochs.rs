//! Epochs: where they end, when they are held, and when they reach the image.

use super::super::desk::{Desk, Seen, done, pattern, size};
use super::super::{Difference, DiskBench, differs};
use aventine_api::{Epoch, RecordHead};
use std::thread;
use std::time::Instant;

pub(crate) fn overlapping_writes_arrive_in_order<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    desk.write(12_345, &pattern(700_000, 2), false)?;
    desk.write(4096, &pattern(20_000, 3), false)?;
    desk.write(5000, &pattern(3, 4), true)?;
    desk.write(4999, &pattern(2, 5), false)?;
    desk.seal(2)?;
    desk.write(4990, &pattern(20, 6), false)?;
    desk.trim(300_001, 200_000)?;
    desk.zero(4995, 10, false, true)?;
    desk.write(400_000, &pattern(100, 7), false)?;
    desk.zero(400_050, 1, true, false)?;
    desk.seal(3)?;
    for epoch in [2, 3] {
        desk.await_staged(epoch)?;
        desk.commit(epoch)?;
        desk.apply(epoch)?;
    }
    desk.expect_equal("after two epochs of overlapping writes")
}

pub(crate) fn epochs_end_where_they_were_sealed<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    for epoch in 2..=12_u64 {
        for i in 0..20 {
            desk.write(i * 9001, &pattern(10_000, (epoch as usize * 20 + i) as u8), false)?;
        }
        desk.seal(epoch)?;
        let sealed = desk.model.clone();
        // Over what was just sealed, and not part of it.
        for i in 0..20 {
            desk.write(i * 9001 + 500, &pattern(10_000, (epoch as usize * 20 + i + 10) as u8), false)?;
        }
        desk.trim(200_000, 4096)?;
        desk.await_staged(epoch)?;
        desk.commit(epoch)?;
        desk.apply(epoch)?;
        desk.expect_standby(&sealed, &format!("after epoch {epoch}, with more writes under way"))?;
    }
    Ok(())
}

pub(crate) fn records_carry_their_epoch<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::apart(pattern(size::<B>(), 1))?;
    desk.connect()?;
    desk.write(0, &pattern(5000, 2), false)?;
    desk.finish_copy()?;
    let sent = desk.wire.change(|s| std::mem::take(&mut s.sent));
    if let Some(head) = sent.iter().find(|h| h.epoch != Epoch::COPY) {
        return Err(format!("before the first `seal` a record carries epoch {}", head.epoch));
    }
    desk.epoch(1)?;
    desk.wire.change(|s| s.sent.clear());
    for epoch in 2..=4 {
        desk.write(0, &pattern(5000, epoch as u8), false)?;
        desk.epoch(epoch)?;
        let sent = desk.wire.change(|s| std::mem::take(&mut s.sent));
        if sent.is_empty() {
            return Err(format!("epoch {epoch} was staged without a record"));
        }
        // What is not part of any epoch may follow the barrier.
        let due = |at, head: &RecordHead| head.epoch.0 == epoch || (at > 0 && head.epoch.0 == epoch + 1);
        let wrong = sent.iter().enumerate().find(|(at, head)| !due(*at, head));
        if let Some((_, head)) =
            wrong.or_else(|| (!sent.is_sorted_by_key(|h| h.epoch)).then(|| (0, &sent[0])))
        {
            return Err(format!("a record of epoch {epoch} carries epoch {}", head.epoch));
        }
    }
    Ok(())
}

pub(crate) fn nothing_reaches_the_image_before_commit<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    let before = desk.model.clone();
    let sent = desk.wire.sent();
    desk.write(100, &pattern(200_000, 2), false)?;
    desk.wire.pass(sent, B::PATIENCE);
    desk.expect_standby(&before, "while epoch 2 is open")?;
    desk.seal(2)?;
    desk.await_staged(2)?;
    desk.expect_standby(&before, "when epoch 2 is staged")?;
    // Whether it is an error to ask for what is not committed is the plugin's to say.
    let _either = desk.standby.disk.apply(Epoch(2));
    desk.expect_standby(&before, "after `apply(2)` before `commit(2)`")?;
    done("`commit(2)`", desk.standby.disk.commit(Epoch(2)))?;
    desk.expect_standby(&before, "after `commit(2)`, which does no I/O")?;
    desk.commit(2)?;
    if !differs::<B>(Difference::AppliedBelow) {
        desk.expect_standby(&before, "after `release(2)`")?;
    }
    desk.apply(2)?;
    desk.expect_equal("after `apply(2)`")
}

pub(crate) fn staged_means_complete<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    desk.wire.change(|s| (s.allowed, s.capacity) = (0, usize::MAX));
    for epoch in 2..=3_u64 {
        for i in 0..3 {
            desk.write(i * 200_000, &pattern(150_000, epoch as u8 + i as u8), false)?;
        }
        desk.seal(epoch)?;
    }
    // One record after the other, until the standby has both.
    let mut arrived = Epoch::FIRST;
    loop {
        desk.wire.settle(B::PATIENCE);
        let heard = desk.standby.host.heard();
        let staged = Epoch(heard.staged.iter().max().copied().unwrap_or_default());
        if let Some((_, why)) = heard.failed {
            return Err(format!("the standby failed: {why}"));
        }
        if staged > arrived {
            return Err(format!("epoch {staged} was reported, and nothing of it had arrived"));
        }
        if staged == Epoch(3) {
            break;
        }
        desk.wire.change(|s| s.allowed = 1);
        if !desk.wire.wait(B::PATIENCE, |s| s.allowed == 0) {
            return Err(format!("all has arrived, and epoch {} was not reported", staged.next()));
        }
        arrived = desk.wire.change(|s| s.got).map_or(arrived, |head| head.epoch);
        if arrived <= staged {
            return Err(format!("epoch {staged} was reported, and then more of epoch {arrived} arrived"));
        }
    }
    desk.wire.change(|s| s.allowed = usize::MAX);
    desk.write(0, &pattern(50, 1), false)?;
    desk.epoch(4)?;
    let staged = desk.standby.host.heard().staged;
    if staged != [1, 2, 3, 4] {
        return Err(format!("the reports were {staged:?}, not each epoch once and in order"));
    }
    desk.expect_equal("after the last of them")
}

pub(crate) fn what_did_not_arrive_is_not_committed<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    let before = desk.model.clone();
    desk.write(0, &pattern(5000, 2), false)?;
    if desk.standby.disk.commit(Epoch(2)).is_ok() {
        return Err("epoch 2 was committed, and its barrier had not come".to_owned());
    }
    desk.seal(2)?;
    desk.await_staged(2)?;
    if desk.standby.disk.activate(Epoch(2)).is_ok() {
        return Err("epoch 2 was activated, and was not committed".to_owned());
    }
    desk.activate(1)?;
    desk.expect_standby(&before, "after `activate(1)`")
}

pub(crate) fn depth_is_kept<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    let depth = desk.primary.disk.depth();
    if depth == 0 {
        return Err("`depth` is 0; a disk must hold one sealed epoch at least".to_owned());
    }
    let last = 1 + u64::from(depth.min(16));
    let mut sealed = Vec::new();
    for epoch in 2..=last {
        desk.write(epoch as usize * 100, &pattern(5000, epoch as u8), false)?;
        desk.seal(epoch)?;
        sealed.push(desk.model.clone());
    }
    desk.write(0, &pattern(9000, 99), false)?;
    (2..=last).try_for_each(|epoch| desk.await_staged(epoch))?;
    for epoch in 2..=last {
        desk.commit(epoch)?;
        desk.apply(epoch)?;
        desk.expect_standby(&sealed[epoch as usize - 2], &format!("after epoch {epoch} of {last}"))?;
    }
    match desk.primary.disk.depth() {
        same if same == depth => Ok(()),
        other => Err(format!("`depth` was {depth}, and is {other}")),
    }
}

pub(crate) fn seal_is_idempotent<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    desk.write(0, &pattern(5000, 2), false)?;
    desk.seal(2)?;
    let sealed = desk.model.clone();
    desk.write(2500, &pattern(5000, 3), false)?;
    desk.seal(2)?;
    desk.seal(1)?;
    desk.await_staged(2)?;
    desk.commit(2)?;
    desk.apply(2)?;
    desk.expect_standby(&sealed, "after `seal(2)`, a write, again `seal(2)`, and `seal(1)`")?;
    desk.epoch(3)?;
    desk.expect_equal("after epoch 3")
}

pub(crate) fn release_is_idempotent<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    for epoch in 2..=5 {
        desk.write(0, &pattern(5000, epoch as u8), false)?;
        desk.epoch(epoch)?;
        desk.write(10_000, &pattern(5000, epoch as u8), false)?;
        for again in [epoch, epoch, epoch - 1] {
            desk.release(again)?;
        }
    }
    desk.expect_primary("after epochs that were released twice")?;
    desk.epoch(6)?;
    desk.expect_equal("after epochs that were released twice")
}

pub(crate) fn commit_is_idempotent<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    let mut sealed = Vec::new();
    for epoch in 2..=4 {
        desk.write(0, &pattern(5000, epoch as u8), false)?;
        desk.seal(epoch)?;
        desk.await_staged(epoch)?;
        sealed.push(desk.model.clone());
    }
    for epoch in [2, 3, 3, 1, 2] {
        done(format_args!("`commit({epoch})`"), desk.standby.disk.commit(Epoch(epoch)))?;
    }
    desk.release(3)?;
    // Epoch 4 is not committed, whatever is asked.
    let _either = desk.standby.disk.apply(Epoch(4));
    desk.apply(3)?;
    desk.expect_standby(&sealed[1], "after `commit` of 2, 3, again 3, 1, 2, and `apply(3)`")
}

pub(crate) fn apply_is_idempotent<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    for epoch in 2..=3 {
        desk.write(0, &pattern(5000, epoch as u8), false)?;
        desk.epoch(epoch)?;
        for again in [epoch, epoch - 1, 1] {
            desk.apply(again)?;
            desk.expect_equal(&format!("after `apply({epoch})`, then `apply({again})`"))?;
        }
    }
    Ok(())
}

pub(crate) fn stats_tell_what_is_held<B: DiskBench>(_: &str) -> Seen {
    const WRITTEN: u64 = 100_000;
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    let before = desk.primary.disk.stats();
    desk.write(0, &pattern(WRITTEN as usize, 2), false)?;
    desk.seal(2)?;
    desk.await_staged(2)?;
    let (primary, standby) = (desk.primary.disk.stats(), desk.standby.disk.stats());
    if primary.written_bytes - before.written_bytes != WRITTEN {
        return Err(format!("the guest wrote {WRITTEN} bytes: {before:?} became {primary:?}"));
    }
    if primary.replicated_bytes < before.replicated_bytes + WRITTEN {
        return Err(format!("{WRITTEN} bytes were sent: {before:?} became {primary:?}"));
    }
    if standby.buffered_bytes < WRITTEN {
        return Err(format!("{WRITTEN} bytes are held and not applied: {standby:?}"));
    }
    desk.commit(2)?;
    desk.apply(2)?;
    let deadline = Instant::now() + B::PATIENCE;
    while differs::<B>(Difference::AppliedBelow)
        && desk.standby.disk.stats().buffered_bytes > 0
        && Instant::now() < deadline
    {
        thread::yield_now();
    }
    match desk.standby.disk.stats().buffered_bytes {
        0 => desk.expect_equal("after the epoch that was counted"),
        held => Err(format!("all is applied, and {held} bytes are held")),
    }
}
