//! Seeds of the fuzz targets, and their replay in ordinary tests.
//!
//! ```text
//! CRATE/src/fuzz.rs            one function for each target: bytes in, properties asserted; only with `cfg(fuzzing)` or
//!                              `cfg(test)`, so nothing of it is in the program
//! tests/fuzz/seeds/TARGET/     inputs that reach into the target; made by its test, and compared with the test's
//! tests/fuzz/libfuzzer/        the cargo-fuzz package around the functions, a workspace of its own
//! ```
//! Each target's crate replays the seeds and mutations of them with [`replay`]: always the same ones, in any build.
//! `cargo xtask fuzz` looks for more with libFuzzer. An input that it finds becomes a file in the seeds, and a test
//! beside the code that it broke.
//!
//! To change seeds, change them in the target's test and run it with `AVENTINE_WRITE_SEEDS=1`.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

/// Mutations of each seed that [`replay`] tries.
const MUTATIONS: u32 = 2_000;
/// Longest input that a mutation makes, in bytes.
const LONGEST: usize = 64 << 10;
/// Values that parsers stumble over.
const EDGES: [u64; 10] =
    [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX >> 1, u64::MAX];

/// Runs a target on every seed and on mutations of each. `made` are the seeds that the caller can make; the files must
/// hold the same bytes.
///
/// # Panics
/// When the target does, after having printed the input, and when the files are not those of `made`.
pub fn replay(target: &str, made: &[(&str, Vec<u8>)], run: impl Fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let write = std::env::var_os("AVENTINE_WRITE_SEEDS").is_some();
    for (name, bytes) in made {
        let file = dir.join(name);
        if write {
            fs::create_dir_all(&dir).and_then(|()| fs::write(&file, bytes)).expect("seeds can be written");
        }
        let stored = fs::read(&file).unwrap_or_default();
        assert!(stored == *bytes, "{} is out of date; run with AVENTINE_WRITE_SEEDS=1", file.display());
    }
    let mut files: Vec<PathBuf> = fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.expect("a directory can be listed").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no seeds", dir.display());
    let seeds: Vec<Vec<u8>> = files.iter().map(|f| fs::read(f).expect("a seed can be read")).collect();
    for (number, seed) in seeds.iter().enumerate() {
        try_one(&run, &files[number], 0, seed);
        let mut random = Random(number as u64 + 1);
        for mutation in 1..=MUTATIONS {
            let mut bytes = seed.clone();
            for _ in 0..=random.below(4) {
                mutate(&mut bytes, &seeds, &mut random);
            }
            bytes.truncate(LONGEST);
            try_one(&run, &files[number], mutation, &bytes);
        }
    }
}

fn try_one(run: &impl Fn(&[u8]), seed: &Path, mutation: u32, bytes: &[u8]) {
    let shown = Shown { seed, mutation, bytes };
    run(bytes);
    std::mem::forget(shown);
}

/// Tells what was tried, if trying it panicked.
struct Shown<'a> {
    seed: &'a Path,
    mutation: u32,
    bytes: &'a [u8],
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        let Shown { seed, mutation, bytes } = self;
        eprintln!("{}, mutation {mutation}: b\"{}\"", seed.display(), bytes.escape_ascii());
    }
}

/// SplitMix64: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`, which is not zero.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

fn mutate(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let len = random.below(16).min(bytes.len() - at);
    match random.below(8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = random.next() as u8,
        2 => drop(bytes.drain(at..at + len)),
        3 => bytes.truncate(at),
        4 => drop(bytes.splice(at..at, bytes[at..at + len].to_vec())),
        5 => {
            let value = EDGES[random.below(EDGES.len())];
            let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
            let coded =
                if random.below(2) == 0 { value.to_le_bytes() } else { value.swap_bytes().to_le_bytes() };
            bytes[at..at + width].copy_from_slice(&coded[..width]);
        }
        6 => {
            let other = &seeds[random.below(seeds.len())];
            let from = random.below(other.len() + 1);
            bytes.splice(at..at + len, other[from..].iter().copied());
        }
        _ => bytes.insert(at, random.next() as u8),
    }
}
