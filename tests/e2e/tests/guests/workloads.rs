//! Programs that use a guest's disks in earnest: a file system, a database on it, and what tries everything that a disk can do.

use crate::common::*;
use aventine_demo::lab::{Lab, Parts, Site};
use aventine_demo::network::Host;
use aventine_e2e::guest::PORT;
use aventine_e2e::volume;
use aventine_soak::{Fault, Options, Workload as Soaked, soak};
use serde_json::Value;
use std::thread;
use std::time::Duration;

/// A short run of what `cargo xtask soak --workload sqlite --faults kill` does for as long as it is wanted. `AVENTINE_ROUNDS` makes
/// it longer, too.
#[test]
fn a_file_system_and_a_database_survive_their_hosts() {
    let Parts { program, kernel, initrd, work, detection, interval, .. } = parts("ledger");
    let rounds = rounds(5);
    let report = soak(&Options {
        minutes: 0,
        rounds: Some(rounds),
        faults: vec![Fault::Kill],
        workload: Soaked::Sqlite,
        seed: Some(seed()),
        detection,
        interval,
        report: None,
        program,
        kernel,
        initrd,
        tools: given("AVENTINE_SQLITE"),
        work,
    });
    println!("{report}");
    assert_eq!(report.failure, None);
    assert!(report.writes_acknowledged >= 20 * rounds && report.rounds() == rounds, "{report}");
}

/// What fio does in the guest: all of it is read back, some of it while the rest is written.
const FIO: &str = "--name=load --filename=/disk/load --size=32m --rate=4m --rw=randrw --bsrange=512-64k --direct=1 --ioengine=libaio \
    --iodepth=32 --verify=crc32c --verify_fatal=1 --verify_backlog=256 --output-format=json";

#[test]
fn fio_reads_back_after_a_failover_what_it_wrote_before() {
    for (work, frontend) in [("fio", volume::NBD), ("fio-vhost-user", volume::VHOST_USER)] {
        fio_over_a_failover(work, frontend);
    }
}

fn fio_over_a_failover(work: &str, frontend: volume::Frontend) {
    let mut parts = Parts { tables: frontend.disks().parse().unwrap(), ..parts(work) };
    parts.qemu.extend(frontend.device());
    let lab = Lab::new(&parts).unwrap();
    lab.prepare(Site::FIRST).unwrap();
    let image = lab.dir(Host::A, Site::FIRST).join(volume::IMAGE);
    volume::make(&image, 192 << 20, &given("AVENTINE_FIO")).unwrap();
    let mut pair = lab.launch(Site::FIRST).unwrap();
    let mut guest = connect(&lab, PORT);
    volume::mount(&mut guest).unwrap();

    let mut inside = connect(&lab, PORT);
    let mut written = || {
        let counts = inside.run("busybox cat /sys/block/vdb/stat").unwrap();
        // Sectors of 512 bytes.
        512 * counts.split(' ').nth(6).unwrap().parse::<u64>().unwrap()
    };
    let before = written();
    guest.send(&format!("run {} {FIO}", volume::program("fio"))).unwrap();
    while written() < before + (1 << 20) {
        assert!(!guest.is_answered().unwrap(), "{:?}", guest.line());
        thread::sleep(Duration::from_millis(5));
    }
    pair.fail_over(false).unwrap();
    // At its pace it has seconds to go on, where the guest is now.
    assert!(!guest.is_answered().unwrap(), "{:?}", guest.line());
    let answer = guest.line().unwrap();
    let (code, report) = answer.strip_prefix("ended ").unwrap().split_once(' ').unwrap();
    let report = serde_json::from_str::<Value>(report).unwrap();
    let job = &report["jobs"][0];
    assert_eq!((code, &job["error"]), ("0", &0.into()), "{report}");
    assert!(job["write"]["io_bytes"].as_u64() > Some(12 << 20), "{report}");
    assert!(job["read"]["io_bytes"].as_u64() > Some(12 << 20), "{report}");
}
