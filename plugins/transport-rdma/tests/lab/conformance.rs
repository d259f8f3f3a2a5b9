//! The rules of the kind, on one host.

use aventine_conformance::form::Native;

type Bench = crate::bench::Hosts<Native>;

#[test]
fn every_rule_holds_in_the_lab() {
    crate::fabric::unpacked();
    aventine_lab::inside(|| {
        crate::fabric::start();
        for rule in aventine_conformance::transport::rules::<Bench>() {
            rule.check(module_path!()).unwrap_or_else(|violation| panic!("{violation}"));
        }
    });
}

#[test]
#[ignore = "started by a_killed_standby_is_lost and a_killed_primary_is_lost"]
fn peer_that_crashes() {
    aventine_conformance::transport::peer::<Bench>();
}
