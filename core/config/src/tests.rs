//! Whole files and what is said about them. The plugins here exist for these tests only.

use crate::{Config, ConfigErrors, Frontend, Strategies};
use aventine_api::{ConfigError, ErrorCode, Factory, Kind, PluginEntry, PluginError, parse_config};
use proptest::prelude::*;
use serde::Deserialize;
use std::fs;
use std::path::Path;
use std::time::Duration;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BoxKeys {
    command: Vec<String>,
    nic: Option<Nic>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only parsed")]
struct Nic {
    tap: String,
    queues: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FixedKeys {
    interval: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoKeys {}

#[derive(Debug, thiserror::Error)]
#[error("Made for checking only")]
struct CheckOnly;

fn check_only() -> PluginError {
    PluginError::new(ErrorCode::Unavailable, CheckOnly)
}

fn fixed(text: &str) -> Result<(), ConfigError> {
    let keys: FixedKeys = parse_config(text)?;
    match keys.interval.as_deref() {
        Some("0ms") => {
            Err(ConfigError::bad_value(&["interval"], "an interval of zero", Some("use \"25ms\"")))
        }
        _ => Ok(()),
    }
}

macro_rules! plugin {
    ($kind:ident, $name:literal, $validate:expr) => {
        aventine_api::inventory::submit! {
            PluginEntry {
                name: $name,
                version: "1.0.0",
                summary: "For tests",
                validate: &$validate,
                schema: &|| "true".to_owned(),
                factory: Factory::$kind(&|_, _| Err(check_only())),
                upkeep: None,
            }
        }
    };
}

plugin!(Guest, "box", |text| parse_config::<BoxKeys>(text).map(drop));
plugin!(Network, "held", |text| parse_config::<NoKeys>(text).map(drop));
plugin!(Disk, "mirror", |text| parse_config::<NoKeys>(text).map(drop));
plugin!(Transport, "wire", |text| parse_config::<NoKeys>(text).map(drop));
plugin!(Transport, "wireless", |text| parse_config::<NoKeys>(text).map(drop));
plugin!(Policy, "fixed", fixed);
plugin!(Codec, "raw", |text| parse_config::<NoKeys>(text).map(drop));
plugin!(Arbiter, "oracle", |text| parse_config::<NoKeys>(text).map(drop));

const GUEST: &str = "[guest]\nplugin = \"box\"\ncommand = [\"run\"]\n";
const REST: &str = "[transport]\nplugin = \"wire\"\n[arbiter]\nplugin = \"oracle\"\n";

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(text, Path::new("web.toml"))
}

fn report(text: &str) -> String {
    match parse(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(e) => e.to_string(),
    }
}

/// A file whose text is `top` and otherwise complete.
fn with(top: &str) -> String {
    format!("{top}\n{GUEST}{REST}")
}

#[test]
fn a_whole_file_is_read() {
    let text = format!(
        "name = 'web-1.a'\nstaging = '1GiB'\nheartbeat = '20ms'\ndetection = '60ms'\naudit = {{ every = 1000 }}\n{GUEST}{REST}
        [guest.nic]\ntap = 't\\x'\n[[network]]\nplugin = 'held'\n[[network]]\nplugin = 'held'\nid = 'lan'
        [[disk]]\nplugin = 'mirror'\n[policy]\ninterval = '10ms'\n"
    );
    let config = Config::parse(&text, Path::new("/etc/aventine/web.toml")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config.name, "web-1.a");
    assert_eq!(config.dir, Path::new("/etc/aventine"));
    assert_eq!((config.staging, config.audit), (1 << 30, Some(1000)));
    assert_eq!((config.heartbeat, config.detection), (Duration::from_millis(20), Duration::from_millis(60)));
    let plugins: Vec<_> = config.plugins().map(|(kind, i)| (kind, i.id.as_str(), i.entry.name)).collect();
    assert_eq!(
        plugins,
        [
            (Kind::Guest, "guest", "box"),
            (Kind::Network, "net0", "held"),
            (Kind::Network, "lan", "held"),
            (Kind::Disk, "disk0", "mirror"),
            (Kind::Transport, "transport", "wire"),
            (Kind::Policy, "policy", "fixed"),
            (Kind::Codec, "codec", "raw"),
            (Kind::Arbiter, "arbiter", "oracle"),
        ]
    );
    let keys: BoxKeys = parse_config(&config.guest.config).unwrap();
    assert_eq!((keys.command, keys.nic.unwrap().tap), (vec!["run".to_owned()], "t\\x".to_owned()));
    assert_eq!(config.policy.config.trim(), "interval = \"10ms\"");
}

#[test]
fn what_may_be_left_out_has_its_default() {
    let config = parse(&with("name = 'web'")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((config.staging, config.audit), (256 << 20, None));
    assert_eq!((config.heartbeat, config.detection), (Duration::from_millis(50), Duration::from_millis(500)));
    assert!(config.networks.is_empty() && config.disks.is_empty());
    assert_eq!((config.policy.entry.name, config.codec.entry.name), ("fixed", "raw"));
}

#[test]
fn numbers_are_read_in_every_notation_of_toml() {
    for number in ["1000", "1_000", "+1000", "0x3e8", "0o1750", "0b11_1110_1000"] {
        let text = with(&format!("name = 'web'\naudit.every = {number}"));
        assert_eq!(parse(&text).unwrap_or_else(|e| panic!("{e}")).audit, Some(1000), "{number}");
    }
}

#[test]
fn an_unknown_key_shows_its_place_and_what_was_meant() {
    assert_eq!(
        report(&with("name = \"web\"\ndetecton = \"500ms\"")),
        "\
error: unknown key `detecton`
 --> web.toml:2:1
  |
2 | detecton = \"500ms\"
  | ^^^^^^^^ did you mean `detection`?
  |
  = help: known keys: name, staging, heartbeat, detection, audit, plugins, guest, network, disk, transport, policy, codec, arbiter

web.toml is not valid: 1 problem"
    );
}

#[test]
fn an_unknown_plugin_lists_the_known_ones() {
    let text =
        format!("name = \"web\"\n{GUEST}[transport]\nplugin = \"wird\"\n[arbiter]\nplugin = \"box\"\n");
    assert_eq!(
        report(&text),
        "\
error: unknown transport plugin `wird`
 --> web.toml:6:10
  |
6 | plugin = \"wird\"
  |          ^^^^^^ did you mean `wire`?
  |
  = help: known transport plugins: wire, wireless

error: unknown arbiter plugin `box`
 --> web.toml:8:10
  |
8 | plugin = \"box\"
  |          ^^^^^ this is a plugin for [guest]
  |
  = help: known arbiter plugins: oracle

web.toml is not valid: 2 problems"
    );
}

#[test]
fn a_plugins_error_is_found_in_the_file() {
    let text =
        format!("name = 'web'\n{REST}\n# the guest\n{GUEST}nic = {{ queues = 2, tapp = 't', z = 1 }}\n");
    assert_eq!(
        report(&text),
        "\
error: unknown key `tapp`
  --> web.toml:11:21
   |
11 | nic = { queues = 2, tapp = 't', z = 1 }
   |                     ^^^^ did you mean `tap`?
   |
   = help: keys of guest plugin `box` here: tap, queues

error: unknown key `z`
  --> web.toml:11:33
   |
11 | nic = { queues = 2, tapp = 't', z = 1 }
   |                                 ^ not a key of guest plugin `box`
   |
   = help: keys of guest plugin `box` here: tap, queues

web.toml is not valid: 2 problems"
    );
    for (keys, place) in [
        ("[guest.nic]\nqueues = 2\n", "error: missing key `tap`\n --> web.toml:5:1"),
        ("[guest.nic]\ntap = 't'\nqueues = 'x'\n", " --> web.toml:7:10"),
        ("nic.tap = [\n 1 ]\n", "error: invalid type: sequence, expected a string\n --> web.toml:5:11"),
        ("nic.tap = 99999999999999999999\n", "error: the number is out of range\n --> web.toml:5:11"),
    ] {
        let said = report(&format!("name = 'web'\n{GUEST}{keys}{REST}"));
        assert!(said.contains(place), "{said}");
    }
    let said = report("name = 'web'\n[guest]\nplugin = 'box'\ncommand = [\n  'a',\n  5 ]\n");
    assert!(said.contains("web.toml:6:3\n") && said.contains("6 |   5 ]"), "{said}");
    let said = report(&with("name = 'web'\npolicy.interval = '0ms'"));
    assert!(said.contains("error: an interval of zero\n --> web.toml:2:19"), "{said}");
    assert!(said.contains("= help: use \"25ms\""), "{said}");
}

#[test]
fn what_is_required_is_missed_by_name_with_the_reason() {
    let said = report("");
    for text in [
        "missing key `name`",
        "missing table `[guest]`",
        "missing table `[transport]`",
        "missing table `[arbiter]`",
        "it decides which of them owns the guest",
        "known arbiter plugins: oracle",
        "web.toml is not valid: 4 problems",
    ] {
        assert!(said.contains(text), "{text}:\n{said}");
    }
    let said = report(&format!("name = 'web'\n[guest]\ncommand = ['x']\n{REST}"));
    assert!(said.contains("missing key `plugin`\n --> web.toml:2:1"), "{said}");
    assert!(said.contains("known guest plugins: box"), "{said}");
    let said = report(&format!("nam = 'web'\n{GUEST}{REST}"));
    assert!(said.ends_with("web.toml is not valid: 1 problem"), "a misspelt key is one problem:\n{said}");
}

#[test]
fn bad_values_of_the_top_level_say_what_fits() {
    for (top, parts) in [
        ("name = 5", &["`name` is not a string", "expected a string, found an integer"][..]),
        ("name = '../web'", &["`name` cannot be used in file names", "letter or digit first"]),
        (
            "name = 'web'\nheartbeat = 50",
            &["`heartbeat` is not a duration", ":2:13", "found an integer", "\"50ms\""],
        ),
        ("name = 'web'\nstaging = '256MB'", &["`staging` is not a size", "\"256MiB\""]),
        ("name = 'web'\nstaging = '1MiB'", &["`staging` is out of range", "from 16MiB to 64GiB"]),
        ("name = 'web'\nheartbeat = '0ms'", &["`heartbeat` is out of range", "from 1ms to 10s"]),
        (
            "name = 'web'\ndetection = '140ms'",
            &["shorter than three heartbeats", ":2:13", "\"150ms\" or more"],
        ),
        ("name = 'web'\nheartbeat = '200ms'", &[":2:13", "`detection` is 500ms, its default", "\"600ms\""]),
        ("name = 'web'\nheartbeat = '1s'\ndetection = '2s'", &[":3:13", "---- three of these", "\"3s\""]),
        ("name = 'web'\naudit = 5", &["`audit` is not a table", ":2:9", "found an integer", "every = 4000"]),
        ("name = 'web'\naudit = {}", &["missing key `every`", ":2:9", "every = 4000"]),
        (
            "name = 'web'\naudit.every = '1s'",
            &["`every` is not a number of epochs", ":2:15", "found a string"],
        ),
        ("name = 'web'\naudit.every = 0", &["`every` is out of range", "from 1 to 1000000 epochs"]),
        ("name = 'web'\naudit.every = 0x1_0000_0000", &["`every` is out of range"]),
        ("name = 'web'\naudit.every = -1", &["`every` is out of range"]),
        (
            "name = 'web'\naudit = { every = 5, ever = 1 }",
            &["unknown key `ever`", ":2:22", "known keys: every"],
        ),
        ("name = 'web'\nnetwork = {}", &["`network` is not a list of tables", "write [[network]]"]),
        ("name = 'web'\ndisk = 3", &["`disk` is not a list of tables", "write [[disk]]"]),
        ("name = 'web'\n[[codec]]", &["`codec` is not a table", "there can be one only: write [codec]"]),
    ] {
        let said = report(&with(top));
        for part in parts {
            assert!(said.contains(part), "{part}:\n{said}");
        }
        assert!(said.ends_with("1 problem"), "{said}");
    }
}

#[test]
fn each_disk_has_a_front_end_that_is_not_the_plugins_business() {
    let disks = |keys: &[&str]| {
        let tables: String = keys.iter().map(|key| format!("[[disk]]\nplugin = 'mirror'\n{key}\n")).collect();
        format!("name = 'web'\n{GUEST}{REST}{tables}")
    };
    let config = parse(&disks(&[
        "frontend = 'vhost-user'",
        "",
        "frontend = 'nbd'",
        "frontend = 'vhost-user'\nblock_size = 4096",
    ]));
    let config = config.unwrap_or_else(|e| panic!("{e}"));
    let vhost_user = |block| Frontend::VhostUser { block };
    assert_eq!(config.frontends, [vhost_user(512), Frontend::Nbd, Frontend::Nbd, vhost_user(4096)]);
    // The plugin knows no key at all.
    assert!(config.disks.iter().all(|disk| disk.config.trim().is_empty()));

    for (keys, what) in [
        ("frontend = 'vhost-user'\nblock_size = 8192", "write 512, the default, 1024, 2048 or 4096"),
        ("frontend = 'vhost-user'\nblock_size = '4096'", "`block_size` is no size of a block"),
        ("block_size = 4096", "logical_block_size=4096"),
    ] {
        assert!(report(&disks(&[keys])).contains(what), "{keys}");
    }
    let said = report(&disks(&["", "frontend = 'scsi'", "frontend = 5"]));
    for part in [
        "`frontend` is not a front-end for disks",
        ":14:12",
        "write \"nbd\", the default, or \"vhost-user\"",
        ":17:12",
        "2 problems",
    ] {
        assert!(said.contains(part), "{part}:\n{said}");
    }
    let said =
        report(&format!("name = 'web'\n{GUEST}{REST}[[network]]\nplugin = 'held'\nfrontend = 'nbd'\n"));
    assert!(said.contains("unknown key `frontend`"), "{said}");
}

#[test]
fn ids_are_unique_and_fit_into_file_names() {
    let disks = |list: &[&str]| {
        let tables: String = list.iter().map(|id| format!("[[disk]]\nplugin = 'mirror'\n{id}\n")).collect();
        report(&format!("name = 'web'\n{GUEST}{REST}{tables}"))
    };
    let said = disks(&["id = 'disk1'", ""]);
    assert!(said.contains("the id `disk1` is used twice"), "{said}");
    assert!(said.contains("11 | id = 'disk1'\n   |      ------- first used here"), "{said}");
    assert!(said.contains("12 | [[disk]]\n   | ^^^^^^^^ used again"), "{said}");
    let said = disks(&["id = 'guest'", "id = 'a/b'", "id = 7"]);
    for part in
        ["the id `guest` is taken", "`id` cannot be used in file names", "found an integer", "3 problems"]
    {
        assert!(said.contains(part), "{part}:\n{said}");
    }
}

#[test]
fn broken_toml_is_shown_in_the_same_form() {
    assert_eq!(
        report("name = \"web\"\nname = \"wob\"\n"),
        "\
error: not TOML: duplicate key
 --> web.toml:2:1
  |
2 | name = \"wob\"
  | ^^^^

web.toml is not valid: 1 problem"
    );
    let said = report("name = 'web\n");
    assert!(said.starts_with("error: not TOML: ") && said.contains(" --> web.toml:1:"), "{said}");
}

#[test]
fn hostile_text_is_refused_with_its_place() {
    let deep = report(&format!("x = {}1{}", "[".repeat(50), "]".repeat(50)));
    assert!(deep.contains("nested more than 32 levels deep\n --> web.toml:1:37"), "{deep}");
    let deeper = report(&format!("x = {}", "[".repeat(100_000)));
    assert!(deeper.starts_with("error: not TOML: "), "{deeper}");
    let dotted = "a.".repeat(70) + "a";
    let tables =
        report(&format!("[{dotted}]\n{dotted} = {}1{}", format!("{{{dotted}=").repeat(70), "}".repeat(70)));
    assert!(tables.contains("nested more than 32 levels deep"), "{tables}");
    let said = report(
        "name = \"\\u001b[31m\"\n\"\\u001b[31m\" = 1\nx = '\u{1b}[31m'\n[arbiter]\nplugin = \"\\u001b\"\n",
    );
    assert!(!said.contains('\u{1b}'), "{said:?}");
    // One character that begins a control sequence as ESC [ does.
    let said = report("name\u{9b}2J = 1\nname = \"\u{9b}31m\"\nx\u{85} = 1\n");
    assert!(!said.chars().any(|c| c.is_control() && c != '\n'), "{said:?}");
    let said = report("name = 'ő'\r\nx = 1\r\n");
    assert!(said.contains("web.toml:2:1\n"), "{said}");
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let load = |path: &Path| Config::load(path).map(drop).unwrap_err();
    let path = dir.path().join("web.toml");
    assert_eq!(load(&path).to_string(), format!("There is no configuration file {}", path.display()));
    assert!(matches!(load(dir.path()), ConfigErrors::Directory(_)));
    assert!(matches!(load(&path.join("x")), ConfigErrors::Read { .. } | ConfigErrors::Missing(_)));
    fs::write(&path, b"name = 'web'\nx = '\xc5\x91 \xff'\n").unwrap();
    assert_eq!(
        load(&path).to_string(),
        format!("{}:2:8: byte 0xff is not UTF-8; a configuration is UTF-8 text", path.display())
    );
    assert!(matches!(load(Path::new("/dev/zero")), ConfigErrors::TooLarge { .. }));
    fs::write(&path, with("name = 'web'")).unwrap();
    let config = Config::load(&path).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config.dir, dir.path());
}

/// Text near enough to a configuration to reach every check.
fn nearly() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "name",
        "web",
        "staging",
        "heartbeat",
        "detection",
        "audit",
        "every",
        "guest",
        "network",
        "disk",
        "id",
        "plugin",
        "box",
        "held",
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "=",
        " = ",
        ".",
        ",",
        "'",
        "\"",
        "\n",
        "\r\n",
        "#",
        "50ms",
        "16MiB",
        "5",
        "-",
        "1e999",
        "\\u001b",
        "ő",
        "\t",
        "true",
        "command",
        "nic",
        "tap",
        "queues",
        "policy",
        "interval",
        "'0ms'",
    ]);
    prop::collection::vec(piece, 0..60).prop_map(|p| p.concat())
}

