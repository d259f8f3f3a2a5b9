//! A disk without a byte of its own, as a shared object, which is not ready to let output go while a file is there.
//!
//! ```toml
//! [[disk]]
//! plugin = "stalls"
//! during = "stall"     # the file, from the configuration's directory
//! ```

use aventine_api::schemars::JsonSchema;
use aventine_api::{
    BlockDevice, ConfigError, Disengage, Disk, DiskProgress, DiskStats, Epoch, ErrorCode, Factory, Host,
    Metric, PluginEntry, PluginError, RecordHead, RecordRx, RecordTx, parse_config, schema,
};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

aventine_abi::export_plugin!();

aventine_api::inventory::submit! {
    PluginEntry {
        name: "stalls",
        version: env!("CARGO_PKG_VERSION"),
        summary: "is not ready while a file is there",
        validate: &|text| parse(text).map(drop),
        schema: &schema::<Keys>,
        factory: Factory::Disk(&|text, context| {
            let Keys { during } = parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            let asked = context.host.metric("asked_total", "how often it was asked to let output go");
            let (during, host) = (context.config_dir.join(during), context.host);
            Ok(Box::new(Stalls { during, asked, host, barriers: None }))
        }),
        upkeep: None,
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
struct Keys {
    during: PathBuf,
}

fn parse(text: &str) -> Result<Keys, ConfigError> {
    parse_config(text)
}

#[derive(Debug, thiserror::Error)]
enum StallError {
    #[error("The disk is not ready yet")]
    NotYet,
    #[error("The disk has no bytes")]
    Empty,
}

struct Stalls {
    during: PathBuf,
    asked: Arc<dyn Metric>,
    host: Arc<dyn Host>,
    barriers: Option<Box<dyn RecordTx>>,
}

/// Nobody can ask it for anything.
struct Nothing;

fn empty() -> PluginError {
    PluginError::new(ErrorCode::Refused, StallError::Empty)
}

impl BlockDevice for Nothing {
    fn size(&self) -> u64 {
        0
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), PluginError> {
        Err(empty())
    }

    fn write(&self, _: u64, _: &[u8], _: bool) -> Result<(), PluginError> {
        Err(empty())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), PluginError> {
        Err(empty())
    }

    fn trim(&self, _: u64, _: u64) -> Result<(), PluginError> {
        Err(empty())
    }

    fn flush(&self) -> Result<(), PluginError> {
        Ok(())
    }
}

impl Disk for Stalls {
    fn depth(&self) -> u32 {
        16
    }

    fn route(&self) -> Option<String> {
        None
    }

    fn block(&self) -> Arc<dyn BlockDevice> {
        Arc::new(Nothing)
    }

    fn replicate(&mut self, tx: Box<dyn RecordTx>, _: Option<Box<dyn RecordRx>>) -> Result<(), PluginError> {
        self.barriers = Some(tx);
        Ok(())
    }

    fn progress(&self) -> DiskProgress {
        DiskProgress::default()
    }

    fn pausing(&self) {}

    fn seal(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        let head = RecordHead { epoch, kind: 0 };
        self.barriers.as_mut().map_or(Ok(()), |tx| tx.send(head, &[]))
    }

    fn release(&mut self, _: Epoch) -> Result<(), PluginError> {
        self.asked.add(1);
        match self.during.exists() {
            true => Err(PluginError::new(ErrorCode::TimedOut, StallError::NotYet)),
            false => Ok(()),
        }
    }

    fn disengage(&mut self, _: Disengage) -> Result<(), PluginError> {
        self.barriers = None;
        Ok(())
    }

    fn receive(&mut self, mut rx: Box<dyn RecordRx>, _: Box<dyn RecordTx>) -> Result<(), PluginError> {
        let host = Arc::clone(&self.host);
        thread::spawn(move || {
            loop {
                match rx.recv(&mut Vec::new()) {
                    Ok(head) => host.staged(head.epoch),
                    Err(error) => return host.failed(error),
                }
            }
        });
        Ok(())
    }

    fn commit(&mut self, _: Epoch) -> Result<(), PluginError> {
        Ok(())
    }

    fn apply(&mut self, _: Epoch) -> Result<(), PluginError> {
        Ok(())
    }

    fn activate(&mut self, _: Epoch) -> Result<(), PluginError> {
        Ok(())
    }

    fn stats(&self) -> DiskStats {
        DiskStats::default()
    }
}
