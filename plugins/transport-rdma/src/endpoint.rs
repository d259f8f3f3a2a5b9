//! One queue pair with all that belongs to it: memory, completions, connection.
//!
//! ```text
//!  made ─► connected ─► [writes, receives] ─► drop: disconnected ─► every request flushed ─► destroyed ─► memory given back
//! ```
//! Invariant: memory is given back only when no request is left that names it, and the queue pair is gone.

use crate::ffi::{
    QPT_RC, QpInitAttr, RecvWr, SEND_SIGNALED, SendWr, Sge, WC_RECV_RDMA_WITH_IMM, WC_SUCCESS, WR_RDMA_WRITE,
    WR_RDMA_WRITE_WITH_IMM, Wc,
};
use crate::library::Libraries;
use crate::resource::{Completions, Domain, Events, Id, Memory, constant, done};
use crate::ring::{CREDITS, MESSAGES, OFFERS, Span};
use crate::wire::Ring;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest time for a queue pair that has ended to give its requests back.
const FLUSH: Duration = Duration::from_secs(2);

/// Most pieces that one write is gathered from: every device can do so many.
pub(crate) const PIECES: usize = 4;
/// Most writes in flight that the other side is not told of.
pub(crate) const SILENT: u32 = 64;
/// Most that a sender, and a receiver, has in its send queue.
const SENDS: u32 = MESSAGES + SILENT;
pub(crate) const TELLS: u32 = CREDITS + OFFERS;

/// What a half of a channel uses its queue pair for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Writes messages, and receives credits.
    Send,
    /// Receives messages, and writes credits.
    Receive,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeError {
    #[error("No RDMA device leads there")]
    NoDevice,
    #[error(
        "Could not register {bytes} bytes of memory; the limit of locked memory (`ulimit -l`, LimitMEMLOCK= of a unit) \
         must allow all channels of all guests"
    )]
    Register { bytes: usize, source: io::Error },
    #[error("Could not make {what}")]
    Make { what: &'static str, source: io::Error },
}

/// How a request went.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Completion {
    /// The write with this number is in the other side's memory.
    Wrote(u64),
    /// The other side has written, with this immediate.
    Came(u32),
    /// One was not carried out, for this reason; nor is any later one.
    Failed(&'static str),
}

/// Marks receive requests, where writes have numbers.
const RECEIVE: u64 = u64::MAX;

pub(crate) struct Endpoint {
    libraries: &'static Libraries,
    connected: bool,
    /// Whether the queue pair is gone.
    ended: bool,
    /// Requests that have not completed.
    writes: u32,
    receives: u32,
    // In the order in which they may go.
    pub(crate) completions: Completions,
    pub(crate) memory: Memory,
    domain: Arc<Domain>,
    pub(crate) id: Id,
    pub(crate) events: Events,
}

