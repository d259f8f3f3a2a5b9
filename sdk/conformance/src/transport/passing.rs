//! The cases of what goes over a link. What each rule means is told in the table of [`super::rules`].

use super::TransportBench;
use super::desk::{Desk, accept, expect_code};
use super::wire::{bytes, expect, expect_stream, send_stream};
use crate::suite::{Seen, calmly};
use aventine_api::{Channel, ErrorCode, Side};
use std::time::{Duration, Instant};

/// A limit that is to be reached.
const SHORT: Duration = Duration::from_millis(20);

pub(super) fn nobody_there_is_a_time_out<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    let place = desk.bench.place();
    let connect = desk.spawn("`connect` without a standby", move || {
        let began = Instant::now();
        let done = B::make(&place, Side::Primary).connect(SHORT);
        expect_code(done.map(drop), ErrorCode::TimedOut, "`connect` without a standby")?;
        match began.elapsed() {
            tried if tried < SHORT => {
                Err(format!("`connect` gave up after {tried:?}; its limit was {SHORT:?}"))
            }
            _ => Ok(()),
        }
    });
    connect.wait()
}

pub(super) fn a_primary_waits_for_its_standby<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    let primary = desk.connect();
    // Once it has certainly failed where nobody is.
    nobody_there_is_a_time_out(desk)?;
    let mut listener = desk.listen()?;
    let standby = accept(&mut listener, B::PATIENCE)?;
    primary.wait()?;
    standby.map(drop).ok_or_else(|| "a primary connected, and `accept` answers `None`".to_owned())
}

pub(super) fn nobody_came_is_none<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    let mut listener = desk.listen()?;
    for _ in 0..2 {
        let look = desk.spawn("`accept` without a primary", move || {
            let link = accept(&mut listener, SHORT)?;
            Ok((link.is_some(), listener))
        });
        let (somebody, back) = look.wait()?;
        if somebody {
            return Err("nobody came, and `accept` answers a link".to_owned());
        }
        listener = back;
    }
    let mut pair = desk.pair(&mut listener)?;
    let ends = desk.open(&mut pair, "control")?;
    expect_both_ways(ends, "after looks that found nobody")
}

pub(super) fn both_ends_say_that_somebody_answers<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    let mut listener = desk.listen()?;
    let pair = desk.pair(&mut listener)?;
    for (link, side) in [(&pair.primary, "primary"), (&pair.standby, "standby")] {
        if !link.answers() {
            return Err(format!("`answers` is false on the {side}, and the other side is there"));
        }
        if link.peer().trim().is_empty() {
            return Err(format!("`peer` says nothing on the {side}"));
        }
    }
    Ok(())
}

pub(super) fn bytes_arrive_whole_and_in_order<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    const MANY: usize = 3000;
    let (_listener, _pair, near, far) = desk.one_channel("pages")?;
    let ways =
        [(near.0, far.1), (far.0, near.1)].into_iter().zip([3, 5]).map(|((mut tx, mut rx), stream)| {
            let sender = desk.spawn("the sender", move || Ok((send_stream(tx.as_mut(), stream, MANY)?, tx)));
            let receiver = desk.spawn("the receiver", move || {
                let all = stream_len(MANY);
                expect_stream(rx.as_mut(), stream, all).map(|()| rx)
            });
            (sender, receiver)
        });
    let ways: Vec<_> = ways.collect();
    for (sender, receiver) in ways {
        receiver.wait()?;
        sender.wait()?;
    }
    Ok(())
}

/// How much [`send_stream`] sends.
fn stream_len(many: usize) -> usize {
    let odd = (0..many).map(|n| (n * 37) % 211).sum::<usize>();
    super::wire::CUTS.into_iter().flatten().sum::<usize>() + odd
}

pub(super) fn channels_are_apart<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    let mut listener = desk.listen()?;
    let mut pair = desk.pair(&mut listener)?;
    let names = ["control", "pages", "disk:disk0", "disk:disk1", "net:net0"];
    let mut ends = Vec::new();
    for name in names {
        ends.push(desk.open(&mut pair, name)?);
    }
    // In turn, and then read channel after channel, the last one first.
    let talk = desk.spawn("talk on five channels", move || {
        for round in 0..20 {
            for (stream, ((near, _), (far, _))) in (0..5).zip(&mut ends) {
                for (tx, stream) in [(near, stream), (far, stream + 100)] {
                    let sent = tx.send(&[&bytes(stream, round * 50, 50)]);
                    sent.map_err(|e| format!("`send` failed: {}", e.chain()))?;
                }
            }
        }
        for (stream, ((_, near), (_, far))) in (0..5).zip(&mut ends).rev() {
            let what = |why| format!("on channel {:?}, {why}", names[stream as usize]);
            expect(far.as_mut(), stream, 0, 1000).map_err(what)?;
            expect(near.as_mut(), stream + 100, 0, 1000).map_err(what)?;
        }
        Ok(())
    });
    talk.wait()
}

pub(super) fn bulk_never_delays_control<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    let mut listener = desk.listen()?;
    let mut pair = desk.pair(&mut listener)?;
    let (mut control, mut far_control) = desk.open(&mut pair, "control")?;
    let ((pages, _near), _far_pages) = desk.open(&mut pair, "pages")?;
    let flood = desk.flood(pages);
    let beats = desk.spawn("a heartbeat beside a stuck channel", move || {
        for beat in 0..200 {
            for (tx, rx) in [(&mut control.0, &mut far_control.1), (&mut far_control.0, &mut control.1)] {
                let sent = tx.send(&[&bytes(beat, 0, 30)]);
                sent.map_err(|e| format!("`send` failed: {}", e.chain()))?;
                expect(rx.as_mut(), beat, 0, 30)?;
            }
        }
        Ok(())
    });
    let beaten = beats.wait();
    pair.primary.aborter().abort();
    pair.standby.aborter().abort();
    beaten.and_then(|()| flood.wait().map(drop))
}

