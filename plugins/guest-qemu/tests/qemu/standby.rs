//! A standby's guest: an empty image, then a checkpoint that comes to life in it.

use crate::lab::{
    BUFFER, COUNTERS, Lab, Program, Replica, boot, boot_disk, command, counter, memory, new_guest,
    next_event, ok, region, until, until_counting,
};
use aventine_api::{Attachments, ErrorCode, GuestEvent, NetAttachment, Side};
use std::io::Read;
use std::os::unix::net::UnixListener;

fn fill(lab: &Lab, image: &[u8]) {
    assert_eq!(region(&**lab).pages as usize * 4096, image.len());
    // SAFETY: inside the region, which a standby may write; its guest does not run.
    unsafe { std::ptr::copy_nonoverlapping(image.as_ptr(), region(&**lab).host.as_ptr(), image.len()) };
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

    let mut replica = Replica::new(&*primary);
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
    let error = standby.dirty(&mut aventine_api::PageBitmap::new(4096)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Refused);
    assert_eq!(standby.activate(&state).unwrap_err().code(), ErrorCode::Internal);
    assert_eq!(ok(standby.poll()), None);
    crate::lab::kill_process(&*standby);
    assert!(matches!(next_event(&mut *standby), GuestEvent::Lost { .. }));
}

#[test]
fn a_damaged_state_is_an_error_and_the_guest_does_not_run() {
    let mut primary = boot(Side::Primary, Program::Count);
    let mut replica = Replica::new(&*primary);
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
        disks: vec![("disk0".into(), socket)],
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
