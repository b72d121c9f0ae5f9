//! Drivers and the supervisor die; clients see a pause at most.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nodectl::{Client, control::How, names};
use system_tests::{
    attack::demo,
    bench::{Bench, Node, RECOVERY},
    runner::wait_for,
    workload::{Workload, check_all, join},
};

use crate::{control::is_reason, serving::smoke};

pub const WAYS: [How; 3] = [How::Panic, How::NullWrite, How::Loop];
/// How long clients may go without any answer. A crash is a pause of
/// milliseconds; the rest is the host's.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// How long a driver may take to finish its work before a planned restart.
const DRAIN: Duration = Duration::from_secs(30);

/// How often a test repeats what it does: `BULKHEAD_ROUNDS`, or a number that
/// fits a run of all tests.
pub fn rounds(otherwise: usize) -> Result<usize> {
    number("BULKHEAD_ROUNDS", otherwise)
}

/// A number from the environment.
pub fn number(variable: &str, otherwise: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text}")),
        Err(_) => Ok(otherwise),
    }
}

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

/// The node serves, and again after each driver died in each way.
pub fn serves_after_all(node: &Node) -> Result<()> {
    smoke(node)?;
    let mut client = node.control()?;
    for how in How::ALL {
        for domain in ["blk", "net"] {
            crash(&mut client, domain, how)?;
            smoke(node)?;
        }
    }
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
    beside(workload, node, clients, |workload| disturb(workload, &mut node.control()?))
}

