//! Messages survive the line, and the line's junk is survived.

use core::fmt::Write;
use std::{format, vec, vec::Vec};

use super::*;

fn name(text: &str) -> Name {
    Name::try_from(text).unwrap()
}

fn requests() -> Vec<Request> {
    let commands = vec![
        Command::Info,
        Command::List { first: 0 },
        Command::Connections { first: 31 },
        Command::Restart { domain: name("blk"), timeout_ms: 0, drain_ms: 1 },
        Command::Crash {
            domain: name("a-name-of-23-characters"),
            how: How::Loop,
            timeout_ms: u32::MAX,
        },
        Command::Hold { domain: name("") },
        Command::Release { domain: name("net"), timeout_ms: 1 },
        Command::Log { cursor: u64::MAX, of: Some((u16::MAX, u32::MAX)) },
        Command::Audit,
        Command::Crashes { from: 0 },
        Command::Shutdown,
    ];
    commands
        .into_iter()
        .enumerate()
        .map(|(i, command)| Request { seq: i as u32, command })
        .collect()
}

/// Every kind of page at its largest.
fn largest_answers() -> Vec<Answer> {
    let full = name("a-name-of-23-characters");
    let mut audit = heapless::Vec::new();
    while audit.push(DomainAudit { domain: full.clone(), violations: Err(u64::MAX) }).is_ok() {}
    let domain = DomainStatus {
        id: u16::MAX,
        name: full.clone(),
        state: u32::MAX,
        ready: true,
        core: u16::MAX,
        generation: u32::MAX,
        deaths: u32::MAX,
        last_reason: u32::MAX,
        memory: u64::MAX,
        started_ns: u64::MAX,
        died_ns: u64::MAX,
        cpu_ns: u64::MAX,
        exits: u64::MAX,
        hypercalls: u64::MAX,
        notifies: u64::MAX,
        interrupts: u64::MAX,
        mapped: u32::MAX,
        granted: u32::MAX,
        spare_of: Some(u16::MAX),
        reset: u16::MAX,
        resets: u16::MAX,
        devices: u16::MAX,
        image_crc: u32::MAX,
        good_crc: u32::MAX,
        trial: u32::MAX,
        update_space: u64::MAX,
    };
    let mut domains = Page { entries: heapless::Vec::new(), next: Some(u16::MAX) };
    while domains.entries.push(domain.clone()).is_ok() {}
    let connection = ConnectionStatus {
        id: u16::MAX,
        protocol: u16::MAX,
        frontend: u16::MAX,
        backend: u16::MAX,
        frontend_state: u32::MAX,
        backend_state: u32::MAX,
    };
    let mut connections = Page { entries: heapless::Vec::new(), next: Some(u16::MAX) };
    while connections.entries.push(connection.clone()).is_ok() {}
    let mut log = LogPage { next: u64::MAX, bytes: heapless::Vec::new() };
    while log.bytes.push(0xff).is_ok() {}
    let mut message = heapless::String::new();
    while message.write_char('x').is_ok() {}
    let mut backtrace = heapless::Vec::new();
    while backtrace.push(u64::MAX).is_ok() {}
    let crash = CrashEntry {
        sequence: u64::MAX,
        domain: u16::MAX,
        name: full,
        generation: u32::MAX,
        reason: u32::MAX,
        vector: u32::MAX,
        error_code: u64::MAX,
        rip: u64::MAX,
        rsp: u64::MAX,
        cr2: u64::MAX,
        fault_address: u64::MAX,
        exit_code: u64::MAX,
        registers: [u64::MAX; 15],
        backtrace,
        times: Timeline {
            died: u64::MAX,
            detected: u64::MAX,
            quiesced: u64::MAX,
            told: u64::MAX,
            decided: u64::MAX,
            restored: u64::MAX,
            entered: u64::MAX,
            enabled: u64::MAX,
            ready: u64::MAX,
            served: u64::MAX,
        },
        rebuild: u16::MAX,
        pages_restored: u32::MAX,
        in_flight: Some(u32::MAX),
        image_crc: u32::MAX,
        ordered: true,
        reset: u16::MAX,
        message,
    };
    vec![
        Answer::Audit(audit),
        Answer::Domains(domains),
        Answer::Connections(connections),
        Answer::Log(log),
        Answer::Crash(Some(crash)),
        Answer::Crash(None),
        Answer::Leaving { generation: u32::MAX, sequence: u64::MAX },
        Answer::Done,
    ]
}

#[test]
fn every_request_survives_the_line() {
    let mut line = vec![0u8];
    for request in requests() {
        line.extend_from_slice(&encode(&request).unwrap());
    }
    // Whole, and byte by byte.
    for step in [line.len(), 1, 7] {
        let mut decoder = Decoder::new();
        let mut seen = Vec::new();
        for mut piece in line.chunks(step) {
            while let Some(request) = decoder.feed::<Request>(&mut piece) {
                seen.push(request.unwrap());
            }
        }
        assert_eq!(seen, requests());
    }
}

#[test]
fn the_largest_answers_fit_a_frame() {
    for answer in largest_answers() {
        let reply = FromNode::Reply(Reply { seq: u32::MAX, result: Ok(answer) });
        let frame = encode(&reply).unwrap();
        assert!(frame.len() <= FRAME_MAX);
        assert_eq!(frame.iter().position(|&b| b == 0), Some(frame.len() - 1));
        let mut bytes = &frame[..];
        assert_eq!(Decoder::new().feed::<FromNode>(&mut bytes), Some(Ok(reply)));
    }
}

