//! The cases of memory that a transport lends. One that lends none is asked for it all the same, and copies.

use super::TransportBench;
use super::desk::{Desk, Pending, expect_code};
use super::wire::{bytes, expect};
use crate::suite::Seen;
use aventine_api::{ChannelRx, ChannelTx, ErrorCode, LentMemory, PluginError};
use std::collections::VecDeque;
use std::ops::Range;

/// Buffers that each side is asked to lend, and the bytes of each.
const BUFFERS: usize = 4;
const BYTES: usize = 1 << 20;
/// How long messages are, round what may be a limit of something.
const LENS: [usize; 11] =
    [0, 1, 4096, 65_535, 65_536, 65_537, 131_072, BYTES - 70_000, BYTES, BYTES + 1, 2 << 20];
const MESSAGES: usize = 3 * LENS.len();
/// How a message is cut into parts, after its head: so long each, over and over, and whether they lie in lent memory.
const CUTS: [&[(usize, bool)]; 5] = [
    &[(usize::MAX, true)],
    &[(100, false), (4096, true), (4096, true), (4096, true)],
    &[(30_000, true), (70_000, false), (usize::MAX, true)],
    &[(16, false), (8192, true)],
    &[(usize::MAX, false)],
];

/// Memory that nobody lends.
struct Own(Vec<u8>);

impl LentMemory for Own {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

fn failed(what: &str) -> impl Fn(PluginError) -> String {
    move |e| format!("`{what}` failed: {}", e.chain())
}

fn memory(tx: &mut dyn ChannelTx, len: usize) -> Result<Box<dyn LentMemory>, String> {
    match tx.memory(len) {
        None => Ok(Box::new(Own(vec![0; len]))),
        Some(memory) if memory.bytes() == vec![0; len] => Ok(memory),
        Some(_) => Err(format!("`memory` of {len} bytes answers what is not so many zeroes")),
    }
}

/// The next bytes, which are these of the stream: in lent memory, if there they are.
fn take(
    rx: &mut dyn ChannelRx,
    stream: u32,
    at: usize,
    len: usize,
) -> Result<Option<Box<dyn LentMemory>>, String> {
    let lent = rx.recv_lent(len).map_err(failed("recv_lent"))?;
    match &lent {
        Some(memory) => expect_kept(memory.as_ref(), &bytes(stream, at, len), "what came in lent memory")?,
        None => expect(rx, stream, at, len)?,
    }
    Ok(lent)
}

fn expect_kept(memory: &dyn LentMemory, due: &[u8], what: &str) -> Seen {
    match memory.bytes() {
        got if got == due => Ok(()),
        got if got.len() != due.len() => {
            Err(format!("{what} has {} bytes, and not {}", got.len(), due.len()))
        }
        _ => Err(format!("{what} is not what was sent")),
    }
}

pub(super) fn lent_memory_carries_what_was_sent<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    let (_listener, _pair, near, far) = desk.lending_channel("pages", BUFFERS, BYTES)?;
    let ways: Vec<_> = [(near.0, far.1, 3), (far.0, near.1, 5)]
        .into_iter()
        .map(|(tx, rx, stream)| {
            let sender = desk.spawn("the sender", move || send_messages(tx, stream));
            (sender, desk.spawn("the receiver", move || take_messages(rx, stream)))
        })
        .collect();
    for (sender, receiver) in ways {
        receiver.wait()?;
        sender.wait()?;
    }
    Ok(())
}

/// The parts of a message of `len` bytes, and whether each is in lent memory.
fn cut(number: usize, len: usize) -> Vec<(Range<usize>, bool)> {
    let (mut parts, mut at) = (Vec::new(), 0);
    for (most, is_lent) in CUTS[number % CUTS.len()].iter().copied().cycle() {
        if at == len {
            break;
        }
        let end = len.min(at.saturating_add(most));
        parts.push((at..end, is_lent));
        at = end;
    }
    parts
}

