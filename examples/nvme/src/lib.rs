//! A driver domain of one's own: an NVMe disk.
//!
//! The book's chapter "Test your driver" begins with a copy of this folder. Replace [`queue`] and
//! the body of `Nvme` by the code of your device and keep `impl Disk for …`: that is all that
//! the rest of the domain (`driver-blk`'s `service`) knows of a device.
//!
//! | part | is about |
//! |---|---|
//! | `src/lib.rs` | the disk: reset, identification, requests |
//! | `src/queue.rs` | NVMe's queues: commands into memory, completions out of it |
//! | `src/main.rs` | the program |
//! | `node.toml` | a node in which it can be run and put through a campaign |
//!
//! Section numbers are those of the NVM Express Base Specification 1.4. One I/O queue, one
//! namespace, blocks of 512 bytes, one interrupt.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod queue;

use alloc::{boxed::Box, vec::Vec};
use core::fmt;

use domain_rt::{
    device::{Bar, Function},
    dma, events, hypercall,
    time::{MS, now_ns},
};
use driver_blk::disk::{Disk, Done, Io, Misbehaved, Refused};
use ring_proto::{
    PAGE_SIZE, Port,
    blk::{MAX_REQUEST_BYTES, MAX_SEGMENTS, Op, SECTOR, Status},
    shm::SharedMem,
};

use queue::{Command, Data, Queue, opcode};

/// Class, subclass and programming interface of NVMe.
const CLASS: u32 = 0x01_08_02;
/// Offset of the class in configuration space, behind the revision.
const CONFIG_CLASS: u16 = 8;

// Registers (section 3.1).
const CAP: usize = 0x00;
const CC: usize = 0x14;
const CSTS: usize = 0x1c;
const AQA: usize = 0x24;
const ASQ: usize = 0x28;
const ACQ: usize = 0x30;
/// Doorbells begin here.
const DOORBELLS: usize = 0x1000;

/// Enabled; entries of 64 and of 16 bytes, pages of 4 KiB, the NVM command set.
const CC_ENABLE: u32 = 1;
const CC_SIZES: u32 = 6 << 16 | 4 << 20;
const CSTS_READY: u32 = 1;
/// The controller gave up.
const CSTS_FATAL: u32 = 2;
/// What a device that is gone reads as.
const GONE: u32 = u32::MAX;

/// Entries of the admin queues, of which one at a time is used.
const ADMIN: u16 = 8;
/// Entries of the I/O queues.
const DEPTH: u16 = 128;
/// The I/O queues' number.
const IO: u16 = 1;
/// MSI-X entry that is used.
const VECTOR: u16 = 0;
/// The namespace that is the disk.
const NAMESPACE: u32 = 1;
/// Bytes of a logical block.
const BLOCK: u32 = 512;
const _: () = assert!(BLOCK as u64 == SECTOR);
/// Bytes that one command moves at most; the device must take as many.
const CHUNK: u32 = 128 << 10;
/// Pages of 4 KiB in it.
const CHUNK_PAGES: usize = 32;
/// Commands of one request at most: each piece begins one, and each full chunk goes on in another.
const COMMANDS: usize = MAX_SEGMENTS + (MAX_REQUEST_BYTES / CHUNK) as usize;
/// Bytes of a command's list of pages.
const LIST: usize = CHUNK_PAGES * 8;
const _: () = assert!(CHUNK as usize == CHUNK_PAGES * PAGE_SIZE);
const _: () = assert!(PAGE_SIZE.is_multiple_of(LIST) && (DEPTH as usize) > COMMANDS);
/// How long a command of the admin queue may take.
const ADMIN_NS: u64 = 5000 * MS;
/// Pause between two looks at what takes its time.
const LOOK_NS: u64 = MS / 20;

