//! The hosts lose each other though both live.

use crate::common::*;
use aventine_demo::checker::{self, Load};
use aventine_demo::lab::{Lab, Pair, Parts, STARTUP, Site};
use aventine_demo::network::{Cut, Host};
use aventine_demo::node::{Node, Role};
use aventine_engine::Status;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Who owns the guest of a pair whose link was cut, once both sides have settled: that side is the pair's primary then.
fn settle(pair: &mut Pair) -> Role {
    let end = Instant::now() + LIMIT;
    loop {
        let logs = || format!("{}\n{}", pair.primary.log(), pair.standby.log());
        assert!(Instant::now() < end, "nobody owns the guest: {}", logs());
        let [primary, standby] = [&pair.primary, &pair.standby]
            .map(|node| node.status().unwrap_or_else(|e| panic!("{e:?}\n{}", logs())))
            .map(|status| (status.side, status.state));
        match [(&primary.0[..], &primary.1[..]), (&standby.0[..], &standby.1[..])] {
            [("primary", "unprotected"), ("standby", "waiting")] => return Role::Protect,
            [("standby", _), ("primary", _)] => {
                pair.change_roles();
                return Role::Standby;
            }
            [("primary", "unprotected"), ("primary", _)] => panic!("two owners"),
            _ => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Two guests that know nothing of each other, each from host to host, and their clients: whichever side wins, protection comes
/// back with the link. Most of a round is waiting, so two take hardly longer than one.
/// `AVENTINE_ROUNDS=10000 cargo xtask test --profile long -E "test(cuts_leave)"` makes it a long run.
#[test]
fn cuts_leave_one_owner_and_one_history() {
    let mut random = Random::new();
    let each = rounds(200).div_ceil(2);
    let mut plan = || -> Vec<(Cut, Duration)> {
        let cuts = [Cut::Both, Cut::FromA, Cut::FromB];
        let round = |_| (cuts[random.below(3) as usize], Duration::from_millis(random.below(300)));
        (0..each).map(round).collect()
    };
    let plans = [("cuts-1", plan()), ("cuts-2", plan())];
    thread::scope(|scope| {
        for (name, plan) in &plans {
            scope.spawn(|| cuts_of_one_guest(name, plan));
        }
    });
}

/// `plan`: what is cut in each round, and after what time.
fn cuts_of_one_guest(name: &str, plan: &[(Cut, Duration)]) {
    /// Rounds of one client: what it writes must fit the guest's memory.
    const BATCH: usize = 20;
    let lab = Lab::new(&Parts { detection: "500ms".into(), ..parts(name) }).unwrap();
    let mut pair = lab.start().unwrap();
    let mut owners = [0, 0];
    for (batch, rounds) in plan.chunks(BATCH).enumerate() {
        if batch > 0 {
            checker::forget(lab.client(), Site::FIRST.address(), LIMIT).unwrap();
        }
        let connection = checker::connect(lab.client(), Site::FIRST.address(), STARTUP).unwrap();
        let client = Load::paced(connection, 1, Duration::from_micros(500));
        client.wait_answers(SOME, LIMIT).unwrap();
        for (round, &(cut, after)) in rounds.iter().enumerate() {
            thread::sleep(after);
            lab.network().cut(cut).unwrap();
            let owner = settle(&mut pair);
            owners[usize::from(owner == Role::Standby)] += 1;
            // The link's return changes nothing for the one that lost.
            lab.network().heal(cut).unwrap();
            pair.wait_protected().unwrap();
            client.wait_answers(SOME, LIMIT).unwrap();
            println!("{name}, {}: {cut:?}, {owner:?} owns the guest", batch * BATCH + round + 1);
        }
        assert_undisturbed(&finish(&lab, client));
    }
    println!("{name}: the primary won {} times, the standby {} times", owners[0], owners[1]);
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
                let Ok(far) = host.enter(|| TcpStream::connect((Host::B.address(), 7400))).unwrap() else {
                    continue;
                };
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
        let lab = Lab::new(&Parts { proxy: Some(PROXY.into()), ..parts(test) }).unwrap();
        let proxy = Proxy::start(&lab);
        let (mut pair, load) = with_load(&lab);
        proxy.swallow_from.store(from, Ordering::Relaxed);
        let owner = settle(&mut pair);
        println!("{test}: {owner:?} owns the guest");
        assert!(from == 0 || owner == Role::Protect, "a standby that hears the primary does not take over");
        assert_undisturbed(&finish(&lab, load));
    }
}

/// How often a side has asked the arbiter in vain.
fn asked_in_vain(node: &Node) -> usize {
    node.printed().matches("the arbiter cannot be asked").count()
}

#[test]
fn nobody_goes_on_while_the_arbiter_cannot_be_asked() {
    let lab = lab("arbiter");
    let (mut pair, load) = with_load(&lab);
    lab.block_arbiter(Site::FIRST).unwrap();
    lab.network().cut(Cut::Both).unwrap();
    for node in [&mut pair.primary, &mut pair.standby] {
        node.wait_for("asking the arbiter", LIMIT, |status| status.state == "resolving").unwrap();
    }
    let in_vain = |least| asked_in_vain(&pair.primary) >= least && asked_in_vain(&pair.standby) >= least;
    // By then what was let out before has long arrived.
    wait_until("the first questions", || in_vain(3));
    let answers = load.answers();
    wait_until("more questions", || in_vain(8));
    assert_eq!(load.answers(), answers, "output is held");
    for node in [&pair.primary, &pair.standby] {
        assert_eq!(node.status().unwrap().state, "resolving");
    }
    lab.unblock_arbiter(Site::FIRST).unwrap();
    let owner = settle(&mut pair);
    println!("{owner:?} owns the guest");
    lab.network().heal(Cut::Both).unwrap();
    assert_undisturbed(&finish(&lab, load));
}

#[test]
fn the_side_that_reaches_the_arbiter_owns_the_guest() {
    let lab = lab("arbiter-one");
    for (host, owner) in [(Host::A, Role::Standby), (Host::B, Role::Protect)] {
        let (mut pair, load) = with_load(&lab);
        lab.block_arbiter_of(host, Site::FIRST).unwrap();
        lab.network().cut(Cut::Both).unwrap();
        let (owning, other) = match owner {
            Role::Protect => (&mut pair.primary, &mut pair.standby),
            Role::Standby => (&mut pair.standby, &mut pair.primary),
        };
        let alone = |status: &Status| status.side == "primary" && status.state == "unprotected";
        owning.wait_for("its verdict", LIMIT, alone).unwrap();
        load.wait_answers(SOME, LIMIT).unwrap();
        let asked = asked_in_vain(other);
        wait_until("another question", || asked_in_vain(other) > asked);
        assert_eq!(other.status().unwrap().state, "resolving", "no verdict, no guest");
        lab.unblock_arbiter_of(host, Site::FIRST).unwrap();
        assert_eq!(settle(&mut pair), owner);
        lab.network().heal(Cut::Both).unwrap();
        assert_undisturbed(&finish(&lab, load));
    }
}

/// A disk that is not ready has the engine hold output of an epoch that is committed. When the link is cut meanwhile, that output
/// is the winner's to let go: its first holder may have lost the guest.
#[test]
fn output_that_waits_for_a_disk_waits_for_the_arbiter_as_well() {
    let file = given("AVENTINE_SHARED_OBJECTS").join("libstalls.so");
    let tables = format!(
        r#"
        plugins = {{ load = [{file:?}] }}
        disk = [
            {{ id = "disk0", plugin = "block-remus", image = "disk.img" }},
            {{ id = "disk1", plugin = "stalls", during = "stall" }},
        ]
        "#
    );
    let lab = Lab::new(&Parts { tables: tables.parse().unwrap(), ..parts("stalls") }).unwrap();
    let (mut pair, load) = with_load(&lab);
    let asked = |status: &Status| {
        let mut metrics = status.metrics.iter();
        metrics.find(|m| m.plugin == "disk1" && m.name == "asked_total").map_or(0, |m| m.value)
    };
    let stall = lab.dir(Host::A, Site::FIRST).join("stall");
    File::create(&stall).unwrap();
    // Once for each epoch that is committed, unless it asks for time.
    let waits = |status: &Status| asked(status) > status.committed + 50;
    pair.primary.wait_for("an epoch that waits", LIMIT, waits).unwrap();

    lab.block_arbiter(Site::FIRST).unwrap();
    lab.network().cut(Cut::Both).unwrap();
    for node in [&mut pair.primary, &mut pair.standby] {
        node.wait_for("asking the arbiter", LIMIT, |status| status.state == "resolving").unwrap();
    }
    let (begin, answers) = (asked(&pair.primary.status().unwrap()), load.answers());
    fs::remove_file(&stall).unwrap();
    let in_vain = asked_in_vain(&pair.primary);
    wait_until("more questions to the arbiter", || asked_in_vain(&pair.primary) > in_vain + 3);
    let status = pair.primary.status().unwrap();
    assert_eq!((&status.state[..], asked(&status)), ("resolving", begin));
    assert_eq!(load.answers(), answers, "output is held");

    lab.unblock_arbiter(Site::FIRST).unwrap();
    let owner = settle(&mut pair);
    println!("{owner:?} owns the guest");
    lab.network().heal(Cut::Both).unwrap();
    assert_undisturbed(&finish(&lab, load));
}