fn send_messages(mut tx: Box<dyn ChannelTx>, stream: u32) -> Result<Box<dyn ChannelTx>, String> {
    let mut memory = memory(tx.as_mut(), 2 << 20)?;
    let mut at = 0;
    for number in 0..MESSAGES {
        let len = LENS[number % LENS.len()];
        let (head, body) = (bytes(stream, at, 8), bytes(stream, at + 8, len));
        memory.bytes_mut()[..len].copy_from_slice(&body);
        let parts = cut(number, len).into_iter();
        let parts = parts.map(|(part, is_lent)| if is_lent { &memory.bytes()[part] } else { &body[part] });
        let parts: Vec<&[u8]> = std::iter::once(&head[..]).chain(parts).collect();
        tx.send(&parts).map_err(failed("send"))?;
        tx.settle(0).map_err(failed("settle"))?;
        // Who still read it would send this.
        memory.bytes_mut()[..len].fill(0xdd);
        at += 8 + len;
    }
    drop(memory);
    tx.send(&[&bytes(stream, at, 100)]).map_err(failed("send"))?;
    Ok(tx)
}

fn take_messages(mut rx: Box<dyn ChannelRx>, stream: u32) -> Result<Box<dyn ChannelRx>, String> {
    let (mut at, mut kept) = (0, VecDeque::new());
    for number in 0..MESSAGES {
        let len = LENS[number % LENS.len()];
        expect(rx.as_mut(), stream, at, 8)?;
        at += 8;
        // All of it, or in pieces that fit no message.
        let asked = match number % 4 {
            0 | 1 => len,
            2 => {
                let begun = len.min(1000);
                expect(rx.as_mut(), stream, at, begun)?;
                at += begun;
                len - begun
            }
            _ => len.saturating_sub(1),
        };
        let rest = len - asked - if number % 4 == 2 { len.min(1000) } else { 0 };
        kept.extend(take(rx.as_mut(), stream, at, asked)?.map(|memory| (memory, at, asked)));
        expect(rx.as_mut(), stream, at + asked, rest)?;
        at += asked + rest;
        // More than there are buffers cannot be kept.
        if kept.len() > BUFFERS - 2
            && let Some((mut memory, at, len)) = kept.pop_front()
        {
            expect_kept(memory.as_ref(), &bytes(stream, at, len), "lent memory that was kept")?;
            memory.bytes_mut().fill(0xcc);
        }
    }
    expect(rx.as_mut(), stream, at, 100)?;
    Ok(rx)
}

pub(super) fn lent_memory_is_the_borrowers_alone<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    const LEN: usize = 256 << 10;
    let (listener, pair, (mut tx, near), (far, mut rx)) = desk.lending_channel("pages", BUFFERS, BYTES)?;
    let flood: Pending<_> = desk.spawn("a `send` from lent memory that was stuck", move || {
        let mut memory = memory(tx.as_mut(), LEN)?;
        memory.bytes_mut().copy_from_slice(&bytes(1, 0, LEN));
        tx.send(&[b"head", memory.bytes()]).map_err(failed("send"))?;
        tx.settle(0).map_err(failed("settle"))?;
        memory.bytes_mut().fill(0x77);
        loop {
            if let Err(error) = tx.send(&[b"head", memory.bytes()]) {
                return Ok((error, memory));
            }
        }
    });
    let receiver = desk.spawn("`recv_lent`", move || {
        let head = |rx: &mut dyn ChannelRx| rx.recv(&mut [0; 4]).map_err(failed("recv"));
        head(rx.as_mut())?;
        let kept = take(rx.as_mut(), 1, 0, LEN)?;
        for _ in 0..3 * BUFFERS {
            head(rx.as_mut())?;
            if rx.recv_lent(LEN).map_err(failed("recv_lent"))?.is_none() {
                rx.recv(&mut [0; LEN]).map_err(failed("recv"))?;
            }
        }
        Ok((kept, rx))
    });
    let (mut kept, rx) = receiver.wait()?;
    let kept_is = |kept: &Option<Box<dyn LentMemory>>, due: &[u8], when: &str| {
        kept.as_ref().map_or(Ok(()), |m| expect_kept(m.as_ref(), due, &format!("lent memory {when}")))
    };
    kept_is(&kept, &bytes(1, 0, LEN), "beside other messages")?;
    pair.standby.aborter().abort();
    pair.primary.aborter().abort();
    let (error, mut source) = flood.wait()?;
    expect_code::<()>(Err(error), ErrorCode::PeerLost, "a `send` from lent memory after `abort`")?;
    kept_is(&kept, &bytes(1, 0, LEN), "after `abort`")?;
    drop((rx, near, far, pair, listener));
    kept_is(&kept, &bytes(1, 0, LEN), "after its link")?;
    expect_kept(source.as_ref(), &[0x77; LEN], "memory to send from, after its link,")?;
    for memory in kept.iter_mut().chain([&mut source]) {
        memory.bytes_mut().fill(0x99);
        expect_kept(memory.as_ref(), &[0x99; LEN], "lent memory that was written to")?;
    }
    Ok(())
}