/// Why a disk cannot be used.
#[derive(Debug)]
pub enum Error {
    /// The domain owns no NVMe controller at this slot.
    NoDevice,
    /// It does not do what it should in time.
    NoAnswer(&'static str),
    /// It can't do what this driver needs.
    Unfit(&'static str),
    /// It answered a command of the admin queue with this status.
    Refused(u16),
    /// It broke the rules of its queues.
    Misbehaved,
    /// The DMA pool is used up.
    NoMemory,
    /// The hypervisor refused something.
    Hypervisor(hypercall::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice => f.write_str("this domain owns no NVMe controller"),
            Self::NoAnswer(what) => write!(f, "the controller does not {what}"),
            Self::Unfit(what) => write!(f, "the controller has {what}"),
            Self::Refused(status) => write!(f, "the controller answers with status {status:#x}"),
            Self::Misbehaved => f.write_str("the controller broke the rules of its queues"),
            Self::NoMemory => f.write_str("the DMA pool is too small"),
            Self::Hypervisor(error) => write!(f, "the hypervisor says {error:?}"),
        }
    }
}

impl From<hypercall::Error> for Error {
    fn from(error: hypercall::Error) -> Self {
        Self::Hypervisor(error)
    }
}

/// A request of which commands are under way.
struct Request {
    cookie: u32,
    /// Commands that have not ended.
    left: usize,
    /// The first error, else Ok.
    status: Status,
}

/// An NVMe disk.
pub struct Nvme {
    registers: Bar,
    port: Port,
    queue: Queue,
    /// Room for a list of pages for each command.
    lists: SharedMem,
    /// By the number of a command: the request that it belongs to.
    commands: Box<[Option<u16>]>,
    free_commands: Vec<u16>,
    requests: Box<[Option<Request>]>,
    free_requests: Vec<u16>,
    sectors: u64,
    has_cache: bool,
    read_only: bool,
}

impl Nvme {
    /// The first generation finds the controller as the firmware left it, each other one as it was
    /// when the one before died. A controller that is disabled touches no memory any more.
    fn disable(registers: Bar, patience: u64) -> Result<(), Error> {
        let on = registers.read32(CC) & CC_ENABLE != 0;
        let state = registers.read32(CSTS);
        if on && state & (CSTS_READY | CSTS_FATAL) == 0 {
            // It was being enabled; until it is, it must not be disabled (section 3.1.5).
            let _ = await_state(registers, true, patience);
        }
        registers.write32(CC, 0);
        await_state(registers, false, patience)
    }

    /// Whether what one request names fits together and stays on the disk.
    fn check(&self, io: &Io<'_>) -> Result<(), Refused> {
        match io.op {
            Op::Read => {}
            Op::Write if !self.read_only => {}
            Op::Flush if self.has_cache => return Ok(()),
            _ => return Err(Refused::Unsupported),
        }
        let aligned = io.pieces.iter().all(|p| p.len != 0 && p.len.is_multiple_of(BLOCK));
        if !aligned || io.pieces.is_empty() || io.pieces.len() > MAX_SEGMENTS {
            return Err(Refused::Invalid);
        }
        let bytes: u64 = io.pieces.iter().map(|piece| u64::from(piece.len)).sum();
        let end = io.sector.checked_add(bytes / SECTOR);
        let fits = bytes <= MAX_REQUEST_BYTES.into() && end.is_some_and(|end| end <= self.sectors);
        if fits { Ok(()) } else { Err(Refused::Invalid) }
    }

    /// Puts a command of a request into the queue. There is room; `false` if its data is nowhere.
    fn send(&mut self, request: u16, mut command: Command, data: Option<(u64, u32)>) -> bool {
        let Some(&id) = self.free_commands.last() else { return false };
        if let Some((address, len)) = data {
            let list = usize::from(id).saturating_mul(LIST);
            let Some(list) = self.lists.sub(list, LIST) else { return false };
            let put = |place: usize, page| list.write(place.saturating_mul(8), &page).is_ok();
            let Some(data) = Data::new(address, len, list.address(), put) else { return false };
            command.data = data.0;
        }
        let _ = self.free_commands.pop();
        if let Some(owner) = self.commands.get_mut(usize::from(id)) {
            *owner = Some(request);
        }
        self.queue.push(Command { id, ..command });
        true
    }
}

impl Disk for Nvme {
    type Error = Error;

