//! What the guest sees of its disk.

use super::super::DiskBench;
use super::super::desk::{Desk, Seen, done, pattern, same, size};
use aventine_api::Side;
use std::sync::Arc;
use std::thread;

/// Offsets and lengths that a disk may treat in different ways: of sectors, pages and none of these.
fn ranges(size: usize) -> [(usize, usize); 12] {
    [
        (0, 512),
        (4096, 4096),
        (1, 1),
        (511, 2),
        (4095, 4098),
        (100_000, 70_001),
        (65_536, 65_536),
        (66_000, 3),
        (size - 1, 1),
        (size - 5000, 5000),
        (7, 300_000),
        (299_999, 513),
    ]
}

pub(crate) fn reads_see_writes<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::apart(pattern(size::<B>(), 1))?;
    for session in ["alone", "replicated"] {
        for (turn, (at, len)) in ranges(size::<B>()).into_iter().enumerate() {
            desk.write(at, &pattern(len, turn as u8 + 7), turn % 3 == 1)?;
            let mut read = vec![0; len + 2];
            let from = at.saturating_sub(1).min(size::<B>() - read.len());
            let answer = desk.primary.block.read(from as u64, &mut read);
            done(format_args!("reading {} bytes at {from}", read.len()), answer)?;
            let due = &desk.model[from..from + read.len()];
            let when = format!("{session}, after a write of {len} bytes at {at}");
            same("what is read there", &read, due, &when)?;
        }
        desk.expect_primary(session)?;
        if session == "alone" {
            desk.connect()?;
        }
    }
    Ok(())
}

pub(crate) fn zeroes_and_trims_read_as_zero<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::armed(pattern(size::<B>(), 1))?;
    for (turn, (at, len)) in ranges(size::<B>()).into_iter().enumerate() {
        let whole = pattern(size::<B>(), turn as u8 + 9);
        desk.write(0, &whole, false)?;
        match turn % 3 {
            0 => desk.trim(at, len)?,
            kind => desk.zero(at, len, kind == 1, turn % 2 == 0)?,
        }
        desk.expect_primary(&format!("after {len} bytes at {at} were made zero"))?;
    }
    desk.epoch(2)?;
    desk.expect_equal("after an epoch of zeroes and trims")
}

pub(crate) fn the_size_stays<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::apart(pattern(size::<B>(), 1))?;
    // Kept from before `receive`, as an export keeps it.
    let devices = [Arc::clone(&desk.primary.block), Arc::clone(&desk.standby.block)];
    let look = |when: &str| {
        for (side, device) in [Side::Primary, Side::Standby].into_iter().zip(&devices) {
            let (size, due) = (device.size(), size::<B>());
            if size != due as u64 {
                return Err(format!("{when}, the {}'s device has {size} bytes, not {due}", side.name()));
            }
        }
        Ok(())
    };
    desk.connect()?;
    look("after `replicate` and `receive`")?;
    desk.finish_copy()?;
    desk.epoch(1)?;
    look("after an epoch")?;
    desk.wire.cut();
    desk.activate(1)?;
    look("after `activate`")
}

pub(crate) fn threads_may_write_at_once<B: DiskBench>(_: &str) -> Seen {
    let mut desk = Desk::<B>::apart(pattern(size::<B>(), 1))?;
    desk.connect()?;
    for epoch in 1..=3_u64 {
        let writers = (0..4_u64).map(|writer| {
            let block = Arc::clone(&desk.primary.block);
            thread::spawn(move || {
                for i in 0..150_u64 {
                    let fill = [(epoch * 64 + writer * 16 + i) as u8; 9000];
                    let at = (i * 7919 + writer * 300) % 40_000;
                    block.write(at, &fill[..1 + (i as usize * 131) % 9000], false)?;
                    // And where nobody else does.
                    block.write(100_000 + (i * 4 + writer) * 1024, &fill[..1024], false)?;
                    if i % 50 == 7 {
                        block.write_zeroes(at, 5000, i % 100 == 7, false)?;
                    }
                    block.read(at, &mut [0; 100])?;
                }
                Ok(())
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            let ended = writer.join().map_err(|_| "a thread that writes panicked".to_owned())?;
            done("I/O from several threads", ended)?;
        }
        // Which of two writes came last is the disk's to say.
        desk.model = desk.primary.read()?;
        desk.finish_copy()?;
        desk.epoch(epoch)?;
        desk.expect_equal("after writes from several threads")?;
    }
    Ok(())
}
