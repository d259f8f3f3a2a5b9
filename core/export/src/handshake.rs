//! The handshake: fixed newstyle, from the greeting to the choice of the export.

use crate::protocol::{
    GREETING, InfoRequest, MAX_OPTION, MAX_REQUEST, OPTION_MAGIC, OPTION_REPLY_MAGIC, handshake, info,
    option, reply, take_u32, take_u64, transmission,
};
use std::io::{self, Read, Write};

/// What a connection may choose.
#[derive(Clone, Copy)]
pub(crate) struct Offer<'a> {
    /// Name of the export; the empty name stands for it too.
    pub(crate) name: &'a str,
    /// Bytes of the device.
    pub(crate) size: u64,
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// Reads are answered with structured replies.
    pub(crate) structured: bool,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("The client sent flags {0:#x}, which are not known")]
    Flags(u32),
    #[error("The client sent something that is not an option")]
    Magic,
    #[error("The client sent an option of {0} bytes; the limit is {MAX_OPTION}")]
    TooLong(u32),
    #[error("The client asked for export `{0}`, which does not exist")]
    UnknownExport(String),
    #[error("The client is too old for option {0}: it does not speak fixed newstyle")]
    NotFixed(u32),
    #[error("The connection failed in the handshake")]
    Io(#[from] io::Error),
}

/// Leads the handshake. `None`: the client left without choosing the export.
pub(crate) fn negotiate(
    input: &mut impl Read,
    output: &mut impl Write,
    offer: Offer<'_>,
) -> Result<Option<Agreed>, HandshakeError> {
    let mut out = Vec::with_capacity(256);
    out.extend(GREETING.to_be_bytes());
    out.extend(OPTION_MAGIC.to_be_bytes());
    out.extend((handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES).to_be_bytes());
    output.write_all(&out)?;

    let mut flags = [0; 4];
    input.read_exact(&mut flags)?;
    let flags = u32::from_be_bytes(flags);
    if flags & !u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES) != 0 {
        return Err(HandshakeError::Flags(flags));
    }
    let fixed = flags & u32::from(handshake::FIXED_NEWSTYLE) != 0;
    let zeroes = flags & u32::from(handshake::NO_ZEROES) == 0;

    let mut agreed = Agreed { structured: false };
    let mut data = Vec::new();
    loop {
        let option = read_option(input, &mut data)?;
        if !fixed && option != option::EXPORT_NAME {
            return Err(HandshakeError::NotFixed(option));
        }
        out.clear();
        let next = match option {
            option::EXPORT_NAME => {
                if !offer.is_named(&data) {
                    return Err(HandshakeError::UnknownExport(String::from_utf8_lossy(&data).into_owned()));
                }
                offer.describe(agreed, &mut out);
                if zeroes {
                    out.extend([0; 124]);
                }
                Next::Transmit
            }
            option::ABORT => {
                answer(&mut out, option, reply::ACK, &[]);
                Next::Leave
            }
            _ => offer.answer(option, &data, &mut agreed, &mut out),
        };
        output.write_all(&out)?;
        match next {
            Next::Option => {}
            Next::Transmit => return Ok(Some(agreed)),
            Next::Leave => return Ok(None),
        }
    }
}

enum Next {
    Option,
    Transmit,
    Leave,
}

fn read_option(input: &mut impl Read, data: &mut Vec<u8>) -> Result<u32, HandshakeError> {
    let mut head = [0; 16];
    input.read_exact(&mut head)?;
    let mut rest = &head[..];
    let (Some(OPTION_MAGIC), Some(option), Some(length)) =
        (take_u64(&mut rest), take_u32(&mut rest), take_u32(&mut rest))
    else {
        return Err(HandshakeError::Magic);
    };
    if length > MAX_OPTION {
        return Err(HandshakeError::TooLong(length));
    }
    data.resize(length as usize, 0);
    input.read_exact(data)?;
    Ok(option)
}

impl Offer<'_> {
    fn is_named(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }

    /// Size and transmission flags.
    fn describe(&self, agreed: Agreed, out: &mut Vec<u8>) {
        // Every connection works on the one device, so a flush on any of them covers what was written on all.
        let mut flags = transmission::HAS_FLAGS
            | transmission::SEND_FLUSH
            | transmission::SEND_FUA
            | transmission::SEND_TRIM
            | transmission::SEND_WRITE_ZEROES
            | transmission::CAN_MULTI_CONN;
        if agreed.structured {
            flags |= transmission::SEND_DF;
        }
        out.extend(self.size.to_be_bytes());
        out.extend(flags.to_be_bytes());
    }

    /// The options whose answer needs no more than the option's own data.
    fn answer(&self, option: u32, data: &[u8], agreed: &mut Agreed, out: &mut Vec<u8>) -> Next {
        match option {
            option::LIST if data.is_empty() => {
                let mut entry = (self.name.len() as u32).to_be_bytes().to_vec();
                entry.extend(self.name.as_bytes());
                answer(out, option, reply::SERVER, &entry);
                answer(out, option, reply::ACK, &[]);
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                agreed.structured = true;
                answer(out, option, reply::ACK, &[]);
            }
            option::INFO | option::GO => return self.inform(option, data, *agreed, out),
            option::LIST | option::STRUCTURED_REPLY => answer(out, option, reply::ERR_INVALID, &[]),
            _ => answer(out, option, reply::ERR_UNSUP, &[]),
        }
        Next::Option
    }

    fn inform(&self, option: u32, data: &[u8], agreed: Agreed, out: &mut Vec<u8>) -> Next {
        let Some(request) = InfoRequest::parse(data) else {
            answer(out, option, reply::ERR_INVALID, &[]);
            return Next::Option;
        };
        if !self.is_named(request.name) {
            answer(out, option, reply::ERR_UNKNOWN, &[]);
            return Next::Option;
        }
        let mut entry = info::EXPORT.to_be_bytes().to_vec();
        self.describe(agreed, &mut entry);
        answer(out, option, reply::INFO, &entry);
        if request.block_size {
            let mut entry = info::BLOCK_SIZE.to_be_bytes().to_vec();
            for bytes in [1, 4096, MAX_REQUEST] {
                entry.extend(bytes.to_be_bytes());
            }
            answer(out, option, reply::INFO, &entry);
        }
        answer(out, option, reply::ACK, &[]);
        if option == option::GO { Next::Transmit } else { Next::Option }
    }
}

fn answer(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
}
