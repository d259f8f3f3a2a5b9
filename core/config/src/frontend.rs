//! How a guest reaches a disk: keys of a `[[disk]]` table that are no business of its plugin.

use crate::document::item;
use crate::report::Problem;
use std::fmt;
use toml::de::DeTable;

pub(crate) const KEYS: [&str; 2] = ["frontend", "block_size"];
pub(crate) const NAMES: [&str; 2] = ["nbd", "vhost-user"];
/// Bytes that a logical block can have; the first if the configuration does not say.
pub(crate) const BLOCKS: [u32; 4] = [512, 1024, 2048, 4096];

/// How a guest reaches a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frontend {
    /// By NBD.
    Nbd,
    /// By vhost-user-blk.
    VhostUser {
        /// Bytes of a logical block: 512, 1024, 2048 or 4096.
        block: u32,
    },
}

/// For a person, and to compare with the other host's.
impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Frontend::Nbd => f.write_str("nbd"),
            Frontend::VhostUser { block } => write!(f, "vhost-user with blocks of {block} bytes"),
        }
    }
}

/// The front-end of a disk's table; with a problem, some.
pub(crate) fn parse(table: &DeTable<'_>, problems: &mut Vec<Problem>) -> Frontend {
    let vhost_user = match item(table, "frontend") {
        None => false,
        Some(name) => match name.value.as_str() {
            Some("nbd") => false,
            Some("vhost-user") => true,
            _ => {
                problems.push(
                    Problem::new("`frontend` is not a front-end for disks")
                        .at(name.place(), "")
                        .help("write \"nbd\", the default, or \"vhost-user\""),
                );
                return Frontend::Nbd;
            }
        },
    };
    let size = item(table, "block_size");
    if !vhost_user {
        problems.extend(size.map(|size| {
            Problem::new("`block_size` belongs to frontend = \"vhost-user\"")
                .at(size.place(), "")
                .help("with nbd QEMU's device says it: virtio-blk-pci,drive=…,logical_block_size=4096")
        }));
        return Frontend::Nbd;
    }
    let block = size.map_or(Some(BLOCKS[0]), |size| {
        let read = size.value.as_integer().and_then(|i| u32::from_str_radix(i.as_str(), i.radix()).ok());
        let known = read.filter(|bytes| BLOCKS.contains(bytes));
        if known.is_none() {
            problems.push(
                Problem::new("`block_size` is no size of a block")
                    .at(size.place(), "")
                    .help("write 512, the default, 1024, 2048 or 4096: bytes of the guest's logical block"),
            );
        }
        known
    });
    Frontend::VhostUser { block: block.unwrap_or(BLOCKS[0]) }
}
