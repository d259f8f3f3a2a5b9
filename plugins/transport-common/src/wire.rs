//! What stands at the beginning of each connection.
//!
//! ```text
//!  greeting, primary to standby         answer, standby to primary
//!   0  8  "aventine"                     0  8  "AVENTINE"
//!   8  2  version                        8  2  version
//!  10 16  link id, random               10  1  Answer, or 32 + the connections that the channel has
//!  26  1  connection of the channel, from 0
//!  27  1  connections of the channel, 1 to 16
//!  28  1  length of the channel's name
//!  29  n  the channel's name
//! ```
//! With connection 0 the primary says how many it would have, and the welcome how many there are: no more than the standby would
//! have. The others then say that number, and each is welcome once.
//!
//! Where the link is encrypted, both stand inside TLS; only a host that is not set up alike gets an answer in plaintext,
//! which says just that. Numbers are big-endian. The first ten bytes of both, and the length of the answer, are the same in every version,
//! so that two versions can tell each other so.

/// The version spoken here.
pub(crate) const VERSION: u16 = 2;
/// Longest name of a channel, in bytes.
pub(crate) const MAX_NAME: usize = 64;
/// Most connections of one channel.
pub const MAX_STREAMS: u8 = 16;
/// Bytes of an answer.
pub(crate) const ANSWER_LEN: usize = 11;

const GREETING_MAGIC: [u8; 8] = *b"aventine";
const ANSWER_MAGIC: [u8; 8] = *b"AVENTINE";
/// How a greeting inside TLS begins on the wire.
const TLS_HANDSHAKE: u8 = 0x16;
/// Magic and version.
const FIXED: usize = 10;
/// Everything before the name.
const HEAD: usize = 29;
/// Where the number of the connection stands; that of the connections and the length of the name follow.
const STREAM: usize = 26;
/// Added to the number of connections, it is a welcome.
const WELCOME: u8 = 32;

/// Whether a first byte on the wire is that of a greeting in plaintext.
pub(crate) fn is_plain_greeting(first: u8) -> bool {
    first == GREETING_MAGIC[0]
}

/// Whether a first byte on the wire is that of an answer in plaintext.
pub(crate) fn is_plain_answer(first: u8) -> bool {
    first == ANSWER_MAGIC[0]
}

/// Names one link; drawn at random by the primary.
pub(crate) type LinkId = [u8; 16];

/// A connection's greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    /// The link it belongs to.
    pub(crate) link: LinkId,
    /// The channel it carries.
    pub(crate) channel: String,
    /// Which of the channel's connections it is; less than `streams`.
    pub(crate) stream: u8,
    /// How many the primary would have, and after the first one's welcome how many there are.
    pub(crate) streams: u8,
}

/// Whether a channel may have this name.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
}

impl Greeting {
    /// The bytes on the wire. The name has passed [`is_name`].
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + self.channel.len());
        bytes.extend_from_slice(&GREETING_MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&self.link);
        bytes.extend_from_slice(&[self.stream, self.streams, self.channel.len() as u8]);
        bytes.extend_from_slice(self.channel.as_bytes());
        bytes
    }
}

/// What the bytes received so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// At least so many more bytes belong to the greeting.
    More(usize),
    /// All of it.
    Done(Greeting),
}

/// Why a greeting is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GreetingError {
    #[error("it does not speak Aventine's protocol")]
    NotAventine,
    #[error("it is encrypted, and this host has `unsafe_plaintext = true`; give both hosts the same `tls`")]
    Encrypted,
    #[error(
        "it speaks version {theirs} of the transport, this host version {VERSION}; install the same Aventine on both"
    )]
    OtherVersion { theirs: u16 },
    #[error("its channel has no valid name")]
    Name,
    #[error("it says to be connection {stream} of {streams}")]
    Stream { stream: u8, streams: u8 },
}

