//! Lives of domains, and spares that take over.

mod common;

use hv_core::{
    audit::{Leaf, nested_leaf},
    domain::{ByDomain, Domain, Life, take_over},
    memory::{Kind, Space},
};
use ring_proto::{
    bundle::{self, Image, Segment},
    crash::Reason,
    event::{READY, SERVED, STANDBY},
    hypercall::NOBODY,
    layout,
};

const BASES: [u64; 2] = [1 << 30, 3 << 30];
const LEN: u64 = 4 << 20;
const PAGE: u64 = 4096;

fn image() -> Image {
    let segment = |address, write, execute| Segment {
        address,
        memory_len: 4 * PAGE,
        file_offset: 0,
        file_len: 5000,
        write,
        execute,
    };
    let segments = [
        segment(layout::IMAGE_BASE, false, true),
        segment(layout::IMAGE_BASE + (1 << 20), true, false),
    ];
    Image {
        name: "blk".try_into().unwrap(),
        crc: 0,
        entry: layout::IMAGE_BASE,
        segments: segments.into_iter().collect(),
    }
}

fn config(name: &str, spare_of: Option<u16>) -> bundle::Domain {
    bundle::Domain { memory: LEN, spare_of, ..common::domain(name) }
}

/// A driver with a connection page and its spare, both running.
fn pair() -> ByDomain<Domain> {
    let mut all = ByDomain::default();
    for (id, (base, spare_of)) in (0..).zip(BASES.into_iter().zip([None, Some(0)])) {
        let config = config(["blk", "blk-spare"][usize::from(id)], spare_of);
        let mut space = Space::new(&config, &image(), base).unwrap();
        if spare_of.is_none() {
            space.add_foreign(layout::CONNECTIONS, 5 << 30, PAGE, true, Kind::Connection);
        }
        let mut domain = Domain::new(id, config, space, 1);
        domain.born(10);
        all.push(domain);
    }
    all
}

#[test]
fn g6_a_spare_takes_over_memory_and_nothing_else() {
    let mut all = pair();
    let regions = all[0].space.regions().to_vec();
    assert_eq!((all[0].info.spare_of, all[1].info.spare_of), (NOBODY, 0));
    assert!(all[1].advance(STANDBY) && all[1].stands_by() && !all[1].is_peer());
    assert_eq!(all[0].died(Reason::Panic, 20), 1);
    assert!(all[0].may_begin() && !all[1].may_begin());
    let (principal, spare) = all.pair(0, 1).unwrap();
    take_over(principal, spare, 30);

    let (principal, spare) = (&all[0], &all[1]);
    assert_eq!((principal.life, spare.life), (Life::Running, Life::Building(0)));
    assert_eq!((principal.info.generation, principal.info.deaths, principal.info.ready), (2, 1, 0));
    assert_eq!((spare.info.generation, spare.info.deaths, spare.info.ready), (2, 0, 0));
    assert_eq!((principal.info.started_ns, principal.config.name.as_str()), (30, "blk"));
    assert!(principal.is_peer() && !spare.stands_by());
    assert_eq!([principal.space.base, spare.space.base], [BASES[1], BASES[0]]);
    let inside = |space: &Space, at: u64| (space.base..space.base + space.len).contains(&at);
    assert!(inside(&principal.space, principal.space.scratch));
    assert!(inside(&spare.space, spare.space.scratch));
    for (old, new) in regions.iter().zip(principal.space.regions()) {
        let moved = if old.is_own_memory() { BASES[1] - BASES[0] } else { 0 };
        assert_eq!((new.gpa, new.len, new.hpa), (old.gpa, old.len, old.hpa + moved));
        // The audit knows the new body's frames from the dead one's.
        let leaf = |hpa| Leaf { gpa: old.gpa, hpa, write: old.write, execute: old.execute };
        assert!(nested_leaf(&principal.space, &principal.window, leaf(new.hpa)));
        assert_eq!(nested_leaf(&principal.space, &principal.window, leaf(old.hpa)), moved == 0);
        assert!(nested_leaf(&spare.space, &spare.window, leaf(old.hpa)) == (moved != 0));
    }
    assert!(spare.space.regions().iter().all(|r| r.is_own_memory()));

    // And again, once the dead one's memory was restored: back where they were.
    all[1].born(40);
    assert!(all[1].advance(STANDBY));
    all[0].died(Reason::Panic, 50);
    let (principal, spare) = all.pair(0, 1).unwrap();
    take_over(principal, spare, 60);
    assert_eq!(all[0].space.regions(), regions);
    assert!(all.pair(0, 0).is_none() && all.pair(0, 2).is_none());
}

#[test]
fn who_serves_others_has_no_end_of_its_work() {
    let mut all = pair();
    let mut exit = |domain, serves| {
        let domain: &mut Domain = &mut all[domain];
        domain.serves |= serves;
        domain.died(Reason::Exit, 20);
        (domain.life, domain.info.deaths)
    };
    assert_eq!(exit(0, false), (Life::Stopped, 0));
    assert_eq!(exit(0, true), (Life::Dead, 1));
    assert_eq!(exit(1, false), (Life::Dead, 1), "a spare");
}

#[test]
fn an_order_is_for_the_generation_that_its_giver_saw() {
    let mut all = pair();
    let seen = u64::from(all[0].info.generation);
    assert_eq!(all.check_generation(0, seen), Some(0));
    all[0].died(Reason::Panic, 20);
    assert_eq!((all.check_generation(0, seen), all.check_generation(0, seen + 1)), (None, Some(0)));
    let (principal, spare) = all.pair(0, 1).unwrap();
    take_over(principal, spare, 30);
    assert_eq!(all.check_generation(0, seen + 1), Some(0), "it begins in the spare's body");
    assert_eq!(all.check_generation(1, seen), None, "the spare that stood by is no more");
    for (number, generation) in [(2, seen), (u64::MAX, seen), (0, seen + 1 + (1 << 32))] {
        assert_eq!(all.check_generation(number, generation), None);
    }
}

#[test]
fn what_a_domain_says_of_itself_only_ever_advances() {
    let mut all = pair();
    assert!(!all[0].advance(STANDBY), "only a spare stands by");
    assert!(!all[0].advance(0) && !all[0].advance(7));
    assert!(all[0].advance(READY) && !all[0].advance(READY));
    assert!(all[0].advance(SERVED) && !all[0].advance(READY) && all[0].info.ready == SERVED);
    assert!(!all[1].advance(READY) && !all[1].advance(SERVED) && !all[1].stands_by());
    all[1].advance(STANDBY);
    all[1].died(Reason::Exception, 20);
    assert!(!all[1].stands_by(), "not once it died");
}

#[test]
fn own_memory_is_walked_whole_and_in_order() {
    let space = &pair()[0].space;
    let (mut at, mut own) = (0, 0);
    while let Some(region) = space.own_from(at) {
        assert!(region.is_own_memory() && region.gpa + region.len > at);
        own += region.len;
        at = region.gpa + region.len;
        let middle = region.gpa + region.len - PAGE;
        assert_eq!(space.own_from(middle), Some(region));
    }
    assert_eq!(own + PAGE, LEN, "all but the scratch page");
}
