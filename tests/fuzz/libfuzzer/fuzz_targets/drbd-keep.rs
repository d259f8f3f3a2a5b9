#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aventine_disk_drbd::fuzz::keep(data));
