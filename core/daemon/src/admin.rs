//! The admin socket: how other programs of the same user talk to a running `protect` or `standby`.
//!
//! A unix stream socket, `admin.sock` in the state directory, mode 0600. The client sends requests, one JSON object a
//! line; each is answered, in order, by one line: `{"ok": …}` or `{"error": "…"}`.
//!
//! | request | `ok` |
//! |---|---|
//! | `{"request":"status"}` | [`Status`] |
//! | `{"request":"stop"}` | `null`, once protection has ended |
//! | `{"request":"handover"}` | `null`, once the guest runs on the other host |
//! | `{"request":"floor","rounds":N}` | [`Quantiles`] of the guest's own pause + save state + resume, in microseconds |

use aventine_engine::{Command, Control, Quantiles, Status};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::warn;

#[cfg(any(test, fuzzing))]
#[path = "admin_fuzz.rs"]
pub(crate) mod fuzz;

/// Name of the socket in the state directory.
pub(crate) const SOCKET: &str = "admin.sock";
/// Longest request and longest answer, in bytes.
const LONGEST: u64 = 64 << 10;
/// How long requests under way may still take once the engine has ended.
const DRAIN: Duration = Duration::from_secs(1);

/// What can be asked.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    Status,
    Stop,
    Handover,
    Verify { repair: bool },
    Floor { rounds: u32 },
}

/// The answer to any of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer<T> {
    Ok(T),
    Error(String),
}

/// Makes the socket. `state_dir` is locked by this program, so a socket that is there already is a leftover.
pub(crate) fn bind(state_dir: &Path) -> io::Result<UnixListener> {
    let path = state_dir.join(SOCKET);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers requests until `ended` becomes true; requests under way are then finished.
pub(crate) async fn serve(
    listener: tokio::net::UnixListener,
    control: Control,
    mut ended: watch::Receiver<bool>,
) {
    let mut clients = JoinSet::new();
    let for_clients = ended.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    clients.spawn(client(stream, control.clone(), for_clients.clone()));
                }
                Err(e) => {
                    warn!(error = %e, "cannot accept on the admin socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = clients.join_next() => {}
            () = over(&mut ended) => break,
        }
    }
    let _ = timeout(DRAIN, async { while clients.join_next().await.is_some() {} }).await;
}

/// Waits for the end of the engine.
async fn over(ended: &mut watch::Receiver<bool>) {
    let _ = ended.wait_for(|e| *e).await;
}

/// Serves one client. A client that fails or talks nonsense loses its connection and disturbs nobody.
async fn client(stream: tokio::net::UnixStream, control: Control, mut ended: watch::Receiver<bool>) {
    let (rx, mut tx) = stream.into_split();
    let mut rx = tokio::io::BufReader::new(rx);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut rx).take(LONGEST);
        let read = tokio::select! {
            read = limited.read_until(b'\n', &mut line) => read,
            () = over(&mut ended) => return,
        };
        if read.is_err() || line.last() != Some(&b'\n') {
            return;
        }
        let answer = match serde_json::from_slice(&line) {
            Ok(request) => carry_out(request, &control).await,
            Err(e) => Answer::Error(format!("Not a request: {e}")),
        };
        let Ok(mut text) = serde_json::to_vec(&answer) else { return };
        text.push(b'\n');
        if tx.write_all(&text).await.is_err() {
            return;
        }
    }
}

async fn carry_out(request: Request, control: &Control) -> Answer<Value> {
    match request {
        Request::Status => answer(Ok(control.status())),
        Request::Stop => {
            let (reply, answered) = channel();
            control.send(Command::Stop { reply });
            answer(reply_of(answered).await)
        }
        Request::Handover => {
            let (reply, answered) = channel();
            control.send(Command::HandOver { reply });
            answer(reply_of(answered).await)
        }
        Request::Verify { repair } => {
            let (reply, answered) = channel();
            control.send(Command::Verify { repair, reply });
            answer(reply_of(answered).await)
        }
        Request::Floor { rounds } if !(1..=1000).contains(&rounds) => {
            Answer::Error("`rounds` can be from 1 to 1000".into())
        }
        Request::Floor { rounds } => {
            let (reply, answered) = channel();
            control.send(Command::Floor { rounds, reply });
            answer(reply_of::<Quantiles>(answered).await)
        }
    }
}

fn answer<T: Serialize>(result: Result<T, String>) -> Answer<Value> {
    match result.map(serde_json::to_value) {
        Ok(Ok(value)) => Answer::Ok(value),
        Ok(Err(e)) => Answer::Error(e.to_string()),
        Err(text) => Answer::Error(text),
    }
}

/// Waits for the engine's reply; an engine that ends drops the other end, so this ends too.
pub(crate) async fn reply_of<T: Send + 'static>(answered: Receiver<Result<T, String>>) -> Result<T, String> {
    match tokio::task::spawn_blocking(move || answered.recv()).await {
        Ok(Ok(result)) => result,
        _ => Err("The engine ended before it answered".into()),
    }
}

/// Why a running program could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("Nothing is running at {}", .0.display())]
    NotRunning(PathBuf),
    #[error("Could not talk to the program at {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("The program at {} did not answer within {limit:?}", path.display())]
    TimedOut { path: PathBuf, limit: Duration },
    #[error("The program at {} ended before it answered", .0.display())]
    Ended(PathBuf),
    #[error("The answer of the program at {} makes no sense; is it another version?", path.display())]
    Answer { path: PathBuf, source: serde_json::Error },
    #[error("{0}")]
    Refused(String),
}

