//! Codec plugin `raw` as a shared object.

aventine_abi::export_plugin!(aventine_codec_raw);
