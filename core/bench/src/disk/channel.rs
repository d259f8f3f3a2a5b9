//! A disk's channel as the engine makes it: its frames, on a TCP connection of the loopback interface.

use aventine_api::{ErrorCode, PluginError, RecordHead, RecordRx, RecordTx};
use aventine_protocol::{FrameHeader, FrameKind, HEADER_LEN};
use std::error::Error;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};

pub(super) struct Tx {
    stream: TcpStream,
    sequence: u32,
}

pub(super) struct Rx {
    stream: TcpStream,
    sequence: u32,
}

/// The primary's end and the standby's.
pub(super) fn channel() -> io::Result<[(Tx, Rx); 2]> {
    let [primary, standby] = loopback()?;
    Ok([end(primary)?, end(standby)?])
}

/// Both ends of a connection.
pub(super) fn loopback() -> io::Result<[TcpStream; 2]> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let streams = [TcpStream::connect(listener.local_addr()?)?, listener.accept()?.0];
    for stream in &streams {
        stream.set_nodelay(true)?;
    }
    Ok(streams)
}

fn end(stream: TcpStream) -> io::Result<(Tx, Rx)> {
    Ok((Tx { stream: stream.try_clone()?, sequence: 0 }, Rx { stream, sequence: 0 }))
}

/// As a transport does: the other side reads its end.
impl Drop for Tx {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

impl Tx {
    fn write(&mut self, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match self.stream.write_vectored(parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => IoSlice::advance_slices(&mut parts, n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl RecordTx for Tx {
    fn send(&mut self, head: RecordHead, parts: &[&[u8]]) -> Result<(), PluginError> {
        let header = FrameHeader::of(FrameKind::Record, head.kind, head.epoch, self.sequence, parts).encode();
        let slices = std::iter::once(&header[..]).chain(parts.iter().copied());
        self.write(&mut slices.map(IoSlice::new).collect::<Vec<_>>()).map_err(lost)?;
        self.sequence = self.sequence.wrapping_add(1);
        Ok(())
    }
}

impl RecordRx for Rx {
    fn recv(&mut self, payload: &mut Vec<u8>) -> Result<RecordHead, PluginError> {
        let mut head = [0; HEADER_LEN];
        self.stream.read_exact(&mut head).map_err(lost)?;
        let header = FrameHeader::decode(&head, self.sequence).map_err(damaged)?;
        self.sequence = self.sequence.wrapping_add(1);
        payload.resize(header.length as usize, 0);
        self.stream.read_exact(payload).map_err(lost)?;
        header.verify(payload).map_err(damaged)?;
        Ok(RecordHead { epoch: header.epoch, kind: header.sub })
    }
}

fn lost(error: io::Error) -> PluginError {
    PluginError::new(ErrorCode::PeerLost, error)
}

fn damaged(error: impl Error + Send + Sync + 'static) -> PluginError {
    PluginError::new(ErrorCode::Corrupt, error)
}