/// The same where `disturb` needs the control line for other clients.
pub fn beside(
    workload: Workload,
    node: &Node,
    clients: u64,
    disturb: impl FnOnce(&Workload) -> Result<()>,
) -> Result<()> {
    let reports = std::thread::scope(|scope| {
        let threads = workload.start(scope, node, clients);
        let disturbed =
            workload.wait_progress(4 * clients, PATIENCE).and_then(|()| disturb(&workload));
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

/// A driver that waits and does no work: only its clients can tell.
pub fn g2_a_driver_that_does_no_work_is_replaced(bench: &Bench) -> Result<()> {
    bench.with_node(
        |_| (),
        |node| {
            under_load(node, 3, |workload, client| {
                for domain in ["blk", "net"] {
                    crash(client, domain, How::Stall)?;
                    workload.wait_progress(3, PATIENCE)?;
                }
                Ok(())
            })
        },
    )
}

/// The same where nothing is missing: the guest waits for its clients, and
/// what they send does not come through. What it sends now and then to silent
/// clients tells it so, before it gives them up.
pub fn g2_a_net_that_brings_nothing_is_replaced(bench: &Bench) -> Result<()> {
    bench.with_node(
        |_| (),
        |node| {
            let mut connection = node.connect()?;
            connection.put("key", b"value")?;
            let mut client = node.control()?;
            client.order_crash("net", How::Stall)?;
            // The order is out once the supervisor answers the next question.
            client.info()?;
            let reason = wait_for("net to be replaced", PATIENCE, || {
                let got = connection.get("key")?;
                ensure!(got.as_deref() == Some(b"value"), "the value is {got:?}");
                let net = client.domain("net")?.context("there is no net")?;
                ensure!(net.deaths <= 1, "net died {} times", net.deaths);
                Ok((net.deaths == 1).then_some(net.last_reason))
            })?;
            let reason = names::reason(reason);
            ensure!(is_reason(How::Stall, &reason), "net died of {reason}");
            Ok(())
        },
    )
}

/// Planned restarts under load: each finishes its work first.
pub fn g3_planned_restarts_finish_the_work_first(bench: &Bench) -> Result<()> {
    bench.with_node(
        |_| (),
        |node| {
            under_load(node, 4, |workload, client| {
                for round in 0..rounds(6)? {
                    for domain in ["blk", "net"] {
                        let done = client
                            .drain(domain, DRAIN, RECOVERY)
                            .with_context(|| format!("round {round}"))?;
                        ensure!(done.drained, "round {round}: {domain} did not finish: {done:?}");
                        workload.wait_progress(1, PATIENCE)?;
                    }
                }
                Ok(())
            })
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

/// A driver that dies whenever it starts ends held. Its clients wait: they see
/// no error, and neither they nor the supervisor burn CPU time. A release after
/// the repair is all it takes.
pub fn g6_a_deterministic_crasher_is_held_and_its_clients_wait(bench: &Bench) -> Result<()> {
    // Of generations 2 to 6 each dies at its start; the budget is five deaths. A spare
    // would have begun its life before the first of them.
    let text = demo()?
        .replace("image = \"blk\"", "image = \"crasher\"\nargs = \"2 6\"")
        .replace("backoff = 1.0, budget = 100", "backoff = 2.0, budget = 5");
    ensure!(text.matches("crasher").count() == 1, "the demo node is another");
    let path = bench.dir().join("crasher.toml");
    std::fs::create_dir_all(bench.dir())?;
    std::fs::write(&path, text)?;
    bench.with_node(
        |config| config.manifest = path,
        |node| {
            under_load(node, 3, |workload, client| {
                // The first death is ordered and does not count.
                ensure!(client.crash("blk", How::Panic, RECOVERY).is_err(), "it was to be held");
                let state = |client: &mut Client| -> Result<String> {
                    let blk = client.domain("blk")?.context("there is no blk")?;
                    Ok(format!("{} after {} deaths", names::domain_state(blk.state), blk.deaths))
                };
                let held = "held after 6 deaths";
                ensure!(state(client)? == held, "blk is {}", state(client)?);
                // Nor does it start again because the supervisor is another.
                client.crash("supervisor", How::Panic, RECOVERY)?;
                is_idle(client)?;
                ensure!(state(client)? == held, "blk is {}", state(client)?);

                client.release("blk", RECOVERY)?;
                workload.wait_progress(6, PATIENCE)?;
                // And it has its whole budget again.
                crash(client, "blk", How::Panic)?;
                workload.wait_progress(3, PATIENCE)
            })
        },
    )
}

/// Fails if `kv`, whose disk is held, or the supervisor use more than a few
/// percent of their cores.
pub fn is_idle(client: &mut Client) -> Result<()> {
    const SPAN_NS: u64 = 4_000_000_000;
    let used = |client: &mut Client| -> Result<(u64, Vec<(String, u64)>)> {
        let domains = client.domains()?;
        let now = client.info()?.now_ns;
        Ok((now, domains.iter().map(|d| (d.name.to_string(), d.cpu_ns)).collect()))
    };
    let (begin, before) = used(client)?;
    // By the node's clock. Asking costs the supervisor time, so once a second.
    let until = begin.saturating_add(SPAN_NS);
    let (mut asked, started) = (begin, Instant::now());
    while asked < until {
        ensure!(started.elapsed() < PATIENCE, "the node's clock hardly moves");
        let left = Duration::from_nanos(until.saturating_sub(asked));
        std::thread::sleep(left.min(Duration::from_secs(1)));
        asked = client.info()?.now_ns;
    }
    let (end, after) = used(client)?;
    let span = end.saturating_sub(begin);
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        let share = after.saturating_sub(*before) as f64 / span as f64;
        eprintln!("{name}: {:.2} % of a core over {} ms", share * 100.0, span / 1_000_000);
        if matches!(name.as_str(), "kv" | "supervisor") {
            ensure!(share < 0.05, "{name} uses {:.1} % of a core while it waits", share * 100.0);
        }
    }
    Ok(())
}

/// The supervisor is killed over and over under load, by itself and together
/// with a driver: guests notice nothing, and it says how long it was away.
pub fn g7_the_supervisor_is_killed_under_load(bench: &Bench) -> Result<()> {
    bench.with_node(
        |_| (),
        |node| {
            let mut longest = 0;
            under_load(node, 3, |workload, client| {
                let mut generations = [("blk", 1), ("net", 1)];
                let together = [None, Some(0), Some(1)];
                for (round, victim) in together.into_iter().cycle().take(rounds(9)?).enumerate() {
                    let what = || format!("round {round}");
                    let victim = victim.and_then(|index| generations.get_mut(index));
                    if let Some((domain, generation)) = victim {
                        client.order_crash(domain, How::Panic)?;
                        crash(client, "supervisor", How::Panic).with_context(what)?;
                        *generation += 1;
                        node.wait_running(client, domain, *generation).with_context(what)?;
                    } else {
                        crash(client, "supervisor", WAYS[round / 3 % 2]).with_context(what)?;
                    }
                    let absence = client.info()?.absence;
                    ensure!(absence.ns > 0, "round {round}: it was not away?");
                    longest = longest.max(absence.ns);
                    workload.wait_progress(1, PATIENCE).with_context(what)?;
                }
                let n = rounds(9)?;
                for domain in client.domains()? {
                    let wanted = match domain.name.as_str() {
                        "supervisor" => n,
                        "blk" => (n + 1) / 3,
                        "net" => n / 3,
                        _ => 0,
                    };
                    ensure!(
                        domain.deaths as usize == wanted,
                        "{} died {} times instead of {wanted}",
                        domain.name,
                        domain.deaths
                    );
                }
                Ok(())
            })?;
            eprintln!("the supervisor was away for at most {} us", longest / 1_000);
            Ok(())
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
