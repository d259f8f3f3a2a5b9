//! The cases of how links end.

use super::TransportBench;
use super::crash::Peer;
use super::desk::{Desk, Pending, accept, expect_code};
use super::passing::expect_both_ways;
use super::wire::{bytes, expect};
use crate::suite::Seen;
use aventine_api::{Channel, ChannelRx, ChannelTx, ErrorCode, Side};

pub(super) fn a_dropped_listener_is_gone<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    for round in 0..4 {
        let (listener, pair, near, far) = desk.one_channel("control")?;
        expect_both_ways((near, far), &format!("in life {} of a standby", round + 1))?;
        drop((listener, pair));
    }
    Ok(())
}

pub(super) fn abort_wakes_who_waits<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    for side in [Side::Primary, Side::Standby] {
        let mut listener = desk.listen()?;
        let mut pair = desk.pair(&mut listener)?;
        let control = desk.open(&mut pair, "control")?;
        let pages = desk.open(&mut pair, "pages")?;
        // Nobody reads `pages`, nobody writes `control`.
        let (link, (mut control, far_control), (pages, far_pages)) = match side {
            Side::Primary => (&pair.primary, control, pages),
            Side::Standby => (&pair.standby, (control.1, control.0), (pages.1, pages.0)),
        };
        let flood = desk.flood(pages.0);
        let receiver = desk.spawn("a `recv` that waited", move || {
            expect_code(control.1.recv(&mut [0; 8]), ErrorCode::PeerLost, "a `recv` that waited")
        });
        let abort = link.aborter();
        // The primary's `open` may succeed by itself.
        let mut standby = pair.standby;
        let opener = desk.spawn("an `open` that waited", move || {
            if side == Side::Standby {
                let opened = standby.open("disk:never", None, B::PATIENCE * 2);
                expect_code(opened.map(drop), ErrorCode::PeerLost, "an `open` that waited")?;
            }
            Ok(standby)
        });
        receiver.await_sleep();
        opener.await_sleep();
        desk.spawn("`abort`", move || {
            abort.abort();
            Ok(())
        })
        .wait()?;
        receiver.wait()?;
        let _standby = opener.wait()?;
        let (error, _) = flood.wait()?;
        expect_code::<()>(Err(error), ErrorCode::PeerLost, "a `send` that waited")?;
        drop((far_control, far_pages));
    }
    Ok(())
}

pub(super) fn abort_holds_for_ever<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    let (_listener, mut pair, mut near, (mut far, _)) = desk.one_channel("control")?;
    far.send(&[&bytes(1, 0, 100)]).map_err(|e| format!("`send` failed: {}", e.chain()))?;
    // The rest has arrived, or is on its way.
    expect(near.1.as_mut(), 1, 0, 10)?;
    let abort = pair.primary.aborter();
    for _ in 0..3 {
        abort.abort();
        pair.primary.aborter().abort();
        let ended = desk.spawn("a call after `abort`", move || {
            expect_code(
                near.1.recv(&mut [0; 10]),
                ErrorCode::PeerLost,
                "`recv` of what had arrived, after `abort`,",
            )?;
            expect_code(near.1.recv(&mut []), ErrorCode::PeerLost, "`recv` of nothing after `abort`")?;
            expect_code(near.0.send(&[b"late"]), ErrorCode::PeerLost, "`send` after `abort`")?;
            expect_code(near.0.send(&[]), ErrorCode::PeerLost, "`send` of nothing after `abort`")?;
            Ok(near)
        });
        near = ended.wait()?;
    }
    let mut primary = pair.primary;
    let opened = desk.spawn("`open` after `abort`", move || {
        expect_code(
            primary.open("late", None, B::PATIENCE).map(drop),
            ErrorCode::PeerLost,
            "`open` after `abort`",
        )?;
        Ok(primary)
    });
    pair.primary = opened.wait()?;
    Ok(())
}

