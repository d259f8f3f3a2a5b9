//! What the libraries hand out, each with an owner that gives it back. All of it may go from thread to thread.

use crate::ffi::{
    ACCESS_LOCAL_WRITE, ACCESS_REMOTE_WRITE, CmEvent, CmId, CompChannel, Context, Cq, EventChannel, Mr,
    OPTION_ID, OPTION_ID_ACK_TIMEOUT, PS_TCP, Pd,
};
use crate::library::Libraries;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ffi::{CStr, c_int, c_uint};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// The libraries' convention: negative, and the reason in `errno`.
pub(crate) fn done(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The other convention: null, and the reason in `errno`.
fn made<T>(pointer: *mut T) -> io::Result<NonNull<T>> {
    NonNull::new(pointer).ok_or_else(io::Error::last_os_error)
}

/// From now on reading it does not wait.
fn never_wait(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?)
}

/// Where the connection manager says what happens.
pub(crate) struct Events {
    libraries: &'static Libraries,
    channel: NonNull<EventChannel>,
}

/// Something that happened to a connection.
pub(crate) struct Event {
    pub(crate) kind: c_uint,
    pub(crate) status: i32,
    /// A connection that somebody asks for.
    pub(crate) id: *mut CmId,
    /// What the one who asks shows.
    pub(crate) shown: Vec<u8>,
}

impl Events {
    pub(crate) fn new(libraries: &'static Libraries) -> io::Result<Events> {
        // SAFETY: it takes nothing.
        let channel = made(unsafe { (libraries.manager.rdma_create_event_channel)() })?;
        let events = Events { libraries, channel };
        never_wait(events.as_fd())?;
        Ok(events)
    }

    /// The next one; `None` while nothing happens.
    pub(crate) fn next(&self) -> io::Result<Option<Event>> {
        let manager = &self.libraries.manager;
        let mut raw: *mut CmEvent = ptr::null_mut();
        // SAFETY: the channel lives as long as `self`.
        match done(unsafe { (manager.rdma_get_cm_event)(self.channel.as_ptr(), &mut raw) }) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            other => other?,
        }
        // SAFETY: it succeeded, so it is an event until it is acknowledged.
        let seen = unsafe { &*raw };
        let shown = match seen.conn.private_data.is_null() {
            true => Vec::new(),
            // SAFETY: so many bytes are there until the event is acknowledged.
            false => unsafe {
                std::slice::from_raw_parts(
                    seen.conn.private_data.cast::<u8>(),
                    seen.conn.private_data_len.into(),
                )
                .to_vec()
            },
        };
        let event = Event { kind: seen.event, status: seen.status, id: seen.id, shown };
        // SAFETY: once for each event; nothing of it is used afterwards.
        done(unsafe { (manager.rdma_ack_cm_event)(raw) })?;
        Ok(Some(event))
    }

    /// What a kind is called.
    pub(crate) fn name(libraries: &Libraries, kind: c_uint) -> &'static str {
        // SAFETY: it answers a constant for any number.
        unsafe { constant((libraries.manager.rdma_event_str)(kind)) }
    }
}

/// A text of a library.
///
/// # Safety
/// It is null or a constant.
pub(crate) unsafe fn constant(text: *const std::ffi::c_char) -> &'static str {
    if text.is_null() {
        return "unknown";
    }
    // SAFETY: the caller's.
    unsafe { CStr::from_ptr(text) }.to_str().unwrap_or("unknown")
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel has it open for as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(self.channel.as_ref().fd) }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // SAFETY: its connections were dropped before.
        unsafe { (self.libraries.manager.rdma_destroy_event_channel)(self.channel.as_ptr()) };
    }
}

/// A connection, or the wish for one, or what listens for them. To be dropped before its [`Events`].
pub(crate) struct Id {
    libraries: &'static Libraries,
    pub(crate) raw: NonNull<CmId>,
}

impl Id {
    pub(crate) fn new(libraries: &'static Libraries, events: &Events) -> io::Result<Id> {
        let mut raw = ptr::null_mut();
        let create = libraries.manager.rdma_create_id;
        // SAFETY: the channel lives as long as the connection, as the type asks.
        done(unsafe { create(events.channel.as_ptr(), &mut raw, ptr::null_mut(), PS_TCP) })?;
        Ok(Id { libraries, raw: made(raw)? })
    }

