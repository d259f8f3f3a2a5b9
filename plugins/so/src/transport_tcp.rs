aventine_abi::export_plugin!(aventine_transport_tcp);
