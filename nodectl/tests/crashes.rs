//! Records of deaths as people see them, with the symbols of this very test in
//! the place of an image's.

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use nodectl::{
    Client, Error, crashes,
    symbols::{Address, Missing, Program, checksum},
};
use object::{Object, ObjectSymbol};
use ring_proto::crash::{Reason, Rebuild, UNKNOWN};
use supervisor_policy::{
    Supervisor,
    fake::{BLK, FakeNode, SUPERVISOR},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Something to find: its name and this file are what a symbol must say.
#[inline(never)]
fn deliberate_place(x: u64) -> u64 {
    std::hint::black_box(x).rotate_left(7) ^ std::hint::black_box(3)
}

/// A folder that is gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("nodectl-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// This test's own ELF file, and where in it `deliberate_place` is.
fn own() -> (Vec<u8>, u64) {
    // So that it is there at all.
    assert_ne!(deliberate_place(1), 0);
    let file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let object = object::File::parse(&*file).unwrap();
    let place = object.symbols().find(|s| s.name().is_ok_and(|n| n.contains("deliberate_place")));
    let address = place.unwrap().address();
    (file, address)
}

/// A node on which blk died twice; the first time with this image and there.
fn node(crc: u32, address: u64) -> FakeNode {
    let mut node = FakeNode::new();
    node.print(BLK, "the first line\nand the last words");
    node.die(BLK, Reason::Exception);
    node.print(BLK, "of the next generation");
    let record = &mut node.records[0];
    record.image_crc = crc;
    record.report.rip = address;
    // A return address right behind the function is still of a call within it.
    record.report.backtrace[..2].copy_from_slice(&[address + 1, 0]);
    record.report.registers[0] = 0x1234_5678;
    record.in_flight = 17;
    record.rebuild = Rebuild::Cold as u16;
    record.pages_restored = 99;
    let t = &mut record.times;
    (t.died, t.detected, t.quiesced, t.told) = (1_000_000, 1_250_000, 1_300_000, 1_310_000);
    (t.decided, t.restored, t.entered) = (1_400_000, 1_900_000, 1_910_000);
    (t.ready, t.served) = (3_000_000, 3_500_000);
    node
}

/// A client of that node, which serves as long as the client lives.
fn client(mut node: FakeNode) -> Client {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    std::thread::spawn(move || {
        let mut supervisor = Supervisor::new(SUPERVISOR, 1, &mut node);
        loop {
            let mut byte = [0];
            match theirs.read(&mut byte) {
                Ok(0) => return,
                Ok(_) => supervisor.receive(&mut node, byte[0]),
                Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return,
            }
            while !supervisor.to_send().is_empty() {
                if theirs.write_all(supervisor.to_send()).is_err() {
                    return;
                }
                supervisor.sent(supervisor.to_send().len());
            }
        }
    });
    Client::over(ours, PATIENCE).unwrap()
}

#[test]
fn g8_a_death_is_told_with_symbols_registers_log_and_times() {
    let folder = Folder::new("symbols");
    let (file, address) = own();
    std::fs::write(folder.0.join("other.elf"), b"not even an ELF file").unwrap();
    std::fs::write(folder.0.join("image.elf"), &file).unwrap();
    let crc = checksum(&file).unwrap();
    let mut client = client(node(crc, address));

    let list = crashes::list(&client.crashes(0).unwrap());
    let row = list.lines().nth(1).unwrap();
    for wanted in ["blk", "exception", "2.500 ms", "cold", "17"] {
        assert!(row.contains(wanted), "{wanted} in {list}");
    }

    let story = client.story(0, &folder.0, 10).unwrap();
    let text = crashes::show(&story);
    let wanted = [
        "image.elf",
        "deliberate_place",
        "tests/crashes.rs:",
        "rax 0x0000000012345678",
        "requests in flight: 17",
        "[blk] the first line",
        "[blk] and the last words",
        "99 pages restored",
    ];
    for wanted in wanted {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    assert!(!text.contains("of the next generation"), "{text}");
    // Each step with what it took and when it was, counted from the death.
    let step = |name: &str| {
        let line = text.lines().find(|l| l.trim_start().starts_with(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(step("detected"), "detected 0.001 s +0.250 ms 0.250 ms");
    assert_eq!(step("memory restored"), "memory restored 0.002 s +0.500 ms 0.900 ms");
    assert_eq!(step("first request"), "first request served 0.004 s +0.500 ms 2.500 ms");
    assert!(!text.contains("device enabled"), "a step that did not happen: {text}");

    let json = crashes::show_json(&story);
    assert_eq!(json["recovery_ns"], 2_500_000);
    assert_eq!(json["in_flight"], 17);
    assert_eq!(json["registers"]["rax"], 0x1234_5678);
    assert_eq!(json["log"].as_array().unwrap().len(), 2);
    for frame in json["frames"].as_array().unwrap() {
        let functions = frame["functions"].as_array().unwrap();
        let outermost = functions.last().unwrap();
        assert!(outermost["function"].as_str().unwrap().contains("deliberate_place"), "{json}");
        assert_eq!(outermost["inlined"], false);
    }
    // Fewer lines are the last ones.
    let short = client.story(0, &folder.0, 1).unwrap();
    assert_eq!(
        short.log.iter().map(|l| l.text.as_str()).collect::<Vec<_>>(),
        ["and the last words"]
    );
}

#[test]
fn g8_without_the_right_symbols_the_addresses_are_told_and_why() {
    let folder = Folder::new("missing");
    let (file, address) = own();
    std::fs::write(folder.0.join("image.elf"), &file).unwrap();
    let crc = checksum(&file).unwrap();
    // Another build: symbols that do not belong to it would lie.
    let mut client = client(node(crc ^ 1, address));
    let text = crashes::show(&client.story(0, &folder.0, 10).unwrap());
    let wanted = format!("none of the 1 images in {}", folder.0.display());
    assert!(text.contains(&wanted), "{text}");
    assert!(text.contains(&format!("{address:#010x}")), "{text}");
    assert!(!text.contains("deliberate_place"), "{text}");

    let nowhere = Path::new("/nowhere/at/all");
    let text = crashes::show(&client.story(0, nowhere, 10).unwrap());
    assert!(text.contains("can't read /nowhere/at/all"), "{text}");

    // An image without line tables.
    let mut stripped = file;
    let name = b"\0.debug_line\0";
    while let Some(at) = stripped.windows(name.len()).position(|w| w == name) {
        stripped[at + 2] = b'x';
    }
    std::fs::write(folder.0.join("image.elf"), &stripped).unwrap();
    let program = Program::find(&folder.0, checksum(&stripped).unwrap()).unwrap();
    assert!(matches!(program.symbols().map(drop), Err(Missing::Stripped(_))));
}

#[test]
fn an_address_that_no_line_table_knows_has_no_name() {
    let folder = Folder::new("unknown");
    let (file, _) = own();
    std::fs::write(folder.0.join("image.elf"), &file).unwrap();
    let program = Program::find(&folder.0, checksum(&file).unwrap()).unwrap();
    let symbols = program.symbols().unwrap();
    for address in [0, 1, u64::MAX] {
        assert_eq!(symbols.at(Address::Instruction(address)), []);
        assert_eq!(symbols.at(Address::Return(address)), []);
    }
}

#[test]
fn a_record_that_is_not_there_is_said_to_be_old_or_yet_to_come() {
    let mut node = node(0, 0);
    node.records[0].sequence = 5;
    node.records[0].in_flight = UNKNOWN;
    let mut client = client(node);
    let old = client.crash_record(3).unwrap_err();
    assert!(matches!(old, Error::NoRecord { sequence: 3, oldest: Some(5) }), "{old}");
    let new = client.crash_record(6).unwrap_err();
    assert_eq!(new.to_string(), "there was no death 6");
    assert_eq!(new.exit_code(), 1);
    assert_eq!(client.crash_record(5).unwrap().in_flight, None);
}
