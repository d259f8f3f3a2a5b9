//! The command line.

use crate::bench::disk;
use crate::exit;
use aventine_api::ConfigError;
use aventine_api::units::Quantity;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Keeps a running virtual machine alive through the loss of its host.
#[derive(Debug, Parser)]
#[command(name = "aventine", version, after_help = exit::HELP, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check a configuration file
    #[command(after_help = "\
Examples:
  aventine check /etc/aventine/web.toml
  aventine check --environment /etc/aventine/web.toml")]
    Check {
        /// The configuration file
        config: PathBuf,
        /// Also say what this host lacks for it: kernel modules, rights, devices
        #[arg(long)]
        environment: bool,
    },
    /// Run the guest here and replicate it to the standby
    #[command(after_help = "\
Example:
  aventine protect /etc/aventine/web.toml

Ctrl-C ends protection and the guest runs on; a second Ctrl-C shuts the guest down, a third ends it at once.
SIGTERM shuts the guest down. None of them makes the standby take over. If the other host has taken the guest over,
now or while this one was away, this one is its standby.")]
    Protect(Run),
    /// Receive a guest's checkpoints and take over when its host is lost
    #[command(after_help = "\
Example:
  aventine standby /etc/aventine/web.toml

Ctrl-C or SIGTERM ends it. Once it has taken over, it runs the guest as `protect` does, and protects it again as soon as
`aventine standby` runs on the other host.")]
    Standby(Run),
    /// Show what runs on this host
    #[command(after_help = "\
Examples:
  aventine status
  aventine status /etc/aventine/web.toml --json")]
    Status {
        #[command(flatten)]
        which: Which,
        /// One line of JSON for each side that runs here
        #[arg(long)]
        json: bool,
    },
    /// End protection; the guest runs on, unprotected
    #[command(after_help = "Example:\n  aventine stop /etc/aventine/web.toml")]
    Stop {
        #[command(flatten)]
        which: Which,
    },
    /// Let the standby's host run the guest; this host is the standby from then on
    #[command(after_help = "\
Example:
  aventine handover /etc/aventine/web.toml

The guest is paused for some tens of milliseconds, no client notices, and protection goes on in the other direction.
If it cannot be done, the guest runs on here.")]
    Handover {
        #[command(flatten)]
        which: Which,
    },
    /// Compare the disks' images on both hosts while the guest is protected, and repair the standby's
    #[command(after_help = "\
Examples:
  aventine verify /etc/aventine/web.toml
  aventine verify /etc/aventine/web.toml --report-only --json

