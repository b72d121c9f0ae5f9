//! The console log keeps the newest entries, whole, and resumes at a cursor.

use hv_core::records::Console;
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
