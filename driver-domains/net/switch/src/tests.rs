use super::*;

const A: Mac = [2, 0, 0, 0, 0, 0xa];
const B: Mac = [2, 0, 0, 0, 0, 0xb];
const C: Mac = [2, 0, 0, 0, 0, 0xc];
const OUT: Mac = [0x52, 0x55, 10, 0, 2, 2];
const ALL: Mac = [0xff; 6];
const SECOND: u64 = 1_000_000_000;
/// IP addresses are not checked.
const ANY: Addresses =
    Addresses { checked: 0, count: 0, prefixes: [0; 4], reserved: [0; 2], list: [[0; 16]; 4] };
const LIMIT: FloodLimit = FloodLimit { per_second: 100, burst: 10 };

fn switch() -> Switch {
    let mut switch = Switch::new(LIMIT, LIMIT, 0x1234_5678_9abc_def0);
    for (i, mac) in [A, B, C].into_iter().enumerate() {
        assert_eq!(switch.add_vif(mac, &ANY), Ok(i));
    }
    switch
}

fn head(to: Mac, from: Mac) -> [u8; HEADER] {
    let mut head = [0; HEADER];
    head[..6].copy_from_slice(&to);
    head[6..12].copy_from_slice(&from);
    // An experimental protocol, which has no addresses of its own.
    head[12..].copy_from_slice(&[0x88, 0xb5]);
    head
}

fn to(verdict: Verdict) -> (bool, std::vec::Vec<usize>) {
    match verdict {
        Verdict::To(targets) => (targets.wire, targets.vifs().collect()),
        Verdict::Drop(reason) => panic!("dropped: {reason:?}"),
    }
}

#[test]
fn unicast_goes_to_its_station_and_nowhere_else() {
    let mut s = switch();
    let f = s.forward(Port::Vif(0), &head(B, A), 60, None, 0);
    assert_eq!(to(f), (false, [1].into()));
    let f = s.forward(Port::Vif(0), &head(OUT, A), 60, None, 0);
    assert_eq!(to(f), (true, [].into()));
    let f = s.forward(Port::Wire, &head(C, OUT), 60, None, 0);
    assert_eq!(to(f), (false, [2].into()));
    let f = s.forward(Port::Wire, &head([2, 9, 9, 9, 9, 9], OUT), 60, None, 0);
    assert_eq!(f, Verdict::Drop(Drop::Unknown));
    let f = s.forward(Port::Vif(0), &head(A, A), 60, None, 0);
    assert_eq!(f, Verdict::Drop(Drop::Reserved));
}

