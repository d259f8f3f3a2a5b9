//! What can go wrong with an image.

use aventine_api::{ErrorCode, PluginError};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Why an image could not be opened or made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No such file.
    #[error("Image {} does not exist. Create it, or correct the path", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// A directory, a pipe.
    #[error("Image {} is neither a file nor a block device", path.display())]
    Kind {
        /// Which.
        path: PathBuf,
    },
    /// No bytes.
    #[error("Image {} is empty. Give it the size that the guest's disk should have", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// Somebody has locked or claimed it.
    #[error("Image {} is in use by {}. Two guests on one image would destroy it: end the other first",
        path.display(), holder.map_or("another process".to_owned(), |p| format!("process {p}")))]
    InUse {
        /// Which.
        path: PathBuf,
        /// Its id, where the kernel tells.
        holder: Option<u32>,
    },
    /// The kernel refuses.
    #[error("Image {} could not be opened", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The kernel refuses.
    #[error("Image {} could not be created with {size} bytes", path.display())]
    Create {
        /// Which.
        path: PathBuf,
        /// Bytes.
        size: u64,
        /// What the kernel says.
        source: io::Error,
    },
}

impl From<OpenError> for PluginError {
    fn from(error: OpenError) -> PluginError {
        let code = match error {
            OpenError::Missing { .. } | OpenError::Kind { .. } | OpenError::Empty { .. } => {
                ErrorCode::Unavailable
            }
            OpenError::InUse { .. } => ErrorCode::Refused,
            OpenError::Open { .. } | OpenError::Create { .. } => ErrorCode::Io,
        };
        PluginError::new(code, error)
    }
}

/// Why the image could not be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ImageError {
    /// The kernel could not.
    #[error("Reading {len} bytes at {offset} of image {} failed", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Bytes from its beginning.
        offset: u64,
        /// Bytes.
        len: u64,
        /// What the kernel says.
        source: Arc<io::Error>,
    },
    /// The kernel could not.
    #[error("Writing {len} bytes at {offset} of image {} failed", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Bytes from its beginning.
        offset: u64,
        /// Bytes.
        len: u64,
        /// What the kernel says.
        source: Arc<io::Error>,
    },
    /// The kernel could not.
    #[error("Image {} could not be brought to stable storage", path.display())]
    Sync {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: Arc<io::Error>,
    },
    /// Somebody has cut it off.
    #[error("Image {} has {is} bytes by now, but had {was} when it was opened. A disk cannot be resized while it is in \
        use, and what was cut off is lost; stop the guest, and give the images of both hosts the same size", path.display())]
    Shrunk {
        /// Which.
        path: PathBuf,
        /// Bytes when it was opened.
        was: u64,
        /// Bytes now.
        is: u64,
    },
    /// A sync failed before.
    #[error("Image {} could not be brought to stable storage before, so some of its writes may be lost. Check the \
        disk under it", path.display())]
    SyncFailedBefore {
        /// Which.
        path: PathBuf,
    },
}

impl From<ImageError> for PluginError {
    fn from(error: ImageError) -> PluginError {
        let code = match &error {
            ImageError::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                ErrorCode::Limit
            }
            _ => ErrorCode::Io,
        };
        PluginError::new(code, error)
    }
}
