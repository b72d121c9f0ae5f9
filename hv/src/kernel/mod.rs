//! The node: domains, their vCPUs and devices, and the loop of each core.
//!
//! There is one stack a core and no thread: a core picks a vCPU, runs it,
//! handles its exit and picks again. All state is behind one lock that is held
//! for short, bounded work only; a guest runs without it. While a vCPU runs,
//! the core owns it (it is taken out of its [`Guest`]), so a domain can be
//! ended on its own core only; other cores ask for it and kick.

mod audit;
mod build;
mod death;
mod device;
mod grant;
mod hypercall;
mod image;
mod ram;
mod restore;
mod takeover;

use alloc::vec::Vec;
use core::{
    cell::Cell,
    fmt::Write,
    sync::atomic::{AtomicU32, Ordering},
};

use hv_core::{
    domain::{ByDomain, Domain, Life},
    image::Images,
    memory::{Kind, Region},
    records::{Console, Deaths, LineQuota},
    sched::{Decision, Scheduler},
};
use ring_proto::{
    DomainId, PAGE_SIZE, Port, boot, bundle,
    crash::Reason,
    event::{self, EventPage},
    hypercall::{Error, HYPERVISOR, NodeInfo},
    layout,
};
use spin::{Mutex, MutexGuard, Once};

use crate::{
    apic, cpu, iommu, irq,
    paging::Table,
    serial, time,
    vt::{
        Exit, Vcpu,
        npt::Rights,
        svm::{self, SvmVcpu},
    },
};

pub use build::build;
pub use device::Devices;

const PAGE: u64 = PAGE_SIZE as u64;

static NODE: Once<Mutex<Node>> = Once::new();

/// What a hypercall returns.
type Answer = Result<u64, Error>;

/// Which domain each core has in guest mode, as number + 1; 0 = none. Set
/// under the lock, cleared as soon as the guest has exited.
static IN_GUEST: [AtomicU32; cpu::MAX_CORES] = [const { AtomicU32::new(0) }; cpu::MAX_CORES];

/// What somebody asked a domain's own core to do with it.
#[derive(Clone, Copy, Debug, Default)]
struct Orders {
    /// End the generation.
    end: Option<Reason>,
    /// What its device did, if that is the reason.
    event: Option<iommu::Event>,
    /// Then begin the next.
    start: bool,
}

/// What runs a domain.
#[derive(Debug)]
struct Guest {
    /// `None` while a core runs it.
    vcpu: Option<SvmVcpu>,
    nested: Table,
    /// Cached translations must go before the domain runs next.
    flush: bool,
    /// It sleeps in `wait`, which returns when it runs next.
    asleep: bool,
    orders: Orders,
    /// It was ordered to misbehave in this generation.
    injected: bool,
    /// Translations were taken away and caches are to be flushed; `true`: the
    /// devices', too.
    stale: Option<bool>,
    /// What it may put on the serial line.
    line: LineQuota,
    /// Pages that its generations found as they should not have.
    leftovers: u64,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
struct End {
    domain: DomainId,
    /// Which of the domain's ports it is.
    port: Port,
    /// Machine address of the end's page.
    page: u64,
}

#[derive(Debug)]
struct Connection {
    number: u16,
    config: bundle::Connection,
    frontend: End,
    backend: End,
    /// When the frontend may complain again, ns.
    no_complaint_before: u64,
}

impl Connection {
    /// A domain's own end and the other, if it has one.
    fn ends(&self, domain: DomainId) -> Option<(End, End)> {
        match (self.frontend, self.backend) {
            (own, peer) | (peer, own) if own.domain == domain => Some((own, peer)),
            _ => None,
        }
    }
}

/// What a domain may do with a region of its own address space.
fn rights(r: &Region) -> Rights {
    Rights { write: r.write, execute: r.execute, device: r.kind == Kind::Bar }
}

/// Everything that the hypervisor knows.
pub struct Node {
    /// A spare's are its principal's, and its own are not used.
    images: ByDomain<Images>,
    domains: ByDomain<Domain>,
    guests: ByDomain<Guest>,
    connections: Vec<Connection>,
    devices: Devices,
    sched: Scheduler,
    deaths: Deaths,
    console: Console,
    ram: ram::Ram,
    info: NodeInfo,
    /// When the IOMMU's event log is looked at next, ns.
    next_event_poll: u64,
}

/// Most ns between two writes to a serial line for which something waits.
const DRAIN: u64 = 1_000_000;
/// Least ns between two looks at the IOMMU's event log.
const EVENT_POLL: u64 = 5_000_000;
/// Most ns until an idle core looks.
const IDLE_EVENT_POLL: u64 = 50_000_000;

fn lock() -> MutexGuard<'static, Node> {
    // Boot calls `publish` before any core runs the node, so this does not wait.
    NODE.wait().lock()
}

/// Makes the node known to all cores.
pub fn publish(node: Node) {
    NODE.call_once(|| Mutex::new(node));
}

fn set_in_guest(core: u16, value: u32) {
    if let Some(place) = IN_GUEST.get(usize::from(core)) {
        place.store(value, Ordering::SeqCst);
    }
}

