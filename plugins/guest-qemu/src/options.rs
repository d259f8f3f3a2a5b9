//! The user's QEMU command: what of it must be understood, and what cannot be allowed.

use aventine_api::schemars::JsonSchema;
use aventine_api::{ConfigError, parse_config};
use serde::Deserialize;
use std::path::PathBuf;

/// The keys of a `[guest]` table with `plugin = "qemu"`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
pub(crate) struct Table {
    /// QEMU and its options, the same on both hosts. Guest RAM, QMP and the backends of networks and disks are added.
    command: Vec<String>,
    attach: Option<Attach>,
}

/// A VM that runs already.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
pub(crate) struct Attach {
    /// Unix socket of a QMP monitor that nobody else uses. Relative to the configuration.
    pub(crate) qmp: PathBuf,
    /// QEMU's process, where it is not the one that listens on `qmp`.
    pub(crate) pid: Option<i32>,
}

/// A QEMU command that can be protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Program and arguments, as configured.
    pub(crate) command: Vec<String>,
    /// On the primary, the VM to protect in place of one made by `command`.
    pub(crate) attach: Option<Attach>,
    /// Guest RAM in bytes, rounded up as QEMU does.
    pub(crate) ram: u64,
}

/// QEMU's own default and rounding.
const DEFAULT_RAM: u64 = 128 << 20;
const RAM_STEP: u64 = 8192;

/// Options that cannot be used at all, and why.
const FORBIDDEN: [(&str, &str); 13] = [
    ("daemonize", "QEMU must stay a child of Aventine, so that it ends with it"),
    ("S", "Aventine decides when the guest runs"),
    ("incoming", "Aventine adds it on the standby"),
    ("loadvm", "the standby's guest must start empty"),
    ("preconfig", "Aventine needs the machine to be complete"),
    ("mem-path", "Aventine provides guest RAM"),
    ("mem-prealloc", "Aventine provides guest RAM"),
    ("runas", "QEMU would no longer end with Aventine; start Aventine as that user"),
    ("run-with", "QEMU would no longer end with Aventine; start Aventine as that user"),
    ("chroot", "QEMU reaches its memory and its state through /proc"),
    ("no-shutdown", "a guest that has shut down must end"),
    ("readconfig", "Aventine must see every option; write them in `command`"),
    ("writeconfig", "QEMU would not run"),
];

/// Why QEMU may not stop the guest by itself.
const STOPS: &str = "a disk's error would stop the guest, and nobody would let it go on; take it away";

/// Parts of values that cannot be used: option, part, why.
const FORBIDDEN_PARTS: [(&str, &str, &str); 10] = [
    ("m", "slots=", "memory cannot be plugged in later: it would not be tracked"),
    ("m", "maxmem=", "memory cannot be plugged in later: it would not be tracked"),
    ("machine", "memory-backend=", "Aventine provides guest RAM"),
    ("machine", "memory.", "use -m"),
    ("M", "memory-backend=", "Aventine provides guest RAM"),
    ("M", "memory.", "use -m"),
    ("object", "memory-backend-", "Aventine provides guest RAM, and memory beside it would not be tracked"),
    ("numa", "memdev=", "Aventine provides guest RAM"),
    ("device", "werror=stop", STOPS),
    ("device", "rerror=stop", STOPS),
];

impl Options {
    /// Reads and checks the plugin's configuration text.
    pub(crate) fn parse(text: &str) -> Result<Options, ConfigError> {
        let Table { command, attach } = parse_config(text)?;
        if command.first().is_none_or(String::is_empty) {
            let help = "For example command = [\"qemu-system-x86_64\", \"-accel\", \"kvm\", \"-m\", \"2G\"]";
            return Err(ConfigError::bad_value(&["command"], "The command names no program", Some(help)));
        }
        if let Some(pid) = attach.as_ref().and_then(|a| a.pid)
            && pid <= 0
        {
            let message = format!("{pid} is not the number of a process");
            return Err(ConfigError::bad_value(&["attach", "pid"], message, None));
        }
        let mut ram = DEFAULT_RAM;
        for (at, argument) in command.iter().enumerate().skip(1) {
            let Some(option) = option_name(argument) else { continue };
            let value = command.get(at + 1).map_or("", String::as_str);
            check(option, value).map_err(|(message, on_value)| {
                let place = (at + usize::from(on_value)).to_string();
                ConfigError::bad_value(&["command", &place], message, None)
            })?;
            if option == "m" {
                ram = memory_size(value).ok_or_else(|| {
                    let message = format!("`-m {value}` is not a size of guest RAM");
                    let place = (at + 1).min(command.len() - 1).to_string();
                    ConfigError::bad_value(&["command", &place], message, Some("Write -m 512M or -m 2G"))
                })?;
            }
        }
        Ok(Options { command, attach, ram })
    }
}

/// QEMU takes options with one dash or two.
fn option_name(argument: &str) -> Option<&str> {
    let name = argument.strip_prefix('-')?;
    Some(name.strip_prefix('-').unwrap_or(name)).filter(|name| !name.is_empty())
}

