//! The checks themselves: what they would notice, and what the demo tells.

use crate::common::*;
use aventine_demo::checker;
use aventine_demo::lab::Site;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn the_checker_notices_lost_writes() {
    let lab = lab("checker");
    let (pair, load) = with_load(&lab);
    let mut other = checker::connect(lab.client(), Site::FIRST.address(), LIMIT).unwrap();
    redis::cmd("DEL").arg("key:0").exec(&mut other).unwrap();
    redis::cmd("SET").arg("key:1").arg("older").exec(&mut other).unwrap();
    let outcome = finish(&lab, load);
    assert_eq!(outcome.lost, 2, "{outcome:?}");
    drop(pair);

    let (_pair, load) = with_load(&lab);
    let mut other = checker::connect(lab.client(), Site::FIRST.address(), LIMIT).unwrap();
    redis::cmd("DECR").arg("counter:0").exec(&mut other).unwrap();
    let outcome = finish(&lab, load);
    // The counter itself, and each answer about it that was then wrong.
    assert!(outcome.lost > 1 && !outcome.broken, "{outcome:?}");
}

#[test]
fn the_demo_prints_one_json_object() {
    shows_the_demo("demo", &[]);
}

#[test]
fn the_demo_is_the_same_with_every_plugin_loaded() {
    let plugins = given("AVENTINE_PLUGINS");
    shows_the_demo("demo-loaded", &["--plugins".as_ref(), plugins.as_ref()]);
}

fn shows_the_demo(work: &str, options: &[&OsStr]) {
    let parts = parts(work);
    let mut demo = Command::new(parts.program);
    demo.arg("demo").arg("--kernel").arg(parts.kernel).arg("--initrd").arg(parts.initrd).args(options);
    let output = demo.arg("--work").arg(parts.work).args(["--json", "--seed", "7"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
    for (key, least) in [("rounds", 1), ("epochs", 10), ("writes_acknowledged", 1000), ("bytes_sent", 1)] {
        assert!(json[key].as_u64() >= Some(least), "{key}: {json}");
    }
    for key in ["pause_us", "commit_us", "gap_ms"] {
        assert!(
            json[key]["p50"].as_f64() > Some(0.0) && json[key]["max"].as_f64() > Some(0.0),
            "{key}: {json}"
        );
    }
    assert!(
        json["qemu_floor_us"].as_u64() > Some(0) && json["epochs_per_second"].as_f64() > Some(0.0),
        "{json}"
    );
    assert_eq!((&json["writes_lost"], &json["connections_broken"]), (&0.into(), &0.into()));
    assert_eq!(json["seed"], 7);
}

/// The text of every source file below `dir`.
fn sources(dir: &Path, into: &mut String) {
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, into);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(entry).unwrap());
        }
    }
}

#[test]
fn the_failure_model_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let model = fs::read_to_string(root.join("docs/failure-model.md")).unwrap();
    let mut code = String::new();
    ["core", "plugins", "sdk", "tests"].iter().for_each(|dir| sources(&root.join(dir), &mut code));
    let names = model.split('`').skip(1).step_by(2).filter_map(|quoted| quoted.rsplit_once("::"));
    let names = names.map(|(_, name)| name).filter(|name| *name != "…").collect::<Vec<_>>();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(
            code.contains(&format!("#[test]\nfn {name}("))
                || code.contains(&format!("#[test]\n    fn {name}("))
                // A rule of network buffers, of which the conformance crate makes a test.
                || code.contains(&format!("\n    {name} Primary\n")),
            "{name}"
        );
    }
}
