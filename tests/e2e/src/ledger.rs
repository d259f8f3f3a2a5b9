//! A client of a SQLite database in the guest that knows what it was promised.
//!
//! One connection carries transactions 1, 2, 3, … with `WINDOW` of them unanswered at most. Each one inserts one to three
//! rows and changes the only row of `total`; it counts as acknowledged when its COMMIT has been carried out and said so. They
//! are answered in order, so what is acknowledged is always a prefix, and the client knows at any time
//!
//! - what each answer must be: the number of transactions in the database and the sum of all values,
//! - every row of an acknowledged transaction, from the run's seed and the transaction's number.
//!
//! The database is in WAL mode and synchronous=FULL: an acknowledged transaction is on stable storage of the guest's disk.

use crate::MOUNT;
use crate::guest::{Guest, GuestError};
use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The database's file in the guest's file system.
pub const FILE: &str = "ledger.db";
/// Transactions under way at most.
const WINDOW: usize = 4;
/// Checkpoints are frequent: the database's own file changes, too.
const OPEN: &str = "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=64;";
pub(crate) const CREATE: &str = "PRAGMA journal_mode=WAL; \
    CREATE TABLE entry(number INTEGER, part INTEGER, value INTEGER, text TEXT, PRIMARY KEY(number, part)); \
    CREATE INDEX by_value ON entry(value); \
    CREATE TABLE total(count INTEGER, sum INTEGER); INSERT INTO total VALUES(0, 0);";
const CHECK: &str = "PRAGMA integrity_check; \
    SELECT count(*), count(DISTINCT number), coalesce(max(number), 0), coalesce(sum(value), 0), \
    coalesce(sum(value * (1 + number % 997) + length(text)), 0) FROM entry; SELECT count, sum FROM total;";
const FORGET: &str = "BEGIN; DELETE FROM entry; UPDATE total SET count = 0, sum = 0; COMMIT;";

/// Why the client could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The guest's answer is wrong, or there is none.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The expected answers did not come.
    #[error("Only {came} of {expected} further answers of the database came within {limit:?}")]
    Stalled {
        /// Answers that came.
        came: u64,
        /// Answers waited for.
        expected: u64,
        /// For how long.
        limit: Duration,
    },
}

/// What is in the database after a number of transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Book {
    seed: u64,
    /// How many they are.
    pub transactions: u64,
    rows: u64,
    sum: u64,
    weighted: u64,
}

/// A row of `entry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    number: u64,
    part: u64,
    value: u64,
    /// Length of its text, which is not empty.
    length: u64,
}

