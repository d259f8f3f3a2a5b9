//! One connection, encrypted or not, from its first byte to its last.
//!
//! It begins non-blocking and in one hand, through [`Read`] and [`Write`]: the TLS handshake happens inside them, and
//! what is written before its end waits for it. As a channel it is blocking and in two hands, the sender's and the
//! receiver's:
//!
//! ```text
//!  sender    lock · encrypt · take the records · unlock     send them (may block)
//!  receiver  receive (may block)     lock · give the bytes · decrypt · unlock
//! ```
//! The lock is held for computing alone, never for a socket: a sender that is stuck keeps no receiver waiting, and the
//! other way round. Only the sender's hand writes to the socket and only the receiver's reads from it, so records
//! keep their order.

use crate::fault::Fault;
use crate::tls::Tls;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustls::{ClientConnection, Connection, ServerConnection};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most bytes encrypted before they are sent.
const CHUNK: usize = 256 << 10;
/// Most bytes received before they are decrypted.
const RAW: usize = 256 << 10;

/// How connections are made.
#[derive(Clone, Debug)]
pub enum Security {
    /// Not encrypted.
    Plaintext,
    /// TLS 1.3, with certificates on both sides.
    Tls(Tls),
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Conn {
    stream: TcpStream,
    tls: Option<Mutex<Connection>>,
}

impl Security {
    /// A connection that was made to `address`.
    pub(crate) fn dialled(&self, stream: TcpStream, address: SocketAddr) -> io::Result<Conn> {
        let tls = match self {
            Security::Plaintext => None,
            Security::Tls(tls) => {
                let new = ClientConnection::new(Arc::clone(&tls.client), address.ip().into());
                Some(Connection::Client(new.map_err(io::Error::other)?))
            }
        };
        Ok(Conn { stream, tls: tls.map(Mutex::new) })
    }

    /// A connection that came.
    pub(crate) fn accepted(&self, stream: TcpStream) -> io::Result<Conn> {
        let tls = match self {
            Security::Plaintext => None,
            Security::Tls(tls) => {
                let new = ServerConnection::new(Arc::clone(&tls.server));
                Some(Connection::Server(new.map_err(io::Error::other)?))
            }
        };
        Ok(Conn { stream, tls: tls.map(Mutex::new) })
    }
}

fn lock(tls: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Conn {
    /// From here on it is blocking, and encrypts whole chunks at once.
    pub(crate) fn become_channel(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.get_mut().unwrap_or_else(PoisonError::into_inner).set_buffer_limit(Some(CHUNK));
        }
        self.stream.set_nonblocking(false)?;
        self.stream.set_nodelay(true)
    }

    /// The socket, for whatever does not read or write.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether it waits to write rather than to read.
    pub(crate) fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| lock(tls).wants_write())
    }

    /// Whether it is encrypted.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The next byte on the wire, if it is there; it stays there.
    pub(crate) fn peek(&self) -> Option<u8> {
        let mut byte = [0];
        match recv(&self.stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, 1)) => Some(byte[0]),
            _ => None,
        }
    }

    /// Writes past TLS: for the one who does not speak it.
    pub(crate) fn write_plain(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads whatever comes and forgets it; whether more may come.
    pub(crate) fn discard(&mut self) -> io::Result<bool> {
        self.stream.read(&mut [0; 512]).map(|n| n > 0)
    }

    /// Sends what of `batch` fits into a chunk; the number of bytes. `sealed` is scratch memory.
    pub(crate) fn seal_some(&self, batch: &[IoSlice<'_>], sealed: &mut Vec<u8>) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return Ok(0) };
        let mut tls = lock(tls);
        let taken = tls.writer().write_vectored(batch)?;
        take_records(&mut tls, sealed)?;
        if taken == 0 { Err(ErrorKind::WriteZero.into()) } else { Ok(taken) }
    }

    /// Says that nothing more comes, if that can be said at once.
    pub(crate) fn finish(&self) {
        if let Some(tls) = &self.tls {
            let mut tls = lock(tls);
            let mut sealed = Vec::new();
            tls.send_close_notify();
            if take_records(&mut tls, &mut sealed).is_ok() {
                // Without it the other side sees a connection that was cut, and that is what it is.
                let _ = send(&self.stream, &sealed, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            }
        }
        // It fails only for a connection that has ended already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

fn take_records(tls: &mut Connection, sealed: &mut Vec<u8>) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(sealed)?;
    }
    Ok(())
}

fn flush(tls: &mut Connection, mut stream: &TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut stream)?;
    }
    Ok(())
}

impl Read for Conn {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.stream.read(buf) };
        let tls = tls.get_mut().unwrap_or_else(PoisonError::into_inner);
        loop {
            flush(tls, &self.stream)?;
            match tls.reader().read(buf) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            tls.read_tls(&mut self.stream)?;
            if let Err(error) = tls.process_new_packets() {
                // The alert tells the other side why; it is lost only with the connection.
                let _ = flush(tls, &self.stream);
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
        }
    }
}

impl Write for Conn {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            Some(tls) => tls.get_mut().unwrap_or_else(PoisonError::into_inner).writer().write(buf),
            None => self.stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => flush(tls.get_mut().unwrap_or_else(PoisonError::into_inner), &self.stream),
            None => Ok(()),
        }
    }
}

/// The receiver's side of a channel: bytes that came and are not decrypted yet.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    raw: Vec<u8>,
    at: usize,
    end: usize,
    /// Told once everything genuine before it was handed out.
    fault: Option<Fault>,
}

/// Why nothing more can be received.
pub(crate) enum RecvError {
    /// The other side said that it is done.
    Closed,
    /// The connection ended without that.
    Cut,
    /// The bytes are not what the other side sent.
    Fault(Fault),
    Io(io::Error),
}

impl Incoming {
    /// Waits until there is something and moves it to `buf`; the number of bytes, never 0 unless `buf` is empty.
    pub(crate) fn recv(&mut self, conn: &Conn, buf: &mut [u8]) -> Result<usize, RecvError> {
        let mut stream = &conn.stream;
        let Some(tls) = &conn.tls else {
            return match stream.read(buf) {
                Ok(0) => Err(RecvError::Closed),
                got => got.map_err(RecvError::Io),
            };
        };
        loop {
            if let Some(n) = self.open(&mut lock(tls), buf)? {
                return Ok(n);
            }
            self.raw.resize(RAW, 0);
            (self.at, self.end) = (0, stream.read(&mut self.raw).map_err(RecvError::Io)?);
            if self.end == 0 {
                return Err(RecvError::Cut);
            }
        }
    }

    /// Decrypts what is there; `None` when it is not enough.
    fn open(&mut self, tls: &mut Connection, buf: &mut [u8]) -> Result<Option<usize>, RecvError> {
        loop {
            match tls.reader().read(buf) {
                Ok(0) => return Err(RecvError::Closed),
                Ok(n) => return Ok(Some(n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Err(RecvError::Cut),
                Err(e) => return Err(RecvError::Io(e)),
            }
            if let Some(fault) = self.fault.take() {
                return Err(RecvError::Fault(fault));
            }
            if self.at == self.end {
                return Ok(None);
            }
            self.at += tls.read_tls(&mut &self.raw[self.at..self.end]).map_err(RecvError::Io)?;
            self.fault = tls.process_new_packets().err().map(Fault::from);
        }
    }
}
