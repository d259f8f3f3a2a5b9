//! The two ends of a disk on lab hosts, told line by line what to do, with a TCP connection for a channel.

use aventine_api::{
    BlockDevice, Context, Disengage, Disk, Epoch, ErrorCode, Factory, Host, PluginEntry, PluginError,
    Premises, RecordHead, RecordRx, RecordTx, Side, inventory,
};
// Nothing else refers to it, and its registration is what is wanted.
use aventine_disk_drbd as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write, stdin};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Longest that anything may take: these machines are slow.
const LIMIT: Duration = Duration::from_secs(120);
const PORT: &str = "9000";
const TEXT: &str = "resource = 'r0'\nbuffer = '64MiB'";

/// The writes of an epoch: overlapping, of any alignment, about four megabytes with `epoch` 100 and above.
pub(crate) fn writes(epoch: u64, size: u64) -> Vec<(u64, Vec<u8>)> {
    let mut random = epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let (count, most) = if epoch >= 100 { (200, 40_000) } else { (40, 9000) };
    let write = |_| {
        let (at, len, seed) = (next(size - most), next(most) + 1, next(256));
        (at, (0..len).map(|i| (i.wrapping_mul(31).wrapping_add(seed) % 251) as u8).collect())
    };
    (0..count).map(write).collect()
}

/// What a disk of zeroes is after these epochs.
pub(crate) fn model(size: u64, epochs: &[u64]) -> Vec<u8> {
    let mut disk = vec![0; size as usize];
    for (at, data) in epochs.iter().flat_map(|epoch| writes(*epoch, size)) {
        disk[at as usize..at as usize + data.len()].copy_from_slice(&data);
    }
    disk
}

pub(crate) fn sum(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

struct Channel(TcpStream);

fn lost(error: io::Error) -> PluginError {
    PluginError::new(ErrorCode::PeerLost, error)
}

impl RecordTx for Channel {
    fn send(&mut self, head: RecordHead, parts: &[&[u8]]) -> Result<(), PluginError> {
        let payload = parts.concat();
        let mut record = Vec::with_capacity(payload.len() + 13);
        record.extend(head.epoch.0.to_le_bytes());
        record.push(head.kind);
        record.extend((payload.len() as u32).to_le_bytes());
        record.extend(payload);
        self.0.write_all(&record).map_err(lost)
    }
}

impl RecordRx for Channel {
    fn recv(&mut self, payload: &mut Vec<u8>) -> Result<RecordHead, PluginError> {
        let (mut epoch, mut kind, mut len) = ([0; 8], [0; 1], [0; 4]);
        [&mut epoch[..], &mut kind, &mut len]
            .into_iter()
            .try_for_each(|b| self.0.read_exact(b))
            .map_err(lost)?;
        payload.resize(u32::from_le_bytes(len) as usize, 0);
        self.0.read_exact(payload).map_err(lost)?;
        Ok(RecordHead { epoch: Epoch(u64::from_le_bytes(epoch)), kind: kind[0] })
    }
}

/// Says what the plugin reports.
#[derive(Default)]
struct Says(AtomicU64);

impl Host for Says {
    fn request_epoch(&self) {}

    fn staged(&self, epoch: Epoch) {
        self.0.store(epoch.0, Ordering::SeqCst);
    }

    fn failed(&self, error: PluginError) {
        println!("failed: {}", error.chain());
    }
}

fn entry() -> &'static PluginEntry {
    inventory::iter::<PluginEntry>().find(|e| e.name == "drbd").unwrap()
}