/// Reads a greeting from its first bytes. Never asks for more bytes than the greeting has.
pub(crate) fn read_greeting(got: &[u8]) -> Result<Progress, GreetingError> {
    if got.first() == Some(&TLS_HANDSHAKE) {
        return Err(GreetingError::Encrypted);
    }
    let known = got.len().min(GREETING_MAGIC.len());
    if got[..known] != GREETING_MAGIC[..known] {
        return Err(GreetingError::NotAventine);
    }
    if got.len() < FIXED {
        return Ok(Progress::More(FIXED - got.len()));
    }
    let theirs = u16::from_be_bytes([got[8], got[9]]);
    if theirs != VERSION {
        return Err(GreetingError::OtherVersion { theirs });
    }
    if got.len() < HEAD {
        return Ok(Progress::More(HEAD - got.len()));
    }
    let (stream, streams, name_len) = (got[STREAM], got[STREAM + 1], usize::from(got[STREAM + 2]));
    if !(1..=MAX_STREAMS).contains(&streams) || stream >= streams {
        return Err(GreetingError::Stream { stream, streams });
    }
    if !(1..=MAX_NAME).contains(&name_len) {
        return Err(GreetingError::Name);
    }
    if got.len() < HEAD + name_len {
        return Ok(Progress::More(HEAD + name_len - got.len()));
    }
    let mut link = LinkId::default();
    link.copy_from_slice(&got[FIXED..STREAM]);
    match std::str::from_utf8(&got[HEAD..HEAD + name_len]) {
        Ok(name) if is_name(name) => {
            Ok(Progress::Done(Greeting { link, channel: name.to_owned(), stream, streams }))
        }
        _ => Err(GreetingError::Name),
    }
}

/// The standby's answer to a greeting. Zero is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The connection is the channel's now, which has so many.
    Welcome(u8),
    /// It is not.
    Refused(Refusal),
}

/// Why a connection is not welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Refusal {
    /// The greeting has another version than the answer.
    OtherVersion = 2,
    /// No link with this id is open here.
    UnknownLink = 3,
    /// The link has a channel of this name already, or the channel this connection.
    Taken = 4,
    /// Too many links wait to be accepted.
    Busy = 5,
    /// The channel's name is not valid, or the numbers of its connections.
    BadName = 6,
    /// In plaintext: here everything is encrypted.
    Encrypted = 7,
    /// In plaintext: here nothing is encrypted.
    Plaintext = 8,
}

impl Refusal {
    /// The bytes on the wire.
    pub(crate) fn encode(self) -> [u8; ANSWER_LEN] {
        Answer::Refused(self).encode()
    }
}

/// Why an answer is none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AnswerError {
    /// Something else than Aventine answered.
    NotAventine,
    /// The standby speaks this version.
    OtherVersion(u16),
}

impl Answer {
    /// The bytes on the wire.
    pub(crate) fn encode(self) -> [u8; ANSWER_LEN] {
        let mut bytes = [0; ANSWER_LEN];
        bytes[..8].copy_from_slice(&ANSWER_MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_be_bytes());
        bytes[10] = match self {
            Answer::Welcome(streams) => WELCOME + streams,
            Answer::Refused(refusal) => refusal as u8,
        };
        bytes
    }