    fn open(slot: usize) -> Result<Self, Error> {
        let function = Function::at(slot).ok_or(Error::NoDevice)?;
        if hypercall::pci_config_read(slot, CONFIG_CLASS, 4)? >> 8 != CLASS {
            return Err(Error::NoDevice);
        }
        let registers = function.bar(0).ok_or(Error::NoDevice)?;
        let cap = registers.read64(CAP);
        // TO, in units of 500 ms.
        let patience = (cap >> 24 & 0xff).max(1).saturating_mul(500 * MS);
        // The reset comes first, then memory.
        Self::disable(registers, patience)?;
        // DSTRD, MPSMIN, CSS.
        let stride = 4usize << (cap >> 32 & 0xf);
        if cap >> 48 & 0xf != 0 {
            return Err(Error::Unfit("no pages of 4 KiB"));
        }
        if cap >> 37 & 1 == 0 {
            return Err(Error::Unfit("no NVM commands"));
        }
        // MQES, one less.
        let depth = u16::try_from((cap & 0xffff).saturating_add(1)).unwrap_or(DEPTH).min(DEPTH);
        if usize::from(depth) <= COMMANDS {
            return Err(Error::Unfit("queues that are too short"));
        }
        function.enable()?;

        let queue = |id, size| Queue::new(registers, DOORBELLS, stride, id, size);
        let mut admin = queue(0, ADMIN).ok_or(Error::NoMemory)?;
        let [submissions, completions] = admin.areas();
        let entries = u32::from(ADMIN.saturating_sub(1));
        registers.write32(AQA, entries << 16 | entries);
        registers.write64(ASQ, submissions);
        registers.write64(ACQ, completions);
        registers.write32(CC, CC_ENABLE | CC_SIZES);
        await_state(registers, true, patience)?;

        let page = dma::alloc(PAGE_SIZE).ok_or(Error::NoMemory)?;
        let identify = |admin: &mut Queue, namespace, what| {
            let mut command = Command::new(opcode::IDENTIFY, namespace);
            command.data = [page.address(), 0];
            command.words = [what, 0, 0, 0, 0, 0];
            order(admin, command)
        };
        let byte = |offset| page.read::<u8>(offset).map_err(|_| Error::NoMemory);
        // The controller: MDTS (a power of two of pages, 0 = no limit), VWC.
        identify(&mut admin, 0, 1)?;
        let most = byte(77)?;
        if most != 0 && most < u8::try_from(CHUNK_PAGES.ilog2()).unwrap_or(u8::MAX) {
            return Err(Error::Unfit("too small a limit for the data of a command"));
        }
        let has_cache = byte(525)? & 1 != 0;
        // The namespace: NSZE, FLBAS, the format in use, NSATTR.
        identify(&mut admin, NAMESPACE, 0)?;
        let blocks: u64 = page.read(0).map_err(|_| Error::NoMemory)?;
        let format = usize::from(byte(26)? & 0xf).saturating_mul(4).saturating_add(128);
        let format: u32 = page.read(format).map_err(|_| Error::NoMemory)?;
        if blocks == 0 || format >> 16 & 0xff != BLOCK.ilog2() || format & 0xffff != 0 {
            return Err(Error::Unfit("no namespace with plain blocks of 512 bytes"));
        }
        let read_only = byte(99)? & 1 != 0;
        dma::free(page);

        let port = function.bind(VECTOR)?;
        let queue = queue(IO, depth).ok_or(Error::NoMemory)?;
        let [submissions, completions] = queue.areas();
        let size = u32::from(depth.saturating_sub(1)) << 16 | u32::from(IO);
        // One pair of queues is wanted; both contiguous, the second with interrupts.
        let wanted = [
            (opcode::SET_FEATURES, 0, [7, 0]),
            (opcode::CREATE_COMPLETIONS, completions, [size, u32::from(VECTOR) << 16 | 0b11]),
            (opcode::CREATE_SUBMISSIONS, submissions, [size, u32::from(IO) << 16 | 0b01]),
        ];
        for (opcode, address, [first, second]) in wanted {
            let mut command = Command::new(opcode, 0);
            command.data = [address, 0];
            command.words = [first, second, 0, 0, 0, 0];
            order(&mut admin, command)?;
        }
        hypercall::irq_unmask(port)?;
        // One entry stays free, else a full queue would look like an empty one.
        let commands = depth.saturating_sub(1);
        let room = usize::from(commands).saturating_mul(LIST);
        Ok(Self {
            registers,
            port,
            queue,
            lists: dma::alloc(room).ok_or(Error::NoMemory)?,
            commands: (0..commands).map(|_| None).collect(),
            free_commands: (0..commands).collect(),
            requests: (0..commands).map(|_| None).collect(),
            free_requests: (0..commands).collect(),
            sectors: blocks,
            has_cache,
            read_only,
        })
    }

