//! The answers of a driver, in the ring in which its peer will find them.
//!
//! The memory of a connection's rings is the frontend's, and the frontend's grant
//! table says where: it is what the backend may write and its device may not reach.
//! While the machine stands still at a hypercall of the driver, the answers that it has
//! shown since its last one are altered there, as if it had written them so: there is one
//! core, so the frontend has not taken them. A reconnect makes nothing out of date, since all
//! of it is looked up each time.

use std::mem::offset_of;

use anyhow::{Context, Result, ensure};
use fault::plan::Change;
use ring_proto::grant::{DMA, GrantEntry, MAP, VALID, WRITE};
use ring_proto::layout::GRANT_TABLE;
use ring_proto::ring::{Direction, Layout, Requests, Responses, layout};
use ring_proto::{DomainId, PAGE_SIZE, blk, net};

use super::machine::Machine;
use super::target::Target;

/// What one queue of a protocol looks like. Ids are in front of requests and answers.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    slots: u32,
    /// Bytes of a request.
    request: usize,
    /// Bytes of an answer.
    response: usize,
    /// Where its status is.
    status: usize,
    /// Where its length is, if it has one.
    pub length: Option<usize>,
}

/// The queues of our frontends, in the order of their hello.
const BLK: [Shape; 1] = [Shape {
    slots: blk::SLOTS,
    request: size_of::<blk::Request>(),
    response: size_of::<blk::Response>(),
    status: offset_of!(blk::Response, status),
    length: None,
}];
const NET: [Shape; 2] = [
    Shape {
        slots: net::SLOTS,
        request: size_of::<net::TxRequest>(),
        response: size_of::<net::TxResponse>(),
        status: offset_of!(net::TxResponse, status),
        length: None,
    },
    Shape {
        slots: net::SLOTS,
        request: size_of::<net::RxRequest>(),
        response: size_of::<net::RxResponse>(),
        status: offset_of!(net::RxResponse, status),
        length: Some(offset_of!(net::RxResponse, len)),
    },
];
const _: () = {
    assert!(offset_of!(blk::Request, id) == 0 && offset_of!(blk::Response, id) == 0);
    assert!(offset_of!(net::TxRequest, id) == 0 && offset_of!(net::TxResponse, id) == 0);
    assert!(offset_of!(net::RxRequest, id) == 0 && offset_of!(net::RxResponse, id) == 0);
};

/// The queues of the connection of a driver of this kind.
pub fn queues(target: &str) -> &'static [Shape] {
    if target == "net" { &NET } else { &BLK }
}

/// Both rings of a queue: a copy of their memory.
#[derive(Debug)]
pub struct Ring {
    bytes: Vec<u8>,
    layout: Layout,
    shape: Shape,
    /// Whose memory it is, and where each of its pages is there.
    owner: DomainId,
    pages: Vec<u64>,
}

impl Ring {
    /// Reads a queue of the connection from `frontend` to `target`; `None`: it is not up.
    ///
    /// # Errors
    ///
    /// The frontend's memory can't be read, or it grants what no frontend of ours does.
    pub fn read(
        machine: &Machine,
        frontend: DomainId,
        target: &Target,
        queue: usize,
    ) -> Result<Option<Self>> {
        let space = machine.space(frontend).context("no such frontend")?;
        let table = space.regions().iter().find(|region| region.gpa == GRANT_TABLE);
        let mut entries = vec![0; usize::try_from(table.context("it has no grant table")?.len)?];
        machine.read(frontend, GRANT_TABLE, &mut entries)?;
        let entries = entries.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let granted = rings_granted(entries, target.domain);
        if granted.is_empty() {
            return Ok(None);
        }
        let shapes = queues(target.kind);
        let mut first = 0;
        let mut found = None;
        for (index, shape) in shapes.iter().enumerate() {
            let layout = shape.layout()?;
            let pages = layout.total.div_ceil(PAGE_SIZE);
            if index == queue {
                found = Some((first..first + pages, layout, *shape));
            }
            first += pages;
        }
        // In the middle of a reconnect there are fewer.
        if granted.len() < first {
            return Ok(None);
        }
        ensure!(granted.len() == first, "{} pages are granted for rings", granted.len());
        let (range, layout, shape) = found.context("no such queue")?;
        let pages = granted[range].to_vec();
        let mut bytes = vec![0; pages.len() * PAGE_SIZE];
        for (address, page) in pages.iter().zip(bytes.chunks_exact_mut(PAGE_SIZE)) {
            machine.read(frontend, *address, page)?;
        }
        Ok(Some(Self { bytes, layout, shape, owner: frontend, pages }))
    }

