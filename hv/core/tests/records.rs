//! The console log keeps the newest entries, whole, and resumes at a cursor.

use hv_core::records::{Console, LineQuota};
use ring_proto::hypercall::LogHeader;
use zerocopy::FromBytes;

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
    let (n, cursor) = c.copy_out(0, &mut out);
    let seen = texts(&out[..n]);
    assert_eq!(seen.last().unwrap(), "line 19");
    assert!(seen.len() >= 5);
    assert_eq!(c.copy_out(cursor, &mut out).0, 0);
    c.push(1, 1, 0, b"after");
    let (n, _) = c.copy_out(cursor, &mut out);
    assert_eq!(texts(&out[..n]), ["after"]);
    let (n, _) = c.copy_out(cursor + 1, &mut out);
    assert!(n > 0, "a bad cursor reads from the oldest");
}

#[test]
fn console_returns_whole_entries_only() {
    let mut c = Console::new(400);
    c.push(1, 1, 0, b"one");
    c.push(2, 1, 0, b"two");
    let mut out = [0; HEADER + 4];
    let (n, cursor) = c.copy_out(0, &mut out);
    assert_eq!(texts(&out[..n]), ["one"]);
    let (n, _) = c.copy_out(cursor, &mut out);
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
