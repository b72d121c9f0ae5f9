//! The console log keeps the newest entries, whole, and resumes at a cursor.

use hv_core::records::{Console, Deaths, LineQuota};
use ring_proto::{crash::CrashRecord, hypercall::LogHeader};
use zerocopy::{FromBytes, FromZeros};

const HEADER: usize = size_of::<LogHeader>();

fn texts(raw: &[u8]) -> Vec<String> {
    let mut v = Vec::new();
    let mut rest = raw;
    while !rest.is_empty() {
        let (h, r) = LogHeader::read_from_prefix(rest).unwrap();
        v.push(String::from_utf8(r[..h.len as usize].to_vec()).unwrap());
        rest = &r[h.len as usize..];
    }
    v
}

#[test]
fn console_keeps_the_newest_and_resumes_at_a_cursor() {
    let mut c = Console::new(200);
    for i in 0..20 {
        c.push(1, 1, i, format!("line {i}").as_bytes());
    }
    let mut out = [0; 200];
    let (n, cursor) = c.copy_out(0, &mut out, |_| true);
    let seen = texts(&out[..n]);
    assert_eq!(seen.last().unwrap(), "line 19");
    assert!(seen.len() >= 5);
    assert_eq!(c.copy_out(cursor, &mut out, |_| true).0, 0);
    c.push(1, 1, 0, b"after");
    let (n, _) = c.copy_out(cursor, &mut out, |_| true);
    assert_eq!(texts(&out[..n]), ["after"]);
    let (n, _) = c.copy_out(cursor + 1, &mut out, |_| true);
    assert!(n > 0, "a bad cursor reads from the oldest");
}

#[test]
fn console_returns_whole_entries_only() {
    let mut c = Console::new(400);
    c.push(1, 1, 0, b"one");
    c.push(2, 1, 0, b"two");
    let mut out = [0; HEADER + 4];
    let (n, cursor) = c.copy_out(0, &mut out, |_| true);
    assert_eq!(texts(&out[..n]), ["one"]);
    let (n, _) = c.copy_out(cursor, &mut out, |_| true);
    assert_eq!(texts(&out[..n]), ["two"]);
}

#[test]
fn a_domain_writes_its_share_of_the_line_and_no_more() {
    let mut quota = LineQuota::new(0);
    assert_eq!(quota.take(LineQuota::BURST, 5), Some(0));
    assert_eq!(quota.take(1, 5), None, "used up");
    assert_eq!(quota.take(7, LineQuota::NS_PER_BYTE - 1), None);
    assert_eq!(quota.take(1, LineQuota::NS_PER_BYTE), Some(8), "one byte earned, eight refused");
    assert_eq!(quota.take(1, LineQuota::NS_PER_BYTE * 2 - 1), None);
    // Without end, and without end of time.
    let second = 1_000_000_000;
    let flood = |from: u64| (0..100_000).map(move |i| from + second + i * second / 100_000);
    let written = flood(0).filter(|&now| quota.take(100, now).is_some()).count() as u64;
    assert!((60..=2 * second / LineQuota::NS_PER_BYTE / 100).contains(&written), "{written}");
    assert!(quota.take(LineQuota::BURST, u64::MAX).is_some());
    assert_eq!(quota.take(LineQuota::BURST + 1, u64::MAX), None, "never more than the burst");
    assert_eq!(quota.take(u64::MAX, 0), None);
}

#[test]
fn g8_the_last_words_of_one_generation_can_be_read_alone() {
    let mut c = Console::new(4000);
    for (domain, generation) in [(1, 1), (2, 1), (1, 2), (1, 1), (2, 2)] {
        c.push(domain, generation, 0, format!("{domain}.{generation}").as_bytes());
    }
    let mut out = [0; 400];
    let of = |h: &LogHeader| (h.domain, h.generation) == (1, 1);
    let (n, end) = c.copy_out(0, &mut out, of);
    assert_eq!(texts(&out[..n]), ["1.1", "1.1"]);
    assert_eq!(c.copy_out(end, &mut out, of), (0, end), "and no more");
    // What does not fit comes with the next piece, and no piece skips any.
    let (n, next) = c.copy_out(0, &mut out[..HEADER + 5], of);
    assert_eq!(texts(&out[..n]), ["1.1"]);
    let (n, last) = c.copy_out(next, &mut out[..HEADER + 5], of);
    assert_eq!((texts(&out[..n]), last), (vec!["1.1".to_owned()], end));
}

#[test]
fn g8_a_step_of_a_recovery_is_noted_once_and_in_its_own_record() {
    let mut deaths = Deaths::new(2);
    let mut record = CrashRecord::new_zeroed();
    for (domain, generation) in [(1, 1), (1, 2), (2, 2)] {
        (record.domain, record.generation) = (domain, generation);
        deaths.push(record);
    }
    deaths.stamp(1, 3, |t| &mut t.ready, 50);
    deaths.stamp(1, 3, |t| &mut t.ready, 60);
    // Of a generation that is over, and of a record that made room for others.
    deaths.stamp(1, 2, |t| &mut t.ready, 70);
    deaths.stamp(2, 7, |t| &mut t.ready, 80);
    let ready: Vec<_> = (1..3).map(|n| deaths.at_least(n).unwrap().times.ready).collect();
    assert_eq!(ready, [50, 0]);
}
