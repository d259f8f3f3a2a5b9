//! What stands at the beginning of each connection.
//!
//! ```text
//!  greeting, primary to standby         answer, standby to primary
//!   0  8  "aventine"                     0  8  "AVENTINE"
//!   8  2  version                        8  2  version
//!  10 16  link id, random               10  1  Answer
//!  26  1  length of the channel's name
//!  27  n  the channel's name
//! ```
//! Where the link is encrypted, both stand inside TLS; only a host that is not set up alike gets an answer in plaintext,
//! which says just that. Numbers are big-endian. The first ten bytes of both, and the length of the answer, are the same in every version,
//! so that two versions can tell each other so.

/// The version spoken here.
pub(crate) const VERSION: u16 = 1;
/// Longest name of a channel, in bytes.
pub(crate) const MAX_NAME: usize = 64;
/// Bytes of an answer.
pub(crate) const ANSWER_LEN: usize = 11;

const GREETING_MAGIC: [u8; 8] = *b"aventine";
const ANSWER_MAGIC: [u8; 8] = *b"AVENTINE";
/// How a greeting inside TLS begins on the wire.
const TLS_HANDSHAKE: u8 = 0x16;
/// Magic and version.
const FIXED: usize = 10;
/// Everything before the name.
const HEAD: usize = 27;

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
        bytes.push(self.channel.len() as u8);
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
    let name_len = usize::from(got[HEAD - 1]);
    if !(1..=MAX_NAME).contains(&name_len) {
        return Err(GreetingError::Name);
    }
    if got.len() < HEAD + name_len {
        return Ok(Progress::More(HEAD + name_len - got.len()));
    }
    let mut link = LinkId::default();
    link.copy_from_slice(&got[FIXED..HEAD - 1]);
    match std::str::from_utf8(&got[HEAD..HEAD + name_len]) {
        Ok(name) if is_name(name) => Ok(Progress::Done(Greeting { link, channel: name.to_owned() })),
        _ => Err(GreetingError::Name),
    }
}

/// The standby's answer to a greeting. Zero is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Answer {
    /// The connection is a channel now.
    Welcome = 1,
    /// The greeting has another version than the answer.
    OtherVersion = 2,
    /// No link with this id is open here.
    UnknownLink = 3,
    /// The link has a channel of this name already.
    Taken = 4,
    /// Too many links wait to be accepted.
    Busy = 5,
    /// The channel's name is not valid.
    BadName = 6,
    /// In plaintext: here everything is encrypted.
    Encrypted = 7,
    /// In plaintext: here nothing is encrypted.
    Plaintext = 8,
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
        bytes[10] = self as u8;
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
        use Answer::{BadName, Busy, Encrypted, Plaintext, Taken, UnknownLink, Welcome};
        [Welcome, UnknownLink, Taken, Busy, BadName, Encrypted, Plaintext]
            .into_iter()
            .find(|&a| a as u8 == bytes[10])
            .ok_or(AnswerError::NotAventine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_read_to_its_last_byte_and_not_further() {
        let greeting = Greeting { link: *b"0123456789abcdef", channel: "disk:disk0".into() };
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
        let good = Greeting { link: [7; 16], channel: "pages".into() }.encode();
        let changed = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            read_greeting(&bytes)
        };
        assert_eq!(changed(9, 2), Err(GreetingError::OtherVersion { theirs: 2 }));
        assert_eq!(changed(26, 0), Err(GreetingError::Name));
        assert_eq!(changed(26, 65), Err(GreetingError::Name));
        assert_eq!(changed(28, b'\n'), Err(GreetingError::Name));
        assert_eq!(changed(28, 0xff), Err(GreetingError::Name));
    }

    /// Other versions read these bytes: they must never change.
    #[test]
    fn the_fixed_bytes_stay() {
        let greeting = Greeting { link: [0; 16], channel: "c".into() }.encode();
        assert_eq!(&greeting[..8], b"aventine");
        assert_eq!(Answer::OtherVersion.encode()[..8], *b"AVENTINE");
        assert_eq!(ANSWER_LEN, 11);
        assert_eq!(
            GreetingError::OtherVersion { theirs: 7 }.to_string(),
            "it speaks version 7 of the transport, this host version 1; install the same Aventine on both"
        );
    }

    #[test]
    fn answers_survive_the_wire() {
        use Answer::{BadName, Busy, Encrypted, Plaintext, Taken, UnknownLink, Welcome};
        for answer in [Welcome, UnknownLink, Taken, Busy, BadName, Encrypted, Plaintext] {
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
        let mut bytes = Answer::OtherVersion.encode();
        bytes[9] = 9;
        assert_eq!(Answer::decode(&bytes), Err(AnswerError::OtherVersion(9)));
        assert_eq!(Answer::decode(b"SSH-2.0-Ope"), Err(AnswerError::NotAventine));
        assert_eq!(Answer::decode(b"AVENTINE\0\x01\0"), Err(AnswerError::NotAventine));
    }
}
