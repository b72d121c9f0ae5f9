//! The client against the real supervisor logic on a simulated node, over a
//! socket pair or a socket in the file system.

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    process::Command,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nodectl::{
    Client, Error,
    control::{Event, FailureKind, How},
    crashes, elf, image, names, report,
};
use ring_proto::{
    crash::Reason,
    hypercall::{DomainState, Trial},
    layout::IMAGE_BASE,
};
use supervisor_policy::{
    Supervisor,
    fake::{BLK, FakeNode, SUPERVISOR},
};

const PATIENCE: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(300);

/// Runs a simulated node until the client hangs up; returns it.
fn serve(stream: UnixStream, node: FakeNode) -> JoinHandle<FakeNode> {
    serve_with(stream, node, |_| ())
}

/// The same, with `each` before each step.
fn serve_with(
    mut stream: UnixStream,
    mut node: FakeNode,
    each: impl Fn(&mut FakeNode) + Send + 'static,
) -> JoinHandle<FakeNode> {
    std::thread::spawn(move || {
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let (begin, zero) = (Instant::now(), node.now);
        let mut supervisor = Supervisor::new(SUPERVISOR, 1, &mut node);
        let mut generation = 1;
        loop {
            node.now = zero + begin.elapsed().as_nanos() as u64;
            each(&mut node);
            node.step();
            if node.domains[0].generation != generation {
                generation = node.domains[0].generation;
                supervisor = Supervisor::new(SUPERVISOR, generation, &mut node);
            }
            let mut chunk = [0; 256];
            match stream.read(&mut chunk) {
                Ok(0) => return node,
                Ok(count) => {
                    for &byte in &chunk[..count] {
                        if supervisor.can_receive() {
                            supervisor.receive(&mut node, byte);
                        }
                    }
                }
                Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return node,
            }
            supervisor.poll(&mut node);
            while !supervisor.to_send().is_empty() {
                if stream.write_all(supervisor.to_send()).is_err() {
                    return node;
                }
                supervisor.sent(supervisor.to_send().len());
            }
            if node.off {
                return node;
            }
        }
    })
}

fn pair(node: FakeNode) -> (Client, JoinHandle<FakeNode>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = serve(theirs, node);
    (Client::over(ours, PATIENCE).unwrap(), thread)
}

#[test]
fn a_client_lists_crashes_restarts_audits_and_shuts_down() {
    let (mut client, node) = pair(FakeNode::new());
    let domains = client.domains().unwrap();
    let connections = client.connections().unwrap();
    let text = report::list(&domains, &connections);
    assert!(text.contains("supervisor") && text.contains("connected"), "{text}");

    for (how, reason) in
        [(How::Panic, "panic"), (How::NullWrite, "nested-fault"), (How::Loop, "watchdog")]
    {
        let recovery = client.crash("blk", how, PATIENCE).unwrap();
        assert_eq!(names::reason(recovery.reason), reason);
        let text = report::recovery(&recovery);
        assert!(text.contains("connected"), "{text}");
    }
    assert_eq!(client.restart("net", PATIENCE).unwrap().generation, 2);
    let drained = client.drain("net", PATIENCE, PATIENCE).unwrap();
    assert!(drained.drained && drained.generation == 3);
    let recoveries = client.crash_all(&["blk", "net"], How::Panic, PATIENCE).unwrap();
    assert_eq!(recoveries.len(), 2);
    let failure = client.restart("nobody", PATIENCE).unwrap_err();
    assert!(matches!(&failure, Error::Refused(f) if f.kind == FailureKind::NotFound));
    assert_eq!(failure.exit_code(), 1);

    let all = client.crashes(0).unwrap();
    assert_eq!(all.len(), 7);
    assert_eq!(all[0].message, "generation 1 ended");
    assert!(all.iter().all(|entry| entry.ordered));
    assert_eq!(crashes::list(&all).lines().count(), 8);
    let audit = client.audit().unwrap();
    assert!(report::is_clean(&audit));
    let names = client.names().unwrap();
    let page = client.log_page(0).unwrap();
    let entries = report::log_entries(&page, &names);
    assert_eq!((entries[0].domain.as_str(), entries[0].text.as_str()), ("hv", "simulated node"));
    let died = client.take_events().into_iter();
    assert_eq!(died.filter(|e| matches!(e, Event::Died { .. })).count(), 7);
    client.shutdown().unwrap();
    assert!(node.join().unwrap().off);
}

