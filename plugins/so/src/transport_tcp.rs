//! Transport plugin `tcp` as a shared object.

aventine_abi::export_plugin!(aventine_transport_tcp);
