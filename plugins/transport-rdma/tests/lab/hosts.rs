//! Two hosts with soft-RoCE, and what becomes of a link between them.

use crate::ends::CONFIG;
use crate::fabric;
use crate::keys::Keys;
use aventine_lab::{Host, Lab, Process, chain};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Two hosts, each with an RDMA device, and what their ends are told.
pub(crate) struct Pair {
    pub(crate) lab: Lab,
    config: String,
    _keys: Keys,
}

#[track_caller]
pub(crate) fn ok(host: &Host, line: &str) -> String {
    let output = host.run(Command::new("sh").args(["-e", "-c", line])).unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Pair {
    pub(crate) fn start() -> Pair {
        Pair::reached_by(|standby| standby.address().to_string())
    }

    /// `address` answers the standby's, as the configuration writes it.
    fn reached_by(address: impl Fn(&Host) -> String) -> Pair {
        let lab = Lab::start(2).unwrap_or_else(|error| panic!("{}", chain(&error)));
        lab.hosts.iter().for_each(|host| drop(ok(host, &fabric::lines("eth0"))));
        let (standby, keys) = (address(&lab.hosts[1]), Keys::new());
        let config = format!(
            "listen = '{standby}:7400'\npeer = '{standby}:7400'\n{}\nunsafe_unencrypted_payload = true",
            keys.node("node", |_| {})
        );
        Pair { lab, config, _keys: keys }
    }

    /// The words that start another test of this binary.
    pub(crate) fn end_words(name: &str) -> Vec<String> {
        let program = std::env::current_exe().unwrap().display().to_string();
        let name = format!("ends::{name}");
        [&program, "--exact", &name, "--ignored", "--nocapture", "--test-threads=1"].map(String::from).into()
    }

    fn end(&self, host: usize, words: &[String]) -> Process<'_> {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env(CONFIG, &self.config);
        let mut end = self.lab.hosts[host].spawn(&command).unwrap();
        end.wait_for("here\n").unwrap();
        end
    }

    pub(crate) fn ends(&self) -> Ends<'_> {
        let [primary, standby] = ["primary", "standby"].map(Pair::end_words);
        let mut ends = Ends { primary: self.end(0, &primary), standby: self.end(1, &standby) };
        tell(&mut ends.standby, "listen");
        ends
    }
}

/// Says a line, and does not wait; answers its tag.
fn say(end: &Process<'_>, line: &str) -> String {
    static LAST: AtomicU32 = AtomicU32::new(0);
    let tag = format!("#{}", LAST.fetch_add(1, Ordering::SeqCst));
    end.input().write(format!("{line} {tag}\n").as_bytes()).unwrap();
    tag
}

#[track_caller]
fn await_done(end: &mut Process<'_>, line: &str, tag: &str) {
    end.wait_for(&format!("did {line} {tag}: ")).unwrap();
}

#[track_caller]
fn tell(end: &mut Process<'_>, line: &str) -> String {
    let tag = say(end, line);
    await_done(end, line, &tag);
    tag
}

/// Both ends, not yet linked.
pub(crate) struct Ends<'h> {
    pub(crate) primary: Process<'h>,
    pub(crate) standby: Process<'h>,
}

impl Ends<'_> {
    /// Links them, with these channels.
    #[track_caller]
    pub(crate) fn link(&mut self, channels: &[&str]) {
        self.both("connect", "accept");
        for name in channels {
            let open = format!("open {name}");
            self.both(&open, &open);
        }
    }

    /// Has each do its part.
    #[track_caller]
    pub(crate) fn both(&mut self, primary: &str, standby: &str) {
        let tag = say(&self.standby, standby);
        tell(&mut self.primary, primary);
        await_done(&mut self.standby, standby, &tag);
    }

    /// Pages are on their way, and some of them are there; answers the tags of who sends and who takes them.
    #[track_caller]
    fn flood(&mut self) -> (String, String) {
        let (takes, sends) = (tell(&mut self.standby, "drain"), tell(&mut self.primary, "flood"));
        self.standby.wait_for(&format!("{takes} took 1024\n")).unwrap();
        self.standby.wait_for(&format!("{takes} lent ")).unwrap();
        (sends, takes)
    }
}

