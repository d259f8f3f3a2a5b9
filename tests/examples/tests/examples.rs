//! The example plugins are what docs/plugin-guide.md says: built apart from the program, by a compiler of the author's choice,
//! loaded by the program, and at work behind the traits.

use aventine_api::{
    Arbiter, Context, Disengage, Epoch, EpochStats, ErrorCode, Factory, Host, Kind, OpenEpoch, PAGE_SIZE,
    PageRun, PageSink, PluginEntry, PluginError, SessionId, Side, Verdict,
};
use aventine_examples::{EXAMPLES, build, cargo, root, shared_object, target};
use aventine_lab::{packages, run};
use aventine_registry::Trust;
use std::collections::HashMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use store::Store;
use tempfile::TempDir;

#[path = "../../../examples/arbiter-http/tests/common/store.rs"]
mod store;
#[path = "versions/newer.rs"]
mod versions;

const PATIENCE: Duration = Duration::from_secs(60);
/// The oldest compiler that the SDK promises to build with: that of Debian 12.
const OLD: &str = "1.85.0+dfsg3-1~deb12u3";

struct Engine;

impl Host for Engine {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, error: PluginError) {
        panic!("{}", error.chain());
    }
}

fn context(dir: &TempDir) -> Context {
    Context {
        guest: "web".into(),
        id: "it".into(),
        side: Side::Primary,
        state_dir: dir.path().into(),
        config_dir: dir.path().into(),
        host: Arc::new(Engine),
    }
}

/// Loads a shared object that has one plugin, and looks at what it says about itself.
fn load(file: &Path, example: &str) -> &'static PluginEntry {
    let about = aventine_registry::about(file, Trust::OwnersOnly).unwrap_or_else(|e| panic!("{}", e.chain()));
    assert_eq!((about.abi, about.build), (1, format!("aventine-{example} 0.1.0")));
    // Looked at, not added under its name: two builds of one plugin are loaded here.
    let loaded = aventine_registry::inspect(file, Trust::OwnersOnly);
    let (_, entries) = loaded.unwrap_or_else(|e| panic!("{}", e.chain()));
    let [entry] = entries.as_slice() else { panic!("{example} has one plugin") };
    let (kind, name) = example.split_once('-').unwrap();
    assert_eq!((entry.factory.kind().name(), entry.name), (kind, name));
    let schema: serde_json::Value = serde_json::from_str(&(entry.schema)()).unwrap();
    assert!(schema["properties"].is_object(), "{schema}");
    assert!((entry.validate)("no_such_key = 1").is_err());
    entry
}

fn built(example: &str) -> &'static PluginEntry {
    load(&build(example).unwrap_or_else(|e| panic!("{e}")), example)
}

struct Image(Vec<u8>);

impl PageSink for Image {
    fn pages(&mut self, first: u64, pages: u64) -> Result<&mut [u8], PluginError> {
        Ok(&mut self.0[first as usize * PAGE_SIZE..][..pages as usize * PAGE_SIZE])
    }
}

fn codec_works(entry: &PluginEntry) {
    let Factory::Codec(make) = entry.factory else { panic!("a codec") };
    let dir = TempDir::new().unwrap();
    let [mut ours, mut theirs] = [(), ()].map(|()| make("reference = '4MiB'", context(&dir)).unwrap());
    let (mut pages, mut image) = (vec![0x5a; 3 * PAGE_SIZE], Image(vec![0; 10 * PAGE_SIZE]));
    for round in 0..3 {
        pages[5000] = round;
        let runs = [PageRun { first_page: 7, data: &pages }];
        let mut out = Vec::new();
        ours.encode(Epoch(1), &runs, &mut out).unwrap();
        let payload = out.concat();
        assert!(round == 0 || payload.len() < 100, "{}", payload.len());
        assert_eq!(theirs.check(&payload, 9).unwrap_err().code(), ErrorCode::Corrupt);
        assert_eq!(theirs.check(&payload, 10).unwrap(), 3);
        theirs.decode(&payload, &mut image).unwrap();
        assert!(image.0[7 * PAGE_SIZE..] == pages);
    }
}

