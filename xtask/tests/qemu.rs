//! Starting, judging and ending QEMU, with a hand-made kernel of a few bytes
//! in place of the hypervisor. Without QEMU these tests say so and pass.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use xtask::build::Built;
use xtask::manifest::Manifest;
use xtask::qemu::{NodeConfig, RunningNode, Verdict, install};

const PATIENCE: Duration = Duration::from_secs(30);

/// Where the kernel is loaded.
const BASE: u64 = 0x10_0000;
/// `mov dx, port; mov al, value; out dx, al` in 32-bit mode.
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}
/// Loops for ever.
const HANG: [u8; 2] = [0xeb, 0xfe];
/// An undefined instruction without an IDT: a triple fault.
const TRIPLE_FAULT: [u8; 2] = [0x0f, 0x0b];

/// A 64-bit ELF file with a PVH note and these instructions.
fn kernel(code: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4u32, 8, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(BASE.to_le_bytes());
    let data = 64 + 2 * 56;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for value in [BASE, 64, 0] {
        file.extend(value.to_le_bytes());
    }
    file.extend([0; 4]);
    for value in [64u16, 56, 2, 64, 0, 0] {
        file.extend(value.to_le_bytes());
    }
    let parts = [(1u32, 5u32, BASE, code.len(), note.len()), (4, 4, 0, note.len(), 0)];
    for (kind, flags, address, len, skip) in parts {
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        let offset = (data + skip) as u64;
        for value in [offset, address, address, len as u64, len as u64, 4] {
            file.extend(value.to_le_bytes());
        }
    }
    file.extend(note);
    file.extend(code);
    file
}

/// Says "hi" on the first UART, then does `end`.
fn hello(end: &[u8]) -> Vec<u8> {
    let text = b"[hv] hi\n".iter().flat_map(|byte| out(0x3f8, *byte));
    kernel(&text.chain(end.iter().copied()).collect::<Vec<u8>>())
}

struct Fixture {
    dir: tempfile::TempDir,
    built: Built,
}

