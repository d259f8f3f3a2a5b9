//! Fuzz targets; see `tests/fuzz`.

use crate::device::Medium;
use crate::history::History;
use crate::meta::{Found, Place};
use crate::standby::Staging;
use crate::wire::{Arrived, Check, Description, Tally, changes, kind, parse_answer, parse_barrier};
use aventine_api::{Epoch, ErrorCode, Host, PluginError, RecordHead, RecordRx};
use aventine_disk_common::image::Image;
use std::cell::LazyCell;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use tempfile::TempDir;

const SIZE: usize = 16 << 10;
/// Bytes that a standby may hold; more than an input can bring, so that nothing waits.
const LIMIT: usize = 64 << 20;

thread_local! {
    /// An image with its history, used by one run after the other.
    static DISK: LazyCell<(TempDir, Medium, Place)> = LazyCell::new(|| {
        // In memory where that is there: metadata are synced.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        let path = dir.path().join("web.img");
        let image = Image::create(&path, SIZE as u64).expect("an image");
        let place = Place::of(&path, dir.path());
        let history = History::of_standby(place.clone(), &image, true).expect("no history");
        (dir, Medium { image: Arc::new(image), history: Arc::new(history) }, place)
    });
}

/// Notes which epochs are complete.
#[derive(Default)]
struct Notes {
    staged: Mutex<Vec<Epoch>>,
    failures: Mutex<Vec<PluginError>>,
}

impl Host for Notes {
    fn request_epoch(&self) {}

    fn staged(&self, epoch: Epoch) {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner).push(epoch);
    }

    fn failed(&self, error: PluginError) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(error);
    }
}

#[derive(Debug, thiserror::Error)]
#[error("The channel has ended")]
struct Ended;

/// Records: kind, how the epoch is made from the one before, two bytes of length, payload. An empty barrier gets the
/// right sum.
struct Script<'a> {
    rest: &'a [u8],
    epoch: u64,
    tally: Tally,
}

impl Script<'_> {
    fn next(&mut self) -> Option<(RecordHead, Vec<u8>)> {
        let (&[kind, step, low, high], rest) = self.rest.split_first_chunk::<4>()?;
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(u16::from_le_bytes([low, high]))));
        self.rest = rest;
        self.epoch = match step {
            0xff => u64::MAX,
            0xfe => 0,
            step => self.epoch.wrapping_add(u64::from(step)),
        };
        let mut payload = payload.to_vec();
        let kind = kind % 6;
        if kind == kind::CHANGES {
            // What does not pass ends the stream on the other side.
            let _ = self.tally.add_record(&payload, SIZE as u64);
        } else if kind == kind::BARRIER && payload.is_empty() {
            payload = self.tally.finish().encode().to_vec();
        }
        Some((RecordHead { epoch: Epoch(self.epoch), kind }, payload))
    }
}

impl RecordRx for Script<'_> {
    fn recv(&mut self, payload: &mut Vec<u8>) -> Result<RecordHead, PluginError> {
        let (head, record) = self.next().ok_or_else(|| PluginError::new(ErrorCode::PeerLost, Ended))?;
        *payload = record;
        Ok(head)
    }
}

/// How many of the complete epochs are committed, then all records after the description. The image gets the records of
/// the initial copy and of committed epochs, in order, and no others; the rest is forgotten.
pub fn follow(data: &[u8]) {
    let Some((&commits, rest)) = data.split_first() else { return };
    DISK.with(|disk| {
        let (_, medium, _) = &**disk;
        let image = &medium.image;
        image.write(0, &[0x5a; SIZE], false).expect("the image can be written");
        let notes = Arc::new(Notes::default());
        let host: Arc<dyn Host> = notes.clone();
        let staging = Staging::new(medium.clone(), LIMIT, host, Arc::default());
        staging.run(&mut Script { rest, epoch: 0, tally: Tally::default() });

        let staged = notes.staged.lock().unwrap_or_else(PoisonError::into_inner).clone();
        assert!(staged.iter().zip(1..).all(|(epoch, due)| epoch.0 == due), "{staged:?}");
        let failures = notes.failures.lock().unwrap_or_else(PoisonError::into_inner).len();
        assert_eq!(failures, 1, "the end of the channel, or what came before it");
        assert!(staging.bytes() <= 2 * data.len() as u64 + 64 * (data.len() as u64 / 4 + 1));

        let committed = Epoch(u64::from(commits).min(staged.len() as u64));
        staging.commit(committed).expect("it is complete");
        staging.commit(Epoch(staged.len() as u64 + 1)).expect_err("it is not");
        staging.apply(Epoch(u64::MAX), image).expect("what was checked can be applied");
        let mut found = vec![0; SIZE];
        image.read(0, &mut found).expect("the image can be read");
        assert!(found == expected(rest, committed), "the image is not that of epoch {committed}");
        if committed > Epoch::COPY {
            staging.cut(committed).expect("a committed epoch can be taken over");
            assert_eq!(staging.bytes(), 0);
        }
    });
}

