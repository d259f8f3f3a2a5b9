//! The rules, for any front-end.

use crate::{Durable, Frontend, Refused, Running, Verb};
use aventine_api::{BlockDevice, ErrorCode};
use std::sync::atomic::Ordering;

/// Bytes of the device, where a rule does not need a larger one.
const SIZE: usize = 1 << 20;

/// What a rule is, and what tries it.
type Rule = (&'static str, fn(&'static Frontend));

const RULES: [Rule; 10] = [
    ("a read sees the device", reads),
    ("a write reaches the device", writes),
    ("what must be durable is", durable),
    ("a flush reaches the device", flushes),
    ("a discard reaches the device", discards),
    ("zeroes may be holes where the client says so", zeroes),
    ("what is not aligned is refused, or carried out", unaligned),
    ("what is out of range is refused and changes nothing", out_of_range),
    ("the largest request is carried out and a larger one refused", too_large),
    ("the device's errors reach the client, and end nothing", failures),
];

pub(crate) fn keeps_every_rule(frontend: &'static Frontend) {
    for (rule, check) in RULES {
        println!("{rule}");
        check(frontend);
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8).wrapping_add(seed)).collect()
}

fn fill(run: &Running, seed: u8) -> Vec<u8> {
    let data = pattern(run.device.contents().len(), seed);
    run.device.write(0, &data, true).unwrap();
    data
}

fn reads(frontend: &'static Frontend) {
    let run = Running::new(frontend, SIZE);
    let data = fill(&run, 1);
    let mut client = run.served.connect(Durable::No);
    let block = frontend.block();
    for (at, len) in [(0, block), (block, 4096), (SIZE - block, block), (0, SIZE)] {
        let read = client.ask(Verb::Read { at: at as u64, len });
        assert!(read.unwrap() == data[at..at + len], "{at}+{len}");
    }
}

fn writes(frontend: &'static Frontend) {
    let run = Running::new(frontend, SIZE);
    let mut expected = fill(&run, 2);
    let mut client = run.served.connect(Durable::No);
    let block = frontend.block();
    for (at, len) in [(block, block), (8192, 64 << 10), (SIZE - block, block)] {
        let data = pattern(len, at as u8);
        client.ask(Verb::Write { at: at as u64, data: &data }).unwrap();
        expected[at..at + len].copy_from_slice(&data);
        assert!(run.device.contents() == expected, "{at}+{len}");
    }
    assert_eq!(run.device.unsynced.load(Ordering::SeqCst), 3, "nobody asked for stable storage");
    assert!(client.ask(Verb::Read { at: 0, len: SIZE }).unwrap() == expected);
}

fn durable(frontend: &'static Frontend) {
    let run = Running::new(frontend, SIZE);
    let mut client = run.served.connect(Durable::Yes);
    let data = pattern(8192, 3);
    let len = frontend.block() as u64;
    for verb in [
        Verb::Write { at: 0, data: &data },
        Verb::Zeroes { at: 0, len, may_unmap: true },
        Verb::Zeroes { at: 0, len, may_unmap: false },
        Verb::Discard { at: 4096, len },
    ] {
        client.ask(verb).unwrap();
        assert_eq!(run.device.unsynced.load(Ordering::SeqCst), 0, "{verb:?}");
    }
}

fn flushes(frontend: &'static Frontend) {
    let run = Running::new(frontend, SIZE);
    let mut client = run.served.connect(Durable::No);
    client.ask(Verb::Write { at: 0, data: &[1; 4096] }).unwrap();
    assert_eq!(run.device.unsynced.load(Ordering::SeqCst), 1);
    client.ask(Verb::Flush).unwrap();
    assert_eq!(run.device.unsynced.load(Ordering::SeqCst), 0);
    assert_eq!(run.device.flushes.load(Ordering::SeqCst), 1);
}

fn discards(frontend: &'static Frontend) {
    let run = Running::new(frontend, SIZE);
    let mut expected = fill(&run, 4);
    let mut client = run.served.connect(Durable::No);
    let at = 2 * frontend.block();
    client.ask(Verb::Discard { at: at as u64, len: 8192 }).unwrap();
    expected[at..at + 8192].fill(0);
    assert!(run.device.contents() == expected);
    assert_eq!(*run.device.unmapped.lock().unwrap(), None, "it is no write of zeroes");
}

fn zeroes(frontend: &'static Frontend) {
    let run = Running::new(frontend, SIZE);
    let mut expected = fill(&run, 5);
    let mut client = run.served.connect(Durable::No);
    for (at, may_unmap) in [(frontend.block(), false), (3 * 4096, true)] {
        client.ask(Verb::Zeroes { at: at as u64, len: 4096, may_unmap }).unwrap();
        expected[at..at + 4096].fill(0);
        assert!(run.device.contents() == expected);
        assert_eq!(*run.device.unmapped.lock().unwrap(), Some(may_unmap));
    }
}

