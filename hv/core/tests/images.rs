//! Updates of a domain's image: what is refused, and who runs what when.

mod common;

use hv_core::{
    image::{Body, Images},
    memory::{Kind, Space},
};
use ring_proto::{
    bundle::{Domain, Header, IMAGE_MAGIC, Image, Segment, VERSION, crc32, crc32_of},
    hypercall::{DomainInfo, Error, Trial},
    layout,
};
use zerocopy::{FromZeros, IntoBytes};

const PAGE: usize = 4096;
const DRIVER: u16 = 1;
const SPARE: u16 = 4;

fn config() -> Domain {
    Domain { update_space: 16 * PAGE as u64, ..common::domain("blk") }
}

/// An image with text of so many pages, all of `byte`, and a page of data.
fn image(pages: usize, byte: u8) -> (Image, Vec<u8>) {
    let text = vec![byte; pages * PAGE];
    let data = [byte; 100];
    let segment = |address, memory: usize, at: usize, len: usize, execute: bool| Segment {
        address,
        memory_len: memory as u64,
        file_offset: at as u64,
        file_len: len as u64,
        write: !execute,
        execute,
    };
    let base = layout::IMAGE_BASE;
    let end = PAGE + text.len();
    let image = Image {
        name: "blk".try_into().unwrap(),
        crc: crc32_of([&text[..], &data[..]]),
        entry: base,
        segments: heapless::Vec::from_slice(&[
            segment(base, text.len(), PAGE, text.len(), true),
            segment(base + text.len() as u64, PAGE, end, data.len(), false),
        ])
        .unwrap(),
    };
    let mut bytes = text;
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
    (image, bytes)
}

fn file(image: &Image, bytes: &[u8]) -> Vec<u8> {
    let front = {
        let mut room = [0; PAGE];
        postcard::to_slice(image, &mut room).unwrap().to_vec()
    };
    let header = Header {
        magic: IMAGE_MAGIC,
        version: VERSION,
        manifest_len: front.len() as u32,
        total_len: (PAGE + bytes.len()) as u64,
        manifest_crc: crc32(&front),
        reserved: 0,
    };
    let mut file = header.as_bytes().to_vec();
    file.extend(&front);
    file.resize(PAGE, 0);
    file.extend(bytes);
    file
}

fn images() -> Images {
    let (boot, _) = image(2, 0);
    Images::new(&[], &boot, &config())
}

fn stage(images: &mut Images, file: &[u8]) {
    for (i, part) in file.chunks(1000).enumerate() {
        images.write(1000 * i as u64, part, [].into_iter()).unwrap();
    }
}

fn commit(images: &mut Images) -> Result<(), &'static str> {
    for _ in 0..100 {
        if images.commit(&config())? {
            return Ok(());
        }
    }
    panic!("it does not end");
}

/// Puts a new image on trial; returns its CRC.
fn update(images: &mut Images, byte: u8) -> u32 {
    let (new, bytes) = image(3, byte);
    stage(images, &file(&new, &bytes));
    commit(images).unwrap();
    new.crc
}

fn shown(images: &Images, id: u16) -> (Option<Trial>, u32) {
    let mut info = DomainInfo::new_zeroed();
    info.id = id;
    images.show(Body::default(), &mut info);
    (Trial::from_raw(info.trial), info.good_crc)
}

/// Stages a file that was made bad, and expects one complaint.
#[track_caller]
fn bad(problem: &str, change: impl FnOnce(&mut Image, &mut Vec<u8>)) {
    let (mut new, mut bytes) = image(3, 7);
    change(&mut new, &mut bytes);
    let mut all = images();
    stage(&mut all, &file(&new, &bytes));
    assert_eq!(commit(&mut all), Err(problem));
    assert_eq!(shown(&all, DRIVER).0, Some(Trial::None), "{problem}");
    // Nothing is left of it.
    update(&mut all, 8);
}

#[test]
fn g3_broken_images_are_refused() {
    bad("the image is damaged (CRC)", |_, bytes| bytes[5000] ^= 1);
    bad("the image is damaged (CRC)", |image, _| image.crc ^= 1);
    bad("the image has no segments", |image, _| image.segments.clear());
    bad("a segment is writable and executable", |image, _| image.segments[0].write = true);
    bad("a segment is misaligned, empty or overlaps", |image, _| image.segments[1].address -= 4096);
    bad("a segment is misaligned, empty or overlaps", |image, _| {
        image.segments[0].file_offset += 1
    });
    bad("a segment lies outside the space for images", |image, _| {
        image.segments[1].address = layout::HEAP;
    });
    bad("a segment's bytes lie outside the bundle", |image, _| {
        image.segments[1].file_offset += 1 << 20;
    });
    bad("the entry point is not in executable memory", |image, _| image.entry += 3 << 12);
    bad("the image takes more than the space for updates", |image, _| {
        image.segments[1].memory_len = 14 << 12;
    });
    let whole = |problem, change: fn(&mut Vec<u8>)| {
        let (new, bytes) = image(3, 7);
        let mut file = file(&new, &bytes);
        change(&mut file);
        let mut all = images();
        stage(&mut all, &file);
        assert_eq!(commit(&mut all), Err(problem));
    };
    whole("the file is too short", |f| f.truncate(20));
    whole("the file is of another kind", |f| f[0] ^= 1);
    whole("the file has another version: build it anew", |f| f[8] ^= 1);
    whole("the file is cut off", |f| f.truncate(9000));
    whole("the file's front is too long", |f| f[13] = 0xff);
    whole("the file's front is damaged (CRC)", |f| f[40] ^= 1);
}