    /// Puts it back into the machine.
    ///
    /// # Errors
    ///
    /// The memory can't be written.
    pub fn write(&self, machine: &Machine) -> Result<()> {
        for (address, page) in self.pages.iter().zip(self.bytes.chunks_exact(PAGE_SIZE)) {
            machine.write(self.owner, *address, page)?;
        }
        Ok(())
    }

    /// Changes some of the last `fresh` answers. False, and nothing changed, if there are too
    /// few for this.
    pub fn change(&mut self, change: &Change, fresh: u32) -> bool {
        let needed = if matches!(change, Change::Exchange) { 2 } else { 1 };
        if fresh < needed {
            return false;
        }
        let produced = self.produced();
        let last = self.answer(produced.wrapping_sub(1));
        match *change {
            Change::Index { by } => self.set_word(Responses::PROD, produced.wrapping_add(by)),
            Change::Id { bits } => self.set_word(last, self.word(last) ^ bits),
            Change::Length { value } => match self.shape.length {
                Some(length) => self.set_word(last + length, value),
                None => return false,
            },
            Change::Status { bits } => self.bytes[last + self.shape.status] ^= bits,
            Change::Repeat => {
                let next = self.answer(produced);
                self.bytes.copy_within(last..last + self.shape.response, next);
                self.set_word(Responses::PROD, produced.wrapping_add(1));
            }
            Change::Exchange => {
                let other = self.answer(produced.wrapping_sub(2));
                for byte in 0..self.shape.response {
                    self.bytes.swap(last + byte, other + byte);
                }
            }
            Change::Withhold { last } => {
                if last && self.word(Requests::PROD) != produced {
                    return false;
                }
                self.set_word(Responses::PROD, produced.wrapping_sub(1));
            }
            Change::Forge { fraction, id, length } => {
                let open = self.unanswered();
                let chosen = (open.len() * usize::from(fraction)) >> 16;
                let Some(id) = id.or(open.get(chosen).copied()) else { return false };
                let next = self.answer(produced);
                self.bytes[next..next + self.shape.response].fill(0);
                self.set_word(next, id);
                if let Some(at) = self.shape.length {
                    self.set_word(next + at, length);
                }
                self.set_word(Responses::PROD, produced.wrapping_add(1));
            }
        }
        true
    }

    /// Answers that the driver has shown since it was at index `before`.
    pub fn shown_since(&self, before: u32) -> u32 {
        let shown = self.produced().wrapping_sub(before);
        // Otherwise these are other rings.
        if shown <= self.shape.slots { shown } else { 0 }
    }

    /// The producer index of the answers.
    pub fn produced(&self) -> u32 {
        self.word(Responses::PROD)
    }

    /// Ids of requests without an answer, the latest first. Both rings still hold the last
    /// `slots` of what went through them; a request that was overtaken by so many is missed.
    fn unanswered(&self) -> Vec<u32> {
        let slots = self.shape.slots;
        let back = |end: u32| (1..=slots.min(end)).map(move |back| end.wrapping_sub(back));
        let answered: Vec<u32> =
            back(self.word(Responses::PROD)).map(|i| self.word(self.answer(i))).collect();
        let requests = back(self.word(Requests::PROD)).map(|i| self.word(self.request(i)));
        requests.filter(|id| !answered.contains(id)).collect()
    }

    fn request(&self, index: u32) -> usize {
        self.layout.requests + (index % self.shape.slots) as usize * self.shape.request
    }

    fn answer(&self, index: u32) -> usize {
        self.layout.responses + (index % self.shape.slots) as usize * self.shape.response
    }

    fn word(&self, at: usize) -> u32 {
        let word = self.bytes[at..].first_chunk().copied();
        u32::from_le_bytes(word.unwrap_or_default())
    }

    fn set_word(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

impl Shape {
    fn layout(&self) -> Result<Layout> {
        layout(self.slots, self.request, self.response).context("no layout for such a queue")
    }
}

/// Pages that are granted to `grantee` for rings: it may write them, and its device may not
/// reach them as it does buffers. They are in the order of their references, which is that of
/// the queues.
fn rings_granted(entries: impl Iterator<Item = u64>, grantee: DomainId) -> Vec<u64> {
    let entries = entries.map(GrantEntry);
    let is_ring = |entry: &GrantEntry| {
        entry.has(VALID | MAP | WRITE) && !entry.has(DMA) && entry.grantee() == grantee
    };
    entries.filter(is_ring).map(GrantEntry::address).collect()
}

#[cfg(test)]
mod tests;
