//! The machine under test from outside: its memory, its instructions, and who
//! executes them.
//!
//! The machine's RAM is a file that the host shares with QEMU, so looking at a
//! domain costs it nothing. Data may be written there too; instructions only by
//! the gdbstub, which drops what QEMU has translated of them.
//!
//! All domains and the hypervisor execute at the same virtual addresses. Whose a
//! stop is says the hypervisor's own note `IN_GUEST`.

use std::fs::File;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use fault::mutate::Program;
use hv_core::memory::{Kind, Space};
use ring_proto::DomainId;
use ring_proto::boot::{BootInfo, MAGIC, STANDBY};
use ring_proto::bundle::Node;
use ring_proto::event::EventPage;
use ring_proto::layout::{EVENT_PAGE, HEAP, PAGE_TABLES};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::gdb::{Gdb, Registers};

/// Domains' memory begins at multiples of this.
const ALIGNED: u64 = 2 << 20;

/// A machine.
#[derive(Debug)]
pub struct Machine {
    /// Its processor.
    pub gdb: Gdb,
    ram: File,
    /// Address of the hypervisor's note for core 0.
    in_guest: u64,
    /// Where the hypervisor ends a domain's life, before it restores its memory.
    pub death: u64,
    /// Where it has a spare and its principal exchange their bodies.
    pub takeover: u64,
    spaces: Vec<Option<Space>>,
}

impl Machine {
    /// Attaches to a machine whose domains have all been begun; it stands still then.
    ///
    /// # Errors
    ///
    /// QEMU does not answer, or the hypervisor is not the one in `hv`.
    pub fn attach(gdb: &Path, ram: &Path, hv: &Path, node: &Node) -> Result<Self> {
        let file = std::fs::read(hv).with_context(|| format!("can't read {}", hv.display()))?;
        let program = Program::read(&file).with_context(|| hv.display().to_string())?;
        let symbol = |name: &str| {
            program.symbol(name).with_context(|| format!("the hypervisor has no symbol `{name}`"))
        };
        let in_guest = symbol("kernel::IN_GUEST")?;
        let death = symbol("kernel::death::<impl hv::kernel::Node>::end")?;
        let takeover = symbol("hv_core::domain::take_over")?;
        let ram = File::options().read(true).write(true).open(ram);
        let ram = ram.context("can't open the machine's memory")?;
        let gdb = Gdb::connect(gdb)?;
        let mut machine = Self { gdb, ram, in_guest, death, takeover, spaces: Vec::new() };
        for id in 0..node.domains.len() {
            let space = machine.find(node, DomainId::try_from(id)?)?;
            machine.spaces.push(space);
        }
        Ok(machine)
    }

    /// Where a domain lies: its boot information says whose it is. `None`: it never lived. That
    /// of a spare which has never taken over is told from its principal's by a flag.
    fn find(&self, node: &Node, id: DomainId) -> Result<Option<Space>> {
        let domain = node.domains.get(usize::from(id)).context("no such domain")?;
        let image = node.images.get(usize::from(domain.image)).context("no such image")?;
        let end = self.ram.metadata()?.len();
        for base in (ALIGNED..end).step_by(ALIGNED as usize) {
            let space = Space::new(domain, image, base)
                .ok_or_else(|| anyhow!("{}: no place for it", domain.name))?;
            let Some(region) = space.find(Kind::BootInfo) else { continue };
            let mut boot = BootInfo::new_zeroed();
            if self.ram.read_exact_at(boot.as_mut_bytes(), region.hpa).is_err() {
                continue;
            }
            let (owner, flag) = domain.spare_of.map_or((id, 0), |principal| (principal, STANDBY));
            let is_its = boot.domain == owner && boot.flags & STANDBY == flag;
            if boot.magic == MAGIC && is_its && boot.heap_len == space.heap_len {
                return Ok(Some(space));
            }
        }
        Ok(None)
    }

    /// Who executes the next instruction of a machine that stands still with these registers;
    /// `None`: the hypervisor. Its note comes a little before a domain is entered and goes a
    /// little after that was left, so the page tables count as well.
    ///
    /// # Errors
    ///
    /// Its memory can't be read.
    pub fn current(&self, registers: &Registers) -> Result<Option<DomainId>> {
        if registers.cr3 != PAGE_TABLES {
            return Ok(None);
        }
        let mut word = [0; 4];
        self.ram.read_exact_at(&mut word, self.in_guest)?;
        Ok(u32::from_le_bytes(word).checked_sub(1).and_then(|id| id.try_into().ok()))
    }

