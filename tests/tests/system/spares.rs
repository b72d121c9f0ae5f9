//! A warm spare takes the place of a driver that died, and there is another one
//! soon after.

use anyhow::{Context, Result, ensure};
use nodectl::{
    Client,
    control::{FailureKind, How},
    names,
};
use ring_proto::hypercall;
use system_tests::{
    bench::{Bench, RECOVERY},
    runner::wait_for,
};

use crate::recovery::{PATIENCE, WAYS, crash, under_load};

/// Waits until the spare of `driver` stands by; returns its generation.
pub fn standby(client: &mut Client, driver: &str) -> Result<u32> {
    let name = format!("{driver}-spare");
    wait_for(&format!("{name} to stand by"), RECOVERY, || {
        let spare = client.domain(&name)?.with_context(|| format!("there is no {name}"))?;
        ensure!(spare.spare_of.is_some(), "{name} is no spare");
        let there = spare.ready && names::domain_state(spare.state) == "running";
        Ok(there.then_some(spare.generation))
    })
}

/// Whether the hypervisor says of an order that the domain does not run.
fn is_bad_state(error: &nodectl::Error) -> bool {
    let bad_state = FailureKind::Hypervisor(hypercall::Error::BadState as u64);
    matches!(error, nodectl::Error::Refused(failure) if failure.kind == bad_state)
}

fn deaths(client: &mut Client, name: &str) -> Result<u32> {
    Ok(client.domain(name)?.with_context(|| format!("there is no {name}"))?.deaths)
}

/// Each death of a driver makes its spare's generation end without a death.
pub fn g6_a_spare_takes_over_at_each_of_20_deaths(bench: &Bench) -> Result<()> {
    const ROUNDS: usize = 20;
    bench.with_node(
        |_| (),
        |node| {
            under_load(node, 4, |workload, client| {
                for (round, how) in WAYS.into_iter().cycle().take(ROUNDS).enumerate() {
                    for driver in ["blk", "net"] {
                        let what = || format!("round {round}, {how:?} of {driver}");
                        let before = standby(client, driver).with_context(what)?;
                        crash(client, driver, how).with_context(what)?;
                        workload.wait_progress(1, PATIENCE).with_context(what)?;
                        let after = standby(client, driver).with_context(what)?;
                        ensure!(
                            after == before + 1,
                            "{}: its spare's generation {before} was followed by {after}",
                            what()
                        );
                    }
                }
                Ok(())
            })?;
            let mut client = node.control()?;
            for (name, wanted) in
                [("blk", ROUNDS), ("net", ROUNDS), ("blk-spare", 0), ("net-spare", 0)]
            {
                let died = deaths(&mut client, name)?;
                ensure!(died as usize == wanted, "{name} died {died} times, not {wanted}");
            }
            Ok(())
        },
    )
}

/// A spare that dies is an ordinary death: nobody notices, and there is a next one.
pub fn g6_a_spare_may_die_too(bench: &Bench) -> Result<()> {
    bench.with_node(
        |_| (),
        |node| {
            under_load(node, 4, |workload, client| {
                for driver in ["blk", "net"] {
                    let spare = format!("{driver}-spare");
                    for how in WAYS {
                        standby(client, driver)?;
                        crash(client, &spare, how)?;
                    }
                    let before = standby(client, driver)?;
                    ensure!(deaths(client, &spare)? == 3, "not every death of {spare} counts");
                    ensure!(deaths(client, driver)? == 0, "{driver} died with its spare");
                    crash(client, driver, How::Panic)?;
                    let after = standby(client, driver)?;
                    ensure!(after == before + 1, "the next spare did not take over");
                    workload.wait_progress(1, PATIENCE)?;
                }
                Ok(())
            })
        },
    )
}

/// Driver and spare die together; and a driver dies again while its place is
/// taken or the next spare is built.
pub fn g6_driver_and_spare_may_die_at_once(bench: &Bench) -> Result<()> {
    bench.with_node(
        |_| (),
        |node| {
            under_load(node, 4, |workload, client| {
                for (round, how) in WAYS.into_iter().cycle().take(6).enumerate() {
                    for driver in ["blk", "net"] {
                        let what = || format!("round {round}, {how:?} of {driver}");
                        standby(client, driver).with_context(what)?;
                        let spare = format!("{driver}-spare");
                        let order = if round % 2 == 0 {
                            [spare.as_str(), driver]
                        } else {
                            [driver, spare.as_str()]
                        };
                        match client.crash_all(&order, how, RECOVERY) {
                            // The spare was in its place before its own order came, and
                            // the body that it left for it was being restored.
                            Err(error) if order[0] == driver && is_bad_state(&error) => {}
                            done => drop(done.with_context(what)?),
                        }
                        // At once, wherever the spare is now.
                        crash(client, driver, how).with_context(what)?;
                        crash(client, driver, how).with_context(what)?;
                        workload.wait_progress(1, PATIENCE).with_context(what)?;
                    }
                }
                for driver in ["blk", "net"] {
                    standby(client, driver)?;
                }
                Ok(())
            })
        },
    )
}
