//! A guest that changes its memory faster than the link carries it.

use crate::common::*;
use aventine_demo::checker::{self, Load};
use aventine_demo::lab::{Lab, Pair, Parts, STARTUP, Site};
use aventine_demo::network::{Host, Network};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};
use std::{fs, thread};

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

/// Bytes a second of the link that a guest outruns three times, and pages.
const NARROW: u64 = 20 << 20;
const NARROW_PAGES: u64 = NARROW / 4096;
/// How many times what the link carries the guest writes.
const TIMES: u64 = 3;
/// Pages that it writes over and over: more than the link carries in two seconds.
const WIDE: u64 = 12_288;
/// How long it is measured doing so.
const MEASURED: Duration = Duration::from_secs(60);
/// How long a guest is watched that is only to go on.
const WATCHED: Duration = Duration::from_secs(8);
/// How long it takes until the beginning no longer shows.
const SETTLED: Duration = Duration::from_secs(3);

/// How long the link itself is measured.
const BARE: Duration = Duration::from_secs(4);

/// What was found while the guest outran the link.
#[derive(Debug)]
struct Outrun {
    /// Bytes a second that a bare TCP connection gets through the link: what is left of [`NARROW`] beside headers.
    carries: f64,
    /// Pages a second that the guest wrote: protected, and on its own afterwards.
    rates: [f64; 2],
    /// Bytes a second that went to the standby.
    sent: f64,
    /// The longest that an answer took, that a client had none, and that no epoch was committed.
    longest: [Duration; 3],
}

/// Bytes a second that a bare TCP connection gets through the link.
fn carries(network: &Network) -> io::Result<f64> {
    let address = (Host::B.address(), 7000);
    let listener = network.host(Host::B).enter(|| TcpListener::bind(address))??;
    let mut sender = network.host(Host::A).enter(|| TcpStream::connect(address))??;
    let (mut receiver, _) = listener.accept()?;
    let begun = Instant::now();
    let reading = thread::spawn(move || {
        let (mut buffer, mut bytes) = (vec![0; 64 << 10], 0);
        loop {
            match receiver.read(&mut buffer)? {
                0 => return Ok::<_, io::Error>(bytes as f64 / begun.elapsed().as_secs_f64()),
                n => bytes += n,
            }
        }
    });
    while begun.elapsed() < BARE {
        sender.write_all(&[7; 64 << 10])?;
    }
    drop(sender);
    reading.join().unwrap()
}

/// Has a guest write [`TIMES`] times what the link carries.
fn outrun(test: &str, policy: &str) -> Outrun {
    let tables = policy.parse().unwrap();
    let lab = Lab::new(&Parts { staging: "64MiB".into(), tables, ..parts(test) }).unwrap();
    lab.network().limit(NARROW).unwrap();
    let carries = carries(lab.network()).unwrap();
    let pair = lab.start().unwrap();
    let connection = checker::connect(lab.client(), Site::FIRST.address(), STARTUP).unwrap();
    // What it has Redis write is to be next to nothing of what the guest writes.
    let load = Load::paced(connection, 1, Duration::from_millis(20));
    let mut inside = Workload::connect(&lab);
    inside.ask(&format!("dirty {WIDE} {}", TIMES * NARROW_PAGES), "dirtying");
    let begun = Instant::now();
    while begun.elapsed() < SETTLED {
        inside.ask("pages", "wrote");
    }
    load.take_gap();
    let mut longest = [Duration::ZERO; 3];
    let (from, begun, bytes) = (inside.ask("pages", "wrote"), Instant::now(), bytes_sent(&pair));
    let (mut committed, mut moved) = (0, Instant::now());
    let pages = loop {
        let asked = Instant::now();
        inside.send("pages");
        while !inside.is_answered() {
            let status = pair.primary.status().unwrap();
            assert_eq!(status.state, "protected", "{}", pair.primary.log());
            if status.committed > committed {
                longest[2] = longest[2].max(if committed > 0 { moved.elapsed() } else { Duration::ZERO });
                (committed, moved) = (status.committed, Instant::now());
            }
            assert!(asked.elapsed() < LIMIT, "no answer: {status:?}");
            thread::sleep(Duration::from_millis(5));
        }
        let pages = inside.answer("wrote");
        longest[0] = longest[0].max(asked.elapsed());
        if begun.elapsed() >= MEASURED {
            break pages;
        }
    };
    let seconds = begun.elapsed().as_secs_f64();
    let sent = (bytes_sent(&pair) - bytes) as f64 / seconds;
    longest[1] = load.take_gap();
    println!("{test}: {:?}", pair.primary.status().unwrap());
    println!("{test}: {:?}", pair.standby.status().unwrap());
    pair.primary.stop().unwrap();
    let (alone, since) = (inside.ask("pages", "wrote"), Instant::now());
    thread::sleep(Duration::from_secs(4));
    let alone = (inside.ask("pages", "wrote") - alone) as f64 / since.elapsed().as_secs_f64();
    assert_undisturbed(&finish(&lab, load));
    Outrun { carries, rates: [(pages - from) as f64 / seconds, alone], sent, longest }
}

