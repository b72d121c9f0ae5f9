//! The control line and its command line.

use anyhow::{Context, Result, ensure};
use nodectl::{control::How, names, report::LogEntry};
use system_tests::bench::{Bench, Node, RECOVERY};
use xtask::workspace;

/// Runs the real `nodectl`; returns exit code and standard output.
pub fn nodectl(node: &Node, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let output = workspace::cargo()
        .args(["run", "--quiet", "--package", "nodectl", "--"])
        .args(["--patience", "60", "--control"])
        .arg(node.machine().control())
        .args(arguments)
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("can't run nodectl")?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

pub fn nodectl_shows_and_orders(bench: &Bench) -> Result<()> {
    let images = workspace::node_dir();
    let images = images.to_str().context("the path of the images is no text")?;
    let blk = &format!("{images}/blk.elf");
    bench.with_node(|_| (), |node| {
        for (arguments, code, wanted) in [
            (&["list"][..], 0, "connected"),
            (&["list", "--json"], 0, "\"name\":\"kv\""),
            (&["info"], 0, "cores"),
            (&["log"], 0, "[supervisor]"),
            (&["audit"], 0, "audit: clean"),
            (&["audit", "--json"], 0, "\"clean\":true"),
            (&["crashes"], 0, "no deaths"),
            (&["crash", "nobody", "--how", "panic"], 1, ""),
            (&["crash", "blk", "--how", "panic", "--timeout", "120"], 0, "blk serves as generation 2"),
            (&["restart", "net", "--timeout", "120"], 0, "net serves as generation 2"),
            (&["restart", "blk", "--drain=30", "--timeout", "120"], 0, "after it had finished its work"),
            (&["crashes"], 0, "panic (ordered)"),
            (&["crashes", "show", "0", "--images", images], 0, "driver_blk::service"),
            (&["crashes", "show", "0", "--images", images, "--json"], 0, "\"missing\":null"),
            (&["crashes", "show", "0", "--images", "/nowhere"], 0, "no symbols"),
            (&["crashes", "show", "77"], 1, ""),
            (&["update", "blk", "--image", blk], 0, "blk has this image already"),
        ] {
            let (status, out) = nodectl(node, arguments)?;
            ensure!(
                status == Some(code) && out.contains(wanted),
                "nodectl {}: exit code {status:?} instead of {code}, or no `{wanted}` in:\n{out}",
                arguments.join(" ")
            );
        }
        crate::serving::smoke(node)
    })
}

pub fn g8_every_death_leaves_a_record(bench: &Bench) -> Result<()> {
    bench.with_node(
        |_| (),
        |node| {
            let mut client = node.control()?;
            let ways = [("blk", How::Panic), ("net", How::NullWrite), ("blk", How::Loop)];
            for (domain, how) in ways {
                client
                    .crash(domain, how, RECOVERY)
                    .with_context(|| format!("{how:?} of {domain}"))?;
            }
            let records = client.crashes(0)?;
            ensure!(
                records.len() == ways.len(),
                "{} records of {} deaths",
                records.len(),
                ways.len()
            );
            for (record, (domain, how)) in records.iter().zip(ways) {
                let reason = names::reason(record.reason);
                let what = format!("#{} {} {reason}", record.sequence, record.name);
                ensure!(record.name == domain && is_reason(how, &reason), "{what} is not {how:?}");
                ensure!(record.rip != 0, "{what}: no instruction");
                ensure!(!record.backtrace.is_empty(), "{what}: no backtrace");
                let t = record.times;
                let times = [
                    t.died, t.detected, t.quiesced, t.told, t.decided, t.restored, t.entered,
                    t.enabled, t.ready,
                ];
                ensure!(times.is_sorted() && !times.contains(&0), "{what}: times {times:?}");
                ensure!(record.ordered, "{what}: nobody ordered it?");
                ensure!(record.in_flight.is_some(), "{what}: in flight is unknown");
                let story = client.story(record.sequence, &workspace::node_dir(), 10)?;
                let names: Vec<&str> = (story.backtrace.frames.iter())
                    .flat_map(|(_, functions)| functions.iter().map(|f| f.function.as_str()))
                    .collect();
                let driver = format!("driver_{domain}::service");
                ensure!(
                    names.iter().any(|name| name.contains(&driver)),
                    "{what}: nothing of {driver} in the backtrace {:?}",
                    story.backtrace
                );
                ensure!(!story.log.is_empty(), "{what}: no log lines");
                let of =
                    |line: &LogEntry| line.domain == domain && line.generation == record.generation;
                ensure!(story.log.iter().all(of), "{what}: lines of others: {:?}", story.log);
                if how == How::Panic {
                    ensure!(!record.message.is_empty(), "{what}: no message");
                }
            }
            // They are the hypervisor's, and outlive the supervisor.
            client.crash("supervisor", How::Panic, RECOVERY)?;
            let after = client.crashes(0)?;
            ensure!(
                after.get(..records.len()) == Some(&records[..]),
                "the records changed with the supervisor's death: {after:?}"
            );
            Ok(())
        },
    )
}

/// Whether a death of this reason may come of that misbehaviour.
pub fn is_reason(how: How, reason: &str) -> bool {
    match how {
        How::Panic => reason == "panic",
        How::OutOfMemory => reason == "memory",
        How::NullWrite | How::StackOverflow => reason == "nested-fault",
        How::Exception => reason == "exception",
        How::TripleFault => reason == "shutdown",
        How::Loop => reason == "watchdog",
        How::Stall => reason == "stalled",
    }
}
