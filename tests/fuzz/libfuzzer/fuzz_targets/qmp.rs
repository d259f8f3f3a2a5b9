#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aventine_guest_qemu::fuzz::qmp(data));
