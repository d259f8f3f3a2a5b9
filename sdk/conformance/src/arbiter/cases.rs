//! The cases. What each rule means is told in the table of [`super::rules`].

use super::ArbiterBench;
use super::crash::{Claiming, SESSIONS};
use super::desk::{Claimant, Desk, SIDES, place, session};
use crate::suite::{Seen, calmly};
use aventine_api::{Side, Verdict};
use std::sync::Barrier;
use std::sync::mpsc::channel;
use std::thread;

pub(super) fn the_first_claim_wins<B: ArbiterBench>(desk: &mut Desk<B>) -> Seen {
    let mut hosts = desk.hosts();
    for (number, first) in (0..8).zip(SIDES.into_iter().cycle()) {
        desk.settle(&mut hosts, session(number), first)?;
        let when = format!("after the {} has won", first.name());
        hosts[place(first.other())].expect(session(number), first, &when)?;
    }
    Ok(())
}

pub(super) fn a_verdict_stands<B: ArbiterBench>(desk: &mut Desk<B>) -> Seen {
    let mut hosts = desk.hosts();
    for (number, first) in (0..2).zip(SIDES) {
        desk.settle(&mut hosts, session(number), first)?;
    }
    // Every order of the sides and the sessions, several times.
    for round in 0..16u32 {
        for (number, first) in (0..2).zip(SIDES) {
            let asking = if round & (1 << number) == 0 { [0, 1] } else { [1, 0] };
            for host in asking {
                hosts[host].expect(session(number), first, &format!("asked again in round {round}"))?;
            }
        }
    }
    Ok(())
}

pub(super) fn a_restart_forgets_nothing<B: ArbiterBench>(desk: &mut Desk<B>) -> Seen {
    for (number, first) in (0..4).zip(SIDES.into_iter().cycle()) {
        desk.settle(&mut desk.hosts(), session(number), first)?;
    }
    for side in [Side::Standby, Side::Primary, Side::Standby] {
        let mut back = desk.claimant(side);
        for (number, first) in (0..4).zip(SIDES.into_iter().cycle()) {
            back.expect(session(number), first, "after a restart")?;
        }
    }
    Ok(())
}

pub(super) fn sessions_are_apart<B: ArbiterBench>(desk: &mut Desk<B>) -> Seen {
    let first = |number: u32| SIDES[number.count_ones() as usize % 2];
    let mut hosts = desk.hosts();
    for number in 0..12 {
        desk.settle(&mut hosts, session(number), first(number))?;
        for before in [0, number / 2, number] {
            for host in &mut hosts {
                host.expect(session(before), first(before), &format!("after session {number} was decided"))?;
            }
        }
    }
    Ok(())
}

pub(super) fn races_have_one_winner<B: ArbiterBench>(desk: &mut Desk<B>) -> Seen {
    const CLAIMANTS: usize = 4;
    const RACES: u32 = 12;
    let (place, barrier) = (desk.bench.place(), Barrier::new(CLAIMANTS + 1));
    let race = |number: usize| {
        let mut claimant = Claimant::new::<B>(&place, SIDES[number % 2]);
        let ask = |number| {
            barrier.wait();
            claimant.owner(session(number))
        };
        // All of them come to every start, whatever happened to them before.
        (0..RACES).map(ask).collect::<Vec<Result<Side, String>>>()
    };
    let said = thread::scope(|scope| {
        let threads: Vec<_> = (0..CLAIMANTS).map(|number| scope.spawn(move || race(number))).collect();
        for (number, owner) in (0..RACES).zip(SIDES.into_iter().cycle()) {
            barrier.wait();
            desk.decide(session(number), owner);
        }
        threads
            .into_iter()
            .map(|t| t.join().map_err(|_| "a claimant panicked".to_owned()))
            .collect::<Vec<_>>()
    });
    let said = said.into_iter().collect::<Result<Vec<_>, String>>()?;
    let mut later = desk.claimant(Side::Standby);
    for (number, answers) in (0..RACES).map(|n| (n, said.iter().map(move |a| a[n as usize].clone()))) {
        let owners = answers.collect::<Result<Vec<Side>, String>>()?;
        if owners.iter().any(|owner| *owner != owners[0]) {
            return Err(format!(
                "of {CLAIMANTS} claimants of one session, one is told another owner: {owners:?}"
            ));
        }
        later.expect(session(number), owners[0], "after a race")?;
    }
    Ok(())
}

pub(super) fn the_only_side_never_loses<B: ArbiterBench>(desk: &mut Desk<B>) -> Seen {
    let mut hosts = desk.hosts();
    for (number, side) in (0..6).zip(SIDES.into_iter().cycle()) {
        for ask in 0..4 {
            if ask == 2 {
                desk.decide(session(number), side);
            }
            // Asks with a plugin of its own as well: a restart is not the other side.
            let mut again = desk.claimant(side);
            for claimant in [&mut hosts[place(side)], &mut again] {
                if let Ok(Verdict::Lost) = claimant.claim(session(number))? {
                    return Err(format!("the {} alone has claimed, and is told that it lost", side.name()));
                }
            }
        }
    }
    Ok(())
}

