//! A guest that fits into a boot sector, and the machine that it runs in.

/// The first page of those that the counting guest increments, one after the other.
pub(crate) const FIRST_COUNTER: usize = 0x10;

/// ```text
/// 00        xor ax, ax          ; segments and stack
/// 02        mov ds, ax
/// 04        mov ss, ax
/// 06        mov sp, 0x7c00
/// 09        mov [drive], dl
/// 0d round: mov ax, 0x1000
/// 10 page:  mov es, ax
/// 12        inc dword es:[0]
/// 18        add ax, 0x100       ; the next page
/// 1b        cmp ax, 0x9000
/// 1e        jb page
/// 20        mov si, packet      ; read a sector to 0x90000
/// 23        mov ah, 0x42
/// 25        mov dl, [drive]
/// 29        int 0x13
/// 2b        inc byte [sector]
/// 2f        and byte [sector], 7
/// 34        jmp round
/// 36 drive: db 0
/// 37 packet: db 16, 0, 1, 0 ; dw 0, 0x9000
/// 3f sector: dq 0
/// ```
pub(crate) const COUNTING: [u8; 0x47] = [
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0x88, 0x16, 0x36, 0x7c, 0xb8, 0x00, 0x10, 0x8e,
    0xc0, 0x26, 0x66, 0xff, 0x06, 0x00, 0x00, 0x05, 0x00, 0x01, 0x3d, 0x00, 0x90, 0x72, 0xf0, 0xbe, 0x37,
    0x7c, 0xb4, 0x42, 0x8a, 0x16, 0x36, 0x7c, 0xcd, 0x13, 0xfe, 0x06, 0x3f, 0x7c, 0x80, 0x26, 0x3f, 0x7c,
    0x07, 0xeb, 0xd7, 0x00, 0x10, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x90, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// A disk that boots `code`. Its first 8 sectors are all different.
pub(crate) fn boot_disk(code: &[u8]) -> Vec<u8> {
    let mut disk = (0..8u8).flat_map(|sector| [0x10 + sector; 512]).collect::<Vec<_>>();
    disk[..512].fill(0);
    disk[..code.len()].copy_from_slice(code);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    // Less than a cylinder is no disk to the firmware.
    disk.resize(1 << 20, 0);
    disk
}

/// A machine that has nothing which would be refused.
pub(crate) fn command(extra: &[&str]) -> Vec<String> {
    let base = ["qemu-system-x86_64", "-accel", "tcg", "-m", "16M", "-nodefaults", "-display", "none"];
    base.iter().chain(extra).map(|s| (*s).to_owned()).collect()
}
