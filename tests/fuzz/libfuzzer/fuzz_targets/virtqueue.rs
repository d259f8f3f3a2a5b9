#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aventine_export_vhost::fuzz::virtqueue(data));
