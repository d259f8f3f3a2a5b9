//! The plugin through its trait, with real sockets at both ends.

mod attract;
mod copies;

use super::*;
use aventine_api::Host;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Longer than anything here takes, shorter than a person waits.
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, PartialEq)]
enum Said {
    Epoch,
    Failed(ErrorCode),
}

struct Listening(Sender<Said>);

impl Host for Listening {
    fn request_epoch(&self) {
        self.0.send(Said::Epoch).unwrap();
    }
    fn staged(&self, _: Epoch) {}
    fn failed(&self, error: PluginError) {
        self.0.send(Said::Failed(error.code())).unwrap();
    }
}

struct Rig {
    plugin: Userspace,
    guest: UnixStream,
    world: UnixStream,
    said: Receiver<Said>,
    _dir: tempfile::TempDir,
}

fn context(side: Side, dir: &std::path::Path, said: Sender<Said>) -> Context {
    Context {
        guest: "g".into(),
        id: "net0".into(),
        side,
        state_dir: dir.to_owned(),
        config_dir: dir.to_owned(),
        host: Arc::new(Listening(said)),
    }
}

fn rig(side: Side) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let uplink = UnixListener::bind(dir.path().join("up")).unwrap();
    let (tx, said) = channel();
    let config = "uplink = { stream = 'up' }\nlimit = '1MiB'";
    let plugin = Userspace::new(config, context(side, dir.path(), tx)).unwrap();
    let NetAttachment::Stream(path) = plugin.attachment() else { panic!("a stream") };
    let guest = UnixStream::connect(path).unwrap();
    let world = uplink.accept().unwrap().0;
    for socket in [&guest, &world] {
        socket.set_read_timeout(Some(LIMIT)).unwrap();
    }
    await_guest(&plugin);
    Rig { plugin, guest, world, said, _dir: dir }
}

fn await_guest(plugin: &Userspace) {
    while plugin.pump.with(|p| !p.has_guest()) {
        std::thread::yield_now();
    }
}

fn send(to: &mut UnixStream, number: u32, length: usize) {
    let mut frame = (length as u32).to_be_bytes().to_vec();
    frame.resize(4 + length, 0);
    frame[4..8].copy_from_slice(&number.to_be_bytes());
    to.write_all(&frame).unwrap();
}

fn receive(from: &mut UnixStream) -> u32 {
    let mut head = [0; 8];
    from.read_exact(&mut head).unwrap();
    let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    from.read_exact(&mut vec![0; length - 4]).unwrap();
    u32::from_be_bytes([head[4], head[5], head[6], head[7]])
}

