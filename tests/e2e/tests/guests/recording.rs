//! A guest is recorded, and codecs and policies are tried on the trace.

use crate::common::*;
use aventine_demo::lab::{Lab, Parts, STARTUP, Site};
use aventine_demo::network::Host;
use aventine_demo::node::Role;
use aventine_engine::Status;
use serde_json::Value;
use std::fs;

const STRATEGIES: &str = r#"trace = "redis.trace"
policy = [{ plugin = "fixed", interval = "1ms" }, { plugin = "fixed", interval = "100ms" }]
codec = [{ plugin = "raw" }]
"#;

fn recording(least: u64) -> impl Fn(&Status) -> bool {
    move |status| status.state == "recording" && status.committed >= least
}

#[test]
fn a_guest_is_recorded_and_replayed() {
    let record = Some("redis.trace".into());
    let lab = Lab::new(&Parts { interval: "10ms".into(), record, ..parts("recording") }).unwrap();
    lab.prepare(Site::FIRST).unwrap();
    let dir = lab.dir(Host::A, Site::FIRST);

    let mut primary = lab.node(Host::A, Site::FIRST, Role::Protect).unwrap();
    primary.wait_for("the recording", STARTUP, recording(1)).unwrap();
    let load = load(&lab, Site::FIRST);
    let from = primary.status().unwrap().committed;
    primary.wait_for("epochs", LIMIT, recording(from + 100)).unwrap();
    assert_undisturbed(&finish(&lab, load));
    primary.stop().unwrap();
    let committed =
        primary.wait_for("the end", LIMIT, |status| status.state == "unprotected").unwrap().committed;

    fs::write(dir.join("strategies.toml"), STRATEGIES).unwrap();
    let replayed = lab.run(Host::A, Site::FIRST, &["replay", "strategies.toml", "--json"]).unwrap();
    let lines = String::from_utf8(replayed.stdout).unwrap();
    let errors = String::from_utf8_lossy(&replayed.stderr);
    let rows = lines.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).collect::<Vec<_>>();
    let [short, long] = &rows[..] else { panic!("{lines}{errors}") };
    println!("{lines}");
    let number = |row: &Value, key| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));
    assert_eq!(number(short, "recorded_epochs"), committed as f64);
    // Two of them may have been written within a millisecond.
    assert!(number(short, "epochs") > number(long, "epochs") * 2.0);
    // Pages that are written again and again are sent once in a long epoch.
    assert!(number(long, "pages") < number(short, "pages") && number(long, "copy_pages") > 5000.0);
    assert!((0.98..1.0).contains(&number(short, "ratio")));
    // It is large.
    fs::remove_file(dir.join("redis.trace")).unwrap();
}

/// The recorder is killed in the middle of an epoch: what a standby is fed with then ends as a primary's life does.
#[test]
fn a_recorded_guest_lives_on_at_the_standby_that_is_fed_with_it() {
    let lab = Lab::new(&parts("fed")).unwrap();
    lab.prepare(Site::FIRST).unwrap();
    let dir = lab.dir(Host::A, Site::FIRST);
    let (path, trace) = (dir.join("demo.toml"), dir.join("redis.trace"));
    let protecting = fs::read_to_string(&path).unwrap();
    let (before, rest) = protecting.split_once("[transport]").unwrap();
    let (_, after) = rest.split_once("[policy]").unwrap();
    let transport = "[transport]\nplugin = \"file\"\npath = \"redis.trace\"\n";
    fs::write(&path, [before, transport, "[policy]", after].concat()).unwrap();
    let mut primary = lab.node(Host::A, Site::FIRST, Role::Protect).unwrap();
    primary.wait_for("the recording", STARTUP, recording(1)).unwrap();
    let load = load(&lab, Site::FIRST);
    load.wait_answers(1000, LIMIT).unwrap();
    primary.kill(false).unwrap();
    let written = load.answers();

    fs::write(&path, &protecting).unwrap();
    let mut standby = lab.node(Host::B, Site::FIRST, Role::Standby).unwrap();
    standby.wait_for("the standby", STARTUP, |status| status.state == "waiting").unwrap();
    let feed = |trace: &str| {
        lab.run(Host::A, Site::FIRST, &["replay", trace, "--standby", "demo.toml", "--json"]).unwrap()
    };
    // One that is damaged far behind the first checkpoint is no primary that was lost.
    let mut damaged = fs::read(&trace).unwrap();
    let late = damaged.len() - damaged.len() / 20;
    damaged[late] ^= 1;
    fs::write(dir.join("damaged.trace"), damaged).unwrap();
    let refused = feed("damaged.trace");
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains("told to stand down"), "{told}");
    standby.wait_for("standing down", LIMIT, |status| status.state == "waiting").unwrap();
    assert_eq!(standby.status().unwrap().side, "standby", "{told}");
    fs::remove_file(dir.join("damaged.trace")).unwrap();

    let fed = feed("redis.trace");
    let told = String::from_utf8_lossy(&fed.stderr);
    assert!(fed.status.success() && told.contains("breaks off"), "{told}");
    let row: Value = serde_json::from_slice(&fed.stdout).unwrap();
    println!("{row}");
    assert!(row["epochs"].as_u64() > Some(10) && row["commit_us"]["p50"].as_u64() > Some(0), "{row}");

    standby.wait_for("the takeover", LIMIT, |status| status.side == "primary").unwrap();
    load.wait_answers(written + 1000, LIMIT).unwrap();
    assert_undisturbed(&finish(&lab, load));
    fs::remove_file(trace).unwrap();
}
