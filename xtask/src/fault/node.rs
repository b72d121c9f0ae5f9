//! What a manifest must have for its node to be put through a campaign, and what it says of who
//! is struck and who judges.

use anyhow::{Context, Result, bail, ensure};
use ring_proto::boot::CAP_SUPERVISOR;
use ring_proto::bundle::{Connection, Domain};
use ring_proto::conn::Protocol;

use super::trial::LIMIT;
use crate::manifest::Manifest;
use crate::size::show as size;

/// The image of judges, and that of the domain at the other end of the wire.
const JUDGE: &str = "judge";
const PEER: (&str, &str) = ("bench", "mode=peer");
/// What a detection may take beyond the limits that the manifest sets, ns.
const MARGIN: u64 = 100_000_000;
const MS: u64 = 1_000_000;
/// What the judge of blk works on (`REGION` in `guests/judge/src/blk.rs`), bytes.
const VOLUME: u64 = 8 << 20;

/// A driver that can be struck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Its domain.
    pub driver: String,
    /// `blk` or `net`: what it serves.
    pub kind: &'static str,
    /// Its judge.
    pub judge: String,
    /// blk: the volume of the judge.
    pub volume: String,
    /// What it drives is virtio, as far as the manifest says.
    pub is_virtio: bool,
}

/// The drivers of a node that have a judge: one that serves blk, then one that serves net.
/// Whichever is struck, the other one's judge is the neighbour.
///
/// # Errors
///
/// Says what the manifest lacks for a campaign.
pub fn judged(manifest: &Manifest) -> Result<[Judged; 2]> {
    of(manifest).with_context(|| {
        format!(
            "{} is no node for a campaign (see the book, Test your driver)",
            manifest.path().display()
        )
    })
}

fn of(manifest: &Manifest) -> Result<[Judged; 2]> {
    ensure!(manifest.cores == 1, "it needs `cores = 1` in [node]: trials are on one core");
    let is_peer = |spec: &Domain| spec.args.split(' ').any(|word| word == PEER.1);
    ensure!(
        manifest.domains.iter().any(|domain| domain.image == PEER.0 && is_peer(&domain.spec)),
        "it has no other end of the wire: a domain with image = {:?}, args = {:?} and a NIC of its \
         own",
        PEER.0,
        PEER.1
    );
    let supervisor = of_supervisor(manifest)?;
    check_wait(&supervisor.name, "`watchdog_ms`", supervisor.watchdog_ms.into())?;
    Ok([one(manifest, Protocol::Blk, "blk")?, one(manifest, Protocol::Net, "net")?])
}

/// A round is long enough for three of all times that pass until something is detected.
fn check_wait(name: &str, what: &str, ms: u64) -> Result<()> {
    ensure!(
        ms <= LIMIT / MS / 3,
        "[domain.{name}]: {what} are {ms} ms; a trial can wait for at most {} ms",
        LIMIT / MS / 3
    );
    Ok(())
}

/// Name of the domain that restarts the others.
///
/// # Errors
///
/// There is none.
pub fn supervisor(manifest: &Manifest) -> Result<&str> {
    Ok(&of_supervisor(manifest)?.name)
}

fn of_supervisor(manifest: &Manifest) -> Result<&Domain> {
    let mut all = manifest.domains.iter().map(|domain| &domain.spec);
    let found = all.find(|spec| spec.capabilities & CAP_SUPERVISOR != 0);
    found.context("it has no supervisor")
}