impl Fixture {
    /// `None` without QEMU.
    fn new(kernel: &[u8]) -> Option<Self> {
        if install::find().is_err() {
            eprintln!("skipped: there is no QEMU");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let text = "[domain.a]\nimage = \"a\"\nmemory = \"4MiB\"\n".to_owned();
        let manifest = Manifest::parse(Path::new("node.toml"), text).unwrap();
        let hv = dir.path().join("hv");
        let bundle = dir.path().join("bundle");
        std::fs::write(&hv, kernel).unwrap();
        std::fs::write(&bundle, [0; 4096]).unwrap();
        let built = Built { manifest, hv, bundle, images: Vec::new() };
        Some(Self { dir, built })
    }

    fn config(&self) -> NodeConfig {
        NodeConfig::new("node.toml", self.dir.path())
    }

    fn launch(&self) -> RunningNode {
        self.config().launch_built(&self.built).unwrap()
    }

    fn refusal(&self, config: &NodeConfig) -> String {
        format!("{:#}", config.launch_built(&self.built).unwrap_err())
    }
}

#[test]
fn the_verdict_tells_the_ends_apart() {
    let ends = [
        (out(0xf4, 0x10), Verdict::Orderly),
        (out(0xf4, 0x11), Verdict::HypervisorPanic),
        (
            TRIPLE_FAULT.to_vec(),
            Verdict::Unknown("QEMU ended with 0: a reset, or a triple fault".to_owned()),
        ),
    ];
    for (code, verdict) in ends {
        let Some(fixture) = Fixture::new(&hello(&code)) else { return };
        let node = fixture.launch();
        assert_eq!(node.wait(Some(PATIENCE)), Some(verdict));
        assert_eq!(node.log().lines(), ["[hv] hi"]);
        assert_eq!(std::fs::read(node.log_path()).unwrap(), b"[hv] hi\n");
    }
}

#[test]
fn a_node_can_be_talked_to_stopped_and_killed() {
    let Some(fixture) = Fixture::new(&hello(&HANG)) else { return };
    let node = fixture.launch();
    let found = node.log().wait_for_line(0, |line| line.contains("hi"), PATIENCE);
    assert_eq!(found, Some((0, "[hv] hi".to_owned())));
    UnixStream::connect(node.control()).unwrap();
    std::net::TcpStream::connect(node.http_address()).unwrap();
    assert_eq!(node.wait(Some(Duration::ZERO)), None);
    assert_eq!(node.stop(), Verdict::Stopped);
    assert_eq!(fixture.launch().kill(), Verdict::Killed);
    // A dropped node is gone, and its disk free.
    let pid = fixture.launch().pid();
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    fixture.launch();
}

#[test]
fn a_node_that_is_not_ready_says_what_it_said() {
    let Some(fixture) = Fixture::new(&hello(&HANG)) else { return };
    let error = fixture.launch().wait_ready(Duration::from_millis(10)).unwrap_err().to_string();
    assert!(error.starts_with("the node was not ready within 0 s: GET /health"), "{error}");
    assert!(error.contains("\n    [hv] hi\n"), "{error}");
    let fixture = Fixture::new(&hello(&out(0xf4, 0x11))).unwrap();
    let error = fixture.launch().wait_ready(PATIENCE).unwrap_err().to_string();
    assert!(error.starts_with("the hypervisor panicked before it was ready\n"), "{error}");
}

#[test]
fn what_is_in_the_way_is_named_in_one_line() {
    let Some(fixture) = Fixture::new(&hello(&HANG)) else { return };
    let node = fixture.launch();
    let other = tempfile::tempdir().unwrap();
    let elsewhere = NodeConfig::new("node.toml", other.path());

    let port = node.http_address().port();
    let error = fixture.refusal(&NodeConfig { http_port: port, ..elsewhere.clone() });
    assert_eq!(
        error,
        format!(
            "port {port} on 127.0.0.1 is in use; choose another with --http PORT, or 0 for any free one"
        )
    );
    let disk = fixture.config().disk;
    let error = fixture.refusal(&NodeConfig { disk: disk.clone(), ..elsewhere.clone() });
    let start = format!("the disk image {} is in use by", disk.display());
    assert!(error.starts_with(&start) && !error.contains('\n'), "{error}");

    let control_socket = node.control().to_owned();
    let error = fixture.refusal(&NodeConfig { control_socket, ..elsewhere.clone() });
    assert!(error.contains("belongs to a running node"), "{error}");

    let error = fixture.refusal(&NodeConfig { memory: 8 << 20, ..elsewhere.clone() });
    assert_eq!(error, "too little memory: node.toml needs at least 37MiB, and --memory gives 8MiB");
    let error = fixture.refusal(&NodeConfig { cpu: "i8080".to_owned(), ..elsewhere.clone() });
    assert!(error.starts_with("QEMU knows no CPU model `i8080`"), "{error}");
    let control_socket = PathBuf::from("/".repeat(200));
    let error = fixture.refusal(&NodeConfig { control_socket, ..elsewhere });
    assert!(error.contains("is longer than 107 bytes"), "{error}");
}

#[test]
fn qemus_own_lock_is_explained() {
    let Some(fixture) = Fixture::new(&hello(&HANG)) else { return };
    // A QEMU that somebody started by hand: there is its lock, and none of xtask's.
    drop(fixture.launch());
    let disk = fixture.config().disk;
    let mut command = Command::new(install::find().unwrap());
    command.args(["-nodefaults", "-display", "none", "-S", "-qmp", "stdio", "-drive"]);
    command.arg(format!("if=none,id=d,format=raw,file={}", disk.display()));
    command.args(["-device", "virtio-blk-pci,drive=d"]);
    let mut qemu = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let pid = qemu.id();
    // It answers once all is set up, the lock included.
    qemu.stdin.as_mut().unwrap().write_all(b"{\"execute\": \"qmp_capabilities\"}\n").unwrap();
    let answers = BufReader::new(qemu.stdout.take().unwrap()).lines();
    let answer = answers.map_while(Result::ok).find(|line| line.contains("return"));
    let other = tempfile::tempdir().unwrap();
    let config = NodeConfig { disk, ..NodeConfig::new("node.toml", other.path()) };
    let result = config.launch_built(&fixture.built);
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    assert!(answer.is_some());
    let error = result.unwrap_err().to_string();
    let user = format!("is in use by qemu-system-x86 (process {})", pid);
    assert!(error.contains(&user) && !error.contains('\n'), "{error}");
}

#[test]
fn qemu_does_not_outlive_us() {
    // A thread that ends must not take the node with it, which a parent-death signal bound to
    // the thread that forked would do.
    let Some(fixture) = Fixture::new(&hello(&HANG)) else { return };
    let node = std::thread::scope(|scope| scope.spawn(|| fixture.launch()).join().unwrap());
    assert_eq!(node.wait(Some(Duration::from_millis(200))), None);
    let begin = Instant::now();
    drop(node);
    assert!(begin.elapsed() < PATIENCE);
}