#[test]
fn an_update_is_written_in_order_and_within_its_space() {
    let mut all = images();
    let nobody = || [].into_iter();
    assert_eq!(all.write(1, &[0], nobody()), Err(Error::BadArgument), "a gap");
    let part = vec![0; PAGE];
    for i in 0..17 {
        assert_eq!(all.write(i * PAGE as u64, &part, nobody()), Ok(()));
    }
    assert_eq!(all.write(17 * PAGE as u64, &[0], nobody()), Err(Error::Exhausted));
    assert_eq!(all.write(u64::MAX, &[0], nobody()), Err(Error::BadArgument));
    // A part may come again, and all of it from the beginning.
    assert_eq!(all.write(0, &part, nobody()), Ok(()));
    update(&mut all, 9);
    assert_eq!(all.write(0, &[0], nobody()), Err(Error::BadState), "on trial");
    assert_eq!(all.commit(&config()), Err("another image is on trial"));
    let mut none = Images::new(&[], &image(1, 0).0, &Domain { update_space: 0, ..config() });
    assert_eq!(none.write(0, &[0], nobody()), Err(Error::Exhausted));
}

#[test]
fn g3_a_trial_that_ends_early_returns_to_the_image_before() {
    let mut all = images();
    let boot = all.pick(DRIVER, true);
    let new = update(&mut all, 1);
    assert_eq!(shown(&all, DRIVER), (Some(Trial::Due), boot.crc));
    let body = all.pick(DRIVER, true);
    assert_eq!((body.crc, all.of(body).0.crc), (new, new));
    assert_eq!(all.of(boot).0.crc, boot.crc);
    assert_eq!(shown(&all, DRIVER), (Some(Trial::Here), boot.crc));
    assert!(!all.ended(SPARE) && all.ended(DRIVER) && !all.ended(DRIVER));
    assert_eq!(all.pick(DRIVER, true), boot);
    assert_eq!(all.judge(DRIVER, true), Err(Error::BadState), "it is over");
    // The next one has a name of its own, although it has the same place and bytes.
    update(&mut all, 1);
    assert!(all.pick(DRIVER, true) != body);
    assert_eq!(all.judge(DRIVER, false), Ok(Some(DRIVER)));
    assert_eq!(all.pick(DRIVER, true), boot);
}

#[test]
fn g3_images_that_were_kept_take_turns_in_two_slots() {
    let mut all = images();
    let mut before = all.pick(DRIVER, true);
    for byte in 1..10 {
        let new = update(&mut all, byte);
        let body = all.pick(DRIVER, true);
        assert_eq!(all.of(before).0.crc, before.crc, "the way back is there");
        assert_eq!(all.judge(DRIVER, true), Ok(None));
        assert_eq!((body.crc, shown(&all, DRIVER)), (new, (Some(Trial::None), new)));
        assert_eq!(all.pick(DRIVER, true), body);
        let (image, file) = all.of(body);
        assert_eq!(file[image.segments[0].file_offset as usize], byte);
        // While somebody is still restored from the old one, its slot is not written to.
        let busy = all.write(0, &[0], [before].into_iter());
        assert_eq!(busy, if before.number == 0 { Ok(()) } else { Err(Error::Busy) });
        before = body;
    }
}

#[test]
fn g3_a_spare_tries_first_and_takes_the_trial_along() {
    let mut all = images();
    let old = all.pick(DRIVER, false);
    update(&mut all, 1);
    assert_eq!(all.pick(DRIVER, false), old, "the driver dies: it has the old image");
    let body = all.pick(SPARE, true);
    assert_eq!(shown(&all, DRIVER).0, Some(Trial::Elsewhere));
    assert!(all.may_take_over(SPARE, body));
    assert_eq!(all.judge(DRIVER, true), Err(Error::BadState), "the driver has not run it");
    all.moved(DRIVER, SPARE);
    assert_eq!(shown(&all, DRIVER).0, Some(Trial::Here));
    assert_eq!(all.pick(SPARE, true), old, "the next spare is the way back");
    assert!(all.may_take_over(SPARE, old) && !all.ended(SPARE));
    assert_eq!(all.judge(DRIVER, true), Ok(None));
    assert!(!all.may_take_over(SPARE, old), "nobody runs the old image unnoticed");
    assert_eq!(all.pick(SPARE, true), body);
    // A spare that does not come up costs its principal nothing.
    update(&mut all, 2);
    all.pick(SPARE, true);
    assert_eq!(all.judge(DRIVER, false), Ok(Some(SPARE)));
    assert_eq!((all.pick(SPARE, true), all.pick(DRIVER, false)), (body, body));
}

#[test]
fn g1_another_image_moves_nothing_but_the_image() {
    let (small, large) = (image(2, 0).0, image(9, 0).0);
    let mut space = Space::new(&config(), &small, 1 << 30).unwrap();
    let rest = |space: &Space| {
        let own = space.regions().iter().filter(|r| !matches!(r.kind, Kind::Image(_)));
        (own.copied().collect::<Vec<_>>(), space.scratch, space.heap_len)
    };
    let before = rest(&space);
    let whole = space.regions().to_vec();
    space.set_image(&large);
    assert_eq!(rest(&space), before);
    let frames = |r: &hv_core::memory::Region| r.hpa..r.hpa + r.len;
    let all: Vec<_> = space.regions().iter().map(frames).collect();
    for (i, a) in all.iter().enumerate() {
        assert!(!a.contains(&space.scratch));
        assert!(all.iter().skip(i + 1).all(|b| b.end <= a.start || a.end <= b.start), "{a:x?}");
    }
    assert_eq!(
        space
            .regions()
            .iter()
            .filter(|r| matches!(r.kind, Kind::Image(_)))
            .map(|r| r.len)
            .sum::<u64>(),
        10 << 12
    );
    space.set_image(&small);
    assert_eq!(space.regions(), whole);
}
