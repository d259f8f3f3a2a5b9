//! `aventine bench disk`.

use super::or_all;
use crate::cli::disk_size;
use crate::exit::Exit;
use crate::output::{print, tell, tell_error};
use aventine_api::{ConfigError, Kind};
use aventine_bench::disk::{self, Figures, Frontend, LoadFigures, Named, Options, Storage, measure};
use aventine_registry::Trust;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// What `--help` says behind the options.
pub(crate) const HELP: &str = "\
Examples:
  aventine bench disk --plugin block-remus --size 1GiB
  aventine bench disk --plugin drbd --primary-disk \"resource = 'bench-a'\" \\
      --standby-disk \"resource = 'bench-b'\" --standby-disk \"peer_resource = 'bench-a'\" \\
      --export-disk /dev/vg0/bench --cached --overwrite

A client of each front-end reads and writes a disk that each plugin replicates over loopback TCP to a standby's disk in this
process. Measured in turn with it:
  export     an image behind the same front-end, without replication
  copy       the same, whose writes are also sent as bare bytes over loopback TCP to somebody who writes them: the least that
             replication takes. Where a disk is faster than the link, this is the floor and `export` is not
  qemu-nbd   an image behind qemu-nbd, where that is installed
Four images of this size, the standby's and the copy's are made in a temporary directory, which TMPDIR chooses. The last two take
half of what a disk can write; --standby-dir puts them on another one, or into memory. Both sides share this machine's processors,
too: the last columns tell what each would take of its own, and --apart gives the standby's side half of them, as if it were
another host. Takes two minutes if nothing else is chosen.

A plugin that is not made of an image alone is given the disks to measure, as the second example does: its table on each side, and
disks of the same kind for `export` and `copy`; what is not given is not measured. For `drbd` that is a pair of resources of this
host that are each other's peer, up, connected and Secondary (`bench-b` has the two ports the other way round):
  resource bench-a {
    device /dev/drbd0; disk /dev/vg0/bench-a; meta-disk internal;
    on THIS-HOST { address 127.0.0.1:7788; }
    on other { address 127.0.0.1:7789; }
  }
DRBD's device is read and written through the page cache: --cached has `export` and `copy` do the same. A write counts once its
epoch is committed, whether DRBD has it by then or not; `buffer` in both tables says how much that may be.";

/// How a guest reaches a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DiskFrontend {
    Nbd,
    VhostUser,
}

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Which plugins; all of them if none is given
    #[arg(long, value_name = "NAME")]
    plugin: Vec<String>,
    /// Also load the plugins of this shared object
    #[arg(long, value_name = "FILE")]
    load: Vec<PathBuf>,
    /// By which front-end the disk is reached; by each if none is given
    #[arg(long, value_name = "NAME", value_enum)]
    frontend: Option<DiskFrontend>,
    /// Size of the disk; of disks that are given, as much as is used at most
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = disk_size)]
    size: u64,
    /// Make the standby's image, and the bare copy, in this directory
    #[arg(long, value_name = "DIR", conflicts_with = "primary_disk")]
    standby_dir: Option<PathBuf>,
    /// Measure these disks: keys of the plugin's table on the primary, one each time
    #[arg(long, value_name = "KEY = VALUE", requires_all = ["plugin", "standby_disk"])]
    primary_disk: Vec<String>,
    /// The same on the standby
    #[arg(long, value_name = "KEY = VALUE", requires = "primary_disk")]
    standby_disk: Vec<String>,
    /// With these: a block device or an image for `export`
    #[arg(long, value_name = "PATH", requires = "primary_disk")]
    export_disk: Option<PathBuf>,
    /// With these: two block devices or images for `copy`
    #[arg(long, value_names = ["PATH", "STANDBY-PATH"], num_args = 2, requires = "primary_disk")]
    copy_disks: Vec<PathBuf>,
    /// Nothing on any disk given is needed any more
    #[arg(long, requires = "primary_disk")]
    overwrite: bool,
    /// Read and write the images through the page cache; past it otherwise, where their file system allows that
    #[arg(long)]
    cached: bool,
    /// Give the standby's side half of the processors for itself
    #[arg(long)]
    apart: bool,
    /// How long each kind of request is measured on each server
    #[arg(long, value_name = "N", default_value = "2", value_parser = seconds)]
    seconds: Duration,
    /// Print one line of JSON for each plugin
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<Duration, ConfigError> {
    let number = text.parse().ok().filter(|n| (0.01..=3600.0).contains(n));
    number.map(Duration::from_secs_f64).ok_or_else(|| {
        ConfigError::bad_value(&[], format!("`{text}` is not a number from 0.01 to 3600"), None)
    })
}

