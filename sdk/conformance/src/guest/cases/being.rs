//! What a guest is, how it runs, and how it ends.

use super::super::GuestBench;
use super::super::lab::{Lab, Quiet, Seen, done, exists};
use super::super::memory::differing;
use crate::within::within;
use aventine_api::{GuestEvent, PAGE_SIZE, Region, Side};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) fn the_signature_agrees<B: GuestBench>(_: &str) -> Seen {
    let bench = B::new();
    let mut sides = [Side::Primary, Side::Standby].map(|side| bench.make(side, Arc::new(Quiet)));
    let mut facts = Vec::new();
    for guest in sides.iter_mut().chain([&mut bench.make(Side::Primary, Arc::new(Quiet))]) {
        facts.push(done("`signature` before `start`", guest.signature())?);
    }
    if facts[0].is_empty() {
        return Err("it names no fact at all".to_owned());
    }
    match facts.iter().find(|other| **other != facts[0]) {
        Some(other) => Err(format!("one guest says {:?}, another one {other:?}", facts[0])),
        None => Ok(()),
    }
}

fn shape(regions: &[Region]) -> Vec<(u64, u64)> {
    regions.iter().map(|r| (r.first_page, r.pages)).collect()
}

fn place(regions: &[Region]) -> Vec<(u64, u64, usize)> {
    regions.iter().map(|r| (r.first_page, r.pages, r.host.addr().get())).collect()
}

pub(crate) fn regions_stay<B: GuestBench>(_: &str) -> Seen {
    let mut lab = Lab::<B>::primary()?;
    let first = place(lab.memory.regions());
    let mut next = 0;
    for &(page, pages, _) in &first {
        if page != next || pages == 0 {
            return Err(format!("a region of {pages} pages begins at page {page}, where {next} is due"));
        }
        next += pages;
    }
    if next == 0 {
        return Err("there is no memory".to_owned());
    }
    let standby = Lab::start(&lab.bench, Side::Standby)?;
    let (ours, theirs) = (shape(lab.memory.regions()), shape(standby.memory.regions()));
    if ours != theirs {
        return Err(format!("the primary's regions are {ours:?}, the standby's {theirs:?}"));
    }
    lab.resume()?;
    lab.advance("after `resume`")?;
    lab.pause()?;
    let later = place(&lab.guest.regions());
    if later == first { Ok(()) } else { Err(format!("the regions were {first:?}, and are {later:?}")) }
}

pub(crate) fn the_backing_is_the_memory<B: GuestBench>(_: &str) -> Seen {
    let mut lab = Lab::<B>::running()?;
    lab.pause()?;
    let memory = lab.memory.read_all();
    for (number, region) in lab.memory.regions().iter().enumerate() {
        let Some(fd) = lab.guest.backing(number) else { continue };
        let file = File::from(fd.try_clone_to_owned().map_err(|e| e.to_string())?);
        let (at, len) = (region.first_page as usize * PAGE_SIZE, region.pages as usize * PAGE_SIZE);
        let mut held = vec![0; len];
        file.read_exact_at(&mut held, 0).map_err(|e| format!("reading the file of region {number}: {e}"))?;
        if let Some((page, _)) = differing(&held, &memory[at..at + len]).runs().next() {
            return Err(format!("page {page} of region {number} is another one in its file"));
        }
    }
    Ok(())
}

pub(crate) fn the_process_is_told<B: GuestBench>(_: &str) -> Seen {
    let bench = B::new();
    if let Some(process) = bench.make(Side::Primary, Arc::new(Quiet)).process() {
        return Err(format!("before `start` it is {process}"));
    }
    let lab = Lab::<B>::running()?;
    let process = lab.guest.process();
    match process {
        Some(number) if !exists(number) => Err(format!("there is no process {number}")),
        _ if lab.guest.process() != process => Err("it changes".to_owned()),
        _ => Ok(()),
    }
}

pub(crate) fn it_starts_paused<B: GuestBench>(_: &str) -> Seen {
    let mut lab = Lab::<B>::primary()?;
    lab.expect_still("after `start`")?;
    lab.resume()?;
    lab.advance("after `resume`")
}

pub(crate) fn pause_stops_everything<B: GuestBench>(_: &str) -> Seen {
    let mut lab = Lab::<B>::running()?;
    for _ in 0..3 {
        lab.pause()?;
        lab.expect_still("after `pause`")?;
        lab.resume()?;
        lab.advance("after `pause` and `resume`")?;
    }
    Ok(())
}

pub(crate) fn pause_is_idempotent<B: GuestBench>(_: &str) -> Seen {
    let mut lab = Lab::<B>::running()?;
    for _ in 0..3 {
        lab.pause()?;
        lab.pause()?;
        lab.expect_still("after a second `pause`")?;
        lab.resume()?;
        lab.advance("after two of `pause` and one `resume`")?;
    }
    Ok(())
}