/// Nothing leaves: a marker that the world sends comes back through the guest's side only after the thread has looked
/// at everything before it, and then nothing is there to read.
fn assert_quiet(rig: &mut Rig) {
    send(&mut rig.world, 4_000_000, 60);
    assert_eq!(receive(&mut rig.guest), 4_000_000);
    rig.world.set_nonblocking(true).unwrap();
    let read = rig.world.read(&mut [0; 1]);
    rig.world.set_nonblocking(false).unwrap();
    assert_eq!(read.unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn frames_leave_with_the_release_of_their_epoch_and_in_order() {
    let mut rig = rig(Side::Primary);
    send(&mut rig.guest, 1, 60);
    assert_eq!(receive(&mut rig.world), 1, "not engaged: passes");
    rig.plugin.engage().unwrap();
    for epoch in 1..=3u32 {
        (0..5).for_each(|i| send(&mut rig.guest, epoch * 10 + i, 60 + 300 * i as usize));
        rig.plugin.seal(Epoch(epoch.into())).unwrap();
    }
    send(&mut rig.guest, 99, 60);
    assert_quiet(&mut rig);
    rig.plugin.release(Epoch(2)).unwrap();
    rig.plugin.release(Epoch(2)).unwrap();
    rig.plugin.release(Epoch(1)).unwrap();
    let first: Vec<_> = (0..10).map(|_| receive(&mut rig.world)).collect();
    assert_eq!(first, [10, 11, 12, 13, 14, 20, 21, 22, 23, 24]);
    assert_quiet(&mut rig);
    assert_eq!(rig.plugin.stats().held_frames, 6);
    rig.plugin.seal(Epoch(4)).unwrap();
    rig.plugin.release(Epoch(4)).unwrap();
    assert_eq!((0..6).map(|_| receive(&mut rig.world)).collect::<Vec<_>>(), [30, 31, 32, 33, 34, 99]);
    let stats = rig.plugin.stats();
    assert_eq!((stats.sent_frames, stats.held_frames, stats.held_bytes, stats.dropped_frames), (17, 0, 0, 0));
}

#[test]
fn epoch_borders_are_exact_under_a_flood() {
    let mut rig = rig(Side::Primary);
    rig.plugin.engage().unwrap();
    let mut next = 0;
    for epoch in 1..=200u64 {
        let from = next;
        for _ in 0..epoch % 17 {
            send(&mut rig.guest, next, 60 + (next as usize * 37) % 1400);
            next += 1;
        }
        rig.plugin.seal(Epoch(epoch)).unwrap();
        send(&mut rig.guest, next, 60); // the next epoch's first frame
        next += 1;
        rig.plugin.release(Epoch(epoch)).unwrap();
        let due = if epoch == 1 { from } else { from - 1 };
        (due..next - 1).for_each(|n| assert_eq!(receive(&mut rig.world), n));
        assert_quiet(&mut rig);
    }
}

#[test]
fn the_limit_asks_for_an_epoch_and_holds_back_the_guest_without_loss() {
    let mut rig = rig(Side::Primary);
    rig.plugin.engage().unwrap();
    let mut guest = rig.guest.try_clone().unwrap();
    let frames = 4000u32; // 6 MB against a limit of 1 MiB
    let sender = std::thread::spawn(move || (0..frames).for_each(|n| send(&mut guest, n, 1500)));
    let mut world = rig.world.try_clone().unwrap();
    let reader = std::thread::spawn(move || (0..frames).for_each(|n| assert_eq!(receive(&mut world), n)));
    let mut epoch = 0;
    while !sender.is_finished() || rig.plugin.stats().sent_frames < frames.into() {
        if let Ok(said) = rig.said.recv_timeout(Duration::from_millis(10)) {
            assert_eq!(said, Said::Epoch);
        }
        assert!(rig.plugin.stats().held_bytes <= (1 << 20) + (512 << 10), "bounded");
        epoch += 1;
        rig.plugin.seal(Epoch(epoch)).unwrap();
        rig.plugin.release(Epoch(epoch)).unwrap();
    }
    sender.join().unwrap();
    reader.join().unwrap();
    assert_eq!(rig.plugin.stats().dropped_frames, 0);
}

#[test]
fn a_full_buffer_asks_once_for_each_epoch() {
    let mut rig = rig(Side::Primary);
    rig.plugin.engage().unwrap();
    (0..400).for_each(|n| send(&mut rig.guest, n, 1500));
    assert_eq!(rig.said.recv_timeout(LIMIT), Ok(Said::Epoch));
    rig.plugin.seal(Epoch(1)).unwrap();
    assert!(rig.said.try_recv().is_err());
}

#[test]
fn the_owner_lets_everything_out_and_the_other_nothing() {
    let mut owner = rig(Side::Primary);
    owner.plugin.engage().unwrap();
    send(&mut owner.guest, 1, 60);
    owner.plugin.seal(Epoch(1)).unwrap();
    send(&mut owner.guest, 2, 60);
    owner.plugin.seal(Epoch(2)).unwrap();
    owner.plugin.disengage(Disengage::Owner).unwrap();
    owner.plugin.disengage(Disengage::NotOwner).unwrap();
    send(&mut owner.guest, 3, 60);
    assert_eq!([1, 2, 3].map(|_| receive(&mut owner.world)), [1, 2, 3]);

    let mut other = rig(Side::Primary);
    other.plugin.engage().unwrap();
    send(&mut other.guest, 1, 60);
    other.plugin.seal(Epoch(1)).unwrap();
    other.plugin.disengage(Disengage::NotOwner).unwrap();
    other.plugin.disengage(Disengage::Owner).unwrap();
    other.plugin.release(Epoch(1)).unwrap();
    send(&mut other.guest, 2, 60);
    drop(other.plugin);
    assert_eq!(other.world.read(&mut [0; 1]).unwrap(), 0, "the connection ends and nothing came before");
}

#[test]
fn nothing_leaves_a_stuck_uplink_once_the_other_side_owns_the_guest() {
    let mut rig = rig(Side::Primary);
    rig.plugin.engage().unwrap();
    // More than the uplink's socket takes, so that some of it waits behind the socket.
    (0..600).for_each(|n| send(&mut rig.guest, n, 1500));
    rig.plugin.seal(Epoch(1)).unwrap();
    rig.plugin.release(Epoch(1)).unwrap();
    let in_socket = rig.plugin.stats().sent_frames;
    rig.plugin.disengage(Disengage::NotOwner).unwrap();
    let mut seen = Vec::new();
    rig.world.read_to_end(&mut seen).unwrap();
    assert!(seen.len() < 600 * 1504, "{} bytes of {in_socket} frames", seen.len());
}

#[test]
fn a_stuck_uplink_does_not_stop_the_guest() {
    let mut rig = rig(Side::Primary);
    rig.plugin.engage().unwrap();
    (0..600).for_each(|n| send(&mut rig.guest, n, 1500));
    rig.plugin.seal(Epoch(1)).unwrap();
    rig.plugin.disengage(Disengage::Owner).unwrap(); // returns although nobody reads
    assert_eq!((0..600).map(|_| receive(&mut rig.world)).collect::<Vec<_>>(), (0..600).collect::<Vec<_>>());
}

#[test]
fn a_new_session_holds_again_and_counts_anew() {
    let mut rig = rig(Side::Primary);
    for session in 0..3 {
        rig.plugin.engage().unwrap();
        send(&mut rig.guest, session * 10, 60);
        rig.plugin.seal(Epoch(1)).unwrap();
        send(&mut rig.guest, session * 10 + 1, 60);
        assert_quiet(&mut rig);
        rig.plugin.release(Epoch(1)).unwrap();
        assert_eq!(receive(&mut rig.world), session * 10);
        assert_quiet(&mut rig);
        rig.plugin.disengage(Disengage::Owner).unwrap();
        assert_eq!(receive(&mut rig.world), session * 10 + 1);
    }
    rig.plugin.engage().unwrap();
    rig.plugin.disengage(Disengage::NotOwner).unwrap();
    assert_eq!(rig.plugin.engage().unwrap_err().code(), ErrorCode::Refused);
}

#[test]
fn a_standby_is_silent_until_it_takes_over() {
    let mut rig = rig(Side::Standby);
    send(&mut rig.guest, 1, 60);
    send(&mut rig.world, 2, 60);
    // Both were read before the guest came back: its end is seen after its frames.
    rig.guest.shutdown(std::net::Shutdown::Both).unwrap();
    while rig.plugin.pump.with(|p| p.has_guest()) {
        std::thread::yield_now();
    }
    let NetAttachment::Stream(path) = rig.plugin.attachment() else { panic!("a stream") };
    rig.guest = UnixStream::connect(path).unwrap();
    rig.guest.set_read_timeout(Some(LIMIT)).unwrap();
    await_guest(&rig.plugin);
    rig.plugin.activate(Epoch(1)).unwrap();
    send(&mut rig.guest, 3, 60);
    send(&mut rig.world, 4, 60);
    assert_eq!(receive(&mut rig.world), 3);
    let inbound = receive(&mut rig.guest);
    assert!(inbound == 4 || inbound == 2, "{inbound}");
}

#[test]
fn a_lost_uplink_and_a_hostile_guest_are_reported() {
    let mut rig = rig(Side::Primary);
    rig.guest.write_all(&[0xff; 64]).unwrap();
    assert_eq!(rig.said.recv_timeout(LIMIT), Ok(Said::Failed(ErrorCode::Corrupt)));
    rig.world.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(rig.said.recv_timeout(LIMIT), Ok(Said::Failed(ErrorCode::Io)));
}

#[test]
fn a_missing_device_says_how_to_make_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = "uplink = { tap = 'no-such-tap' }";
    let error = Userspace::new(config, context(Side::Primary, dir.path(), channel().0)).err().unwrap();
    assert!(error.to_string().contains("ip tuntap add dev no-such-tap mode tap"), "{error}");
}

/// A real tap, in a network namespace of this thread's own, seen from outside by a packet socket.
#[test]
fn a_real_tap_carries_released_frames_only() {
    std::thread::spawn(|| {
        let flags = rustix::thread::UnshareFlags::NEWNET;
        // SAFETY: only this thread's network namespace changes.
        let unshared = unsafe { rustix::thread::unshare_unsafe(flags) };
        assert!(unshared.is_ok(), "this test makes a network namespace and needs root: {unshared:?}");
        let ip = |args: &str| {
            let status = std::process::Command::new("ip").args(args.split(' ')).status().unwrap();
            assert!(status.success(), "ip {args}");
        };
        ip("tuntap add dev tap-t mode tap");
        ip("link set tap-t up");
        let sniffer = rustix::net::socket_with(
            rustix::net::AddressFamily::PACKET,
            rustix::net::SocketType::RAW,
            rustix::net::SocketFlags::empty(),
            Some(rustix::net::Protocol::from_raw(rustix::net::RawProtocol::new(0x0300).unwrap())),
        )
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (tx, _said) = channel();
        let mut plugin =
            Userspace::new("uplink = { tap = 'tap-t' }", context(Side::Primary, dir.path(), tx)).unwrap();
        let NetAttachment::Stream(path) = plugin.attachment() else { panic!("a stream") };
        let mut guest = UnixStream::connect(path).unwrap();
        plugin.engage().unwrap();
        await_guest(&plugin);
        // An ethertype of its own tells the guest's frames from the kernel's.
        let frame = |n: u8| {
            let mut f = vec![0, 0, 0, 60];
            f.extend([0xff; 6]);
            f.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5, n]);
            f.resize(64, 0);
            f
        };
        let next = || {
            let mut bytes = [0; 2048];
            loop {
                let got = rustix::io::read(&sniffer, &mut bytes).unwrap();
                if got >= 15 && bytes[12..14] == [0x88, 0xb5] {
                    return bytes[14];
                }
            }
        };
        guest.write_all(&frame(1)).unwrap();
        plugin.seal(Epoch(1)).unwrap();
        guest.write_all(&frame(2)).unwrap();
        plugin.seal(Epoch(2)).unwrap();
        assert_eq!(plugin.stats().sent_frames, 0);
        plugin.release(Epoch(1)).unwrap();
        assert_eq!(next(), 1);
        assert_eq!(plugin.stats().held_frames, 1);
        plugin.disengage(Disengage::Owner).unwrap();
        assert_eq!(next(), 2);
    })
    .join()
    .unwrap();
}

