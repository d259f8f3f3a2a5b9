//! The two ends of a link on lab hosts, told line by line what to do.
//!
//! A checkpoint as these ends send it: number, count of pages and sum of the pages, 8 bytes each, then the pages; on `pages`. Its
//! acknowledgement is its number, on `control`. Bulk is batches of pages behind a number; in a flood each page begins and ends with
//! its number. Pages are sent from lent memory and taken in such, where there is some. The last word of a line is its tag, which what
//! it says later begins with.

use crate::bench::Hosts;
use aventine_api::{
    Channel, ChannelRx, ChannelTx, LentMemory, Link, LinkAbort, Listener, PAGE_SIZE, PluginError, Side,
    Transport,
};
use aventine_conformance::form::Native;
use aventine_conformance::transport::TransportBench;
use std::collections::{HashMap, VecDeque};
use std::io::stdin;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use twox_hash::XxHash3_64;

/// Longest that anything may take: these machines are slow.
const LIMIT: Duration = Duration::from_secs(120);
/// Checkpoints that are not acknowledged.
const IN_FLIGHT: u64 = 4;
/// Names the configuration.
pub(crate) const CONFIG: &str = "AVENTINE_RDMA_CONFIG";

/// Pages of a batch, as the engine has them.
const BATCH: usize = 256;
/// Pages of a flood's.
const FLOOD: usize = 64;

/// Pages of checkpoint `number`: a few, now and then up to a megabyte.
fn pages_of(number: u64) -> u64 {
    if number % 50 == 7 { 16 + number % 241 } else { (number.wrapping_mul(0x9e37_79b9) >> 7) % 3 }
}

/// Memory that nobody lends.
struct Plain(Vec<u8>);

impl LentMemory for Plain {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Memory to send from.
fn memory(tx: &mut dyn ChannelTx, bytes: usize) -> Box<dyn LentMemory> {
    tx.memory(bytes).unwrap_or_else(|| Box::new(Plain(vec![0; bytes])))
}

/// What comes next, and whether it is lent.
fn next(rx: &mut dyn ChannelRx, bytes: usize) -> Result<(Box<dyn LentMemory>, bool), PluginError> {
    if let Some(lent) = rx.recv_lent(bytes)? {
        return Ok((lent, true));
    }
    let mut plain = vec![0; bytes];
    rx.recv(&mut plain)?;
    Ok((Box::new(Plain(plain)), false))
}

/// Fills pages so that no two are alike.
fn fill(memory: &mut [u8], seed: u64) {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in memory.chunks_exact_mut(8) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        word.copy_from_slice(&random.to_le_bytes());
    }
}

