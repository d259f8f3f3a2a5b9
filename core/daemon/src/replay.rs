//! `aventine replay`: what codecs and policies make of a recorded guest.

use crate::exit::Exit;
use crate::output::{print, tell, tell_error};
use crate::run::loaded;
use aventine_api::{Codec, Context, Epoch, EpochPolicy, Factory, Host, Kind, PluginError, Side};
use aventine_config::{Instance, Strategies};
use aventine_replay::{Clock, Figures, ReplayError, SourceError};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StrategyError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("The trace was recorded with the codec {0}, which this program does not have")]
    Codec(String),
    #[error("Plugin {id} could not be set up")]
    Plugin { id: String, source: PluginError },
    #[error("{policy} with {codec} failed")]
    Replay { policy: String, codec: String, source: ReplayError },
}

/// One line of the table.
#[derive(Serialize)]
struct Row<'a> {
    policy: &'a str,
    codec: &'a str,
    #[serde(flatten)]
    figures: Figures,
}

/// Replays a trace with every codec and every policy that the file names.
pub(crate) fn replay(path: &Path, json: bool) -> Exit {
    let strategies = match loaded(Strategies::load(path)) {
        Ok(strategies) => strategies,
        Err(exit) => return exit,
    };
    match compare(&strategies, json) {
        Ok(()) => Exit::Done,
        Err(error) => {
            tell_error(&error);
            Exit::Error
        }
    }
}

fn compare(strategies: &Strategies, json: bool) -> Result<(), StrategyError> {
    if !json {
        print(HEADINGS);
    }
    for policy in &strategies.policies {
        for codec in &strategies.codecs {
            let clock = Arc::new(Clock::default());
            let make = || make_codec(&strategies.dir, codec, &clock);
            let mut decoder = recorded_codec(&strategies.trace)?;
            let (ends, mut when) = ([make()?, make()?], make_policy(&strategies.dir, policy, &clock)?);
            let trace = &strategies.trace;
            let figures = aventine_replay::replay(trace, decoder.as_mut(), ends, when.as_mut(), &clock);
            let figures = figures.map_err(|source| {
                let (policy, codec) = (policy.id.clone(), codec.id.clone());
                StrategyError::Replay { policy, codec, source }
            })?;
            let row = Row { policy: &policy.id, codec: &codec.id, figures };
            print(if json {
                serde_json::to_string(&row).unwrap_or_else(|e| e.to_string())
            } else {
                line(&row)
            });
        }
    }
    Ok(())
}

const HEADINGS: &str =
    "policy       codec        epochs/s  pages/epoch  bytes/epoch   ratio   us/page encoded   decoded";

fn line(row: &Row<'_>) -> String {
    let Row { policy, codec, figures } = row;
    let epochs = figures.epochs.max(1) as f64;
    format!(
        "{policy:<12} {codec:<12} {:>8.1} {:>12.0} {:>12.0} {:>7.2} {:>17.2} {:>9.2}",
        epochs / figures.seconds.max(f64::EPSILON),
        figures.pages as f64 / epochs,
        figures.bytes as f64 / epochs,
        figures.ratio,
        figures.encode_us_per_page,
        figures.decode_us_per_page,
    )
}

/// The codec that a trace was recorded with.
pub(crate) fn recorded_codec(trace: &Path) -> Result<Box<dyn Codec>, StrategyError> {
    let named = aventine_replay::recorded_codec(trace)?;
    let name = named.split(' ').next().unwrap_or_default();
    let entry = aventine_registry::find(Kind::Codec, name);
    let entry = entry.ok_or_else(|| StrategyError::Codec(named.clone()))?;
    let instance = Instance { id: "the trace's codec".into(), entry, config: String::new() };
    make_codec(Path::new(""), &instance, &Arc::default())
}

/// A replay has no engine that a plugin could ask anything but the time.
struct NoEngine(Arc<Clock>);

impl Host for NoEngine {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, error: PluginError) {
        tell(format_args!("warning: {}", error.chain()));
    }
    fn now(&self) -> Duration {
        self.0.now()
    }
}

fn context(dir: &Path, instance: &Instance, clock: &Arc<Clock>) -> Context {
    Context {
        guest: "replay".into(),
        id: instance.id.clone(),
        side: Side::Primary,
        state_dir: dir.to_owned(),
        config_dir: dir.to_owned(),
        host: Arc::new(NoEngine(Arc::clone(clock))),
    }
}

fn make_codec(dir: &Path, instance: &Instance, clock: &Arc<Clock>) -> Result<Box<dyn Codec>, StrategyError> {
    let Factory::Codec(make) = instance.entry.factory else { unreachable!("plugins are resolved by kind") };
    made(instance, make(&instance.config, context(dir, instance, clock)))
}

fn make_policy(
    dir: &Path,
    instance: &Instance,
    clock: &Arc<Clock>,
) -> Result<Box<dyn EpochPolicy>, StrategyError> {
    let Factory::Policy(make) = instance.entry.factory else { unreachable!("plugins are resolved by kind") };
    made(instance, make(&instance.config, context(dir, instance, clock)))
}

fn made<T>(instance: &Instance, made: Result<T, PluginError>) -> Result<T, StrategyError> {
    made.map_err(|source| StrategyError::Plugin { id: instance.id.clone(), source })
}