#[test]
fn a_failures_text_is_cut_and_not_lost() {
    let long = format!("{:>400}", "x");
    let failure = Failure::new(FailureKind::Timeout, format_args!("{long}"));
    assert_eq!(failure.text.len(), failure.text.capacity());
    let cut: heapless::String<4> = super::format(format_args!("aä€b"));
    assert_eq!(cut.as_str(), "aä");
}

#[test]
fn any_changed_bit_is_noticed_and_the_next_frame_arrives() {
    let request = Request { seq: 7, command: Command::Crashes { from: 1 << 40 } };
    let next = Request { seq: 8, command: Command::Audit };
    let frame = encode(&request).unwrap();
    for bit in 0..frame.len() * 8 {
        let mut line = frame.to_vec();
        line[bit / 8] ^= 1 << (bit % 8);
        line.push(0);
        line.extend_from_slice(&encode(&next).unwrap());
        let mut decoder = Decoder::new();
        let mut bytes = &line[..];
        let mut good = Vec::new();
        while let Some(result) = decoder.feed::<Request>(&mut bytes) {
            good.extend(result);
        }
        assert_eq!(good, std::slice::from_ref(&next), "bit {bit}");
    }
}

#[test]
fn an_overlong_frame_is_dropped_whole() {
    let mut line = vec![1u8; 3 * FRAME_MAX];
    line.push(0);
    let request = Request { seq: 1, command: Command::Info };
    line.extend_from_slice(&encode(&request).unwrap());
    for step in [line.len(), 100] {
        let mut decoder = Decoder::new();
        let mut results = Vec::new();
        for mut piece in line.chunks(step) {
            while let Some(result) = decoder.feed::<Request>(&mut piece) {
                results.push(result);
            }
        }
        assert_eq!(results, [Err(FrameError::TooLong), Ok(request.clone())]);
    }
}

#[test]
fn another_version_is_named() {
    let mut content = vec![VERSION + 1, 1, 2, 3];
    let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(&content);
    content.extend_from_slice(&crc.to_le_bytes());
    let mut line = vec![0; 64];
    let len = cobs::encode(&content, &mut line);
    line.truncate(len);
    line.push(0);
    let mut bytes = &line[..];
    let result = Decoder::new().feed::<Request>(&mut bytes);
    assert_eq!(result, Some(Err(FrameError::Version(VERSION + 1))));
}

/// Random junk, random damage and good frames in random pieces: nothing
/// panics, and a good frame after a zero always arrives.
#[test]
fn random_bytes_never_harm() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut decoder = Decoder::new();
    for round in 0..4_000u32 {
        let mut line = Vec::new();
        for _ in 0..random() % 300 {
            // Zeroes often enough that short frames happen.
            line.push(if random() % 16 == 0 { 0 } else { random() as u8 });
        }
        if random() % 2 == 0 {
            let mut frame = encode(&Request { seq: round, command: Command::Audit }).unwrap();
            let at = random() as usize % frame.len();
            frame[at] = random() as u8;
            line.extend_from_slice(&frame);
        }
        let good = Request { seq: round, command: Command::Log { cursor: random(), of: None } };
        line.push(0);
        line.extend_from_slice(&encode(&good).unwrap());
        let mut last = None;
        for mut piece in line.chunks(1 + random() as usize % 400) {
            while let Some(result) = decoder.feed::<Request>(&mut piece) {
                last = Some(result);
            }
        }
        assert_eq!(last, Some(Ok(good)));
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        failure_persistence: None,
        ..Default::default()
    })]

    /// In whatever pieces it comes; and it is in step at the next zero.
    #[test]
    fn ctl_2_any_line_is_survived(
        junk in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..3 * FRAME_MAX),
        step in 1usize..500,
        seq in proptest::prelude::any::<u32>(),
    ) {
        let good = Request { seq, command: Command::Audit };
        let mut line = junk;
        line.push(0);
        line.extend_from_slice(&encode(&good).unwrap());
        let mut decoder = Decoder::new();
        let mut last = None;
        for mut piece in line.chunks(step) {
            while let Some(result) = decoder.feed::<Request>(&mut piece) {
                last = Some(result);
            }
        }
        proptest::prop_assert_eq!(last, Some(Ok(good)));
    }
}

/// `postcard` writes the number of a variant as its first byte.
fn number<T: serde::Serialize>(value: &T) -> u8 {
    let mut buffer = [0; FRAME_MAX];
    postcard::to_slice(value, &mut buffer).unwrap()[0]
}

#[test]
fn ctl_4_numbers_of_commands_answers_and_events_do_not_change() {
    let commands: Vec<u8> = requests().iter().map(|request| number(&request.command)).collect();
    assert_eq!(commands, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    let answers: Vec<u8> = largest_answers().iter().map(number).collect();
    assert_eq!(answers, [6, 1, 2, 5, 7, 7, 4, 8]);
    let events = [
        Event::Started { generation: 1, absence: Absence::default() },
        Event::Died { domain: 1, generation: 1, reason: 1, sequence: 1 },
        Event::Restarted { domain: 1 },
        Event::Held { domain: 1, deaths: 1 },
        Event::BadFrame,
    ];
    assert_eq!(events.each_ref().map(number), [0, 1, 2, 3, 4]);
}
