//! The cases. What each rule means is told in the table of [`super::rules`].

use super::CodecBench;
use super::damage::damaged;
use super::desk::{Desk, GUEST, REGIONS};
use super::pages::{CONTENTS, Content, Shape, any_shape, count};
use crate::suite::{Seen, calmly};
use aventine_api::{ErrorCode, PAGE_SIZE, PluginError};

/// How many damaged payloads a case tries.
const DAMAGES: u32 = 1500;

/// The shapes that codecs go wrong at.
fn shapes() -> Vec<Shape> {
    let single = [0, 1, 39, 40, 41, GUEST - 1].map(|page| vec![(page, 1)]);
    let mut shapes = single.to_vec();
    shapes.extend(REGIONS.map(|r| vec![(r.start, r.end - r.start)]));
    shapes.push(vec![(5, 1), (6, 1), (7, 3), (10, 2)]);
    shapes.push(vec![(0, 1), (GUEST - 1, 1)]);
    shapes.push((0..GUEST).step_by(2).map(|page| (page, 1)).collect());
    shapes.push((0..GUEST).map(|page| (page, 1)).collect());
    shapes.push(vec![(0, GUEST)]);
    shapes
}

pub(super) fn what_is_encoded_is_decoded<B: CodecBench>(desk: &mut Desk<B>) -> Seen {
    for batch in 0..150 {
        let shape = any_shape(&mut desk.dice, GUEST);
        for run in &shape {
            let content = CONTENTS[desk.dice.below(CONTENTS.len())];
            desk.write(&vec![*run], content);
        }
        desk.transfer(&shape, &format!("after batch {batch} of {shape:?}"))?;
    }
    Ok(())
}

pub(super) fn every_shape_of_batch_arrives<B: CodecBench>(desk: &mut Desk<B>) -> Seen {
    for shape in shapes() {
        for content in CONTENTS {
            desk.write(&shape, content);
            desk.transfer(&shape, &format!("after {content:?} in {shape:?}"))?;
        }
    }
    Ok(())
}

pub(super) fn nothing_is_assumed_of_memory<B: CodecBench>(desk: &mut Desk<B>) -> Seen {
    for (seed, content) in (10..).zip([Content::Zeros, Content::Same, Content::Text, Content::Same]) {
        desk.new_link(seed);
        desk.write(&vec![(0, GUEST)], content);
        let shape = vec![(3, 5), (20, 1), (36, 9)];
        desk.transfer(&shape, &format!("after {content:?} in {shape:?}, the first batch of a link"))?;
        let all = vec![(0, GUEST)];
        desk.transfer(&all, &format!("after {content:?} in {all:?}, the second batch of a link"))?;
    }
    Ok(())
}

pub(super) fn other_pages_stay<B: CodecBench>(desk: &mut Desk<B>) -> Seen {
    for shape in [vec![(7, 1)], vec![(40, 1)], vec![(12, 3), (16, 1), (60, 2)], vec![(39, 1), (41, 1)]] {
        for content in CONTENTS {
            desk.write(&shape, content);
            desk.transfer(&shape, &format!("after a batch of {shape:?}"))?;
        }
    }
    Ok(())
}

pub(super) fn runs_cross_regions<B: CodecBench>(desk: &mut Desk<B>) -> Seen {
    for shape in [vec![(38, 6)], vec![(39, 2)], vec![(40, 2)], vec![(0, GUEST)]] {
        for content in CONTENTS {
            desk.write(&shape, content);
            desk.transfer(&shape, &format!("after a run that crosses a region's end: {shape:?}"))?;
        }
    }
    Ok(())
}

pub(super) fn payloads_are_bounded<B: CodecBench>(desk: &mut Desk<B>) -> Seen {
    for shape in shapes() {
        // Twice each: a codec that knows the page already has other ways to spend bytes.
        for content in CONTENTS.into_iter().flat_map(|c| [c, c]) {
            desk.write(&shape, content);
            let payload = desk.encode(&shape)?;
            let most = count(&shape) as usize * PAGE_SIZE + 64 * shape.len();
            if payload.len() > most {
                let is = payload.len();
                return Err(format!(
                    "the payload of {content:?} in {shape:?} has {is} bytes; the most is {most}"
                ));
            }
        }
    }
    Ok(())
}

