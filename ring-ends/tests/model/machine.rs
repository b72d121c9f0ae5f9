//! The machine around the two ends: their pages, the ring, grants, mappings,
//! events, the clock, and what the hypervisor does when a generation ends.
//!
//! The hypervisor does one thing at a time, so each hypercall is one step. A
//! domain's accesses to shared memory are a step each, and so is each thing
//! that the hypervisor does at a death: the other domain runs meanwhile.

use ring_ends::Env;
use ring_proto::conn::{self, HELLO_MAX, Pages};
use ring_proto::hypercall::Error;
use ring_proto::shm::SharedMem;
use ring_proto::{DomainId, GrantRef, PAGE_SIZE, Port};
use std::cell::RefCell;
use std::rc::Rc;

/// Ends by number; their page is the region of that number.
pub const FRONT: usize = 0;
pub const BACK: usize = 1;
/// Regions of memory: the frontend's ring and pool, and the backend's window.
pub const RING: u32 = 2;
pub const POOL: u32 = 3;
pub const RING_WINDOW: u32 = 4;
pub const POOL_WINDOW: u32 = 5;
pub const PORT: Port = 16;
/// Words of the ring: a request and its response.
pub const REQUEST: usize = 0;
pub const RESPONSE: usize = 4;
/// What a backend finds in a page whose grant was revoked.
pub const JUNK: u32 = 0xdead_beef;

/// One end's page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Page {
    /// State, generation, epoch, the pair that is answered, the hello's length.
    pub words: [u32; 6],
    /// The hello without the zeroes at its end.
    hello: Vec<u8>,
}

/// A life of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    Running,
    /// The hypervisor ends the generation and did this many things so far.
    Ending(usize),
    Dead,
}

/// Which use of a granted page: the frontend's generation, and a number of
/// its offer within it.
pub type Use = (u32, u32);

/// A page of the backend's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mapping {
    pub granted: Use,
    /// It leads to a page of junk now.
    pub revoked: bool,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// ns.
    pub clock: u64,
    pub pages: [Page; 2],
    pub lives: [Life; 2],
    /// Generations, as the hypervisor knows them.
    pub generations: [u32; 2],
    pub events: [bool; 2],
    /// The request and the response in the frontend's memory.
    pub ring: [u32; 2],
    /// Offers of the frontend's generation.
    pub offers: u32,
    /// The frontend's grants: ring, pool.
    pub grants: [Option<Use>; 2],
    /// The backend's window: ring, pool.
    pub window: [Option<Mapping>; 2],
    /// The backend's device works on the pool.
    pub dma: bool,
    /// What must never happen and did.
    pub wrong: Option<&'static str>,
}

impl World {
    /// Nobody has run yet.
    pub fn new() -> Self {
        let mut world = Self {
            clock: 1,
            pages: [Page::default(), Page::default()],
            lives: [Life::Running; 2],
            generations: [1; 2],
            events: [false; 2],
            ring: [0; 2],
            offers: 0,
            grants: [None; 2],
            window: [None; 2],
            dma: false,
            wrong: None,
        };
        for end in [FRONT, BACK] {
            for (at, word) in conn::closed(1) {
                world.pages[end].words[at / 4] = word;
            }
        }
        world
    }

    /// The hypervisor ends one generation at a time, under its lock.
    pub fn is_locked(&self) -> bool {
        self.lives.iter().any(|life| matches!(life, Life::Ending(_)))
    }

    /// The next thing that the hypervisor does at the death of `end`: as
    /// `Node::end` of the hypervisor, in its order.
    pub fn end_step(&mut self, end: usize, done: usize) {
        let coming = self.generations[end] + 1;
        let words = conn::closed(coming);
        if let Some(&(at, word)) = words.get(done) {
            self.pages[end].words[at / 4] = word;
        } else if done == words.len() {
            if end == BACK {
                // Bus mastering off, IOMMU context emptied; then unmapped.
                self.dma = false;
                self.window = [None; 2];
            } else {
                self.revoke(0..2);
            }
        } else {
            self.events[1 - end] |= self.lives[1 - end] == Life::Running;
            self.generations[end] = coming;
            self.lives[end] = Life::Dead;
            return;
        }
        self.lives[end] = Life::Ending(done + 1);
    }

    fn revoke(&mut self, which: std::ops::Range<usize>) {
        for i in which {
            self.grants[i] = None;
            if let Some(mapping) = &mut self.window[i] {
                mapping.revoked = true;
            }
        }
    }

    /// The device ends its work: it wrote into the pool until now.
    pub fn device_step(&mut self) {
        self.dma = false;
        self.events[BACK] = true;
        if self.window[1].is_none() {
            self.wrong = Some("the device works on memory that is not mapped (CONN-11)");
        }
    }

