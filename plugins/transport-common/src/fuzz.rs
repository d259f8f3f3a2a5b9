//! Fuzz targets; see `tests/fuzz`.

use crate::config::Address;
use crate::wire::{ANSWER_LEN, Answer, MAX_NAME, MAX_STREAMS, Progress, is_name, read_greeting};

/// A connection's first bytes, as the standby reads a greeting and as the primary reads an answer, and as an address.
pub fn greeting(data: &[u8]) {
    let mut at = 0;
    while let Some(got) = data.get(..at) {
        match read_greeting(got) {
            Ok(Progress::More(more)) => {
                assert!(more > 0);
                at += more;
                assert!(at <= 29 + MAX_NAME, "a greeting of {at} bytes");
            }
            Ok(Progress::Done(greeting)) => {
                assert!(is_name(&greeting.channel));
                assert!(greeting.stream < greeting.streams && greeting.streams <= MAX_STREAMS);
                assert_eq!(greeting.encode(), got, "it was read to its last byte and not further");
                break;
            }
            Err(_) => break,
        }
    }
    if let Some(answer) = data.first_chunk::<ANSWER_LEN>()
        && let Ok(read) = Answer::decode(answer)
    {
        assert_eq!(read.encode(), *answer);
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(address) = text.parse::<Address>()
    {
        assert_eq!(address.to_string().parse(), Ok(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Greeting, Refusal};
    use aventine_fuzz::replay;

    #[test]
    fn a_greeting_is_read_to_its_last_byte() {
        let link = *b"0123456789abcdef";
        let one_of = |channel: &str, stream, streams| {
            Greeting { link, channel: channel.into(), stream, streams }.encode()
        };
        let greeting_of = |channel: &str| one_of(channel, 0, 1);
        let seeds = [
            ("control", greeting_of("control")),
            ("disk", [&greeting_of("disk:disk0")[..], b"and what follows"].concat()),
            ("longest", greeting_of(&"n".repeat(MAX_NAME))),
            ("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
            ("streams", one_of("pages", 15, MAX_STREAMS)),
            ("welcome", Answer::Welcome(MAX_STREAMS).encode().to_vec()),
            ("refused", Answer::Refused(Refusal::Taken).encode().to_vec()),
            ("address", b"[2001:db8::7]:7400".to_vec()),
        ];
        replay("greeting", &seeds, greeting);
    }
}
