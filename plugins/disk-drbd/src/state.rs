//! What DRBD says about a resource: one line of `/proc/drbd`, and for a connection that ended, the kernel's log.
//!
//! ```text
//!  0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----
//!     ns:4 nr:0 dw:4 dr:0 al:1 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:0
//! ```
//! The kernel writes it without the help of a program, under its own lock, so it is one moment's.

/// This host's part, or the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Primary,
    Secondary,
    Unknown,
}

/// What a side's disk is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    UpToDate,
    /// Whole, but perhaps older than the other side's.
    Outdated,
    /// In the middle of a resync.
    Inconsistent,
    /// No disk, or one that failed.
    None,
    /// The other side's while nothing is connected.
    Unknown,
}

/// Where the connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    Connected,
    /// DRBD tries by itself.
    Connecting,
    /// DRBD does not try.
    StandAlone,
    /// Blocks are on their way to bring one side up to date; also just before and in a break.
    Resyncing,
}

/// One moment of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) connection: Connection,
    /// DRBD's own word for the connection.
    pub(crate) word: String,
    pub(crate) role: Role,
    pub(crate) peer: Role,
    pub(crate) contents: Contents,
    pub(crate) peer_contents: Contents,
    pub(crate) protocol: char,
    /// Bytes that differ between the sides, by DRBD's own account.
    pub(crate) differ: u64,
}

impl State {
    /// Whether whatever write has returned by now is on both sides. A connection that broke and came back in between shows as
    /// a resync until it has made up for what was missed.
    pub(crate) fn on_both(&self) -> bool {
        self.connection == Connection::Connected
            && (self.contents, self.peer_contents) == (Contents::UpToDate, Contents::UpToDate)
    }
}

/// The version that `/proc/drbd` begins with.
pub(crate) fn version(text: &str) -> Option<&str> {
    text.lines().next()?.strip_prefix("version: ")?.split_whitespace().next()
}

/// The state of `minor` in `/proc/drbd`; `None`: it is not configured, or not understood.
pub(crate) fn parse(text: &str, minor: u32) -> Option<State> {
    let start = format!("{minor}: ");
    let mut lines = text.lines().skip_while(|line| !line.trim_start().starts_with(&start));
    let line = lines.next()?.trim_start().strip_prefix(&start)?;
    let mut words = line.split_whitespace();
    let word = words.next()?.strip_prefix("cs:")?;
    let (role, peer) = words.next()?.strip_prefix("ro:")?.split_once('/')?;
    let (contents, peer_contents) = words.next()?.strip_prefix("ds:")?.split_once('/')?;
    let protocol = words.next()?.chars().next()?;
    let of_this = lines.take_while(|line| !line.trim_start().starts_with(|c: char| c.is_ascii_digit()));
    let differ = of_this
        .flat_map(str::split_whitespace)
        .find_map(|word| word.strip_prefix("oos:")?.parse::<u64>().ok())
        .unwrap_or(0);
    Some(State {
        connection: connection(word),
        word: word.to_owned(),
        role: self::role(role),
        peer: self::role(peer),
        contents: self::contents(contents),
        peer_contents: self::contents(peer_contents),
        protocol,
        differ: differ.saturating_mul(1024),
    })
}

fn role(word: &str) -> Role {
    match word {
        "Primary" => Role::Primary,
        "Secondary" => Role::Secondary,
        _ => Role::Unknown,
    }
}

fn contents(word: &str) -> Contents {
    match word {
        "UpToDate" => Contents::UpToDate,
        "Outdated" | "Consistent" => Contents::Outdated,
        "Inconsistent" => Contents::Inconsistent,
        "Diskless" | "Failed" => Contents::None,
        _ => Contents::Unknown,
    }
}

fn connection(word: &str) -> Connection {
    match word {
        // A verification only reads.
        "Connected" | "VerifyS" | "VerifyT" => Connection::Connected,
        "StandAlone" => Connection::StandAlone,
        "WFConnection" | "WFReportParams" | "Unconnected" | "Disconnecting" | "Timeout" | "BrokenPipe"
        | "NetworkFailure" | "ProtocolError" | "TearDown" => Connection::Connecting,
        _ => Connection::Resyncing,
    }
}

/// Why DRBD gave a connection up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quarrel {
    /// Both sides were written to on their own.
    SplitBrain,
    /// The sides never had the same contents.
    Unrelated,
}

/// What the kernel's log says last about the connection of `minor`.
pub(crate) fn quarrel(log: &str, minor: u32) -> Option<Quarrel> {
    let of = format!("block drbd{minor}: ");
    let said = log.lines().filter_map(|line| Some(line.split_once(&of)?.1));
    let mut news = said.filter_map(|text| match text {
        _ if text.starts_with("Split-Brain detected but unresolved") => Some(Some(Quarrel::SplitBrain)),
        _ if text.starts_with("Unrelated data") => Some(Some(Quarrel::Unrelated)),
        _ if text.contains("-> Connected") || text.contains("-> WFBitMap") => Some(None),
        _ => None,
    });
    news.next_back().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "version: 8.4.11 (api:1/proto:86-101)\nsrcversion: 0123456789ABCDEF \n \
         0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----\n    \
         ns:4 nr:0 dw:4 dr:0 al:1 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:0\n \
         1: cs:Unconfigured\n\
         10: cs:SyncSource ro:Secondary/Secondary ds:UpToDate/Inconsistent A r-----\n    \
         ns:4 nr:0 dw:4 dr:0 al:1 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:1024\n\t[=>....] sync'ed: 5.0% (1024/2048)K\n \
         2: cs:StandAlone ro:Primary/Unknown ds:UpToDate/DUnknown   r-----\n    ns:0 oos:8\n";

    #[test]
    fn a_minor_is_found_among_others() {
        assert_eq!(version(TEXT), Some("8.4.11"));
        let connected = parse(TEXT, 0).unwrap();
        assert!(connected.on_both());
        assert_eq!(
            (connected.role, connected.peer, connected.protocol),
            (Role::Primary, Role::Secondary, 'C')
        );
        let source = parse(TEXT, 10).unwrap();
        assert_eq!((source.connection, source.differ), (Connection::Resyncing, 1 << 20));
        assert_eq!((source.peer_contents, source.word.as_str()), (Contents::Inconsistent, "SyncSource"));
        assert!(!source.on_both());
        let alone = parse(TEXT, 2).unwrap();
        assert_eq!((alone.connection, alone.peer), (Connection::StandAlone, Role::Unknown));
        assert_eq!(alone.differ, 8 << 10);
        assert_eq!(parse(TEXT, 1), None);
        assert_eq!(parse(TEXT, 3), None);
    }

    #[test]
    fn the_last_word_of_the_log_counts() {
        let split = "4,1,2,-;block drbd1: Split-Brain detected but unresolved, dropping connection!\n";
        let again = "6,1,3,-;block drbd1: conn( WFReportParams -> Connected )\n";
        assert_eq!(quarrel(split, 1), Some(Quarrel::SplitBrain));
        assert_eq!(quarrel(split, 11), None);
        assert_eq!(quarrel(&[split, again].concat(), 1), None);
        assert_eq!(quarrel("block drbd1: Unrelated data, aborting!\n", 1), Some(Quarrel::Unrelated));
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "[ 0-9a-z:/\\n]{0,200}", minor in 0..20_u32) {
            let _ = (parse(&text, minor), version(&text), quarrel(&text, minor));
        }
    }
}
