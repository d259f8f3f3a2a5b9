//! Real guests on two hosts made of network namespaces. Each test makes its own; `cargo xtask test` says where the
//! program and the guest are.

use aventine_demo::checker::{self, Load, Outcome};
use aventine_demo::lab::{Lab, Pair, Parts, STANDBY_ADDRESS, STARTUP, TAKEOVER};
use aventine_demo::network::{Cut, GUEST};
use aventine_demo::node::Role;
use rustix::process::Signal;
use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest that anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Answers that show that a client is served.
const SOME: u64 = 300;

fn given(variable: &str) -> PathBuf {
    match env::var_os(variable) {
        Some(path) => path.into(),
        None => panic!("{variable} is not set: run these tests with `cargo xtask test`"),
    }
}

fn parts(test: &str) -> Parts {
    Parts {
        program: given("AVENTINE_PROGRAM"),
        kernel: given("AVENTINE_KERNEL"),
        initrd: given("AVENTINE_INITRD"),
        work: given("AVENTINE_WORK").join(test),
        interval: "25ms".into(),
        // A machine busy with other things must not look like a lost one.
        detection: "1s".into(),
        peer: STANDBY_ADDRESS.into(),
        tls: false,
    }
}

fn lab(test: &str) -> Lab {
    Lab::new(&parts(test)).unwrap()
}

/// A protected guest with a client at work.
fn with_load(lab: &Lab) -> (Pair, Load) {
    let pair = lab.start().unwrap();
    let load = Load::start(checker::connect(lab.network(), STARTUP).unwrap(), 1);
    load.wait_answers(SOME, LIMIT).unwrap();
    (pair, load)
}

/// The client goes on for a while, ends and reads everything back.
fn finish(lab: &Lab, load: Load) -> Outcome {
    load.wait_answers(SOME, LIMIT).unwrap();
    load.finish(lab.network()).unwrap()
}

#[track_caller]
fn assert_undisturbed(outcome: &Outcome) {
    assert!(outcome.lost == 0 && !outcome.broken && outcome.acknowledged > SOME, "{outcome:?}");
}

