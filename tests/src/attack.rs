//! A node with an attacker in it, and what must hold whatever it does.
//!
//! ```ignore
//! Attack::guest("forbidden-calls").run(bench, |scene| {
//!     scene.done(LIMIT)?.all("tried", "refused", 100)
//! })
//! ```
//!
//! [`Attack::run`] boots the node, lets clients work with its neighbours,
//! starts the attacker, lets the test judge the end that the attack came to,
//! and checks that the clients are served after the attack as during it, that
//! no neighbour's generation changed, that no program of the attack reported a
//! breach, and that the audit is clean.
//!
//! An error that comes once the attack has begun starts with [`UNDER_ATTACK`]:
//! `cargo xtask test --without` counts only those, so a defence that is said to
//! be needed was not "missed" because a node did not build or boot.

use std::{ffi::OsString, fmt::Write as _, fs, time::Duration};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nodectl::{Client, names};
use ring_proto::control::{ConnectionStatus, CrashEntry, DomainStatus};
use xtask::{qemu::NodeConfig, workspace};

use crate::{
    bench::{Bench, CONTROL, Node},
    workload::{Workload, check_all, join},
};

/// What the error of a test begins with if the attack was under way.
pub const UNDER_ATTACK: &str = xtask::without::UNDER_ATTACK;
/// Name of the attacker's domain, unless the attack says otherwise.
pub const DOMAIN: &str = "attack";
/// For an attack that makes a bounded number of steps.
pub const LIMIT: Duration = Duration::from_secs(300);
/// How long clients may go without any answer, a driver's deaths and TCP's
/// pauses after them included.
const PATIENCE: Duration = Duration::from_secs(240);
/// The same if no driver dies: some thousand times what an answer takes.
const SHORT: Duration = Duration::from_secs(30);
/// Clients of `kv`.
const CLIENTS: u64 = 2;
/// Requests that must be answered after the attack.
const AFTER: u64 = 12;
/// The longest that the order to start the attacker waits to see it serve.
const START: Duration = Duration::from_secs(5);

/// Changes how a machine is started.
type Configure = Box<dyn FnOnce(&Bench, &mut NodeConfig)>;

/// An attack and the node it is run on.
pub struct Attack {
    name: String,
    domain: String,
    manifest: Result<String>,
    configure: Vec<Configure>,
    clients: u64,
    may_change: Vec<String>,
    measured: u64,
}

impl std::fmt::Debug for Attack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "attack {} by {}", self.name, self.domain)
    }
}

impl Attack {
    /// Program `attack-NAME` as a domain `attack` without device or
    /// connection, beside the demo node. It starts when the clients are at
    /// work, and again when it dies: not so soon that what hundreds of lives
    /// say is more than a domain may put on the serial line.
    pub fn guest(name: &str) -> Self {
        let domain = format!(
            "\n[domain.{DOMAIN}]\nimage = \"attack-{name}\"\nmemory = \"4MiB\"\nautostart = false\n\
             restart = {{ floor_ms = 20, backoff = 1.0, budget = 0 }}\n"
        );
        Self::on_node(name, DOMAIN, demo().map(|demo| demo + &domain))
    }

    /// The demo node with a part of it in the attacker's hands: `domain`
    /// (`blk`, `net` or `kv`) runs `attack-NAME`. Without `blk`, `net` and `kv`
    /// as they should be nobody can be served, so there are no clients.
    pub fn instead_of(name: &str, domain: &str) -> Self {
        let from = format!("[domain.{domain}]\nimage = \"{domain}\"");
        let to = format!("[domain.{domain}]\nimage = \"attack-{name}\"");
        let attack = Self::on_node(name, domain, demo()).replace(&from, &to);
        attack.clients(0)
    }

    /// A node with a manifest of its own.
    pub fn on_node(name: &str, domain: &str, manifest: Result<String>) -> Self {
        Self {
            name: name.to_owned(),
            domain: domain.to_owned(),
            manifest,
            configure: Vec::new(),
            clients: CLIENTS,
            may_change: Vec::new(),
            measured: 0,
        }
    }

    /// Appends to the manifest.
    #[must_use]
    pub fn and(mut self, toml: &str) -> Self {
        self.manifest = self.manifest.map(|text| text + "\n" + toml + "\n");
        self
    }

    /// Replaces what must occur in the manifest.
    #[must_use]
    pub fn replace(mut self, from: &str, to: &str) -> Self {
        self.manifest = self.manifest.and_then(|text| {
            ensure!(text.contains(from), "the manifest has no {from:?}");
            Ok(text.replace(from, to))
        });
        self
    }