    /// Takes the connection that an event is about, if it is a new one.
    ///
    /// # Safety
    /// The event is a request for a connection, and was given here once.
    pub(crate) unsafe fn asked_for(libraries: &'static Libraries, event: &Event) -> Option<Id> {
        Some(Id { libraries, raw: NonNull::new(event.id)? })
    }

    /// From now on `events` say what happens to it.
    pub(crate) fn move_to(&self, events: &Events) -> io::Result<()> {
        // SAFETY: both are alive.
        done(unsafe { (self.libraries.manager.rdma_migrate_id)(self.raw.as_ptr(), events.channel.as_ptr()) })
    }

    /// How long its queue pair waits for a confirmation before it repeats: 4.096 us, `doubled` so often. To be said before a
    /// route is looked for, or the connection accepted.
    pub(crate) fn repeat_after(&self, mut doubled: u8) -> io::Result<()> {
        let (id, value) = (self.raw.as_ptr(), (&raw mut doubled).cast());
        // SAFETY: the option is one byte, and copied.
        done(unsafe {
            (self.libraries.manager.rdma_set_option)(id, OPTION_ID, OPTION_ID_ACK_TIMEOUT, value, 1)
        })
    }

    /// The device that it was found to go by.
    pub(crate) fn device(&self) -> Option<NonNull<Context>> {
        // SAFETY: the structure is there for as long as `self`.
        NonNull::new(unsafe { self.raw.as_ref() }.verbs)
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: no event of it is unacknowledged, and its queue pair is gone. It fails for what is gone with its device.
        unsafe { (self.libraries.manager.rdma_destroy_id)(self.raw.as_ptr()) };
    }
}

/// A protection domain: what memory and queue pairs of one channel belong to.
pub(crate) struct Domain {
    libraries: &'static Libraries,
    pub(crate) raw: NonNull<Pd>,
}

impl Domain {
    pub(crate) fn new(libraries: &'static Libraries, device: NonNull<Context>) -> io::Result<Domain> {
        // SAFETY: the manager keeps devices open for as long as the process lives.
        let raw = made(unsafe { (libraries.verbs.ibv_alloc_pd)(device.as_ptr()) })?;
        Ok(Domain { libraries, raw })
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: what belonged to it was dropped before.
        unsafe { (self.libraries.verbs.ibv_dealloc_pd)(self.raw.as_ptr()) };
    }
}

/// Where completions show: a queue, and the descriptor that says that there is something in it.
pub(crate) struct Completions {
    libraries: &'static Libraries,
    channel: NonNull<CompChannel>,
    pub(crate) queue: NonNull<Cq>,
}

impl Completions {
    /// For at most `depth` at once.
    pub(crate) fn new(
        libraries: &'static Libraries,
        device: NonNull<Context>,
        depth: u32,
    ) -> io::Result<Completions> {
        let verbs = &libraries.verbs;
        // SAFETY: the device is open.
        let channel = made(unsafe { (verbs.ibv_create_comp_channel)(device.as_ptr()) })?;
        // SAFETY: device and channel are there; the channel outlives the queue.
        let queue = made(unsafe {
            (verbs.ibv_create_cq)(device.as_ptr(), depth as c_int, ptr::null_mut(), channel.as_ptr(), 0)
        });
        let queue = queue.inspect_err(|_| {
            // SAFETY: nothing uses it.
            unsafe { (verbs.ibv_destroy_comp_channel)(channel.as_ptr()) };
        })?;
        let completions = Completions { libraries, channel, queue };
        never_wait(completions.as_fd())?;
        Ok(completions)
    }

