//! The requests of virtio-blk, and the device's configuration space.
//!
//! ```text
//!  readable: type u32, reserved u32, sector u64, data of a write or segments      writable: data of a read, status u8
//! ```
//! Little-endian. A chain may split them anywhere.

use crate::memory::{Memory, Written};
use aventine_api::{BlockDevice, PAGE_SIZE, PluginError};
use std::io::{Read, Write};
use virtio_queue::{DescriptorChain, Reader, Writer};

/// Bytes of what every position and length counts in, whatever the size of a block.
pub(crate) const SECTOR: u64 = 512;
/// Bytes that are moved at a time.
const PIECE: usize = 1 << 20;
/// Longest id that a device can have, in bytes.
const ID_LENGTH: usize = 20;
/// Segments of a discard or a write of zeroes; sectors in each. Whoever pauses the guest waits for one request.
const MAX_SEGMENTS: u32 = 32;
const MAX_SECTORS: u32 = 1 << 17;
/// Data segments of a request, which fit in a queue with header and status, and bytes of each.
const MAX_DATA: u32 = 126;
const MAX_SEGMENT: u32 = 256 << 10;
/// Most bytes that a request reads or writes. A driver that keeps to the limits above asks for less.
const MAX_REQUEST: u64 = 32 << 20;

mod kind {
    pub(super) const READ: u32 = 0;
    pub(super) const WRITE: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// The device's features by their bits.
pub(crate) mod feature {
    pub(crate) const SIZE_MAX: u64 = 1 << 1;
    pub(crate) const SEG_MAX: u64 = 1 << 2;
    pub(crate) const BLK_SIZE: u64 = 1 << 6;
    pub(crate) const FLUSH: u64 = 1 << 9;
    pub(crate) const MULTI_QUEUE: u64 = 1 << 12;
    pub(crate) const DISCARD: u64 = 1 << 13;
    pub(crate) const WRITE_ZEROES: u64 = 1 << 14;
}

/// What a request ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Failure {
    Io = 1,
    Unsupported = 2,
}

impl From<PluginError> for Failure {
    fn from(error: PluginError) -> Failure {
        tracing::warn!(error = error.chain(), "the disk failed a request of the guest");
        Failure::Io
    }
}

impl From<std::io::Error> for Failure {
    // The chain is shorter than the request needs.
    fn from(_: std::io::Error) -> Failure {
        Failure::Io
    }
}

/// The configuration space of a disk of `size` bytes in blocks of `block`.
pub(crate) fn config(size: u64, block: u32, queues: u16) -> [u8; 60] {
    let mut config = [0; 60];
    let mut put = |at: usize, value: &[u8]| config[at..at + value.len()].copy_from_slice(value);
    put(0, &(size / SECTOR).to_le_bytes());
    put(8, &MAX_SEGMENT.to_le_bytes());
    put(12, &MAX_DATA.to_le_bytes());
    put(20, &block.to_le_bytes());
    put(34, &queues.to_le_bytes());
    for limits in [36, 48] {
        put(limits, &MAX_SECTORS.to_le_bytes());
        put(limits + 4, &MAX_SEGMENTS.to_le_bytes());
    }
    // Discards are of whole blocks, in sectors; zeroes may be holes.
    put(44, &(block / SECTOR as u32).to_le_bytes());
    put(56, &[1]);
    config
}

/// Carries requests out.
pub(crate) struct Requests<'a> {
    pub(crate) device: &'a dyn BlockDevice,
    /// Bytes of a block.
    pub(crate) block: u32,
    /// The guest does not flush: what is written must be on stable storage when it is answered.
    pub(crate) write_through: bool,
    pub(crate) buffer: &'a mut Vec<u8>,
}