#[test]
fn groups_go_everywhere_but_back() {
    let mut s = switch();
    for group in [ALL, [0x01, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
        let f = s.forward(Port::Vif(1), &head(group, B), 60, None, 0);
        assert_eq!(to(f), (true, [0, 2].into()));
        let f = s.forward(Port::Wire, &head(group, OUT), 60, None, 0);
        assert_eq!(to(f), (false, [0, 1, 2].into()));
    }
    let f = s.forward(Port::Vif(1), &head([1, 0x80, 0xc2, 0, 0, 0], B), 60, None, 0);
    assert_eq!(f, Verdict::Drop(Drop::Reserved));
}

#[test]
fn nobody_sends_from_the_address_of_another() {
    let mut s = switch();
    for (from, source) in [
        (Port::Vif(0), B),
        (Port::Vif(0), OUT),
        (Port::Vif(0), ALL),
        (Port::Vif(7), A),
        (Port::Wire, A),
        (Port::Wire, ALL),
    ] {
        let f = s.forward(from, &head(ALL, source), 60, None, 0);
        assert_eq!(f, Verdict::Drop(Drop::Spoofed), "{from:?}");
    }
    assert_eq!(s.counters(Port::Vif(0)).dropped[Drop::Spoofed as usize], 3);
}

/// Neither a vif's nor an outsider's frames move to who claims the address.
#[test]
fn g5_a_guest_cannot_draw_frames_of_others() {
    let mut s = switch();
    to(s.forward(Port::Wire, &head(A, OUT), 60, None, 0));
    for i in 0..10_000 {
        for stolen in [B, OUT] {
            let f = s.forward(Port::Vif(0), &head(ALL, stolen), 60, None, i);
            assert_eq!(f, Verdict::Drop(Drop::Spoofed));
        }
        let f = s.forward(Port::Wire, &head(ALL, B), 60, None, i);
        assert_eq!(f, Verdict::Drop(Drop::Spoofed));
    }
    assert_eq!(to(s.forward(Port::Wire, &head(B, OUT), 60, None, 10_000)), (false, [1].into()));
    assert_eq!(to(s.forward(Port::Vif(2), &head(B, C), 60, None, 10_000)), (false, [1].into()));
    assert_eq!(to(s.forward(Port::Vif(1), &head(OUT, B), 60, None, 10_000)), (true, [].into()));
}

#[test]
fn lengths_are_checked() {
    let mut s = switch();
    let h = head(B, A);
    for (head, len, reason) in [
        (&h[..13], 60, Drop::Short),
        (&h[..], 13, Drop::Short),
        (&h[..0], 0, Drop::Short),
        (&h[..], MAX_FRAME + 1, Drop::Long),
        (&h[..], usize::MAX, Drop::Long),
    ] {
        assert_eq!(s.forward(Port::Vif(0), head, len, None, 0), Verdict::Drop(reason));
    }
    to(s.forward(Port::Vif(0), &h, MAX_FRAME, None, 0));
    to(s.forward(Port::Vif(0), &h, HEADER, None, 0));
}

#[test]
fn floods_are_limited_for_each_port_by_itself() {
    let mut s = switch();
    let sent = |s: &mut Switch, from, mac, n, at| {
        (0..n)
            .filter(|_| matches!(s.forward(from, &head(ALL, mac), 60, None, at), Verdict::To(_)))
            .count()
    };
    assert_eq!(sent(&mut s, Port::Vif(0), A, 1000, 5), 10);
    assert_eq!(sent(&mut s, Port::Vif(1), B, 4, 5), 4);
    assert_eq!(sent(&mut s, Port::Wire, OUT, 50, 5), 10);
    // Unicast within is free of it.
    to(s.forward(Port::Vif(0), &head(B, A), 60, None, 5));
    // A twentieth of a second brings five tokens, an hour no more than the burst.
    assert_eq!(sent(&mut s, Port::Vif(0), A, 100, 5 + SECOND / 20), 5);
    assert_eq!(sent(&mut s, Port::Vif(0), A, 100, 3600 * SECOND), 10);
    // A clock that goes back brings none.
    assert_eq!(sent(&mut s, Port::Vif(0), A, 100, 0), 0);
}

#[test]
fn only_unicast_to_strangers_counts_as_a_flood() {
    let mut s = switch();
    let to_out = head(OUT, A);
    let passed = (0..100)
        .filter(|_| matches!(s.forward(Port::Vif(0), &to_out, 60, None, 1), Verdict::To(_)))
        .count();
    assert_eq!(passed, 10);
    to(s.forward(Port::Wire, &head(A, OUT), 60, None, 1));
    for _ in 0..1000 {
        to(s.forward(Port::Vif(0), &to_out, 60, None, 1));
    }
    // Forgotten after minutes of silence.
    let later = 1000 * SECOND;
    let passed = (0..100)
        .filter(|_| matches!(s.forward(Port::Vif(0), &to_out, 60, None, later), Verdict::To(_)))
        .count();
    assert_eq!(passed, 10);
}

#[test]
fn a_crowd_on_the_wire_does_not_grow_the_table() {
    let mut s = switch();
    for i in 0..100_000u32 {
        let [a, b, c, d] = i.to_be_bytes();
        s.forward(Port::Wire, &head(A, [6, 0, a, b, c, d]), 60, None, i.into());
    }
    s.forward(Port::Wire, &head(A, OUT), 60, None, 200_000);
    assert!(s.stations.knows(OUT, 200_001));
}

#[test]
fn vifs_need_addresses_of_their_own() {
    let mut s = switch();
    assert_eq!(s.add_vif(A, &ANY), Err(AddError::Duplicate));
    assert_eq!(s.add_vif(ALL, &ANY), Err(AddError::BadMac));
    assert_eq!(s.add_vif([0; 6], &ANY), Err(AddError::BadMac));
    for i in 3..MAX_VIFS {
        assert_eq!(s.add_vif([2, 1, 0, 0, 0, i as u8], &ANY), Ok(i));
    }
    assert_eq!(s.add_vif([2, 2, 0, 0, 0, 0], &ANY), Err(AddError::TooMany));
}

#[test]
fn random_frames_never_come_back_nor_reach_two_by_unicast() {
    let mut s = switch();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % n
    };
    let macs = [A, B, C, OUT, ALL, [0; 6], [1, 0x80, 0xc2, 0, 0, 3]];
    for i in 0..200_000u64 {
        let from = match next(5) {
            0 => Port::Wire,
            n => Port::Vif(n as usize - 1),
        };
        let (dst, src) = (macs[next(7) as usize], macs[next(7) as usize]);
        let h = head(dst, src);
        let h = &h[..if next(10) == 0 { next(14) as usize } else { 14 }];
        if let Verdict::To(targets) = s.forward(from, h, next(1600) as usize, None, i * 1_000_000) {
            match from {
                Port::Wire => assert!(!targets.wire),
                Port::Vif(i) => assert!(targets.vifs().all(|v| v != i)),
            }
            if dst[0] & 1 == 0 {
                assert_eq!(targets.vifs().count() + usize::from(targets.wire), 1);
            }
        }
    }
}
