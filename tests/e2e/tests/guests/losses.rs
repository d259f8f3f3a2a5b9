//! Hosts and processes are lost.

use crate::common::*;
use aventine_demo::lab::{Lab, Parts, Site, TAKEOVER};
use aventine_demo::network::Host;
use aventine_demo::node::{Node, Role};
use aventine_engine::Status;
use std::fs::{self, OpenOptions};
use std::io;
use std::net::UdpSocket;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn survives_twenty_random_kills() {
    let lab = lab("kills");
    let mut random = Random::new();
    let (mut pair, load) = with_load(&lab);
    for round in 1..=20 {
        thread::sleep(Duration::from_millis(random.below(1000)));
        load.take_gap();
        pair.fail_over(random.below(2) == 0).unwrap();
        load.wait_answers(SOME, LIMIT).unwrap();
        println!("round {round}: {} answers, silent for {:?}", load.answers(), load.take_gap());
        pair.change_roles();
        lab.restart_standby(&mut pair).unwrap();
        // Only what was said under protection is a promise that the next kill could break.
        load.wait_answers(SOME, LIMIT).unwrap();
    }
    assert_undisturbed(&finish(&lab, load));
}

#[test]
fn requests_that_the_primary_had_taken_are_answered_without_being_sent_again() {
    const REQUESTS: u64 = 64;
    // In an epoch this long, answers are held when the host is lost.
    let lab = Lab::new(&Parts { interval: "1s".into(), ..parts("in-flight") }).unwrap();
    let guest = Site::FIRST.address();
    let mut random = Random::new();
    for round in 1..=3 {
        let mut pair = lab.start().unwrap();
        let mut redis = Workload::on_port(&lab, 6379);
        assert_eq!(redis.ask("INCR n", ":"), 1);
        thread::sleep(Duration::from_millis(random.below(1000)));
        redis.send(&["INCR n"; REQUESTS as usize].join("\n"));
        // From here on nothing can be sent a second time.
        lab.network().mute_client(guest).unwrap();
        // The answers are held in the open epoch, or let out already with one that ended just now.
        let answered = |status: &Status| status.held_bytes > 4 * REQUESTS || redis.is_answered();
        pair.primary.wait_for("the answers", LIMIT, answered).unwrap();
        pair.fail_over(random.below(2) == 0).unwrap();
        for n in 2..2 + REQUESTS {
            assert_eq!(redis.answer(":"), n, "round {round}");
        }
        lab.network().unmute_client(guest).unwrap();
        assert_eq!(redis.ask("INCR n", ":"), 2 + REQUESTS, "each was carried out once");
    }
}

#[test]
fn what_is_sent_while_the_primary_is_dead_and_suspected_is_answered_after_the_takeover() {
    // Nobody listens there: the guest's kernel refuses, once for each socket's only datagram.
    const PORT: u16 = 9;
    let lab = lab("meanwhile");
    let (mut pair, load) = with_load(&lab);
    let knock = || {
        let socket = lab.network().client.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.connect((Site::FIRST.address(), PORT)).unwrap();
        socket.send(b"knock").unwrap();
        socket
    };
    let refused = |socket: &UdpSocket| {
        socket.recv(&mut [0]).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    };
    pair.primary.kill(true).unwrap();
    let mut knocks = Vec::new();
    while !took_over(&pair.standby.status().unwrap()) {
        knocks.push(knock());
        thread::sleep(Duration::from_millis(20));
    }
    // The last one may have been sent after the takeover.
    knocks.pop();
    wait_until("an answer", || knocks.iter().any(refused));
    pair.change_roles();
    assert_undisturbed(&finish(&lab, load));
}