pub(super) fn encode_appends<B: CodecBench>(desk: &mut Desk<B>) -> Seen {
    let shape = vec![(8, 3), (50, 1)];
    for content in CONTENTS {
        desk.write(&shape, content);
        let out = desk.encode_after(&[b"of somebody", b"else"], &shape)?;
        let (before, payload) = out.split_at(2.min(out.len()));
        if before != [b"of somebody".to_vec(), b"else".to_vec()] {
            return Err("what was in `out` before is gone".to_owned());
        }
        let payload = payload.concat();
        desk.check(&payload, &shape)?;
        desk.decode(&payload)?;
        desk.compare("after a batch that was appended")?;
    }
    Ok(())
}

pub(super) fn a_batch_without_pages_changes_nothing<B: CodecBench>(desk: &mut Desk<B>) -> Seen {
    let some = vec![(2, 2), (40, 3)];
    for content in [Content::Noise, Content::Touched, Content::Touched] {
        desk.transfer(&Vec::new(), "after a batch without pages")?;
        desk.write(&some, content);
        desk.transfer(&some, "after a batch that followed one without pages")?;
    }
    desk.transfer(&Vec::new(), "after a batch without pages")
}

pub(super) fn pages_are_counted<B: CodecBench>(desk: &mut Desk<B>) -> Seen {
    for shape in shapes() {
        for content in CONTENTS {
            desk.write(&shape, content);
            let payload = desk.encode(&shape)?;
            desk.check(&payload, &shape)?;
            desk.decode(&payload)?;
        }
    }
    Ok(())
}

pub(super) fn checks_run_ahead<B: CodecBench>(desk: &mut Desk<B>) -> Seen {
    for round in 0..8 {
        let mut batches = Vec::new();
        for _ in 0..6 {
            let shape = any_shape(&mut desk.dice, GUEST);
            let content = CONTENTS[desk.dice.below(2)];
            desk.write(&shape, content);
            batches.push((desk.encode(&shape)?, shape));
        }
        batches.iter().try_for_each(|(payload, shape)| desk.check(payload, shape))?;
        batches.iter().try_for_each(|(payload, _)| desk.decode(payload))?;
        desk.compare(&format!("after six batches that were checked, then decoded, in round {round}"))?;
    }
    Ok(())
}

pub(super) fn pages_out_of_range_are_refused<B: CodecBench>(desk: &mut Desk<B>) -> Seen {
    for shape in [vec![(0, 1)], vec![(9, 1)], vec![(2, 3), (8, 4)], vec![(0, GUEST)], vec![(GUEST - 1, 1)]] {
        for content in CONTENTS {
            desk.new_link(1);
            desk.write(&shape, content);
            let payload = desk.encode(&shape)?;
            let end = shape.last().map_or(0, |(first, pages)| first + pages);
            for guest_pages in [0, 1, end / 2, end - 1].into_iter().filter(|pages| *pages < end) {
                desk.standby_after(&[])?;
                match calmly("`check`", || desk.standby.check(&payload, guest_pages))? {
                    Err(e) if e.code() == ErrorCode::Corrupt => {}
                    Err(e) => return Err(format!("`check` refused, but not as `Corrupt`: {}", told(&e))),
                    Ok(_) => {
                        return Err(format!("`check` passed {shape:?} for a guest of {guest_pages} pages"));
                    }
                }
            }
            desk.standby_after(&[])?;
            let passed = calmly("`check`", || desk.standby.check(&payload, end))?;
            passed
                .map_err(|e| format!("`check` refused {shape:?} for a guest of {end} pages: {}", told(&e)))?;
        }
    }
    Ok(())
}

