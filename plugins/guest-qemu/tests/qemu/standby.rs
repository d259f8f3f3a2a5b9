//! A standby's guest: an empty image, then a checkpoint that comes to life in it.

use crate::lab::{
    BUFFER, COUNTERS, FIRST_COUNTER, Lab, Program, Replica, boot, boot_disk, command, counter, difference,
    memory, new_guest, next_event, ok, region, until, until_counting,
};
use aventine_api::{Attachments, DiskAttachment, ErrorCode, GuestEvent, NetAttachment, PageBitmap, Side};
use std::io::Read;
use std::os::unix::net::UnixListener;

pub(crate) fn fill(lab: &Lab, image: &[u8]) {
    assert_eq!(region(&**lab).pages as usize * 4096, image.len());
    for (at, page) in image.chunks(4096).enumerate().filter(|(_, page)| page.iter().any(|&byte| byte != 0)) {
        // SAFETY: inside the region, which a standby may write; its guest does not run.
        unsafe { region(&**lab).host.as_ptr().add(at * 4096).copy_from_nonoverlapping(page.as_ptr(), 4096) };
    }
}

/// All counters of one moment: the first ones are a round ahead of the rest, as far as the guest had come.
fn assert_consistent(lab: &Lab) {
    let counters = (0..COUNTERS).map(|page| counter(&**lab, page)).collect::<Vec<_>>();
    assert!(
        counters.is_sorted_by(|a, b| a >= b) && counters[0] - counters[COUNTERS - 1] <= 1,
        "{counters:?}"
    );
}

#[test]
fn a_checkpoint_comes_to_life_and_counts_on() {
    let mut primary = boot(Side::Primary, Program::Count);
    let mut standby = boot(Side::Standby, Program::Count);
    assert!(memory(&*standby).iter().all(|&byte| byte == 0));
    assert_eq!(standby.pause().unwrap_err().code(), ErrorCode::Internal);
    assert_eq!(standby.resume().unwrap_err().code(), ErrorCode::Internal);
    let mut pages = PageBitmap::new(4096);
    assert_eq!(standby.dirty(&mut pages).unwrap_err().code(), ErrorCode::Internal);
    assert_eq!(standby.populated(&mut pages).unwrap_err().code(), ErrorCode::Internal);

    let mut replica = Replica::new(&*primary);
    replica.copy_all(&mut *primary);
    ok(primary.resume());
    until_counting(&*primary);
    for _ in 0..20 {
        ok(primary.resume());
        let before = counter(&*primary, 0);
        until("counting", || counter(&*primary, 0) > before + 1);
        replica.checkpoint(&mut *primary);
    }
    // Goes on after the checkpoint: none of it may be seen on the standby.
    ok(primary.resume());
    let at_checkpoint = u32::from_le_bytes(replica.image[0x10000..0x10004].try_into().unwrap());
    until("counting", || counter(&*primary, 0) > at_checkpoint + 1);
    ok(primary.kill());

    fill(&standby, &replica.image);
    ok(standby.activate(&replica.state));
    until("counting", || counter(&*standby, 0) > at_checkpoint + 20);
    ok(standby.pause());
    assert_consistent(&standby);
    assert!(
        (0x10..0x18).contains(&memory(&*standby)[BUFFER * 4096 + 8])
            || memory(&*standby)[BUFFER * 4096] == 0x31
    );
    // From here on it is a guest like any other.
    let mut state = Vec::new();
    ok(standby.start_state());
    ok(standby.finish_state(&mut state));
    assert!(!state.is_empty());
    let before = counter(&*standby, 0);
    ok(standby.resume());
    until("counting", || counter(&*standby, 0) > before);
    assert_eq!(standby.activate(&state).unwrap_err().code(), ErrorCode::Internal);
    assert_eq!(ok(standby.poll()), None);
    crate::lab::kill_process(&*standby);
    assert!(matches!(next_event(&mut *standby), GuestEvent::Lost { .. }));
}

/// A page that the guest never touches, and that only the owner of the image fills.
const FOREIGN: u64 = 0xc00;