/// The image at `committed`, by the rules of the protocol alone.
fn expected(rest: &[u8], committed: Epoch) -> Vec<u8> {
    let mut image = vec![0x5a; SIZE];
    let (mut open, mut copied) = (Epoch::COPY, false);
    let (mut staged, mut tally) = (Vec::new(), Tally::default());
    let mut script = Script { rest, epoch: 0, tally: Tally::default() };
    while let Some((RecordHead { epoch, kind }, payload)) = script.next() {
        match kind {
            kind::CHANGES if epoch == open => {
                if tally.add_record(&payload, SIZE as u64).is_err() {
                    break;
                }
                if open == Epoch::COPY {
                    carry_out(&payload, &mut image);
                } else {
                    staged.push((epoch, payload));
                }
            }
            kind::CHECK if open > Epoch::COPY && epoch == open => {
                if Check::parse(&payload, SIZE as u64).is_err() {
                    break;
                }
            }
            kind::COPIED if open == Epoch::COPY && !copied => copied = true,
            kind::BARRIER if copied && epoch == open.max(Epoch::FIRST) => {
                if parse_barrier(&payload).map(|(sum, _)| sum) != Ok(tally.finish()) {
                    break;
                }
                open = epoch.next();
            }
            _ => break,
        }
    }
    staged.retain(|(epoch, _)| *epoch <= committed);
    staged.iter().for_each(|(_, payload)| carry_out(payload, &mut image));
    image
}

fn carry_out(payload: &[u8], image: &mut [u8]) {
    for change in changes(payload, SIZE as u64) {
        match change.expect("it was checked") {
            Arrived::Write { offset, data } => image[offset as usize..][..data.len()].copy_from_slice(data),
            Arrived::Zero { offset, len, .. } => image[offset as usize..][..len as usize].fill(0),
        }
    }
}

/// A description, a record of the way back, and metadata: whatever is understood is kept as it is.
pub fn note(data: &[u8]) {
    if let Ok(told) = Description::parse(data) {
        assert_eq!(Description::parse(&told.encode()), Ok(told));
    }
    if let Some((&kind, payload)) = data.split_first() {
        let _ = parse_answer(kind, payload);
    }
    DISK.with(|disk| {
        let (_, _, place) = &**disk;
        fs::write(place.path(), data).expect("metadata can be written");
        let Found::Meta(meta) = place.read().expect("metadata can be read") else { return };
        let words = meta.changed.iter().flat_map(|blocks| blocks.words()).count() as u64;
        assert!(words * 8 <= data.len() as u64, "memory for blocks that are not there");
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{Blocks, REGION, block_of};
    use crate::meta::{Head, Id, Role};
    use crate::wire::Change;
    use aventine_disk_common::image::Stamp;
    use aventine_fuzz::replay;

    fn record(kind: u8, step: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u16).to_le_bytes();
        [&[kind, step][..], &length, payload].concat()
    }

    fn written(changes: impl IntoIterator<Item = Change>) -> Vec<u8> {
        changes.into_iter().flat_map(|c| [&c.head[..], &c.data].concat()).collect()
    }

    #[test]
    fn the_image_follows_what_is_committed() {
        let copy = [
            record(kind::CHANGES, 0, &written(Change::write(0, &[1; 600]))),
            record(kind::COPIED, 0, b""),
            record(kind::CHANGES, 0, &written([Change::zero(100, 8000, true)])),
            record(kind::BARRIER, 1, b""),
        ]
        .concat();
        let two = record(
            kind::CHANGES,
            1,
            &written(Change::write(8000, &[2; 100]).chain([Change::zero(0, 9, false)])),
        );
        let rest = [two, record(kind::BARRIER, 0, b""), record(kind::BARRIER, 1, b"")].concat();
        let open = record(kind::CHANGES, 1, &written(Change::write(16_000, &[3; 384])));
        let check = record(kind::CHECK, 1, &Check::of(50, &[1; 50]).encode());
        let seeds = [
            ("copy", [&[9][..], &copy].concat()),
            ("checked", [&[9][..], &copy, &check, &rest, &open].concat()),
            ("three-epochs", [&[9][..], &copy, &rest, &open].concat()),
            ("committed-one", [&[1][..], &copy, &rest, &open].concat()),
            ("last-epoch", [&[9][..], &copy, &record(kind::BARRIER, 0xff, b""), &open].concat()),
        ];
        replay("follow", &seeds, follow);
    }

    #[test]
    fn records_and_metadata_of_any_bytes_are_taken() {
        let told = Description {
            size: 1 << 30,
            block: block_of(1 << 30),
            asks: true,
            point: Id([1; 16]),
            previous: Id::NONE,
        };
        let (blocks, regions) =
            (Blocks::of(SIZE as u64, block_of(SIZE as u64)), Blocks::of(SIZE as u64, REGION));
        blocks.insert(0..1);
        let head = Head {
            role: Role::Following,
            stamp: Stamp::default(),
            closed: false,
            size: SIZE as u64,
            id: Id([2; 16]),
            point: Id([3; 16]),
            previous: Id::NONE,
        };
        let metadata = DISK.with(|disk| {
            let (_, _, place) = &**disk;
            place.replace(&head, &blocks, &regions).unwrap();
            fs::read(place.path()).unwrap()
        });
        let seeds = [
            ("description", told.encode()),
            ("metadata", metadata),
            ("blocks", [&[kind::BLOCKS][..], &[0; 16]].concat()),
        ];
        replay("note", &seeds, note);
    }
}