    /// What a pair's requests look like in the ring: never zero, never junk.
    pub fn mark(pair: conn::Pair) -> u32 {
        1 << 31 | (pair.generation & 0xff) << 16 | pair.epoch & 0xffff
    }

    fn window_word(&mut self, at: usize, store: Option<u32>) -> u32 {
        let Some(mapping) = self.window[0] else {
            self.wrong = Some("the backend touches memory that is not mapped");
            return JUNK;
        };
        if mapping.revoked {
            return JUNK;
        }
        if let Some(word) = store {
            self.ring[at / 4] = word;
        }
        self.ring[at / 4]
    }
}

/// What a step of an end got to know; kept until the call that it belongs to
/// is over, to come as far again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    Word(u32),
    Bytes(Vec<u8>),
    Time(u64),
    Call(Result<(), Error>),
    Nothing,
}

/// How finely steps are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// Every access to shared memory and every hypercall is a step.
    Access,
    /// Steps begin at hypercalls, at stores and loads of `state`, and at
    /// accesses to the ring; the rest goes with the step before.
    Call,
}

/// Thrown through an end's code where its step is over.
pub struct StepOver;

/// A machine in which one end goes one step.
pub struct Stepper {
    world: World,
    grain: Grain,
    me: usize,
    seen: Vec<Seen>,
    /// How many of `seen` the call asked for again.
    replayed: usize,
    /// The step that may be taken was taken.
    spent: bool,
    /// The hypervisor is busy with something else.
    blocked: bool,
}

/// The machine as the ends' code sees it.
#[derive(Clone)]
pub struct Machine(Rc<RefCell<Stepper>>);

impl Machine {
    pub fn new() -> Self {
        let stepper = Stepper {
            world: World::new(),
            grain: Grain::Access,
            me: FRONT,
            seen: Vec::new(),
            replayed: 0,
            spent: false,
            blocked: false,
        };
        Self(Rc::new(RefCell::new(stepper)))
    }

    /// Before a step of `me`, which has come as far as `seen` in its call.
    pub fn begin(&self, world: World, grain: Grain, me: usize, seen: Vec<Seen>) {
        *self.0.borrow_mut() =
            Stepper { world, grain, me, seen, replayed: 0, spent: false, blocked: false };
    }

    /// After it: the machine, what was seen, and whether the step was taken.
    pub fn finish(&self) -> (World, Vec<Seen>, bool) {
        let mut this = self.0.borrow_mut();
        let world = std::mem::replace(&mut this.world, World::new());
        (world, std::mem::take(&mut this.seen), !this.blocked)
    }

    /// Notes what must never happen.
    pub fn wrong(&self, what: &'static str) {
        self.0.borrow_mut().world.wrong = Some(what);
    }

    /// Whether the device works on the pool.
    pub fn dma(&self) -> bool {
        self.0.borrow().world.dma
    }

    /// Gives the device something to do.
    pub fn start_dma(&self) {
        self.0.borrow_mut().world.dma = true;
    }

    /// An access or a hypercall: done now, known from before, or not yet.
    fn act(&self, begins: bool, hypercall: bool, act: impl FnOnce(&mut World) -> Seen) -> Seen {
        let mut this = self.0.borrow_mut();
        let this = &mut *this;
        if let Some(seen) = this.seen.get(this.replayed) {
            this.replayed += 1;
            return seen.clone();
        }
        let begins = begins || this.grain == Grain::Access;
        if begins && !this.spent && hypercall && this.world.is_locked() {
            this.blocked = true;
        }
        if begins && (this.spent || this.blocked) {
            // Not `panic!`: nothing went wrong, so nothing is printed.
            std::panic::resume_unwind(Box::new(StepOver));
        }
        this.spent |= begins;
        let seen = act(&mut this.world);
        this.seen.push(seen.clone());
        this.replayed += 1;
        seen
    }

    fn word(&self, begins: bool, act: impl FnOnce(&mut World) -> u32) -> u32 {
        match self.act(begins, false, |world| Seen::Word(act(world))) {
            Seen::Word(word) => word,
            other => unreachable!("replay went another way: {other:?}"),
        }
    }

    fn call(&self, act: impl FnOnce(&mut World) -> Result<(), Error>) -> Result<(), Error> {
        match self.act(true, true, |world| Seen::Call(act(world))) {
            Seen::Call(result) => result,
            other => unreachable!("replay went another way: {other:?}"),
        }
    }

    fn me(&self) -> usize {
        self.0.borrow().me
    }
}

