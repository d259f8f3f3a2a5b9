//! A VM that runs already: protected where it runs.

use crate::common::*;
use aventine_demo::lab::{Lab, Parts};
use rustix::process::Signal;

/// Somebody started it by hand and it has booted: protected, then its host is lost.
#[test]
fn an_attached_vm_survives_its_host() {
    let lab = Lab::new(&Parts { attach: true, ..parts("attach") }).unwrap();
    let (mut pair, load) = with_load(&lab);
    let vm = pair.vm.as_mut().expect("the lab started a VM");
    assert!(vm.is_there().unwrap());
    // Protection ends and the VM's process is the same; the client notices nothing.
    pair.fail_over(false).unwrap();
    assert!(!pair.vm.as_mut().unwrap().is_there().unwrap());
    assert_undisturbed(&finish(&lab, load));
}

/// Losing the controller alone leaves a VM that runs and says nothing; the next controller asks the arbiter and goes on.
#[test]
fn an_attached_vm_whose_controller_was_killed_is_protected_again() {
    let lab = Lab::new(&Parts { attach: true, ..parts("reattach") }).unwrap();
    let (mut pair, load) = with_load(&lab);
    for _ in 0..3 {
        // Without a standby the arbiter is this side's to win.
        pair.standby.kill(false).unwrap();
        pair.primary.signal(Signal::KILL).unwrap();
        pair.primary.wait_end(LIMIT).unwrap();
        assert!(pair.vm.as_mut().unwrap().is_there().unwrap());
        lab.restart(&mut pair).unwrap();
        load.wait_answers(SOME, LIMIT).unwrap();
    }
    // Ending the controller in good order does not end a VM that is not its own.
    pair.primary.signal(Signal::TERM).unwrap();
    let status = pair.primary.wait_end(LIMIT).unwrap();
    assert!(status.success(), "{status}\n{}", pair.primary.log());
    assert!(pair.vm.as_mut().unwrap().is_there().unwrap());
    pair.standby.signal(Signal::KILL).unwrap();
    pair.standby.wait_end(LIMIT).unwrap();
    lab.restart(&mut pair).unwrap();
    load.wait_answers(SOME, LIMIT).unwrap();
    pair.fail_over(true).unwrap();
    assert_undisturbed(&finish(&lab, load));
}
