//! The built-in plugins loaded from shared objects, and shared objects that are wrong in ways that take a compiler to make.
//! This program has no plugin built in.

use aventine_api::{
    ConfigProblem, Context, Epoch, EpochStats, ErrorCode, Factory, Host, Kind, Metric, OpenEpoch, PageRun,
    PluginEntry, PluginError, Side,
};
use aventine_registry::{LoadError, Origin, Trust};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

/// Where cargo puts examples: beside the directory of this test.
fn shared_object(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(2).unwrap().join("examples").join(format!("lib{name}.so"))
}

fn load(name: &str) -> Result<Vec<&'static PluginEntry>, LoadError> {
    aventine_registry::load(&shared_object(name), Trust::OwnersOnly)
}

/// Keeps what plugins report.
#[derive(Default)]
struct Reports(Mutex<Vec<String>>, Arc<Count>);

/// The one metric that there is.
#[derive(Default)]
struct Count(AtomicU64);

impl Metric for Count {
    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
}

impl Host for Reports {
    fn request_epoch(&self) {}

    fn staged(&self, _: Epoch) {}

    fn failed(&self, error: PluginError) {
        self.0.lock().unwrap().push(format!("{:?} {}", error.code(), error.chain()));
    }

    fn metric(&self, name: &str, help: &str) -> Arc<dyn Metric> {
        assert_eq!((name, help), ("asked_total", "how often an interval was asked for"));
        Arc::clone(&self.1) as Arc<dyn Metric>
    }
}

fn context(dir: &Path, host: &Arc<Reports>) -> Context {
    Context {
        guest: "web".into(),
        id: "it".into(),
        side: Side::Primary,
        state_dir: dir.into(),
        config_dir: dir.into(),
        host: Arc::clone(host) as Arc<dyn Host>,
    }
}

/// The log of this program.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const BUILT_IN: [(&str, Kind, &str); 16] = [
    ("aventine_guest_qemu", Kind::Guest, "qemu"),
    ("aventine_network_userspace", Kind::Network, "userspace"),
    ("aventine_network_plug", Kind::Network, "plug"),
    ("aventine_network_ifb", Kind::Network, "ifb"),
    ("aventine_transport_file", Kind::Transport, "file"),
    ("aventine_disk_block_remus", Kind::Disk, "block-remus"),
    ("aventine_disk_drbd", Kind::Disk, "drbd"),
    ("aventine_transport_tcp", Kind::Transport, "tcp"),
    ("aventine_transport_rdma", Kind::Transport, "rdma"),
    ("aventine_policy_adaptive", Kind::Policy, "adaptive"),
    ("aventine_policy_fixed", Kind::Policy, "fixed"),
    ("aventine_codec_raw", Kind::Codec, "raw"),
    ("aventine_arbiter_shared_file", Kind::Arbiter, "shared-file"),
    ("aventine_arbiter_manual", Kind::Arbiter, "manual"),
    ("aventine_arbiter_etcd", Kind::Arbiter, "etcd"),
    ("aventine_arbiter_command", Kind::Arbiter, "command"),
];

#[test]
fn every_built_in_loads_and_complains_at_the_key() {
    for (file, kind, name) in BUILT_IN {
        let entries = load(file).unwrap();
        let [entry] = entries.as_slice() else { panic!("{file} has one plugin") };
        assert_eq!((entry.factory.kind(), entry.name), (kind, name));
        let known = aventine_registry::known();
        let known = known.iter().find(|k| std::ptr::eq(k.entry, *entry)).unwrap();
        assert_eq!(known.origin, Origin::File(shared_object(file).canonicalize().unwrap()));
        let error = (entry.validate)("no_such_key = 1").unwrap_err();
        assert!(
            matches!(&error.problem, ConfigProblem::UnknownKey { key, .. } if key == "no_such_key")
                || matches!(
                    &error.problem,
                    ConfigProblem::MissingKey { .. } | ConfigProblem::BadValue { .. }
                ),
            "{name}: {error}"
        );
        let schema = (entry.schema)();
        assert!(schema.contains("\"additionalProperties\":false"), "{name}: {schema}");
        assert_eq!(entry.upkeep.is_some(), ["plug", "ifb", "drbd"].contains(&name), "{name}");
    }
    let fixed = load("aventine_policy_fixed").unwrap()[0];
    let error = (fixed.validate)("interval = '99min'").unwrap_err();
    assert_eq!(error.path, ["interval"]);
    assert!(matches!(error.problem, ConfigProblem::BadValue { help: Some(_), .. }), "{error:?}");
}