    /// Reads an answer.
    pub(crate) fn decode(bytes: &[u8; ANSWER_LEN]) -> Result<Answer, AnswerError> {
        if bytes[..8] != ANSWER_MAGIC {
            return Err(AnswerError::NotAventine);
        }
        let theirs = u16::from_be_bytes([bytes[8], bytes[9]]);
        if theirs != VERSION {
            return Err(AnswerError::OtherVersion(theirs));
        }
        use Refusal::{BadName, Busy, Encrypted, Plaintext, Taken, UnknownLink};
        let said = bytes[10];
        if let Some(streams @ 1..=MAX_STREAMS) = said.checked_sub(WELCOME) {
            return Ok(Answer::Welcome(streams));
        }
        [UnknownLink, Taken, Busy, BadName, Encrypted, Plaintext]
            .into_iter()
            .find(|&refusal| refusal as u8 == said)
            .map(Answer::Refused)
            .ok_or(AnswerError::NotAventine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_read_to_its_last_byte_and_not_further() {
        let greeting =
            Greeting { link: *b"0123456789abcdef", channel: "disk:disk0".into(), stream: 2, streams: 3 };
        let mut wire = greeting.encode();
        let len = wire.len();
        wire.extend_from_slice(b"bytes of the channel");
        let mut at = 0;
        loop {
            match read_greeting(&wire[..at]).unwrap() {
                Progress::More(n) => {
                    assert!(n > 0 && at + n <= len);
                    at += n;
                }
                Progress::Done(read) => {
                    assert_eq!((read, at), (greeting, len));
                    break;
                }
            }
        }
    }

    #[test]
    fn what_is_no_greeting_is_known_at_its_first_wrong_byte() {
        assert_eq!(read_greeting(b"G"), Err(GreetingError::NotAventine));
        assert_eq!(read_greeting(b"aventinf"), Err(GreetingError::NotAventine));
        assert_eq!(read_greeting(&[0x16]), Err(GreetingError::Encrypted));
        let good = Greeting { link: [7; 16], channel: "pages".into(), stream: 0, streams: 1 }.encode();
        let changed = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            read_greeting(&bytes)
        };
        assert_eq!(changed(9, 1), Err(GreetingError::OtherVersion { theirs: 1 }));
        assert_eq!(changed(26, 1), Err(GreetingError::Stream { stream: 1, streams: 1 }));
        assert_eq!(changed(27, 0), Err(GreetingError::Stream { stream: 0, streams: 0 }));
        assert_eq!(changed(27, 17), Err(GreetingError::Stream { stream: 0, streams: 17 }));
        assert_eq!(changed(28, 0), Err(GreetingError::Name));
        assert_eq!(changed(28, 65), Err(GreetingError::Name));
        assert_eq!(changed(30, b'\n'), Err(GreetingError::Name));
        assert_eq!(changed(30, 0xff), Err(GreetingError::Name));
    }

    /// Other versions read these bytes: they must never change.
    #[test]
    fn the_fixed_bytes_stay() {
        let greeting = Greeting { link: [0; 16], channel: "c".into(), stream: 0, streams: 1 }.encode();
        assert_eq!(&greeting[..8], b"aventine");
        assert_eq!(Refusal::OtherVersion.encode()[..8], *b"AVENTINE");
        assert_eq!(ANSWER_LEN, 11);
        assert_eq!(
            GreetingError::OtherVersion { theirs: 7 }.to_string(),
            "it speaks version 7 of the transport, this host version 2; install the same Aventine on both"
        );
    }

    #[test]
    fn answers_survive_the_wire() {
        use Refusal::{BadName, Busy, Encrypted, Plaintext, Taken, UnknownLink};
        let refusals = [UnknownLink, Taken, Busy, BadName, Encrypted, Plaintext].map(Answer::Refused);
        for answer in (1..=MAX_STREAMS).map(Answer::Welcome).chain(refusals) {
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
        for none in [0, 1, WELCOME, WELCOME + MAX_STREAMS + 1, 255] {
            let bytes = [b"AVENTINE\0\x02".as_slice(), &[none]].concat();
            assert_eq!(Answer::decode(bytes.first_chunk().unwrap()), Err(AnswerError::NotAventine));
        }
        let mut bytes = Refusal::OtherVersion.encode();
        bytes[9] = 9;
        assert_eq!(Answer::decode(&bytes), Err(AnswerError::OtherVersion(9)));
        assert_eq!(Answer::decode(b"SSH-2.0-Ope"), Err(AnswerError::NotAventine));
    }
}
