//! A guest protected by the example plugins alone, but for QEMU and the disk: each loaded from its shared object.

use crate::common::*;
use aventine_demo::lab::{Lab, Parts, Site};
use aventine_demo::network::{Host, TAPS};
use aventine_engine::Status;
use std::net::TcpListener;
use store::Store;

#[path = "../../../../examples/arbiter-http/tests/common/store.rs"]
mod store;

/// Where the arbiter's store is: both hosts can reach this one's address for replication.
const STORE: &str = "10.78.0.1:8600";

#[test]
fn a_guest_protected_by_the_example_plugins_outlives_its_host() {
    let files = aventine_examples::EXAMPLES.map(|example| aventine_examples::build(example).unwrap());
    let (link, tap) = (given("AVENTINE_WORK").join("examples-link"), TAPS[0]);
    let link = std::path::absolute(link).unwrap();
    let tables = format!(
        r#"
        plugins = {{ load = {files:?} }}
        network = [{{ id = "net0", plugin = "ring", device = "{tap}", limit = "4MiB" }}]
        transport = {{ plugin = "unix", path = {link:?} }}
        policy = {{ plugin = "output", longest = "100ms", shortest = "5ms" }}
        codec = {{ plugin = "xor" }}
        arbiter = {{ plugin = "http", url = "http://{STORE}/web", unsafe_plaintext = true }}
        "#
    );
    let lab = Lab::new(&Parts { tables: tables.parse().unwrap(), ..parts("examples") }).unwrap();
    let listener = lab.network().host(Host::A).enter(|| TcpListener::bind(STORE)).unwrap().unwrap();
    let store = Store::start(listener);
    assert_eq!(store.address.to_string(), STORE);
    let mut pair = lab.start().unwrap();
    let load = load(&lab, Site::FIRST);
    let ended_for_output = |status: &Status| {
        let mut metrics = status.metrics.iter();
        metrics.any(|m| m.plugin == "policy" && m.name == "ended_for_output_total" && m.value > 20)
    };
    pair.primary.wait_for("epochs that end for output", LIMIT, ended_for_output).unwrap();
    pair.fail_over(false).unwrap();
    load.wait_answers(SOME, LIMIT).unwrap();
    // The session's object is there, and it is the standby's.
    let objects = store.objects.lock().unwrap().clone();
    assert!(objects.values().any(|object| object.ends_with(" standby\n")), "{objects:?}");
    pair.change_roles();
    lab.restart_standby(&mut pair).unwrap();
    assert_undisturbed(&finish(&lab, load));
}
