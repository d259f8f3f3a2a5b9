//! What the guest does, and the client that knows what it was promised.

use crate::{GUEST, LIMIT, Options, SERVED, SoakError};
use aventine_demo::checker::{self, Load};
use aventine_demo::lab::{Lab, Pair, Parts, STARTUP, Site};
use aventine_demo::network::Host;
use aventine_e2e::guest::{Guest, PORT};
use aventine_e2e::ledger::{self, Book, Ledger};
use aventine_e2e::volume::{self, Left};
use clap::ValueEnum;
use rand::RngExt;
use rand::rngs::StdRng;
use std::net::TcpStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of the disk with the database's file system.
const VOLUME: u64 = 64 << 20;
/// What is exercised besides, and what the guest answers: a file beside the database, and a part of the other disk.
const EXERCISES: [(&str, &str); 2] = [
    ("exercise /disk/exercised 0 1048576", "exercising 1"),
    ("exercise /dev/vda 16777216 4194304", "exercising 2"),
];

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Redis, in memory.
    Redis,
    /// SQLite on an ext4 file system, while a file beside it and another disk are used in every way there is.
    Sqlite,
}

impl Workload {
    /// What a lab for it needs besides.
    pub(crate) fn parts(self, parts: Parts) -> Parts {
        match self {
            Workload::Redis => parts,
            Workload::Sqlite => {
                let tables = volume::NBD.disks().parse().unwrap_or_default();
                let qemu = parts.qemu.into_iter().chain(volume::NBD.device()).collect();
                Parts { tables, qemu, ..parts }
            }
        }
    }

    /// Starts the guest on fresh hosts.
    pub(crate) fn start(self, lab: &Lab, options: &Options) -> Result<Pair, SoakError> {
        lab.prepare(Site::FIRST)?;
        if self == Workload::Sqlite {
            volume::make(&image(lab, Site::FIRST.primary), VOLUME, &options.tools)?;
        }
        Ok(lab.launch(Site::FIRST)?)
    }
}

pub(crate) fn image(lab: &Lab, host: Host) -> PathBuf {
    lab.dir(host, Site::FIRST).join(volume::IMAGE)
}

pub(crate) fn connect(lab: &Lab) -> Result<Guest, SoakError> {
    let end = Instant::now() + STARTUP;
    loop {
        match lab.client().enter(|| TcpStream::connect((GUEST, PORT))).map_err(SoakError::Namespace)? {
            Ok(stream) => return Ok(Guest::new(stream)?),
            Err(error) if Instant::now() >= end => return Err(SoakError::NoGuest(error)),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A client at work.
pub(crate) enum Client {
    Redis(Load),
    /// With a second connection, for all else that is asked of the guest.
    Sqlite {
        ledger: Ledger,
        seed: u64,
        inside: Guest,
    },
}

/// How a client has ended well.
pub(crate) struct Ended {
    /// Writes that were acknowledged, and read back.
    pub(crate) acknowledged: u64,
    /// The connections, for the next client: that of a database keeps them.
    pub(crate) kept: Option<(Guest, Guest)>,
}

impl Client {
    /// Begins, after the one that has ended.
    pub(crate) fn start(
        workload: Workload,
        lab: &Lab,
        before: Option<Ended>,
        random: &mut StdRng,
    ) -> Result<Client, SoakError> {
        let seed = random.random();
        if workload == Workload::Redis {
            if before.is_some() {
                checker::forget(lab.client(), GUEST, LIMIT)?;
            }
            return Ok(Client::Redis(Load::start(checker::connect(lab.client(), GUEST, STARTUP)?, seed)));
        }
        let (guest, inside) = match before.and_then(|ended| ended.kept) {
            Some((mut guest, inside)) => {
                ledger::forget(&mut guest)?;
                (guest, inside)
            }
            None => {
                let (mut guest, mut inside) = (connect(lab)?, connect(lab)?);
                volume::mount(&mut guest)?;
                ledger::open(&mut guest, true)?;
                for (request, answer) in EXERCISES {
                    inside.ask(request, answer)?;
                }
                (guest, inside)
            }
        };
        Ok(Client::Sqlite { ledger: Ledger::start(guest, seed)?, seed, inside })
    }

    /// Waits until the client has been served for a while.
    pub(crate) fn wait_served(&self) -> Result<(), SoakError> {
        match self {
            Client::Redis(load) => Ok(load.wait_answers(SERVED, LIMIT)?),
            // Each transaction is on stable storage.
            Client::Sqlite { ledger, .. } => Ok(ledger.wait_answers(SERVED / 10, LIMIT)?),
        }
    }

    pub(crate) fn take_gap(&self) -> Duration {
        match self {
            Client::Redis(load) => load.take_gap(),
            Client::Sqlite { ledger, .. } => ledger.take_gap(),
        }
    }

    /// What was acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        match self {
            Client::Redis(load) => load.answers(),
            Client::Sqlite { ledger, .. } => ledger.answers(),
        }
    }

    /// The guest has come to another host, and what it had on the lost one, whose image nobody uses, is there with everything
    /// that was `acknowledged` before: all of it is checked.
    pub(crate) fn check_loss(&self, lab: &Lab, pair: &Pair, acknowledged: u64) -> Result<(), SoakError> {
        let Client::Sqlite { ledger, seed, .. } = self else { return Ok(()) };
        ledger.check(LIMIT)?;
        let lost = image(lab, pair.site.primary.other());
        volume::check(&lost, Left::Crashed, &Book::new(*seed).at(acknowledged), u64::MAX)?;
        Ok(())
    }

    /// Everything is well again: what is exercised is as it was left.
    pub(crate) fn check_inside(&mut self) -> Result<(), SoakError> {
        let Client::Sqlite { inside, .. } = self else { return Ok(()) };
        volume::trim(inside)?;
        inside.ask("compare", "same 2")?;
        Ok(())
    }

    /// Ends it and reads everything back.
    pub(crate) fn finish(self, lab: &Lab) -> Result<Ended, SoakError> {
        match self {
            Client::Redis(load) => {
                let outcome = load.finish(lab.client(), GUEST)?;
                let (lost, broken) = (outcome.lost, outcome.broken);
                if lost > 0 || broken {
                    return Err(SoakError::Lost { lost, broken, problems: outcome.problems.join("; ") });
                }
                Ok(Ended { acknowledged: outcome.acknowledged, kept: None })
            }
            Client::Sqlite { ledger, inside, .. } => {
                let outcome = ledger.finish();
                if let Some(failure) = outcome.failure {
                    return Err(failure.into());
                }
                let acknowledged = outcome.acknowledged.transactions;
                Ok(Ended { acknowledged, kept: Some((outcome.guest, inside)) })
            }
        }
    }
}
