//! The built-in plugins behind the adapters and loaded from their shared objects: the rules of their kinds hold in every form.
//! In this program they are also linked in, side by side with what is loaded.

use aventine_api::{Factory, Kind, PluginEntry};
use aventine_conformance::form::{Form, Native};
use aventine_registry::Trust;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Mutex;

use {
    aventine_arbiter_command as _, aventine_arbiter_etcd as _, aventine_arbiter_manual as _,
    aventine_arbiter_shared_file as _, aventine_codec_raw as _, aventine_network_ifb as _,
    aventine_network_plug as _, aventine_network_userspace as _, aventine_policy_adaptive as _,
    aventine_policy_fixed as _, aventine_transport_file as _, aventine_transport_rdma as _,
    aventine_transport_tcp as _,
};

#[path = "../../policy-adaptive/testing/bench.rs"]
mod adaptive;
#[path = "../../arbiter-etcd/testing/cluster.rs"]
mod cluster;
#[path = "../../codec-raw/testing/bench.rs"]
mod codec_raw;
#[path = "../../arbiter-command/testing/bench.rs"]
mod command;
#[path = "../../arbiter-etcd/testing/bench.rs"]
mod etcd;
#[path = "../../transport-rdma/testing/fabric.rs"]
mod fabric;
#[path = "../../policy-fixed/testing/bench.rs"]
mod fixed;
#[path = "../../transport-tcp/testing/keys.rs"]
mod keys;
#[path = "../../arbiter-manual/testing/bench.rs"]
mod manual;
#[path = "../../transport-rdma/testing/bench.rs"]
mod rdma;
#[path = "../../arbiter-shared-file/testing/bench.rs"]
mod shared_file;
#[expect(dead_code, reason = "the plugins' own tests use more of it")]
#[path = "../../network-kernel/testing/bench.rs"]
mod taps;
#[path = "../../transport-tcp/testing/bench.rs"]
mod tcp;
#[path = "../../transport-file/testing/bench.rs"]
mod trace;
#[path = "../../network-userspace/testing/bench.rs"]
mod userspace;

/// What was made of a plugin, for as long as the process lives.
type Made = Mutex<Option<HashMap<(Kind, &'static str), &'static PluginEntry>>>;

fn once(
    made: &Made,
    native: &'static PluginEntry,
    make: impl FnOnce() -> &'static PluginEntry,
) -> &'static PluginEntry {
    let mut made = made.lock().unwrap();
    let made = made.get_or_insert_default();
    made.entry((native.factory.kind(), native.name)).or_insert_with(make)
}

/// Behind both adapters.
struct Adapted;

impl Form for Adapted {
    fn entry(kind: Kind, name: &str) -> &'static PluginEntry {
        static MADE: Made = Mutex::new(None);
        let native = Native::entry(kind, name);
        once(&MADE, native, || Box::leak(Box::new(aventine_abi::adapted(native).unwrap())))
    }
}

/// Loaded from its shared object.
struct Loaded;

impl Form for Loaded {
    fn entry(kind: Kind, name: &str) -> &'static PluginEntry {
        static MADE: Made = Mutex::new(None);
        once(&MADE, Native::entry(kind, name), || {
            let (_, entries) =
                aventine_registry::inspect(&shared_object(kind, name), Trust::OwnersOnly).unwrap();
            let [entry] = entries.as_slice() else { panic!("one plugin") };
            assert_eq!((entry.factory.kind(), entry.name), (kind, name));
            entry
        })
    }
}

/// Where cargo puts examples: beside the directory of this test.
fn shared_object(kind: Kind, name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let file = format!("libaventine_{kind}_{}.so", name.replace('-', "_"));
    own.ancestors().nth(2).unwrap().join("examples").join(file)
}