    /// A further line of the attacker's section of the manifest.
    #[must_use]
    pub fn with(self, line: &str) -> Self {
        let section = format!("[domain.{}]\n", self.domain);
        self.replace(&section, &format!("{section}{line}\n"))
    }

    /// How much memory the attacker has, instead of 4 MiB.
    #[must_use]
    pub fn memory(self, size: &str) -> Self {
        let image = format!("image = \"attack-{}\"\n", self.name);
        self.replace(&format!("{image}memory = \"4MiB\""), &format!("{image}memory = \"{size}\""))
    }

    /// What the attacker is told.
    #[must_use]
    pub fn args(self, args: &str) -> Self {
        self.with(&format!("args = {args:?}"))
    }

    /// How many clients work with `kv` meanwhile.
    #[must_use]
    pub fn clients(mut self, count: u64) -> Self {
        self.clients = count;
        self
    }

    /// `domain` may die of the attack, too.
    #[must_use]
    pub fn may_change(mut self, domain: &str) -> Self {
        self.may_change.push(domain.to_owned());
        self
    }

    /// Counts what so many requests cost before the attack, see [`Scene::exits_before`].
    #[must_use]
    pub fn measure(mut self, requests: u64) -> Self {
        self.measured = requests;
        self
    }

    /// Changes how the machine is started.
    #[must_use]
    pub fn configure(mut self, how: impl FnOnce(&Bench, &mut NodeConfig) + 'static) -> Self {
        self.configure.push(Box::new(how));
        self
    }

    /// Further arguments of QEMU.
    #[must_use]
    pub fn qemu(self, arguments: &[&str]) -> Self {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        self.configure(|_, config| config.extra_args.extend(arguments))
    }

    /// Runs it; `judge` waits for the attack's end and says whether it is the
    /// right one.
    ///
    /// # Errors
    ///
    /// The node does not boot, or the attack did what it must not.
    pub fn run<T>(
        self,
        bench: &Bench,
        judge: impl FnOnce(&mut Scene<'_>) -> Result<T>,
    ) -> Result<T> {
        let Self { name, domain, manifest, configure, clients, may_change, measured } = self;
        let path = bench.dir().join("attack.toml");
        fs::create_dir_all(bench.dir()).context("can't make the test's folder")?;
        fs::write(&path, manifest?).context("can't write the manifest")?;
        let configure = |config: &mut NodeConfig| {
            config.manifest = path;
            configure.into_iter().for_each(|how| how(bench, config));
        };
        let workload = Workload::light();
        bench.with_node(configure, |node| {
            let before = node.control()?.domains()?;
            let (result, reports) = std::thread::scope(|scope| {
                let threads = workload.start(scope, node, clients);
                let result = workload.wait_progress(4 * clients, PATIENCE).and_then(|()| {
                    let mut control = node.control()?;
                    let free = control.info()?.free;
                    let connections = control.connections()?;
                    let mut scene = Scene {
                        node,
                        workload: &workload,
                        control: Some(control),
                        name: &name,
                        domain: &domain,
                        from: 0,
                        clients,
                        free,
                        connections,
                        exits_before: 0,
                    };
                    if measured > 0 {
                        scene.exits_before = scene.exits(measured)?;
                    }
                    scene.play(judge)
                });
                workload.stop();
                if result.is_err() {
                    // Clients that the attack cut off would wait for long.
                    node.give_up();
                }
                match join(threads) {
                    // The end of the machine, which they were not told of.
                    Err(_) if result.is_err() => (result, Ok(Vec::new())),
                    reports => (result, reports),
                }
            });
            let reports = reports.context(UNDER_ATTACK)?;
            let value = result?;
            let after = || {
                if clients > 0 {
                    check_all(node, &reports)?;
                }
                no_breach(node, &name)?;
                let spared = |status: &DomainStatus| {
                    *status.name != *domain && !may_change.contains(&status.name.to_string())
                };
                unchanged(&before, &node.control()?.domains()?, spared)?;
                node.audit()
            };
            after().context(UNDER_ATTACK)?;
            Ok(value)
        })
    }
}

/// The text of the demo node's manifest, without spares: an attack runs in the
/// one domain that it names, and its neighbours stay as they were.
///
/// # Errors
///
/// It can't be read.
pub fn demo() -> Result<String> {
    let path = workspace::root().join("nodes/demo.toml");
    let text = fs::read_to_string(&path);
    let text = text.with_context(|| format!("can't read {}", path.display()))?;
    Ok(text.replace("spare = true\n", ""))
}

/// An attack under way.
pub struct Scene<'a> {
    node: &'a Node,
    workload: &'a Workload,
    /// There can be one client at a time; a test may borrow or drop it.
    control: Option<Client>,
    name: &'a str,
    domain: &'a str,
    /// First line of the log that belongs to the attack.
    from: usize,
    clients: u64,
    free: u64,
    connections: Vec<ConnectionStatus>,
    exits_before: u64,
}

