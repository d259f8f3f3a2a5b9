//! What the plugin boundary costs: the same calls on a built-in plugin, behind both adapters, and loaded, in one run.
//!
//! `cargo bench -p aventine-so`. The unit is an epoch of 1,000 dirty pages, in runs of 4: its pages are encoded in batches of
//! 512 by the codec `raw`, and the policy `fixed` is asked once. Everything else of an epoch is one call for each plugin and
//! verb; the price of one is the policy's. The floor is a copy of the same pages.

use aventine_api::{
    Codec, Context, Epoch, EpochPolicy, EpochStats, Factory, Host, PAGE_SIZE, PageRun, PluginEntry,
};
use aventine_api::{PluginError, Side};
use aventine_codec_raw as _;
use aventine_policy_fixed as _;
use aventine_registry::Trust;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PAGES: usize = 1_000;
const RUN: usize = 4;
const BATCH: usize = 512;
const ROUNDS: usize = 4_000;

struct Nobody;

impl Host for Nobody {
    fn request_epoch(&self) {}

    fn staged(&self, _: Epoch) {}

    fn failed(&self, error: PluginError) {
        panic!("{}", error.chain());
    }
}

fn context() -> Context {
    let (guest, id, here) = ("bench".into(), "it".into(), Path::new("/"));
    Context {
        guest,
        id,
        side: Side::Primary,
        state_dir: here.into(),
        config_dir: here.into(),
        host: Arc::new(Nobody),
    }
}

/// One form of both plugins.
struct Form {
    name: &'static str,
    codec: Box<dyn Codec>,
    policy: Box<dyn EpochPolicy>,
    encode: Vec<Duration>,
    ask: Vec<Duration>,
}

impl Form {
    fn new(name: &'static str, codec: &PluginEntry, policy: &PluginEntry) -> Form {
        let (Factory::Codec(codec), Factory::Policy(policy)) = (codec.factory, policy.factory) else {
            panic!("a codec and a policy")
        };
        let (codec, policy) = (codec("", context()).unwrap(), policy("", context()).unwrap());
        Form { name, codec, policy, encode: Vec::new(), ask: Vec::new() }
    }

    fn round(&mut self, runs: &[PageRun<'_>]) {
        let began = Instant::now();
        for batch in runs.chunks(BATCH / RUN) {
            let mut out = Vec::new();
            self.codec.encode(Epoch(1), batch, &mut out).unwrap();
            black_box(&out);
        }
        self.encode.push(began.elapsed());
        let began = Instant::now();
        black_box(self.policy.interval(black_box(&EpochStats::default())));
        self.ask.push(began.elapsed());
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn built_in(name: &str) -> &'static PluginEntry {
    aventine_registry::all().into_iter().find(|e| e.name == name).expect("linked in")
}

fn loaded(file: &str) -> &'static PluginEntry {
    let own = std::env::current_exe().unwrap();
    let dir = own.ancestors().nth(2).unwrap().join("examples");
    // Not added: the built-in plugins have the names.
    aventine_registry::inspect(&dir.join(file), Trust::OwnersOnly).unwrap().1[0]
}

fn main() {
    let (codec, policy) = (built_in("raw"), built_in("fixed"));
    let adapted = |entry| aventine_abi::adapted(entry).unwrap();
    let mut forms = [
        Form::new("built in", codec, policy),
        Form::new("both adapters", &adapted(codec), &adapted(policy)),
        Form::new("loaded", loaded("libaventine_codec_raw.so"), loaded("libaventine_policy_fixed.so")),
    ];
    let memory = vec![0x5a; PAGES * PAGE_SIZE];
    let runs = memory.chunks(RUN * PAGE_SIZE).enumerate();
    let runs: Vec<_> = runs.map(|(at, data)| PageRun { first_page: (at * 2 * RUN) as u64, data }).collect();
    let (mut copy, mut floor) = (vec![0; memory.len()], Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        copy.copy_from_slice(black_box(&memory));
        black_box(&copy);
        floor.push(began.elapsed());
        // In turn, so that what the machine does meanwhile happens to all of them.
        forms.iter_mut().for_each(|form| form.round(&runs));
    }
    let floor = median(&mut floor);
    println!("an epoch of {PAGES} pages; the floor, a copy of them: {floor:?}");
    println!("{:<14} {:>10} {:>10} {:>22}", "FORM", "ENCODE", "ASK", "MORE THAN BUILT IN");
    let mut native = None;
    for form in &mut forms {
        let (encode, ask) = (median(&mut form.encode), median(&mut form.ask));
        let more = (encode + ask).saturating_sub(*native.get_or_insert(encode + ask));
        let share = 100.0 * more.as_secs_f64() / floor.as_secs_f64();
        println!("{:<14} {encode:>10?} {ask:>10?} {more:>10?} ({share:.2} % of the floor)", form.name);
    }
}
