//! A transport over Unix sockets, one for each channel, with a fault.
//!
//! ```text
//!  greeting: "BITE"  link (8)  length of the name (1)  name      the link itself has an empty one
//! ```

use super::Fault;
use crate::Why;
use aventine_api::{
    Channel, ChannelRx, ChannelTx, ErrorCode, LentMemory, Link, LinkAbort, Listener, PluginError, Side,
    Transport,
};
use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const MAGIC: &[u8; 4] = b"BITE";
const LOOK: Duration = Duration::from_millis(1);

fn error(code: ErrorCode, why: &'static str) -> PluginError {
    PluginError::new(code, Why(why))
}

pub(super) struct Sockets {
    pub(super) fault: Fault,
    pub(super) path: PathBuf,
    pub(super) side: Side,
}

impl Transport for Sockets {
    fn connect(&mut self, limit: Duration) -> Result<Box<dyn Link>, PluginError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed) << 32 | u64::from(std::process::id());
        let deadline = Instant::now() + limit;
        loop {
            if let Some(own) = dial(&self.path, id, "") {
                let state = State::new(self.fault, self.side, own);
                return Ok(Box::new(End { state, id, way: Way::Dial(self.path.clone()) }));
            }
            if Instant::now() >= deadline || self.fault == Fault::TriesOnce {
                let is_wrong = self.fault == Fault::CallsAbsenceALoss;
                let code = if is_wrong { ErrorCode::PeerLost } else { ErrorCode::TimedOut };
                return Err(error(code, "nobody is there"));
            }
            thread::sleep(LOOK);
        }
    }

    fn listen(&mut self, _: &[String]) -> Result<Box<dyn Listener>, PluginError> {
        let listener = UnixListener::bind(&self.path).map_err(|e| PluginError::new(ErrorCode::Io, e))?;
        listener.set_nonblocking(true).unwrap();
        let hall = Hall {
            fault: self.fault,
            listener,
            fresh: Vec::new(),
            links: VecDeque::new(),
            waiting: HashMap::new(),
            all: Vec::new(),
            accepted: 0,
        };
        Ok(Box::new(Door { hall: Arc::new(Mutex::new(hall)), path: self.path.clone() }))
    }
}

fn dial(path: &PathBuf, id: u64, name: &str) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(path).ok()?;
    let greeting = [MAGIC, &id.to_be_bytes()[..], &[name.len() as u8], name.as_bytes()].concat();
    stream.write_all(&greeting).ok()?;
    Some(stream)
}

/// Who has come to a listening end.
struct Hall {
    fault: Fault,
    listener: UnixListener,
    fresh: Vec<(UnixStream, Vec<u8>)>,
    links: VecDeque<(u64, UnixStream)>,
    waiting: HashMap<(u64, String), UnixStream>,
    all: Vec<UnixStream>,
    accepted: u32,
}

impl Hall {
    /// Takes in who has come, as far as they have greeted.
    fn look(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true).unwrap();
            self.fresh.push((stream, Vec::new()));
        }
        for (mut stream, mut greeting) in std::mem::take(&mut self.fresh) {
            let is_open = read_greeting(&mut stream, &mut greeting);
            match parse(&greeting) {
                _ if !is_open => {}
                Err(()) if self.fault == Fault::TakesStrangersIn => self.links.push_back((0, stream)),
                Err(()) => {}
                Ok(None) => self.fresh.push((stream, greeting)),
                Ok(Some((id, name))) => {
                    stream.set_nonblocking(false).unwrap();
                    if self.fault == Fault::EndsAllLinks {
                        self.all.push(stream.try_clone().unwrap());
                    }
                    match name.as_str() {
                        "" => self.links.push_back((id, stream)),
                        _ => drop(self.waiting.insert((id, name), stream)),
                    }
                }
            }
        }
    }
}

/// Reads up to the greeting's last byte; `false` at the end of the connection.
fn read_greeting(stream: &mut UnixStream, greeting: &mut Vec<u8>) -> bool {
    let mut byte = [0];
    while matches!(parse(greeting), Ok(None)) {
        match stream.read(&mut byte) {
            Ok(0) => return false,
            Ok(_) => greeting.push(byte[0]),
            Err(e) => return e.kind() == ErrorKind::WouldBlock,
        }
    }
    true
}

/// `None`: there is more to come. An error: it is none.
fn parse(greeting: &[u8]) -> Result<Option<(u64, String)>, ()> {
    let known = greeting.len().min(MAGIC.len());
    if greeting[..known] != MAGIC[..known] {
        return Err(());
    }
    let Some((head, name)) = greeting.split_first_chunk::<13>() else { return Ok(None) };
    let id = u64::from_be_bytes(std::array::from_fn(|i| head[4 + i]));
    let name = String::from_utf8(name.to_vec()).map_err(|_| ())?;
    Ok((name.len() == usize::from(head[12])).then_some((id, name)))
}

struct Door {
    hall: Arc<Mutex<Hall>>,
    path: PathBuf,
}

