#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aventine_network_userspace::fuzz::copies(data));