pub(crate) fn disks(arguments: Arguments) -> Exit {
    for file in &arguments.load {
        if let Err(error) = aventine_registry::load(file, Trust::OwnersOnly) {
            tell_error(&error);
            return Exit::Error;
        }
    }
    let named = !arguments.primary_disk.is_empty();
    if named && arguments.plugin.len() > 1 {
        tell("error: the disks that are given are those of one plugin: give one --plugin");
        return Exit::Usage;
    }
    if named && !arguments.overwrite {
        tell(
            "error: a benchmark overwrites all disks that it is given. If nothing on them is needed any more, on both sides, add \
            --overwrite",
        );
        return Exit::Usage;
    }
    let mut exit = Exit::Done;
    let all = arguments.plugin.is_empty();
    for plugin in or_all(arguments.plugin.clone(), Kind::Disk) {
        if all && !disk::takes_image(&plugin) {
            tell(format_args!(
                "{plugin} is not measured: it is not made of an image alone; `aventine bench disk --help` tells how to give it disks"
            ));
            continue;
        }
        match measure(&plugin, &options(&arguments)) {
            Ok(figures) if arguments.json => {
                print(serde_json::to_string(&figures).unwrap_or_else(|e| e.to_string()));
            }
            Ok(figures) => tell_disk(&figures),
            Err(error) => {
                tell_error(&error);
                exit = Exit::Error;
            }
        }
    }
    exit
}

fn options(arguments: &Arguments) -> Options {
    let frontends = match arguments.frontend {
        None => vec![Frontend::Nbd, Frontend::VhostUser],
        Some(DiskFrontend::Nbd) => vec![Frontend::Nbd],
        Some(DiskFrontend::VhostUser) => vec![Frontend::VhostUser],
    };
    let storage = match arguments.primary_disk.is_empty() {
        true => Storage::Made { standby: arguments.standby_dir.clone() },
        false => Storage::Named(Named {
            primary: arguments.primary_disk.join("\n"),
            standby: arguments.standby_disk.join("\n"),
            export: arguments.export_disk.clone(),
            copy: arguments.copy_disks.clone().try_into().ok(),
        }),
    };
    Options {
        size: arguments.size,
        time: arguments.seconds,
        frontends,
        cached: arguments.cached,
        storage,
        apart: arguments.apart,
    }
}

fn tell_disk(figures: &Figures) {
    let Figures { plugin, directory, standby_directory, size, direct, processors, apart, .. } = figures;
    let Figures { seal_us: [median, most], sent_per_written, loads, .. } = figures;
    let way = if *direct == Some(true) { "past" } else { "through" };
    print(format_args!(
        "{plugin}: a seal adds {median:.1} us (99 %: {most:.1} us) to the pause; {sent_per_written:.3} bytes sent for each written"
    ));
    match (directory, standby_directory) {
        (Some(here), Some(standby)) => print(format_args!(
            "images in {}, {way} the page cache; the standby's in {}",
            here.display(),
            standby.display()
        )),
        _ => print(format_args!(
            "{:.1} MiB of the disks that were given{}",
            *size as f64 / f64::from(1 << 20),
            direct.map_or(String::new(), |_| format!("; those without replication {way} the page cache"))
        )),
    }
    let how = if *apart { "the standby's side has half of" } else { "client, servers and standby share" };
    print(format_args!("{how} {processors} processors"));
    let mut frontend = None;
    for load in loads {
        if frontend.replace(load.frontend) != Some(load.frontend) {
            print(format_args!(
                "{:<23}{:>5}{:>11}{:>9}{:>6}{:>9}{:>6}{:>9}{:>6}   us/MiB: export primary standby",
                format!("requests/s, {}", load.frontend.name()),
                "depth",
                "replicated",
                "export",
                "ratio",
                "copy",
                "ratio",
                "qemu-nbd",
                "ratio"
            ));
        }
        print(line(load));
    }
}

fn line(load: &LoadFigures) -> String {
    let number = |n: Option<f64>, digits| n.map_or("-".to_owned(), |n| format!("{n:.digits$}"));
    format!(
        "{:<23}{:>5}{:>11.0}{:>9}{:>6}{:>9}{:>6}{:>9}{:>6}{:>17}{:>8.0}{:>8.0}",
        load.load,
        load.depth,
        load.replicated,
        number(load.export, 0),
        number(load.ratio, 2),
        number(load.copy, 0),
        number(load.ratio_to_copy, 2),
        number(load.qemu_nbd, 0),
        number(load.ratio_to_qemu_nbd, 2),
        number(load.export_us_per_mib, 0),
        load.primary_us_per_mib,
        load.standby_us_per_mib,
    )
}
