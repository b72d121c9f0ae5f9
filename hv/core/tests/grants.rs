//! Random grant operations against a model: the window and the table always
//! describe the same set of mappings, and nothing is mapped twice.

use std::collections::BTreeMap;

use hv_core::grants::{Mapping, Source, Table, Window, check_map};
use proptest::prelude::*;
use ring_proto::{
    grant::{COPY, DMA, GrantEntry, IN_USE, MAP, VALID, WRITE},
    hypercall::Error,
};

#[derive(Clone, Debug)]
enum Op {
    Map { gref: u32, page: u32 },
    Unmap { page: u32 },
    Revoke { gref: u32 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0u32..12, 0u32..12).prop_map(|(gref, page)| Op::Map { gref, page }),
        (0u32..12).prop_map(|page| Op::Unmap { page }),
        (0u32..12).prop_map(|gref| Op::Revoke { gref }),
    ]
}

proptest! {
    #[test]
    fn window_and_table_agree(ops in proptest::collection::vec(op(), 0..200)) {
        let (mut window, mut table) = (Window::new(8), Table::new(8));
        // page -> Some(gref) while live, None once revoked
        let mut model: BTreeMap<u32, Option<u32>> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Map { gref, page } => {
                    let taken = model.values().any(|g| *g == Some(gref));
                    let expect = page < 8 && gref < 8 && !model.contains_key(&page) && !taken;
                    let ok = window.check_free(page..page + 1).is_ok() && table.insert(gref, [Ok((3, page))]).is_ok();
                    if ok {
                        let source = Some(Source { granter: 1, gref });
                        let mapping = Mapping { source, frame: 0x1000, write: true, dma: false };
                        let inserted = window.insert(page, [Ok(mapping)]);
                        prop_assert!(inserted.is_ok());
                        model.insert(page, Some(gref));
                    }
                    prop_assert_eq!(ok, expect);
                }
                Op::Unmap { page } => {
                    let was = window.remove(page);
                    let model_was = model.remove(&page);
                    prop_assert_eq!(was.map(|m| m.source.map(|s| s.gref)), model_was);
                    if let Some(source) = was.and_then(|m| m.source) {
                        prop_assert_eq!(table.remove(source.gref), Some((3, page)));
                    }
                }
                Op::Revoke { gref } => {
                    let at = table.remove(gref);
                    let model_at = model.iter().find(|(_, g)| **g == Some(gref)).map(|(p, _)| *p);
                    prop_assert_eq!(at.map(|(_, page)| page), model_at);
                    if let Some((_, page)) = at {
                        prop_assert!(window.revoke(page, 0x2000).is_some());
                        prop_assert_eq!(window.get(page).unwrap().source, None);
                        model.insert(page, None);
                    }
                }
            }
            prop_assert_eq!(window.used() as usize, model.len());
            let live = model.values().filter(|g| g.is_some()).count();
            prop_assert_eq!(window.live(), live);
            prop_assert_eq!(table.used() as usize, live);
            prop_assert_eq!((0..8).filter(|&g| table.get(g).is_some()).count(), live);
            prop_assert_eq!(hv_core::audit::window_agrees(&window, 3, |_, gref| table.get(gref).copied()), 0);
        }
    }

    #[test]
    fn what_is_unmapped_goes_in_runs_and_entirely(
        slots in proptest::collection::vec(proptest::option::of((0u16..2, 0u32..4, any::<bool>())), 1..40),
        range in (0u32..40, 0u32..40),
    ) {
        let mut window = Window::new(slots.len() as u32);
        // References that go on from page to page, but for a jump now and then.
        let sources: Vec<_> = (0..).zip(&slots).map(|(page, slot)| {
            slot.map(|(granter, jump, revoked)| {
                (!revoked).then_some(Source { granter, gref: page + jump / 3 * 100 })
            })
        }).collect();
        for (page, source) in (0..).zip(&sources) {
            if let Some(source) = *source {
                let mapping = Mapping { source, frame: 0, write: true, dma: false };
                prop_assert!(window.insert(page, [Ok(mapping)]).is_ok());
            }
        }
        let range = range.0..range.1.min(slots.len() as u32);
        let (mut rest, mut gone) = (range.clone(), vec![None; slots.len()]);
        while let Some((pages, source)) = window.remove_run(rest.clone()) {
            prop_assert!(pages.start >= rest.start && pages.end <= rest.end && !pages.is_empty());
            rest.start = pages.end;
            for (n, page) in (0..).zip(pages) {
                gone[page as usize] = Some(source.map(|s| Source { gref: s.gref + n, ..s }));
            }
        }
        for (page, source) in (0..).zip(sources) {
            let within = range.contains(&page);
            prop_assert_eq!(gone[page as usize], if within { source } else { None });
            prop_assert_eq!(window.get(page).map(|m| m.source), if within { None } else { source });
        }
        prop_assert_eq!(window.used() as usize, window.taken(0..window.len()).count());
    }

    #[test]
    fn a_window_ends_where_it_ends(start: u32, end: u32) {
        let free = Window::new(8).check_free(start..end);
        prop_assert_eq!(free, if start <= end && end <= 8 { Ok(()) } else { Err(Error::Exhausted) });
    }
}