fn await_that(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "no {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

struct EndOfDisk {
    disk: Box<dyn Disk>,
    block: Arc<dyn BlockDevice>,
    says: Arc<Says>,
    /// How long each seal took.
    seals: Vec<Duration>,
}

impl EndOfDisk {
    fn new(side: Side) -> EndOfDisk {
        let says = Arc::new(Says::default());
        let Factory::Disk(make) = entry().factory else { panic!("a disk") };
        let context = Context {
            guest: "web".into(),
            id: "disk0".into(),
            side,
            state_dir: "/run".into(),
            config_dir: "/run".into(),
            host: Arc::clone(&says) as Arc<dyn Host>,
        };
        let disk = make(TEXT, context).unwrap_or_else(|error| panic!("{}", error.chain()));
        EndOfDisk { block: disk.block(), disk, says, seals: Vec::new() }
    }

    fn carry_out(&mut self, line: &str) -> Result<String, PluginError> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = words.get(1).and_then(|w| w.parse().ok()).unwrap_or(0);
        match words[0] {
            "replicate" => {
                let stream = TcpStream::connect(format!("{}:{PORT}", words[1])).map_err(lost)?;
                self.disk.replicate(Box::new(Channel(stream)), None)?;
                let complete = |disk: &dyn Disk| disk.progress().done == disk.progress().total;
                await_that("copy of DRBD's", || complete(&*self.disk));
            }
            "receive" => {
                let listener = TcpListener::bind(format!("0.0.0.0:{PORT}")).map_err(lost)?;
                println!("listening");
                let (stream, _) = listener.accept().map_err(lost)?;
                let back = Channel(stream.try_clone().map_err(lost)?);
                self.disk.receive(Box::new(Channel(stream)), Box::new(back))?;
            }
            "write" => {
                for (at, data) in writes(number, self.block.size()) {
                    self.block.write(at, &data, false)?;
                }
                self.block.flush()?;
            }
            "seal" => {
                self.disk.pausing();
                let start = Instant::now();
                self.disk.seal(Epoch(number))?;
                self.seals.push(start.elapsed());
            }
            "commit" => {
                await_that("epoch", || self.says.0.load(Ordering::SeqCst) >= number);
                self.disk.commit(Epoch(number))?;
            }
            "release" => {
                let start = Instant::now();
                while let Err(error) = self.disk.release(Epoch(number)) {
                    if error.code() != ErrorCode::TimedOut || start.elapsed() > LIMIT {
                        return Err(error);
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            }
            "owes" => {
                let owed = self.disk.release(Epoch(number)).map_err(|e| e.code());
                assert_eq!(owed, Err(ErrorCode::TimedOut));
            }
            "activate" => self.disk.activate(Epoch(number))?,
            "holds-nothing" => await_that("end of what is held", || self.disk.stats().buffered_bytes == 0),
            "holds-something" => assert_ne!(self.disk.stats().buffered_bytes, 0),
            "disengage" if words[1] == "owner" => self.disk.disengage(Disengage::Owner)?,
            "disengage" => self.disk.disengage(Disengage::NotOwner)?,
            "figures" => {
                let stats = self.disk.stats();
                let mut seals = std::mem::take(&mut self.seals);
                seals.sort();
                let (median, most) = (seals[seals.len() / 2].as_micros(), seals[seals.len() - 1].as_micros());
                return Ok(format!("{} {} {median} {most}", stats.written_bytes, stats.replicated_bytes));
            }
            "sum" => {
                let mut bytes = vec![0; self.block.size() as usize];
                self.block.read(0, &mut bytes)?;
                return Ok(format!("{} {}", bytes.len(), sum(&bytes)));
            }
            other => panic!("{other}?"),
        }
        Ok(String::new())
    }

    fn obey(mut self) {
        println!("here");
        for line in stdin().lines().map(Result::unwrap) {
            match self.carry_out(&line) {
                Ok(said) => println!("did {line}: {said}."),
                Err(error) => println!("no {line}: {}", error.chain()),
            }
        }
        drop(self);
        println!("gone");
    }
}

#[test]
#[ignore = "an end of the other tests, on a lab host"]
fn primary() {
    EndOfDisk::new(Side::Primary).obey();
}

#[test]
#[ignore = "an end of the other tests, on a lab host"]
fn standby() {
    EndOfDisk::new(Side::Standby).obey();
}

#[test]
#[ignore = "what the next start does first, on a lab host"]
fn reclaim() {
    let upkeep = entry().upkeep.unwrap();
    let premises = Premises { guest: "web".into(), id: "disk0".into(), config_dir: "/run".into() };
    println!("problems: {:?}", (upkeep.probe)(TEXT, &premises));
    println!("removed: {:?}", (upkeep.reclaim)(TEXT, &premises).unwrap());
}
