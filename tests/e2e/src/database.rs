//! Debian's `sqlite3` program in the guest, which is told SQL on its standard input.

use crate::LIBRARIES;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What the program prints when a request is done.
const DONE: &str = "done";

/// The program with one database open.
#[derive(Debug)]
pub struct Database {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Database {
    /// Opens `file` with `program`, whose libraries are in [`LIBRARIES`].
    pub fn open(program: &Path, file: &Path) -> io::Result<Database> {
        let mut child = Command::new(program)
            // An error ends it: nothing that follows a statement that failed is carried out.
            .args(["-batch", "-bail"])
            .arg(file)
            .env("LD_LIBRARY_PATH", LIBRARIES)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let input = Some(child.stdin.take().ok_or_else(gone)?);
        let output = BufReader::new(child.stdout.take().ok_or_else(gone)?);
        Ok(Database { child, input, output })
    }

    /// Has complete statements carried out; answers the lines that they print, with a space between two.
    pub fn ask(&mut self, statements: &str) -> io::Result<String> {
        let input = self.input.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writeln!(input, "{statements} SELECT '{DONE}';")?;
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                return Err(io::Error::other("sqlite3 has ended: the console has its reason"));
            }
            match line.trim_end() {
                DONE => return Ok(lines.join(" ")),
                other => lines.push(other.to_owned()),
            }
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // It closes the database when its input ends.
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_carried_out_until_one_fails() {
        let dir = tempfile::tempdir().unwrap();
        let mut database = Database::open("sqlite3".as_ref(), &dir.path().join("x.db")).unwrap();
        assert_eq!(database.ask("CREATE TABLE t(n); INSERT INTO t VALUES(1),(2);").unwrap(), "");
        assert_eq!(database.ask("SELECT n FROM t; SELECT sum(n) FROM t;").unwrap(), "1 2 3");
        database.ask("BEGIN; INSERT INTO t VALUES(3); INSERT INTO no VALUES(1); COMMIT;").unwrap_err();
        let mut again = Database::open("sqlite3".as_ref(), &dir.path().join("x.db")).unwrap();
        assert_eq!(again.ask("SELECT count(*) FROM t;").unwrap(), "2");
    }
}