/// Every suite on every built-in, in one form.
macro_rules! parity {
    ($($module:ident = $form:ident),*) => {$(
        mod $module {
            use super::$form as Form;

            mod codec_raw {
                aventine_conformance::codec!(crate::codec_raw::Raw<super::Form>);
            }

            mod policy_adaptive {
                aventine_conformance::policy!(crate::adaptive::Adaptive<super::Form>);
            }

            mod policy_fixed {
                aventine_conformance::policy!(crate::fixed::Fixed<super::Form>);
            }

            mod arbiter_shared_file {
                aventine_conformance::arbiter!(crate::shared_file::Directory<super::Form>);
            }

            mod arbiter_manual {
                aventine_conformance::arbiter!(crate::manual::Person<super::Form>);
            }

            mod arbiter_command {
                aventine_conformance::arbiter!(crate::command::Program<super::Form>);
            }

            mod arbiter_etcd {
                aventine_conformance::arbiter!(crate::etcd::Etcd<super::Form>);
            }

            mod transport_tcp_plaintext {
                aventine_conformance::transport!(crate::tcp::Hosts<super::Form, crate::tcp::Plaintext>);
            }

            mod transport_tcp_on_three_streams {
                aventine_conformance::transport!(crate::tcp::Hosts<super::Form, crate::tcp::Encrypted, 3>);
            }

            mod transport_tcp_encrypted {
                aventine_conformance::transport!(crate::tcp::Hosts<super::Form, crate::tcp::Encrypted>);
            }

            mod transport_file {
                aventine_conformance::recorder!(crate::trace::Trace<super::Form>);
            }

            mod network_userspace {
                aventine_conformance::network!(crate::userspace::Sockets<super::Form>);
            }
        }
    )*};
}

parity!(adapted = Adapted, loaded = Loaded);

/// A plugin that holds frames in the kernel, in one form.
struct InTheKernel<F, const PLUG: bool>(PhantomData<F>);

impl<F: Form, const PLUG: bool> taps::Kind for InTheKernel<F, PLUG> {
    type Form = F;
    const PLUGIN: &'static str = if PLUG { "plug" } else { "ifb" };
    const PLUGGED: &'static str = if PLUG { "world0" } else { "ifb-confor-" };
}

/// All rules on one machine of the lab, which has such a kernel.
macro_rules! in_the_lab {
    ($($module:ident = $form:ident, $plug:literal;)*) => {$(
        mod $module {
            type Bench = crate::taps::Taps<crate::InTheKernel<crate::$form, $plug>>;

            #[test]
            fn every_rule_holds_in_the_lab() {
                aventine_lab::inside(|| {
                    for rule in aventine_conformance::network::rules::<Bench>() {
                        rule.check(module_path!()).unwrap_or_else(|violation| panic!("{violation}"));
                    }
                });
            }

            #[test]
            #[ignore = "started by a_crash_leaves_nothing_behind"]
            fn controller_that_crashes() {
                aventine_conformance::network::controller::<Bench>();
            }
        }
    )*};
}

in_the_lab! {
    adapted_network_plug = Adapted, true;
    adapted_network_ifb = Adapted, false;
    loaded_network_plug = Loaded, true;
    loaded_network_ifb = Loaded, false;
}

/// Transport `rdma`, which takes a kernel with an RDMA device.
macro_rules! rdma_in_the_lab {
    ($($module:ident = $form:ident),*) => {$(
        mod $module {
            type Bench = crate::rdma::Hosts<crate::$form>;

            #[test]
            fn every_rule_holds_in_the_lab() {
                crate::fabric::unpacked();
                aventine_lab::inside(|| {
                    crate::fabric::start();
                    for rule in aventine_conformance::transport::rules::<Bench>() {
                        rule.check(module_path!()).unwrap_or_else(|violation| panic!("{violation}"));
                    }
                });
            }

            #[test]
            #[ignore = "started by a_killed_standby_is_lost and a_killed_primary_is_lost"]
            fn peer_that_crashes() {
                aventine_conformance::transport::peer::<Bench>();
            }
        }
    )*};
}

rdma_in_the_lab!(adapted_transport_rdma = Adapted, loaded_transport_rdma = Loaded);

/// What makes the two forms others than the native one: the code that is called.
#[test]
fn each_form_has_code_of_its_own() {
    let makes = |entry: &PluginEntry| match entry.factory {
        Factory::Codec(make) => std::ptr::from_ref(make).cast::<()>(),
        _ => panic!("a codec"),
    };
    let forms = [Native::entry, Adapted::entry, Loaded::entry].map(|entry| makes(entry(Kind::Codec, "raw")));
    assert!(forms[0] != forms[1] && forms[1] != forms[2] && forms[2] != forms[0], "{forms:?}");
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(maps.contains("libaventine_codec_raw.so"));
}