The guest runs on. Images are compared in pieces of some kilobytes; what differs on the standby is sent again and compared once
more. The primary's log names each piece. Exit code 0: the images are the same now, or could be made the same. Interrupted, this
command ends, and the verification goes on; `aventine status` shows it.")]
    Verify {
        #[command(flatten)]
        which: Which,
        /// Leave the standby's images as they are
        #[arg(long)]
        report_only: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Find what a crash left of a guest on this host, remove it or finish it
    #[command(after_help = "\
Example:
  aventine reclaim /etc/aventine/web.toml

Removes sockets that nobody answers on, and what network buffers left in the kernel. Asks the arbiter about a session that was left open, which decides for good who owns
the guest, as the next start would. Says which disks a guest cannot be started from.")]
    Reclaim {
        #[command(flatten)]
        run: Run,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Try codecs, epoch policies or a standby on a recorded guest
    #[command(after_help = "\
Examples:
  aventine replay strategies.toml
  aventine replay web.trace --standby web.toml

The file names a trace and what to compare:
  trace = \"redis-set.trace\"
  [[policy]]
  plugin = \"fixed\"
  interval = \"10ms\"
  [[codec]]
  plugin = \"raw\"

Each codec runs with each policy. A trace is made by `aventine protect` with `plugin = \"file\"` in [transport].

With --standby, the checkpoints go to `aventine standby web.toml`, whose memory and disks become the recorded guest's. Its
configuration is the recorded one but for [transport]. If the recording breaks off without an end, the standby has lost its
primary and may run the guest.")]
    Replay {
        /// What to compare, and on which trace; with --standby, the trace
        file: PathBuf,
        /// Send the trace to the standby that runs with this configuration
        #[arg(long, value_name = "CONFIG")]
        standby: Option<PathBuf>,
        /// Print one line of JSON for each codec and policy, or for the standby
        #[arg(long)]
        json: bool,
    },
    /// Measure plugins against the same work without them
    #[command(
        subcommand,
        after_help = "Examples:\n  aventine bench disk\n  aventine bench network\n  aventine bench plugins PLUGIN.so …"
    )]
    Bench(Bench),
    /// List the plugins
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "\
Examples:
  aventine plugins --json
  aventine plugins /etc/aventine/web.toml
  aventine plugins inspect /usr/lib/aventine/net_example.so"
    )]
    Plugins {
        #[command(subcommand)]
        command: Option<Plugins>,
        /// A configuration file: the plugins of its shared objects are listed, too
        config: Option<PathBuf>,
        /// One line of JSON for each plugin
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON Schema of configurations, with which editors complete and check them
    #[command(after_help = "\
Examples:
  aventine schema > aventine.schema.json
  aventine schema userspace
  aventine schema --config /etc/aventine/web.toml

Editors with a TOML language server use it for a file that begins with the line
  #:schema ./aventine.schema.json")]
    Schema {
        /// Only the table of this plugin: NAME, or KIND/NAME
        plugin: Option<String>,
        /// A configuration file: the plugins of its shared objects are known, too
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Make the keys with which the hosts know each other
    #[command(after_help = "\
Example:
  aventine keys /root/aventine-keys --node alpha --node beta

Makes a CA in DIR, or uses the one there, and a key and certificate for each node. Nothing is overwritten.")]
    Keys(Keys),
    /// Protect a Redis guest on this machine, kill its host, and check that nothing was lost
    #[command(after_help = "\
Example:
  aventine demo --kernel vmlinuz --initrd demo.cpio --rounds 3

`cargo xtask demo` in the source tree makes the guest and runs this.")]
    Demo(Demo),
}

/// What else can be asked about plugins.
#[derive(Debug, Subcommand)]
pub(crate) enum Plugins {
    /// Load a shared object and list its plugins, or say why it would not be loaded
    Inspect {
        /// The shared object
        file: PathBuf,
        /// One line of JSON for each plugin
        #[arg(long)]
        json: bool,
    },
}

/// What `protect` and `standby` need.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The configuration file, the same on both hosts
    pub(crate) config: PathBuf,
    /// Where sockets and records are kept [default: aventine/NAME in /var/lib, or in ~/.local/state when not root]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Keys {
    /// Where the keys are kept; made if need be, for this user alone
    pub(crate) dir: PathBuf,
    /// A host's name, once for each host
    #[arg(long, value_name = "NAME", required = true)]
    pub(crate) node: Vec<String>,
    /// How long the certificates are valid
    #[arg(long, value_name = "N", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub(crate) days: u32,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which running program is meant.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct Which {
    /// The configuration file it was started with
    pub(crate) config: Option<PathBuf>,
    /// The state directory it was started with
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Demo {
    /// How many times the primary is killed
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Repeats the random moments of an earlier run
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Time between two epochs
    #[arg(long, value_name = "DURATION", default_value = "25ms")]
    pub(crate) interval: String,
    /// Print the result as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Leave everything running afterwards
    #[arg(long)]
    pub(crate) keep: bool,
    /// The guest's kernel
    #[arg(long, value_name = "PATH")]
    pub(crate) kernel: PathBuf,
    /// The guest's initramfs
    #[arg(long, value_name = "PATH")]
    pub(crate) initrd: PathBuf,
    /// Directory for images, sockets and logs
    #[arg(long, value_name = "DIR", default_value = "aventine-demo")]
    pub(crate) work: PathBuf,
    /// Record the guest under load to this file, a small trace for `aventine replay`, instead of killing its host
    #[arg(long, value_name = "FILE", conflicts_with_all = ["keep", "rounds"])]
    pub(crate) record: Option<PathBuf>,
    /// Use the plugins of the shared objects in this directory, and none that are built in
    #[arg(long, value_name = "DIR")]
    pub(crate) plugins: Option<PathBuf>,
    /// Use the tables in this file, such as `[policy]` and `[plugins]`, in place of the demo's own
    #[arg(long, value_name = "FILE")]
    pub(crate) tables: Option<PathBuf>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Disks: reads and writes a second, and what a seal adds to the pause
    #[command(after_help = disk::HELP)]
    Disk(disk::Arguments),
    /// Transports: pages a second, round trips of checkpoints, and processor time
    #[command(after_help = "\
Examples:
  aventine bench transport
  aventine bench transport --tls on --streams 2 --svg transport.svg

Both ends are in this process, on the loopback interface. Pages do not compress. The floor is a bare TCP connection that carries
the same pages, and with --tls on one that rustls alone encrypts, measured in turn. Needs 512 MiB of memory.")]
    Transport {
        /// Which plugin; it has the keys `listen`, `peer`, and `tls` or `unsafe_plaintext`
        #[arg(long, value_name = "NAME", default_value = "tcp")]
        plugin: String,
        /// Whether it encrypts; keys are made for the run
        #[arg(long, value_name = "WHETHER", default_value = "off")]
        tls: Switch,
        /// The plugin's `streams`; without that key, channels that send pages at the same time
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
        streams: u32,
        /// Bytes of pages that are sent each time
        #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = disk_size)]
        size: u64,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// Also draw the figures
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Network buffers: the epoch verbs, and frames a second
    #[command(after_help = "\
Example:
  aventine bench network --plugin userspace --plugin ifb

Each plugin holds and releases the frames of a guest in a network namespace of its own; the floor is the same way without it,
measured in turn. Needs root; `plug` and `ifb` need the kernel's sch_plug.")]
    Network {
        /// Which plugins; all of them if none is given
        #[arg(long, value_name = "NAME")]
        plugin: Vec<String>,
        /// Epochs whose verbs are timed
        #[arg(long, value_name = "N", default_value_t = 1000)]
        epochs: u64,
        /// Frames of each count
        #[arg(long, value_name = "N", default_value_t = 200_000)]
        frames: u64,
        /// Print one line of JSON for each plugin
        #[arg(long)]
        json: bool,
    },
    /// What a loaded plugin costs more than a built-in one, in an epoch of 1,000 pages
    #[command(after_help = "\
Example, in the source tree:
  cargo build -p aventine-so --examples
  aventine bench plugins target/debug/examples/libaventine_codec_raw.so \\
      target/debug/examples/libaventine_policy_fixed.so

The built-in plugins, the same behind both adapters of the plugin interface, and the loaded ones do the same work in turn.")]
    Plugins {
        /// Shared objects with a codec and a policy that are built in as well
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Epochs
        #[arg(long, value_name = "N", default_value_t = 4000)]
        epochs: u64,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// The size of a disk, or as much as that.
pub(crate) fn disk_size(text: &str) -> Result<u64, ConfigError> {
    u64::parse_key(&[], text, &(16 << 20..=1 << 40))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed_and_documented() {
        let mut cli = Cli::command();
        cli.build();
        cli.clone().debug_assert();
        for command in cli.get_subcommands().filter(|c| c.get_name() != "help") {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(
                help.contains(&format!("aventine {}", command.get_name())),
                "{}: {help}",
                command.get_name()
            );
        }
    }
}
