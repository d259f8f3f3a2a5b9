#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aventine_disk_block_remus::fuzz::follow(data));