impl std::fmt::Debug for Scene<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "attack {} on {:?}", self.name, self.node)
    }
}

impl<'a> Scene<'a> {
    fn play<T>(&mut self, judge: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let name = self.domain;
        let domain = self.control()?.domain(name)?;
        let domain = domain.with_context(|| format!("there is no domain {name}"))?;
        if names::domain_state(domain.state) == "stopped" {
            self.start()?;
        }
        let end = |scene: &mut Self| {
            let value = judge(scene)?;
            if scene.clients > 0 {
                scene.served(AFTER).context("after the attack")?;
            }
            anyhow::Ok(value)
        };
        end(self).context(UNDER_ATTACK)
    }

    /// Free memory of the node, bytes, and its connections before the attack.
    pub fn before(&self) -> (u64, &[ConnectionStatus]) {
        (self.free, &self.connections)
    }

    /// [`Scene::exits`] of the requests that [`Attack::measure`] named, before
    /// the attack.
    pub fn exits_before(&self) -> u64 {
        self.exits_before
    }

    /// How often `blk`, `net` and `kv` leave to the hypervisor while the
    /// clients get `requests` answers: what serving costs, in a measure that
    /// a busy host does not change.
    ///
    /// # Errors
    ///
    /// The clients are not served.
    pub fn exits(&mut self, requests: u64) -> Result<u64> {
        let before = self.exits_so_far()?;
        self.served(requests)?;
        Ok(self.exits_so_far()?.saturating_sub(before))
    }

    fn exits_so_far(&mut self) -> Result<u64> {
        let serves = |status: &&DomainStatus| ["blk", "net", "kv"].contains(&&*status.name);
        let domains = self.control()?.domains()?;
        Ok(domains.iter().filter(serves).map(|status| status.exits).sum())
    }

    /// Starts the attacker, or starts it anew, and waits until it begins.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn start(&mut self) -> Result<()> {
        self.from = self.node.machine().log().lines().len();
        let domain = self.domain;
        // It may die at once, or never connect what the supervisor waits for;
        // what counts is that it begins.
        let order = self.control()?.restart(domain, START);
        self.line("begins", LIMIT).map(drop).map_err(|why| match order {
            Ok(_) => why,
            Err(order) => why.context(format!("the order to start it: {order}")),
        })
    }

    /// The node.
    pub fn node(&self) -> &'a Node {
        self.node
    }

    /// The control line.
    ///
    /// # Errors
    ///
    /// The supervisor does not answer.
    pub fn control(&mut self) -> Result<&mut Client> {
        if self.control.is_none() {
            self.control = Some(self.node.control()?);
        }
        self.control.as_mut().context("control line")
    }

    /// Waits until the clients got `count` more answers.
    ///
    /// # Errors
    ///
    /// They do not, or a client's own check failed.
    pub fn served(&self, count: u64) -> Result<()> {
        ensure!(self.clients > 0, "this attack has no clients");
        self.workload.wait_progress(count, PATIENCE)
    }

    /// The same while the attack is at its height, where nobody may be kept
    /// waiting for long.
    ///
    /// # Errors
    ///
    /// As said.
    pub fn served_meanwhile(&self, count: u64) -> Result<()> {
        ensure!(self.clients > 0, "this attack has no clients");
        self.workload.wait_progress(count, SHORT).context("during the attack")
    }

    /// Lines of the node's log since the attacker was started.
    pub fn lines(&self) -> Vec<String> {
        self.node.machine().log().lines().split_off(self.from)
    }

    /// Waits for `attack: NAME: WHAT…` on the attacker's console; gives what
    /// comes after `WHAT`.
    ///
    /// # Errors
    ///
    /// It does not come, or the attack reports a breach before it.
    pub fn line(&self, what: &str, limit: Duration) -> Result<String> {
        let prefix = format!("attack: {}: {what}", self.name);
        let breach = breach_mark(self.name);
        let found = |line: &str| line.contains(&prefix) || line.contains(&breach);
        let (_, line) = self
            .node
            .machine()
            .log()
            .wait_for_line(self.from, found, limit)
            .with_context(|| format!("waited {} s in vain for {prefix:?}", limit.as_secs()))?;
        ensure!(!line.contains(&breach), "{line}");
        let rest = line.split_once(&prefix).map_or("", |(_, rest)| rest);
        Ok(rest.trim_start_matches(':').trim().to_owned())
    }

    /// Waits until the attack is through; gives its last word.
    ///
    /// # Errors
    ///
    /// It is not in time.
    pub fn done(&self, limit: Duration) -> Result<Verdict> {
        self.line("done", limit).map(Verdict)
    }

    /// The attacker's deaths that the supervisor knows of, oldest first. The
    /// hypervisor keeps the newest 64 of the node.
    ///
    /// # Errors
    ///
    /// The supervisor does not answer.
    pub fn deaths(&mut self) -> Result<Vec<CrashEntry>> {
        let mut all = self.control()?.crashes(0)?;
        all.retain(|entry| *entry.name == *self.domain);
        Ok(all)
    }

    /// Waits until the hypervisor has ended generation `generation` of the
    /// attacker, and fails unless it was for `reason` (as `nodectl` names it,
    /// such as "nested fault").
    ///
    /// # Errors
    ///
    /// It lives, died of something else, or reports a breach.
    pub fn ended(&mut self, generation: u32, reason: &str) -> Result<CrashEntry> {
        let what = format!("the end of generation {generation} of {}", self.domain);
        let (node, name) = (self.node, self.name);
        let entry = crate::runner::wait_for(&what, CONTROL, || {
            no_breach(node, name)?;
            let mut deaths = self.deaths()?.into_iter();
            Ok(deaths.find(|entry| entry.generation == generation))
        })?;
        let found = names::reason(entry.reason);
        ensure!(found == reason, "{what}: by {found} instead of {reason}");
        Ok(entry)
    }
}