pub(super) fn the_other_side_hears_of_an_end<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    for (side, aborts) in
        [(Side::Primary, true), (Side::Standby, true), (Side::Primary, false), (Side::Standby, false)]
    {
        let (_listener, pair, near, far) = desk.one_channel("control")?;
        let (link, mut own, other) = match side {
            Side::Primary => (pair.primary, near, far),
            Side::Standby => (pair.standby, far, near),
        };
        own.0.send(&[&bytes(4, 0, 100)]).map_err(|e| format!("`send` failed: {}", e.chain()))?;
        if aborts {
            link.aborter().abort();
        }
        drop((link, own));
        let how = if aborts { "aborted" } else { "dropped its end" };
        expect_lost(desk, other, 4).wait().map_err(|why| format!("the {} {how}, and {why}", side.name()))?;
    }
    Ok(())
}

/// What comes is what was sent, as far as it comes, and then both ends are `PeerLost`, and stay so.
fn expect_lost<B: TransportBench>(desk: &Desk<B>, (tx, rx): Channel, stream: u32) -> Pending<()> {
    desk.spawn("the other side's `recv` or `send`", move || lost(tx, rx, stream))
}

fn lost(mut tx: Box<dyn ChannelTx>, mut rx: Box<dyn ChannelRx>, stream: u32) -> Seen {
    let mut at = 0;
    let ended = loop {
        let mut byte = [0];
        match rx.recv(&mut byte) {
            Ok(()) if byte[..] == bytes(stream, at, 1) => at += 1,
            Ok(()) => return Err(format!("byte {at} that came is not what was sent")),
            Err(e) => break e,
        }
    };
    expect_code::<()>(Err(ended), ErrorCode::PeerLost, "`recv`")?;
    expect_code(rx.recv(&mut [0]), ErrorCode::PeerLost, "a second `recv`")?;
    // A few may be on their way before the end is known.
    let block = vec![0; 1 << 16];
    let failed = loop {
        if let Err(e) = tx.send(&[&block]) {
            break e;
        }
    };
    expect_code::<()>(Err(failed), ErrorCode::PeerLost, "`send`")?;
    expect_code(tx.send(&[&block]), ErrorCode::PeerLost, "a second `send`")
}

pub(super) fn a_killed_standby_is_lost<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    let peer = Peer::start(desk, Side::Standby)?;
    let mut link = desk.connect().wait()?;
    let opened = desk.spawn("`open`", move || {
        let ends = link.open("control", None, B::PATIENCE);
        Ok((ends.map_err(|e| format!("`open` failed: {}", e.chain()))?, link))
    });
    let (ends, _link) = opened.wait()?;
    expect_death(desk, peer, ends)
}

pub(super) fn a_killed_primary_is_lost<B: TransportBench>(desk: &mut Desk<B>) -> Seen {
    let mut listener = desk.listen()?;
    let peer = Peer::start(desk, Side::Primary)?;
    let mut link =
        accept(&mut listener, B::PATIENCE)?.ok_or("a primary connects, and `accept` answers `None`")?;
    let ends =
        link.open("control", None, B::PATIENCE).map_err(|e| format!("`open` failed: {}", e.chain()))?;
    expect_death(desk, peer, ends)?;
    drop(link);
    let mut pair = desk.pair(&mut listener)?;
    let ends = desk.open(&mut pair, "control")?;
    expect_both_ways(ends, "after a primary was killed")
}

/// The peer is heard, and after it was killed it is lost.
fn expect_death<B: TransportBench>(desk: &Desk<B>, mut peer: Peer, (tx, mut rx): Channel) -> Seen {
    let heard = desk.spawn("`recv` of what the peer says", move || {
        expect(rx.as_mut(), super::crash::STREAM, 0, super::crash::SAYS)?;
        Ok(rx)
    });
    let rx = heard.wait()?;
    peer.kill()?;
    let ended = expect_lost(desk, (tx, rx), super::crash::STREAM);
    ended.wait().map_err(|why| format!("the peer was killed, and {why}"))
}