pub(super) fn a_stuck_sender_still_hears<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    let (_listener, pair, (tx, mut rx), (mut far, _unread)) = desk.one_channel("pages")?;
    let flood = desk.flood(tx);
    let talk = desk.spawn("the other way of a stuck channel", move || {
        for round in 0..50 {
            let sent = far.send(&[&bytes(7, round * 30_000, 30_000)]);
            sent.map_err(|e| format!("`send` failed: {}", e.chain()))?;
            expect(rx.as_mut(), 7, round * 30_000, 30_000)?;
        }
        Ok(())
    });
    let talked = talk.wait();
    pair.primary.aborter().abort();
    pair.standby.aborter().abort();
    talked.and_then(|()| flood.wait().map(drop))
}

pub(super) fn a_route_leads_to_the_same_link<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    // A transport without routes is given the names alone.
    let route = desk.bench.route();
    let mut listener = desk.listen()?;
    let mut pair = desk.pair(&mut listener)?;
    let control = desk.open(&mut pair, "control")?;
    let disk = desk.open_at(&mut pair, "disk:disk0", route.as_deref())?;
    expect_both_ways(disk, "on a channel with a route")?;
    expect_both_ways(control, "beside a channel with a route")
}

pub(super) fn a_channel_that_never_comes_is_a_time_out<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    let mut listener = desk.listen()?;
    let mut pair = desk.pair(&mut listener)?;
    let control = desk.open(&mut pair, "control")?;
    let mut standby = pair.standby;
    let open = desk.spawn("`open` of a channel that never comes", move || {
        let done = standby.open("disk:never", None, SHORT);
        expect_code(done.map(drop), ErrorCode::TimedOut, "`open` of a channel that never comes")?;
        Ok(standby)
    });
    pair.standby = open.wait()?;
    expect_both_ways(control, "after an `open` that was in vain")?;
    let pages = desk.open(&mut pair, "pages")?;
    expect_both_ways(pages, "on a channel opened after one in vain")
}

pub(super) fn strangers_disturb_nobody<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    let mut listener = desk.listen()?;
    let words: [&[u8]; 4] = [b"", b"\x16", b"GET / HTTP/1.1\r\nHost: standby\r\n\r\n", &[0xff; 5000]];
    for (number, words) in (0..).zip(words.into_iter().chain([&b""[..]; 6])) {
        desk.bench.stranger(words);
        if number % 5 == 3 {
            let mut pair = desk.pair(&mut listener)?;
            let ends = desk.open(&mut pair, "control")?;
            expect_both_ways(ends, "beside strangers")?;
        }
    }
    if let Some(link) = accept(&mut listener, SHORT)? {
        return Err(format!("strangers came, and one of them, {}, became a link", link.peer()));
    }
    let mut pair = desk.pair(&mut listener)?;
    let ends = desk.open(&mut pair, "control")?;
    expect_both_ways(ends, "beside strangers")
}

pub(super) fn links_are_apart<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    let mut listener = desk.listen()?;
    let mut old = desk.pair(&mut listener)?;
    let (mut old_near, mut old_far) = desk.open(&mut old, "control")?;
    let mut new = desk.pair(&mut listener)?;
    let (near, far) = desk.open(&mut new, "control")?;
    let talk = desk.spawn("talk on two links", move || {
        for (tx, stream) in [(&mut old_near.0, 1), (&mut old_far.0, 2)] {
            tx.send(&[&bytes(stream, 0, 100)]).map_err(|e| format!("`send` failed: {}", e.chain()))?;
        }
        expect(old_far.1.as_mut(), 1, 0, 100)?;
        expect(old_near.1.as_mut(), 2, 0, 100)
    });
    talk.wait()?;
    old.standby.aborter().abort();
    old.primary.aborter().abort();
    expect_both_ways((near, far), "on the new link, when the old one was aborted")?;
    drop(old);
    let pages = desk.open(&mut new, "pages")?;
    expect_both_ways(pages, "on the new link, when the old one was dropped")
}

pub(super) fn a_listener_accepts_again<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    let mut listener = desk.listen()?;
    for round in 0..4 {
        let mut pair = desk.pair(&mut listener)?;
        let ends = desk.open(&mut pair, "control")?;
        expect_both_ways(ends, &format!("on link {} of a listener", round + 1))?;
        if round % 2 == 0 {
            pair.standby.aborter().abort();
        }
    }
    Ok(())
}

/// Bytes pass both ways.
pub(super) fn expect_both_ways(ends: (Channel, Channel), when: &str) -> Seen {
    let ((mut near_tx, mut near_rx), (mut far_tx, mut far_rx)) = ends;
    let passed = calmly("talk", || {
        for (tx, rx, stream) in [(&mut near_tx, &mut far_rx, 8), (&mut far_tx, &mut near_rx, 9)] {
            tx.send(&[&bytes(stream, 0, 100)]).map_err(|e| format!("`send` failed: {}", e.chain()))?;
            expect(rx.as_mut(), stream, 0, 100)?;
        }
        Ok(())
    });
    passed?.map_err(|why: String| format!("{when}, {why}"))
}