fn word(rx: &mut dyn ChannelRx) -> Result<u64, PluginError> {
    let mut bytes = [0; 8];
    rx.recv(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

struct End {
    transport: Box<dyn Transport>,
    listener: Option<Box<dyn Listener>>,
    link: Option<Box<dyn Link>>,
    abort: Option<Arc<dyn LinkAbort>>,
    channels: HashMap<String, Channel>,
    /// Buffers that are asked for.
    lends: usize,
}

impl End {
    fn new(side: Side) -> End {
        let transport = Hosts::<Native>::make(&std::env::var(CONFIG).unwrap(), side);
        End { transport, listener: None, link: None, abort: None, channels: HashMap::new(), lends: 8 }
    }

    fn take(&mut self, name: &str) -> Channel {
        self.channels.remove(name).unwrap()
    }

    fn carry_out(&mut self, line: &str) -> Result<String, PluginError> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = || words[1].parse::<u64>().unwrap();
        match words[0] {
            "listen" => self.listener = Some(self.transport.listen(&[])?),
            "accept" => self.link = self.listener.as_mut().unwrap().accept(LIMIT)?,
            "connect" => self.link = Some(self.transport.connect(LIMIT)?),
            "lend" => self.lends = number() as usize,
            "open" => {
                let link = self.link.as_mut().unwrap();
                self.abort = Some(link.aborter());
                let buffers = if words[1] == "pages" { self.lends } else { 0 };
                let channel = link.open_lending(words[1], None, LIMIT, buffers, BATCH * PAGE_SIZE)?;
                self.channels.insert(words[1].to_owned(), channel);
            }
            "abort" => self.abort.as_ref().unwrap().abort(),
            "drop" => {
                self.channels.clear();
                self.link = None;
            }
            "checkpoints" => return self.send_checkpoints(number()),
            "verify" => return self.verify_checkpoints(number()),
            "post" => self.post()?,
            "settle" => self.in_background(words[1], settle),
            "flood" => self.in_background(words[1], flood),
            "drain" => self.in_background(words[1], drain),
            "bulk" => return self.send_bulk(number(), words[2].parse().unwrap()),
            "sink" => return self.take_bulk(number()),
            "ask" => return self.ask(number()),
            "answer" => return self.answer(number()),
            other => panic!("{other}?"),
        }
        Ok(String::new())
    }

    fn in_background(&mut self, tag: &str, work: fn(Channel, &str) -> Result<(), PluginError>) {
        let (channel, tag) = (self.take("pages"), tag.to_owned());
        thread::spawn(move || {
            let ended = work(channel, &tag).unwrap_err();
            println!("{tag} failed: {:?} {}", ended.code(), ended.chain());
        });
    }

    fn send_checkpoints(&mut self, count: u64) -> Result<String, PluginError> {
        let ((mut tx, _rx), (_tx, mut acknowledged)) = (self.take("pages"), self.take("control"));
        let mut memory = memory(tx.as_mut(), BATCH * PAGE_SIZE);
        for number in 0..count {
            let data = &mut memory.bytes_mut()[..pages_of(number) as usize * PAGE_SIZE];
            fill(data, number + 1);
            let (data, sum) = (&*data, XxHash3_64::oneshot(data));
            let head = [number, pages_of(number), sum].map(u64::to_le_bytes).concat();
            let parts: Vec<&[u8]> = std::iter::once(&head[..]).chain(data.chunks(PAGE_SIZE)).collect();
            tx.send(&parts)?;
            tx.settle(0)?;
            if let Some(due) = number.checked_sub(IN_FLIGHT) {
                assert_eq!(word(acknowledged.as_mut())?, due);
            }
            if number % 500 == 0 {
                println!("sent {number}");
            }
        }
        for due in count - IN_FLIGHT..count {
            assert_eq!(word(acknowledged.as_mut())?, due);
        }
        Ok(format!("{count} acknowledged"))
    }

    fn verify_checkpoints(&mut self, count: u64) -> Result<String, PluginError> {
        let ((_tx, mut rx), (mut acknowledge, _rx)) = (self.take("pages"), self.take("control"));
        let mut lent = 0;
        for due in 0..count {
            let (number, pages, sum) = (word(rx.as_mut())?, word(rx.as_mut())?, word(rx.as_mut())?);
            assert_eq!((number, pages), (due, pages_of(due)));
            let (data, is_lent) = next(rx.as_mut(), pages as usize * PAGE_SIZE)?;
            lent += u64::from(is_lent);
            assert_eq!(XxHash3_64::oneshot(data.bytes()), sum, "checkpoint {number} is damaged");
            acknowledge.send(&[&number.to_le_bytes()])?;
        }
        Ok(format!("{count} whole, {lent} of them in lent memory"))
    }

    /// Sends `count` pages in batches of 256, hashed, as the engine does, and waits until they are there. So many batches may be
    /// read while the next one is hashed.
    fn send_bulk(&mut self, count: u64, unsettled: usize) -> Result<String, PluginError> {
        let (mut tx, mut rx) = self.take("pages");
        let memory = memory(tx.as_mut(), BATCH * PAGE_SIZE);
        let pages = memory.bytes().chunks(PAGE_SIZE);
        let begun = Instant::now();
        for _ in 0..count / 256 {
            let hash = XxHash3_64::oneshot(memory.bytes()).to_le_bytes();
            let parts: Vec<&[u8]> = std::iter::once(&hash[..]).chain(pages.clone()).collect();
            tx.send(&parts)?;
            tx.settle(unsettled)?;
        }
        word(rx.as_mut())?;
        let took = begun.elapsed();
        self.channels.insert("pages".to_owned(), (tx, rx));
        Ok(format!("{:.3} MB/s", (count * PAGE_SIZE as u64) as f64 / took.as_secs_f64() / 1e6))
    }

    /// Sends from memory that is gone when the device reads it.
    fn post(&mut self) -> Result<(), PluginError> {
        let (tx, _rx) = self.channels.get_mut("pages").unwrap();
        let mut memory = memory(tx.as_mut(), FLOOD * PAGE_SIZE);
        number_pages(memory.bytes_mut(), 0);
        tx.send(&[&(FLOOD as u64).to_le_bytes(), memory.bytes()])
    }

    fn take_bulk(&mut self, count: u64) -> Result<String, PluginError> {
        let (mut tx, mut rx) = self.take("pages");
        let mut batch = vec![0; BATCH * PAGE_SIZE];
        for _ in 0..count / 256 {
            word(rx.as_mut())?;
            if rx.recv_lent(batch.len())?.is_none() {
                rx.recv(&mut batch)?;
            }
        }
        tx.send(&[&[0; 8]])?;
        self.channels.insert("pages".to_owned(), (tx, rx));
        Ok(String::new())
    }

    /// Sends a page and waits for its acknowledgement, `count` times.
    fn ask(&mut self, count: u64) -> Result<String, PluginError> {
        let ((mut tx, _rx), (_tx, mut rx)) = (self.take("pages"), self.take("control"));
        let page = [0x5a; PAGE_SIZE];
        let mut took = Vec::new();
        for _ in 0..count {
            let begun = Instant::now();
            tx.send(&[&page])?;
            word(rx.as_mut())?;
            took.push(begun.elapsed());
        }
        took.sort();
        let micros = |part: usize| took[took.len() * part / 100].as_secs_f64() * 1e6;
        Ok(format!("p50 {:.1} us, p99 {:.1} us", micros(50), micros(99)))
    }

    fn answer(&mut self, count: u64) -> Result<String, PluginError> {
        let ((_tx, mut rx), (mut tx, _rx)) = (self.take("pages"), self.take("control"));
        let mut page = [0; PAGE_SIZE];
        for _ in 0..count {
            rx.recv(&mut page)?;
            tx.send(&[&[0; 8]])?;
        }
        Ok(String::new())
    }

    fn obey(mut self) {
        println!("here");
        for line in stdin().lines().map(Result::unwrap) {
            match self.carry_out(&line) {
                Ok(said) => println!("did {line}: {said}."),
                Err(error) => println!("no {line}: {:?} {}", error.code(), error.chain()),
            }
        }
        drop(self);
        println!("gone");
    }
}

/// Writes the numbers from `first` on into pages.
fn number_pages(pages: &mut [u8], first: u64) {
    for (number, page) in (first..).zip(pages.chunks_exact_mut(PAGE_SIZE)) {
        page[..8].copy_from_slice(&number.to_le_bytes());
        page[PAGE_SIZE - 8..].copy_from_slice(&number.to_le_bytes());
    }
}

/// Sends pages until that fails: each batch while the one before is read.
fn flood((mut tx, _rx): Channel, tag: &str) -> Result<(), PluginError> {
    let mut batches = [(); 2].map(|()| memory(tx.as_mut(), FLOOD * PAGE_SIZE));
    let mut number = 0;
    loop {
        let [batch, _] = &mut batches;
        number_pages(batch.bytes_mut(), number);
        number += FLOOD as u64;
        let head = number.to_le_bytes();
        let parts: Vec<&[u8]> = std::iter::once(&head[..]).chain(batch.bytes().chunks(PAGE_SIZE)).collect();
        tx.send(&parts)?;
        tx.settle(1)?;
        batches.reverse();
        println!("{tag} sent {number}");
    }
}

/// Waits until what was posted has been read.
fn settle((mut tx, _rx): Channel, _: &str) -> Result<(), PluginError> {
    tx.settle(0)
}

/// Takes what [`flood`] sends until that fails, and looks at each page. The last batches are kept, and looked at again when the
/// channel has gone: nothing comes late.
fn drain((tx, mut rx): Channel, tag: &str) -> Result<(), PluginError> {
    let (mut kept, mut taken) = (VecDeque::new(), 0);
    let ended = loop {
        let batch = word(rx.as_mut()).and_then(|end| Ok((end, next(rx.as_mut(), FLOOD * PAGE_SIZE)?)));
        let (end, (batch, is_lent)) = match batch {
            Ok(batch) => batch,
            Err(error) => break error,
        };
        taken += FLOOD as u64;
        assert_eq!(end, taken);
        look(end, batch.bytes());
        kept.push_back((end, batch));
        if kept.len() > 4 {
            kept.pop_front();
        }
        println!("{tag} took {end}");
        if is_lent {
            println!("{tag} lent {end}");
        }
    };
    drop((tx, rx));
    kept.iter().for_each(|(end, batch)| look(*end, batch.bytes()));
    Err(ended)
}

/// Whether these are the pages of a flood up to `end`.
fn look(end: u64, batch: &[u8]) {
    for (number, page) in (end - FLOOD as u64..).zip(batch.chunks_exact(PAGE_SIZE)) {
        let (first, last) = (&page[..8], &page[PAGE_SIZE - 8..]);
        assert!(first == number.to_le_bytes() && last == number.to_le_bytes(), "page {number} is damaged");
    }
}

#[test]
#[ignore = "an end of the other tests, on a lab host"]
fn primary() {
    End::new(Side::Primary).obey();
}

#[test]
#[ignore = "an end of the other tests, on a lab host"]
fn standby() {
    End::new(Side::Standby).obey();
}
