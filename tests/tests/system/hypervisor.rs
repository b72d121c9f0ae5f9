//! The hypervisor breaks a rule on order, and its processor stops it.

use anyhow::{Result, ensure};
use system_tests::bench::Bench;
use xtask::{build, qemu::Verdict};

/// What `selftest=` orders, and what the hypervisor must say at its end. Error codes of page
/// faults: 1 = the page is there, 2 = write, 16 = instruction fetch (APM vol. 2, 8.2.15).
const ORDERS: [(&str, &str); 8] = [
    ("text", "exception 14, error 0x3,"),
    ("execute", "exception 14, error 0x11,"),
    ("null", "exception 14, error 0x0,"),
    ("overflow", "below core 0's Main stack"),
    ("exception", "exception 13,"),
    ("double-fault", "exception 8,"),
    ("machine-check", "exception 18,"),
    ("panic", "ordered on the command line"),
];

/// Its text cannot be written, its data not executed, page 0 not read, and a stack that runs over
/// hits its guard; each ends the node with a report, and none with a silent reset.
pub fn g1_the_hypervisor_keeps_its_own_rules(bench: &Bench) -> Result<()> {
    let hv = build::failing_hypervisor()?;
    for (order, report) in ORDERS {
        let append = ["-append".into(), format!("selftest={order}").into()];
        let (end, log) = bench.to_its_end(hv.clone(), |c| c.extra_args.extend(append))?;
        ensure!(end == Verdict::HypervisorPanic, "{order}: {end}");
        ensure!(log.iter().any(|line| line.contains(report)), "{order}: no `{report}` in {log:#?}");
    }
    Ok(())
}
