#![no_main]

use aventine_codec_raw::fuzz::codec;

libfuzzer_sys::fuzz_target!(|data: &[u8]| aventine_engine::fuzz::receiver(data, codec));