#[test]
fn deaths_without_end_do_not_hold_the_client() {
    const MOST: usize = 10_000;
    let (ours, theirs) = UnixStream::pair().unwrap();
    let node = serve_with(theirs, FakeNode::new(), |node| {
        if node.records.len() < MOST {
            node.domains[usize::from(BLK)].state = DomainState::Running as u32;
            node.die(BLK, Reason::Panic);
        }
    });
    let mut client = Client::over(ours, PATIENCE).unwrap();
    let crashes = client.crashes(0).unwrap();
    drop(client);
    let died = node.join().unwrap().records.len();
    assert!(!crashes.is_empty() && crashes.len() < died && died < MOST, "{died} died");
}

#[test]
fn g7_a_crash_of_the_supervisor_is_followed_into_its_next_generation() {
    let (mut client, _node) = pair(FakeNode::new());
    for ended in 1..4 {
        let recovery = client.crash("supervisor", How::Panic, PATIENCE).unwrap();
        assert_eq!((recovery.ended, recovery.generation), (ended, ended + 1));
        assert_eq!(names::reason(recovery.reason), "panic");
        assert!(recovery.times.ready != 0);
    }
    assert_eq!(client.restart("supervisor", PATIENCE).unwrap().generation, 5);
    assert!(client.domains().is_ok());
}

#[test]
fn what_does_not_serve_in_time_is_said() {
    let mut node = FakeNode::new();
    node.habits[usize::from(BLK)].ready_after_ns = u64::MAX / 2;
    let (mut client, _node) = pair(node);
    let failure = client.crash("blk", How::Panic, SHORT).unwrap_err();
    assert_eq!(failure.to_string(), "after 300 ms blk runs but is not ready");
    assert_eq!(failure.exit_code(), 1);
}

#[test]
fn a_silent_line_and_a_closed_one_are_told_apart() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let silent = Client::over(ours, SHORT).unwrap_err();
    assert!(matches!(silent, Error::Silent(..)), "{silent}");
    assert_eq!(silent.exit_code(), 3);
    drop(theirs);
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    assert!(matches!(Client::over(ours, SHORT), Err(Error::Closed)));
}

#[test]
fn noise_on_the_line_before_the_greeting_does_no_harm() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut noisy = ours.try_clone().unwrap();
    noisy.write_all(&[0x17, 0, 0, 0xff, 0x03, 1, 2]).unwrap();
    let mut back = theirs.try_clone().unwrap();
    back.write_all(b"half a frame of the last client").unwrap();
    let _node = serve(theirs, FakeNode::new());
    let mut client = Client::over(ours, PATIENCE).unwrap();
    assert!(client.info().unwrap().bad_frames > 0);
}