/// A VM that runs already listens; the buffer connects, also anew, and on the standby listens as ever.
#[test]
fn a_guest_that_listens_is_connected_to_until_it_answers() {
    let dir = tempfile::tempdir().unwrap();
    let uplink = UnixListener::bind(dir.path().join("up")).unwrap();
    let config = "uplink = { stream = 'up' }\nguest = 'vm'";
    let (tx, _said) = channel();
    let plugin = Userspace::new(config, context(Side::Primary, dir.path(), tx.clone())).unwrap();
    assert_eq!(plugin.attachment(), NetAttachment::Served(dir.path().join("vm")));
    let mut world = uplink.accept().unwrap().0;
    world.set_read_timeout(Some(LIMIT)).unwrap();
    let listener = UnixListener::bind(dir.path().join("vm")).unwrap();
    for _ in 0..2 {
        let mut guest = listener.accept().unwrap().0;
        guest.write_all(&[0, 0, 0, 3, 1, 2, 3]).unwrap();
        let mut frame = [0; 7];
        world.read_exact(&mut frame).unwrap();
        assert_eq!(frame, [0, 0, 0, 3, 1, 2, 3]);
    }
    drop(plugin);
    assert!(dir.path().join("vm").exists(), "the guest's socket is not ours to remove");
    let plugin = Userspace::new(config, context(Side::Standby, dir.path(), tx)).unwrap();
    assert_eq!(plugin.attachment(), NetAttachment::Stream(dir.path().join("net0.sock")));
}
