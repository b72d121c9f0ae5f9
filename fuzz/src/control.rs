//! The control line, in both directions (CTL-1 to CTL-4).

use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use nodectl::crashes::{self, Story};
use nodectl::report;
use nodectl::symbols::Backtrace;
use ring_proto::bundle::Name;
use ring_proto::control::{
    Answer, Command, Decoder, FRAME_MAX, FrameError, FromNode, How, Message, Request, encode,
};
use ring_proto::crash::Reason;
use supervisor_policy::Supervisor;
use supervisor_policy::fake::{FakeNode, SUPERVISOR};

/// What comes over the line to the supervisor.
#[derive(Arbitrary, Debug)]
enum Piece<'a> {
    Junk(&'a [u8]),
    /// A frame with a sound checksum around any body.
    Sealed(&'a [u8]),
    /// A frame that is damaged in one place.
    Damaged(Ask<'a>, u16, u8),
    Good(Ask<'a>),
    /// Time passes, and the line takes bytes.
    Later(u32, u16),
    /// A domain dies.
    Death(u8),
}

#[derive(Arbitrary, Debug)]
struct Ask<'a> {
    seq: u32,
    kind: u8,
    name: &'a str,
    number: u64,
}

impl Ask<'_> {
    fn request(&self) -> Request {
        let known = ["supervisor", "blk", "net", "kv"];
        let name = known.get(usize::from(self.kind >> 4)).copied().unwrap_or(self.name);
        let domain = Name::try_from(name).unwrap_or_default();
        let timeout_ms = self.number as u32;
        let how = How::ALL[self.number as usize % How::ALL.len()];
        let command = match self.kind % 11 {
            0 => Command::Info,
            1 => Command::List { first: self.number as u16 },
            2 => Command::Connections { first: self.number as u16 },
            3 => {
                let drain_ms = (self.number >> 32) as u32;
                Command::Restart { domain, timeout_ms, drain_ms }
            }
            4 => Command::Crash { domain, how, timeout_ms },
            5 => Command::Hold { domain },
            6 => Command::Release { domain, timeout_ms },
            7 => {
                let of = (self.seq % 2 == 1).then_some((self.seq as u16, self.kind.into()));
                Command::Log { cursor: self.number, of }
            }
            8 => Command::Audit,
            9 => Command::Crashes { from: self.number },
            _ => Command::Shutdown,
        };
        Request { seq: self.seq, command }
    }
}

/// A frame of any content with a sound checksum.
fn seal(body: &[u8]) -> Vec<u8> {
    let mut content = vec![ring_proto::control::VERSION];
    content.extend_from_slice(&body[..body.len().min(FRAME_MAX - 32)]);
    let crc = crc32fast::hash(&content);
    content.extend_from_slice(&crc.to_le_bytes());
    cobs(&content)
}

/// COBS by its definition, and the closing zero.
fn cobs(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for run in content.split(|&b| b == 0) {
        let mut rest = run;
        while rest.len() >= 254 {
            out.push(255);
            out.extend_from_slice(&rest[..254]);
            rest = &rest[254..];
        }
        out.push(rest.len() as u8 + 1);
        out.extend_from_slice(rest);
    }
    out.push(0);
    out
}

/// Bytes to the supervisor on a simulated node.
pub fn node(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut node = FakeNode::new();
    let mut supervisor = Supervisor::new(SUPERVISOR, 1, &mut node);
    let mut host = Decoder::new();
    while !input.is_empty() && !node.off {
        let Ok(piece) = Piece::arbitrary(&mut input) else { break };
        let line = match piece {
            Piece::Junk(bytes) => bytes.to_vec(),
            Piece::Sealed(body) => seal(body),
            Piece::Good(ask) => encode(&ask.request()).unwrap().to_vec(),
            Piece::Damaged(ask, at, by) => {
                let mut frame = encode(&ask.request()).unwrap().to_vec();
                let at = usize::from(at) % frame.len();
                frame[at] ^= by;
                frame
            }
            Piece::Later(us, room) => {
                node.now += u64::from(us) * 1000;
                node.step();
                drain(&mut supervisor, &mut host, usize::from(room));
                Vec::new()
            }
            Piece::Death(which) => {
                node.die(1 + u16::from(which) % 3, Reason::Panic);
                Vec::new()
            }
        };
        for byte in line {
            if !supervisor.can_receive() {
                drain(&mut supervisor, &mut host, usize::MAX);
            }
            supervisor.receive(&mut node, byte);
        }
        let next = supervisor.poll(&mut node);
        assert!(next >= node.now || supervisor.is_leaving(), "it would never sleep");
    }
    if node.off {
        return;
    }
    // Whatever came: it is in step again after a zero, and answers. A
    // supervisor that is about to end does so first, and its successor answers.
    for _ in 0..4 {
        drain(&mut supervisor, &mut host, usize::MAX);
        node.now += 20_000_000_000;
        node.step();
        let _ = supervisor.poll(&mut node);
    }
    if node.off {
        return;
    }
    let mut line = vec![0];
    line.extend_from_slice(&encode(&Request { seq: 77, command: Command::Info }).unwrap());
    drain(&mut supervisor, &mut host, usize::MAX);
    for byte in line {
        assert!(supervisor.can_receive());
        supervisor.receive(&mut node, byte);
    }
    let answered = drain(&mut supervisor, &mut host, usize::MAX);
    assert!(answered.contains(&77), "CTL-2, CTL-3: no answer");
}

/// Takes up to `room` bytes off the line; what the node says always makes
/// sense. Returns the replies' numbers.
fn drain(supervisor: &mut Supervisor, host: &mut Decoder, mut room: usize) -> Vec<u32> {
    let mut replies = Vec::new();
    while room > 0 && !supervisor.to_send().is_empty() {
        let bytes = supervisor.to_send();
        let part = bytes[..bytes.len().min(room)].to_vec();
        supervisor.sent(part.len());
        room -= part.len();
        let mut rest = &part[..];
        while let Some(message) = host.feed::<FromNode>(&mut rest) {
            if let FromNode::Reply(reply) = message.expect("the node sends sound frames") {
                replies.push(reply.seq);
            }
        }
    }
    replies
}

/// Bytes to nodectl: first cut into pieces, then sealed as a frame's body.
pub fn host(data: &[u8]) {
    let (step, data) = data.split_first().map_or((1, data), |(&step, rest)| (step, rest));
    let mut decoder = Decoder::new();
    for mut piece in data.chunks(usize::from(step).max(1)) {
        while let Some(result) = decoder.feed::<FromNode>(&mut piece) {
            check(result);
        }
    }
    let frame = seal(data);
    let mut line = vec![0];
    line.extend_from_slice(&frame);
    let mut rest = &line[..];
    let mut found = Vec::new();
    while let Some(result) = decoder.feed::<FromNode>(&mut rest) {
        found.push(result);
    }
    if frame.len() <= FRAME_MAX {
        let last = found.pop().expect("CTL-2: in step at the next zero");
        assert!(!matches!(
            last,
            Err(FrameError::Damaged | FrameError::TooLong | FrameError::Version(_))
        ));
        check(last);
    }
    assert!(rest.is_empty());
}

/// What decodes can be shown, and encodes to the same again.
fn check(result: Result<FromNode, FrameError>) {
    let Ok(message) = result else { return };
    again(&message);
    let FromNode::Reply(reply) = &message else { return };
    let Ok(answer) = &reply.result else { return };
    let names = [(1, "kv".to_owned())];
    match answer {
        Answer::Info(info) => drop((report::info(info), report::info_json(info))),
        Answer::Domains(page) => {
            drop((report::list(&page.entries, &[]), report::list_json(&page.entries, &[])));
        }
        Answer::Connections(page) => {
            drop((report::list(&[], &page.entries), report::list_json(&[], &page.entries)));
        }
        Answer::Audit(all) => {
            drop((report::audit(all), report::audit_json(all), report::is_clean(all)));
        }
        Answer::Crash(Some(entry)) => {
            let all = core::slice::from_ref(entry);
            drop((crashes::list(all), crashes::list_json(all)));
            let backtrace = Backtrace::of(entry, Path::new("/nowhere"));
            let story = Story { entry: entry.clone(), backtrace, log: Vec::new() };
            drop((crashes::show(&story), crashes::show_json(&story)));
        }
        Answer::Serving(recovery) => {
            drop((report::recovery(recovery), report::recovery_json(recovery)));
        }
        Answer::Log(page) => {
            for entry in report::log_entries(page, &names) {
                drop((entry.show(), entry.json()));
            }
        }
        _ => {}
    }
}

fn again<T: Message + PartialEq + core::fmt::Debug>(message: &T) {
    let Ok(frame) = encode(message) else { panic!("what came in a frame fits one") };
    let mut bytes = &frame[..];
    let back = Decoder::new().feed::<T>(&mut bytes);
    assert_eq!(back.and_then(Result::ok).as_ref(), Some(message));
}
