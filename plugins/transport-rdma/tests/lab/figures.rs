//! What the transport reaches beside perftest's programs, in the same run: ratios tell something, times on an emulated processor do
//! not. Not part of the routine:
//!
//! ```text
//! cargo test -p aventine-transport-rdma --test lab -- --ignored --exact figures::figures --nocapture
//! cargo test -p aventine-transport-rdma --test lab -- --ignored --exact figures::overlap --nocapture
//! ```

use crate::hosts::{Ends, Pair, ok};
use aventine_lab::{Host, packages};
use std::process::Command;

/// Bytes of a write of perftest's: a page. It has 128 of them in flight.
const PAGE: &str = "-s 4096";
const ROUNDS: usize = 3;

/// perftest, and what it needs besides.
fn perftest() -> String {
    let root = packages::unpacked("perftest", &["perftest", "libibumad3", "libpci3"]).unwrap();
    format!("cp -r {0}/usr/. /usr/; [ ! -d {0}/lib ] || cp -r {0}/lib/. /lib/", root.display())
}

/// Runs one of its programs on both hosts; answers the fields of the last line.
fn measure(pair: &Pair, program: &str) -> Vec<f64> {
    let [a, b] = pair.lab.hosts.as_slice() else { unreachable!() };
    let line = format!("{program} -d rxe0 -x 1 -F");
    let mut server = Command::new("sh");
    server.args(["-c", &format!("stdbuf -oL {line}")]);
    let mut server = b.spawn(&server).unwrap();
    server.wait_for("Waiting for client").unwrap();
    let output = ok(a, &format!("{line} {}", b.address()));
    let last = output
        .lines()
        .rev()
        .find(|line| line.trim_start().starts_with("4096"))
        .unwrap_or_else(|| panic!("{output}"));
    last.split_whitespace().map(|field| field.parse().unwrap()).collect()
}

/// What an end says that it has done.
fn said(ends: Ends<'_>, line: &str) -> String {
    let Ends { primary, standby } = ends;
    for end in [&primary, &standby] {
        end.input().write(b"").unwrap();
    }
    let output = String::from_utf8(primary.output().unwrap().stdout).unwrap();
    let mark = format!("did {line} #");
    output
        .lines()
        .find_map(|said| said.strip_prefix(&mark)?.split_once(": "))
        .map(|(_, said)| said)
        .unwrap_or_else(|| panic!("{output}"))
        .to_owned()
}

fn number(text: &str) -> f64 {
    text.split_whitespace().find_map(|word| word.parse().ok()).unwrap()
}

/// perftest's write of pages, and then ours of bulk: `lends` says how, and how many batches are not settled while the next is hashed.
fn goodput(pair: &Pair, when: &str, ways: &[(&str, u32, &str)]) {
    let floor = measure(pair, &format!("ib_write_bw {PAGE} -n 5000"))[3];
    for (lends, unsettled, how) in ways {
        let mut ends = pair.ends();
        ends.both(lends, lends);
        ends.link(&["control", "pages"]);
        let bulk = format!("bulk 5120 {unsettled}");
        ends.both(&bulk, "sink 5120");
        // perftest's megabytes are of 2^20 bytes.
        let ours = number(&said(ends, &bulk)) * 1e6 / f64::from(1 << 20);
        let ratio = ours / floor;
        println!("{when}: goodput, {how}, {ours:.2} MiB/s, ib_write_bw {floor:.2} MiB/s: {ratio:.3}");
    }
}

fn prepared() -> Pair {
    let pair = Pair::start();
    let install = perftest();
    pair.lab.hosts.iter().for_each(|host: &Host| drop(ok(host, &install)));
    pair
}

#[test]
#[ignore = "measures"]
fn figures() {
    let pair = prepared();
    for round in 1..=ROUNDS {
        let ways = [("lend 8", 1, "in place"), ("lend 0", 1, "copied")];
        goodput(&pair, &format!("round {round}"), &ways);

        let one_way = measure(&pair, &format!("ib_write_lat {PAGE} -n 2000"))[4];
        let mut ends = pair.ends();
        ends.link(&["control", "pages"]);
        ends.both("ask 2000", "answer 2000");
        let text = said(ends, "ask 2000");
        let ours = number(&text);
        println!(
            "round {round}: round trip of a page {text} ib_write_lat, one way, p50 {one_way:.1} us: {:.2}",
            ours / one_way
        );
    }
}

/// Whether a batch is hashed while the device reads the one before. These hosts' processors do the device's work: only on a wire
/// that is slower than they are is there time for anything else.
#[test]
#[ignore = "measures"]
fn overlap() {
    let pair = prepared();
    for host in &pair.lab.hosts {
        ok(host, "modprobe sch_netem; tc qdisc add dev eth0 root netem rate 80mbit");
    }
    for round in 1..=ROUNDS {
        let ways = [("lend 8", 1, "one batch held back"), ("lend 8", 0, "each waited for")];
        goodput(&pair, &format!("80 Mbit/s, round {round}"), &ways);
    }
}