/// The last word of an attack: `key=number` words.
#[derive(Clone, Debug)]
pub struct Verdict(String);

impl Verdict {
    /// Of the words of `text`.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// A count.
    ///
    /// # Errors
    ///
    /// The attack did not say.
    pub fn count(&self, key: &str) -> Result<u64> {
        self.word(key)?.parse().with_context(|| format!("{key} in {:?}", self.0))
    }

    /// A word.
    ///
    /// # Errors
    ///
    /// The attack did not say.
    pub fn word(&self, key: &str) -> Result<&str> {
        let mut words = self.0.split_ascii_whitespace();
        words
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
            .with_context(|| format!("the attack's last word has no {key}: {:?}", self.0))
    }

    /// Fails unless `least` or more attempts were made and all of them came
    /// to `end`.
    ///
    /// # Errors
    ///
    /// As said.
    pub fn all(&self, tried: &str, end: &str, least: u64) -> Result<()> {
        let (tried_count, ended) = (self.count(tried)?, self.count(end)?);
        ensure!(tried_count >= least, "only {tried_count} attempts: {:?}", self.0);
        ensure!(ended == tried_count, "not all attempts were {end}: {:?}", self.0);
        Ok(())
    }
}

/// What a report of something that must not be begins with.
fn breach_mark(name: &str) -> String {
    format!("attack: {name}: BREACH")
}

/// Fails if a program of the attack reported something that must not be.
fn no_breach(node: &Node, name: &str) -> Result<()> {
    let mark = breach_mark(name);
    let lines = node.machine().log().lines();
    let breaches: Vec<&String> = lines.iter().filter(|line| line.contains(&mark)).collect();
    let Some(first) = breaches.first() else { return Ok(()) };
    bail!("{} breaches, the first: {first}", breaches.len())
}

/// Fails if a domain that `is_meant` lives in another generation than before.
fn unchanged(
    before: &[DomainStatus],
    after: &[DomainStatus],
    is_meant: impl Fn(&DomainStatus) -> bool,
) -> Result<()> {
    let mut wrong = String::new();
    for old in before.iter().filter(|status| is_meant(status)) {
        let new = after.iter().find(|new| new.id == old.id);
        let new = new.ok_or_else(|| anyhow!("{} is gone", old.name))?;
        if new.generation != old.generation || new.state != old.state {
            let _ = write!(
                wrong,
                " {} was in generation {}, {}, and is in {}, {} (its last death: {});",
                old.name,
                old.generation,
                names::domain_state(old.state),
                new.generation,
                names::domain_state(new.state),
                names::reason(new.last_reason)
            );
        }
    }
    ensure!(wrong.is_empty(), "the attack changed a neighbour:{wrong}");
    Ok(())
}
