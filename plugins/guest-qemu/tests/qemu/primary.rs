//! A protected guest on the primary: pausing, dirty pages, device state, and every way to end.

use crate::lab::{
    BUFFER, COUNTERS, Program, Replica, boot, counter, difference, kill_process, memory, next_event, ok,
    region, until, until_counting,
};
use aventine_api::{ErrorCode, GuestEvent, PageBitmap, Side};

/// The union of all dirty pages over an empty image is the memory, at every pause, from firmware to a guest that writes
/// memory by itself, by its devices and by the host's kernel (virtio-blk reads).
#[test]
fn dirty_pages_miss_nothing() {
    let mut lab = boot(Side::Primary, Program::Count);
    let mut replica = Replica::new(&*lab);
    replica.copy_all(&mut *lab);
    assert!(replica.dirty.count() < 1024, "an untouched page counts as populated");
    assert_eq!(replica.checkpoint(&mut *lab), 0, "a guest that has not run yet has written nothing");
    let mut most = 0;
    let mut sectors = std::collections::BTreeSet::new();
    for round in 0..300 {
        ok(lab.resume());
        if round == 100 {
            until_counting(&*lab);
        }
        if round > 100 {
            let before = counter(&*lab, 0);
            until("another round", || counter(&*lab, 0) != before);
        }
        if round % 3 == 0 {
            replica.copy(&mut *lab);
        }
        most = most.max(replica.checkpoint(&mut *lab));
        assert_eq!(difference(&replica.image, memory(&*lab)), None, "round {round}");
        assert!(!replica.state.is_empty());
        sectors.insert(replica.image[BUFFER * 4096]);
    }
    assert!(most as usize >= COUNTERS, "{most}");
    assert!(sectors.len() > 2, "the guest read its disk: {sectors:x?}");
    assert_eq!(
        replica.checkpoint(&mut *lab),
        0,
        "a paused guest dirties nothing, and saving its state neither"
    );
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    let mut lab = boot(Side::Primary, Program::Count);
    ok(lab.resume());
    ok(lab.resume());
    until_counting(&*lab);
    for _ in 0..20 {
        ok(lab.pause());
        ok(lab.pause());
        let still = memory(&*lab).to_vec();
        let mut state = Vec::new();
        ok(lab.start_state());
        ok(lab.start_state());
        ok(lab.finish_state(&mut state));
        assert!(state.starts_with(b"QEVM"));
        assert_eq!(difference(&still, memory(&*lab)), None);
        let before = counter(&*lab, 0);
        ok(lab.resume());
        until("counting", || counter(&*lab, 0) > before);
    }
    // A state that nobody waits for disturbs nothing.
    ok(lab.pause());
    ok(lab.start_state());
    ok(lab.resume());
    let before = counter(&*lab, 0);
    until("counting", || counter(&*lab, 0) > before);
    assert_eq!(ok(lab.poll()), None);
}

#[test]
fn calls_out_of_order_are_refused() {
    let mut lab = boot(Side::Primary, Program::Count);
    assert_eq!(lab.start(&Default::default()).unwrap_err().code(), ErrorCode::Internal);
    assert_eq!(lab.finish_state(&mut Vec::new()).unwrap_err().code(), ErrorCode::Internal);
    assert_eq!(lab.activate(&[]).unwrap_err().code(), ErrorCode::Internal);
    ok(lab.resume());
    assert_eq!(lab.start_state().unwrap_err().code(), ErrorCode::Internal);
}

#[test]
fn a_shutdown_a_reboot_and_a_loss_are_told_apart() {
    let mut lab = boot(Side::Primary, Program::ShutDown);
    ok(lab.resume());
    assert_eq!(next_event(&mut *lab), GuestEvent::ShutDown);
    assert_eq!(ok(lab.poll()), None);

    let mut lab = boot(Side::Primary, Program::Reboot);
    ok(lab.resume());
    for _ in 0..3 {
        assert_eq!(next_event(&mut *lab), GuestEvent::Rebooted);
    }
    kill_process(&*lab);
    let lost = loop {
        match next_event(&mut *lab) {
            GuestEvent::Rebooted => {}
            other => break other,
        }
    };
    assert_eq!(lost, GuestEvent::Lost { how: "QEMU was killed by signal 9".into() });
    assert_eq!(ok(lab.poll()), None);
}

/// SIGTERM is what a host sends that shuts down: QEMU exits in good order, but the guest did not ask for it.
#[test]
fn an_end_by_the_host_is_a_loss() {
    let mut lab = boot(Side::Primary, Program::Count);
    ok(lab.resume());
    let pid = rustix::process::Pid::from_raw(lab.process().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let GuestEvent::Lost { how } = next_event(&mut *lab) else { panic!("not a loss") };
    assert!(how.contains("host-signal"), "{how}");
}

/// Whatever the engine was doing when QEMU died, the call fails at once and no epoch is completed.
#[test]
fn a_death_in_the_middle_of_an_epoch_fails_the_epoch() {
    for step in ["pause", "state", "dirty"] {
        let mut lab = boot(Side::Primary, Program::Count);
        ok(lab.resume());
        until_counting(&*lab);
        let mut dirty = PageBitmap::new(region(&*lab).pages);
        let error = match step {
            "pause" => {
                kill_process(&*lab);
                lab.pause().unwrap_err()
            }
            "state" => {
                ok(lab.pause());
                ok(lab.start_state());
                ok(lab.dirty(&mut dirty));
                kill_process(&*lab);
                // The state may have been complete before the kill; the next call cannot succeed.
                lab.finish_state(&mut Vec::new()).and_then(|()| lab.resume()).unwrap_err()
            }
            _ => {
                ok(lab.pause());
                ok(lab.start_state());
                kill_process(&*lab);
                // It may answer while the process is not gone yet, never once its memory is.
                let mut failed = None;
                until("an error", || {
                    failed = lab.dirty(&mut dirty).err();
                    failed.is_some()
                });
                failed.unwrap()
            }
        };
        assert_eq!(error.code(), ErrorCode::PeerLost, "{step}: {}", error.chain());
        assert!(error.chain().contains("signal 9"), "{step}: {}", error.chain());
        assert_eq!(ok(lab.poll()), Some(GuestEvent::Lost { how: "QEMU was killed by signal 9".into() }));
    }
}

#[test]
fn kill_ends_it_for_good() {
    let mut lab = boot(Side::Primary, Program::Count);
    ok(lab.resume());
    let process = format!("/proc/{}", lab.process().unwrap());
    ok(lab.kill());
    assert!(!std::fs::exists(&process).unwrap());
    ok(lab.kill());
    assert_eq!(ok(lab.poll()), None, "an end that was asked for is no loss");
    assert_eq!(lab.pause().unwrap_err().code(), ErrorCode::PeerLost);

    let mut lab = boot(Side::Primary, Program::Count);
    ok(lab.resume());
    let process = format!("/proc/{}", lab.process().unwrap());
    drop(lab);
    assert!(!std::fs::exists(&process).unwrap());
}

/// The thread that started QEMU stands for the whole controller: the kernel watches it alone.
#[test]
fn qemu_ends_with_the_thread_that_started_it() {
    let starter = std::thread::spawn(|| {
        let mut lab = boot(Side::Primary, Program::Count);
        ok(lab.resume());
        lab
    });
    let mut lab = starter.join().unwrap();
    assert_eq!(next_event(&mut *lab), GuestEvent::Lost { how: "QEMU was killed by signal 9".into() });
}
