#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aventine_transport_common::fuzz::greeting(data));
