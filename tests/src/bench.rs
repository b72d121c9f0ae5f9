//! A node for a test, and what happens after the test: audit, orderly
//! shutdown, verdict, logs.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nodectl::{Client, crashes, names, report};
use xtask::{
    build,
    manifest::{self, Manifest},
    qemu::{NodeConfig, RunningNode, Verdict as End},
    workspace,
};

use crate::{
    http::Connection,
    runner::{Unknown, Verdict, wait_for},
};

// Wall time says nothing on a shared machine, so limits are far off.
/// From power-on to the first answer.
pub const BOOT: Duration = Duration::from_secs(180);
/// For one request, with crashes in between.
pub const REQUEST: Duration = Duration::from_secs(300);
/// From an ordered death to the next generation's service.
pub const RECOVERY: Duration = Duration::from_secs(120);
/// For an answer of the supervisor.
pub const CONTROL: Duration = Duration::from_secs(60);
/// From the shutdown command to the end of QEMU.
const SHUTDOWN: Duration = Duration::from_secs(60);
/// Lines of the log that go with a failure.
const LAST_LINES: usize = 30;

/// Where a test works: a folder of its own, and nodes.
#[derive(Debug)]
pub struct Bench {
    name: String,
    dir: PathBuf,
    keep: bool,
    show_log: bool,
}

impl Bench {
    /// The bench of test `name`, with an empty folder.
    pub fn new(name: &str, keep: bool, show_log: bool) -> Self {
        let dir = workspace::target_dir().join("system-tests").join(name);
        let _ = fs::remove_dir_all(&dir);
        Self { name: name.to_owned(), dir, keep, show_log }
    }

    /// Name of the test.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The test's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Boots a node, lets `body` work with it, audits it and powers it off in
    /// good order.
    ///
    /// # Errors
    ///
    /// The node does not boot, `body` fails, the audit finds violations, or
    /// the end is not orderly.
    pub fn with_node<T>(
        &self,
        configure: impl FnOnce(&mut NodeConfig),
        body: impl FnOnce(&Node) -> Result<T>,
    ) -> Result<T> {
        self.run(configure, body, Node::shut_down)
    }

    /// The same, but the power is cut at the end: SIGKILL to QEMU.
    ///
    /// # Errors
    ///
    /// As for [`with_node`](Self::with_node).
    pub fn with_node_until_power_cut<T>(
        &self,
        configure: impl FnOnce(&mut NodeConfig),
        body: impl FnOnce(&Node) -> Result<T>,
    ) -> Result<T> {
        self.run(configure, body, |node| match node.running.kill() {
            End::Killed => Ok(()),
            other => bail!("the power cut came too late: {other}"),
        })
    }

    fn run<T>(
        &self,
        configure: impl FnOnce(&mut NodeConfig),
        body: impl FnOnce(&Node) -> Result<T>,
        end: impl FnOnce(&Node) -> Result<()>,
    ) -> Result<T> {
        let node = self.boot(configure)?;
        let result = body(&node).and_then(|value| {
            node.audit()?;
            end(&node)?;
            Ok(value)
        });
        result.map_err(|error| node.explain(error))
    }

    /// Boots a node with this hypervisor that is to end by itself, and gives how
    /// it ended and its log.
    ///
    /// # Errors
    ///
    /// It does not start, or still runs after the time for booting.
    pub fn to_its_end(
        &self,
        hv: PathBuf,
        configure: impl FnOnce(&mut NodeConfig),
    ) -> Result<(End, Vec<String>)> {
        let (node, _) = self.launch(configure, Some(hv))?;
        let end = node.running.wait(Some(BOOT)).context("the node still runs");
        end.map(|end| (end, node.running.log().lines())).map_err(|error| node.explain(error))
    }

    fn boot(&self, configure: impl FnOnce(&mut NodeConfig)) -> Result<Node> {
        let (node, serves_http) = self.launch(configure, None)?;
        let ready = if serves_http {
            node.running.wait_ready(BOOT)
        } else {
            wait_for("the supervisor", BOOT, || Ok(node.control().ok())).map(drop)
        };
        match ready {
            Ok(()) => Ok(node),
            Err(error) => Err(node.explain(error)),
        }
    }

