//! Fuzz targets; see `tests/fuzz`.

use crate::standby::Staging;
use crate::state;
use crate::wire::{self, Tally, kind};
use aventine_api::{Epoch, ErrorCode, Host, PluginError, RecordHead, RecordRx};
use std::sync::{Arc, Mutex, PoisonError};

const SIZE: u64 = 16 << 10;
/// Bytes that a standby may hold; more than an input can bring.
const LIMIT: usize = 64 << 20;

#[derive(Default)]
struct Notes {
    staged: Mutex<Vec<Epoch>>,
    failures: Mutex<usize>,
}

impl Host for Notes {
    fn request_epoch(&self) {}

    fn staged(&self, epoch: Epoch) {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner).push(epoch);
    }

    fn failed(&self, _: PluginError) {
        *self.failures.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }
}

#[derive(Debug, thiserror::Error)]
#[error("The channel has ended")]
struct Ended;

/// Records: kind, how the epoch is made from the one before, two bytes of length, payload. An empty barrier gets the right
/// sum.
struct Script<'a> {
    rest: &'a [u8],
    epoch: u64,
    tally: Tally,
}

impl RecordRx for Script<'_> {
    fn recv(&mut self, payload: &mut Vec<u8>) -> Result<RecordHead, PluginError> {
        let ended = || PluginError::new(ErrorCode::PeerLost, Ended);
        let (&[kind, step, low, high], rest) = self.rest.split_first_chunk::<4>().ok_or_else(ended)?;
        let (record, rest) = rest.split_at(rest.len().min(usize::from(u16::from_le_bytes([low, high]))));
        self.rest = rest;
        self.epoch = if step == 0xff { u64::MAX } else { self.epoch.wrapping_add(u64::from(step)) };
        *payload = record.to_vec();
        let kind = kind % 6;
        if kind == kind::CHANGES {
            // What does not pass ends the stream on the other side.
            let _ = self.tally.add_record(payload, SIZE);
        } else if kind == kind::BARRIER && payload.is_empty() {
            *payload = self.tally.finish().encode().to_vec();
        }
        Ok(RecordHead { epoch: Epoch(self.epoch), kind })
    }
}

/// All records after the description: whatever comes, epochs are staged in order, one failure is told, what is held is bounded
/// by what came, and only what was staged can be committed and taken over.
pub fn keep(data: &[u8]) {
    let notes = Arc::new(Notes::default());
    let staging = Staging::new(SIZE, LIMIT, Arc::clone(&notes) as Arc<dyn Host>);
    staging.run(&mut Script { rest: data, epoch: 0, tally: Tally::default() });
    let staged = notes.staged.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(staged.iter().zip(1..).all(|(epoch, due)| epoch.0 == due), "{staged:?}");
    assert_eq!(*notes.failures.lock().unwrap_or_else(PoisonError::into_inner), 1);
    assert!(staging.bytes() <= 2 * data.len() as u64 + 64 * (data.len() as u64 / 4 + 1));
    let last = Epoch(staged.len() as u64);
    staging.commit(last.next()).expect_err("it is not staged");
    staging.cut(Epoch::FIRST).expect_err("nothing is committed");
    if last > Epoch::COPY {
        staging.commit(last).expect("it is staged");
        staging.cut(last).expect("it is committed");
    }
}

/// A description, what `/proc/drbd` says and the kernel's log: any bytes.
pub fn said(data: &[u8]) {
    if let Ok((size, name)) = wire::parse_description(data)
        && let Ok(utf8) = std::str::from_utf8(&data[10..])
    {
        assert_eq!((wire::describe(size, &name).as_slice(), name.as_str()), (data, utf8));
    }
    let text = String::from_utf8_lossy(data);
    for minor in [0, 1, 10] {
        let _ = (state::parse(&text, minor), state::quarrel(&text, minor));
    }
    let _ = state::version(&text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Change, describe};
    use aventine_fuzz::replay;

    fn record(kind: u8, step: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u16).to_le_bytes();
        [&[kind, step][..], &length, payload].concat()
    }

    #[test]
    fn whatever_comes_is_kept_by_the_rules() {
        let change: Vec<u8> =
            Change::write(0, &[1; 600]).flat_map(|c| [&c.head[..], &c.data].concat()).collect();
        let epochs = [
            record(kind::CHANGES, 1, &change),
            record(kind::BARRIER, 0, b""),
            record(kind::BARRIER, 1, b""),
            record(kind::CHANGES, 1, &change),
        ]
        .concat();
        let both = [&epochs[..], &record(kind::BOTH, 0, &1_u64.to_le_bytes())].concat();
        replay("drbd-keep", &[("epochs", epochs), ("both", both)], keep);
    }

    #[test]
    fn whatever_is_said_is_taken() {
        let seeds = [
            ("description", describe(1 << 30, "r0")),
            ("status", b"version: 8.4.11 (api:1)\n 0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----\n    oos:0\n".to_vec()),
            ("log", b"1,1,1,-;block drbd0: Split-Brain detected but unresolved, dropping connection!\n".to_vec()),
        ];
        replay("drbd-said", &seeds, said);
    }
}
