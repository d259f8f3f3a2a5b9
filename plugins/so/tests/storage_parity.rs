//! The rules of disks and guests, on the built-in plugins in the forms in which they can reach the engine from outside:
//! through the adapters of the binary interface, in this program, and loaded from shared objects.

#[path = "../../disk-block-remus/testing/bench.rs"]
mod disk_bench;
#[path = "../../guest-qemu/testing/bench.rs"]
mod guest_bench;

use aventine_api::{Kind, PluginEntry, inventory};
use aventine_disk_block_remus as _;
use aventine_guest_qemu as _;
use aventine_registry::Trust;
use std::sync::OnceLock;

/// An entry that is made once.
type Once = OnceLock<&'static PluginEntry>;

/// The plugin as it is built in, behind both adapters.
fn adapted(once: &Once, kind: Kind, name: &str) -> &'static PluginEntry {
    once.get_or_init(|| {
        let mut entries = inventory::iter::<PluginEntry>();
        let entry = entries.find(|e| e.factory.kind() == kind && e.name == name).expect("it is built in");
        Box::leak(Box::new(aventine_abi::adapted(entry).expect("its entry can be read")))
    })
}

/// The plugin of its shared object.
fn loaded(once: &Once, file: &str) -> &'static PluginEntry {
    once.get_or_init(|| {
        // Where cargo puts examples: beside the directory of this test.
        let own = std::env::current_exe().unwrap();
        let file = own.ancestors().nth(2).unwrap().join("examples").join(format!("lib{file}.so"));
        // Not `load`: a built-in of that name is here, too.
        match aventine_registry::inspect(&file, Trust::OwnersOnly).map(|(_, entries)| entries) {
            Ok(entries) if entries.len() == 1 => entries[0],
            Ok(entries) => panic!("{} plugins in {}", entries.len(), file.display()),
            Err(error) => panic!("{}", error.chain()),
        }
    })
}

mod disk {
    mod adapted {
        use crate::disk_bench::{Files, Form};
        use crate::{Once, adapted};
        use aventine_api::{Kind, PluginEntry};

        struct Adapted;

        impl Form for Adapted {
            fn entry() -> &'static PluginEntry {
                static ENTRY: Once = Once::new();
                adapted(&ENTRY, Kind::Disk, "block-remus")
            }
        }

        aventine_conformance::disk!(Files<Adapted>);
    }

    mod loaded {
        use crate::disk_bench::{Files, Form};
        use crate::{Once, loaded};
        use aventine_api::PluginEntry;

        struct Loaded;

        impl Form for Loaded {
            fn entry() -> &'static PluginEntry {
                static ENTRY: Once = Once::new();
                loaded(&ENTRY, "aventine_disk_block_remus")
            }
        }

        aventine_conformance::disk!(Files<Loaded>);
    }
}

mod guest {
    mod adapted {
        use crate::guest_bench::{Counting, Form};
        use crate::{Once, adapted};
        use aventine_api::{Kind, PluginEntry};

        struct Adapted;

        impl Form for Adapted {
            fn entry() -> &'static PluginEntry {
                static ENTRY: Once = Once::new();
                adapted(&ENTRY, Kind::Guest, "qemu")
            }
        }

        aventine_conformance::guest!(Counting<Adapted>);
    }

    mod loaded {
        use crate::guest_bench::{Counting, Form};
        use crate::{Once, loaded};
        use aventine_api::PluginEntry;

        struct Loaded;

        impl Form for Loaded {
            fn entry() -> &'static PluginEntry {
                static ENTRY: Once = Once::new();
                loaded(&ENTRY, "aventine_guest_qemu")
            }
        }

        aventine_conformance::guest!(Counting<Loaded>);
    }
}
