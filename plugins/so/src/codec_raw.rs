aventine_abi::export_plugin!(aventine_codec_raw);