fn arbiter_works(entry: &PluginEntry) {
    let Factory::Arbiter(make) = entry.factory else { panic!("an arbiter") };
    let (dir, store) = (TempDir::new().unwrap(), Store::start(TcpListener::bind("127.0.0.1:0").unwrap()));
    let config = format!("url = 'http://{}/web'\nunsafe_plaintext = true", store.address);
    let [mut primary, mut standby]: [Box<dyn Arbiter>; 2] =
        [(), ()].map(|()| make(&config, context(&dir)).unwrap());
    primary.probe().unwrap();
    let session = SessionId([9; 16]);
    assert_eq!(standby.claim(session, Side::Standby).unwrap(), Verdict::Won);
    assert_eq!(primary.claim(session, Side::Primary).unwrap(), Verdict::Lost);
}

fn transport_works(entry: &PluginEntry) {
    let Factory::Transport(make) = entry.factory else { panic!("a transport") };
    let dir = TempDir::new().unwrap();
    let [mut ours, mut theirs] = [(), ()].map(|()| make("path = 'link'", context(&dir)).unwrap());
    let mut listener = theirs.listen(&[]).unwrap();
    let connecting = thread::spawn(move || ours.connect(PATIENCE));
    let mut theirs = listener.accept(PATIENCE).unwrap().expect("a primary comes");
    let mut ours = connecting.join().unwrap().unwrap();
    let (mut tx, _rx) = ours.open("pages", None, PATIENCE).unwrap();
    let (_tx, mut rx) = theirs.open("pages", None, PATIENCE).unwrap();
    tx.send(&[b"ab", b"c"]).unwrap();
    let mut got = [0; 3];
    rx.recv(&mut got).unwrap();
    assert_eq!(&got, b"abc");
    ours.aborter().abort();
    assert_eq!(rx.recv(&mut got).unwrap_err().code(), ErrorCode::PeerLost);
}

fn policy_works(entry: &PluginEntry) {
    let Factory::Policy(make) = entry.factory else { panic!("a policy") };
    let dir = TempDir::new().unwrap();
    let mut policy = make("longest = '70ms'", context(&dir)).unwrap();
    assert_eq!(policy.interval(&EpochStats::default()), Duration::from_millis(70));
    let open =
        |held_frames| OpenEpoch { age: Duration::from_millis(9), held_frames, held_bytes: 60 * held_frames };
    assert_eq!(policy.again(&open(0)), Some(Duration::from_millis(2)));
    assert_eq!(policy.again(&open(1)), Some(Duration::ZERO));
}

/// The rest takes a tap: the example's own tests and the end-to-end test have one.
fn network_is_refused_without_its_tap(entry: &PluginEntry) {
    let Factory::Network(make) = entry.factory else { panic!("a network buffer") };
    let dir = TempDir::new().unwrap();
    let Err(error) = make("device = 'no-such-tap'", context(&dir)).map(|mut b| b.disengage(Disengage::Owner))
    else {
        panic!("there is no such tap")
    };
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert!(error.chain().contains("must be a tap"), "{}", error.chain());
}

#[test]
fn every_example_builds_from_its_lock_file_loads_and_works() {
    for example in EXAMPLES {
        let entry = built(example);
        match entry.factory.kind() {
            Kind::Codec => codec_works(entry),
            Kind::Arbiter => arbiter_works(entry),
            Kind::Transport => transport_works(entry),
            Kind::Policy => policy_works(entry),
            Kind::Network => network_is_refused_without_its_tap(entry),
            kind => panic!("nothing tries a {kind}"),
        }
    }
}

/// What an author reads in one go.
const MOST_LINES: usize = 150;