fn unaligned(frontend: &'static Frontend) {
    let run = Running::new(frontend, SIZE);
    let mut expected = fill(&run, 6);
    let mut client = run.served.connect(Durable::No);
    let (write, read) =
        (client.ask(Verb::Write { at: 512, data: &[7; 100] }), Verb::Read { at: 0, len: 700 });
    if frontend.unit == 1 {
        write.unwrap();
        expected[512..612].fill(7);
        assert_eq!(client.ask(read).unwrap(), expected[..700]);
        client.ask(Verb::Zeroes { at: 3, len: 5, may_unmap: true }).unwrap();
        expected[3..8].fill(0);
    } else {
        assert_eq!((write, client.ask(read)), (Err(Refused), Err(Refused)));
        if frontend.unit > 512 {
            // Whole sectors are not whole blocks, neither where they begin nor in length.
            for verb in [
                Verb::Write { at: 512, data: &[7; 4096] },
                Verb::Write { at: 0, data: &[7; 512] },
                Verb::Discard { at: 512, len: 4096 },
                Verb::Zeroes { at: 0, len: 512, may_unmap: true },
            ] {
                assert_eq!(client.ask(verb), Err(Refused), "{verb:?}");
            }
        }
    }
    assert!(run.device.contents() == expected);
}

fn out_of_range(frontend: &'static Frontend) {
    let run = Running::new(frontend, SIZE);
    let before = fill(&run, 8);
    let mut client = run.served.connect(Durable::No);
    let (end, block) = (SIZE as u64, frontend.block() as u64);
    // The last block of all that a number can name.
    let last = u64::MAX - (block - 1);
    for at in [end - block, end, end + block, last - block, last] {
        let len = if at == end - block || at == last - block { 2 * block } else { block } as usize;
        for verb in [
            Verb::Read { at, len },
            Verb::Write { at, data: &[9; 8192][..len] },
            Verb::Discard { at, len: len as u64 },
            Verb::Zeroes { at, len: len as u64, may_unmap: false },
            Verb::Zeroes { at, len: len as u64, may_unmap: true },
        ] {
            assert_eq!(client.ask(verb), Err(Refused), "{verb:?}");
        }
    }
    assert!(run.device.contents() == before);
    assert!(client.ask(Verb::Read { at: 0, len: SIZE }).unwrap() == before, "it goes on");
}

fn too_large(frontend: &'static Frontend) {
    let run = Running::new(frontend, 66 << 20);
    let block = frontend.block();
    let mut client = run.served.connect(Durable::No);
    let data = pattern(frontend.limit + block, 10);
    client.ask(Verb::Write { at: block as u64, data: &data[..frontend.limit] }).unwrap();
    assert!(run.device.contents()[block..block + frontend.limit] == data[..frontend.limit]);
    let read = client.ask(Verb::Read { at: block as u64, len: frontend.limit });
    assert!(read.unwrap() == data[..frontend.limit]);

    let before = run.device.contents();
    assert_eq!(client.ask(Verb::Write { at: 0, data: &data }), Err(Refused));
    assert_eq!(client.ask(Verb::Read { at: 0, len: data.len() }), Err(Refused));
    let more = frontend.clear_limit + block as u64;
    if more < 66 << 20 {
        assert_eq!(client.ask(Verb::Discard { at: 0, len: more }), Err(Refused));
        assert_eq!(client.ask(Verb::Zeroes { at: 0, len: more, may_unmap: true }), Err(Refused));
    }
    assert!(run.device.contents() == before);
    assert!(client.ask(Verb::Read { at: 0, len: block }).unwrap() == before[..block], "it goes on");
}

fn failures(frontend: &'static Frontend) {
    let run = Running::new(frontend, SIZE);
    let mut client = run.served.connect(Durable::No);
    let verbs = [
        Verb::Read { at: 0, len: 4096 },
        Verb::Write { at: 0, data: &[1; 4096] },
        Verb::Flush,
        Verb::Discard { at: 0, len: 4096 },
        Verb::Zeroes { at: 0, len: 4096, may_unmap: true },
    ];
    for code in [ErrorCode::Io, ErrorCode::Refused, ErrorCode::Limit] {
        run.device.fail(Some(code));
        for verb in verbs {
            assert_eq!(client.ask(verb), Err(Refused), "{verb:?}");
        }
    }
    run.device.fail(None);
    for verb in verbs {
        client.ask(verb).unwrap();
    }
}
