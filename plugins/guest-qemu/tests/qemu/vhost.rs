//! A disk behind vhost-user-blk writes guest memory from this process, where no page table of QEMU's shows it.

use crate::lab::{
    BUFFER, Lab, Program, Replica, boot_disk, command, copy_pages, counter, difference, memory, new_guest,
    ok, region, until, until_counting,
};
use crate::standby::fill;
use aventine_api::{Attachments, BlockDevice, DiskAttachment, PageBitmap, PluginError, Side};
use aventine_export_vhost::{FileId, Part, VhostExport};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the guest boots from; it never writes it.
struct BootDisk(Vec<u8>);

impl BlockDevice for BootDisk {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), PluginError> {
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8], _: bool) -> Result<(), PluginError> {
        panic!("the guest writes its disk")
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), PluginError> {
        panic!("the guest writes its disk")
    }

    fn trim(&self, _: u64, _: u64) -> Result<(), PluginError> {
        panic!("the guest writes its disk")
    }

    fn flush(&self) -> Result<(), PluginError> {
        Ok(())
    }
}

/// A guest that boots from a vhost-user disk.
struct Served {
    lab: Lab,
    disk: VhostExport,
    ram: [Part; 1],
}

fn boot_served(side: Side) -> Served {
    let mut lab = new_guest(side, &command(&["-device", "vhost-user-blk-pci,chardev=disk0"]));
    let socket = lab.dir.path().join("disk,0.sock");
    let disk = VhostExport::start(&socket, Arc::new(BootDisk(boot_disk(Program::Count))), 512).unwrap();
    let disks = vec![("disk0".into(), DiskAttachment::VhostUser(socket))];
    ok(lab.start(&Attachments { networks: Vec::new(), disks }));
    let file = FileId::of(lab.backing(0).unwrap()).unwrap();
    let ram = [Part { file, first_page: 0, pages: region(&*lab).pages }];
    Served { lab, disk, ram }
}

impl Served {
    /// One epoch; the guest is left paused. Answers how many pages only the disk knew of, and how long the pause took.
    fn checkpoint(&mut self, replica: &mut Replica) -> (u64, Duration) {
        let began = Instant::now();
        ok(self.lab.pause());
        let took = began.elapsed();
        ok(self.lab.start_state());
        let mut dirty = PageBitmap::new(self.ram[0].pages);
        ok(self.lab.dirty(&mut dirty));
        let own = dirty.count();
        self.disk.take_written(&self.ram, &mut dirty).unwrap();
        copy_pages(&*self.lab, &dirty, &mut replica.image);
        ok(self.lab.finish_state(&mut replica.state));
        (dirty.count() - own, took)
    }

    /// Epochs while the guest counts and reads; answers the same as a sum, and what was read.
    fn epochs(&mut self, replica: &mut Replica, rounds: u32) -> (u64, BTreeSet<u8>) {
        let (mut unseen, mut read) = (0, BTreeSet::new());
        let mut times = Vec::new();
        for round in 0..rounds {
            ok(self.lab.resume());
            let before = counter(&*self.lab, 0);
            until("another round", || counter(&*self.lab, 0) != before);
            let (more, took) = self.checkpoint(replica);
            unseen += more;
            times.push(took);
            assert_eq!(difference(&replica.image, memory(&*self.lab)), None, "round {round}");
            read.insert(replica.image[BUFFER * 4096]);
        }
        times.sort_unstable();
        println!("pause: median {:?}, longest {:?}", times[times.len() / 2], times[times.len() - 1]);
        (unseen, read)
    }
}

/// The dirty pages of QEMU and the disk's together over an empty image are the memory, at every pause; the first alone are not.
#[test]
fn what_the_disk_writes_is_known_and_survives() {
    let mut served = boot_served(Side::Primary);
    let mut replica = Replica::new(&*served.lab);
    ok(served.lab.resume());
    until_counting(&*served.lab);
    replica.copy_all(&mut *served.lab);
    served.checkpoint(&mut replica);
    for _generation in 0..2 {
        let (unseen, read) = served.epochs(&mut replica, 200);
        assert!(unseen > 0, "QEMU's page tables show what another process writes: this test tests nothing");
        assert!(read.len() > 2, "the guest read its disk: {read:x?}");

        let mut standby = boot_served(Side::Standby);
        fill(&standby.lab, &replica.image);
        ok(served.lab.kill());
        ok(standby.lab.activate(&replica.state));
        served = standby;
        served.checkpoint(&mut replica);
        assert_eq!(difference(&replica.image, memory(&*served.lab)), None);
    }
}
