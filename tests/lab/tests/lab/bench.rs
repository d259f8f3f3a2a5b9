//! What the kernel's buffers cost, on the lab's kernel. The figures are those of an emulated processor (TCG): ratios tell
//! something, times do not.

use crate::lab;
use crate::nested::{given, ok};
use std::process::Command;

#[test]
fn the_kernels_buffers_are_measured() {
    let lab = lab(1);
    let host = &lab.hosts[0];
    ok(host, "modprobe -a tun bridge");
    let mut bench = Command::new(given("AVENTINE_PROGRAM"));
    bench.args(["bench", "network", "--epochs", "200", "--frames", "10000", "--json"]);
    bench.args(["--plugin", "plug", "--plugin", "ifb", "--plugin", "userspace"]);
    let output = host.run(&bench).unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{lines}{}", String::from_utf8_lossy(&output.stderr));
    println!("under TCG:\n{lines}");
    let rows = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let rows = rows.map(|row| (row["plugin"].as_str().unwrap().to_owned(), row["ratio"].as_f64().unwrap()));
    let rows = rows.collect::<Vec<_>>();
    assert_eq!(
        rows.iter().map(|(plugin, _)| plugin.as_str()).collect::<Vec<_>>(),
        ["plug", "ifb", "userspace"]
    );
    assert!(rows.iter().all(|(_, ratio)| *ratio > 0.0), "{rows:?}");
}