    fn port(&self) -> Port {
        self.port
    }

    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn block_size(&self) -> u32 {
        BLOCK
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn has_cache(&self) -> bool {
        self.has_cache
    }

    fn in_flight(&self) -> u16 {
        let busy = self.requests.len().saturating_sub(self.free_requests.len());
        u16::try_from(busy).unwrap_or(u16::MAX)
    }

    fn has_room(&self) -> bool {
        // Each request in flight has a command, so there is a request too.
        self.free_commands.len() >= COMMANDS
    }

    /// A command's data is contiguous but for pages, and pieces may begin and end anywhere: each
    /// piece is a command of its own, or several.
    fn submit(&mut self, io: &Io<'_>) -> Result<(), Refused> {
        self.check(io)?;
        if !self.has_room() {
            return Err(Refused::Full);
        }
        let request = self.free_requests.pop().ok_or(Refused::Full)?;
        let opcode = match io.op {
            Op::Read => opcode::READ,
            Op::Write => opcode::WRITE,
            _ => opcode::FLUSH,
        };
        let mut sent = 0usize;
        let mut sector = io.sector;
        let mut command = Command::new(opcode, NAMESPACE);
        if io.op == Op::Flush {
            sent = usize::from(self.send(request, command, None));
        }
        for piece in io.pieces {
            let end = piece.address.saturating_add(piece.len.into());
            let mut address = piece.address;
            while address < end {
                // At most a chunk.
                let len = end.saturating_sub(address).min(CHUNK.into());
                let blocks = len / SECTOR;
                let [low, high] = [sector, sector >> 32].map(|half| half & u64::from(u32::MAX));
                let words = [low, high, blocks.saturating_sub(1)];
                let [low, high, count] = words.map(|word| u32::try_from(word).unwrap_or(0));
                command.words = [low, high, count, 0, 0, 0];
                let data = (address, u32::try_from(len).unwrap_or(0));
                sent = sent.saturating_add(self.send(request, command, Some(data)).into());
                (address, sector) = (address.saturating_add(len), sector.saturating_add(blocks));
            }
        }
        if let Some(place) = self.requests.get_mut(usize::from(request)) {
            *place = Some(Request { cookie: io.cookie, left: sent, status: Status::Ok });
        }
        Ok(())
    }

    fn kick(&mut self) {
        self.queue.ring();
    }

    fn next_done(&mut self) -> Result<Option<Done>, Misbehaved> {
        while let Some(completion) = self.queue.pop() {
            // The device chose the number: it must be that of a command under way.
            let owner = self.commands.get_mut(usize::from(completion.id));
            let owner = owner.and_then(Option::take).ok_or(Misbehaved)?;
            self.free_commands.push(completion.id);
            let place = self.requests.get_mut(usize::from(owner)).ok_or(Misbehaved)?;
            let request = place.as_mut().ok_or(Misbehaved)?;
            request.left = request.left.saturating_sub(1);
            if completion.error() != 0 && request.status == Status::Ok {
                request.status = Status::IoError;
            }
            if request.left == 0 {
                let done = Done { cookie: request.cookie, status: request.status };
                *place = None;
                self.free_requests.push(owner);
                return Ok(Some(done));
            }
        }
        Ok(None)
    }

    fn set_interrupts(&mut self, on: bool) -> bool {
        // MSI-X has no cheap switch; an interrupt that nobody needs costs a bit in a word.
        on && self.queue.has_more()
    }

    fn needs_reset(&self) -> bool {
        let state = self.registers.read32(CSTS);
        state == GONE || state & (CSTS_READY | CSTS_FATAL) != CSTS_READY
    }
}

/// Waits until the controller is ready, or is not.
fn await_state(registers: Bar, ready: bool, patience: u64) -> Result<(), Error> {
    let give_up = now_ns().saturating_add(patience);
    loop {
        let state = registers.read32(CSTS);
        if state == GONE {
            return Err(Error::NoAnswer("answer"));
        }
        if (state & CSTS_READY != 0) == ready {
            return Ok(());
        }
        let now = now_ns();
        if now > give_up || (ready && state & CSTS_FATAL != 0) {
            return Err(Error::NoAnswer(if ready { "become ready" } else { "stop" }));
        }
        events::wait(now.saturating_add(LOOK_NS));
    }
}

/// Has a command of the admin queue carried out.
fn order(admin: &mut Queue, command: Command) -> Result<(), Error> {
    admin.push(command);
    admin.ring();
    let give_up = now_ns().saturating_add(ADMIN_NS);
    loop {
        if let Some(completion) = admin.pop() {
            admin.ring();
            return match completion.error() {
                _ if completion.id != command.id => Err(Error::Misbehaved),
                0 => Ok(()),
                status => Err(Error::Refused(status)),
            };
        }
        let now = now_ns();
        if now > give_up {
            return Err(Error::NoAnswer("answer a command"));
        }
        events::wait(now.saturating_add(LOOK_NS));
    }
}
