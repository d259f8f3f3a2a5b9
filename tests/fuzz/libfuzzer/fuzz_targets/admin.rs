#![no_main]

#[allow(dead_code, reason = "the program uses more of it")]
#[path = "../../../../core/daemon/src/admin.rs"]
mod admin;

libfuzzer_sys::fuzz_target!(|data: &[u8]| admin::fuzz::admin(data));