/// The survivor is a primary: from the first moment on its dirty pages are what differs from the checkpoint, and no
/// more than QEMU wrote; and the next standby comes to life from what they tell.
#[test]
fn a_guest_that_was_taken_over_can_be_protected_again() {
    let mut guest = boot(Side::Primary, Program::Count);
    let mut replica = Replica::new(&*guest);
    ok(guest.resume());
    until_counting(&*guest);
    replica.copy_all(&mut *guest);
    replica.checkpoint(&mut *guest);
    for _generation in 0..3 {
        let mut standby = boot(Side::Standby, Program::Count);
        let foreign = FOREIGN as usize * 4096;
        replica.image[foreign..foreign + 4 * 4096].fill(0x77);
        fill(&standby, &replica.image);
        ok(guest.kill());
        ok(standby.activate(&replica.state));
        let mut known = PageBitmap::new(replica.dirty.pages());
        ok(standby.populated(&mut known));
        assert!(known.contains(FOREIGN) && known.count() < 2048, "{}", known.count());
        let mut first = PageBitmap::new(replica.dirty.pages());
        for round in 0..100 {
            if round > 0 {
                ok(standby.resume());
                let before = counter(&*standby, 0);
                until("another round", || counter(&*standby, 0) != before);
            }
            replica.checkpoint(&mut *standby);
            assert_eq!(difference(&replica.image, memory(&*standby)), None, "round {round}");
            first.merge(&replica.dirty);
        }
        assert!((0..COUNTERS).all(|page| first.contains((FIRST_COUNTER + page) as u64)));
        assert!((FOREIGN..FOREIGN + 4).all(|page| !first.contains(page)), "nobody wrote it");
        assert_eq!(replica.checkpoint(&mut *standby), 0);

        // A full copy, for a standby that holds nothing.
        replica = Replica::new(&*standby);
        ok(standby.resume());
        replica.copy_all(&mut *standby);
        replica.checkpoint(&mut *standby);
        assert_eq!(difference(&replica.image, memory(&*standby)), None);
        guest = standby;
    }
}

#[test]
fn a_damaged_state_is_an_error_and_the_guest_does_not_run() {
    let mut primary = boot(Side::Primary, Program::Count);
    let mut replica = Replica::new(&*primary);
    replica.copy_all(&mut *primary);
    replica.checkpoint(&mut *primary);
    for state in [&replica.state[..replica.state.len() / 2], b"nonsense", b""] {
        let mut standby = boot(Side::Standby, Program::Count);
        fill(&standby, &replica.image);
        let error = standby.activate(state).unwrap_err();
        assert_eq!(error.code(), ErrorCode::PeerLost, "{}", error.chain());
        assert!(error.chain().contains("QEMU was exited with status 1"), "{}", error.chain());
        assert!(!std::fs::exists(format!("/proc/{}", standby.process().unwrap())).unwrap());
    }
}

/// Networks and disks on sockets whose names need care; the guest boots from the disk.
#[test]
fn attachments_reach_the_devices_of_the_command() {
    let line = ["-device", "virtio-net-pci,netdev=net0", "-device", "virtio-blk-pci,drive=disk0"];
    let mut lab = new_guest(Side::Primary, &command(&line));
    let dir = lab.dir.path().to_owned();
    std::fs::write(dir.join("disk.img"), boot_disk(Program::Count)).unwrap();
    let listener = UnixListener::bind(dir.join("net,0=\".sock")).unwrap();
    let socket = dir.join("disk,0.sock");
    let mut nbd = std::process::Command::new("qemu-nbd")
        .args(["--format=raw", "--export-name=disk0", "--socket"])
        .args([&socket, &dir.join("disk.img")])
        // It reports the end of its clients as an error.
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("qemu-nbd is installed (apt install qemu-utils)");
    until("an export", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let attachments = Attachments {
        networks: vec![("net0".into(), NetAttachment::Stream(dir.join("net,0=\".sock")))],
        disks: vec![("disk0".into(), DiskAttachment::Nbd(socket))],
    };
    ok(lab.start(&attachments));
    let (mut network, _) = listener.accept().unwrap();
    ok(lab.resume());
    until_counting(&*lab);
    ok(lab.kill());
    network.read_to_end(&mut Vec::new()).unwrap();
    // One client was the probe above, and without --persistent the server has ended with it or ends with QEMU.
    let _ended = nbd.kill();
    nbd.wait().unwrap();
}

/// The firmware of a guest that was taken over is there when it is needed again.
#[test]
fn a_guest_that_was_taken_over_can_reboot() {
    let mut primary = boot(Side::Primary, Program::Reboot);
    let mut replica = Replica::new(&*primary);
    replica.copy_all(&mut *primary);
    ok(primary.resume());
    assert_eq!(next_event(&mut *primary), GuestEvent::Rebooted);
    replica.checkpoint(&mut *primary);
    ok(primary.kill());
    let mut standby = boot(Side::Standby, Program::Reboot);
    fill(&standby, &replica.image);
    ok(standby.activate(&replica.state));
    for _ in 0..3 {
        assert_eq!(next_event(&mut *standby), GuestEvent::Rebooted);
    }
}
