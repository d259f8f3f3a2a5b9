//! Transport plugin `file` as a shared object.

aventine_abi::export_plugin!(aventine_transport_file);