pub(super) fn it_says_whether_it_waits_for_a_person<B: ArbiterBench>(desk: &mut Desk<B>) -> Seen {
    let waits = desk.waits_for_person();
    for (number, first) in (0..2).zip(SIDES) {
        let mut hosts = desk.hosts();
        if hosts.iter().any(|h| h.waits_for_person() != waits) {
            return Err("`waits_for_person` is not always the same".to_owned());
        }
        if !waits {
            hosts[place(first)].owner(session(number))?;
            continue;
        }
        for host in hosts.iter_mut().chain(&mut desk.hosts()) {
            let answer = host.claim(session(number))?.map_err(|e| e.chain());
            if answer != Ok(Verdict::Undecided) {
                return Err(format!("nobody has decided yet, and a claim is answered by {answer:?}"));
            }
        }
        desk.bench.decide(session(number), first);
        for host in &mut hosts {
            host.expect(session(number), first, "after a person decided")?;
        }
    }
    Ok(())
}

pub(super) fn a_probe_claims_nothing<B: ArbiterBench>(desk: &mut Desk<B>) -> Seen {
    let mut hosts = desk.hosts();
    for (number, first) in (0..4).zip(SIDES.into_iter().cycle()) {
        for host in [first.other(), first, first.other()] {
            let probed = hosts[place(host)].probe()?;
            probed.map_err(|e| format!("the service is there, and `probe` fails: {}", e.chain()))?;
        }
        desk.settle(&mut hosts, session(number), first)?;
    }
    Ok(())
}

pub(super) fn silence_is_no_verdict<B: ArbiterBench>(desk: &mut Desk<B>) -> Seen {
    let mut hosts = desk.hosts();
    desk.settle(&mut hosts, session(0), Side::Standby)?;
    desk.bench.vanish();
    let hosts = hosts.into_iter().chain(desk.hosts()).collect();
    // Nobody joins the thread: a claim may never end.
    let (tell, answer) = channel();
    thread::spawn(move || tell.send(calmly("a claim", || expect_errors(hosts))));
    match answer.recv_timeout(B::PATIENCE) {
        Ok(done) => done.and_then(|done| done),
        Err(_) => Err(format!("the service is gone, and claims and probes do not end in {:?}", B::PATIENCE)),
    }
}

/// Nobody answers.
fn expect_errors(hosts: Vec<Claimant>) -> Seen {
    for mut host in hosts {
        if let Ok(verdict) = host.claim(session(1))? {
            return Err(format!("the service is gone, and a claim is answered by {verdict:?}"));
        }
        if host.probe()?.is_ok() {
            return Err("the service is gone, and `probe` says that it can be asked".to_owned());
        }
    }
    Ok(())
}

pub(super) fn an_error_costs_nothing<B: ArbiterBench>(desk: &mut Desk<B>) -> Seen {
    let mut hosts = desk.hosts();
    desk.settle(&mut hosts, session(0), Side::Standby)?;
    desk.bench.vanish();
    for host in &mut hosts {
        // What it answers is another rule's matter.
        for number in 0..=1 {
            drop(host.claim(session(number))?);
        }
    }
    desk.bench.reappear();
    for host in &mut hosts {
        desk.await_service(host)?;
        host.expect(session(0), Side::Standby, "once the service is back")?;
    }
    // Both have claimed while nobody answered: one of them may have been heard.
    desk.decide(session(1), Side::Standby);
    let owner = hosts[0].owner(session(1))?;
    hosts[1].expect(session(1), owner, "once the service is back")?;
    // Nobody else asks here: it is the first one's own.
    desk.bench.vanish();
    drop(hosts[0].claim(session(2))?);
    desk.bench.reappear();
    desk.await_service(&mut hosts[0])?;
    desk.settle(&mut hosts, session(2), Side::Primary)
}

pub(super) fn a_crash_changes_no_verdict<B: ArbiterBench>(desk: &mut Desk<B>) -> Seen {
    for (number, owner) in (0..SESSIONS).zip(SIDES.into_iter().cycle()) {
        desk.decide(session(number), owner);
    }
    // Each dies at another place, while the others go on.
    let mut children = Vec::new();
    for (side, until) in SIDES.into_iter().cycle().zip([3, 7, 13]) {
        children.push((Claiming::start(desk, side)?, until));
    }
    let mut said = Vec::new();
    for (mut child, until) in children {
        said.extend(child.read_until(until)?);
    }
    let mut hosts = desk.hosts();
    for number in 0..SESSIONS {
        let owner = hosts[number as usize % 2].owner(session(number))?;
        hosts[1 - number as usize % 2].expect(session(number), owner, "after crashes")?;
        if let Some((_, told)) = said.iter().find(|(n, told)| *n == number && *told != owner) {
            let (owner, told) = (owner.name(), told.name());
            return Err(format!(
                "a host that died was told that the {told} owns the guest; now it is the {owner}"
            ));
        }
    }
    Ok(())
}
