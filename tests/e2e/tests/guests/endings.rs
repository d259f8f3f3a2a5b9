//! Protection or the guest ends, or begins anew, on purpose.

use crate::common::*;
use aventine_demo::checker;
use aventine_demo::lab::{Lab, Pair, Parts, STARTUP, Site};
use aventine_demo::network::Host;
use rustix::process::Signal;

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
fn guest_shutdown_is_not_a_failover() {
    let lab = lab("shutdown");
    let mut pair = lab.start().unwrap();
    let mut connection = checker::connect(lab.client(), Site::FIRST.address(), STARTUP).unwrap();
    // The guest's init goes off when Redis ends. There is no answer.
    redis::cmd("SHUTDOWN").arg("NOSAVE").exec(&mut connection).unwrap_err();
    let status = pair.primary.wait_end(LIMIT).unwrap();
    assert!(status.success(), "{status}\n{}", pair.primary.log());
    pair.standby.wait_for("standing down", LIMIT, |status| status.state == "waiting").unwrap();
}

/// A guest that tells QEMU when its kernel panics.
fn with_panic_device(qemu: &[&str], kernel_words: &str) -> Parts {
    let device = ["-device", "pvpanic-pci"];
    let qemu = device.iter().chain(qemu).map(|argument| argument.to_string()).collect();
    Parts { qemu, kernel_words: kernel_words.into(), ..parts("panic") }
}

#[test]
fn a_guest_that_reboots_or_panics_and_reboots_stays_protected() {
    let parts = Parts {
        work: given("AVENTINE_WORK").join("reboot"),
        ..with_panic_device(&["-action", "panic=none"], "panic=-1")
    };
    let lab = Lab::new(&parts).unwrap();
    let mut pair = lab.start().unwrap();
    let rebooted = |pair: &Pair| pair.primary.printed().matches("the guest rebooted").count();
    for request in ["reboot", "panic"] {
        let before = rebooted(&pair);
        Workload::connect(&lab).send(request);
        wait_until("a reboot", || rebooted(&pair) > before);
        Workload::connect(&lab);
        assert_eq!(pair.primary.status().unwrap().state, "protected");
    }
    assert!(pair.primary.printed().contains("the guest's kernel panicked"));
    let load = load(&lab, Site::FIRST);
    pair.fail_over(false).unwrap();
    assert_undisturbed(&finish(&lab, load));
}

#[test]
fn a_panicked_guest_is_not_resurrected() {
    // The kernel waits for a while after it has panicked, then resets the machine, which ends there.
    let lab = Lab::new(&with_panic_device(&["-action", "panic=none", "-no-reboot"], "panic=10")).unwrap();
    let mut pair = lab.start().unwrap();
    Workload::connect(&lab).send("panic");
    wait_until("a panic", || pair.primary.printed().contains("the guest's kernel panicked"));
    let sealed = pair.primary.status().unwrap().sealed;
    pair.primary.wait_for("an epoch after the panic", LIMIT, |status| status.committed > sealed).unwrap();
    pair.fail_over(false).unwrap();
    // Only a guest that has panicked resets itself.
    let status = pair.standby.wait_end(LIMIT).unwrap();
    assert!(status.success(), "{status}\n{}", pair.standby.log());
}

/// QEMU's own way with a panic is to end.
#[test]
fn a_guest_that_qemu_ends_when_it_panics_is_not_a_failover() {
    let parts = Parts {
        work: given("AVENTINE_WORK").join("panic-ends"),
        // QEMU's end finds it being asked to pause, which crashes it now and then.
        interval: "2ms".into(),
        ..with_panic_device(&["-no-reboot"], "panic=10")
    };
    let lab = Lab::new(&parts).unwrap();
    let mut pair = lab.start().unwrap();
    Workload::connect(&lab).send("panic");
    let status = pair.primary.wait_end(LIMIT).unwrap();
    assert!(status.success(), "{status}\n{}", pair.primary.log());
    assert!(pair.primary.printed().contains("the guest's kernel panicked"), "{}", pair.primary.log());
    pair.standby.wait_for("standing down", LIMIT, |status| status.state == "waiting").unwrap();
}

/// A policy in a shared object, 10 s after it was asked for the first time.
#[test]
fn a_loaded_plugin_that_panics_ends_protection_and_the_guest_runs_on() {
    let file = given("AVENTINE_SHARED_OBJECTS").join("libpanics.so");
    let policy = Some((file, "plugin = \"panics\"\nafter = 400".into()));
    let lab = Lab::new(&Parts { policy, ..parts("panics") }).unwrap();
    let (mut pair, load) = with_load(&lab);
    pair.primary.wait_for("the end of protection", LIMIT, |status| status.state == "unprotected").unwrap();
    let detail = pair.primary.status().unwrap().detail;
    assert!(detail.contains("Plugin policy failed") && detail.contains("panicked"), "{detail}");
    pair.standby.wait_for("standing down", LIMIT, |status| status.state == "waiting").unwrap();
    assert_undisturbed(&finish(&lab, load));
    assert!(pair.primary.log().contains("the plugin panicked: enough epochs"), "{}", pair.primary.log());
}

/// Ends protection with the command line.
fn stop(lab: &Lab) {
    let stop = lab.run(Host::A, Site::FIRST, &["stop", "--state-dir", "state"]).unwrap();
    assert!(stop.status.success(), "{}", String::from_utf8_lossy(&stop.stderr));
    assert_eq!(String::from_utf8_lossy(&stop.stdout).trim(), "Protection has ended.");
}

#[test]
fn protection_can_be_stopped_and_begun_anew() {
    let lab = lab("anew");
    let mut pair = lab.start().unwrap();
    for last in [false, true] {
        let load = load(&lab, Site::FIRST);
        stop(&lab);
        pair.standby.wait_for("standing down", LIMIT, |status| status.state == "waiting").unwrap();
        assert_eq!(pair.primary.status().unwrap().state, "unprotected");
        stop(&lab);
        assert_undisturbed(&finish(&lab, load));
        pair.primary.signal(Signal::TERM).unwrap();
        let status = pair.primary.wait_end(LIMIT).unwrap();
        assert!(status.success(), "{status}\n{}", pair.primary.log());
        if !last {
            // The same images and records, the same standby.
            lab.restart_primary(&mut pair).unwrap();
        }
    }
}

#[test]
fn a_guest_is_protected_once() {
    let lab = lab("twice");
    let (mut pair, load) = with_load(&lab);
    let cases = [(Host::A, "protect", pair.primary.pid()), (Host::B, "standby", pair.standby.pid())];
    for (host, verb, first) in cases {
        // With a state directory of its own, it still finds the guest's network taken.
        let already = format!("Already running for this guest: process {first}");
        for (state, refusal) in [("state", &already[..]), ("other", "no other program has open")] {
            let second = lab.run(host, Site::FIRST, &[verb, "demo.toml", "--state-dir", state]).unwrap();
            let said = String::from_utf8_lossy(&second.stderr);
            assert_eq!(second.status.code(), Some(1), "{said}");
            assert!(said.contains(refusal), "{said}");
        }
    }
    let before = pair.primary.status().unwrap();
    assert_eq!(before.state, "protected");
    pair.primary.wait_for("further epochs", LIMIT, |status| status.committed > before.committed).unwrap();
    pair.fail_over(true).unwrap();
    assert_undisturbed(&finish(&lab, load));
}