/// The same node, with a spare for each driver that is judged.
///
/// # Errors
///
/// The manifest can't be read again, or has no section for one of them.
pub fn with_spares(manifest: &Manifest) -> Result<Manifest> {
    let path = manifest.path();
    let mut text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    for driver in judged(manifest)?.map(|judged| judged.driver) {
        let has_one =
            |domain: &crate::manifest::Domain| domain.spare && *domain.spec.name == driver;
        if manifest.domains.iter().any(has_one) {
            continue;
        }
        let section = format!("[domain.{driver}]\n");
        ensure!(text.contains(&section), "{}: no line [domain.{driver}]", path.display());
        text = text.replacen(&section, &format!("{section}spare = true\n"), 1);
    }
    let path = path.with_file_name(format!("{}-spares.toml", manifest.stem()));
    Ok(Manifest::parse(&path, text)?)
}

fn one(manifest: &Manifest, protocol: Protocol, kind: &'static str) -> Result<Judged> {
    let domain = |index: u16| manifest.domains.get(usize::from(index));
    let judges = |connection: &&Connection| {
        connection.protocol == protocol as u16
            && domain(connection.frontend).is_some_and(|frontend| frontend.image == JUDGE)
    };
    let mut found = manifest.connections.iter().filter(judges);
    let connection = found.next().with_context(|| {
        format!(
            "nobody judges a {kind} driver: it needs a domain with image = {JUDGE:?} and args = \
             \"mode={kind} …\", and a [[connection]] with protocol = {kind:?} from it to the driver"
        )
    })?;
    ensure!(found.next().is_none(), "there are several judges for {kind}");
    let (judge, driver) = domain(connection.frontend)
        .zip(domain(connection.backend))
        .context("a connection has no end")?;
    let (judge, driver) = (&judge.spec, &driver.spec);
    ensure!(
        judge.args.split(' ').any(|word| word.strip_prefix("mode=") == Some(kind)),
        "[domain.{}] judges no {kind} driver: its args need `mode={kind}`",
        judge.name
    );
    let name = &driver.name;
    ensure!(!driver.devices.is_empty(), "[domain.{name}] owns no device, so it is no driver");
    let restart = &driver.restart;
    if !restart.automatic || restart.budget != 0 || restart.floor_ms != 0 || restart.word_s != 0 {
        bail!(
            "[domain.{name}] is to die thousands of times: its `restart` needs floor_ms = 0, \
             budget = 0 (no end) and word_s = 0 (each complaint counts), and not automatic = false"
        );
    }
    let limit = u64::from(connection.stall_ms) + u64::from(restart.check_ms);
    for (what, ms) in [
        ("`stall_ms` of its connection and `check_ms` together", limit),
        ("`watchdog_ms`", driver.watchdog_ms.into()),
    ] {
        check_wait(name, what, ms)?;
    }
    let volume = connection.volume.as_str();
    if let Some(volume) = manifest.volumes.iter().find(|other| other.label == volume) {
        ensure!(
            volume.size >= VOLUME,
            "[volume.{}] is {}, and the judge wants at least {}",
            volume.label,
            size(volume.size),
            size(VOLUME)
        );
    }
    let plugged = match protocol {
        Protocol::Blk => &manifest.plugged.disk,
        Protocol::Net => &manifest.plugged.nic,
    };
    Ok(Judged {
        driver: name.as_str().to_owned(),
        kind,
        judge: judge.name.as_str().to_owned(),
        volume: volume.to_owned(),
        is_virtio: plugged.as_ref().is_none_or(|device| device.starts_with("virtio-")),
    })
}

