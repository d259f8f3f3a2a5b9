//! A standby's guest, before and after it takes over.

use super::super::GuestBench;
use super::super::lab::{Checkpoint, Lab, Seen, done};
use super::super::memory::differing;
use aventine_api::{PAGE_SIZE, Side};

/// Epochs that the survivor goes through.
const EPOCHS: usize = 20;

pub(crate) fn a_standby_is_empty_and_waits<B: GuestBench>(_: &str) -> Seen {
    let (checkpoint, mut lab) = checkpoint::<B>()?;
    let empty = |lab: &Lab<B>, when: &str| {
        let memory = lab.memory.read_all();
        match differing(&memory, &vec![0; memory.len()]).runs().next() {
            Some((page, _)) => Err(format!("{when}, page {page} is not zero")),
            None => Ok(()),
        }
    };
    empty(&lab, "after `start`")?;
    // Whether it is an error to ask for what only a primary does is the plugin's to say.
    let _either = lab.guest.resume();
    lab.expect_still("on a standby before `activate`")?;
    empty(&lab, "before `activate`")?;
    lab.activate(&checkpoint)?;
    lab.advance("after `activate`")
}

/// A checkpoint of a guest that ran, and its place. The guest that it was taken of is gone.
fn checkpoint<B: GuestBench>() -> Result<(Checkpoint, Lab<B>), String> {
    let mut primary = Lab::<B>::primary()?;
    let mut checkpoint = Checkpoint::full(&mut primary)?;
    for _ in 0..3 {
        primary.resume()?;
        primary.advance("after `resume`")?;
        checkpoint.epoch(&mut primary)?;
    }
    // What comes after the checkpoint must not be seen again.
    primary.resume()?;
    primary.advance("after the last epoch")?;
    done("`kill`", primary.guest.kill())?;
    let standby = Lab::start(&primary.bench, Side::Standby)?;
    Ok((checkpoint, standby))
}

pub(crate) fn a_checkpoint_lives_on<B: GuestBench>(_: &str) -> Seen {
    let mut primary = Lab::<B>::primary()?;
    let first = Checkpoint::full(&mut primary)?;
    let mut lab = Lab::start(&primary.bench, Side::Standby)?;
    drop(primary);
    lab.activate(&first)?;
    lab.advance("activated where it had not run yet")?;
    drop(lab);

    let (checkpoint, mut lab) = checkpoint::<B>()?;
    let from = checkpoint.progress::<B>();
    lab.activate(&checkpoint)?;
    for _ in 0..3 {
        lab.advance(&format!("activated at {from:?}"))?;
        lab.pause()?;
        let now = lab.progress();
        if now <= from {
            return Err(format!("the guest was activated at {from:?}, and is at {now:?}"));
        }
        lab.resume()?;
    }
    Ok(())
}

pub(crate) fn a_survivor_can_be_protected<B: GuestBench>(_: &str) -> Seen {
    let (mut checkpoint, mut lab) = checkpoint::<B>()?;
    lab.activate(&checkpoint)?;
    for epoch in 0..EPOCHS {
        checkpoint.epoch(&mut lab)?;
        checkpoint.expect_equal(&lab, &format!("in epoch {epoch} after `activate`"))?;
        lab.resume()?;
        lab.advance("between two epochs of a survivor")?;
    }
    let mut checkpoint = Checkpoint::full(&mut lab)?;
    checkpoint.expect_equal(&lab, "in a full copy of a survivor")?;
    lab.resume()?;
    lab.advance("after the full copy")?;
    checkpoint.epoch(&mut lab)?;
    let mut next = Lab::start(&lab.bench, Side::Standby)?;
    done("`kill`", lab.guest.kill())?;
    next.activate(&checkpoint)?;
    next.advance("taken over a second time")
}

pub(crate) fn the_owners_pages_are_not_dirty<B: GuestBench>(_: &str) -> Seen {
    let (mut checkpoint, mut lab) = checkpoint::<B>()?;
    // Far from anything that the guest uses: the middle of the longest run of empty pages.
    let used = differing(&checkpoint.image, &vec![0; checkpoint.image.len()]);
    let ends = used.runs().chain([(lab.memory.pages(), 0)]);
    let mut at = 0;
    let gaps = ends.map(|(first, pages)| {
        let gap = (first - at, at);
        at = first + pages;
        gap
    });
    let (pages, first) = gaps.max().ok_or("there is no memory")?;
    if pages < 3 {
        return Err("the bench's guest uses all of its memory: give it more".to_owned());
    }
    let page = first + pages / 2;
    checkpoint.image[page as usize * PAGE_SIZE..][..PAGE_SIZE].fill(0x77);
    lab.activate(&checkpoint)?;
    lab.advance("after `activate`")?;
    lab.pause()?;
    let dirty = lab.dirty()?;
    if dirty.contains(page) {
        return Err(format!("page {page} is dirty, and only the standby's owner has written it"));
    }
    // Nor is it lost: a full copy has it.
    match lab.populated()?.contains(page) {
        true => Ok(()),
        false => Err(format!("page {page}, which the standby's owner has filled, is not populated")),
    }
}

pub(crate) fn a_damaged_state_does_not_run<B: GuestBench>(_: &str) -> Seen {
    let mut primary = Lab::<B>::running()?;
    let whole = Checkpoint::full(&mut primary)?;
    for state in [&whole.state[..whole.state.len() / 2], b"nonsense", b""] {
        let mut lab = Lab::start(&primary.bench, Side::Standby)?;
        let damaged = Checkpoint { image: whole.image.clone(), state: state.to_vec() };
        if lab.activate(&damaged).is_ok() {
            return Err(format!("{} bytes of {} were activated", state.len(), whole.state.len()));
        }
        lab.expect_still("after an `activate` that failed")?;
        if lab.guest.resume().is_ok() {
            lab.expect_still("after an `activate` that failed, and `resume`")?;
        }
    }
    Ok(())
}
