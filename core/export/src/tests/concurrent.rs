//! Requests of one connection at the same time.

use super::{Memory, pattern};
use crate::buffer::Budget;
use crate::handshake::Agreed;
use crate::transmission::serve;
use aventine_api::{BlockDevice, PluginError};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

/// As many as are carried out at a time.
const MANY: usize = 16;

/// A slow device, whose reads wait for each other once they are told to.
struct Slow {
    memory: Arc<Memory>,
    meeting: Barrier,
    /// How many are under way, and how many were at most.
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Slow {
    fn new(size: usize) -> Slow {
        let [now, most] = [0, 0].map(AtomicUsize::new);
        Slow { memory: Memory::new(size), meeting: Barrier::new(MANY), now, most }
    }
}

impl BlockDevice for Slow {
    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), PluginError> {
        if offset > 0 {
            self.meeting.wait();
        }
        thread::sleep(Duration::from_millis(1));
        self.memory.read(offset, buf)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), PluginError> {
        self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(1));
        let done = self.memory.write(offset, data, fua);
        self.now.fetch_sub(1, Ordering::SeqCst);
        done
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool, fua: bool) -> Result<(), PluginError> {
        self.memory.write_zeroes(offset, len, may_unmap, fua)
    }

    fn trim(&self, offset: u64, len: u64) -> Result<(), PluginError> {
        self.memory.trim(offset, len)
    }

    fn flush(&self) -> Result<(), PluginError> {
        self.memory.flush()
    }
}

fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// A client's end of a served connection.
fn served<T>(device: &Slow, client: impl FnOnce(&mut UnixStream) -> T) -> T {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    thread::scope(|scope| {
        let serving = scope.spawn(move || {
            let (mut input, mut output) = (&ours, &ours);
            serve(&mut input, &mut output, device, Agreed { structured: false })
        });
        let done = client(&mut theirs);
        drop(theirs);
        serving.join().unwrap().unwrap();
        done
    })
}

/// The cookie of a reply without an error.
fn reply(client: &mut UnixStream) -> u64 {
    let mut head = [0; 16];
    client.read_exact(&mut head).unwrap();
    assert_eq!(head[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    u64::from_be_bytes(head[8..].try_into().unwrap())
}

#[test]
fn requests_of_a_slow_device_are_carried_out_at_the_same_time() {
    let device = Slow::new(1 << 20);
    device.memory.write(0, &pattern(1 << 20, 5), false).unwrap();
    let mut cookies = served(&device, |client| {
        // From here on the device is known to be slow.
        client.write_all(&request(0, 0, 0, 4096)).unwrap();
        assert_eq!(reply(client), 0);
        client.read_exact(&mut [0; 4096]).unwrap();
        let all: Vec<_> = (1..=MANY as u64).flat_map(|n| request(0, n, n * 4096, 4096)).collect();
        client.write_all(&all).unwrap();
        let mut one = || {
            let (cookie, mut data) = (reply(client), [0; 4096]);
            client.read_exact(&mut data).unwrap();
            assert!(data[..] == device.memory.contents()[cookie as usize * 4096..][..4096], "{cookie}");
            cookie
        };
        (0..MANY).map(|_| one()).collect::<Vec<_>>()
    });
    cookies.sort_unstable();
    assert!(cookies.into_iter().eq(1..=MANY as u64));
}

#[test]
fn what_is_under_way_when_the_client_leaves_is_carried_out() {
    let device = Slow::new(1 << 20);
    served(&device, |client| {
        for n in 0..64 {
            client.write_all(&request(1, n, n * 4096, 4096)).unwrap();
            client.write_all(&pattern(4096, n as u8)).unwrap();
        }
        client.write_all(&request(2, 64, 0, 0)).unwrap();
        let mut cookies: Vec<_> = (0..64).map(|_| reply(client)).collect();
        cookies.sort_unstable();
        assert!(cookies.into_iter().eq(0..64));
    });
    for n in 0..64 {
        assert!(device.memory.contents()[n * 4096..][..4096] == pattern(4096, n as u8), "{n}");
    }
    let most = device.most.load(Ordering::SeqCst);
    assert!((2..=MANY).contains(&most), "{most} at a time");
}

#[test]
fn a_budget_is_waited_for_and_never_passed() {
    let (budget, held) = (Budget::new(100), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..200 {
            for bytes in [100, 1, 60, 39, 40] {
                budget.take(bytes);
                assert!(held.fetch_add(bytes, Ordering::SeqCst) + bytes <= 100);
                let (budget, held) = (&budget, &held);
                scope.spawn(move || {
                    held.fetch_sub(bytes, Ordering::SeqCst);
                    budget.give(bytes);
                });
            }
        }
    });
}