#[test]
fn disk_and_memory_come_from_one_epoch() {
    let lab = lab("disk");
    let mut random = Random::new();
    for round in 1..=5 {
        let mut pair = lab.start().unwrap();
        let mut client = Workload::connect(&lab);
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
fn standby_killed_guest_runs_on() {
    let lab = lab("standby");
    let (mut pair, load) = with_load(&lab);
    pair.standby.kill(false).unwrap();
    pair.primary.wait_for("going on alone", TAKEOVER, |status| status.state == "unprotected").unwrap();
    assert_undisturbed(&finish(&lab, load));
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

/// What the newest copy of the disk had to send, and has sent.
fn resynced(status: &Status) -> (u64, u64) {
    let figure =
        |name: &str| status.metrics.iter().find(|m| m.plugin == "disk0" && m.name == name).unwrap().value;
    (figure("resync_total_bytes"), figure("resynced_bytes"))
}

#[test]
fn a_disk_that_was_away_gets_what_has_changed_and_loses_what_was_not_committed() {
    let lab = lab("resync");
    let mut pair = lab.start().unwrap();
    let mut client = Workload::connect(&lab);
    let size = fs::metadata(pair.primary.dir().join("disk.img")).unwrap().len();
    assert_eq!(resynced(&pair.primary.status().unwrap()), (size, size), "the first copy is a full one");
    // Byte 10 of the metadata is the role: the standby has reached a point.
    let metadata = pair.standby.dir().join("disk.img.aventine");
    wait_until("the first point", || fs::read(&metadata).is_ok_and(|m| m[10] == 2));
    let mut write = |times| (0..times).map(|_| client.ask("put", "done")).last().unwrap();
    for round in 1..=2 {
        write(3);
        pair.standby.kill(false).unwrap();
        pair.primary.wait_for("going on alone", TAKEOVER, |status| status.state == "unprotected").unwrap();
        write(20);
        lab.restart_standby(&mut pair).unwrap();
        let (total, done) = resynced(&pair.primary.status().unwrap());
        println!("round {round}: the standby was away: {total} of {size} bytes");
        assert!(done == total && total > 0 && total < size / 2, "{done} of {total} bytes");
        let written = write(3);
        // The old primary has writes that nobody committed, or may have.
        pair.fail_over(round == 1).unwrap();
        assert!(write(3) > written);
        pair.change_roles();
        lab.restart_standby(&mut pair).unwrap();
        let (total, done) = resynced(&pair.primary.status().unwrap());
        println!("round {round}: the old primary came back: {total} of {size} bytes");
        assert!(done == total && total > 0 && total < size, "{done} of {total} bytes");
    }
    let written = write(3);
    assert_eq!(client.ask("verify", "same"), written);
    let [ours, theirs] = [&pair.primary, &pair.standby].map(|node| node.dir().join("disk.img"));
    let same = || fs::read(&ours).unwrap() == fs::read(&theirs).unwrap();
    wait_until("the images are the same", same);

    // Where the guest never writes.
    OpenOptions::new().write(true).open(&theirs).unwrap().write_all_at(b"harmed", 40 << 20).unwrap();
    let of_primary = |arguments: &[&str]| verify(&pair.primary, arguments);
    let differs = format!("{size},\"compared\":{size},\"differing\":65536");
    let found = of_primary(&["--json", "--report-only"]);
    assert!(found.1.contains(&format!("{differs},\"repaired\":0")), "{found:?}");
    assert_eq!(found.0, Some(1), "they differ");
    assert!(!same());
    let found = of_primary(&["--json"]);
    assert!(found.1.contains(&format!("{differs},\"repaired\":65536")), "{found:?}");
    assert_eq!(found.0, Some(0));
    assert!(same());
    assert_eq!(of_primary(&[]), (Some(0), "disk0: 64 MiB compared, no difference\n".to_owned()));
    let refused = verify(&pair.standby, &[]);
    assert_eq!(refused.0, Some(1));
    assert!(refused.1.contains("on the host that runs it"), "{refused:?}");
    assert!(client.ask("put", "done") > written);
}

/// Exit code and words of `aventine verify`.
fn verify(node: &Node, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(given("AVENTINE_PROGRAM"));
    let output =
        command.arg("verify").arg("--state-dir").arg(node.state_dir()).args(arguments).output().unwrap();
    let words = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(words).unwrap())
}

/// Whether a process has ended, waited for or not.
fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|state| state.is_empty() || state.starts_with('Z'))
}

#[test]
fn a_killed_controller_takes_its_guest_along_and_comes_back_as_the_standby() {
    let lab = lab("controller");
    let (mut pair, load) = with_load(&lab);
    let guest = pair.primary.status().unwrap().guest_pid.unwrap();
    pair.primary.kill_controller().unwrap();
    wait_until("the end of QEMU", || has_ended(guest));
    pair.standby.wait_for("the takeover", TAKEOVER, took_over).unwrap();
    pair.change_roles();
    // Whoever starts the primary again does not get a second guest, but a standby for the first one.
    pair.standby = lab.node(Host::A, Site::FIRST, Role::Protect).unwrap();
    pair.wait_protected().unwrap();
    assert_eq!(pair.standby.status().unwrap().side, "standby");
    let said = pair.standby.printed();
    assert!(said.contains("The other host took this guest over"), "{said}");
    // Only a later epoch than the first can be taken over.
    load.wait_answers(SOME, LIMIT).unwrap();
    pair.fail_over(false).unwrap();
    assert_undisturbed(&finish(&lab, load));
}

#[test]
fn a_killed_guest_is_handed_over() {
    let lab = lab("qemu");
    let (mut pair, load) = with_load(&lab);
    pair.primary.kill_guest().unwrap();
    pair.standby.wait_for("the takeover", TAKEOVER, took_over).unwrap();
    pair.change_roles();
    // The host that lost it follows by itself.
    pair.wait_protected().unwrap();
    let told = pair.primary.printed();
    assert!(
        !told.contains("nothing was heard"),
        "the standby was told, and did not have to find out: {told}"
    );
    assert_undisturbed(&finish(&lab, load));
}

#[test]
fn a_standby_that_loses_a_process_is_taken_back() {
    let lab = lab("waiting");
    let (mut pair, load) = with_load(&lab);
    pair.standby.kill_guest().unwrap();
    let alone = |status: &Status| status.state == "unprotected";
    let status = pair.primary.wait_for("going on alone", TAKEOVER, alone).unwrap();
    assert!(status.detail.contains("the waiting guest's process is gone"), "{status:?}");
    pair.primary.wait_for("protection anew", LIMIT, |status| status.state == "protected").unwrap();
    load.wait_answers(SOME, LIMIT).unwrap();

    let guest = pair.standby.status().unwrap().guest_pid.unwrap();
    pair.standby.kill_controller().unwrap();
    wait_until("the end of QEMU", || has_ended(guest));
    pair.primary.wait_for("going on alone", TAKEOVER, alone).unwrap();
    load.wait_answers(SOME, LIMIT).unwrap();
    lab.restart_standby(&mut pair).unwrap();
    load.wait_answers(SOME, LIMIT).unwrap();
    pair.fail_over(false).unwrap();
    assert_undisturbed(&finish(&lab, load));
}
