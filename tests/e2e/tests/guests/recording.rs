//! A guest is recorded, and codecs and policies are tried on the trace.

use crate::common::*;
use aventine_demo::lab::{Lab, Parts, STARTUP, Site};
use aventine_demo::network::Host;
use aventine_demo::node::Role;
use serde_json::Value;
use std::fs;

const STRATEGIES: &str = r#"trace = "redis.trace"
policy = [{ plugin = "fixed", interval = "1ms" }, { plugin = "fixed", interval = "100ms" }]
codec = [{ plugin = "raw" }]
"#;

#[test]
fn a_guest_is_recorded_and_replayed() {
    let lab = Lab::new(&Parts { interval: "10ms".into(), ..parts("recording") }).unwrap();
    lab.prepare(Site::FIRST).unwrap();
    let dir = lab.dir(Host::A, Site::FIRST);
    let path = dir.join("demo.toml");
    let config = fs::read_to_string(&path).unwrap();
    let (before, rest) = config.split_once("[transport]").unwrap();
    let (_, after) = rest.split_once("[policy]").unwrap();
    let transport = "[transport]\nplugin = \"file\"\npath = \"redis.trace\"\n";
    fs::write(&path, [before, transport, "[policy]", after].concat()).unwrap();

    let mut primary = lab.node(Host::A, Site::FIRST, Role::Protect).unwrap();
    let recording = |least| {
        move |status: &aventine_engine::Status| status.state == "recording" && status.committed >= least
    };
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