fn bytes_sent(pair: &Pair) -> u64 {
    pair.primary.status().unwrap().bytes_sent
}

/// The guest keeps the link's share of its speed, and nobody waits for longer than `bound`.
fn check(test: &str, outrun: &Outrun, bound: Duration) {
    let [protected, alone] = outrun.rates;
    let times = alone * 4096.0 / outrun.carries;
    let (progress, fair) = (protected / alone, 1.0 / times);
    println!(
        "{test}: the guest writes {times:.2} times what the link carries, runs at {progress:.3} = {:.2} x (link / dirty rate); \
         the link is used to {:.2}; longest: answer, client, commit {:?}, bound {bound:?}",
        progress / fair,
        outrun.sent / outrun.carries,
        outrun.longest,
    );
    assert!(times > 2.5, "the guest cannot write fast enough on this machine: {outrun:?}");
    assert!(progress >= 0.9 * fair, "{outrun:?}");
    assert!(outrun.longest.iter().all(|longest| *longest <= bound), "{outrun:?}");
}

/// An epoch waits for one that is sent and one that waits, and each is the guest's memory at most.
#[test]
#[ignore = "a measurement: `cargo xtask test --run-ignored only --no-capture -E 'test(keeps_the_links_share)'`"]
fn a_guest_that_outruns_its_link_keeps_the_links_share_with_epochs_of_one_length() {
    let outrun = outrun("outrun-fixed", "[policy]\nplugin = 'fixed'\ninterval = '25ms'");
    check("fixed", &outrun, Duration::from_secs(4 * WIDE / NARROW_PAGES));
}

/// An answer waits for three times the longest epoch, and what the transport holds, and a question until the guest runs.
#[test]
#[ignore = "a measurement: `cargo xtask test --run-ignored only --no-capture -E 'test(keeps_the_links_share)'`"]
fn a_guest_that_outruns_its_link_keeps_the_links_share_with_epochs_that_adapt() {
    let outrun = outrun("outrun-adaptive", "[policy]\nplugin = 'adaptive'\nlongest = '500ms'");
    check("adaptive", &outrun, Duration::from_millis(3 * 500 + 1000));
}

#[test]
fn a_guest_that_outruns_its_link_is_slowed_down_and_nothing_grows() {
    for policy in ["plugin = 'fixed'\ninterval = '25ms'", "plugin = 'adaptive'"] {
        outrun_and_watch(&format!("[policy]\n{policy}"));
    }
}

fn outrun_and_watch(policy: &str) {
    let tables = policy.parse().unwrap();
    let lab = Lab::new(&Parts { staging: "64MiB".into(), tables, ..parts("pressure") }).unwrap();
    let (mut pair, load) = with_load(&lab);
    let mut inside = Workload::connect(&lab);
    lab.network().limit(LINK).unwrap();
    inside.ask(&format!("dirty {PAGES}"), "dirtying");
    let limits = [STAGING + NETWORK + REST, STAGING + RAM + REST];
    let (begin, mut most) = (Instant::now(), [0; 2]);
    while begin.elapsed() < WATCHED {
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