pub(super) fn damage_never_panics<B: CodecBench>(desk: &mut Desk<B>) -> Seen {
    each_damage(desk, |_, payload, _, checked| match checked {
        Err(e) if e.code() != ErrorCode::Corrupt => {
            let bytes = payload.len();
            Err(format!("`check` of {bytes} damaged bytes failed, but not as `Corrupt`: {}", told(&e)))
        }
        _ => Ok(()),
    })
}

pub(super) fn what_passes_can_be_decoded<B: CodecBench>(desk: &mut Desk<B>) -> Seen {
    each_damage(desk, |desk, payload, _, checked| checked.map_or(Ok(()), |_| desk.decode(payload)))
}

pub(super) fn what_passes_keeps_to_its_count<B: CodecBench>(desk: &mut Desk<B>) -> Seen {
    each_damage(desk, |desk, payload, guest_pages, checked| {
        let Ok(counted) = checked else { return Ok(()) };
        desk.asked();
        desk.decode(payload)?;
        let asked = desk.asked();
        if asked.count() > counted {
            return Err(format!("`check` counted {counted} pages, and `decode` asked for {}", asked.count()));
        }
        match asked.runs_from(guest_pages).next() {
            Some((page, _)) => {
                Err(format!("`decode` asked for page {page} of a guest of {guest_pages} pages"))
            }
            None => Ok(()),
        }
    })
}

pub(super) fn a_sinks_error_is_told<B: CodecBench>(desk: &mut Desk<B>) -> Seen {
    let shape = vec![(1, 1), (30, 4), (70, 2)];
    // As a page can be asked for more than once, the first answer is the only one that every codec needs.
    for content in [Content::Noise, Content::Touched, Content::Zeros] {
        desk.new_link(1);
        desk.write(&shape, content);
        let payload = desk.encode(&shape)?;
        desk.check(&payload, &shape)?;
        desk.fail_after(Some(0));
        if calmly("`decode`", || desk.standby.decode(&payload, &mut desk.image))?.is_ok() {
            return Err(format!("the sink gave no page of {shape:?}, and `decode` says that all is well"));
        }
        // The last of three runs at the latest.
        desk.standby_after(&[])?;
        desk.check(&payload, &shape)?;
        desk.fail_after(Some(2));
        if calmly("`decode`", || desk.standby.decode(&payload, &mut desk.image))?.is_ok() {
            return Err(format!("the sink failed within {shape:?}, and `decode` says that all is well"));
        }
    }
    Ok(())
}

/// Damages payloads: those of a link's first batch, and those that follow others. Each is checked by a codec that has
/// decoded all before it.
fn each_damage<B: CodecBench>(
    desk: &mut Desk<B>,
    mut then: impl FnMut(&mut Desk<B>, &[u8], u64, Result<u64, PluginError>) -> Seen,
) -> Seen {
    let shapes = [vec![(4, 1)], vec![(0, 2), (39, 3), (90, 1)], vec![(6, 1), (7, 1), (8, 2)], vec![(40, 12)]];
    let mut history = Vec::new();
    for (shape, content) in shapes.iter().zip([Content::Noise, Content::Zeros, Content::Text, Content::Noise])
    {
        desk.write(shape, content);
        history.push(desk.encode(shape)?);
    }
    for shape in &shapes {
        desk.write(shape, Content::Touched);
        history.push(desk.encode(shape)?);
    }
    history.push(Vec::new());
    for number in 0..DAMAGES {
        let at = desk.dice.below(history.len());
        let payload = damaged(&history[at], &mut desk.dice);
        desk.standby_after(&history[..at])?;
        let guest_pages = [GUEST, 50, 9][desk.dice.below(3)];
        let checked = calmly("`check`", || desk.standby.check(&payload, guest_pages));
        let checked = checked.map_err(|why| format!("damaged payload {number}: {why}"))?;
        then(desk, &payload, guest_pages, checked)
            .map_err(|why| format!("damaged payload {number}: {why}"))?;
    }
    Ok(())
}

fn told(error: &PluginError) -> String {
    format!("{:?}, {}", error.code(), error.chain())
}
