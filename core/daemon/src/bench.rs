//! `aventine bench`: what plugins cost.

use crate::cli::Bench;
use crate::exit::Exit;
use crate::output::{print, tell_error};
use aventine_api::Kind;
use aventine_bench::network::{Figures, measure};
use aventine_bench::plugins;
use std::path::PathBuf;

pub(crate) fn bench(what: Bench) -> Exit {
    match what {
        Bench::Network { plugin, epochs, frames, json } => network(plugin, epochs, frames, json),
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

fn network(plugin: Vec<String>, epochs: u64, frames: u64, json: bool) -> Exit {
    let all = || aventine_registry::names(Kind::Network).into_iter().map(str::to_owned).collect();
    let plugins = if plugin.is_empty() { all() } else { plugin };
    if !json {
        print(HEADINGS);
    }
    let mut exit = Exit::Done;
    for plugin in plugins {
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

const HEADINGS: &str = "plugin       seal us (99 %)     release us (99 %)   frames/s   without it    ratio";

fn line(figures: &Figures) -> String {
    let Figures { plugin, seal_us, release_us, floor_frames_per_second, frames_per_second, ratio } = figures;
    format!(
        "{plugin:<12} {:>7.1} ({:>7.1}) {:>9.1} ({:>8.1}) {frames_per_second:>10.0} {floor_frames_per_second:>12.0} {ratio:>8.2}",
        seal_us[0], seal_us[1], release_us[0], release_us[1],
    )
}
