//! A newer version of the SDK beside this one: what `docs/abi.md` says about both directions.
//!
//! ```text
//!  this SDK   ─► policy-output.so ─► a host with the newer SDK
//!  newer SDK  ─► policy-output.so ─► this program's registry
//! ```
//! The newer SDK is made of this one: version 1.1, a plugin interface 2 beside interface 1, and a method more in a trait.

use super::{policy_works, run};
use aventine_examples::{build, cargo, root, shared_object, target};
use aventine_registry::Trust;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const HOST: &str = r#"
use aventine_api::{Context, Epoch, EpochStats, Factory, Host, PluginError, Side};

struct Engine;

impl Host for Engine {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, error: PluginError) {
        panic!("{}", error.chain());
    }
}

fn main() {
    let file = std::env::args().nth(1).expect("a file");
    let loaded = aventine_registry::load(file.as_ref(), aventine_registry::Trust::OwnersOnly);
    for entry in loaded.unwrap_or_else(|e| panic!("{}", e.chain())) {
        let Factory::Policy(make) = entry.factory else { panic!("a policy") };
        let (dir, host) = (std::env::temp_dir(), std::sync::Arc::new(Engine));
        let (guest, id, side) = ("web".into(), "policy".into(), Side::Primary);
        let context = Context { guest, id, side, state_dir: dir.clone(), config_dir: dir, host };
        let mut policy = make("longest = '70ms'", context).expect("a policy");
        policy.hurry();
        println!("{} {:?}", entry.name, policy.interval(&EpochStats::default()));
    }
}
"#;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().unwrap().is_dir() {
            true => copy(&path, &target),
            false => drop(fs::copy(&path, &target).unwrap()),
        }
    }
}

fn patch(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{} has no {from:?} any more", file.display());
    fs::write(file, text.replacen(from, to, 1)).unwrap();
}

/// Makes the newer SDK, with a host and a copy of an example in it; answers where.
fn newer() -> PathBuf {
    let dir = target().join("newer-sdk");
    let _ = fs::remove_dir_all(&dir);
    for part in ["sdk/api", "sdk/abi", "sdk/conformance", "core/registry", "examples/policy-output"] {
        copy(&root().join(part), &dir.join(part));
    }
    let abi = dir.join("sdk/abi");
    patch(&abi.join("Cargo.toml"), "version = \"1.0.0\"", "version = \"1.1.0\"");
    patch(&abi.join("src/descriptor.rs"), "pub const ABI: u32 = 1;", "pub const ABI: u32 = 2;");
    let interface_2 =
        "#[used]\n#[unsafe(no_mangle)]\npub static AVENTINE_PLUGIN_V2: u8 = 2;\n/// Interface 1.";
    patch(&abi.join("src/export.rs"), "/// Interface 1.", interface_2);
    let method = "/// Decides when\npub trait EpochPolicy: Send {\n    /// Of the newer version.\n    fn hurry(&mut self) {}\n";
    let policy = dir.join("sdk/api/src/policy.rs");
    let text = fs::read_to_string(&policy).unwrap();
    let (before, after) = text.split_once("pub trait EpochPolicy: Send {\n").unwrap();
    fs::write(&policy, format!("{before}{method}{after}")).unwrap();
    workspace(&dir);
    dir
}

/// The workspace of the host and of what it is made of.
fn workspace(dir: &Path) {
    let mut manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    manifest.remove("profile");
    let workspace = manifest["workspace"].as_table_mut().unwrap();
    workspace.remove("default-members");
    let members = ["sdk/*", "core/registry", "host"].map(toml::Value::from);
    workspace.insert("members".into(), members.to_vec().into());
    fs::write(dir.join("Cargo.toml"), manifest.to_string()).unwrap();
    fs::copy(root().join("Cargo.lock"), dir.join("Cargo.lock")).unwrap();
    fs::create_dir_all(dir.join("host/src")).unwrap();
    let host = "[package]\nname = \"newer-host\"\nversion = \"0.2.0\"\nedition = \"2024\"\n[dependencies]\n\
        aventine-api.workspace = true\naventine-registry.workspace = true\n";
    fs::write(dir.join("host/Cargo.toml"), host).unwrap();
    fs::write(dir.join("host/src/main.rs"), HOST).unwrap();
}

#[test]
fn an_older_and_a_newer_sdk_load_each_others_plugins() {
    let (newer, target) = (newer(), target().join("newer"));
    let plugin = newer.join("examples/policy-output");
    run::output(&mut cargo(&plugin, &target, &["build", "--offline"])).unwrap_or_else(|e| panic!("{e}"));
    let file = shared_object(&target, "policy-output");
    assert_eq!(aventine_registry::about(&file, Trust::OwnersOnly).unwrap().abi, 2);
    let loaded = aventine_registry::inspect(&file, Trust::OwnersOnly);
    let (_, entries) = loaded.unwrap_or_else(|e| panic!("{}", e.chain()));
    policy_works(entries[0]);

    let plugin = build("policy-output").unwrap_or_else(|e| panic!("{e}"));
    let building =
        run::output(&mut cargo(&newer, &target, &["build", "--offline", "--package", "newer-host"]));
    building.unwrap_or_else(|e| panic!("{e}"));
    let said = run::text(Command::new(target.join("debug/newer-host")).arg(plugin));
    assert_eq!(said.unwrap_or_else(|e| panic!("{e}")).trim(), "output 70ms");
}
