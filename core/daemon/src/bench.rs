//! `aventine bench`: what plugins cost.

pub(crate) mod disk;

use crate::cli::{Bench, Switch};
use crate::exit::Exit;
use crate::keys;
use crate::output::{print, tell, tell_error};
use aventine_api::Kind;
use aventine_bench::network::{Figures, measure};
use aventine_bench::plugins;
use aventine_bench::transport::{self, Setup};
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) fn bench(what: Bench) -> Exit {
    match what {
        Bench::Disk(arguments) => disk::disks(arguments),
        Bench::Network { plugin, epochs, frames, json } => network(plugin, epochs, frames, json),
        Bench::Transport { plugin, tls, streams, size, json, svg } => {
            let setup = Setup { plugin, keys: None, streams: streams as usize, bytes: size };
            transports(setup, tls == Switch::On, json, svg.as_deref())
        }
        Bench::Plugins { files, epochs, json } => boundary(&files, epochs, json),
    }
}

fn boundary(files: &[PathBuf], epochs: u64, json: bool) -> Exit {
    let report = match plugins::measure(files, epochs) {
        Ok(report) => report,
        Err(error) => {
            tell_error(&error);
            return Exit::Error;
        }
    };
    if json {
        print(serde_json::to_string(&report).unwrap_or_else(|e| e.to_string()));
        return Exit::Done;
    }
    print(format_args!(
        "an epoch of 1,000 pages; the floor, copying and hashing them: {:.1} us\n\
         form         encode us   another call ns   the epoch, more than built in",
        report.floor_ns as f64 / 1e3
    ));
    for plugins::Figures { form, encode_ns, call_ns, more_ns, percent } in &report.forms {
        let [encode, more] = [encode_ns, more_ns].map(|ns| *ns as f64 / 1e3);
        print(format_args!(
            "{form:<12} {encode:>9.2} {call_ns:>17} {more:>13.2} us, {percent:.2} % of the floor"
        ));
    }
    Exit::Done
}

fn transports(setup: Setup, tls: bool, json: bool, svg: Option<&Path>) -> Exit {
    let dir = match tempfile::tempdir() {
        Ok(dir) => dir,
        Err(error) => {
            tell_error(&error);
            return Exit::Error;
        }
    };
    let keys = if tls { keys::make_for_bench(dir.path()).map(Some) } else { Ok(None) };
    let measured = match keys {
        Ok(keys) => transport::measure(&Setup { keys, ..setup }),
        Err(exit) => return exit,
    };
    let figures = match measured {
        Ok(figures) => figures,
        Err(error) => {
            tell_error(&error);
            return Exit::Error;
        }
    };
    match json {
        true => print(serde_json::to_string(&figures).unwrap_or_else(|e| e.to_string())),
        false => tell_transport(&figures),
    }
    match svg.map(|path| (path, fs::write(path, figures.svg()))) {
        Some((path, Err(error))) => {
            tell(format_args!("error: {} could not be written: {error}", path.display()));
            Exit::Error
        }
        _ => Exit::Done,
    }
}

fn tell_transport(figures: &transport::Figures) {
    let transport::Figures { plugin, ratio, round_trip_ratios, ways, .. } = figures;
    print("way          MiB/s   processor s/GiB: sending  receiving   round trip, median (99 %) us");
    for way in ways {
        let name = if way.way == "plugin" { plugin } else { way.way };
        let trips = way.round_trips.iter().map(|transport::RoundTrip { pages, us: [median, most] }| {
            format!("{pages} pages: {median:.0} ({most:.0})")
        });
        let trips: Vec<_> = trips.collect();
        print(format_args!(
            "{name:<10} {:>7.0} {:>26.3} {:>10.3}   {}",
            way.goodput_mib,
            way.sending_s_per_gib,
            way.receiving_s_per_gib,
            trips.join(", ")
        ));
    }
    let trips: Vec<_> = round_trip_ratios.iter().map(|r| format!("{r:.2}")).collect();
    let last = ways.last().map_or("", |w| w.way);
    print(format_args!("{plugin} / {last}: goodput {ratio:.2}, round trips {}", trips.join(", ")));
}

fn network(plugin: Vec<String>, epochs: u64, frames: u64, json: bool) -> Exit {
    if !json {
        print(HEADINGS);
    }
    let mut exit = Exit::Done;
    for plugin in or_all(plugin, Kind::Network) {
        match measure(&plugin, epochs, frames) {
            Ok(figures) if json => print(serde_json::to_string(&figures).unwrap_or_else(|e| e.to_string())),
            Ok(figures) => print(line(&figures)),
            Err(error) => {
                tell_error(&error);
                exit = Exit::Error;
            }
        }
    }
    exit
}

fn or_all(plugins: Vec<String>, kind: Kind) -> Vec<String> {
    let all = || aventine_registry::names(kind).into_iter().map(str::to_owned).collect();
    if plugins.is_empty() { all() } else { plugins }
}

const HEADINGS: &str = "plugin       seal us (99 %)     release us (99 %)   frames/s   without it    ratio";

fn line(figures: &Figures) -> String {
    let Figures { plugin, seal_us, release_us, floor_frames_per_second, frames_per_second, ratio } = figures;
    format!(
        "{plugin:<12} {:>7.1} ({:>7.1}) {:>9.1} ({:>8.1}) {frames_per_second:>10.0} {floor_frames_per_second:>12.0} {ratio:>8.2}",
        seal_us[0], seal_us[1], release_us[0], release_us[1],
    )
}
