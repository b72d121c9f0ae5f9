//! What a domain may run: the image of the bundle, and updates of it.
//!
//! A domain with space for updates has two slots. One holds its image, unless
//! that is the bundle's; a new one is staged in the other. It is checked as the
//! bundle's are and then on trial in one body, that of the domain or of its
//! spare, until the supervisor says that it works. When the generation that is
//! on trial ends before, whyever, the next one has the image before: nobody has
//! to be alive for that. A domain and its spare have one set of images.

use alloc::vec::Vec;

use ring_proto::{
    DomainId, PAGE_SIZE,
    bundle::{self, IMAGE_MAGIC, Image, crc32_more},
    hypercall::{DomainInfo, Error, Trial as Shown},
};

use crate::{
    bundle::{Problem, check_image, demand, front},
    memory,
};

/// Bytes of which one call of [`Images::commit`] computes the checksum.
const STEP: usize = 4096;

/// Which image a domain's memory is laid out for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// Of all that were ever on trial; 0 is the bundle's.
    pub number: u32,
    /// [`Image::crc`].
    pub crc: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    None,
    Due,
    In(DomainId),
}

/// An image and the file that it is in.
#[derive(Debug)]
struct Slot {
    body: Body,
    image: Image,
    file: Vec<u8>,
}

/// The images of one domain.
#[derive(Debug)]
pub struct Images {
    bundle: &'static [u8],
    boot: Image,
    slots: [Slot; 2],
    /// What it is to run.
    good: Body,
    trial: Trial,
    /// Images that were ever on trial.
    count: u32,
    /// Bytes of the staged segments that were checked, and their CRC.
    checked: (usize, u32),
}

impl Images {
    /// Those of a domain whose `boot` image is in `bundle`, with room for updates.
    pub fn new(bundle: &'static [u8], boot: &Image, config: &bundle::Domain) -> Self {
        // A file has a page of its own in front.
        let room =
            config.update_space.checked_add(PAGE_SIZE as u64).filter(|_| config.update_space > 0);
        let room = room.and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let good = Body { number: 0, crc: boot.crc };
        let slot = || Slot { body: good, image: boot.clone(), file: Vec::with_capacity(room) };
        let slots = [slot(), slot()];
        Self {
            bundle,
            boot: boot.clone(),
            slots,
            good,
            trial: Trial::None,
            count: 0,
            checked: (0, 0),
        }
    }

    fn staged(&mut self) -> &mut Slot {
        let [a, b] = &mut self.slots;
        if a.body == self.good && self.good.number != 0 { b } else { a }
    }

    /// The image that a body is laid out for, and the file that it is in. Its
    /// slot is not written to while the body is restored, see [`Self::write`].
    pub fn of(&self, body: Body) -> (&Image, &[u8]) {
        let slot = self.slots.iter().find(|s| s.body.number == body.number && body.number != 0);
        slot.map_or((&self.boot, self.bundle), |s| (&s.image, &s.file))
    }

    /// Takes a part of a file. `restoring`: bodies that are being restored.
    ///
    /// # Errors
    /// See [`ring_proto::hypercall::Nr::ImageWrite`].
    pub fn write(
        &mut self,
        offset: u64,
        bytes: &[u8],
        mut restoring: impl Iterator<Item = Body>,
    ) -> Result<(), Error> {
        if self.trial != Trial::None {
            return Err(Error::BadState);
        }
        self.checked = (0, 0);
        let slot = self.staged();
        if restoring.any(|body| body.number != 0 && body == slot.body) {
            return Err(Error::Busy);
        }
        let at = usize::try_from(offset).map_err(|_| Error::BadArgument)?;
        let end = at.checked_add(bytes.len()).filter(|_| at <= slot.file.len());
        if end.ok_or(Error::BadArgument)? > slot.file.capacity() {
            return Err(Error::Exhausted);
        }
        slot.file.truncate(at);
        slot.file.extend_from_slice(bytes);
        Ok(())
    }