#[test]
fn a_loaded_recorder_says_that_nobody_answers() {
    let dir = TempDir::new().unwrap();
    let Factory::Transport(make) = load("aventine_transport_file").unwrap()[0].factory else {
        panic!("a transport")
    };
    let mut transport = make("path = 'a.trace'", context(dir.path(), &Arc::default())).unwrap();
    let mut link = transport.connect(Duration::ZERO).unwrap();
    assert!(!link.answers(), "the engine would wait for a standby");
    let (mut tx, _rx) = link.open("control", None, Duration::ZERO).unwrap();
    tx.send(&[b"bytes"]).unwrap();
    assert!(std::fs::read(dir.path().join("a.trace")).unwrap().ends_with(b"bytes"));
    link.aborter().abort();
    assert_eq!(tx.send(&[b"late"]).unwrap_err().code(), ErrorCode::PeerLost);
}

#[test]
fn a_loaded_codec_encodes_without_copying_a_page() {
    let dir = TempDir::new().unwrap();
    let Factory::Codec(make) = load("aventine_codec_raw").unwrap()[0].factory else { panic!("a codec") };
    let mut codec = make("", context(dir.path(), &Arc::default())).unwrap();
    let page = vec![0xa5; 3 * aventine_api::PAGE_SIZE];
    let runs = [PageRun { first_page: 7, data: &page }];
    let mut out = Vec::new();
    codec.encode(Epoch(1), &runs, &mut out).unwrap();
    assert!(
        out.iter().any(|s| page.as_ptr_range().contains(&s.as_ptr())),
        "the pages themselves are handed out"
    );
    let payload = out.concat();
    assert_eq!(codec.check(&payload, 10).unwrap(), 3);
    assert_eq!(codec.check(&payload, 9).unwrap_err().code(), ErrorCode::Corrupt);
    let mut memory = Image(vec![0; 10 * aventine_api::PAGE_SIZE]);
    codec.decode(&payload, &mut memory).unwrap();
    assert_eq!(memory.0[7 * aventine_api::PAGE_SIZE..], page);
}

struct Image(Vec<u8>);

impl aventine_api::PageSink for Image {
    fn pages(&mut self, first: u64, pages: u64) -> Result<&mut [u8], PluginError> {
        let (at, len) = (first as usize * aventine_api::PAGE_SIZE, pages as usize * aventine_api::PAGE_SIZE);
        Ok(&mut self.0[at..at + len])
    }
}

#[test]
fn a_plugin_that_panics_is_dead_is_reported_once_and_is_in_the_log() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let dir = TempDir::new().unwrap();
    let reports = Arc::new(Reports::default());
    tracing::subscriber::with_default(subscriber, || {
        let entry = load("panics").unwrap()[0];
        assert!((entry.validate)("after = 0").unwrap_err().to_string().contains("panics about at once"));
        let Factory::Policy(make) = entry.factory else { panic!("a policy") };
        let mut policy = make("after = 2", context(dir.path(), &reports)).unwrap();
        let last = EpochStats { dirty_pages: 9, ..EpochStats::default() };
        let waiting = OpenEpoch { age: Duration::from_micros(70), held_frames: 1, held_bytes: 60 };
        assert_eq!(policy.again(&waiting), Some(waiting.age));
        assert_eq!(policy.again(&OpenEpoch { held_frames: 0, ..waiting }), None);
        for _ in 0..4 {
            assert_eq!(policy.interval(&last), Duration::from_millis(25));
        }
    });
    assert_eq!(reports.1.0.load(Ordering::Relaxed), 3, "a dead plugin is not called");
    let reports = reports.0.lock().unwrap();
    let [report] = reports.as_slice() else { panic!("one report: {reports:?}") };
    assert_eq!(report, "Internal The plugin panicked and is not called any more: enough epochs");
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains(" INFO panics: asked for an interval left=2"), "{log}");
    assert!(log.contains("the plugin panicked: enough epochs") && log.contains("panics.rs:"), "{log}");
}

#[test]
fn a_second_plugin_of_a_name_is_refused_with_both_origins() {
    let dir = TempDir::new().unwrap();
    let (first, second) = (shared_object("aventine_arbiter_manual"), dir.path().join("second.so"));
    std::fs::copy(&first, &second).unwrap();
    assert_eq!(load("aventine_arbiter_manual").unwrap().len(), 1);
    assert_eq!(load("aventine_arbiter_manual").unwrap().len(), 1, "loading it again changes nothing");
    let error = aventine_registry::load(&second, Trust::OwnersOnly).err().unwrap();
    assert!(matches!(error, LoadError::Duplicate { kind: Kind::Arbiter, .. }), "{error}");
    for path in [&first, &second] {
        assert!(error.to_string().contains(&path.canonicalize().unwrap().display().to_string()), "{error}");
    }
}

#[test]
fn another_layout_is_told_by_its_cause() {
    let error = load("changed").err().unwrap();
    let told = error.chain();
    assert!(told.contains("changed 0.1.0") && told.contains("another layout"), "{told}");
    assert!(told.lines().count() < 12, "{told}");
}