/// Lines that are neither blank nor a comment.
fn code_lines(file: &Path) -> usize {
    let text = fs::read_to_string(file).unwrap();
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

#[test]
fn every_example_is_short() {
    for example in EXAMPLES {
        let sources = fs::read_dir(root().join("examples").join(example).join("src")).unwrap();
        let files: Vec<_> = sources.map(|entry| entry.unwrap().path()).collect();
        assert!(files.iter().all(|file| file.is_file()), "{example}: a folder in `src` is not counted");
        let lines: Vec<_> = files.iter().map(|file| (file.display(), code_lines(file))).collect();
        let all = lines.iter().map(|(_, lines)| lines).sum::<usize>();
        assert!(
            all > 0 && all <= MOST_LINES,
            "{example} has {all} lines of code, the most is {MOST_LINES}: {lines:?}"
        );
    }
}

#[test]
fn every_example_passes_its_own_tests() {
    for example in EXAMPLES {
        let workspace = root().join("examples").join(example);
        let tested = run::text(&mut cargo(&workspace, &target(), &["test", "--locked"]));
        let tested = tested.unwrap_or_else(|e| panic!("{e}"));
        assert!(tested.contains("test result: ok") && !tested.contains("FAILED"), "{example}: {tested}");
    }
}

/// Cargo is ours, the compiler is not.
#[test]
fn an_example_built_by_debians_compiler_is_loaded_and_works() {
    if run::find("apt-get").is_none() {
        println!("not run: apt is not here, with which Debian's rustc {OLD} comes");
        return;
    }
    let wishes = [
        format!("rustc-web={OLD}"),
        format!("libstd-rust-web-1.85={OLD}"),
        format!("libstd-rust-web-dev={OLD}"),
        // What LLVM is linked with, and a machine without a desktop may lack.
        "libllvm19".into(),
        "libedit2".into(),
        "libz3-4".into(),
        "libxml2".into(),
        "libffi8".into(),
        "libbsd0".into(),
        "libmd0".into(),
        "libicu72".into(),
    ];
    let wishes = wishes.each_ref().map(String::as_str);
    let debian =
        packages::unpacked("rustc", &wishes).unwrap_or_else(|e| panic!("{}", aventine_lab::chain(&e)));
    let target = target().join("debian");
    let mut building = cargo(&root().join("examples/codec-xor"), &target, &["build", "--locked"]);
    building.env("RUSTC", compiler(&debian, &target));
    run::output(&mut building).unwrap_or_else(|e| panic!("{e}"));
    let file = shared_object(&target, "codec-xor");
    // Compilers leave their name in what they make.
    let made_by =
        |file: &Path, name: &[u8]| fs::read(file).unwrap().windows(name.len()).any(|bytes| bytes == name);
    assert!(made_by(&file, b"rustc version 1.85.0"), "{}", file.display());
    codec_works(load(&file, "codec-xor"));
}

/// A program that runs Debian's compiler with the libraries that it was unpacked with.
fn compiler(debian: &Path, target: &Path) -> PathBuf {
    let (usr, program) = (debian.join("usr"), target.join("rustc"));
    let libraries = usr.join("lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
    let text = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}' \"$@\"\n",
        libraries.display(),
        usr.join("bin/rustc").display()
    );
    fs::create_dir_all(target).unwrap();
    // Not written anew where it is right: cargo would build everything anew.
    if fs::read_to_string(&program).is_ok_and(|old| old == text) {
        return program;
    }
    fs::write(&program, text).unwrap();
    run::output(Command::new("chmod").arg("755").arg(&program)).unwrap();
    program
}

/// The packages of a lock file and their versions, those of this repository left out.
fn locked(file: &Path) -> HashMap<String, Vec<String>> {
    let lock: toml::Table = fs::read_to_string(file).unwrap().parse().unwrap();
    let mut packages = HashMap::<String, Vec<String>>::new();
    for package in lock["package"].as_array().unwrap() {
        let text = |key| package.get(key).and_then(toml::Value::as_str).map(str::to_owned);
        if text("source").is_some() {
            packages.entry(text("name").unwrap()).or_default().push(text("version").unwrap());
        }
    }
    packages
}

