//! Dirty pages and device state.

use super::super::GuestBench;
use super::super::lab::{Checkpoint, Lab, Seen, done};
use super::super::memory::{differing, missing};

pub(crate) fn dirty_begins_with_the_start<B: GuestBench>(_: &str) -> Seen {
    let mut lab = Lab::<B>::primary()?;
    let before = lab.memory.read_all();
    lab.resume()?;
    lab.advance("after `start` and `resume`")?;
    lab.pause()?;
    let written = differing(&before, &lab.memory.read_all());
    match missing(&lab.dirty()?, &written) {
        Some(page) => Err(format!("page {page} changed after `start`, and the first `dirty` lacks it")),
        None => Ok(()),
    }
}

pub(crate) fn dirty_misses_nothing<B: GuestBench>(_: &str) -> Seen {
    let mut lab = Lab::<B>::primary()?;
    let mut checkpoint = Checkpoint::full(&mut lab)?;
    for round in 0..60 {
        lab.resume()?;
        lab.advance("between two epochs")?;
        if round % 3 == 0 {
            // What is written while this is copied shows in the next answer.
            checkpoint.copy(&mut lab)?;
        }
        checkpoint.epoch(&mut lab)?;
        checkpoint.expect_equal(&lab, &format!("in epoch {round}"))?;
    }
    Ok(())
}

pub(crate) fn dirty_starts_anew<B: GuestBench>(_: &str) -> Seen {
    let mut lab = Lab::<B>::running()?;
    let mut state = Vec::new();
    for _ in 0..3 {
        lab.pause()?;
        lab.dirty()?;
        lab.save(&mut state)?;
        if let Some((page, _)) = lab.dirty()?.runs().next() {
            return Err(format!("page {page} is dirty again, and the guest is paused"));
        }
        lab.resume()?;
        lab.advance("after `resume`")?;
    }
    Ok(())
}

pub(crate) fn dirty_keeps_set_bits<B: GuestBench>(_: &str) -> Seen {
    let mut lab = Lab::<B>::running()?;
    let mut all = lab.bitmap();
    all.set_range(0, lab.memory.pages());
    let mut bits = all.clone();
    done("`dirty`", lab.guest.dirty(&mut bits))?;
    match missing(&bits, &all) {
        Some(page) => Err(format!("the bit of page {page} was set, and is not any more")),
        None => Ok(()),
    }
}

pub(crate) fn populated_misses_nothing<B: GuestBench>(_: &str) -> Seen {
    let mut lab = Lab::<B>::running()?;
    lab.pause()?;
    let memory = lab.memory.read_all();
    let used = differing(&memory, &vec![0; memory.len()]);
    if let Some(page) = missing(&lab.populated()?, &used) {
        return Err(format!("page {page} is not all zero, and is not named"));
    }
    let mut all = lab.bitmap();
    all.set_range(0, lab.memory.pages());
    let mut bits = all.clone();
    done("`populated`", lab.guest.populated(&mut bits))?;
    match missing(&bits, &all) {
        Some(page) => Err(format!("the bit of page {page} was set, and is not any more")),
        None => Ok(()),
    }
}

pub(crate) fn populated_leaves_dirty_alone<B: GuestBench>(_: &str) -> Seen {
    let mut lab = Lab::<B>::running()?;
    lab.pause()?;
    lab.dirty()?;
    let before = lab.memory.read_all();
    lab.resume()?;
    lab.advance("after `resume`")?;
    lab.populated()?;
    lab.pause()?;
    lab.populated()?;
    let written = differing(&before, &lab.memory.read_all());
    if let Some(page) = missing(&lab.dirty()?, &written) {
        return Err(format!("page {page} was written before `populated`, and is not dirty after it"));
    }
    lab.populated()?;
    match lab.dirty()?.runs().next() {
        Some((page, _)) => Err(format!("page {page} is dirty because of `populated`")),
        None => Ok(()),
    }
}

pub(crate) fn saving_changes_no_page<B: GuestBench>(_: &str) -> Seen {
    let mut lab = Lab::<B>::running()?;
    let mut state = Vec::new();
    for _ in 0..3 {
        lab.pause()?;
        let before = lab.memory.read_all();
        done("`start_state`", lab.guest.start_state())?;
        lab.dirty()?;
        let during = lab.memory.read_all();
        done("`finish_state`", lab.guest.finish_state(&mut state))?;
        for after in [during, lab.memory.read_all()] {
            if let Some((page, _)) = differing(&before, &after).runs().next() {
                return Err(format!("page {page} changed while the state was saved"));
            }
        }
        lab.resume()?;
        lab.advance("after the state was saved")?;
    }
    Ok(())
}

pub(crate) fn the_state_replaces_what_was_there<B: GuestBench>(_: &str) -> Seen {
    const OLD: [u8; 64] = [0xa5; 64];
    let mut lab = Lab::<B>::running()?;
    lab.pause()?;
    let mut state = Vec::new();
    lab.save(&mut state)?;
    if state.is_empty() {
        return Err("it is empty".to_owned());
    }
    // Room for any other state of this guest.
    let mut again = OLD.repeat(state.len().div_ceil(16));
    let (place, capacity) = (again.as_ptr(), again.capacity());
    lab.save(&mut again)?;
    if again.starts_with(&OLD) {
        return Err("what the vector held is still there".to_owned());
    }
    if (again.as_ptr(), again.capacity()) != (place, capacity) {
        return Err(format!("a vector with room for {capacity} bytes was given up for {}", again.len()));
    }
    Ok(())
}
