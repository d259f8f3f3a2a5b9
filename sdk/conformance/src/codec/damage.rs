//! Payloads as nobody has sent them.

use super::pages::Dice;

/// Numbers that lengths and counts go wrong at.
const EXTREMES: [u64; 10] = [
    0,
    1,
    2,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x000f_ffff_ffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_fff0,
    0xffff_ffff_ffff_ffff,
];

/// One of many ways in which `payload` could arrive damaged.
pub(super) fn damaged(payload: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = payload.to_vec();
    for _ in 0..=dice.below(3) {
        damage(&mut bytes, dice);
    }
    bytes
}

fn damage(bytes: &mut Vec<u8>, dice: &mut Dice) {
    // Lengths and page numbers stand at the beginning more often than elsewhere.
    let near = if dice.below(3) > 0 { bytes.len().min(80) } else { bytes.len() };
    let at = dice.below(near.max(1));
    match dice.below(9) {
        0 => bytes.truncate(at),
        1 => bytes.truncate(bytes.len().saturating_sub(1 + dice.below(40))),
        2 => {
            let more = 1 + dice.below(9000);
            bytes.extend(dice.noise(more));
        }
        3 => {
            let len = dice.below(300);
            *bytes = dice.noise(len);
        }
        4 => {
            let end = (at + 1 + dice.below(20)).min(bytes.len());
            drop(bytes.drain(at.min(end)..end));
        }
        5 | 6 => {
            let number = EXTREMES[dice.below(EXTREMES.len())].wrapping_add(dice.below(3) as u64);
            let number = if dice.below(2) == 0 { number.to_le_bytes() } else { number.to_be_bytes() };
            let width = [1, 2, 4, 8][dice.below(4)];
            bytes
                .iter_mut()
                .skip(at / width * width)
                .zip(&number[..width])
                .for_each(|(to, from)| *to = *from);
        }
        7 => bytes.iter_mut().skip(at).take(1).for_each(|b| *b = b.wrapping_add(1)),
        _ => bytes.iter_mut().skip(at).take(1).for_each(|b| *b ^= 1 << dice.below(8)),
    }
}
