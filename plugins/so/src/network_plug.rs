//! Network plugin `plug` as a shared object.

aventine_abi::export_plugin!(aventine_network_plug);