/// One more event that is counted; in 64 bits no counter ever wraps.
fn count(counter: &mut u64) {
    *counter = counter.wrapping_add(1);
}

enum Step {
    Run(DomainId, SvmVcpu, u64),
    Again,
    Idle(u64),
}

/// The loop of one core.
pub fn run(core: u16) -> ! {
    let armed = Cell::new(u64::MAX);
    let arm = |until: u64| {
        if until != armed.get() || until <= time::now_ns() {
            match until {
                u64::MAX => apic::disarm_timer(),
                _ => apic::arm_timer(until),
            }
            armed.set(until);
        }
    };
    // The domain that this core ran last.
    let mut last = None;
    let mut node = lock();
    loop {
        if node.take_interrupts(core) {
            // It may have been early (it counts about 4 s at most).
            armed.set(u64::MAX);
        }
        match node.step(core) {
            Step::Run(domain, mut vcpu, until) => {
                drop(node);
                if last.replace(domain) != Some(domain) {
                    svm::forget_branches();
                }
                let from = time::now_ns();
                arm(if serial::drain() { until.min(from.saturating_add(DRAIN)) } else { until });
                let exit = vcpu.run();
                set_in_guest(core, 0);
                let to = time::now_ns();
                if exit == Exit::Interrupt {
                    cpu::interrupt_window();
                }
                node = lock();
                node.ran(domain, vcpu, exit, to.saturating_sub(from), to);
            }
            Step::Again => {
                // Let others have the lock, and interrupts in.
                drop(node);
                cpu::interrupt_window();
                node = lock();
            }
            Step::Idle(until) => {
                drop(node);
                if serial::drain() {
                    cpu::interrupt_window();
                } else {
                    arm(until);
                    cpu::idle();
                }
                node = lock();
            }
        }
    }
}

impl Node {
    fn step(&mut self, core: u16) -> Step {
        let now = time::now_ns();
        if now >= self.next_event_poll {
            self.next_event_poll = now.saturating_add(EVENT_POLL);
            self.take_iommu_events();
        }
        if self.carry_out_orders(core, now) {
            return Step::Again;
        }
        match self.sched.pick(core, now) {
            Decision::Idle(until) => Step::Idle(until.min(now.saturating_add(IDLE_EVENT_POLL))),
            Decision::Run(domain, until) => {
                if let Life::Building(at) = self.domains[domain].life {
                    self.restore_step(domain, at);
                    let end = time::now_ns();
                    self.sched.charge(domain, end.saturating_sub(now), end);
                    return Step::Again;
                }
                let guest = &mut self.guests[domain];
                let Some(mut vcpu) = guest.vcpu.take() else {
                    // Cannot be: a vCPU is bound to one core, and this core runs none now.
                    self.sched.stop(domain);
                    return Step::Again;
                };
                if core::mem::take(&mut guest.asleep) {
                    vcpu.set_result(0, now);
                }
                if core::mem::take(&mut guest.flush) {
                    vcpu.flush_tlb();
                }
                set_in_guest(core, u32::from(domain).saturating_add(1));
                Step::Run(domain, vcpu, until)
            }
        }
    }

    fn ran(&mut self, domain: DomainId, vcpu: SvmVcpu, exit: Exit, ns: u64, now: u64) {
        self.guests[domain].vcpu = Some(vcpu);
        count(&mut self.domains[domain].info.exits);
        let begun = time::now_ns();
        self.sched.charge(domain, ns, now);
        match exit {
            Exit::Resume | Exit::Interrupt => {}
            Exit::Hypercall => self.hypercall(domain, now),
            Exit::NestedFault(address) => self.fault(domain, Reason::NestedFault, address, 0, now),
            Exit::Shutdown => self.fault(domain, Reason::Shutdown, 0, 0, now),
            Exit::Forbidden(code) => self.fault(domain, Reason::Forbidden, 0, code, now),
        }
        // A hypercall may have been `wait`, which feeds the watchdog.
        if self.sched.is_hung(domain) && self.domains[domain].is_alive() {
            self.fault(domain, Reason::Watchdog, 0, 0, now);
        }
        // What was done for it is part of its share.
        let end = time::now_ns();
        self.sched.charge(domain, end.saturating_sub(begun), end);
    }

    /// A device that reached for what is not its own ends its owner's
    /// generation.
    fn take_iommu_events(&mut self) {
        /// More than any log holds: what was there before is gone afterwards.
        const MOST: usize = 1024;
        /// Events of nobody, which are worth a line each.
        const NAMED: usize = 4;
        let mut strange = 0usize;
        for _ in 0..MOST {
            let Some((event, owner)) = self.devices.poll_event() else { break };
            let Some(owner) = owner else {
                strange = strange.saturating_add(1);
                if strange <= NAMED {
                    log::warn!("{event} is nobody's");
                }
                continue;
            };
            // The first one counts; and what an ended generation left in the
            // log is not its successor's.
            if self.domains[owner].is_alive() && self.guests[owner].orders.event.is_none() {
                // At once, for its core may take a while to end it.
                self.devices.quiesce(owner);
                let orders = &mut self.guests[owner].orders;
                (orders.end, orders.event) = (Some(Reason::IommuFault), Some(event));
                self.kick(self.domains[owner].info.core);
            }
        }
    }