impl Listener for Door {
    fn accept(&mut self, limit: Duration) -> Result<Option<Box<dyn Link>>, PluginError> {
        let deadline = Instant::now() + limit;
        loop {
            let mut hall = self.hall.lock().unwrap();
            hall.look();
            let is_full = hall.fault == Fault::AcceptsTwice && hall.accepted == 2;
            if let Some((id, own)) = hall.links.pop_front().filter(|_| !is_full) {
                hall.accepted += 1;
                let state = State::new(hall.fault, Side::Standby, own);
                return Ok(Some(Box::new(End { state, id, way: Way::Wait(Arc::clone(&self.hall)) })));
            }
            if Instant::now() >= deadline {
                return match hall.fault {
                    Fault::TakesNobodyForAnError => Err(error(ErrorCode::TimedOut, "nobody came")),
                    _ => Ok(None),
                };
            }
            drop(hall);
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if self.hall.lock().unwrap().fault != Fault::LeavesItsAddress {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What a link's channels share.
struct State {
    fault: Fault,
    side: Side,
    aborted: AtomicBool,
    streams: Mutex<Vec<(String, UnixStream)>>,
    one_lock: Mutex<()>,
    hall: Mutex<Option<Arc<Mutex<Hall>>>>,
}

impl State {
    fn new(fault: Fault, side: Side, own: UnixStream) -> Arc<State> {
        Arc::new(State {
            fault,
            side,
            aborted: AtomicBool::new(false),
            streams: Mutex::new(vec![(String::new(), own)]),
            one_lock: Mutex::default(),
            hall: Mutex::default(),
        })
    }

    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    fn living(&self) -> Result<(), PluginError> {
        if self.is_aborted() { Err(error(ErrorCode::PeerLost, "aborted")) } else { Ok(()) }
    }
}

impl LinkAbort for State {
    fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        if self.fault == Fault::AbortsLaterCallsOnly {
            return;
        }
        let end = |stream: &UnixStream| drop(stream.shutdown(Shutdown::Both));
        self.streams.lock().unwrap().iter().for_each(|(_, stream)| end(stream));
        if self.fault == Fault::EndsAllLinks
            && let Some(hall) = &*self.hall.lock().unwrap()
        {
            hall.lock().unwrap().all.iter().for_each(end);
        }
    }
}

/// How a side comes to its channels.
enum Way {
    Dial(PathBuf),
    Wait(Arc<Mutex<Hall>>),
}

struct End {
    state: Arc<State>,
    id: u64,
    way: Way,
}

impl Link for End {
    fn open(&mut self, name: &str, route: Option<&str>, limit: Duration) -> Result<Channel, PluginError> {
        let deadline = Instant::now() + limit;
        if route.is_some() && self.state.fault == Fault::RefusesRoutes {
            return Err(error(ErrorCode::Config, "no routes"));
        }
        let stream = loop {
            self.state.living()?;
            let found = match &self.way {
                Way::Dial(path) => dial(path, self.id, name),
                Way::Wait(hall) => {
                    *self.state.hall.lock().unwrap() = Some(Arc::clone(hall));
                    let mut hall = hall.lock().unwrap();
                    hall.look();
                    hall.waiting.remove(&(self.id, name.to_owned()))
                }
            };
            if let Some(stream) = found {
                break stream;
            }
            if Instant::now() >= deadline && self.state.fault != Fault::WaitsForAChannelForEver {
                return Err(error(ErrorCode::TimedOut, "the channel did not come"));
            }
            thread::sleep(LOOK);
        };
        self.state.streams.lock().unwrap().push((name.to_owned(), stream.try_clone().unwrap()));
        let half = |stream| Half { state: Arc::clone(&self.state), stream, both: Arc::default() };
        let (tx, mut rx) = (half(stream.try_clone().unwrap()), half(stream));
        rx.both = Arc::clone(&tx.both);
        let (lent, unread) = (Vec::new(), VecDeque::new());
        Ok((Box::new(Tx { half: tx, name: name.to_owned(), lent, unread }), Box::new(rx)))
    }

    fn aborter(&self) -> Arc<dyn LinkAbort> {
        Arc::clone(&self.state) as Arc<dyn LinkAbort>
    }

    fn peer(&self) -> String {
        format!("link {}", self.id)
    }

    fn answers(&self) -> bool {
        self.state.fault != Fault::SaysThatNobodyAnswers
    }
}

struct Half {
    state: Arc<State>,
    stream: UnixStream,
    /// Of both halves of a channel.
    both: Arc<Mutex<()>>,
}

impl Half {
    fn lost(&self, ended: std::io::Error) -> PluginError {
        let is_wrong =
            self.state.fault == Fault::CallsADeadPrimaryATimeOut && self.state.side == Side::Standby;
        PluginError::new(if is_wrong { ErrorCode::TimedOut } else { ErrorCode::PeerLost }, ended)
    }
}

struct Tx {
    half: Half,
    name: String,
    /// Where the memory is that was lent.
    lent: Vec<Range<usize>>,
    /// What a device that lags behind has not read: bytes, then where the rest lies.
    unread: VecDeque<(Vec<u8>, Range<usize>)>,
}

impl Tx {
    /// Reads, as a device would, all but the last `most` messages.
    fn read(&mut self, most: usize) -> Result<(), PluginError> {
        while self.unread.len() > most
            && let Some((head, place)) = self.unread.pop_front()
        {
            let mut bytes = vec![0; place.len()];
            let own = File::open("/proc/self/mem").unwrap();
            // Nothing may be there any more.
            let _ = own.read_exact_at(&mut bytes, place.start as u64);
            for part in [head, bytes] {
                self.half.stream.write_all(&part).map_err(|e| self.half.lost(e))?;
            }
        }
        Ok(())
    }

    /// Whether it is for such a device.
    fn lags(&self, last: &[u8]) -> Option<Range<usize>> {
        let Range { start, end } = last.as_ptr_range();
        let place = start as usize..end as usize;
        let is_lent = self.lent.iter().any(|m| m.start <= place.start && place.end <= m.end);
        (self.half.state.fault == Fault::ReadsSettledMemory && is_lent).then_some(place)
    }
}

impl ChannelTx for Tx {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        if let Some((last, before)) = parts.split_last()
            && let Some(place) = self.lags(last)
        {
            self.unread.push_back((before.concat(), place));
            return self.read(2);
        }
        self.read(0)?;
        let Tx { half, name, .. } = self;
        let (state, both) = (Arc::clone(&half.state), Arc::clone(&half.both));
        let _one = (state.fault == Fault::HoldsOneLockForAll).then(|| state.one_lock.lock().unwrap());
        let _both = (state.fault == Fault::HoldsALockForBothWays).then(|| both.lock().unwrap());
        state.living()?;
        let mut parts = parts.to_vec();
        if state.fault == Fault::TurnsPartsRound {
            parts.reverse();
        }
        if state.fault == Fault::MixesTwoChannels && name == "disk:disk1" {
            let streams = state.streams.lock().unwrap();
            let (_, other) = streams.iter().find(|s| s.0 == "disk:disk0").unwrap();
            half.stream = other.try_clone().unwrap();
        }
        for part in parts {
            half.stream.write_all(part).map_err(|e| half.lost(e))?;
        }
        state.living()
    }

    fn memory(&mut self, bytes: usize) -> Option<Box<dyn LentMemory>> {
        let memory = Memory::of(&self.half.state, vec![0; bytes]);
        let Range { start, end } = memory.bytes().as_ptr_range();
        self.lent.push(start as usize..end as usize);
        Some(memory)
    }

    fn settle(&mut self, sends: usize) -> Result<(), PluginError> {
        let state = &self.half.state;
        while state.fault == Fault::SettlesADeadLinkNever && state.is_aborted() {
            thread::sleep(LOOK);
        }
        // And what was sent before those may be unread as well.
        self.read(if sends == 0 { 0 } else { 2 })
    }
}

struct Memory {
    state: Arc<State>,
    bytes: Vec<u8>,
    nothing: Vec<u8>,
}

impl Memory {
    fn of(state: &Arc<State>, bytes: Vec<u8>) -> Box<dyn LentMemory> {
        Box::new(Memory { state: Arc::clone(state), nothing: vec![0; bytes.len()], bytes })
    }
}

impl LentMemory for Memory {
    fn bytes(&self) -> &[u8] {
        let is_gone = self.state.fault == Fault::TakesLentMemoryBack && self.state.is_aborted();
        if is_gone { &self.nothing } else { &self.bytes }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl ChannelRx for Half {
    fn recv(&mut self, buf: &mut [u8]) -> Result<(), PluginError> {
        let is_honest = self.state.fault != Fault::HandsOutWhatHadArrived;
        let both = Arc::clone(&self.both);
        let _both = (self.state.fault == Fault::HoldsALockForBothWays).then(|| both.lock().unwrap());
        if is_honest {
            self.state.living()?;
        }
        let read = self.stream.read_exact(buf);
        if is_honest {
            self.state.living()?;
        }
        match read {
            Err(_) if self.state.fault == Fault::TakesAnEndForBytes => Ok(()),
            Err(e) => {
                while self.state.fault == Fault::WaitsForADeadStandby
                    && self.state.side == Side::Primary
                    && !self.state.is_aborted()
                {
                    thread::sleep(LOOK);
                }
                Err(self.lost(e))
            }
            Ok(()) => Ok(()),
        }
    }

    fn recv_lent(&mut self, len: usize) -> Result<Option<Box<dyn LentMemory>>, PluginError> {
        let mut bytes = vec![0; len];
        self.recv(&mut bytes)?;
        if self.state.fault == Fault::CutsLentMemory {
            bytes.pop();
        }
        Ok(Some(Memory::of(&self.state, bytes)))
    }
}