/// The bound within which a fault that shows must be detected, on the node's clock: that of the
/// slowest stall, with the supervisor's check behind it, and a margin.
pub fn bound_ns(manifest: &Manifest) -> u64 {
    let of = |connection: &Connection| {
        let backend = manifest.domains.get(usize::from(connection.backend));
        let check = backend.map_or(0, |backend| u64::from(backend.spec.restart.check_ms));
        (u64::from(connection.stall_ms) + check) * MS
    };
    manifest.connections.iter().map(of).max().unwrap_or(0) + MARGIN
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::workspace;

    fn text(path: &str) -> String {
        std::fs::read_to_string(workspace::root().join(path)).unwrap()
    }

    fn found(text: &str) -> Result<[Judged; 2]> {
        judged(&Manifest::parse(Path::new("mine.toml"), text.to_owned()).unwrap())
    }

    #[test]
    fn both_manifests_say_who_is_struck_and_who_judges() {
        let [blk, net] = found(&text("nodes/fault.toml")).unwrap();
        let of = |one: &Judged| {
            let Judged { driver, kind, judge, volume, is_virtio } = one.clone();
            (driver, kind, judge, volume, is_virtio)
        };
        let own = |text: &str| text.to_owned();
        assert_eq!(of(&blk), (own("blk"), "blk", own("judge-blk"), own("judged"), true));
        assert_eq!(of(&net), (own("net"), "net", own("judge-net"), own(""), true));
        let [disk, other] = found(&text("examples/nvme/node.toml")).unwrap();
        assert_eq!(of(&disk), (own("disk"), "blk", own("judge-blk"), own("judged"), false));
        assert_eq!(other, net);
    }

    #[test]
    fn each_driver_gets_its_spare() {
        for path in ["nodes/fault.toml", "examples/nvme/node.toml"] {
            let plain = Manifest::load(&workspace::root().join(path)).unwrap();
            let spares = with_spares(&plain).unwrap();
            assert_eq!(judged(&spares).unwrap(), judged(&plain).unwrap());
            let of = |domain: &crate::manifest::Domain| domain.spec.spare_of;
            let principals: Vec<u16> = spares.domains.iter().filter_map(of).collect();
            let name = |id: &u16| &*spares.domains[usize::from(*id)].spec.name;
            let names: Vec<&str> = principals.iter().map(name).collect();
            assert_eq!(names, judged(&plain).unwrap().each_ref().map(|judged| &*judged.driver));
            assert_ne!(spares.stem(), plain.stem(), "its bundle is another file");
        }
    }

    #[test]
    fn what_a_manifest_lacks_is_said() {
        let good = text("examples/nvme/node.toml");
        for (from, to, why) in [
            ("cores = 1", "cores = 2", "`cores = 1`"),
            ("args = \"mode=peer\"", "args = \"mode=none\"", "no other end of the wire"),
            ("frontend = \"judge-blk\"", "frontend = \"peer\"", "nobody judges a blk driver"),
            ("args = \"mode=blk\"", "args = \"mode=net\"", "its args need `mode=blk`"),
            ("dma_pool = \"1MiB\"\ndevice = \"disk0\"", "", "[domain.disk] owns no device"),
            ("budget = 0", "budget = 9", "[domain.disk] is to die thousands of times"),
            ("stall_ms = 40", "stall_ms = 400", "a trial can wait for at most 133 ms"),
            ("watchdog_ms = 5", "watchdog_ms = 500", "`watchdog_ms` are 500 ms"),
            ("watchdog_ms = 20\n", "", "[domain.supervisor]: `watchdog_ms` are 500 ms"),
            ("size = \"16MiB\"", "size = \"1MiB\"", "the judge wants at least 8MiB"),
        ] {
            assert!(good.contains(from), "{from}");
            let error = format!("{:#}", found(&good.replacen(from, to, 1)).unwrap_err());
            assert!(error.starts_with("mine.toml is no node for a campaign"), "{error}");
            assert!(error.contains(why), "{from}: {error}");
        }
        let more = "[[connection]]\nprotocol = \"blk\"\nfrontend = \"judge-net\"\n\
                    backend = \"disk\"\nvolume = \"other\"\n";
        let error = format!("{:#}", found(&format!("{good}\n{more}")).unwrap_err());
        assert!(error.contains("several judges for blk"), "{error}");
    }

    #[test]
    fn the_bound_follows_from_the_manifest() {
        let manifest = Manifest::load(&workspace::root().join("nodes/fault.toml")).unwrap();
        assert_eq!(bound_ns(&manifest), 150_000_000);
    }
}
