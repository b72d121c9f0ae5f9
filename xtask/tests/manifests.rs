//! One good manifest and many bad ones. The first line of each file in
//! `tests/manifests` is the message that it must give.

use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use ring_proto::boot::{CAP_CONTROL_UART, CAP_SUPERVISOR, Limits};
use ring_proto::bundle::{self, Select};
use xtask::manifest::{Manifest, ManifestError};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests")
}

fn parse(name: &str, text: &str) -> Result<Manifest, ManifestError> {
    Manifest::parse(Path::new(name), text.to_owned())
}

/// Set `BLESS=1` to write the messages that come into the files, and then read them.
#[test]
fn bad_manifests_give_their_exact_message() {
    let bless = std::env::var_os("BLESS").is_some();
    let mut wrong = Vec::new();
    let mut files = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let (first, rest) = text.split_once('\n').unwrap();
        let got = match parse(&name, &text) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        };
        let got = format!("# {}", got.trim_start_matches(&format!("{name}:")));
        assert!(!got.contains('\n'), "more than one line: {got}");
        if bless {
            std::fs::write(&path, format!("{got}\n{rest}")).unwrap();
        } else if got != first {
            wrong.push(format!("{name}\n  wanted {first}\n  got    {got}"));
        }
        files += 1;
    }
    assert!(files > 50, "only {files} files");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_place_is_shown() {
    let text = "[domain.a]\nimage = \"kv\"\nmemroy = \"4MiB\"\n";
    let error = parse("node.toml", text).unwrap_err();
    assert_eq!(
        error.to_string(),
        "node.toml:3:1: unknown key `memroy` in [domain.a]; did you mean `memory`?"
    );
    assert_eq!(error.snippet(), "  |\n3 | memroy = \"4MiB\"\n  | ^^^^^^");
}

#[test]
fn the_example_of_the_design_is_read() {
    let text = r#"
[node]
cores = 2

[device.nic0]
match = { class = "network", index = 0 }    # or bdf = "01:00.0"

[device.disk0]
bdf = "02:01.3"

[domain.net]
image = "net"
memory = "4MiB"
dma_pool = "1MiB"
device = "nic0"
spare = true
restart = { floor_ms = 5, backoff = 2.0, budget = 5, window_s = 10, check_ms = 20, word_s = 0 }

[domain.kv]
image = "kv"
memory = "16MiB"
weight = 128
args = "ip=10.0.2.15/24"

[domain.blk]
image = "blk"
memory = "4MiB"
device = "disk0"
core = 1
cap = 50
watchdog_ms = 20
autostart = false

[domain.supervisor]
image = "supervisor"
memory = "2MiB"
capabilities = ["supervisor", "control-uart"]

[[connection]]
protocol = "blk"
frontend = "kv"
backend = "blk"
volume = "kv-data"
limits = { ops = 20000, bandwidth = "200MiB/s" }

[[connection]]
protocol = "net"
frontend = "kv"
backend = "net"
addresses = ["10.0.2.15/32", "fd00::5", "fd00:1::/64"]
limits = { ops = 9, refill_time_ms = 50, one_time_burst = { ops = 1000 } }

[volume.kv-data]
size = "64MiB"
"#;
    let manifest = parse("node.toml", text).unwrap();
    assert_eq!(manifest.cores, 2);
    assert_eq!(manifest.image_names(), ["net", "kv", "blk", "supervisor"]);
    let [net, kv, blk, supervisor, spare] = manifest.domains.as_slice() else { panic!() };
    assert!(net.spare && !kv.spare);
    let like_net = bundle::Domain {
        name: "net-spare".try_into().unwrap(),
        devices: heapless::Vec::new(),
        spare_of: Some(0),
        ..net.spec.clone()
    };
    assert_eq!((&spare.spec, spare.image.as_str()), (&like_net, "net"));
    assert_eq!(net.spec.devices.as_slice(), [0]);
    assert_eq!(net.spec.restart.backoff_percent, 200);
    assert_eq!((net.spec.restart.check_ms, net.spec.restart.word_s), (20, 0));
    assert_eq!((kv.spec.restart.check_ms, kv.spec.restart.word_s), (500, 60));
    assert_eq!((kv.spec.memory, kv.spec.dma_pool, kv.spec.weight), (16 << 20, 0, 128));
    assert_eq!(kv.spec.args, "ip=10.0.2.15/24");
    assert_eq!((blk.spec.core, blk.spec.cap, blk.spec.watchdog_ms), (Some(1), 50, 20));
    assert_eq!((blk.spec.dma_pool, blk.spec.autostart), (1 << 20, false));
    assert_eq!((blk.spec.grant_window_pages, kv.spec.grant_window_pages), (2048, 512));
    assert_eq!(supervisor.spec.capabilities, CAP_SUPERVISOR | CAP_CONTROL_UART);
    assert_eq!(manifest.devices[1].select, Select::Bdf(2 << 8 | 1 << 3 | 3));
    let [disk, wire] = manifest.connections.as_slice() else { panic!() };
    assert_eq!((disk.frontend, disk.backend, disk.volume.as_str()), (1, 2, "kv-data"));
    let limits = Limits { ops: 20_000, bandwidth: 200 << 20, refill_ms: 100, ..Limits::default() };
    assert_eq!(disk.limits, limits);
    let limits = Limits { ops: 9, ops_burst: 1000, refill_ms: 50, ..Limits::default() };
    assert_eq!(wire.limits, limits);
    assert_eq!(wire.mac[..3], [0x02, 0x42, 0x48]);
    let show = |(address, bits): ([u8; 16], u8)| format!("{}/{bits}", Ipv6Addr::from(address));
    let addresses: Vec<_> = wire.addresses.entries().map(show).collect();
    assert_eq!(addresses, ["::ffff:10.0.2.15/128", "fd00::5/128", "fd00:1::/64"]);
    assert_eq!((wire.addresses.checked, disk.addresses.checked), (1, 0));
    assert_eq!(manifest.volumes[0].size, 64 << 20);
    assert!(manifest.warnings.is_empty(), "{:?}", manifest.warnings);
}