impl ring_proto::stepped::Memory for Machine {
    fn load(&self, region: u32, at: usize) -> u32 {
        match region {
            // Nobody else writes the own page while its owner lives.
            0 | 1 if region as usize == self.me() => {
                self.0.borrow().world.pages[region as usize].words[at / 4]
            }
            0 | 1 => self.word(at == 0, |world| world.pages[region as usize].words[at / 4]),
            RING => self.word(true, |world| world.ring[at / 4]),
            RING_WINDOW => self.word(true, |world| world.window_word(at, None)),
            _ => unreachable!("load of {region}"),
        }
    }

    fn store(&self, region: u32, at: usize, value: u32) {
        let _ = match region {
            0 | 1 => self.act(at == 0, false, |world| {
                world.pages[region as usize].words[at / 4] = value;
                Seen::Nothing
            }),
            RING => self.act(true, false, |world| {
                world.ring[at / 4] = value;
                world.offers += u32::from((at, value) == (REQUEST, 0));
                Seen::Nothing
            }),
            RING_WINDOW => self.act(true, false, |world| {
                world.window_word(at, Some(value));
                Seen::Nothing
            }),
            _ => unreachable!("store to {region}"),
        };
    }

    fn get(&self, region: u32, at: usize, to: &mut [u8]) {
        assert_eq!(at, size_of::<conn::EndPage>() - HELLO_MAX);
        // In two halves, so that a hello can be read torn.
        let (first, second) = to.split_at_mut(to.len() / 2);
        let mut done = 0;
        for half in [first, second] {
            let seen = self.act(false, false, |world| {
                let hello = &world.pages[region as usize].hello;
                Seen::Bytes(
                    (done..done + half.len()).map(|i| *hello.get(i).unwrap_or(&0)).collect(),
                )
            });
            let Seen::Bytes(bytes) = seen else { unreachable!("replay went another way") };
            half.copy_from_slice(&bytes);
            done += half.len();
        }
    }

    fn put(&self, region: u32, _: usize, from: &[u8]) {
        let used = from.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        for done in [used / 2, used] {
            let _ = self.act(false, false, |world| {
                let hello = &mut world.pages[region as usize].hello;
                if hello.len() < used {
                    hello.resize(used, 0);
                }
                hello[..done].copy_from_slice(&from[..done]);
                if done == used {
                    hello.truncate(used);
                }
                Seen::Nothing
            });
        }
    }
}

impl Env for Machine {
    fn now_ns(&self) -> u64 {
        let mut this = self.0.borrow_mut();
        if let Some(Seen::Time(time)) = this.seen.get(this.replayed).cloned() {
            this.replayed += 1;
            return time;
        }
        // Goes with the step before it.
        let time = this.world.clock;
        this.seen.push(Seen::Time(time));
        this.replayed += 1;
        time
    }

    fn notify(&mut self, _: Port) {
        let peer = 1 - self.me();
        let _ = self.call(|world| {
            world.events[peer] |= world.lives[peer] == Life::Running;
            Ok(())
        });
    }

    fn complain(&mut self, _: Port) {
        // No frontend of the model is told to complain.
    }

    fn grant(&mut self, gref: GrantRef, _: u64, _: DomainId, _: u64) {
        let _ = self.act(false, false, |world| {
            let use_ = (world.generations[FRONT], world.offers);
            if world.grants[gref as usize].replace(use_).is_some() {
                world.wrong = Some("a grant is written over one that was not revoked (GRANT-4)");
            }
            Seen::Nothing
        });
    }

    fn revoke(&mut self, first: GrantRef, count: u32) -> Result<(), Error> {
        let first = first as usize;
        self.call(|world| {
            world.revoke(first..first + count as usize);
            Ok(())
        })
    }

    fn map(
        &mut self,
        _: DomainId,
        first: GrantRef,
        _: u32,
        page: u32,
        _: u64,
    ) -> Result<SharedMem, Error> {
        let (i, at) = (first as usize, page as usize);
        self.call(|world| {
            if world.lives[FRONT] != Life::Running {
                return Err(Error::PeerDead);
            }
            let granted = world.grants[i].ok_or(Error::PeerGrant)?;
            if world.window[at].replace(Mapping { granted, revoked: false }).is_some() {
                world.wrong = Some("a page of the window is mapped twice");
            }
            Ok(())
        })?;
        Ok(SharedMem::stepped(if at == 0 { RING_WINDOW } else { POOL_WINDOW }, PAGE_SIZE))
    }

    fn unmap(&mut self, page: u32, _: u32) -> Result<(), Error> {
        self.call(|world| world.window[page as usize].take().map(|_| ()).ok_or(Error::BadArgument))
    }
}

/// The pages as `me` sees them.
pub fn pages(me: usize) -> Pages {
    let page = |end: usize| SharedMem::stepped(end as u32, PAGE_SIZE);
    Pages::new(page(me), page(1 - me)).expect("a whole page")
}
