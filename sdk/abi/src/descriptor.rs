/// The newest interface of this crate.
pub const ABI: u32 = 1;

/// How a descriptor begins.
pub const MAGIC: [u8; 16] = *b"aventine plugin\0";

/// What a plugin's file says about itself: plain bytes under the symbol `AVENTINE_PLUGIN`, which the host reads in the file
/// before it loads it. Its layout is the same in every version of the interface.
///
/// ```text
///   0  magic    "aventine plugin\0"
///  16  size     of the descriptor, 32 bits, this machine's byte order
///  20  abi      newest interface that the plugin offers, 32 bits
///  24  build    who built it from what, text, padded with zeros
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Descriptor {
    magic: [u8; 16],
    size: u32,
    abi: u32,
    build: [u8; Descriptor::BUILD],
}

impl Descriptor {
    /// The symbol.
    pub const SYMBOL: &'static str = "AVENTINE_PLUGIN";
    /// Bytes of the descriptor.
    pub const SIZE: usize = size_of::<Descriptor>();
    /// Most bytes of the build identity.
    pub const BUILD: usize = 232;

    /// A descriptor of this crate's interface. A build identity that is too long loses its end.
    pub const fn new(build: &str) -> Descriptor {
        let mut padded = [0; Descriptor::BUILD];
        let mut at = 0;
        while at < build.len() && at < padded.len() {
            padded[at] = build.as_bytes()[at];
            at += 1;
        }
        Descriptor { magic: MAGIC, size: size_of::<Descriptor>() as u32, abi: ABI, build: padded }
    }

    /// Reads the bytes under the symbol; `None` when they are no descriptor.
    pub fn read(bytes: &[u8]) -> Option<Descriptor> {
        let (magic, rest) = bytes.split_first_chunk::<16>()?;
        let (size, rest) = rest.split_first_chunk::<4>()?;
        let (abi, rest) = rest.split_first_chunk::<4>()?;
        let (build, _) = rest.split_first_chunk::<{ Descriptor::BUILD }>()?;
        let (size, abi) = (u32::from_ne_bytes(*size), u32::from_ne_bytes(*abi));
        let whole = size as usize >= Descriptor::SIZE;
        (*magic == MAGIC && whole).then_some(Descriptor { magic: *magic, size, abi, build: *build })
    }

    /// The newest interface that the plugin offers.
    pub fn abi(&self) -> u32 {
        self.abi
    }

    /// Who built it from what.
    pub fn build(&self) -> String {
        String::from_utf8_lossy(&self.build).trim_end_matches('\0').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_read_from_its_bytes_and_from_nothing_else() {
        let written = Descriptor::new("example 0.1.0");
        let mut bytes = MAGIC.to_vec();
        bytes.extend((Descriptor::SIZE as u32).to_ne_bytes());
        bytes.extend(ABI.to_ne_bytes());
        bytes.extend(b"example 0.1.0");
        assert_eq!(Descriptor::read(&bytes), None, "too short");
        bytes.resize(Descriptor::SIZE, 0);
        let read = Descriptor::read(&bytes).unwrap();
        assert_eq!((read, read.build(), read.abi()), (written, "example 0.1.0".into(), ABI));
        bytes[0] ^= 1;
        assert_eq!(Descriptor::read(&bytes), None, "other magic");
        assert_eq!(Descriptor::new(&"é".repeat(200)).build().chars().count(), Descriptor::BUILD / 2);
    }

    /// The one layout that no version may change.
    #[test]
    fn the_layout_of_the_descriptor_is_fixed() {
        let at = [
            std::mem::offset_of!(Descriptor, magic),
            std::mem::offset_of!(Descriptor, size),
            std::mem::offset_of!(Descriptor, abi),
            std::mem::offset_of!(Descriptor, build),
            size_of::<Descriptor>(),
        ];
        assert_eq!(at, [0, 16, 20, 24, 256]);
    }
}
