//! The cases. What each rule means is told in the table of [`super::rules`].

use super::RecorderBench;
use super::desk::{Desk, expect_lost, open, receive};
use crate::suite::Seen;
use crate::transport::wire::{bytes, send_stream};
use std::thread;
use std::time::Duration;

pub(super) fn it_connects_to_nobody<B: RecorderBench>(desk: &mut Desk<B>) -> Seen {
    let link = desk.connect()?;
    if link.answers() {
        return Err("`answers` is true, and nobody is there".to_owned());
    }
    if link.peer().trim().is_empty() {
        return Err("`peer` says nothing".to_owned());
    }
    Ok(())
}

pub(super) fn what_is_sent_is_recorded<B: RecorderBench>(desk: &mut Desk<B>) -> Seen {
    let mut link = desk.connect()?;
    let mut expected = Vec::new();
    let mut ends = Vec::new();
    for name in ["control", "pages", "disk:disk0"] {
        ends.push(open(&mut link, name)?);
        expected.push((name.to_owned(), 0));
    }
    for ((stream, (tx, _)), (_, len)) in (0..).zip(&mut ends).zip(&mut expected) {
        *len = send_stream(tx.as_mut(), stream, 3000)?;
    }
    // In turn, after all that.
    for ((stream, (tx, _)), (_, len)) in (0..).zip(&mut ends).zip(&mut expected) {
        tx.send(&[&bytes(stream, *len, 500)]).map_err(|e| format!("`send` failed: {}", e.chain()))?;
        *len += 500;
    }
    let recorded = desk.bench.recorded();
    let names = |all: Vec<String>| all.join(", ");
    let (is, due) = (recorded.iter().map(|r| r.0.clone()), expected.iter().map(|e| e.0.clone()));
    let (is, due) = (names(is.collect()), names(due.collect()));
    if is != due {
        return Err(format!("the channels {due} were opened, and {is} are recorded"));
    }
    for ((stream, (name, is)), (_, len)) in (0..).zip(&recorded).zip(&expected) {
        if is.len() != *len || *is != bytes(stream, 0, *len) {
            let is = is.len();
            return Err(format!(
                "of channel {name}, {is} bytes are recorded that are not the {len} that were sent"
            ));
        }
    }
    Ok(())
}

pub(super) fn nothing_ever_comes<B: RecorderBench>(desk: &mut Desk<B>) -> Seen {
    let mut link = desk.connect()?;
    let (mut tx, rx) = open(&mut link, "control")?;
    let answer = receive(rx);
    for _ in 0..200 {
        tx.send(&[b"is anybody there?"]).map_err(|e| format!("`send` failed: {}", e.chain()))?;
        if let Ok(early) = answer.try_recv() {
            let how = early.map_or_else(|e| e.chain(), |()| "a byte came, and nobody is there".to_owned());
            return Err(format!("`recv` ended before the link did: {how}"));
        }
    }
    link.aborter().abort();
    match answer.recv_timeout(B::PATIENCE) {
        Ok(Ok(())) => Err("a byte came, and nobody is there".to_owned()),
        Ok(ended) => expect_lost(ended, "a `recv` that waited"),
        Err(_) => Err("`recv` did not end with the link, or panicked".to_owned()),
    }
}

pub(super) fn abort_wakes_who_waits<B: RecorderBench>(desk: &mut Desk<B>) -> Seen {
    let mut link = desk.connect()?;
    let (_tx, rx) = open(&mut link, "control")?;
    let (_also, other) = open(&mut link, "pages")?;
    let answers = [receive(rx), receive(other)];
    let abort = link.aborter();
    thread::spawn(move || abort.abort());
    for answer in answers {
        let ended = answer.recv_timeout(B::PATIENCE);
        expect_lost(
            ended.map_err(|_| "a `recv` that waited did not end".to_owned())?,
            "a `recv` that waited",
        )?;
    }
    Ok(())
}

pub(super) fn abort_holds_for_ever<B: RecorderBench>(desk: &mut Desk<B>) -> Seen {
    let mut link = desk.connect()?;
    let (mut tx, rx) = open(&mut link, "control")?;
    tx.send(&[b"early"]).map_err(|e| format!("`send` failed: {}", e.chain()))?;
    for _ in 0..2 {
        link.aborter().abort();
        expect_lost(tx.send(&[b"late"]), "`send` after `abort`")?;
        expect_lost(tx.send(&[]), "`send` of nothing after `abort`")?;
        expect_lost(link.open("late", None, Duration::ZERO).map(drop), "`open` after `abort`")?;
    }
    let ended = receive(rx).recv_timeout(B::PATIENCE);
    expect_lost(ended.map_err(|_| "`recv` after `abort` did not end".to_owned())?, "`recv` after `abort`")?;
    match desk.bench.recorded().as_slice() {
        [(_, bytes)] if bytes == b"early" => Ok(()),
        other => Err(format!("after `abort` there is more in the record than before: {other:?}")),
    }
}
