//! Fuzz targets; see `tests/fuzz`. They are reached from there through `admin.rs`, because a program cannot be linked.

use super::{LONGEST, client};
use aventine_engine::command_channel;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Builder;
use tokio::sync::watch;

/// All that a client of the admin socket sends to a program whose engine has ended. Each line is answered by one line of
/// JSON, up to the first that is too long or has no end.
pub(crate) fn admin(data: &[u8]) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let answers = runtime.block_on(async {
        let (ours, theirs) = tokio::net::UnixStream::pair().expect("a pair of sockets");
        let (control, _) = command_channel();
        let (_end, ended) = watch::channel(false);
        let (mut rx, mut tx) = ours.into_split();
        let mut answers = Vec::new();
        let write = async {
            // It may hang up before the end.
            let _ = tx.write_all(data).await;
            drop(tx);
        };
        let (_, (), read) = tokio::join!(client(theirs, control, ended), write, rx.read_to_end(&mut answers));
        // What it had not read when it hung up shows as an error behind the answers.
        let _ = read;
        String::from_utf8(answers).expect("JSON is UTF-8")
    });
    let lines = data.split_inclusive(|&b| b == b'\n');
    let whole = lines.take_while(|l| l.last() == Some(&b'\n') && l.len() as u64 <= LONGEST).count();
    assert_eq!(answers.lines().count(), whole);
    for line in answers.lines() {
        let Ok(Value::Object(answer)) = serde_json::from_str(line) else { panic!("{line}") };
        assert!(answer.len() == 1 && (answer.contains_key("ok") || answer["error"].is_string()), "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_fuzz::replay;

    #[test]
    fn every_line_has_its_answer() {
        let seeds = [
            (
                "all",
                "{\"request\":\"status\"}\n{\"request\":\"floor\",\"rounds\":7}\n{\"request\":\"stop\"}\n",
            ),
            (
                "nonsense",
                "hello\n\n{}\n[]\n{\"request\":\"stop\",\"now\":true}\n{\"request\":\"floor\",\"rounds\":-1}\n",
            ),
            ("no-end", "{\"request\":\"status\"}\n{\"request\""),
        ];
        replay("admin", &seeds.map(|(name, text)| (name, text.as_bytes().to_vec())), admin);
    }
}