    /// Starts a node, with another hypervisor than the one that is built for
    /// all; also says whether it will serve HTTP.
    fn launch(
        &self,
        configure: impl FnOnce(&mut NodeConfig),
        hv: Option<PathBuf>,
    ) -> Result<(Node, bool)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut config = NodeConfig::new(manifest::default_path(), &self.dir);
        // The path of a Unix socket is short; that of a checkout may not be.
        let socket = format!("bulkhead-{}-{number}.sock", std::process::id());
        config.control_socket = std::env::temp_dir().join(socket);
        for log in [&mut config.serial_log, &mut config.qemu_log] {
            let name = log.file_name().unwrap_or_default().to_string_lossy();
            *log = self.dir.join(format!("{number}-{name}"));
        }
        if self.show_log {
            config.on_line = Some(std::sync::Arc::new(|line| eprintln!("{line}")));
        }
        fs::create_dir_all(&self.dir).context("can't make the test's folder")?;
        configure(&mut config);
        let manifest = Manifest::load(&config.manifest)?;
        let serves_http = manifest.domains.iter().any(|domain| domain.image == "kv");
        // A test about a node that does not build says nothing about the node.
        let mut built = build::build(&manifest)
            .map_err(|error| Unknown(format!("the node does not build: {error:#}")))?;
        built.hv = hv.unwrap_or(built.hv);
        let running = config
            .launch_built(&built)
            .map_err(|error| Unknown(format!("QEMU can't run: {error:#}")))?;
        Ok((Node { running, opening: Mutex::new(()), dir: self.dir.clone() }, serves_http))
    }

    /// Removes what a passed test left; names what a failed one left.
    pub fn clear_up(&self, verdict: &Verdict) {
        if *verdict == Verdict::Passed && !self.keep {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// A node that runs for a test.
#[derive(Debug)]
pub struct Node {
    running: RunningNode,
    /// Held while a connection is opened.
    opening: Mutex<()>,
    dir: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        // A killed QEMU leaves its socket.
        self.running.stop();
        let _ = fs::remove_file(self.running.control());
    }
}

impl Node {
    /// A new HTTP connection, over which one request was answered.
    ///
    /// Connections are opened one after the other: QEMU's user network listens
    /// with a backlog of one, and a host that is asked for several at once
    /// resets some before they ever come to the node.
    ///
    /// # Errors
    ///
    /// The node does not take it.
    pub fn connect(&self) -> Result<Connection> {
        let _one_at_a_time = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let mut connection = Connection::open(self.running.http_address(), REQUEST)?;
        let health = connection.request("GET", "health", None).context("a new connection")?;
        ensure!(health.status == 200, "GET /health: {} {}", health.status, health.text());
        Ok(connection)
    }

    /// The machine.
    pub fn machine(&self) -> &RunningNode {
        &self.running
    }

    /// A new client of the control line. There can be one at a time.
    ///
    /// # Errors
    ///
    /// The supervisor does not answer.
    pub fn control(&self) -> Result<Client> {
        Client::connect(self.running.control(), CONTROL).context("control line")
    }

    /// Fails if a table of the node is not as the hypervisor's books have it.
    ///
    /// # Errors
    ///
    /// It is not, or the audit can't be asked for.
    pub fn audit(&self) -> Result<()> {
        let result = self.control()?.audit().context("audit")?;
        ensure!(
            report::is_clean(&result),
            "the audit found violations:\n{}",
            report::audit(&result)
        );
        Ok(())
    }

    fn shut_down(&self) -> Result<()> {
        self.control()?.shutdown().context("shutdown")?;
        match self.running.wait(Some(SHUTDOWN)) {
            Some(End::Orderly) => Ok(()),
            None => bail!("the node did not power off within {} s", SHUTDOWN.as_secs()),
            Some(End::Unknown(how)) => Err(Unknown(format!("after the shutdown: {how}")).into()),
            Some(other) => bail!("instead of an orderly shutdown: {other}"),
        }
    }

    /// Writes down what the supervisor can still tell, and ends the machine:
    /// the test has failed, and nobody shall wait for answers any more.
    pub fn give_up(&self) {
        self.save_records();
        self.running.stop();
    }

    /// Waits until a domain serves in a generation of at least `generation`.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn wait_running(&self, client: &mut Client, name: &str, generation: u32) -> Result<()> {
        wait_for(&format!("generation {generation} of {name}"), RECOVERY, || {
            let domain = client.domain(name)?;
            let serves = domain.is_some_and(|domain| {
                domain.ready
                    && domain.generation >= generation
                    && names::domain_state(domain.state) == "running"
            });
            Ok(serves.then_some(()))
        })
    }

    /// Adds to an error what is known of the node, and ends it.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        // A hypervisor that panicked or a machine that reset explains the rest.
        let end = self.running.wait(Some(Duration::from_millis(500)));
        let what = match &end {
            None => {
                self.save_records();
                self.running.stop();
                "the node was still running".to_owned()
            }
            Some(end) => end.to_string(),
        };
        let mut text = format!("{error:#}\n{what}; logs are in {}", self.dir.display());
        let mut quote = |title: &str, lines: &[String]| {
            if !lines.is_empty() {
                text += &format!("\n{title}:\n  {}", lines.join("\n  "));
            }
        };
        quote("last lines of the node's log", &self.running.log().last(LAST_LINES));
        let mut messages = self.running.qemu_log().last(LAST_LINES);
        // It warns of what every machine without KVM lacks.
        messages.retain(|line| !line.contains("TCG doesn't support"));
        quote("QEMU", &messages);
        let is_unknown = error.downcast_ref::<Unknown>().is_some();
        match end {
            Some(End::Unknown(_)) => Unknown(text).into(),
            _ if is_unknown => Unknown(text).into(),
            _ => anyhow::anyhow!(text),
        }
    }

    /// Writes down what the supervisor can still tell of a failed test.
    fn save_records(&self) {
        let tell = || -> Result<String> {
            let mut client = Client::connect(self.running.control(), Duration::from_secs(5))?;
            let mut text = report::list(&client.domains()?, &client.connections()?);
            text += &report::info(&client.info()?);
            text += &report::audit(&client.audit()?);
            for entry in client.crashes(0)? {
                let story = client.story(entry.sequence, &workspace::node_dir(), LAST_LINES)?;
                text += &crashes::show(&story);
            }
            Ok(text)
        };
        let text =
            tell().unwrap_or_else(|error| format!("the supervisor tells nothing: {error:#}\n"));
        let _ = fs::write(self.dir.join("state.txt"), text);
    }
}