impl Endpoint {
    /// For a connection that knows its device.
    pub(crate) fn new(
        libraries: &'static Libraries,
        events: Events,
        id: Id,
        purpose: Use,
        len: usize,
    ) -> Result<Endpoint, MakeError> {
        let device = id.device().ok_or(MakeError::NoDevice)?;
        let make = |what| move |source| MakeError::Make { what, source };
        let domain = Arc::new(Domain::new(libraries, device).map_err(make("a protection domain"))?);
        let completions =
            Completions::new(libraries, device, SENDS + TELLS).map_err(make("a completion queue"))?;
        let memory = Memory::new(libraries, &domain, len, purpose == Use::Receive)
            .map_err(|source| MakeError::Register { bytes: len, source })?;
        let (writes, receives) = match purpose {
            Use::Send => (SENDS, TELLS),
            Use::Receive => (TELLS, MESSAGES),
        };
        let mut wanted = QpInitAttr {
            qp_context: ptr::null_mut(),
            send_cq: completions.queue.as_ptr(),
            recv_cq: completions.queue.as_ptr(),
            srq: ptr::null_mut(),
            max_send_wr: writes,
            max_recv_wr: receives,
            max_send_sge: PIECES as u32,
            max_recv_sge: 1,
            max_inline_data: 0,
            qp_type: QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: all that it names is there, and outlives the queue pair.
        done(unsafe {
            (libraries.manager.rdma_create_qp)(id.raw.as_ptr(), domain.raw.as_ptr(), &mut wanted)
        })
        .map_err(make("a queue pair"))?;
        let mut endpoint = Endpoint {
            libraries,
            connected: false,
            ended: false,
            writes: 0,
            receives: 0,
            completions,
            memory,
            domain,
            id,
            events,
        };
        for _ in 0..receives {
            endpoint.receive().map_err(|e| MakeError::Make { what: "receive requests", source: e.into() })?;
        }
        Ok(endpoint)
    }

    /// More memory for this queue pair; `open`: whether the other side may write to it.
    pub(crate) fn register(&self, len: usize, open: bool) -> io::Result<Memory> {
        Memory::new(self.libraries, &self.domain, len, open)
    }

    /// This side's memory, as the other one writes to it.
    pub(crate) fn ring(&self) -> Ring {
        let memory = &self.memory;
        Ring { address: memory.address(), key: memory.remote_key(), length: memory.len() as u32 }
    }

    /// The other side's queue pair is there.
    pub(crate) fn connected(&mut self) {
        self.connected = true;
    }

    fn qp(&self) -> *mut crate::ffi::Qp {
        // SAFETY: the structure is there for as long as `self`, and the queue pair is its.
        unsafe { self.id.raw.as_ref() }.qp
    }

    /// Takes one more message or credit.
    pub(crate) fn receive(&mut self) -> Result<(), Errno> {
        self.lives()?;
        let mut request =
            RecvWr { wr_id: RECEIVE, next: ptr::null_mut(), sg_list: ptr::null_mut(), num_sge: 0 };
        let (qp, mut bad) = (self.qp(), ptr::null_mut());
        // SAFETY: the queue pair is there; the request is copied. The driver's function is set in every open device.
        let failed = unsafe {
            let post = (*(*qp).context).ops.post_recv.ok_or(Errno::OPNOTSUPP)?;
            post(qp, &mut request, &mut bad)
        };
        posted(failed)?;
        self.receives += 1;
        Ok(())
    }

    /// Writes what lies in this side's memory to the same place of the other side's, and tells it `immediate`. With an empty
    /// `span` it only tells.
    pub(crate) fn write(&mut self, span: Span, to: &Ring, number: u64, immediate: u32) -> Result<(), Errno> {
        let piece = Sge {
            addr: self.memory.address() + span.at as u64,
            length: span.len as u32,
            lkey: self.memory.local_key(),
        };
        let pieces = if span.len > 0 { &[piece][..] } else { &[] };
        // SAFETY: the memory is this endpoint's own.
        unsafe { self.gather(pieces, (to.address + span.at as u64, to.key), number, Some(immediate)) }
    }

    /// Writes these pieces, at most [`PIECES`], one behind the other to an address and key of the other side, and tells it
    /// `immediate`, if there is one.
    ///
    /// # Safety
    /// The pieces' memory stays registered until the request has completed or [`Self::end`] has returned. What is written there
    /// meanwhile may go instead.
    pub(crate) unsafe fn gather(
        &mut self,
        pieces: &[Sge],
        (address, key): (u64, u32),
        number: u64,
        immediate: Option<u32>,
    ) -> Result<(), Errno> {
        self.lives()?;
        assert!(pieces.len() <= PIECES, "more pieces than a request has");
        let mut request = SendWr {
            wr_id: number,
            next: ptr::null_mut(),
            sg_list: pieces.as_ptr().cast_mut(),
            num_sge: pieces.len() as i32,
            opcode: if immediate.is_some() { WR_RDMA_WRITE_WITH_IMM } else { WR_RDMA_WRITE },
            send_flags: SEND_SIGNALED,
            imm_data: immediate.unwrap_or_default().to_be(),
            remote_addr: address,
            rkey: key,
            rest: [0; 9],
        };
        let (qp, mut bad) = (self.qp(), ptr::null_mut());
        // SAFETY: the queue pair is there; request and pieces are copied. The caller sees to the memory.
        let failed = unsafe {
            let post = (*(*qp).context).ops.post_send.ok_or(Errno::OPNOTSUPP)?;
            post(qp, &mut request, &mut bad)
        };
        posted(failed)?;
        self.writes += 1;
        Ok(())
    }

    /// Writes that have not completed.
    pub(crate) fn writes(&self) -> u32 {
        self.writes
    }

    /// The next completion, if there is one. Does not wait.
    pub(crate) fn next(&mut self) -> Result<Option<Completion>, Errno> {
        let (queue, mut seen) = (self.completions.queue.as_ptr(), Wc::default());
        // SAFETY: the queue is there, and `seen` has room for one.
        let got = unsafe {
            let poll = (*(*queue).context).ops.poll_cq.ok_or(Errno::OPNOTSUPP)?;
            poll(queue, 1, &mut seen)
        };
        match got {
            0 => return Ok(None),
            1 => {}
            _ => return Err(Errno::IO),
        }
        match seen.wr_id {
            RECEIVE => self.receives = self.receives.saturating_sub(1),
            _ => self.writes = self.writes.saturating_sub(1),
        }
        Ok(Some(match seen.status {
            WC_SUCCESS if seen.opcode == WC_RECV_RDMA_WITH_IMM => {
                Completion::Came(u32::from_be(seen.imm_data))
            }
            WC_SUCCESS if seen.wr_id != RECEIVE => Completion::Wrote(seen.wr_id),
            // Somebody sent a message instead of writing.
            WC_SUCCESS => Completion::Failed("what came is no write"),
            status => {
                // SAFETY: it answers a constant for any number.
                Completion::Failed(unsafe { constant((self.libraries.verbs.ibv_wc_status_str)(status)) })
            }
        }))
    }

    /// Has the descriptor tell of the next completion. One that came before is not told of: look once more.
    pub(crate) fn arm(&self) -> Result<(), Errno> {
        self.completions.quiet().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        let queue = self.completions.queue.as_ptr();
        // SAFETY: the queue is there.
        posted(unsafe {
            let notify = (*(*queue).context).ops.req_notify_cq.ok_or(Errno::OPNOTSUPP)?;
            notify(queue, 0)
        })
    }

    fn lives(&self) -> Result<(), Errno> {
        if self.ended { Err(Errno::NOTCONN) } else { Ok(()) }
    }

    /// Ends the connection and the queue pair. On return the device uses no memory any more that a request named, and writes
    /// nothing any more that the other side sends. Idempotent.
    pub(crate) fn end(&mut self) {
        if self.ended {
            return;
        }
        self.flush();
        if self.writes + self.receives > 0 {
            tracing::debug!(self.writes, self.receives, "A queue pair was destroyed with requests in it");
        }
        self.ended = true;
        // SAFETY: it is there, and nobody uses it any more.
        unsafe { (self.libraries.manager.rdma_destroy_qp)(self.id.raw.as_ptr()) };
    }

    /// Ends the connection and waits until each request was given back. One that never was has none in flight.
    fn flush(&mut self) {
        if !self.connected {
            return;
        }
        // SAFETY: the connection is there. It fails where the other side or the device was faster.
        unsafe { (self.libraries.manager.rdma_disconnect)(self.id.raw.as_ptr()) };
        let until = Instant::now() + FLUSH;
        while self.writes + self.receives > 0 && Instant::now() < until {
            match self.next() {
                Ok(Some(_)) => continue,
                Ok(None) if self.arm().is_ok() => {}
                _ => return,
            }
            if let Ok(Some(_)) = self.next() {
                continue;
            }
            let moment = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            // Looked at again in any case.
            let _ = poll(&mut [PollFd::new(&self.completions, PollFlags::IN)], Some(&moment));
        }
    }
}

/// The drivers' convention: the reason itself.
fn posted(failed: i32) -> Result<(), Errno> {
    if failed == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(failed.abs())) }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.end();
    }
}