/// So that what they depend on is there, and built once.
#[test]
fn lock_files_have_the_programs_versions() {
    let ours = locked(&root().join("Cargo.lock"));
    for example in EXAMPLES {
        let theirs = locked(&root().join("examples").join(example).join("Cargo.lock"));
        for (name, versions) in theirs {
            let known = ours.get(&name).unwrap_or_else(|| panic!("{example}: the program has no {name}"));
            assert!(
                versions.iter().all(|version| known.contains(version)),
                "{example}: {name} {versions:?}, the program has {known:?}; remove examples/{example}/Cargo.lock, which is \
                 then made anew"
            );
        }
    }
}

/// The plugin of the guide, from its text.
#[test]
fn the_guides_plugin_builds_passes_its_tests_and_is_loaded() {
    let guide = fs::read_to_string(root().join("docs/plugin-guide.md")).unwrap();
    let block = |name: &str| {
        let (_, after) =
            guide.split_once(&format!("\n`{name}`")).unwrap_or_else(|| panic!("the guide has {name}"));
        let (_, after) = after.split_once("\n```").unwrap();
        let (_, code) = after.split_once('\n').unwrap();
        code.split_once("\n```").unwrap().0.to_owned() + "\n"
    };
    let dir = TempDir::new().unwrap();
    let manifest = block("Cargo.toml").replace("../aventine/", &format!("{}/", root().display()));
    fs::write(dir.path().join("Cargo.toml"), manifest).unwrap();
    for file in ["src/lib.rs", "tests/share.rs"] {
        let path = dir.path().join(file);
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::write(path, block(file)).unwrap();
    }
    // It has the dependencies of the other policy.
    fs::copy(root().join("examples/policy-output/Cargo.lock"), dir.path().join("Cargo.lock")).unwrap();
    for command in ["test", "build"] {
        let ran = run::output(&mut cargo(dir.path(), &target(), &[command, "--offline"]));
        ran.unwrap_or_else(|e| panic!("{e}"));
    }
    let entry = load(&shared_object(&target(), "policy-share"), "policy-share");
    assert!((entry.validate)("percent = 10").is_ok());
    assert_eq!((entry.validate)("percent = 0").unwrap_err().path, ["percent"]);
}

/// The file that the README names, with what the examples are built to here.
#[test]
fn the_strategies_compare_loaded_plugins_with_built_in_ones() {
    let program = std::env::var_os("AVENTINE_PROGRAM");
    let program = program.expect("AVENTINE_PROGRAM is not set: run this with `cargo xtask test`");
    for example in ["codec-xor", "policy-output"] {
        build(example).unwrap_or_else(|e| panic!("{e}"));
    }
    let text = fs::read_to_string(root().join("examples/strategies.toml")).unwrap();
    let dir = TempDir::new().unwrap();
    let here = format!("{}/debug/", target().display());
    let text = EXAMPLES
        .iter()
        .fold(text, |text, example| text.replace(&format!("{example}/target/release/"), &here));
    fs::write(dir.path().join("strategies.toml"), text).unwrap();
    fs::copy(root().join("examples/redis-set.trace"), dir.path().join("redis-set.trace")).unwrap();
    let mut replay = Command::new(program);
    let rows = run::text(replay.args(["replay", "strategies.toml", "--json"]).current_dir(&dir));
    let rows = rows.unwrap_or_else(|e| panic!("{e}"));
    let rows: Vec<serde_json::Value> = rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect();
    assert_eq!(rows.len(), 6, "{rows:?}");
    for pair in rows.chunks(2) {
        let [raw, xor] = pair else { panic!("{rows:?}") };
        assert_eq!((&raw["codec"], &xor["codec"]), (&"raw".into(), &"xor".into()));
        assert_eq!((&raw["policy"], &raw["pages"]), (&xor["policy"], &xor["pages"]));
        let ratio = |row: &serde_json::Value| row["ratio"].as_f64().unwrap();
        assert!(ratio(xor) > 3.0 * ratio(raw), "{rows:?}");
    }
}
