//! A bench of image files, for the plugin in any form.

use aventine_api::{Context, Disk, ErrorCode, Factory, Host, PluginEntry, PluginError, Side};
use aventine_conformance::disk::DiskBench;
use std::fs;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// Where the plugin comes from.
pub(crate) trait Form {
    fn entry() -> &'static PluginEntry;
}

/// Two image files in a directory.
pub(crate) struct Files<F> {
    path: PathBuf,
    /// Removed with the bench, where that has made it.
    _dir: Option<TempDir>,
    form: PhantomData<F>,
}

impl<F> Files<F> {
    fn file(&self, side: Side) -> PathBuf {
        self.path.join(side.name())
    }
}

impl<F: Form> DiskBench for Files<F> {
    fn new(primary: &[u8], standby: Option<&[u8]>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = Files { path: dir.path().to_owned(), _dir: Some(dir), form: PhantomData };
        fs::write(files.file(Side::Primary), primary).unwrap();
        if let Some(standby) = standby {
            fs::write(files.file(Side::Standby), standby).unwrap();
        }
        files
    }

    fn place(&self) -> String {
        self.path.to_str().unwrap().to_owned()
    }

    fn at(place: &str) -> Self {
        Files { path: Path::new(place).to_owned(), _dir: None, form: PhantomData }
    }

    fn make(&self, side: Side, host: Arc<dyn Host>) -> Result<Box<dyn Disk>, PluginError> {
        let config = format!("image = '{}'\nbuffer = '64MiB'", side.name());
        let entry = F::entry();
        (entry.validate)(&config).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
        let Factory::Disk(make) = entry.factory else { panic!("the plugin is a disk") };
        let context = Context {
            guest: "conformance".into(),
            id: "disk0".into(),
            side,
            state_dir: self.path.clone(),
            config_dir: self.path.clone(),
            host,
        };
        make(&config, context)
    }

    fn image(&self, side: Side) -> Vec<u8> {
        fs::read(self.file(side)).unwrap()
    }
}
