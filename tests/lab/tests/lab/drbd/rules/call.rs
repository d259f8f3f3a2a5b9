//! Calls between this process and one on a lab host, in both directions at once, over two streams of bytes.
//!
//! ```text
//! packet: length (4, little-endian) │ number (8) │ verb (1) │ three arguments (8 each) │ bytes
//! ```
//! Each call that comes in is carried out on a thread of its own, so that one which waits holds up no other.

use aventine_api::{ErrorCode, PluginError};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

/// The verb of what a call came to.
const DONE: u8 = 0xf0;
const FAILED: u8 = 0xf1;
/// Bytes before those that come with a call, without the length.
const HEAD: usize = 33;

const CODES: [ErrorCode; 9] = [
    ErrorCode::Config,
    ErrorCode::Unavailable,
    ErrorCode::PeerLost,
    ErrorCode::Limit,
    ErrorCode::Corrupt,
    ErrorCode::Io,
    ErrorCode::Refused,
    ErrorCode::TimedOut,
    ErrorCode::Internal,
];

/// What is asked, or what came of it.
#[derive(Debug, Default)]
pub(super) struct Call {
    pub(super) verb: u8,
    pub(super) args: [u64; 3],
    pub(super) bytes: Vec<u8>,
}

pub(super) type Answer = Result<Call, PluginError>;

/// Nothing more to say than that it is done.
pub(super) fn done() -> Answer {
    Ok(Call::default())
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct There(String);

pub(super) fn error(code: u64, text: &[u8]) -> PluginError {
    let known = CODES.into_iter().find(|c| *c as u64 == code).unwrap_or(ErrorCode::Internal);
    PluginError::new(known, There(String::from_utf8_lossy(text).into_owned()))
}

fn gone() -> PluginError {
    error(ErrorCode::PeerLost as u64, b"The process on the other side has ended")
}

/// One end.
pub(super) struct Peer {
    out: Mutex<Box<dyn Write + Send>>,
    /// Who waits for an answer; nobody may any more once the other end is gone.
    waiting: Mutex<Option<HashMap<u64, Sender<Answer>>>>,
    last: Mutex<u64>,
}

impl Peer {
    pub(super) fn new(out: impl Write + Send + 'static) -> Arc<Peer> {
        let waiting = Mutex::new(Some(HashMap::new()));
        Arc::new(Peer { out: Mutex::new(Box::new(out)), waiting, last: Mutex::new(0) })
    }

    /// Has something done on the other side, and waits for it.
    pub(super) fn call(&self, verb: u8, args: [u64; 3], bytes: &[u8]) -> Answer {
        let number = {
            let mut last = self.last.lock().unwrap();
            *last += 1;
            *last
        };
        let (sender, answer) = channel();
        match &mut *self.waiting.lock().unwrap() {
            Some(waiting) => drop(waiting.insert(number, sender)),
            None => return Err(gone()),
        }
        self.send(number, verb, args, bytes).map_err(|_| gone())?;
        answer.recv().unwrap_or_else(|_| Err(gone()))
    }

    /// Carries out what the other side asks for, until that is gone.
    pub(super) fn serve(
        self: &Arc<Peer>,
        mut from: impl Read,
        act: impl Fn(Call) -> Answer + Send + Sync + 'static,
    ) {
        let act = Arc::new(act);
        while let Ok((number, call)) = receive(&mut from) {
            let (peer, act) = (Arc::clone(self), Arc::clone(&act));
            match call.verb {
                DONE => self.answered(number, Ok(call)),
                FAILED => self.answered(number, Err(error(call.args[0], &call.bytes))),
                _ => drop(thread::spawn(move || {
                    // The other side may be gone.
                    let _ = match act(call) {
                        Ok(Call { args, bytes, .. }) => peer.send(number, DONE, args, &bytes),
                        Err(e) => peer.send(number, FAILED, [e.code() as u64, 0, 0], e.chain().as_bytes()),
                    };
                })),
            }
        }
        *self.waiting.lock().unwrap() = None;
    }

    fn answered(&self, number: u64, answer: Answer) {
        let waiting = &mut *self.waiting.lock().unwrap();
        if let Some(sender) = waiting.as_mut().and_then(|w| w.remove(&number)) {
            let _ = sender.send(answer);
        }
    }

    fn send(&self, number: u64, verb: u8, args: [u64; 3], bytes: &[u8]) -> io::Result<()> {
        let mut packet = Vec::with_capacity(4 + HEAD + bytes.len());
        packet.extend(((HEAD + bytes.len()) as u32).to_le_bytes());
        packet.extend(number.to_le_bytes());
        packet.push(verb);
        args.into_iter().for_each(|arg| packet.extend(arg.to_le_bytes()));
        packet.extend(bytes);
        let mut out = self.out.lock().unwrap();
        out.write_all(&packet)?;
        out.flush()
    }
}

fn receive(from: &mut impl Read) -> io::Result<(u64, Call)> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut packet = vec![0; u32::from_le_bytes(length) as usize];
    from.read_exact(&mut packet)?;
    let number = |at: usize| u64::from_le_bytes(packet[at..at + 8].try_into().unwrap());
    let args = [number(9), number(17), number(25)];
    Ok((number(0), Call { verb: packet[8], args, bytes: packet.split_off(HEAD) }))
}
