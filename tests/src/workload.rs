//! Clients that put, get and check without end.
//!
//! Each client has one connection, which must never break, and keys of its
//! own, so it always knows what a GET must give: the last value that was
//! acknowledged.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{Scope, ScopedJoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    bench::Node,
    http::Connection,
    runner::wait_for,
    values::{MAX, Random, difference, value},
};

/// Kinds of sizes; each client has a key for each. Small ones, those around a
/// block, and large ones; the range is inclusive.
const SIZES: [(usize, usize); 5] =
    [(1, 64), (4095, 4097), (10_000, 70_000), (200_000, 1 << 20), (1 << 20, MAX)];

/// What all clients share.
#[derive(Debug, Default)]
pub struct Workload {
    /// Only small values: for tests that are about something else.
    light: bool,
    stop: AtomicBool,
    /// What the first client that failed says of it.
    failure: OnceLock<String>,
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// What a client did, for the check at the end.
#[derive(Debug)]
pub struct Report {
    /// Keys with seed and length of the last acknowledged value.
    pub keys: Vec<(String, u64, usize)>,
    /// PUTs that were acknowledged.
    pub puts: u64,
    /// GETs that were right.
    pub gets: u64,
}

impl Workload {
    /// Clients that put and get small values only, so that answers come often.
    pub fn light() -> Self {
        Self { light: true, ..Self::default() }
    }

    /// The kinds of sizes that clients use.
    fn sizes(&self) -> &'static [(usize, usize)] {
        const LIGHT: usize = 3;
        SIZES.get(..LIGHT).filter(|_| self.light).unwrap_or(&SIZES)
    }

    /// Starts `count` clients of `node`.
    pub fn start<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        node: &'env Node,
        count: u64,
    ) -> Vec<ScopedJoinHandle<'scope, Result<Report>>> {
        let client = |number| {
            move || {
                let result = self.client(node, number).with_context(|| format!("client {number}"));
                if let Err(why) = &result {
                    let _ = self.failure.set(format!("{why:#}"));
                }
                result
            }
        };
        (0..count).map(|number| scope.spawn(client(number))).collect()
    }

    /// Requests that were answered so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    /// Bytes of values that went either way so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Lets the clients finish their request and end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Waits until `count` more requests were answered, as long as one is
    /// within `limit`.
    ///
    /// # Errors
    ///
    /// A client failed, or nothing goes on.
    pub fn wait_progress(&self, count: u64, limit: Duration) -> Result<()> {
        let mut now = self.requests();
        let goal = now + count;
        while now < goal {
            let before = now;
            now = wait_for("an answer to the clients' requests", limit, || {
                if let Some(why) = self.failure.get() {
                    bail!("{why}");
                }
                Ok(Some(self.requests()).filter(|&now| now > before))
            })?;
        }
        Ok(())
    }

    fn client(&self, node: &Node, number: u64) -> Result<Report> {
        let mut random = Random::new(number + 1);
        let mut connection = node.connect()?;
        let sizes = self.sizes();
        let names = (0..sizes.len()).map(|slot| format!("client-{number}-{slot}"));
        let mut report =
            Report { keys: names.map(|name| (name, 0, 0)).collect(), puts: 0, gets: 0 };
        let mut version = number << 32;
        // One of each kind first, so that short runs see all of them, too.
        let mut first = 0..sizes.len();
        while !self.stop.load(Ordering::SeqCst) {
            let slot = first.next().unwrap_or_else(|| random.between(0, sizes.len() - 1));
            let (Some((name, seed, len)), Some(&(low, high))) =
                (report.keys.get_mut(slot), sizes.get(slot))
            else {
                bail!("no slot {slot}");
            };
            if *seed == 0 || random.number().is_multiple_of(2) {
                version += 1;
                let size = random.between(low, high);
                let bytes = value(version, size);
                connection.put(name, &bytes)?;
                (*seed, *len) = (version, size);
                report.puts += 1;
            } else {
                check(&mut connection, name, *seed, *len)?;
                report.gets += 1;
            }
            self.bytes.fetch_add(*len as u64, Ordering::SeqCst);
            self.requests.fetch_add(1, Ordering::SeqCst);
        }
        report.keys.retain(|(_, seed, _)| *seed != 0);
        Ok(report)
    }
}

/// Gets a key; its value must be that of `seed` and `len`.
///
/// # Errors
///
/// It is not there, or wrong.
pub fn check(connection: &mut Connection, key: &str, seed: u64, len: usize) -> Result<()> {
    let got = connection.get(key)?.with_context(|| format!("acknowledged key {key} is gone"))?;
    match difference(&got, seed, len) {
        None => Ok(()),
        Some(how) => bail!("GET /{key}: {how}"),
    }
}

/// Gets every key of `reports` on one connection; all must be right.
///
/// # Errors
///
/// One is not.
pub fn check_all(node: &Node, reports: &[Report]) -> Result<()> {
    let mut connection = node.connect()?;
    for (key, seed, len) in reports.iter().flat_map(|report| &report.keys) {
        check(&mut connection, key, *seed, *len)?;
    }
    let total: u64 = reports.iter().map(|report| report.puts).sum();
    ensure!(total > 0, "no PUT was acknowledged");
    Ok(())
}

/// Ends the clients and collects what they did.
///
/// # Errors
///
/// One failed; the first error.
pub fn join(clients: Vec<ScopedJoinHandle<'_, Result<Report>>>) -> Result<Vec<Report>> {
    let mut reports = Vec::new();
    let mut error = None;
    for client in clients {
        match client.join() {
            Ok(Ok(report)) => reports.push(report),
            Ok(Err(why)) => error = error.or(Some(why)),
            Err(_) => error = error.or(Some(anyhow::anyhow!("a client panicked"))),
        }
    }
    error.map_or(Ok(reports), Err)
}
