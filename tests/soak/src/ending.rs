//! Both hosts of a guest with a database are lost at once, and it is started anew.
//!
//! ```text
//!  both killed ─► the image where it ran, as it was left ─► started on it ─► everything in its database ─► unmounted ─► stopped
//!                 clean, all that was acknowledged                                    both hosts' images are equal, clean ◄─┘
//! ```

use crate::client::{connect, image};
use crate::{LIMIT, SoakError};
use aventine_demo::lab::{Lab, Pair, Site};
use aventine_demo::network::Host;
use aventine_e2e::guest::Guest;
use aventine_e2e::ledger::{self, Book, Ledger};
use aventine_e2e::volume::{self, Left};
use rand::RngExt;
use rand::rngs::StdRng;
use std::thread;
use std::time::Duration;

/// Transactions before the hosts are lost.
const SOME: u64 = 20;

/// Has a guest whose database is open go through it. `inside` is a second connection.
pub(crate) fn lose_both(
    lab: &Lab,
    pair: &mut Pair,
    mut guest: Guest,
    inside: Guest,
    random: &mut StdRng,
) -> Result<(), SoakError> {
    ledger::forget(&mut guest)?;
    let ledger = Ledger::start(guest, random.random())?;
    ledger.wait_answers(SOME, LIMIT)?;
    thread::sleep(Duration::from_millis(random.random_range(0..300)));
    pair.primary.kill(random.random())?;
    pair.standby.kill(random.random())?;
    drop(inside);
    let outcome = ledger.give_up();
    let here = image(lab, pair.site.primary);
    let there = volume::check(&here, Left::Crashed, &outcome.acknowledged, outcome.attempted)?;
    eprintln!(
        "both hosts lost: {} transactions acknowledged, {there} there, {} sent",
        outcome.acknowledged.transactions, outcome.attempted
    );
    lab.restart(pair)?;
    let book = outcome.acknowledged.at(there);
    let mut guest = connect(lab)?;
    volume::mount(&mut guest)?;
    ledger::open(&mut guest, false)?;
    ledger::check(&mut guest, &book)?;
    end(lab, pair, guest, &book)
}

/// Ends a guest that writes no more.
fn end(lab: &Lab, pair: &mut Pair, mut guest: Guest, book: &Book) -> Result<(), SoakError> {
    ledger::close(&mut guest)?;
    volume::unmount(&mut guest)?;
    let sealed = pair.primary.status()?.sealed;
    pair.primary.wait_for("the last writes", LIMIT, |status| status.committed > sealed)?;
    pair.primary.stop()?;
    pair.standby.wait_for("standing down", LIMIT, |status| status.state == "waiting")?;
    pair.primary.kill(false)?;
    pair.standby.kill_controller()?;
    for name in ["disk.img", volume::IMAGE] {
        let [a, b] = [Host::A, Host::B].map(|host| lab.dir(host, Site::FIRST).join(name));
        let difference = volume::difference(&a, &b).map_err(|source| SoakError::Compare { name, source })?;
        if let Some(offset) = difference {
            return Err(SoakError::Images { name, offset });
        }
    }
    volume::check(&image(lab, pair.site.primary), Left::Unmounted, book, book.transactions)?;
    Ok(())
}