pub(super) fn settled_memory_is_the_senders<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    const LEN: usize = 512 << 10;
    const ROUNDS: usize = 24;
    let has_more = |round| round % 3 == 2;
    let (_listener, _pair, (mut tx, near), (far, mut rx)) = desk.lending_channel("pages", BUFFERS, BYTES)?;
    let sender = desk.spawn("a `send` or `settle`", move || {
        let mut memories = [memory(tx.as_mut(), LEN)?, memory(tx.as_mut(), LEN)?];
        for round in 0..ROUNDS {
            let [free, _] = &mut memories;
            free.bytes_mut().copy_from_slice(&bytes(1, round * LEN, LEN));
            tx.send(&[b"head", free.bytes()]).map_err(failed("send"))?;
            tx.settle(1).map_err(failed("settle"))?;
            memories.reverse();
            let [settled, last] = &mut memories;
            // Who still read it would send this.
            settled.bytes_mut().fill(0xdd);
            if has_more(round) {
                tx.send(&[b"more"]).map_err(failed("send"))?;
                tx.settle(1).map_err(failed("settle"))?;
                last.bytes_mut().fill(0xee);
            }
        }
        let mut dropped = memory(tx.as_mut(), LEN)?;
        dropped.bytes_mut().copy_from_slice(&bytes(1, ROUNDS * LEN, LEN));
        tx.send(&[b"head", dropped.bytes()]).map_err(failed("send"))?;
        drop(dropped);
        tx.send(&[b"last"]).map_err(failed("send"))?;
        Ok(tx)
    });
    let receiver = desk.spawn("`recv_lent`", move || {
        let word = |rx: &mut dyn ChannelRx| rx.recv(&mut [0; 4]).map_err(failed("recv"));
        for round in 0..=ROUNDS {
            word(rx.as_mut())?;
            take(rx.as_mut(), 1, round * LEN, LEN)?;
            if has_more(round) {
                word(rx.as_mut())?;
            }
        }
        word(rx.as_mut())?;
        Ok(rx)
    });
    let _rx = receiver.wait()?;
    let _tx = sender.wait()?;
    drop((near, far));
    Ok(())
}

pub(super) fn settle_ends_with_the_link<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    for is_ours in [true, false] {
        let (_listener, pair, (mut tx, _near), _far) = desk.lending_channel("pages", BUFFERS, BYTES)?;
        let sender = desk.spawn("a `send` or `settle` whose link had ended", move || {
            let mut memory = memory(tx.as_mut(), BYTES)?;
            let lost = |e, what| expect_code::<()>(Err(e), ErrorCode::PeerLost, what);
            // Nobody takes it.
            let error = loop {
                if let Err(error) = tx.send(&[b"head", memory.bytes()]) {
                    break error;
                }
            };
            lost(error, "a `send` that waited")?;
            for _ in 0..2 {
                tx.settle(0).or_else(|e| lost(e, "a `settle` after its link"))?;
            }
            memory.bytes_mut().fill(0x99);
            expect_kept(memory.as_ref(), &[0x99; BYTES], "memory to send from, after its link,")
        });
        sender.await_sleep();
        if is_ours { &pair.primary } else { &pair.standby }.aborter().abort();
        sender.wait()?;
    }
    Ok(())
}