fn nodectl(socket: &std::path::Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_nodectl"))
        .args(["--patience", "1", "--control"])
        .arg(socket)
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A command line at a socket, for one command at a time on a node of its own.
struct Desk {
    dir: PathBuf,
    socket: PathBuf,
}

impl Desk {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("nodectl-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self { socket: dir.join("control.sock"), dir }
    }

    fn run(
        &self,
        listener: &UnixListener,
        node: FakeNode,
        arguments: &[&str],
    ) -> (Option<i32>, String, String) {
        std::thread::scope(|scope| {
            let accept = scope.spawn(|| serve(listener.accept().unwrap().0, node));
            let result = nodectl(&self.socket, arguments);
            accept.join().unwrap().join().unwrap();
            result
        })
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn the_command_line_prints_tables_and_json_and_exits_with_meaning() {
    let desk = Desk::new("test");
    let socket = desk.socket.clone();

    let (code, _, error) = nodectl(&socket, &["list"]);
    assert_eq!(code, Some(3));
    assert!(error.contains("there is no control socket"), "{error}");
    assert_eq!(nodectl(&socket, &["crash", "blk", "--how", "gently"]).0, Some(2));

    let listener = UnixListener::bind(&socket).unwrap();
    // Nobody accepts: as if another client held the line.
    let (code, _, error) = nodectl(&socket, &["list"]);
    assert_eq!(code, Some(3));
    assert!(error.contains("another client holds it"), "{error}");
    drop(listener.accept().unwrap());

    let run = |node: FakeNode, arguments: &[&str]| desk.run(&listener, node, arguments);
    let (code, out, error) = run(FakeNode::new(), &["list"]);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert!(out.starts_with("DOMAIN"), "{out}");
    let (code, out, _) = run(FakeNode::new(), &["crash", "blk", "--how", "null-write", "--json"]);
    assert_eq!(code, Some(0));
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&json["generation"], &json["reason"]), (&2.into(), &"nested-fault".into()));
    let (code, out, _) = run(FakeNode::new(), &["restart", "blk", "--drain", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["drained"]), (Some(0), &true.into()), "{out}");
    let mut died = FakeNode::new();
    died.die(BLK, Reason::Panic);
    let (code, out, _) = run(died, &["crashes", "show", "0", "--images", "/nowhere"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("no symbols") && out.contains("0x00201234"), "{out}");
    let (code, _, error) = run(FakeNode::new(), &["crashes", "show", "0"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("there was no death 0"), "{error}");
    let (code, out, _) = run(FakeNode::new(), &["log"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("[hv] simulated node"), "{out}");
    assert_eq!(run(FakeNode::new(), &["audit"]).0, Some(0));
    let mut bad = FakeNode::new();
    bad.violations = 1;
    let (code, out, _) = run(bad, &["audit"]);
    assert_eq!(code, Some(1));
    assert!(out.contains("NOT clean"), "{out}");
    let (code, out, error) = run(FakeNode::new(), &["log", "--domain", "nobody"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(error.contains("no domain is named `nobody`"), "{error}");
}

#[test]
fn an_update_says_what_became_of_it() {
    let desk = Desk::new("update");
    let write = |name: &str, bytes: &[u8]| {
        let path = desk.dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let code = [0x90; 6000];
    let program = elf::sample(&[(IMAGE_BASE, 5, &code, 6000)], IMAGE_BASE);
    let crc = image::of_elf("blk", &program).unwrap().crc;
    let [good, none, huge] = [
        write("good.elf", &program),
        write("README.md", b"# A file"),
        write("huge.elf", &elf::sample(&[(IMAGE_BASE, 5, &code, 2 << 20)], IMAGE_BASE)),
    ];
    // What is wrong with a file is said without a node.
    for (file, wanted) in [("/nowhere/x.elf", "No such file"), (&none, "it is no 64-bit ELF file")]
    {
        let (code, _, error) = nodectl(&desk.socket, &["update", "blk", "--image", file]);
        assert!(code == Some(2) && error.contains(wanted) && error.contains(file), "{error}");
    }
    let listener = UnixListener::bind(&desk.socket).unwrap();
    let run = |node, domain, image: &str, more: &[&str]| {
        desk.run(&listener, node, &[&["update", domain, "--image", image], more].concat())
    };
    let node = || {
        let mut node = FakeNode::with_spare();
        node.new_crc = crc;
        node
    };
    for (domain, image, wanted) in [
        ("nobody", &good, "no domain is named `nobody`"),
        ("net", &good, "its manifest gives it no `update_space`"),
        ("blk-spare", &good, "blk-spare is a spare; update blk, and it follows"),
        ("blk", &huge, "the image takes 2048 KiB in memory, and `update_space`"),
    ] {
        let (code, out, error) = run(node(), domain, image, &[]);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{domain}: {error}");
        assert!(error.contains(wanted), "{domain}: {error}");
    }
    let (code, out, error) = run(node(), "blk", &good, &[]);
    assert_eq!((code, error.as_str()), (Some(0), ""), "nothing but the outcome: {out}");
    assert!(out.starts_with(&format!("blk runs the new image: 00000000 -> {crc:08x}")), "{out}");
    let same = |trial: Trial| {
        let mut node = node();
        let blk = &mut node.domains[usize::from(BLK)];
        (blk.good_crc, blk.trial) = (crc, trial as u32);
        node
    };
    let (code, out, _) = run(same(Trial::None), "blk", &good, &[]);
    assert_eq!((code, out), (Some(0), format!("blk has this image already: {crc:08x}\n")));
    // Which image it will have is not known before the end of another's trial.
    let (code, out, error) = run(same(Trial::Due), "blk", &good, &[]);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{error}");
    assert!(error.contains("an earlier update is still on trial"), "{error}");

    let dying = || {
        let mut node = node();
        node.on_trial.dies_by_itself_ns = Some(5_000_000);
        node
    };
    let (code, out, _) = run(dying(), "blk", &good, &[]);
    let wanted = [
        format!("blk has its image 00000000 again, not {crc:08x}: it died on trial"),
        "blk generation 2 ended: panic: generation 2 ended".to_owned(),
        "nodectl crashes show 2 --images".to_owned(),
    ];
    assert!(code == Some(1) && wanted.iter().all(|text| out.contains(text)), "{code:?}: {out}");
    let (code, out, _) = run(dying(), "blk", &good, &["--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["kept"], &json["death"]), (Some(1), &false.into(), &2.into()), "{out}");
}