#[test]
fn a_vif_without_addresses_is_warned_of() {
    let text = "[domain.a]\nimage = \"kv\"\nmemory = \"4MiB\"\n\
         [domain.net]\nimage = \"net\"\nmemory = \"4MiB\"\n\
         capabilities = [\"supervisor\"]\n\
         [[connection]]\nprotocol = \"net\"\nfrontend = \"a\"\nbackend = \"net\"\n";
    let manifest = parse("node.toml", text).unwrap();
    let warning = "the net connection of [domain.a] has no `addresses`: \
                   its guest can send from any IP address";
    assert_eq!(manifest.warnings, [warning]);
    let manifest = parse("node.toml", &format!("{text}addresses = []\n")).unwrap();
    assert_eq!(manifest.warnings, [""; 0]);
}

#[test]
fn assigned_addresses_differ_and_stay() {
    let domains = "[domain.a]\nimage = \"kv\"\nmemory = \"4MiB\"\n\
         [domain.b]\nimage = \"kv\"\nmemory = \"4MiB\"\n\
         [domain.net]\nimage = \"net\"\nmemory = \"4MiB\"\n";
    let vif = |end: &str| {
        format!("[[connection]]\nprotocol = \"net\"\nfrontend = \"{end}\"\nbackend = \"net\"\n")
    };
    let macs = |order: &[&str]| {
        let text = order.iter().fold(domains.to_owned(), |text, end| text + &vif(end));
        let manifest = parse("node.toml", &text).unwrap();
        manifest.connections.iter().map(|connection| connection.mac).collect::<Vec<_>>()
    };
    let first = macs(&["a", "b", "a"]);
    assert!(first[0] != first[1] && first[0] != first[2] && first[1] != first[2]);
    assert_eq!(macs(&["b", "a", "a"]), [first[1], first[0], first[2]]);
}

#[test]
fn manifests_of_this_repository_are_good() {
    let nodes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nodes");
    for entry in std::fs::read_dir(nodes).unwrap() {
        let path = entry.unwrap().path();
        let manifest = Manifest::load(&path).unwrap();
        assert_eq!(manifest.warnings, [""; 0], "{}", path.display());
    }
}
