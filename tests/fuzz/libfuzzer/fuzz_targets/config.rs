#![no_main]

// With the plugins of the program.
use aventine_arbiter_manual as _;
use aventine_arbiter_shared_file as _;
use aventine_codec_raw as _;
use aventine_disk_block_remus as _;
use aventine_guest_qemu as _;
use aventine_network_userspace as _;
use aventine_policy_adaptive as _;
use aventine_policy_fixed as _;
use aventine_transport_tcp as _;

libfuzzer_sys::fuzz_target!(|data: &[u8]| aventine_config::fuzz::config(data));