#[test]
fn several_places_are_taken_up_to_the_first_that_cannot_be() {
    let mut table = Table::new(8);
    let items = |count| (0..count).map(|page| Ok((3, page)));
    assert_eq!(table.insert(2, items(3)), Ok(()));
    assert_eq!(table.insert(0, items(3)), Err(Error::Busy));
    assert_eq!(table.insert(7, items(2)), Err(Error::Exhausted));
    assert_eq!(table.insert(5, [Ok((3, 0)), Err(Error::PeerGrant)]), Err(Error::PeerGrant));
    assert_eq!((0..8).filter(|&gref| table.get(gref).is_none()).collect::<Vec<_>>(), [6]);
    table.clear(1..7);
    assert_eq!((table.used(), table.get(0), table.get(7)), (2, Some(&(3, 0)), Some(&(3, 0))));
    table.clear(7..9);
    assert_eq!(table.used(), 2, "there is no ninth");
}

#[test]
fn an_entry_allows_what_it_says_and_no_more() {
    let entry = GrantEntry::new(0x1234_5000, 7, MAP | WRITE);
    assert_eq!((entry.address(), entry.grantee()), (0x1234_5000, 7));
    assert_eq!(check_map(entry, 7, true, false), Ok(()));
    assert_eq!(check_map(entry, 8, true, false), Err(Error::PeerGrant), "foreign");
    assert_eq!(check_map(entry, 7, false, true), Err(Error::PeerGrant), "no DMA");
    let read_only = GrantEntry::new(0x1000, 7, MAP | DMA);
    assert_eq!(check_map(read_only, 7, true, false), Err(Error::PeerGrant), "read only");
    let copy = GrantEntry::new(0x1000, 7, COPY);
    assert_eq!(check_map(copy, 7, false, false), Err(Error::PeerGrant), "copy only");
    assert_eq!(
        check_map(GrantEntry(entry.0 & !VALID), 7, false, false),
        Err(Error::PeerGrant),
        "not valid"
    );
}

#[test]
fn grant_6_in_use_changes_nothing() {
    // A granter can write it, and take it away, as it likes.
    for flags in 0..128 {
        let word = GrantEntry::new(0x1000, 7, 0).0 & !VALID | flags;
        for (write, dma) in [(false, false), (true, false), (false, true), (true, true)] {
            let [without, with] = [word, word | IN_USE]
                .map(|word| check_map(GrantEntry(word), 7, write, dma).is_ok());
            assert_eq!(without, with, "{flags:#x}");
        }
    }
}
