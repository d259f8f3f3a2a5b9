//! Archives that the kernel unpacks as its first file system ("newc").
//!
//! Each entry is a header of 110 ASCII characters, the name with a zero byte, padding to 4 bytes, the contents, padding
//! to 4 bytes. The entry `TRAILER!!!` ends the archive. Archives may follow one another.

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

impl Archive {
    /// Adds a directory. Those above it must have been added before.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, &[]);
    }

    /// Adds an executable file.
    pub fn file(&mut self, path: &str, contents: &[u8]) {
        self.entry(path, PROGRAM, contents);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.entry(path, LINK, target.as_bytes());
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(contents.len()).expect("a file of the guest is small");
        let name = u32::try_from(path.len() + 1).expect("a path is short");
        let (inode, links, none) = (self.entries, 1, 0);
        // inode, mode, user, group, links, time, size, device (2), special device (2), length of name, checksum
        let fields = [inode, mode, none, none, links, none, size, none, none, none, none, name, none];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_carry_their_sizes() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.file("bin/x", b"hello");
        archive.link("bin/y", "x");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let at = bytes.windows(6).position(|w| w == b"bin/x\0").unwrap();
        let header = &bytes[at - 110..at];
        assert_eq!(&header[..6], b"070701");
        assert_eq!((&header[54..62], &header[94..102]), (&b"00000005"[..], &b"00000006"[..]));
        assert_eq!(&bytes[at + 6..at + 14], b"hello\0\0\0");
        assert!(bytes.windows(11).any(|w| w == b"TRAILER!!!\0"));
    }
}