proptest! {
    #[test]
    fn random_text_never_panics(text in prop_oneof![any::<String>(), nearly(), nearly().prop_map(|t| with(&t))]) {
        if let Err(e) = parse(&text) {
            prop_assert!(!e.to_string().is_empty());
        }
    }
}

#[test]
fn strategies_have_ids_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("strategies.toml");
    let load = |text: &str| {
        fs::write(&file, text).unwrap();
        Strategies::load(&file).map_err(|e| e.to_string())
    };
    let text = "trace = 'a'\n[[policy]]\nid = 'short'\nplugin = 'fixed'\n[[policy]]\nplugin = 'fixed'";
    let strategies = load(text).unwrap_or_else(|e| panic!("{e}"));
    let ids: Vec<_> = strategies.policies.iter().map(|p| p.id.as_str()).collect();
    assert_eq!((ids, strategies.codecs.len()), (vec!["short", "policy1"], 1));
    assert!(load(&format!("{text}\nid = 'short'")).err().unwrap().contains("used twice"));
}

/// Shared objects are loaded before the plugins' tables are read, from where the file is, and each with its own place in
/// the file when it cannot be.
#[test]
fn shared_objects_are_loaded_by_their_paths() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.toml");
    let load = |plugins: &str| {
        fs::write(&file, with(&format!("name = 'web'\n[plugins]\n{plugins}"))).unwrap();
        Config::load(&file).map_err(|e| e.to_string())
    };
    assert!(load("load = []").is_ok());
    fs::write(dir.path().join("words.so"), "no ELF").unwrap();
    let told = load("load = ['words.so',\n  '/no/such/file.so']").err().unwrap();
    for words in
        ["words.so is not a shared object", "web.toml:3:9", "there is no file /no/such/file.so", "4 |"]
    {
        assert!(told.contains(words), "{words}: {told}");
    }
    for (plugins, words) in [
        ("loads = []", "did you mean `load`?"),
        ("load = 'words.so'", "expected an array of strings, found a string"),
        ("load = [1]", "expected a string, found an integer"),
        ("unsafe_writable = 'yes'", "expected a boolean, found a string"),
    ] {
        let told = load(plugins).err().unwrap();
        assert!(told.contains(words), "{words}: {told}");
    }
    let anywhere = with("name = 'web'\n[plugins]\nload = ['/no/such/file.so']");
    assert!(parse(&anywhere).is_ok(), "parsing alone touches no file");
}
