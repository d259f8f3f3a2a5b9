//! Fuzz targets; see `tests/fuzz`.

mod ram;

use crate::handshake::{Offer, negotiate};
use crate::transmission::serve;
use aventine_api::BlockDevice;
use ram::Ram;

const SIZE: usize = 4096;

/// All that a client sends, from its first byte on. Answers are as long as the requests ask for, and no longer.
pub fn nbd(data: &[u8]) {
    let device = Ram::new(vec![0xa5; SIZE]);
    let (mut input, mut output) = (data, Vec::new());
    let agreed = negotiate(&mut input, &mut output, Offer { name: "disk", size: device.size() });
    assert!(output.starts_with(b"NBDMAGICIHAVEOPT"));
    // An option has at least 16 bytes; the longest answer is that to GO with block sizes.
    assert!(output.len() <= 18 + 134 + data.len() / 16 * 128, "{} bytes of answers", output.len());
    if let Ok(Some(agreed)) = agreed {
        let most = (input.len() / 28 + 1) * (SIZE + 64);
        output.clear();
        // However it ends, it ends.
        let _ = serve(&mut input, &mut output, &device, agreed);
        assert!(output.len() <= most, "{} bytes of replies", output.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_fuzz::replay;

    fn option(number: u32, data: &[u8]) -> Vec<u8> {
        [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
    }

    fn request(flags: u16, command: u16, offset: u64, length: u32, data: &[u8]) -> Vec<u8> {
        let (flags, command) = (flags.to_be_bytes(), command.to_be_bytes());
        let magic = 0x2560_9513_u32.to_be_bytes();
        [&magic[..], &flags, &command, &[7; 8], &offset.to_be_bytes(), &length.to_be_bytes(), data].concat()
    }

    #[test]
    fn any_client_is_answered_or_cut_off() {
        let flags = 3_u32.to_be_bytes();
        let go = option(7, b"\0\0\0\x04disk\0\x01\0\x03");
        let all = [
            request(1, 1, 512, 4, b"data"),
            request(0, 0, 0, 1024, b""),
            request(0, 3, 0, 0, b""),
            request(0, 4, 100, 100, b""),
            request(2, 6, 0, 4096, b""),
            request(0, 2, 0, 0, b""),
        ];
        let seeds = [
            ("go", [&flags[..], &go, &all.concat()].concat()),
            ("structured", [&flags[..], &option(8, b""), &go, &all.concat()].concat()),
            ("export-name", [&1_u32.to_be_bytes()[..], &option(1, b"disk"), &all.concat()].concat()),
            ("list", [&flags[..], &option(3, b""), &option(6, b"\0\0\0\0\0\0"), &option(2, b"")].concat()),
        ];
        replay("nbd", &seeds, nbd);
    }
}