/// Those of a transaction.
fn rows(seed: u64, number: u64) -> impl Iterator<Item = Row> {
    (0..1 + number % 3).map(move |part| {
        let word = (seed ^ number << 8 ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let word = (word ^ word >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Row { number, part, value: word >> 33, length: 1 + word % 700 }
    })
}

impl Book {
    /// Nothing is in it. `seed` tells this run's values from another's.
    pub fn new(seed: u64) -> Book {
        Book { seed, transactions: 0, rows: 0, sum: 0, weighted: 0 }
    }

    /// What the same run has in it after `transactions`.
    pub fn at(&self, transactions: u64) -> Book {
        let mut book = Book::new(self.seed);
        while book.transactions < transactions {
            book.add();
        }
        book
    }

    /// One more transaction: answers its statements.
    pub(crate) fn add(&mut self) -> String {
        let number = self.transactions + 1;
        let mut values = Vec::new();
        let mut sum = 0;
        for Row { part, value, length, .. } in rows(self.seed, number) {
            values.push(format!("({number}, {part}, {value}, printf('%.*c', {length}, 'x'))"));
            sum += value;
            self.weighted += value * (1 + number % 997) + length;
        }
        self.transactions = number;
        self.rows += values.len() as u64;
        self.sum += sum;
        format!(
            "BEGIN; INSERT INTO entry VALUES {}; UPDATE total SET count = count + 1, sum = sum + {sum}; COMMIT; \
             SELECT count, sum FROM total;",
            values.join(", ")
        )
    }

    /// What `total` holds.
    fn total(&self) -> String {
        format!("{}|{}", self.transactions, self.sum)
    }

    /// What [`CHECK`] answers.
    fn checked(&self) -> String {
        let Book { transactions, rows, sum, weighted, .. } = self;
        format!("ok {rows}|{transactions}|{transactions}|{sum}|{weighted} {}", self.total())
    }

    /// Every line that `sqlite3` prints for number, part, value and length of all rows, and `total`.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let rows = (1..=self.transactions).flat_map(|number| rows(self.seed, number));
        let rows = rows.map(|row| format!("{}|{}|{}|{}", row.number, row.part, row.value, row.length));
        rows.chain([self.total()])
    }
}

/// The statements that print [`Book::lines`].
pub const PRINT: &str = "SELECT number, part, value, length(text) FROM entry ORDER BY number, part; \
    SELECT count, sum FROM total;";

/// Opens the database on the guest's mounted file system; makes it first with `create`.
pub fn open(guest: &mut Guest, create: bool) -> Result<(), GuestError> {
    guest.ask(&format!("database {MOUNT}/bin/sqlite3 {MOUNT}/{FILE}"), "open")?;
    if create {
        guest.ask(&format!("sql {CREATE}"), "sql wal")?;
    }
    guest.ask(&format!("sql {OPEN}"), "sql 64")?;
    guest.ask("sql PRAGMA journal_mode;", "sql wal").map(drop)
}

/// Has everything in it checked: what is there must be `book`.
pub fn check(guest: &mut Guest, book: &Book) -> Result<(), GuestError> {
    let (request, expected) = (format!("sql {CHECK}"), format!("sql {}", book.checked()));
    match guest.ask(&request, &expected)?.as_str() {
        "" => Ok(()),
        more => Err(GuestError::Answer { answer: format!("{expected}{more}"), request, expected }),
    }
}

/// Closes it.
pub fn close(guest: &mut Guest) -> Result<(), GuestError> {
    guest.ask("database", "closed").map(drop)
}

/// Empties it.
pub fn forget(guest: &mut Guest) -> Result<(), GuestError> {
    guest.ask(&format!("sql {FORGET}"), "sql").map(drop)
}

/// What a client tells while it works.
#[derive(Debug, Default)]
struct Told {
    answers: AtomicU64,
    /// Longest time between two answers since it was last asked for, in microseconds.
    gap: AtomicU64,
    /// Checks that were asked for, and those that were answered.
    checks: AtomicU64,
    checked: AtomicU64,
}

/// A client at work on a thread of its own.
#[derive(Debug)]
pub struct Ledger {
    thread: JoinHandle<Outcome>,
    told: Arc<Told>,
    stop: Arc<AtomicBool>,
    stream: TcpStream,
}

/// What a client found out.
#[derive(Debug)]
pub struct Outcome {
    /// The connection, broken or not.
    pub guest: Guest,
    /// What was acknowledged.
    pub acknowledged: Book,
    /// Transactions that were sent: the database may have that many.
    pub attempted: u64,
    /// Why it ended early.
    pub failure: Option<GuestError>,
}

impl Ledger {
    /// Begins with transactions on an empty database that is open, as fast as answers come.
    pub fn start(guest: Guest, seed: u64) -> Result<Ledger, LedgerError> {
        let stream = guest.stream()?;
        let told = Arc::new(Told::default());
        let stop = Arc::new(AtomicBool::new(false));
        let outcome = Outcome { guest, acknowledged: Book::new(seed), attempted: 0, failure: None };
        let worker = Worker { outcome, last: Book::new(seed), pending: VecDeque::new(), checks: 0 };
        let (shared, until) = (Arc::clone(&told), Arc::clone(&stop));
        Ok(Ledger { thread: thread::spawn(move || worker.work(&shared, &until)), told, stop, stream })
    }

    /// Transactions acknowledged so far.
    pub fn answers(&self) -> u64 {
        self.told.answers.load(Ordering::Relaxed)
    }

    /// The longest time between two answers since this was called last, or since the start.
    pub fn take_gap(&self) -> Duration {
        Duration::from_micros(self.told.gap.swap(0, Ordering::Relaxed))
    }

    /// Waits for `count` further transactions, or until the client has given up.
    pub fn wait_answers(&self, count: u64, limit: Duration) -> Result<(), LedgerError> {
        let from = self.answers();
        self.wait(&self.told.answers, from, count, limit)
    }

    /// Has everything in the database checked between two transactions; waits until that is done, or the client has given up.
    pub fn check(&self, limit: Duration) -> Result<(), LedgerError> {
        let before = self.told.checks.fetch_add(1, Ordering::Relaxed);
        self.wait(&self.told.checked, before, 1, limit)
    }

    fn wait(&self, told: &AtomicU64, from: u64, count: u64, limit: Duration) -> Result<(), LedgerError> {
        let end = Instant::now() + limit;
        loop {
            let came = told.load(Ordering::Relaxed).saturating_sub(from);
            if came >= count || self.thread.is_finished() {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(LedgerError::Stalled { came, expected: count, limit });
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The guest is gone for good: takes the answers that came, and waits for no others.
    pub fn give_up(self) -> Outcome {
        self.stop.store(true, Ordering::Release);
        // Then it is closed already.
        let _ = self.stream.shutdown(Shutdown::Read);
        self.join()
    }

    fn join(self) -> Outcome {
        self.thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    /// Begins no more transactions, waits for the answers under way and has everything checked.
    pub fn finish(self) -> Outcome {
        self.told.checks.fetch_add(1, Ordering::Relaxed);
        self.stop.store(true, Ordering::Release);
        self.join()
    }
}

/// The client. What is pending was sent and is not answered.
#[derive(Debug)]
struct Worker {
    outcome: Outcome,
    /// After all that was sent.
    last: Book,
    pending: VecDeque<Pending>,
    checks: u64,
}

#[derive(Debug)]
struct Pending {
    request: String,
    expected: String,
    /// After it; `None` for a check.
    book: Option<Book>,
}

impl Worker {
    fn work(mut self, told: &Told, stop: &AtomicBool) -> Outcome {
        let mut last = Instant::now();
        loop {
            // In this order: whoever stops has asked for a check before.
            let more = !stop.load(Ordering::Acquire);
            let check = self.checks < told.checks.load(Ordering::Relaxed);
            if !more && !check && self.pending.is_empty() {
                return self.outcome;
            }
            let step = if (more || check) && self.pending.len() < WINDOW {
                self.send(check)
            } else {
                self.receive().map(|transaction| {
                    if transaction {
                        let gap = last.elapsed().as_micros() as u64;
                        last = Instant::now();
                        told.gap.fetch_max(gap, Ordering::Relaxed);
                        told.answers.store(self.outcome.acknowledged.transactions, Ordering::Relaxed);
                    } else {
                        told.checked.fetch_add(1, Ordering::Relaxed);
                    }
                })
            };
            if let Err(error) = step {
                self.outcome.failure = Some(error);
                return self.outcome;
            }
        }
    }

    fn send(&mut self, check: bool) -> Result<(), GuestError> {
        let (request, expected, book) = match check {
            true => (CHECK.to_owned(), self.last.checked(), None),
            false => {
                let request = self.last.add();
                self.outcome.attempted += 1;
                (request, self.last.total(), Some(self.last.clone()))
            }
        };
        self.checks += u64::from(check);
        self.outcome.guest.send(&format!("sql {request}"))?;
        self.pending.push_back(Pending { request, expected: format!("sql {expected}"), book });
        Ok(())
    }

    /// Takes an answer; whether it was a transaction's.
    fn receive(&mut self) -> Result<bool, GuestError> {
        let answer = self.outcome.guest.line()?;
        let Some(Pending { request, expected, book }) = self.pending.pop_front() else { return Ok(false) };
        if answer != expected {
            return Err(GuestError::Answer { request, answer, expected });
        }
        let transaction = book.is_some();
        if let Some(book) = book {
            self.outcome.acknowledged = book;
        }
        Ok(transaction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::Database;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    const LIMIT: Duration = Duration::from_secs(60);

    /// Someone who hands what he is asked to a database, as the guest's program does; and that database.
    fn served(file: &Path) -> (Guest, Arc<Mutex<Database>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut database = Database::open("sqlite3".as_ref(), file).unwrap();
        database.ask(CREATE).unwrap();
        let database = Arc::new(Mutex::new(database));
        let asked = Arc::clone(&database);
        thread::spawn(move || {
            let mut reader = BufReader::new(listener.accept().unwrap().0);
            let mut line = String::new();
            while matches!(reader.read_line(&mut line), Ok(1..)) {
                let answer = asked.lock().unwrap().ask(line.trim().strip_prefix("sql ").unwrap()).unwrap();
                line.clear();
                writeln!(reader.get_mut(), "sql {answer}").unwrap();
            }
        });
        (Guest::new(TcpStream::connect(address).unwrap()).unwrap(), database)
    }

    #[test]
    fn a_database_that_keeps_everything_passes_and_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (mut guest, _database) = served(&dir.path().join("x.db"));
        for seed in [1, 2] {
            let ledger = Ledger::start(guest, seed).unwrap();
            ledger.wait_answers(50, LIMIT).unwrap();
            ledger.check(LIMIT).unwrap();
            let outcome = ledger.finish();
            assert!(outcome.failure.is_none(), "{:?}", outcome.failure);
            assert!(outcome.acknowledged.transactions == outcome.attempted && outcome.attempted >= 50);
            guest = outcome.guest;
            check(&mut guest, &outcome.acknowledged).unwrap();
            check(&mut guest, &outcome.acknowledged.at(outcome.attempted + 1)).unwrap_err();
            forget(&mut guest).unwrap();
        }
    }

    #[test]
    fn whatever_becomes_of_an_acknowledged_transaction_is_noticed() {
        let cases = [
            // As if its COMMIT had not been.
            "BEGIN; DELETE FROM entry WHERE number = 10; \
                UPDATE total SET count = count - 1, sum = sum - (SELECT max(value) FROM entry); COMMIT;",
            "DELETE FROM entry WHERE number = 10 AND part = 0;",
            "UPDATE entry SET value = value + 1 WHERE number = 10 AND part = 0;",
            "UPDATE entry SET text = text || 'x' WHERE number = 10 AND part = 0;",
        ];
        for damage in cases {
            let dir = tempfile::tempdir().unwrap();
            let (guest, database) = served(&dir.path().join("x.db"));
            let ledger = Ledger::start(guest, 1).unwrap();
            ledger.wait_answers(20, LIMIT).unwrap();
            database.lock().unwrap().ask(damage).unwrap();
            let outcome = ledger.finish();
            assert!(matches!(outcome.failure, Some(GuestError::Answer { .. })), "{damage} {outcome:?}");
        }
    }
}
