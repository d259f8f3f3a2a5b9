//! How fast one channel is over the loopback device, with and without TLS:
//! `cargo run --release -p aventine-transport-tcp --example throughput`
//!
//! Each block is sent as the engine sends pages: a header and 256 slices of a page. Beside the speed stands what a
//! gigabyte costs each side in processor time, which other work on the machine changes little.

#[path = "../tests/common/mod.rs"]
mod common;

use aventine_api::Side;
use common::{LONG, config_with, keys::Keys, own_ip, transport};
use rustix::time::{ClockId, clock_gettime};
use std::thread;
use std::time::{Duration, Instant};

const TLS: bool = true;
const BLOCK: usize = 1 << 20;
const BLOCKS: usize = 2048;

fn cpu() -> Duration {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}

fn measure(name: &str, security: &str) {
    let config = config_with(own_ip(), security);
    let mut listener = transport(&config, Side::Standby).listen(&[]).expect("the port is free");
    let mut primary = transport(&config, Side::Primary).connect(LONG).expect("the standby listens");
    let mut standby = listener.accept(LONG).expect("it listens").expect("the primary is there");
    let (mut tx, _rx) = primary.open("pages", None, LONG).expect("a new channel");
    let (_tx, mut rx) = standby.open("pages", None, LONG).expect("a new channel");
    let begun = Instant::now();
    let sender = thread::spawn(move || {
        let data: Vec<u8> =
            (0..BLOCK as u32 / 4).flat_map(|i| i.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
        let header = [7u8; 40];
        let parts: Vec<&[u8]> = std::iter::once(&header[..]).chain(data.chunks(4096)).collect();
        for _ in 0..BLOCKS {
            tx.send(&parts).expect("the standby reads");
        }
        cpu()
    });
    let (mut header, mut data) = ([0; 40], vec![0; BLOCK]);
    let before = cpu();
    for _ in 0..BLOCKS {
        rx.recv(&mut header).expect("the primary sends");
        rx.recv(&mut data).expect("the primary sends");
    }
    let (wall, receiver) = (begun.elapsed(), cpu() - before);
    let sender = sender.join().expect("it sent everything");
    let gb = (BLOCK * BLOCKS) as f64 / 1e9;
    println!(
        "{name:<10} {:>5.2} GB/s   sender {:>4.0} ms/GB   receiver {:>4.0} ms/GB",
        gb / wall.as_secs_f64(),
        sender.as_secs_f64() * 1e3 / gb,
        receiver.as_secs_f64() * 1e3 / gb,
    );
}

fn main() {
    let keys = Keys::new();
    let tls = keys.node("node", |_| {});
    for _ in 0..3 {
        measure("plaintext", "unsafe_plaintext = true");
        measure("TLS 1.3", &tls);
    }
}