/// A generator whose start is told, so that a run can be repeated.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seed = env::var("AVENTINE_SEED").map_or(now.as_micros() as u64, |seed| seed.parse().unwrap());
        println!("AVENTINE_SEED={seed} repeats the moments of this run");
        Random(seed | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

#[test]
fn survives_twenty_random_kills() {
    let lab = lab("kills");
    let mut random = Random::new();
    for round in 1..=20 {
        let (mut pair, load) = with_load(&lab);
        thread::sleep(Duration::from_millis(random.below(1000)));
        pair.fail_over(random.below(2) == 0).unwrap();
        let outcome = finish(&lab, load);
        println!("round {round}: {} acknowledged, silent for {:?}", outcome.acknowledged, outcome.gap);
        assert_undisturbed(&outcome);
    }
}

/// A plain connection to a port of the guest, once somebody listens there.
fn connect(lab: &Lab, port: u16) -> TcpStream {
    let end = Instant::now() + STARTUP;
    loop {
        match lab.network().client.enter(|| TcpStream::connect((GUEST, port))).unwrap() {
            Ok(stream) => {
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                return stream;
            }
            Err(error) => assert!(Instant::now() < end, "nothing listens on port {port}: {error}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn requests_that_the_primary_had_taken_are_answered_without_being_sent_again() {
    // In an epoch this long, answers are held when the host is lost.
    let lab = Lab::new(&Parts { interval: "1s".into(), ..parts("in-flight") }).unwrap();
    let mut random = Random::new();
    let requests = 64u64;
    for round in 1..=3 {
        let mut pair = lab.start().unwrap();
        let mut client = BufReader::new(connect(&lab, 6379));
        let number = |client: &mut BufReader<TcpStream>| {
            let mut line = String::new();
            client.read_line(&mut line).unwrap();
            line.strip_prefix(':')
                .and_then(|n| n.trim().parse::<u64>().ok())
                .unwrap_or_else(|| panic!("{line}"))
        };
        client.get_mut().write_all(b"INCR n\r\n").unwrap();
        assert_eq!(number(&mut client), 1);
        thread::sleep(Duration::from_millis(random.below(1000)));
        client.get_mut().write_all("INCR n\r\n".repeat(requests as usize).as_bytes()).unwrap();
        // From here on nothing can be sent a second time.
        lab.network().mute_client().unwrap();
        // Held in the open epoch, or let out already with one that ended just now.
        let client_has_them = || {
            let stream = client.get_ref();
            stream.set_nonblocking(true).unwrap();
            let peeked = stream.peek(&mut [0]).is_ok();
            stream.set_nonblocking(false).unwrap();
            peeked
        };
        let primary = &mut pair.primary;
        primary
            .wait_for("the answers", LIMIT, |status| status.held_bytes > 4 * requests || client_has_them())
            .unwrap();
        pair.fail_over(random.below(2) == 0).unwrap();
        for n in 2..2 + requests {
            assert_eq!(number(&mut client), n, "round {round}");
        }
        lab.network().unmute_client().unwrap();
        client.get_mut().write_all(b"INCR n\r\n").unwrap();
        assert_eq!(number(&mut client), 2 + requests, "each was carried out once");
    }
}

/// The client of the guest's disk workload.
struct DiskClient(BufReader<TcpStream>);

impl DiskClient {
    fn connect(lab: &Lab) -> DiskClient {
        DiskClient(BufReader::new(connect(lab, 7777)))
    }

    fn send(&mut self, request: &str) {
        self.0.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
    }

    /// The number in the next answer, which must begin with `word`.
    #[track_caller]
    fn answer(&mut self, word: &str) -> u64 {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let number = line.strip_prefix(word).and_then(|rest| rest.trim().parse().ok());
        number.unwrap_or_else(|| panic!("the guest says {line:?}"))
    }
}

#[test]
fn disk_and_memory_come_from_one_epoch() {
    let lab = lab("disk");
    let mut random = Random::new();
    for round in 1..=5 {
        let mut pair = lab.start().unwrap();
        let mut client = DiskClient::connect(&lab);
        let end = Instant::now() + Duration::from_millis(500 + random.below(1500));
        let mut last = 0;
        while Instant::now() < end {
            client.send("put");
            let number = client.answer("done");
            assert!(number > last, "write {number} after write {last}");
            last = number;
        }
        client.send("put");
        thread::sleep(Duration::from_millis(random.below(30)));
        pair.fail_over(random.below(2) == 0).unwrap();
        let under_way = client.answer("done");
        client.send("verify");
        let verified = client.answer("same");
        assert!(last < under_way && under_way == verified, "{last} {under_way} {verified}");
        for _ in 0..10 {
            client.send("put");
            client.answer("done");
        }
        client.send("verify");
        let after = client.answer("same");
        println!("round {round}: {verified} writes verified at the takeover, {after} at the end");
        assert!(after > verified);
    }
}

#[test]
fn graceful_stop_is_not_a_failover() {
    let lab = lab("stop");
    for by_signal in [false, true] {
        let (mut pair, load) = with_load(&lab);
        match by_signal {
            false => pair.primary.stop().unwrap(),
            true => pair.primary.signal(Signal::INT).unwrap(),
        }
        pair.primary
            .wait_for("the end of protection", LIMIT, |status| status.state == "unprotected")
            .unwrap();
        pair.standby.wait_for("standing down", LIMIT, |status| status.state == "waiting").unwrap();
        assert_undisturbed(&finish(&lab, load));
        assert_eq!(pair.standby.status().unwrap().state, "waiting");
    }
}

#[test]
fn standby_killed_guest_runs_on() {
    let lab = lab("standby");
    let (mut pair, load) = with_load(&lab);
    pair.standby.kill(false).unwrap();
    pair.primary.wait_for("going on alone", TAKEOVER, |status| status.state == "unprotected").unwrap();
    assert_undisturbed(&finish(&lab, load));
}

/// What remains of a pair whose link was cut: who owns the guest, once both sides have settled.
fn owner_after_a_cut(pair: &mut Pair) -> Role {
    let end = Instant::now() + LIMIT;
    loop {
        assert!(
            Instant::now() < end,
            "nobody owns the guest: {}\n{}",
            pair.primary.log(),
            pair.standby.log()
        );
        // A primary that has ended does not answer.
        let primary = pair.primary.status().map(|status| status.state).unwrap_or_default();
        let standby = pair.standby.status().unwrap_or_else(|e| panic!("{e:?}\n{}", pair.standby.log())).state;
        match (&primary[..], &standby[..]) {
            ("unprotected", "waiting") => return Role::Protect,
            ("", "active") => {
                let status = pair.primary.wait_end(LIMIT).unwrap();
                assert_eq!(status.code(), Some(4), "fenced: {}", pair.primary.log());
                return Role::Standby;
            }
            ("unprotected", "active") => panic!("two owners"),
            _ => thread::sleep(Duration::from_millis(20)),
        }
    }
}

#[test]
fn a_cut_leaves_one_owner_and_one_history() {
    let lab = lab("cuts");
    let mut random = Random::new();
    for cut in [Cut::Both, Cut::FromA, Cut::FromB, Cut::Both, Cut::FromA, Cut::FromB] {
        let (mut pair, load) = with_load(&lab);
        thread::sleep(Duration::from_millis(random.below(300)));
        lab.network().cut(cut).unwrap();
        let owner = owner_after_a_cut(&mut pair);
        println!("{cut:?}: {owner:?} owns the guest");
        // The link's return changes nothing for the one that lost.
        lab.network().heal(cut).unwrap();
        let outcome = finish(&lab, load);
        assert_undisturbed(&outcome);
        let primary = pair.primary.status().is_ok();
        assert_eq!((primary, owner == Role::Standby), (owner == Role::Protect, !primary));
    }
}

/// Stands between the hosts, on host a, and can swallow what the primary sends after it was written.
struct Proxy {
    /// From which connection on, in the order of their coming: the first is `control`.
    swallow_from: Arc<AtomicUsize>,
}

const PROXY: &str = "10.78.0.1:7500";

impl Proxy {
    fn start(lab: &Lab) -> Proxy {
        let swallow_from = Arc::new(AtomicUsize::new(usize::MAX));
        let host = lab.network().a.try_clone().unwrap();
        let listener = host.enter(|| TcpListener::bind(PROXY)).unwrap().unwrap();
        let from = Arc::clone(&swallow_from);
        thread::spawn(move || {
            let mut number = 0;
            for near in listener.incoming().map(Result::unwrap) {
                let Ok(far) = host.enter(|| TcpStream::connect(STANDBY_ADDRESS)).unwrap() else { continue };
                let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let from = Arc::clone(&from);
                thread::spawn(move || pump(near, far, || number >= from.load(Ordering::Relaxed)));
                thread::spawn(move || pump(far_too, near_too, || false));
                number += 1; // a standby that is not there yet does not count
            }
        });
        Proxy { swallow_from }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, swallow: impl Fn() -> bool) {
    from.set_nodelay(true).unwrap();
    to.set_nodelay(true).unwrap();
    let mut bytes = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut bytes) {
        if !swallow() && to.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    // One direction of a channel may end before the other.
    let _ = to.shutdown(Shutdown::Write);
}

#[test]
fn swallowed_bytes_let_no_frame_out_and_mute_nobody() {
    // Everything the primary sends, or everything but what tells the standby that it lives.
    for (test, from) in [("proxy-all", 0), ("proxy-bulk", 1)] {
        let lab = Lab::new(&Parts { peer: PROXY.into(), ..parts(test) }).unwrap();
        let proxy = Proxy::start(&lab);
        let (mut pair, load) = with_load(&lab);
        proxy.swallow_from.store(from, Ordering::Relaxed);
        let owner = owner_after_a_cut(&mut pair);
        println!("{test}: {owner:?} owns the guest");
        assert!(from == 0 || owner == Role::Protect, "a standby that hears the primary does not take over");
        assert_undisturbed(&finish(&lab, load));
    }
}

#[test]
fn a_standby_that_comes_back_is_taken_back() {
    // With the hosts' link as it is by default.
    let lab = Lab::new(&Parts { tls: true, ..parts("comeback") }).unwrap();
    let (mut pair, load) = with_load(&lab);
    for _ in 0..2 {
        pair.standby.kill(false).unwrap();
        pair.primary.wait_for("going on alone", TAKEOVER, |status| status.state == "unprotected").unwrap();
        load.wait_answers(SOME, LIMIT).unwrap();
        lab.restart_standby(&mut pair).unwrap();
        load.wait_answers(SOME, LIMIT).unwrap();
    }
    // The new standby is worth something only if it can take over.
    pair.fail_over(false).unwrap();
    assert_undisturbed(&finish(&lab, load));
}

#[test]
fn guest_shutdown_is_not_a_failover() {
    let lab = lab("shutdown");
    let mut pair = lab.start().unwrap();
    let mut connection = checker::connect(lab.network(), STARTUP).unwrap();
    // The guest's init goes off when Redis ends. There is no answer.
    redis::cmd("SHUTDOWN").arg("NOSAVE").exec(&mut connection).unwrap_err();
    let status = pair.primary.wait_end(LIMIT).unwrap();
    assert!(status.success(), "{status}\n{}", pair.primary.log());
    pair.standby.wait_for("standing down", LIMIT, |status| status.state == "waiting").unwrap();
}

#[test]
fn the_checker_notices_lost_writes() {
    let lab = lab("checker");
    let (pair, load) = with_load(&lab);
    let mut other = checker::connect(lab.network(), LIMIT).unwrap();
    redis::cmd("DEL").arg("key:0").exec(&mut other).unwrap();
    redis::cmd("SET").arg("key:1").arg("older").exec(&mut other).unwrap();
    let outcome = finish(&lab, load);
    assert_eq!(outcome.lost, 2, "{outcome:?}");
    drop(pair);

    let (_pair, load) = with_load(&lab);
    let mut other = checker::connect(lab.network(), LIMIT).unwrap();
    redis::cmd("DECR").arg("counter:0").exec(&mut other).unwrap();
    let outcome = finish(&lab, load);
    // The counter itself, and each answer about it that was then wrong.
    assert!(outcome.lost > 1 && !outcome.broken, "{outcome:?}");
}

#[test]
fn the_demo_prints_one_json_object() {
    let parts = parts("demo");
    let mut demo = Command::new(parts.program);
    demo.arg("demo").arg("--kernel").arg(parts.kernel).arg("--initrd").arg(parts.initrd);
    let output = demo.arg("--work").arg(parts.work).args(["--json", "--seed", "7"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
    for (key, least) in [("rounds", 1), ("epochs", 10), ("writes_acknowledged", 1000), ("bytes_sent", 1)] {
        assert!(json[key].as_u64() >= Some(least), "{key}: {json}");
    }
    for key in ["pause_us", "commit_us", "activation_us", "gap_ms"] {
        assert!(
            json[key]["p50"].as_f64() > Some(0.0) && json[key]["max"].as_f64() > Some(0.0),
            "{key}: {json}"
        );
    }
    assert!(
        json["qemu_floor_us"].as_u64() > Some(0) && json["epochs_per_second"].as_f64() > Some(0.0),
        "{json}"
    );
    assert_eq!((&json["writes_lost"], &json["connections_broken"]), (&0.into(), &0.into()));
    assert_eq!(json["seed"], 7);
}