/// Asks the program whose state directory this is. Blocks until it answers, at most `limit` if there is one.
fn ask<T: DeserializeOwned>(
    state_dir: &Path,
    request: Request,
    limit: Option<Duration>,
) -> Result<T, AskError> {
    let path = state_dir.join(SOCKET);
    let failed = |source: io::Error| match (source.kind(), limit) {
        (ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory, _) => {
            AskError::NotRunning(state_dir.to_owned())
        }
        (ErrorKind::WouldBlock | ErrorKind::TimedOut, Some(limit)) => {
            AskError::TimedOut { path: state_dir.to_owned(), limit }
        }
        // It died with the request unread.
        (ErrorKind::ConnectionReset | ErrorKind::BrokenPipe, _) => AskError::Ended(state_dir.to_owned()),
        _ => AskError::Io { path: state_dir.to_owned(), source },
    };
    let mut stream = UnixStream::connect(path).map_err(failed)?;
    stream.set_read_timeout(limit).map_err(failed)?;
    stream.set_write_timeout(limit).map_err(failed)?;
    let mut line = serde_json::to_string(&request).map_err(|e| failed(e.into()))?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(failed)?;
    line.clear();
    BufReader::new(stream.take(LONGEST)).read_line(&mut line).map_err(failed)?;
    if line.is_empty() {
        return Err(AskError::Ended(state_dir.to_owned()));
    }
    match serde_json::from_str(&line) {
        Ok(Answer::Ok(value)) => Ok(value),
        Ok(Answer::Error(text)) => Err(AskError::Refused(text)),
        Err(source) => Err(AskError::Answer { path: state_dir.to_owned(), source }),
    }
}

/// The status of the program whose state directory this is.
pub(crate) fn status(state_dir: &Path) -> Result<Status, AskError> {
    ask(state_dir, Request::Status, Some(Duration::from_secs(5)))
}

/// Ends protection there; returns once it has ended.
pub(crate) fn stop(state_dir: &Path) -> Result<(), AskError> {
    ask(state_dir, Request::Stop, None)
}

/// Hands the guest over to the other host; returns once it runs there.
pub(crate) fn handover(state_dir: &Path) -> Result<(), AskError> {
    ask(state_dir, Request::Handover, None)
}

/// Has both images of the guest's disks compared; returns once that has begun.
pub(crate) fn verify(state_dir: &Path, repair: bool) -> Result<(), AskError> {
    ask(state_dir, Request::Verify { repair }, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// A served socket without an engine behind it, until `end` is told.
    fn served(dir: &Path) -> (watch::Sender<bool>, thread::JoinHandle<()>) {
        let (end, ended) = watch::channel(false);
        let listener = bind(dir).unwrap();
        let (control, inbox) = aventine_engine::command_channel();
        drop(inbox);
        let server = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                serve(tokio::net::UnixListener::from_std(listener).unwrap(), control, ended).await;
            });
        });
        (end, server)
    }

    #[test]
    fn requests_are_answered_in_order_and_nonsense_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (end, server) = served(dir.path());
        let mode = fs::metadata(dir.path().join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let mut stream = UnixStream::connect(dir.path().join(SOCKET)).unwrap();
        let requests =
            "{\"request\":\"status\"}\nhello\n{\"request\":\"floor\",\"rounds\":0}\n{\"request\":\"stop\"}\n";
        stream.write_all(requests.as_bytes()).unwrap();
        let mut lines =
            BufReader::new(&stream).lines().map(|l| serde_json::from_str::<Value>(&l.unwrap()).unwrap());
        assert!(lines.next().unwrap()["ok"]["state"].is_string());
        assert!(lines.next().unwrap()["error"].as_str().unwrap().starts_with("Not a request"));
        assert!(lines.next().unwrap()["error"].as_str().unwrap().contains("1 to 1000"));
        assert!(lines.next().unwrap()["error"].as_str().unwrap().contains("ended"));

        assert!(status(dir.path()).is_ok());
        assert!(matches!(stop(dir.path()), Err(AskError::Refused(_))));
        end.send(true).unwrap();
        server.join().unwrap();
        assert!(lines.next().is_none(), "an idle client does not keep the program");
        assert!(matches!(status(dir.path()), Err(AskError::NotRunning(_))));
    }

    #[test]
    fn a_leftover_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(status(dir.path()), Err(AskError::NotRunning(_))));
        drop(UnixListener::bind(dir.path().join(SOCKET)).unwrap());
        assert!(matches!(status(dir.path()), Err(AskError::NotRunning(_))));
        let (end, server) = served(dir.path());
        assert!(status(dir.path()).is_ok());
        end.send(true).unwrap();
        server.join().unwrap();
    }

    #[test]
    fn a_request_without_an_end_does_not_fill_memory() {
        let dir = tempfile::tempdir().unwrap();
        let (end, server) = served(dir.path());
        let mut stream = UnixStream::connect(dir.path().join(SOCKET)).unwrap();
        let endless = vec![b'x'; 1 << 20];
        // The server hangs up in the middle, or after the part that it reads.
        let _ = stream.write_all(&endless);
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        assert!(read.is_err() || answer.is_empty());
        assert!(status(dir.path()).is_ok());
        end.send(true).unwrap();
        server.join().unwrap();
    }
}
