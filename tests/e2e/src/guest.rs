//! The guest's workload, seen from outside: a line for each line on one TCP connection.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Its port.
pub const PORT: u16 = 7777;
/// Longest that an answer may take: no takeover on a busy machine is that long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why something that was asked of the guest was not answered as it should be.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The connection broke, or was silent for too long.
    #[error("The connection to the guest broke")]
    Broken(#[source] io::Error),
    /// It says something else.
    #[error("The guest was asked {request:?} and says {answer:?}, not {expected:?}")]
    Answer {
        /// What it was asked.
        request: String,
        /// What it says.
        answer: String,
        /// What it should say, or begin with.
        expected: String,
    },
}

/// A connection.
#[derive(Debug)]
pub struct Guest(BufReader<TcpStream>);

impl Guest {
    /// Takes a new connection.
    pub fn new(stream: TcpStream) -> Result<Guest, GuestError> {
        stream.set_read_timeout(Some(PATIENCE)).map_err(GuestError::Broken)?;
        stream.set_nodelay(true).map_err(GuestError::Broken)?;
        Ok(Guest(BufReader::new(stream)))
    }

    /// The same connection once more, to be ended while another thread waits for an answer.
    pub(crate) fn stream(&self) -> Result<TcpStream, GuestError> {
        self.0.get_ref().try_clone().map_err(GuestError::Broken)
    }

    /// Whether some of the next answer is here.
    pub fn is_answered(&self) -> io::Result<bool> {
        let stream = self.0.get_ref();
        stream.set_nonblocking(true)?;
        let peeked = stream.peek(&mut [0]).is_ok();
        stream.set_nonblocking(false)?;
        Ok(peeked)
    }

    /// Asks, without waiting for the answer.
    pub fn send(&mut self, request: &str) -> Result<(), GuestError> {
        self.0.get_mut().write_all(format!("{request}\n").as_bytes()).map_err(GuestError::Broken)
    }

    /// The next answer.
    pub fn line(&mut self) -> Result<String, GuestError> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => Err(GuestError::Broken(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(GuestError::Broken(error)),
        }
    }

    /// Asks; answers what follows `word`, with which the answer must begin.
    pub fn ask(&mut self, request: &str, word: &str) -> Result<String, GuestError> {
        self.send(request)?;
        let answer = self.line()?;
        match answer.strip_prefix(word) {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => {
                let (request, expected) = (request.to_owned(), word.to_owned());
                Err(GuestError::Answer { request, answer, expected })
            }
        }
    }

    /// Asks; answers the number that follows `word`.
    pub fn number(&mut self, request: &str, word: &str) -> Result<u64, GuestError> {
        let rest = self.ask(request, word)?;
        rest.parse().map_err(|_| GuestError::Answer {
            request: request.to_owned(),
            answer: format!("{word} {rest}"),
            expected: format!("{word} and a number"),
        })
    }

    /// Has a program run, which must succeed; answers what it printed, in one line.
    pub fn run(&mut self, command: &str) -> Result<String, GuestError> {
        self.ask(&format!("run {command}"), "ended 0")
    }
}