#[test]
fn ten_thousand_checkpoints_arrive_whole_though_the_cable_is_pulled_for_a_moment() {
    let pair = Pair::start();
    let mut ends = pair.ends();
    ends.link(&["control", "pages"]);
    say(&ends.standby, "verify 10000");
    say(&ends.primary, "checkpoints 10000");
    ends.primary.wait_for("sent 2000\n").unwrap();
    let [a, b] = pair.lab.hosts.as_slice() else { unreachable!() };
    b.link(false).unwrap();
    let missed =
        a.run(Command::new("sh").args(["-c", &format!("! ping -c 1 -w 1 {}", b.address())])).unwrap();
    assert!(missed.status.success());
    b.link(true).unwrap();
    ends.primary.wait_for("10000 acknowledged").unwrap();
    ends.standby.wait_for("10000 whole, 200 of them in lent memory").unwrap();
}

#[test]
fn a_primary_whose_standby_dies_in_a_page_write_is_told_so() {
    let pair = Pair::start();
    for power in [false, true] {
        let mut ends = pair.ends();
        ends.link(&["control", "pages"]);
        let (sends, _) = ends.flood();
        if power {
            pair.lab.hosts[1].kill();
        } else {
            ends.standby.kill().unwrap();
        }
        ends.primary.wait_for(&format!("{sends} failed: PeerLost ")).unwrap();
        tell(&mut ends.primary, "drop");
    }
}

#[test]
fn a_standby_whose_primary_dies_in_a_page_write_goes_on_without() {
    let pair = Pair::start();
    let mut ends = pair.ends();
    ends.link(&["control", "pages"]);
    let (_, takes) = ends.flood();
    ends.primary.kill().unwrap();
    ends.standby.wait_for(&format!("{takes} failed: PeerLost ")).unwrap();
    tell(&mut ends.standby, "drop");

    // The same listener, and a new process.
    ends.primary = pair.end(0, &Pair::end_words("primary"));
    ends.link(&["control", "pages"]);
    let (_, takes) = ends.flood();
    pair.lab.hosts[0].kill();
    // Nothing tells of a host that has lost its power: the engine finds it out by its heartbeats, and ends the link.
    tell(&mut ends.standby, "abort");
    ends.standby.wait_for(&format!("{takes} failed: PeerLost The link was ended on this side")).unwrap();
    tell(&mut ends.standby, "drop");
}

#[test]
fn a_cable_that_stays_pulled_is_a_lost_peer_and_a_new_link_comes_with_it() {
    let pair = Pair::start();
    let mut ends = pair.ends();
    ends.link(&["control", "pages"]);
    let (sends, _) = ends.flood();
    pair.lab.hosts[1].link(false).unwrap();
    let lost = format!("{sends} failed: PeerLost The other host's memory is out of reach: ");
    ends.primary.wait_for(&lost).unwrap();
    tell(&mut ends.primary, "drop");
    tell(&mut ends.standby, "abort");
    tell(&mut ends.standby, "drop");
    pair.lab.hosts[1].link(true).unwrap();
    ends.link(&["control", "pages"]);
    say(&ends.standby, "verify 100");
    tell(&mut ends.primary, "checkpoints 100");
}

