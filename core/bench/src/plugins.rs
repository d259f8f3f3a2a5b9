//! The plugin boundary: what the calls of an epoch cost more in a loaded plugin than in a built-in one.
//!
//! The unit is an epoch of 1,000 dirty pages, in runs of 4. Its pages are encoded in batches of 512 by a codec, which is timed as
//! it is. Everything else of an epoch is one call for each plugin and verb, in the price of a policy's `interval`. The floor is
//! what the engine itself does with the same pages in each epoch, whatever the plugins are: it copies and hashes them.

use aventine_api::{
    Codec, Context, Epoch, EpochPolicy, EpochStats, Factory, Host, Kind, PAGE_SIZE, PageRun, PluginEntry,
    PluginError, Side,
};
use aventine_protocol::PayloadHash;
use aventine_registry::{LoadError, Trust};
use serde::Serialize;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PAGES: usize = 1_000;
const RUN: usize = 4;
const BATCH: usize = 512;
/// Calls of an epoch beside those of the codec, with one network and one disk: 5 of the guest, 4 of the network buffer, 3 of
/// the disk, 2 of the policy, 6 of the transport.
const CALLS: u32 = 20;

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A file.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Not the plugins that it takes.
    #[error(
        "No file has a {0} plugin that is also built in, which it could be compared with. `cargo build -p aventine-so --examples` \
         in the source tree makes libaventine_codec_raw.so and libaventine_policy_fixed.so"
    )]
    Missing(Kind),
    /// A plugin failed.
    #[error("Plugin {0} failed")]
    Plugin(&'static str, #[source] PluginError),
}

/// What one form of the plugins costs.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// `built in`, `adapted` (both adapters, not loaded) or `loaded`.
    pub form: &'static str,
    /// Median time to encode the pages, in nanoseconds.
    pub encode_ns: u64,
    /// Median time of another call, in nanoseconds.
    pub call_ns: u64,
    /// What the epoch costs more than built in, in nanoseconds.
    pub more_ns: u64,
    /// That as a part of the floor, in percent.
    pub percent: f64,
}

/// The floor, and what each form costs.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Median time to copy and to hash the pages, in nanoseconds.
    pub floor_ns: u64,
    /// Built in, adapted, loaded.
    pub forms: Vec<Figures>,
}

/// Measures the codec and the policy of `files` that are built in, too, in `rounds` rounds. Loads the files.
pub fn measure(files: &[PathBuf], rounds: u64) -> Result<Report, BenchError> {
    let mut loaded = Vec::new();
    for file in files {
        // Not added to the registry: the built-in plugins have the names.
        loaded.extend(aventine_registry::inspect(file, Trust::OwnersOnly)?.1);
    }
    let [(own_codec, codec), (own_policy, policy)] =
        [pair(Kind::Codec, &loaded)?, pair(Kind::Policy, &loaded)?];
    let adapted = |entry: &'static PluginEntry| {
        aventine_abi::adapted(entry).map_err(|error| BenchError::Plugin(entry.name, error))
    };
    let mut forms = [
        Form::new("built in", own_codec, own_policy)?,
        Form::new("adapted", &adapted(own_codec)?, &adapted(own_policy)?)?,
        Form::new("loaded", codec, policy)?,
    ];
    let memory = vec![0x5a; PAGES * PAGE_SIZE];
    let runs = memory.chunks(RUN * PAGE_SIZE).enumerate();
    let runs: Vec<_> = runs.map(|(at, data)| PageRun { first_page: (at * 2 * RUN) as u64, data }).collect();
    let (mut copy, mut floor) = (vec![0; memory.len()], Vec::new());
    for _ in 0..rounds.max(1) {
        let began = Instant::now();
        copy.copy_from_slice(black_box(&memory));
        black_box(PayloadHash::of(&[&copy]));
        floor.push(began.elapsed());
        // In turn, so that what the machine does meanwhile happens to all of them.
        for form in &mut forms {
            form.round(&runs)?;
        }
    }
    let floor_ns = median(&mut floor);
    let mut native = None;
    let figures = forms.iter_mut().map(|form| form.figures(floor_ns, &mut native)).collect();
    Ok(Report { floor_ns, forms: figures })
}

/// A built-in plugin and the loaded one of its name.
fn pair(
    kind: Kind,
    loaded: &[&'static PluginEntry],
) -> Result<(&'static PluginEntry, &'static PluginEntry), BenchError> {
    let mut of_kind = loaded.iter().filter(|e| e.factory.kind() == kind);
    of_kind
        .find_map(|entry| aventine_registry::find(kind, entry.name).map(|own| (own, *entry)))
        .ok_or(BenchError::Missing(kind))
}

/// One form of both plugins.
struct Form {
    name: &'static str,
    codec: Box<dyn Codec>,
    policy: Box<dyn EpochPolicy>,
    encode: Vec<Duration>,
    call: Vec<Duration>,
}

impl Form {
    fn new(name: &'static str, codec: &PluginEntry, policy: &PluginEntry) -> Result<Form, BenchError> {
        let (Factory::Codec(make), Factory::Policy(ask)) = (codec.factory, policy.factory) else {
            unreachable!("chosen by kind")
        };
        let codec = make("", context()).map_err(|e| BenchError::Plugin(codec.name, e))?;
        let policy = ask("", context()).map_err(|e| BenchError::Plugin(policy.name, e))?;
        Ok(Form { name, codec, policy, encode: Vec::new(), call: Vec::new() })
    }

    fn round(&mut self, runs: &[PageRun<'_>]) -> Result<(), BenchError> {
        let began = Instant::now();
        for batch in runs.chunks(BATCH / RUN) {
            let mut out = Vec::new();
            self.codec.encode(Epoch(1), batch, &mut out).map_err(|e| BenchError::Plugin(self.name, e))?;
            black_box(&out);
        }
        self.encode.push(began.elapsed());
        let began = Instant::now();
        for _ in 0..CALLS {
            black_box(self.policy.interval(black_box(&EpochStats::default())));
        }
        self.call.push(began.elapsed());
        Ok(())
    }

    fn figures(&mut self, floor_ns: u64, native: &mut Option<u64>) -> Figures {
        let (encode_ns, calls_ns) = (median(&mut self.encode), median(&mut self.call));
        let all = encode_ns + calls_ns;
        let more_ns = all.saturating_sub(*native.get_or_insert(all));
        let percent = 100.0 * more_ns as f64 / floor_ns.max(1) as f64;
        Figures { form: self.name, encode_ns, call_ns: calls_ns / u64::from(CALLS), more_ns, percent }
    }
}

fn median(times: &mut [Duration]) -> u64 {
    times.sort_unstable();
    u64::try_from(times[times.len() / 2].as_nanos()).unwrap_or(u64::MAX)
}

/// What these plugins report is of no interest: they are not used for a guest.
struct Nobody;

impl Host for Nobody {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, _: PluginError) {}
}

fn context() -> Context {
    let (guest, id, here) = ("bench".into(), "it".into(), Path::new("/"));
    let (state_dir, config_dir) = (here.into(), here.into());
    Context { guest, id, side: Side::Primary, state_dir, config_dir, host: Arc::new(Nobody) }
}