/// What is wrong with an option; `true` when it is in the option's value.
fn check(option: &str, value: &str) -> Result<(), (String, bool)> {
    if let Some((_, why)) = FORBIDDEN.iter().find(|(name, _)| *name == option) {
        return Err((format!("`-{option}` cannot be used: {why}"), false));
    }
    if option == "action" && value.split(',').any(|part| part == "shutdown=pause") {
        return Err(("`shutdown=pause` cannot be used: a guest that has shut down must end".into(), true));
    }
    match FORBIDDEN_PARTS.iter().find(|(name, part, _)| *name == option && value.contains(part)) {
        Some((_, part, why)) => Err((format!("`{part}` cannot be used in `-{option}`: {why}"), true)),
        None => Ok(()),
    }
}

/// The value of `-m`: `512`, `512M`, `2G`, `size=2G`; MiB without a unit.
fn memory_size(value: &str) -> Option<u64> {
    let size = value.strip_prefix("size=").unwrap_or(value);
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &size[digits.len()..].to_ascii_lowercase()[..] {
        "b" => 0,
        "k" => 10,
        "" | "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    let bytes = digits.parse::<u64>().ok()?.checked_mul(1 << shift)?.checked_next_multiple_of(RAM_STEP)?;
    (bytes > 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, ConfigError> {
        let command = [&["qemu-system-x86_64"], arguments].concat();
        Options::parse(&format!("command = {command:?}"))
    }

    #[test]
    fn the_size_of_ram_is_what_qemu_makes_of_it() {
        let sizes =
            [("256", 256 << 20), ("2G", 2 << 30), ("size=2g", 2 << 30), ("1T", 1 << 40), ("8192b", 8192)];
        for (text, bytes) in sizes {
            assert_eq!(parse(&["-m", text]).unwrap().ram, bytes, "{text}");
        }
        assert_eq!(parse(&["-m", "1001k"]).unwrap().ram, 1_032_192);
        assert_eq!(parse(&["--m", "64", "-m", "32"]).unwrap().ram, 32 << 20);
        assert_eq!(parse(&[]).unwrap().ram, 128 << 20);
        for text in ["", "0", "1.5G", "x", "G", "-1", "99999999999T", "256,foo=1", "2GiB", "-smp"] {
            let error = parse(&["-m", text]).unwrap_err();
            assert_eq!(error.path, ["command", "2"], "{text}");
        }
        assert_eq!(parse(&["-m"]).unwrap_err().path, ["command", "1"]);
    }

    #[test]
    fn options_that_conflict_are_named_where_they_are() {
        let lines: [&[&str]; 14] = [
            &["-daemonize"],
            &["-S"],
            &["--S"],
            &["-incoming", "defer"],
            &["-mem-path", "/dev/shm"],
            &["-mem-prealloc"],
            &["-runas", "nobody"],
            &["-no-shutdown"],
            &["-readconfig", "x"],
            &["-chroot", "x"],
            &["-loadvm", "x"],
            &["-preconfig"],
            &["-run-with", "user=x"],
            &["-writeconfig", "x"],
        ];
        for line in lines {
            let error = parse(line).unwrap_err();
            assert_eq!(error.path, ["command", "1"]);
            assert!(error.to_string().contains(line[0].trim_start_matches('-')), "{error}");
        }
        let parts = [
            ("-m", "2G,slots=2,maxmem=4G"),
            ("-m", "2G,maxmem=4G"),
            ("-machine", "q35,memory-backend=ram"),
            ("-M", "q35,memory-backend=ram"),
            ("-object", "memory-backend-ram,id=ram,size=2G"),
            ("-object", "{\"qom-type\":\"memory-backend-memfd\",\"id\":\"ram\"}"),
            ("-numa", "node,memdev=ram"),
            ("-device", "virtio-blk-pci,drive=disk0,werror=stop"),
            ("-device", "virtio-blk-pci,rerror=stop,drive=disk0"),
            ("-action", "reboot=reset,shutdown=pause"),
        ];
        for (option, value) in parts {
            let error = parse(&[option, value]).unwrap_err();
            assert_eq!(error.path, ["command", "2"], "{error}");
            assert!(error.to_string().contains("cannot be used"), "{error}");
        }
    }

    #[test]
    fn other_options_pass() {
        let line =
            ["-accel", "kvm", "-smp", "2", "-qmp", "unix:/tmp/q,server=on", "-object", "rng-random,id=r"];
        assert_eq!(parse(&line).unwrap().command.len(), 9);
    }

    #[test]
    fn a_vm_to_attach_to_is_a_monitor_and_maybe_a_process() {
        let attach = |text: &str| Options::parse(&format!("command = ['qemu']\nattach = {text}"));
        let made = attach("{ qmp = 'vm.qmp' }").unwrap().attach;
        assert_eq!(made, Some(Attach { qmp: "vm.qmp".into(), pid: None }));
        assert_eq!(attach("{ qmp = 'vm.qmp', pid = 7 }").unwrap().attach.unwrap().pid, Some(7));
        assert_eq!(attach("{ qmp = 'vm.qmp', pid = 0 }").unwrap_err().path, ["attach", "pid"]);
        assert!(attach("{ pid = 7 }").is_err());
    }

    #[test]
    fn a_command_must_be_there() {
        assert_eq!(Options::parse("command = []").unwrap_err().path, ["command"]);
        assert_eq!(Options::parse("command = [\"\"]").unwrap_err().path, ["command"]);
        assert_eq!(Options::parse("").unwrap_err().to_string(), "missing key `command`");
        assert_eq!(Options::parse("comand = []").unwrap_err().to_string(), "unknown key `comand`");
    }
}