#[test]
fn what_is_sent_is_read_later_or_who_waits_for_that_is_told() {
    let pair = Pair::start();
    let cable = |is_there| pair.lab.hosts[1].link(is_there).unwrap();
    let mut ends = pair.ends();
    ends.link(&["control", "pages"]);
    cable(false);
    // Returns, and the memory is dropped.
    tell(&mut ends.primary, "post");
    cable(true);
    let takes = tell(&mut ends.standby, "drain");
    ends.standby.wait_for(&format!("{takes} lent 64\n")).unwrap();

    for (ends_it, why) in [
        (Some("abort"), "The link was ended on this side"),
        (None, "The other host's memory is out of reach: "),
    ] {
        ends.both("drop", "drop");
        ends.link(&["control", "pages"]);
        cable(false);
        tell(&mut ends.primary, "post");
        let waits = tell(&mut ends.primary, "settle");
        ends_it.iter().for_each(|line| drop(tell(&mut ends.primary, line)));
        ends.primary.wait_for(&format!("{waits} failed: PeerLost {why}")).unwrap();
        cable(true);
        tell(&mut ends.standby, "abort");
    }
}

#[test]
fn memory_that_must_not_be_locked_is_named() {
    let pair = Pair::start();
    let mut words =
        ["prlimit", "--memlock=1000000", "setpriv", "--bounding-set=-ipc_lock"].map(String::from).to_vec();
    words.extend(Pair::end_words("primary"));
    let mut ends = pair.ends();
    ends.primary = pair.end(0, &words);
    ends.both("connect", "accept");
    ends.both("open control", "open control");
    say(&ends.standby, "open pages");
    say(&ends.primary, "open pages");
    ends.primary.wait_for(": Unavailable Channel pages was not opened").unwrap();
    ends.primary.wait_for("Could not register 4194304 bytes of memory; the limit of locked memory").unwrap();
    ends.standby.wait_for(": PeerLost Channel pages was not opened").unwrap();
}

#[test]
fn staging_memory_that_must_not_be_locked_costs_a_copy() {
    let pair = Pair::start();
    // Enough for the rings and a batch, and not for 32 MiB.
    let limited: Vec<String> =
        ["prlimit", "--memlock=12000000", "setpriv", "--bounding-set=-ipc_lock"].map(String::from).into();
    for (limits, lent) in [([true, false], 2), ([false, true], 0)] {
        let mut made =
            ["primary", "standby"].into_iter().zip(limits).zip(0..).map(|((side, is_limited), host)| {
                let words = Pair::end_words(side);
                pair.end(host, &if is_limited { [limited.clone(), words].concat() } else { words })
            });
        let mut ends = Ends { primary: made.next().unwrap(), standby: made.next().unwrap() };
        tell(&mut ends.standby, "listen");
        ends.both("lend 32", "lend 32");
        ends.link(&["control", "pages"]);
        say(&ends.standby, "verify 60");
        tell(&mut ends.primary, "checkpoints 60");
        ends.standby.wait_for(&format!("60 whole, {lent} of them in lent memory")).unwrap();
        let ended = [ends.primary, ends.standby].map(|end| {
            end.input().write(b"").unwrap();
            end.output().unwrap()
        });
        assert!(ended.iter().all(|output| output.status.success()));
    }
}

#[test]
fn a_host_without_an_rdma_device_is_told_so() {
    let pair = Pair::start();
    ok(&pair.lab.hosts[1], "rdma link delete rxe0");
    let mut ends = pair.ends();
    ends.both("connect", "accept");
    say(&ends.primary, "open control");
    say(&ends.standby, "open control");
    ends.standby.wait_for(": Unavailable Channel control was not opened").unwrap();
    ends.standby.wait_for("This host has no RDMA device; `rdma link` shows them").unwrap();
    ends.primary.wait_for(": PeerLost Channel control was not opened").unwrap();
}

#[test]
fn hosts_reach_each_other_by_ipv6() {
    let pair = Pair::reached_by(|standby| {
        ok(standby, "ip address add fd09::b/64 dev eth0 nodad");
        "[fd09::b]".into()
    });
    ok(&pair.lab.hosts[0], "ip address add fd09::a/64 dev eth0 nodad");
    let mut ends = pair.ends();
    ends.link(&["control", "pages"]);
    say(&ends.standby, "verify 100");
    tell(&mut ends.primary, "checkpoints 100");
    ends.standby.wait_for("100 whole").unwrap();
}
