//! Updates: `hv_core::image` decides, and here it is carried out.

use hv_core::{domain::Life, memory::Kind};
use ring_proto::{
    DomainId, PAGE_SIZE,
    crash::Reason,
    hypercall::{Error, MAX_IMAGE_WRITE},
};

use super::{Answer, Node};

/// Largest part of a file that one `ImageWrite` takes.
const PART: usize = 2048;
const _: () = assert!(PART as u64 == MAX_IMAGE_WRITE);

impl Node {
    /// The domain that a caller named, if it has images of its own.
    fn updatable(&self, domain: u64) -> Result<DomainId, Error> {
        let domain = self.checked(domain)?;
        let config = &self.domains[domain].config;
        let own = config.update_space > 0 && config.spare_of.is_none();
        own.then_some(domain).ok_or(Error::NotPermitted)
    }

    pub(super) fn image_write(&mut self, caller: DomainId, args: [u64; 5]) -> Answer {
        let [domain, offset, gpa, len, _] = args;
        let domain = self.updatable(domain)?;
        let mut buffer = [0; PART];
        let bytes = usize::try_from(len).ok().and_then(|len| buffer.get_mut(..len));
        let bytes = bytes.ok_or(Error::BadArgument)?;
        self.read_caller(caller, gpa, bytes)?;
        let own = self.domains.iter().filter(|d| d.principal() == domain);
        let restoring = own.filter(|d| matches!(d.life, Life::Building(_))).map(|d| d.body);
        self.images[domain].write(offset, bytes, restoring).map(|()| 0)
    }

    pub(super) fn image_commit(
        &mut self,
        caller: DomainId,
        domain: u64,
        gpa: u64,
        room: u64,
    ) -> Answer {
        let domain = self.updatable(domain)?;
        let config = &self.domains[domain].config;
        let text = match self.images[domain].commit(config) {
            Ok(true) => return Ok(0),
            Ok(false) => return Err(Error::Busy),
            Err(text) => text.as_bytes(),
        };
        // What there is no room for is cut.
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let text = text.get(..room).unwrap_or(text);
        self.write_caller(caller, gpa, text)?;
        Ok(text.len() as u64)
    }

    pub(super) fn image_judge(&mut self, domain: u64, keep: u64) -> Answer {
        let domain = self.updatable(domain)?;
        if keep > 1 {
            return Err(Error::BadArgument);
        }
        match self.images[domain].judge(domain, keep == 1)? {
            Some(loser) => self.order(loser, Some(Reason::Operator), true),
            None => Ok(0),
        }
    }

    /// A generation ended; if its image was on trial, that is over.
    pub(super) fn end_trial(&mut self, domain: DomainId) {
        let d = &self.domains[domain];
        if self.images[d.principal()].ended(domain) {
            log::warn!("{}: its new image failed its trial", d.config.name);
        }
    }

    /// Has a body that is about to be restored have the image that it is to run:
    /// one bounded step. All pages of another image count as written to.
    pub(super) fn lay_out(&mut self, domain: DomainId) {
        let tries = self.domains.iter().all(|d| d.config.spare_of != Some(domain));
        let (d, nested) = (&mut self.domains[domain], &mut self.guests[domain].nested);
        let images = &mut self.images[d.principal()];
        let body = images.pick(domain, tries);
        if core::mem::replace(&mut d.body, body) == body {
            return;
        }
        let image = |r: &&hv_core::memory::Region| matches!(r.kind, Kind::Image(_));
        // All tables for it were reserved when the node was built, page by page.
        for r in d.space.regions().iter().filter(image) {
            nested.set_run(r.gpa, (0..r.len).step_by(PAGE_SIZE).map(|_| 0));
        }
        d.space.set_image(images.of(body).0);
        for r in d.space.regions().iter().filter(image) {
            let leaf = |offset| super::rights(r).bits() | r.hpa.saturating_add(offset);
            nested.set_run(r.gpa, (0..r.len).step_by(PAGE_SIZE).map(leaf));
        }
    }
}
