//! A Redis client that knows what it was promised.
//!
//! One TCP connection carries commands 0, 1, 2, … with `WINDOW` of them unanswered at most. Even ones are
//! `SET key:I value`, each key once; odd ones are `INCR counter:C`, round robin. Redis answers in order, so what is
//! acknowledged is always a prefix: `acknowledged ≤ attempted`. Afterwards
//!
//! - every key of an acknowledged SET has its value,
//! - every counter has at least its acknowledged and at most its attempted count,
//! - every answer was the one that an undisturbed Redis would have given.

use crate::network::Namespace;
use redis::{Connection, ErrorKind, RedisError, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, panic};

/// Commands under way at most.
const WINDOW: u64 = 64;
/// How many counters there are.
const COUNTERS: u64 = 16;
/// Keys that one command of the verification reads.
const BATCH: usize = 500;
/// Redis' port.
const PORT: u16 = 6379;
/// A pause that outlasts any takeover: the client must not give up before the standby has the guest.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many problems are told in words.
const TOLD: usize = 5;

/// Why the client could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Redis could not be reached at first.
    #[error("Redis in the guest did not answer within {0:?}")]
    NoRedis(Duration, #[source] RedisError),
    /// The client's namespace could not be entered.
    #[error("Cannot enter the client's network namespace")]
    Namespace(#[source] io::Error),
    /// Redis refused.
    #[error("Redis could not be emptied")]
    Forget(#[source] RedisError),
    /// The expected answers did not come.
    #[error("Only {came} of {expected} further answers came within {limit:?}")]
    Stalled {
        /// Answers that came.
        came: u64,
        /// Answers waited for.
        expected: u64,
        /// For how long.
        limit: Duration,
    },
}

/// What a client found out.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Writes that Redis has acknowledged.
    pub acknowledged: u64,
    /// Acknowledged writes that are missing or wrong, and wrong answers.
    pub lost: u64,
    /// Whether the connection broke.
    pub broken: bool,
    /// Longest time between two answers.
    pub gap: Duration,
    /// The first problems in words.
    pub problems: Vec<String>,
}

impl Outcome {
    fn problem(&mut self, text: impl FnOnce() -> String) {
        if self.problems.len() < TOLD {
            self.problems.push(text());
        }
    }

    fn broke(&mut self, error: &RedisError) {
        self.broken = true;
        self.problem(|| format!("the connection broke: {error}"));
    }
}

/// Connects from `client` to Redis in the guest at `address`; tries for `limit`.
///
/// After an attempt that was too short the next has twice its time, up to 30 s: what a guest answers is held for an epoch,
/// however long that is here, and a guest that is not up yet is soon asked again.
pub fn connect(client: &Namespace, address: &str, limit: Duration) -> Result<Connection, CheckError> {
    let end = Instant::now() + limit;
    let mut patience = Duration::from_millis(500);
    loop {
        let attempt = client.enter(|| {
            let redis = redis::Client::open((address, PORT))?;
            let mut connection = redis.get_connection_with_timeout(patience)?;
            connection.set_read_timeout(Some(PATIENCE))?;
            connection.set_write_timeout(Some(PATIENCE))?;
            redis::cmd("PING").exec(&mut connection)?;
            Ok(connection)
        });
        match attempt.map_err(CheckError::Namespace)? {
            Ok(connection) => return Ok(connection),
            Err(error) if Instant::now() >= end => return Err(CheckError::NoRedis(limit, error)),
            Err(error) => {
                if error.is_timeout() {
                    patience = (2 * patience).min(PATIENCE);
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Has Redis in the guest at `address` forget everything, so that a client can begin anew.
pub fn forget(client: &Namespace, address: &str, limit: Duration) -> Result<(), CheckError> {
    redis::cmd("FLUSHALL").exec(&mut connect(client, address, limit)?).map_err(CheckError::Forget)
}

/// What a client tells while it works.
#[derive(Default)]
struct Told {
    answers: AtomicU64,
    /// Longest time between two answers since it was last asked for, in microseconds.
    gap: AtomicU64,
}

/// A client at work on a thread of its own.
pub struct Load {
    thread: JoinHandle<Worker>,
    told: Arc<Told>,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// Begins to write, as fast as answers come. `seed` tells this run's values from another's.
    pub fn start(connection: Connection, seed: u64) -> Load {
        Load::paced(connection, seed, Duration::ZERO)
    }

    /// The same, with a pause before each command: what is written must be read back, which takes its time.
    pub fn paced(connection: Connection, seed: u64, pause: Duration) -> Load {
        let told = Arc::new(Told::default());
        let stop = Arc::new(AtomicBool::new(false));
        let worker = Worker { connection, seed, pause, attempted: 0, outcome: Outcome::default() };
        let (shared, until) = (Arc::clone(&told), Arc::clone(&stop));
        Load { thread: thread::spawn(move || worker.work(&shared, &until)), told, stop }
    }

    /// Answers so far.
    pub fn answers(&self) -> u64 {
        self.told.answers.load(Ordering::Relaxed)
    }

    /// The longest time between two answers since this was called last, or since the start.
    pub fn take_gap(&self) -> Duration {
        Duration::from_micros(self.told.gap.swap(0, Ordering::Relaxed))
    }

    /// Waits for `count` further answers, or until the client has given up.
    pub fn wait_answers(&self, count: u64, limit: Duration) -> Result<(), CheckError> {
        let (from, end) = (self.answers(), Instant::now() + limit);
        loop {
            let came = self.answers() - from;
            if came >= count || self.thread.is_finished() {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(CheckError::Stalled { came, expected: count, limit });
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops writing, waits for the answers under way and reads everything back: on the same connection, or on a new
    /// one to the guest at `address` if it broke.
    pub fn finish(self, client: &Namespace, address: &str) -> Result<Outcome, CheckError> {
        self.stop.store(true, Ordering::Relaxed);
        let mut worker = self.thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
        if !worker.outcome.broken
            && let Err(error) = worker.verify()
        {
            worker.outcome.broke(&error);
        }
        if worker.outcome.broken {
            worker.connection = connect(client, address, PATIENCE)?;
            if let Err(error) = worker.verify() {
                worker.outcome.lost += worker.outcome.acknowledged;
                worker.outcome.problem(|| format!("nothing could be read back: {error}"));
            }
        }
        Ok(worker.outcome)
    }
}

/// The client: commands below `outcome.acknowledged` are answered, those below `attempted` sent.
struct Worker {
    connection: Connection,
    seed: u64,
    pause: Duration,
    attempted: u64,
    outcome: Outcome,
}

impl Worker {
    fn work(mut self, told: &Told, stop: &AtomicBool) -> Worker {
        let mut last = Instant::now();
        loop {
            let more = !stop.load(Ordering::Relaxed);
            if !more && self.outcome.acknowledged == self.attempted {
                return self;
            }
            let step = if more && self.attempted - self.outcome.acknowledged < WINDOW {
                self.send()
            } else {
                self.receive().inspect(|()| {
                    let gap = last.elapsed();
                    last = Instant::now();
                    self.outcome.gap = self.outcome.gap.max(gap);
                    told.gap.fetch_max(gap.as_micros() as u64, Ordering::Relaxed);
                    told.answers.store(self.outcome.acknowledged, Ordering::Relaxed);
                })
            };
            if let Err(error) = step {
                self.outcome.broke(&error);
                return self;
            }
        }
    }

    fn send(&mut self) -> Result<(), RedisError> {
        let index = self.attempted;
        let command = match Write::number(index) {
            Write::Set(key) => redis::cmd("SET").arg(key_name(key)).arg(value(self.seed, key)).take(),
            Write::Increment { counter, .. } => redis::cmd("INCR").arg(counter_name(counter)).take(),
        };
        self.attempted += 1;
        if !self.pause.is_zero() {
            thread::sleep(self.pause);
        }
        self.connection.send_packed_command(&command.get_packed_command())
    }

    fn receive(&mut self) -> Result<(), RedisError> {
        let answer = self.connection.recv_response()?;
        let expected = match Write::number(self.outcome.acknowledged) {
            Write::Set(_) => Value::Okay,
            Write::Increment { result, .. } => Value::Int(result.cast_signed()),
        };
        if answer != expected {
            self.outcome.lost += 1;
            let index = self.outcome.acknowledged;
            self.outcome.problem(|| format!("command {index} was answered {answer:?}, not {expected:?}"));
        }
        self.outcome.acknowledged += 1;
        Ok(())
    }

    /// Reads back every key and counter.
    fn verify(&mut self) -> Result<(), RedisError> {
        let keys = (0..sets(self.outcome.acknowledged)).collect::<Vec<_>>();
        for batch in keys.chunks(BATCH) {
            let names = batch.iter().map(|key| key_name(*key)).collect::<Vec<_>>();
            for (key, found) in batch.iter().zip(self.read::<String>(&names)?) {
                let expected = value(self.seed, *key);
                if found.as_ref() != Some(&expected) {
                    self.outcome.lost += 1;
                    self.outcome.problem(|| format!("key:{key} is {found:?}, not {expected:?}"));
                }
            }
        }
        let names = (0..COUNTERS).map(counter_name).collect::<Vec<_>>();
        for (counter, found) in (0..COUNTERS).zip(self.read::<u64>(&names)?) {
            let least = increments(self.outcome.acknowledged, counter);
            let most = increments(self.attempted, counter);
            let found = found.unwrap_or(0);
            if found < least || found > most {
                self.outcome.lost += least.saturating_sub(found).max(found.saturating_sub(most));
                self.outcome.problem(|| format!("counter:{counter} is {found}, not {least} to {most}"));
            }
        }
        Ok(())
    }

    fn read<T: redis::FromRedisValue>(&mut self, names: &[String]) -> Result<Vec<Option<T>>, RedisError> {
        let found = redis::cmd("MGET").arg(names).query::<Vec<Option<T>>>(&mut self.connection)?;
        match found.len() == names.len() {
            true => Ok(found),
            false => {
                Err((ErrorKind::UnexpectedReturnType, "MGET answered with another number of values").into())
            }
        }
    }
}

/// What the command of a number is.
enum Write {
    Set(u64),
    Increment { counter: u64, result: u64 },
}

impl Write {
    fn number(index: u64) -> Write {
        let half = index / 2;
        match index % 2 {
            0 => Write::Set(half),
            _ => Write::Increment { counter: half % COUNTERS, result: half / COUNTERS + 1 },
        }
    }
}

/// SETs among the first `commands`.
fn sets(commands: u64) -> u64 {
    commands.div_ceil(2)
}

/// INCRs of `counter` among the first `commands`.
fn increments(commands: u64, counter: u64) -> u64 {
    (commands / 2 + COUNTERS - 1 - counter) / COUNTERS
}

fn key_name(key: u64) -> String {
    format!("key:{key}")
}

fn counter_name(counter: u64) -> String {
    format!("counter:{counter}")
}

fn value(seed: u64, key: u64) -> String {
    format!("{seed:016x}-{key:016x}-{:016x}", seed ^ key.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_a_prefix_agree_with_its_commands() {
        for commands in [0, 1, 2, 31, 32, 33, 34, 1000, 1001] {
            let mut counts = [0; COUNTERS as usize];
            let mut keys = 0;
            for index in 0..commands {
                match Write::number(index) {
                    Write::Set(key) => {
                        assert_eq!(key, keys);
                        keys += 1;
                    }
                    Write::Increment { counter, result } => {
                        counts[counter as usize] += 1;
                        assert_eq!(result, counts[counter as usize]);
                    }
                }
            }
            assert_eq!(sets(commands), keys);
            for (counter, count) in counts.iter().enumerate() {
                assert_eq!(increments(commands, counter as u64), *count, "{commands} {counter}");
            }
        }
    }
}
