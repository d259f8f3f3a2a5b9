//! QEMU's monitor: one JSON object a line.

use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// No answer.
    #[error("No answer from QEMU's monitor to `{command}`")]
    Lost {
        /// What was asked.
        command: String,
        /// What happened instead.
        source: io::Error,
    },
    /// QEMU refuses.
    #[error("QEMU refuses `{command}`: {reason}")]
    Refused {
        /// What was asked.
        command: String,
        /// QEMU's own words.
        reason: String,
    },
}

/// A connection to a monitor.
#[derive(Debug)]
pub(crate) struct Monitor {
    stream: BufReader<UnixStream>,
    events: VecDeque<Value>,
}

impl Monitor {
    /// Waits for QEMU's greeting.
    pub(crate) fn new(stream: UnixStream) -> Result<Monitor, MonitorError> {
        let mut monitor = Monitor { stream: BufReader::new(stream), events: VecDeque::new() };
        monitor.read().map_err(|source| lost("greeting", source))?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Result<(), MonitorError> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.stream.get_mut().write_all(line.as_bytes()).map_err(|source| lost(command, source))?;
        loop {
            let answer = self.read().map_err(|source| lost(command, source))?;
            if let Some(reason) = answer.pointer("/error/desc") {
                let reason = reason.as_str().unwrap_or_default().to_owned();
                return Err(MonitorError::Refused { command: command.to_owned(), reason });
            }
            match answer.get("return") {
                Some(_) => return Ok(()),
                None => self.events.push_back(answer),
            }
        }
    }

    /// Waits until a migration, which `command` began, has come to its end.
    pub(crate) fn migrated(&mut self, command: &str) -> Result<(), MonitorError> {
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.read().map_err(|source| lost(command, source))?,
            };
            match event.pointer("/data/status").and_then(Value::as_str) {
                Some("completed") if event["event"] == "MIGRATION" => return Ok(()),
                Some("failed") => {
                    let reason = "the migration failed".to_owned();
                    return Err(MonitorError::Refused { command: command.to_owned(), reason });
                }
                _ => {}
            }
        }
    }

    fn read(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(serde_json::from_str(&line)?),
        }
    }
}

fn lost(command: &str, source: io::Error) -> MonitorError {
    MonitorError::Lost { command: command.to_owned(), source }
}