    /// Turns interrupts that this core took into port events. Returns whether
    /// its timer was among them.
    fn take_interrupts(&mut self, core: u16) -> bool {
        let vectors = irq::take_pending(core.into());
        let mut timer = false;
        for (first, mut left) in [0, 64, 128, 192].into_iter().zip(vectors) {
            // A bit's number is below 64, that of no bit is 64.
            while let Ok(bit @ 0..64) = u8::try_from(left.trailing_zeros()) {
                left ^= 1 << bit;
                let vector = first | bit;
                timer |= vector == irq::TIMER;
                if (irq::DEVICE_FIRST..=irq::DEVICE_LAST).contains(&vector)
                    && let Some((domain, port)) = self.devices.fired(vector)
                {
                    count(&mut self.domains[domain].info.interrupts);
                    if self.raise(domain, port) {
                        self.devices.throttle(vector);
                    }
                }
            }
        }
        timer
    }

    /// The event page of a domain that is alive.
    fn events(&self, domain: DomainId) -> Result<&'static EventPage, Error> {
        let d = &self.domains[domain];
        let page = d.space.translate(layout::EVENT_PAGE, PAGE, true).filter(|_| d.is_alive());
        self.ram.events(page.ok_or(Error::BadState)?)
    }

    /// Sets a port bit in a domain's event page and wakes it. Returns whether
    /// the bit was set already: the domain has not looked since.
    fn raise(&mut self, domain: DomainId, port: Port) -> bool {
        let Ok(page) = self.events(domain) else { return false };
        let Some(word) = page.pending.get(usize::from(port / 64)) else { return false };
        let bit = 1 << (port % 64);
        let before = word.fetch_or(bit, Ordering::SeqCst);
        self.wake(domain);
        before & bit != 0
    }

    fn wake(&mut self, domain: DomainId) {
        if let Some(core) = self.sched.wake(domain) {
            self.kick(core);
        }
    }

    /// Has another core look at its queue.
    fn kick(&self, core: u16) {
        if usize::from(core) != cpu::core() {
            apic::send_kick(usize::from(core));
        }
    }

    /// Raises the supervisor's life-cycle port.
    fn tell_supervisor(&mut self) {
        let supervisor =
            self.domains.iter().find(|d| d.config.capabilities & boot::CAP_SUPERVISOR != 0);
        if let Some(id) = supervisor.map(|d| d.info.id) {
            self.raise(id, event::PORT_LIFECYCLE);
        }
    }

    /// Drops a domain's cached translations and returns once no core can use
    /// them any more: if the domain is in guest mode elsewhere, its core is
    /// interrupted, and it must pass this lock before it enters again.
    fn shoot_down(&mut self, domain: DomainId) {
        let guest = &mut self.guests[domain];
        if let Some(vcpu) = &mut guest.vcpu {
            vcpu.flush_tlb();
            return;
        }
        guest.flush = true;
        let core = usize::from(self.domains[domain].info.core);
        let Some(in_guest) = IN_GUEST.get(core) else { return };
        let inside = u32::from(domain).saturating_add(1);
        if core != cpu::core() && in_guest.load(Ordering::SeqCst) == inside {
            count(&mut self.info.shootdowns);
            apic::send_kick(core);
            // Bounded: an interrupt ends guest mode, and no guest can mask it.
            while in_guest.load(Ordering::SeqCst) == inside {
                core::hint::spin_loop();
            }
        }
    }

    /// Carries out what others asked of this core's domains.
    fn carry_out_orders(&mut self, core: u16, now: u64) -> bool {
        let mut any = false;
        for id in self.domains.ids() {
            // This comes at every exit, and most often there are none.
            let orders = self.guests[id].orders;
            if !(orders.start || orders.end.is_some()) || self.domains[id].info.core != core {
                continue;
            }
            any = true;
            self.guests[id].orders = Orders::default();
            if let Some(reason) = orders.end {
                self.end_on_order(id, reason, orders.event, now);
                let d = &mut self.domains[id];
                if !orders.start && d.life == Life::Dead && reason == Reason::Operator {
                    d.life = Life::Stopped;
                }
            }
            if orders.start
                && let Err(e) = self.begin(id)
            {
                log::warn!("{}: not started: {e:?}", self.domains[id].config.name);
            }
        }
        any
    }

    /// Ends a generation over something that the hypervisor saw.
    fn fault(&mut self, domain: DomainId, reason: Reason, address: u64, exit_code: u64, now: u64) {
        let report = self.describe(domain, reason);
        self.end(domain, reason, report, address, exit_code, now);
    }

    /// Says something to the console and into the log that outlives it.
    fn say(&mut self, text: core::fmt::Arguments<'_>) {
        log::info!("{text}");
        let mut line = heapless::String::<256>::new();
        // What does not fit is cut off.
        let _ = writeln!(line, "{text}");
        self.console.push(HYPERVISOR, 0, time::now_ns(), line.as_bytes());
    }
}
