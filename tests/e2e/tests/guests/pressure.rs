//! A guest that changes its memory faster than the link carries it: for 15 seconds, or 60 with `AVENTINE_LONG=1`.

use crate::common::*;
use aventine_demo::checker::Load;
use aventine_demo::lab::{Lab, Pair, Parts};
use std::env;
use std::fs;
use std::time::{Duration, Instant};

/// What the link carries, in bytes a second.
const LINK: u64 = 40 << 20;
/// Pages that the guest keeps dirty: 32 MiB.
const PAGES: u64 = 8192;
/// Staging memory of each side, in bytes.
const STAGING: u64 = 64 << 20;
/// RAM of the guest, which is as large as a checkpoint can be.
const RAM: u64 = 128 << 20;
/// The most that the network buffer holds.
const NETWORK: u64 = 64 << 20;
/// What else a controller may need: its program, its threads, and the disk's records.
const REST: u64 = 64 << 20;

/// Bytes of a process' own memory: not the guest's, which is shared.
fn own_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// What must go on, whatever the pressure: epochs, the guest's passes over its memory, a client's answers.
fn progress(pair: &Pair, inside: &mut Workload, load: &Load) -> [u64; 3] {
    [pair.primary.status().unwrap().committed, inside.ask("passes", "passed"), load.answers()]
}

#[test]
fn a_guest_that_outruns_its_link_is_slowed_down_and_nothing_grows() {
    let time = Duration::from_secs(if env::var_os("AVENTINE_LONG").is_some() { 60 } else { 15 });
    let lab = Lab::new(&Parts { staging: "64MiB".into(), ..parts("pressure") }).unwrap();
    let (mut pair, load) = with_load(&lab);
    let mut inside = Workload::connect(&lab);
    lab.network().limit(LINK).unwrap();
    inside.ask(&format!("dirty {PAGES}"), "dirtying");
    let limits = [STAGING + NETWORK + REST, STAGING + RAM + REST];
    let (begin, mut most) = (Instant::now(), [0; 2]);
    while begin.elapsed() < time {
        // All three, again and again.
        let before = progress(&pair, &mut inside, &load);
        let end = Instant::now() + LIMIT;
        loop {
            let status = pair.primary.status().unwrap();
            assert_eq!(status.state, "protected", "{}", pair.primary.log());
            assert!(status.held_bytes <= NETWORK, "{status:?}");
            for ((most, node), limit) in most.iter_mut().zip([&pair.primary, &pair.standby]).zip(limits) {
                *most = own_memory(node.pid()).max(*most);
                assert!(*most <= limit, "{most} of {limit} bytes\n{}", node.log());
            }
            // The question's answer, too, waits for an epoch, and the epoch for the link.
            let now = progress(&pair, &mut inside, &load);
            if before.iter().zip(now).all(|(before, now)| now > *before) {
                break;
            }
            assert!(Instant::now() < end, "{before:?} to {now:?}\n{}", pair.primary.log());
        }
    }
    let dirty = pair.primary.status().unwrap().dirty_pages;
    assert!(dirty.max >= PAGES, "the guest's memory was never all dirty: {dirty:?}");
    let last = progress(&pair, &mut inside, &load);
    println!("most own memory: {most:?} of {limits:?} bytes; epochs, passes, answers: {last:?}");
    pair.fail_over(false).unwrap();
    assert!(inside.ask("passes", "passed") >= last[1]);
    assert_undisturbed(&finish(&lab, load));
}