pub(crate) fn resume_is_idempotent<B: GuestBench>(_: &str) -> Seen {
    let mut lab = Lab::<B>::running()?;
    for _ in 0..3 {
        lab.resume()?;
        lab.resume()?;
        lab.advance("after `resume` of a guest that runs")?;
        lab.pause()?;
        lab.expect_still("after two of `resume` and one `pause`")?;
        lab.resume()?;
    }
    Ok(())
}

pub(crate) fn poll_is_silent_while_it_runs<B: GuestBench>(_: &str) -> Seen {
    let mut lab = Lab::<B>::running()?;
    for turn in 0..30 {
        if let Some(event) = done("`poll`", lab.guest.poll())? {
            return Err(format!("of a guest that runs, or is paused, it says {event:?}"));
        }
        match turn % 3 {
            0 => lab.advance("after `poll`")?,
            1 => lab.pause()?,
            _ => lab.resume()?,
        }
    }
    Ok(())
}

pub(crate) fn power_down_does_not_wait<B: GuestBench>(_: &str) -> Seen {
    let Lab { mut guest, memory, bench } = Lab::<B>::running()?;
    let (guest, answer) = within(B::PATIENCE, "`power_down`", move || {
        let answer = guest.power_down();
        (guest, answer)
    })?;
    done("`power_down`", answer)?;
    Lab { guest, memory, bench }.advance("after a `power_down` that it does not heed")
}

/// The guest has ended: nothing brings it back, and its process is gone.
fn expect_end<B: GuestBench>(lab: &mut Lab<B>, process: Option<u32>, when: &str) -> Seen {
    if let Some(process) = process.filter(|number| exists(*number)) {
        return Err(format!("{when}, there is still process {process}"));
    }
    let resumed = lab.guest.pause().and_then(|()| lab.guest.resume());
    if resumed.is_ok() {
        return Err(format!("{when}, `pause` and `resume` are carried out"));
    }
    lab.expect_still(when)
}

pub(crate) fn kill_ends_it_for_good<B: GuestBench>(_: &str) -> Seen {
    let mut lab = Lab::<B>::running()?;
    let process = lab.guest.process();
    for when in ["after `kill`", "after a second `kill`"] {
        done(format_args!("{when} it"), lab.guest.kill())?;
        expect_end(&mut lab, process, when)?;
    }
    match done("`poll`", lab.guest.poll())? {
        None => Ok(()),
        Some(event) => Err(format!("after `kill`, `poll` reports {event:?}")),
    }
}

pub(crate) fn dropping_ends_it<B: GuestBench>(_: &str) -> Seen {
    let lab = Lab::<B>::running()?;
    let process = lab.guest.process();
    let file = lab.guest.backing(0).map(|fd| fd.try_clone_to_owned());
    let file = file.transpose().map_err(|e| e.to_string())?.map(File::from);
    let pages = lab.memory.regions()[0].pages;
    let outlives = lab.guest.outlives();
    let Lab { guest, bench, .. } = lab;
    drop(guest);
    if let Some(process) = process.filter(|number| exists(*number) != outlives) {
        let is = if outlives { "is gone, though it outlives its value" } else { "is still there" };
        return Err(format!("after the guest was dropped, process {process} {is}"));
    }
    let Some(file) = file.filter(|_| !outlives) else { return Ok(()) };
    // The mapping is gone; the file is not.
    let read = || -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; pages as usize * PAGE_SIZE];
        file.read_exact_at(&mut bytes, 0).map_err(|e| e.to_string())?;
        Ok(bytes)
    };
    let before = read()?;
    for _ in 0..4 {
        if let Some((page, _)) = differing(&before, &read()?).runs().next() {
            return Err(format!("after the guest was dropped, page {page} of its file changed"));
        }
    }
    drop(bench);
    Ok(())
}

pub(crate) fn a_lost_guest_is_told<B: GuestBench>(_: &str) -> Seen {
    let mut lab = Lab::<B>::running()?;
    lab.bench.lose(&*lab.guest);
    let deadline = Instant::now() + B::PATIENCE;
    let event = loop {
        match done("`poll`", lab.guest.poll())? {
            Some(event) => break event,
            None if Instant::now() >= deadline => {
                return Err(format!("`poll` said nothing in {:?}", B::PATIENCE));
            }
            None => thread::sleep(Duration::from_millis(1)),
        }
    };
    if !matches!(event, GuestEvent::Lost { .. }) {
        return Err(format!("`poll` says {event:?}, not `Lost`"));
    }
    if let Some(event) = done("`poll` after that", lab.guest.poll())? {
        return Err(format!("after `Lost`, `poll` says {event:?}"));
    }
    expect_end(&mut lab, None, "after its process was gone")
}
