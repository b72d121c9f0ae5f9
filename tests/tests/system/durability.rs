//! What was acknowledged stays (guarantee G3), whatever ends the node.

use std::time::Duration;

use anyhow::Result;
use system_tests::{
    bench::Bench,
    values::value,
    workload::{Workload, check, check_all, join},
};

/// Sizes of the values that have to survive.
const SIZES: [usize; 5] = [1, 4095, 4096, 64 << 10, 8 << 20];

pub fn g3_values_survive_a_clean_stop(bench: &Bench) -> Result<()> {
    bench.with_node(
        |_| (),
        |node| {
            let mut connection = node.connect()?;
            for (seed, &len) in (1..).zip(&SIZES) {
                connection.put(&format!("kept-{len}"), &value(seed, len))?;
            }
            connection.put("gone", b"x")?;
            connection.request("DELETE", "gone", None).map(drop)
        },
    )?;
    bench.with_node(
        |_| (),
        |node| {
            let mut connection = node.connect()?;
            for (seed, &len) in (1..).zip(&SIZES) {
                check(&mut connection, &format!("kept-{len}"), seed, len)?;
            }
            let gone = connection.get("gone")?;
            anyhow::ensure!(gone.is_none(), "a deleted key came back");
            Ok(())
        },
    )
}

/// Several generations of one disk, each ended by SIGKILL while clients wait
/// for the answers to their PUTs.
pub fn g3_acknowledged_values_survive_power_cuts(bench: &Bench) -> Result<()> {
    const CUTS: u64 = 3;
    let mut kept: Vec<(String, u64, usize)> = Vec::new();
    for cut in 0..CUTS {
        let known = kept.clone();
        let fresh = bench.with_node_until_power_cut(
            |_| (),
            |node| {
                let mut connection = node.connect()?;
                for (key, seed, len) in &known {
                    check(&mut connection, key, *seed, *len)?;
                }
                let mut fresh = Vec::new();
                for (number, &len) in SIZES.iter().enumerate() {
                    let seed = 100 * (cut + 1) + number as u64;
                    // A key of its own, and one that replaces the last generation's.
                    for key in [format!("cut-{cut}-{len}"), format!("replaced-{len}")] {
                        connection.put(&key, &value(seed, len))?;
                        fresh.push((key, seed, len));
                    }
                }
                Ok(fresh)
            },
        )?;
        kept.retain(|(key, ..)| fresh.iter().all(|(new, ..)| new != key));
        kept.extend(fresh);
    }
    // The last cut comes in the middle of a stream of requests.
    let workload = Workload::default();
    let reports = bench.with_node_until_power_cut(
        |_| (),
        |node| {
            std::thread::scope(|scope| {
                let clients = workload.start(scope, node, 4);
                let busy = workload.wait_progress(60, Duration::from_secs(600));
                workload.stop();
                let reports = join(clients)?;
                busy.map(|()| reports)
            })
        },
    )?;
    bench.with_node(
        |_| (),
        |node| {
            let mut connection = node.connect()?;
            for (key, seed, len) in &kept {
                check(&mut connection, key, *seed, *len)?;
            }
            check_all(node, &reports)
        },
    )
}
