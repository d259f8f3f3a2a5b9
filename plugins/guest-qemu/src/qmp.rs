//! A QMP client for one caller and one command of a kind at a time.
//!
//! Lines of JSON in both directions. A reply carries the `id` of its command, which here is the command's own name; events
//! come at any time and are kept as facts (see [`Seen`]), so that nothing grows however long nobody asks. What QEMU
//! sends is not trusted: a line that is too long or makes no sense is an error, and the client then stays closed.

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Deserialize;
use serde_json::Value;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// Longest line that is read, in bytes.
const MAX_LINE: usize = 4 << 20;
/// Bytes asked for at once: the answers inside a pause are far shorter.
const CHUNK: usize = 4 << 10;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
    #[error("QEMU closed its control connection")]
    Closed,
    #[error("QEMU did not answer {what} in time")]
    TimedOut { what: &'static str },
    #[error("Could not talk to QEMU")]
    Io(#[source] io::Error),
    #[error("QEMU sent a line of more than {MAX_LINE} bytes")]
    TooLong,
    #[error("QEMU sent a line that is not QMP")]
    Malformed(#[source] serde_json::Error),
    #[error("QEMU answered {got:?} instead of {what}")]
    Unexpected { what: &'static str, got: String },
    #[error("QEMU refused {what}: {reason}")]
    Refused { what: &'static str, reason: String },
}

/// What events have told.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Whether virtual CPUs run, by the last STOP or RESUME.
    pub(crate) running: bool,
    /// The guest reset itself since this was last cleared.
    pub(crate) rebooted: bool,
    /// The guest's kernel panicked since this was last cleared.
    pub(crate) panicked: bool,
    /// QEMU is about to exit.
    pub(crate) shutdown: Option<Shutdown>,
}

/// The SHUTDOWN event.
#[derive(Debug, Deserialize)]
pub(crate) struct Shutdown {
    /// The guest asked for it, not the host.
    pub(crate) guest: bool,
    /// QEMU's word for why.
    pub(crate) reason: String,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    event: Option<String>,
    data: Option<Value>,
    id: Option<String>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<ErrorBody>,
}

#[derive(Deserialize)]
struct ErrorBody {
    desc: String,
}

enum Message {
    Greeting,
    Event,
    Reply { id: String, answer: Result<Value, String> },
}

/// A command without arguments whose line is ready to be sent.
pub(crate) struct Command {
    name: &'static str,
    line: String,
}

impl Command {
    pub(crate) fn new(name: &'static str) -> Command {
        Command { name, line: format!("{}\n", serde_json::json!({ "execute": name, "id": name })) }
    }

    pub(crate) fn with(name: &'static str, arguments: &Value) -> Command {
        let line = serde_json::json!({ "execute": name, "arguments": arguments, "id": name });
        Command { name, line: format!("{line}\n") }
    }
}

/// One end of a QMP connection.
pub(crate) struct Qmp {
    socket: OwnedFd,
    inbox: Vec<u8>,
    /// Bytes of `inbox` known to hold no line end.
    searched: usize,
    pub(crate) seen: Seen,
    closed: bool,
}

impl Qmp {
    /// Waits for the greeting and enables commands.
    pub(crate) fn connect(socket: OwnedFd, deadline: Instant) -> Result<Qmp, QmpError> {
        let seen = Seen::default();
        let mut qmp = Qmp { socket, inbox: Vec::with_capacity(CHUNK), searched: 0, seen, closed: false };
        match qmp.message("its greeting", Some(deadline))? {
            Message::Greeting => {}
            _ => return Err(QmpError::Unexpected { what: "its greeting", got: "something else".into() }),
        }
        qmp.execute(&Command::new("qmp_capabilities"), Some(deadline))?;
        Ok(qmp)
    }

    /// Sends a command and waits for its answer, for ever without a deadline.
    pub(crate) fn execute(
        &mut self,
        command: &Command,
        deadline: Option<Instant>,
    ) -> Result<Value, QmpError> {
        self.send(command)?;
        self.answer(command, deadline)
    }

    /// The text that a command of the human monitor prints.
    pub(crate) fn human(&mut self, line: &str, deadline: Instant) -> Result<String, QmpError> {
        let arguments = serde_json::json!({ "command-line": line });
        match self.execute(&Command::with("human-monitor-command", &arguments), Some(deadline))? {
            Value::String(text) => Ok(text),
            other => Err(QmpError::Unexpected { what: "text", got: other.to_string() }),
        }
    }

    /// Sends a command and does not wait.
    pub(crate) fn send(&mut self, command: &Command) -> Result<(), QmpError> {
        let mut rest = command.line.as_bytes();
        while !rest.is_empty() {
            match rustix::net::send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR) => {}
                // What QEMU said before it ended is still to be read; the end shows there.
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
                Err(e) => return Err(QmpError::Io(e.into())),
            }
        }
        Ok(())
    }

    /// Has QEMU keep a copy of a file; answers the path under which its commands find it. The copy shares its position
    /// with `file` and goes when this connection ends.
    pub(crate) fn lend(&mut self, file: BorrowedFd<'_>, deadline: Instant) -> Result<String, QmpError> {
        let what = "add-fd";
        let command = Command::new(what);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [file];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let line = [IoSlice::new(command.line.as_bytes())];
        // The whole line: it is shorter than any socket's buffer, and nothing else waits in it.
        rustix::net::sendmsg(&self.socket, &line, &mut control, SendFlags::NOSIGNAL)
            .map_err(|e| QmpError::Io(e.into()))?;
        let answer = self.answer(&command, Some(deadline))?;
        match answer["fdset-id"].as_u64() {
            Some(set) => Ok(format!("/dev/fdset/{set}")),
            None => Err(QmpError::Unexpected { what, got: answer.to_string() }),
        }
    }

    /// Waits for the answer to a command sent before.
    pub(crate) fn answer(&mut self, command: &Command, deadline: Option<Instant>) -> Result<Value, QmpError> {
        let what = command.name;
        loop {
            match self.message(what, deadline)? {
                Message::Event => {}
                Message::Greeting => return Err(QmpError::Unexpected { what, got: "QMP".into() }),
                Message::Reply { id, answer } if id == what => {
                    return answer.map_err(|reason| QmpError::Refused { what, reason });
                }
                Message::Reply { id, .. } => return Err(QmpError::Unexpected { what, got: id }),
            }
        }
    }

    /// Waits until virtual CPUs run.
    pub(crate) fn until_running(&mut self, deadline: Instant) -> Result<(), QmpError> {
        let what = "its start";
        while !self.seen.running {
            if let Message::Reply { id, .. } = self.message(what, Some(deadline))? {
                return Err(QmpError::Unexpected { what, got: id });
            }
        }
        Ok(())
    }

    /// Takes in the events that have arrived. Never blocks; the end of the connection is no error here.
    pub(crate) fn drain(&mut self) -> Result<(), QmpError> {
        loop {
            while let Some(message) = self.next_line()? {
                if let Message::Reply { id, .. } = message {
                    return Err(QmpError::Unexpected { what: "an event", got: id });
                }
            }
            if self.closed || !self.receive(RecvFlags::DONTWAIT)? {
                return Ok(());
            }
        }
    }

    fn message(&mut self, what: &'static str, deadline: Option<Instant>) -> Result<Message, QmpError> {
        loop {
            if let Some(message) = self.next_line()? {
                return Ok(message);
            }
            if self.closed {
                return Err(QmpError::Closed);
            }
            if let Some(deadline) = deadline {
                wait_readable(&self.socket, what, deadline)?;
            }
            self.receive(RecvFlags::empty())?;
        }
    }

    /// Takes in what has arrived, or waits for something; `false` when nothing is there.
    fn receive(&mut self, flags: RecvFlags) -> Result<bool, QmpError> {
        let held = self.inbox.len();
        self.inbox.resize(held + CHUNK, 0);
        let got = rustix::net::recv(&self.socket, &mut self.inbox[held..], flags);
        self.inbox.truncate(held + got.map_or(0, |(count, _)| count));
        match got {
            Ok((0, _)) | Err(Errno::CONNRESET) => self.closed = true,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(false),
            Err(e) => return Err(QmpError::Io(e.into())),
        }
        Ok(true)
    }

    /// The next whole line, if there is one. An error closes the connection for good.
    fn next_line(&mut self) -> Result<Option<Message>, QmpError> {
        let Some(end) = self.inbox[self.searched..].iter().position(|&b| b == b'\n') else {
            self.searched = self.inbox.len();
            if self.searched > MAX_LINE {
                self.fail();
                return Err(QmpError::TooLong);
            }
            return Ok(None);
        };
        let end = self.searched + end;
        let parsed = parse(&self.inbox[..end], &mut self.seen);
        self.inbox.drain(..=end);
        self.searched = 0;
        parsed.map(Some).inspect_err(|_| self.fail())
    }

    fn fail(&mut self) {
        self.inbox.clear();
        self.searched = 0;
        self.closed = true;
    }
}

impl AsFd for Qmp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn parse(line: &[u8], seen: &mut Seen) -> Result<Message, QmpError> {
    let line: Line = serde_json::from_slice(line).map_err(QmpError::Malformed)?;
    match line {
        Line { greeting: Some(_), .. } => Ok(Message::Greeting),
        Line { event: Some(name), data, .. } => {
            note(&name, data.unwrap_or_default(), seen)?;
            Ok(Message::Event)
        }
        Line { error: Some(error), id, .. } => {
            Ok(Message::Reply { id: id.unwrap_or_default(), answer: Err(error.desc) })
        }
        Line { value: Some(value), id, .. } => {
            Ok(Message::Reply { id: id.unwrap_or_default(), answer: Ok(value) })
        }
        _ => Err(QmpError::Unexpected { what: "a reply or an event", got: "neither".into() }),
    }
}

fn note(event: &str, data: Value, seen: &mut Seen) -> Result<(), QmpError> {
    match event {
        "STOP" => seen.running = false,
        "RESUME" => seen.running = true,
        "RESET" => seen.rebooted |= data["guest"] == Value::Bool(true),
        "GUEST_PANICKED" => seen.panicked = true,
        "SHUTDOWN" => seen.shutdown = Some(serde_json::from_value(data).map_err(QmpError::Malformed)?),
        _ => {}
    }
    Ok(())
}

fn wait_readable(socket: &OwnedFd, what: &'static str, deadline: Instant) -> Result<(), QmpError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| QmpError::Io(Errno::INVAL.into()))?;
        match rustix::event::poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(QmpError::TimedOut { what }),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(QmpError::Io(e.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::time::Duration;

    const GREETING: &str = "{\"QMP\":{\"version\":{},\"capabilities\":[\"oob\"]}}\r\n";
    const CAPABLE: &str = "{\"return\": {}, \"id\": \"qmp_capabilities\"}\r\n";

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    /// A client that was greeted, and the other end.
    fn connected() -> (Qmp, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        say(&theirs, GREETING);
        say(&theirs, CAPABLE);
        (Qmp::connect(ours, soon()).unwrap(), theirs)
    }

    fn say(socket: &OwnedFd, text: impl AsRef<[u8]>) {
        assert_eq!(rustix::io::write(socket, text.as_ref()).unwrap(), text.as_ref().len());
    }

    #[test]
    fn replies_are_matched_and_events_are_kept() {
        let (mut qmp, theirs) = connected();
        say(&theirs, "{\"event\":\"RESUME\"}\n{\"event\":\"RESET\",\"data\":{\"guest\":true}}\n{\"return\":");
        qmp.drain().unwrap();
        assert!(qmp.seen.running && qmp.seen.rebooted && !qmp.seen.panicked);
        say(&theirs, "7,\"id\":\"stop\"}\n");
        assert_eq!(qmp.execute(&Command::new("stop"), None).unwrap(), 7);
        say(&theirs, "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no such thing\"},\"id\":\"cont\"}\n");
        let error = qmp.execute(&Command::new("cont"), None).unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused cont: no such thing");
        say(&theirs, "{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":true,\"reason\":\"guest-shutdown\"}}\n");
        drop(theirs);
        assert!(matches!(qmp.execute(&Command::new("stop"), Some(soon())), Err(QmpError::Closed)));
        qmp.drain().unwrap();
        assert!(qmp.seen.shutdown.unwrap().guest);
    }

    #[test]
    fn hostile_lines_are_errors_and_close_the_connection() {
        let deep = format!("{}1{}\n", "[".repeat(5000), "]".repeat(5000));
        let lines = [
            "\n",
            "null\n",
            "[]\n",
            "{}\n",
            "{\"return\": {}}\n",
            "{\"return\": {}, \"id\": \"cont\"}\n",
            "{\"return\": {}, \"id\": 7}\n",
            "{\"error\": \"stop\", \"id\": \"stop\"}\n",
            "{\"event\": \"SHUTDOWN\"}\n",
            "{\"event\": {}}\n",
            "{\"QMP\": 1}\n",
            "{\"return\": {}, \"id\": \"stop\"\n",
            "\u{0}\n",
            &deep,
        ];
        for line in lines {
            let (mut qmp, theirs) = connected();
            say(&theirs, line);
            assert!(qmp.execute(&Command::new("stop"), Some(soon())).is_err(), "{line:?}");
        }
        let (mut qmp, theirs) = connected();
        say(&theirs, b"{\"event\": \"\xff\xfe\"}\n");
        assert!(qmp.drain().is_err());
        assert!(matches!(qmp.execute(&Command::new("stop"), Some(soon())), Err(QmpError::Closed)));
    }

    #[test]
    fn a_line_without_end_is_cut_off() {
        let (mut qmp, theirs) = connected();
        let writer = std::thread::spawn(move || {
            let chunk = vec![b'x'; CHUNK];
            while rustix::net::send(&theirs, &chunk, SendFlags::NOSIGNAL).is_ok() {}
        });
        assert!(matches!(qmp.execute(&Command::new("stop"), None), Err(QmpError::TooLong)));
        drop(qmp);
        writer.join().unwrap();
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        let (mut qmp, _theirs) = connected();
        let error = qmp.execute(&Command::new("stop"), Some(Instant::now())).unwrap_err();
        assert_eq!(error.to_string(), "QEMU did not answer stop in time");
    }
}