    /// Takes back what the descriptor has said.
    pub(crate) fn quiet(&self) -> io::Result<()> {
        let verbs = &self.libraries.verbs;
        let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
        loop {
            // SAFETY: the channel is there.
            let got = unsafe { (verbs.ibv_get_cq_event)(self.channel.as_ptr(), &mut queue, &mut context) };
            match done(got) {
                // SAFETY: the one event that was just taken, of the channel's only queue.
                Ok(()) => unsafe { (verbs.ibv_ack_cq_events)(self.queue.as_ptr(), 1) },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Completions {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel has it open for as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(self.channel.as_ref().fd) }
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        // SAFETY: the queue pair that used them was destroyed before, and all events are acknowledged.
        unsafe {
            (self.libraries.verbs.ibv_destroy_cq)(self.queue.as_ptr());
            (self.libraries.verbs.ibv_destroy_comp_channel)(self.channel.as_ptr());
        }
    }
}

/// Memory that the device reads and writes. To be dropped after the queue pair.
pub(crate) struct Memory {
    libraries: &'static Libraries,
    _domain: Arc<Domain>,
    region: NonNull<Mr>,
    at: NonNull<u8>,
    len: usize,
}

impl Memory {
    /// `open`: whether the other host may write to it.
    pub(crate) fn new(
        libraries: &'static Libraries,
        domain: &Arc<Domain>,
        len: usize,
        open: bool,
    ) -> io::Result<Memory> {
        // SAFETY: new memory, at an address of the kernel's choice.
        let at = unsafe {
            mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        // A child that inherited it would take the pages away from under the device.
        // SAFETY: that memory.
        let kept = unsafe { madvise(at, len, Advice::LinuxDontFork) }.map_err(io::Error::from);
        let access = if open { ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE } else { 0 };
        let region = kept.and_then(|()| {
            // SAFETY: memory that stays until the region is given back.
            made(unsafe { (libraries.verbs.ibv_reg_mr)(domain.raw.as_ptr(), at, len, access) })
        });
        let region = region.inspect_err(|_| {
            // SAFETY: nobody uses it.
            let _ = unsafe { munmap(at, len) };
        })?;
        let at = NonNull::new(at.cast()).ok_or(Errno::NOMEM)?;
        Ok(Memory { libraries, _domain: Arc::clone(domain), region, at, len })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn address(&self) -> u64 {
        self.at.as_ptr() as u64
    }

    /// Where `len` bytes from `at` on are.
    pub(crate) fn place(&self, at: usize, len: usize) -> NonNull<u8> {
        assert!(at <= self.len && len <= self.len - at, "outside of the memory");
        // SAFETY: checked above.
        unsafe { self.at.add(at) }
    }

    /// What a request of this side names it by.
    pub(crate) fn local_key(&self) -> u32 {
        // SAFETY: the region is there.
        unsafe { self.region.as_ref() }.lkey
    }

    /// What a request of the other side names it by.
    pub(crate) fn remote_key(&self) -> u32 {
        // SAFETY: the region is there.
        unsafe { self.region.as_ref() }.rkey
    }

    /// Writes to it, where no request in flight reads.
    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        assert!(at <= self.len && bytes.len() <= self.len - at, "outside of the memory");
        // SAFETY: checked above; the device only reads what is in flight.
        unsafe { self.at.add(at).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
    }

    /// Reads from it. The other host could write there meanwhile, against the rules: then these are some bytes.
    pub(crate) fn get(&self, at: usize, bytes: &mut [u8]) {
        assert!(at <= self.len && bytes.len() <= self.len - at, "outside of the memory");
        // SAFETY: checked above; any bytes will do.
        unsafe { NonNull::from(&mut *bytes).cast().copy_from_nonoverlapping(self.at.add(at), bytes.len()) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: no queue pair is left that could use it.
        let given_back = unsafe { (self.libraries.verbs.ibv_dereg_mr)(self.region.as_ptr()) } == 0;
        // What the device may still know is never anybody else's memory.
        if given_back {
            // SAFETY: nobody uses it any more.
            let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
        } else {
            tracing::warn!(bytes = self.len, "Memory stays registered for RDMA until this process ends");
        }
    }
}

macro_rules! between_threads {
    ($($owner:ty),*) => {$(
        // SAFETY: the libraries may be called from any thread, and the owner is the only one who has the pointer.
        unsafe impl Send for $owner {}
    )*};
}

between_threads!(Events, Id, Domain, Completions, Memory);

// SAFETY: nothing can be done with a shared one.
unsafe impl Sync for Domain {}
// SAFETY: a shared one is only read; who writes to what [`Memory::place`] answers sees to it that nobody else does.
unsafe impl Sync for Memory {}
