//! Drivers and the supervisor die; clients see a pause at most.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodectl::{Client, control::How, names};
use system_tests::{
    bench::{Bench, Node, RECOVERY},
    workload::{Workload, check_all, join},
};

use crate::{control::is_reason, serving::smoke};

pub const WAYS: [How; 3] = [How::Panic, How::NullWrite, How::Loop];
/// How long clients may go without any answer. A crash is a pause of
/// milliseconds; the rest is the host's.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// Crashes a domain and checks that it died of that and came back.
pub fn crash(client: &mut Client, domain: &str, how: How) -> Result<()> {
    let what = format!("{how:?} of {domain}");
    let recovery = client.crash(domain, how, RECOVERY).with_context(|| what.clone())?;
    let reason = names::reason(recovery.reason);
    ensure!(is_reason(how, &reason), "{what}: it died of {reason}");
    ensure!(
        recovery.generation == recovery.ended + 1,
        "{what}: generation {} follows {}",
        recovery.generation,
        recovery.ended
    );
    Ok(())
}

/// Runs `disturb` while clients work, then checks all that they were told.
pub fn under_load(
    node: &Node,
    clients: u64,
    disturb: impl FnOnce(&Workload, &mut Client) -> Result<()>,
) -> Result<()> {
    under(Workload::default(), node, clients, disturb)
}

/// The same with clients of another kind.
pub fn under(
    workload: Workload,
    node: &Node,
    clients: u64,
    disturb: impl FnOnce(&Workload, &mut Client) -> Result<()>,
) -> Result<()> {
    let reports = std::thread::scope(|scope| {
        let threads = workload.start(scope, node, clients);
        let disturbed = workload
            .wait_progress(4 * clients, PATIENCE)
            .and_then(|()| node.control())
            .and_then(|mut control| disturb(&workload, &mut control));
        workload.stop();
        // A client's own error says more than that there was one.
        let reports = join(threads)?;
        disturbed.map(|()| reports)
    })?;
    check_all(node, &reports)
}

pub fn g2_an_endless_loop_is_ended_by_the_watchdog(bench: &Bench) -> Result<()> {
    bench.with_node(
        |_| (),
        |node| {
            let mut client = node.control()?;
            for domain in ["blk", "net"] {
                crash(&mut client, domain, How::Loop)?;
                smoke(node)?;
            }
            Ok(())
        },
    )
}

/// The point of it all: `blk` and `net` crashed 50 times each, in all ways,
/// while clients stream values of 1 B to 8 MiB over connections that must hold.
pub fn g3_no_request_fails_over_100_driver_crashes(bench: &Bench) -> Result<()> {
    const ROUNDS: usize = 50;
    bench.with_node(
        |_| (),
        |node| {
            under_load(node, 6, |workload, client| {
                for (round, how) in WAYS.into_iter().cycle().take(ROUNDS).enumerate() {
                    for domain in ["blk", "net"] {
                        crash(client, domain, how).with_context(|| format!("round {round}"))?;
                        // The service goes on between the crashes.
                        workload
                            .wait_progress(1, PATIENCE)
                            .with_context(|| format!("round {round}, after {how:?} of {domain}"))?;
                    }
                }
                Ok(())
            })?;
            let mut client = node.control()?;
            for domain in client.domains()? {
                let wanted = match domain.name.as_str() {
                    "blk" | "net" => ROUNDS as u32,
                    _ => 0,
                };
                ensure!(domain.deaths == wanted, "{} died {} times", domain.name, domain.deaths);
            }
            Ok(())
        },
    )
}

/// Both drivers die within one moment: the second before the first is back.
pub fn g3_both_drivers_die_at_once(bench: &Bench) -> Result<()> {
    bench.with_node(
        |_| (),
        |node| {
            under_load(node, 4, |workload, client| {
                for (round, how) in WAYS.into_iter().cycle().take(9).enumerate() {
                    let order = if round % 2 == 0 { ["blk", "net"] } else { ["net", "blk"] };
                    client.crash_all(&order, how, RECOVERY)?;
                    workload
                        .wait_progress(1, PATIENCE)
                        .with_context(|| format!("round {round}"))?;
                }
                Ok(())
            })
        },
    )
}

pub fn g6_clients_of_a_held_driver_wait_for_its_release(bench: &Bench) -> Result<()> {
    bench.with_node(
        |_| (),
        |node| {
            under_load(node, 4, |workload, client| {
                for domain in ["blk", "net"] {
                    client.hold(domain)?;
                    let state =
                        client.domain(domain)?.map(|domain| names::domain_state(domain.state));
                    ensure!(
                        state.as_deref() == Some("held"),
                        "{domain} is {state:?} instead of held"
                    );
                    let refusal = client.restart(domain, RECOVERY);
                    ensure!(refusal.is_err(), "a held domain was restarted");
                    client.release(domain, RECOVERY)?;
                    workload
                        .wait_progress(4, PATIENCE)
                        .with_context(|| format!("release of {domain}"))?;
                }
                Ok(())
            })
        },
    )
}

pub fn g7_the_supervisor_may_crash_too(bench: &Bench) -> Result<()> {
    bench.with_node(
        |_| (),
        |node| {
            under_load(node, 2, |workload, client| {
                for (ended, how) in (1..).zip(WAYS) {
                    crash(client, "supervisor", how)?;
                    ensure!(client.supervisor_generation() == ended + 1, "a generation is missing");
                    // It finds its state again and does its duty.
                    crash(client, "blk", How::Panic)?;
                    crash(client, "net", How::Panic)?;
                    workload.wait_progress(1, PATIENCE)?;
                }
                client.restart("supervisor", RECOVERY)?;
                Ok(())
            })?;
            // A new client finds the new supervisor.
            node.wait_running(&mut node.control()?, "supervisor", 5)
        },
    )
}