    /// Checks a piece of the staged file. True: all of it is good, and the image
    /// is on trial; false: there is more to check.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn commit(&mut self, config: &bundle::Domain) -> Result<bool, Problem> {
        demand(self.trial == Trial::None, "another image is on trial")?;
        let (done, crc) = self.checked;
        let slot = self.staged();
        let image = parse(&slot.file, config)?;
        let mut skip = done;
        for s in &image.segments {
            let from = usize::try_from(s.file_offset).ok();
            let len = usize::try_from(s.file_len).ok();
            let bytes = from.zip(len).and_then(|(from, len)| slot.file.get(from..)?.get(..len));
            let bytes = bytes.ok_or("a segment's bytes lie outside the file")?;
            if let Some(piece) = bytes.get(skip..).and_then(|rest| rest.chunks(STEP).next()) {
                let crc = crc32_more(crc, piece);
                self.checked = (done.saturating_add(piece.len()), crc);
                return Ok(false);
            }
            skip = skip.saturating_sub(bytes.len());
        }
        demand(crc == image.crc, "the image is damaged (CRC)")?;
        self.count = self.count.wrapping_add(1).max(1);
        let body = Body { number: self.count, crc };
        let slot = self.staged();
        (slot.body, slot.image) = (body, image);
        self.trial = Trial::Due;
        Ok(true)
    }

    /// What the next generation of `domain` is built of. `tries`: it is the one
    /// to try a new image.
    pub fn pick(&mut self, domain: DomainId, tries: bool) -> Body {
        if self.trial == Trial::Due && tries {
            self.trial = Trial::In(domain);
        }
        if self.trial == Trial::In(domain) { self.staged().body } else { self.good }
    }

    /// Whether a spare that stands by with `body` may take over: what it runs is
    /// good, or on trial in it.
    pub fn may_take_over(&self, spare: DomainId, body: Body) -> bool {
        self.trial == Trial::In(spare) || body == self.good
    }

    /// The spare took its principal's place.
    pub fn moved(&mut self, principal: DomainId, spare: DomainId) {
        if self.trial == Trial::In(spare) {
            self.trial = Trial::In(principal);
        }
    }

    /// A generation ended. Returns whether that ended a trial.
    pub fn ended(&mut self, domain: DomainId) -> bool {
        let over = self.trial == Trial::In(domain);
        if over {
            self.trial = Trial::None;
        }
        over
    }

    /// Ends the trial for `domain`: its image works, or not. Returns who is to be
    /// restarted.
    ///
    /// # Errors
    /// [`Error::BadState`] if there is none, or to keep what the domain does not run.
    pub fn judge(&mut self, domain: DomainId, keep: bool) -> Result<Option<DomainId>, Error> {
        let trial = self.trial;
        if trial == Trial::None || keep && trial != Trial::In(domain) {
            return Err(Error::BadState);
        }
        if keep {
            self.good = self.staged().body;
        }
        self.trial = Trial::None;
        Ok(match trial {
            Trial::In(id) if !keep => Some(id),
            _ => None,
        })
    }

    /// Says to the supervisor how it stands for the domain in `info`.
    pub fn show(&self, body: Body, info: &mut DomainInfo) {
        (info.image_crc, info.good_crc) = (body.crc, self.good.crc);
        info.trial = match self.trial {
            Trial::None => Shown::None,
            Trial::Due => Shown::Due,
            Trial::In(id) if id == info.id => Shown::Here,
            Trial::In(_) => Shown::Elsewhere,
        } as u32;
    }
}

/// The image that a file is of, but for the checksum of its segments.
fn parse(file: &[u8], config: &bundle::Domain) -> Result<Image, Problem> {
    let image: Image = front(file, IMAGE_MAGIC, PAGE_SIZE)?;
    check_image(&image, file.len() as u64)?;
    memory::check_room(config, &image)?;
    Ok(image)
}