    /// Machine address of `len` bytes at `address` in a domain's own memory.
    ///
    /// # Errors
    ///
    /// They are not all there.
    pub fn place(&self, domain: DomainId, address: u64, len: usize) -> Result<u64> {
        let space = self.spaces.get(usize::from(domain)).and_then(Option::as_ref);
        let place = space.and_then(|space| space.translate(address, len as u64, false));
        place.with_context(|| format!("domain {domain} has no {len} bytes at {address:#x}"))
    }

    /// The layout of a domain.
    pub fn space(&self, domain: DomainId) -> Option<&Space> {
        self.spaces.get(usize::from(domain)).and_then(Option::as_ref)
    }

    /// Two domains have exchanged their memory: a spare took over.
    pub fn exchange(&mut self, one: DomainId, other: DomainId) {
        self.spaces.swap(usize::from(one), usize::from(other));
    }

    /// Reads a domain's memory.
    ///
    /// # Errors
    ///
    /// It has none there.
    pub fn read(&self, domain: DomainId, address: u64, to: &mut [u8]) -> Result<()> {
        Ok(self.ram.read_exact_at(to, self.place(domain, address, to.len())?)?)
    }

    /// Reads a word of a domain's memory.
    ///
    /// # Errors
    ///
    /// It has none there.
    pub fn read_word(&self, domain: DomainId, address: u64) -> Result<u64> {
        let mut word = [0; 8];
        self.read(domain, address, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// How far a domain says that it is (`EventPage::ready`).
    ///
    /// # Errors
    ///
    /// It has no event page.
    pub fn ready(&self, domain: DomainId) -> Result<u32> {
        self.read_value(domain, EVENT_PAGE + offset_of!(EventPage, ready) as u64)
    }

    /// Orders a domain's runtime to misbehave; `kind` is a number of `event::Inject`.
    ///
    /// # Errors
    ///
    /// It has no event page.
    pub fn order(&self, domain: DomainId, kind: u32) -> Result<()> {
        let place = EVENT_PAGE + offset_of!(EventPage, inject) as u64;
        self.write(domain, place, &kind.to_le_bytes())
    }

    /// A word of a domain's heap that is not zero, so many 2^32ths of the way through them all.
    /// What a domain did not write since it began is zero, so the hypervisor restores each of
    /// these.
    ///
    /// # Errors
    ///
    /// Its heap can't be read.
    pub fn word_in_use(&self, domain: DomainId, fraction: u32) -> Result<Option<u64>> {
        let heap = self.space(domain).and_then(|space| space.find(Kind::Heap));
        let mut bytes = vec![0; usize::try_from(heap.map_or(0, |region| region.len))?];
        self.read(domain, HEAP, &mut bytes)?;
        let words = bytes.as_chunks::<8>().0;
        let used = || (HEAP..).step_by(8).zip(words).filter(|(_, word)| **word != [0; 8]);
        let chosen = (used().count() as u64 * u64::from(fraction)) >> 32;
        Ok(used().nth(usize::try_from(chosen)?).map(|(address, _)| address))
    }

    /// Reads a value out of a domain's memory.
    ///
    /// # Errors
    ///
    /// It has no memory there.
    pub fn read_value<T: FromBytes + IntoBytes>(
        &self,
        domain: DomainId,
        address: u64,
    ) -> Result<T> {
        let mut value = T::new_zeroed();
        self.read(domain, address, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes data into a domain's memory, whether the machine runs or not.
    ///
    /// # Errors
    ///
    /// It has no memory there.
    pub fn write(&self, domain: DomainId, address: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.ram.write_all_at(bytes, self.place(domain, address, bytes.len())?)?)
    }

    /// Changes instructions of a domain while the machine stands still.
    ///
    /// # Errors
    ///
    /// It has no memory there, or QEMU does not obey.
    pub fn write_text(&mut self, domain: DomainId, address: u64, bytes: &[u8]) -> Result<()> {
        let place = self.place(domain, address, bytes.len())?;
        self.gdb.write_memory(place, bytes)
    }
}