impl Requests<'_> {
    /// Carries out the request of a chain; answers how many bytes of it were written to guest memory.
    pub(crate) fn serve(&mut self, chain: DescriptorChain<&Memory>, memory: &Memory) -> u32 {
        if !is_whole(chain.clone()) {
            tracing::debug!("a chain of descriptors has no end, or too many parts");
            return 0;
        }
        let (Ok(reader), Ok(mut writer)) = (chain.clone().reader(memory), chain.writer(memory)) else {
            return 0;
        };
        // No room for a status: nobody could be told anything.
        let Some(data) = writer.available_bytes().checked_sub(1) else { return 0 };
        let Ok(mut status) = writer.split_at(data) else { return 0 };
        let done = self.carry_out(reader, &mut writer);
        let code = done.map_or_else(|failure| failure as u8, |()| 0);
        let told = status.write_all(&[code]).map_or(0, |()| 1);
        u32::try_from(writer.bytes_written() + told).unwrap_or(u32::MAX)
    }

    fn carry_out(
        &mut self,
        mut reader: Reader<'_, Written>,
        writer: &mut Writer<'_, Written>,
    ) -> Result<(), Failure> {
        let mut header = [0; 16];
        reader.read_exact(&mut header)?;
        let kind = u32_at(&header, 0);
        let offset = u64_at(&header, 8).checked_mul(SECTOR).ok_or(Failure::Io)?;
        match kind {
            kind::READ => self.read(offset, writer),
            kind::WRITE => self.write(offset, &mut reader),
            kind::FLUSH => Ok(self.device.flush()?),
            kind::GET_ID => {
                let mut id = [0; ID_LENGTH];
                id[..8].copy_from_slice(b"aventine");
                Ok(writer.write_all(&id[..writer.available_bytes().min(ID_LENGTH)])?)
            }
            kind::DISCARD | kind::WRITE_ZEROES => self.segments(kind, &mut reader),
            _ => Err(Failure::Unsupported),
        }
    }

    /// Whether `len` bytes at `offset` are whole blocks of the disk.
    fn check(&self, offset: u64, len: u64) -> Result<(), Failure> {
        let whole = |bytes: u64| bytes.is_multiple_of(self.block.into());
        match offset.checked_add(len) {
            Some(end) if end <= self.device.size() && whole(offset) && whole(len) => Ok(()),
            _ => Err(Failure::Io),
        }
    }

    /// The same of data, which a request may have only so much of.
    fn check_data(&self, offset: u64, len: usize) -> Result<(), Failure> {
        match len as u64 {
            len @ ..=MAX_REQUEST => self.check(offset, len),
            _ => Err(Failure::Io),
        }
    }

    fn read(&mut self, mut offset: u64, writer: &mut Writer<'_, Written>) -> Result<(), Failure> {
        self.check_data(offset, writer.available_bytes())?;
        while writer.available_bytes() > 0 {
            let piece = room(self.buffer, writer.available_bytes());
            self.device.read(offset, piece)?;
            writer.write_all(piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn write(&mut self, mut offset: u64, reader: &mut Reader<'_, Written>) -> Result<(), Failure> {
        self.check_data(offset, reader.available_bytes())?;
        while reader.available_bytes() > 0 {
            let piece = room(self.buffer, reader.available_bytes());
            reader.read_exact(piece)?;
            self.device.write(offset, piece, self.write_through)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn segments(&mut self, kind: u32, reader: &mut Reader<'_, Written>) -> Result<(), Failure> {
        let count = reader.available_bytes() / 16;
        if count == 0 || count > MAX_SEGMENTS as usize || !reader.available_bytes().is_multiple_of(16) {
            return Err(Failure::Unsupported);
        }
        for _ in 0..count {
            let mut segment = [0; 16];
            reader.read_exact(&mut segment)?;
            let (sectors, flags) = (u32_at(&segment, 8), u32_at(&segment, 12));
            let offset = u64_at(&segment, 0).checked_mul(SECTOR).ok_or(Failure::Io)?;
            let len = u64::from(sectors) * SECTOR;
            self.check(offset, len)?;
            match (kind, flags) {
                _ if sectors > MAX_SECTORS => return Err(Failure::Io),
                _ if sectors == 0 => {}
                (kind::DISCARD, 0) => {
                    self.device.trim(offset, len)?;
                    if self.write_through {
                        self.device.flush()?;
                    }
                }
                (kind::WRITE_ZEROES, 0 | 1) => {
                    self.device.write_zeroes(offset, len, flags == 1, self.write_through)?;
                }
                _ => return Err(Failure::Unsupported),
            }
        }
        Ok(())
    }
}

/// Whether a chain ends by itself, with no more parts than a driver may use. The library takes one that leads nowhere, or round in
/// a circle, for one that ends.
fn is_whole(chain: DescriptorChain<&Memory>) -> bool {
    let most = MAX_DATA as usize + 2;
    let mut parts = chain.take(most + 1);
    let last = parts.by_ref().enumerate().last();
    last.is_some_and(|(at, part)| at < most && !part.has_next())
}

/// Room for `len` bytes, at most [`PIECE`], at an address that suits a device past the page cache.
fn room(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    let len = len.min(PIECE);
    if buffer.len() < len + PAGE_SIZE {
        buffer.resize(len + PAGE_SIZE, 0);
    }
    let first = buffer.as_ptr().addr();
    let at = first.next_multiple_of(PAGE_SIZE) - first;
    &mut buffer[at..at + len]
}

fn u32_at(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8; 16], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
