//! Hypercalls: numbers, arguments, results and errors.
//!
//! Register convention (`VMMCALL`): number in RAX, arguments in RDI, RSI, RDX,
//! RCX, R8. On return RAX holds 0 or an [`Error`] code and RDX the value. No
//! other register changes. All addresses are guest-physical and must lie in
//! memory that the caller owns (image, heap, DMA pool), never in grants.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{DomainId, Generation};

macro_rules! numbered {
    ($(#[$m:meta])* $vis:vis enum $name:ident : $repr:ident { $($(#[$vm:meta])* $v:ident = $n:expr,)* }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr($repr)]
        $vis enum $name { $($(#[$vm])* $v = $n,)* }
        impl $name {
            /// The value for `n`, or `None` where no such number is defined.
            pub const fn from_raw(n: $repr) -> Option<Self> {
                match n { $($n => Some(Self::$v),)* _ => None }
            }
        }
    };
}
pub(crate) use numbered;

numbered! {
    /// Hypercall numbers.
    pub enum Nr: u64 {
        /// `(address, length ≤ 1024)`: append text to the domain's console.
        ConsoleWrite = 0,
        /// `(deadline_ns)`: sleep until an event is pending or the node's clock
        /// reaches the deadline; returns the time in ns. `u64::MAX` = no
        /// deadline. Returns at once if an event bit is already set. Every call
        /// feeds the watchdog.
        Wait = 1,
        /// `(port)`: signal the peer of the connection that `port` belongs to.
        Notify = 2,
        /// `(granter, first_ref, count ≤ 512, target, flags)`: map `count`
        /// consecutive grants at `target` in the caller's grant window.
        /// All or nothing. `flags`: [`MAP_WRITE`], [`MAP_DMA`].
        GrantMap = 3,
        /// `(target, count)`: unmap pages of the caller's grant window.
        GrantUnmap = 4,
        /// `(first_ref, count)`: withdraw own grants: entries are cleared, peer
        /// mappings and DMA end before the call returns. The grantee keeps its
        /// window address, backed by a scratch page.
        GrantRevoke = 5,
        /// `(address of [GrantCopyOp; n], n ≤ 32)`: copy between own memory and
        /// copy grants of others. Returns the number done before an error.
        GrantCopy = 6,
        /// `()`: give up the rest of the time slice.
        Yield = 7,
        /// `(code)`: end this generation in good order.
        Exit = 8,
        /// `(address, length)`: end this generation; a [`crate::crash::CrashReport`].
        Crash = 9,
        /// `(port)`: the backend of the connection that `port` belongs to does not
        /// complete the caller's requests, or broke the protocol. The supervisor is
        /// told. [`Error::Busy`] within [`COMPLAINT_NS`] of the connection's last
        /// complaint.
        Complain = 10,
        /// `(device slot, offset, width 1|2|4, write 0|1, value)`: configuration
        /// space of an owned function; writes are filtered.
        PciConfig = 16,
        /// `(device slot, MSI-X entry, port)`: route an MSI-X message to `port`;
        /// the entry stays masked until [`Nr::IrqUnmask`].
        IrqBind = 17,
        /// `(port)`: unmask the interrupt that is bound to `port`.
        IrqUnmask = 18,
        /// `(device slot, on 0|1)`: bus mastering.
        DeviceEnable = 19,
        /// `(address of [DomainInfo; n], n)`: returns the number of domains.
        DomainList = 32,
        /// `(domain)`: build and run a domain that is stopped or dead.
        Start = 33,
        /// `(domain, generation, reason)`: end that generation of a running domain. The
        /// reason is [`crate::crash::Reason::Stalled`], which counts as a death, or 0 for
        /// an operator's order. [`Error::NotFound`]: the domain has another generation by
        /// now, here and wherever a generation is named.
        Stop = 34,
        /// `(domain, generation)`: stop if alive, then start.
        Restart = 35,
        /// `(domain)`: mark as held: not startable until released.
        Hold = 36,
        /// `(domain)`: undo hold.
        Release = 37,
        /// `(address of [ConnectionInfo; n], n)`: returns the number of connections.
        ConnectionList = 38,
        /// `(sequence, address, length)`: a [`crate::crash::CrashRecord`]; the
        /// oldest kept one not below `sequence`.
        CrashRead = 39,
        /// `(domain, generation, kind)`: have a domain misbehave, see
        /// [`crate::event::Inject`].
        Inject = 40,
        /// `(cursor, address, length, domain, generation)`: console bytes from
        /// `cursor` on as [`LogHeader`] + text; returns the new cursor. `domain` is
        /// [`EVERY_DOMAIN`] or one whose text alone is wanted; then a `generation`
        /// other than 0 selects further.
        LogRead = 41,
        /// `(domain)`: check this domain's nested and IOMMU tables against
        /// hv-core's truth; returns the number of violations.
        Audit = 42,
        /// `(address of NodeInfo)`.
        NodeInfo = 43,
        /// `(0)`: power the node off in good order.
        Shutdown = 44,
        /// `(domain, generation, drain 0|1)`: have a domain check itself, or also finish
        /// its work and take no more; returns the check's number. Its answer appears in
        /// [`DomainInfo::health`].
        Check = 45,
        /// `(domain, offset, address, length ≤ 2048)`: part of the file that updates a
        /// domain ([`crate::bundle::IMAGE_MAGIC`]), at most where the parts before it
        /// end; what followed is forgotten. [`Error::BadState`] while an image is on
        /// trial, [`Error::Exhausted`] beyond the space for updates, [`Error::Busy`]
        /// while the part's place is still being restored from.
        ImageWrite = 46,
        /// `(domain, address, length)`: check the file that was written and put the
        /// image on trial, see [`Trial`]. [`Error::Busy`]: so far it is good; call again
        /// to have more of it checked. Returns 0, or why it is refused: so many bytes
        /// of text at `address`.
        ImageCommit = 47,
        /// `(domain, keep 0|1)`: end the trial of a domain's image. 1: it runs in that
        /// domain and is its image from now on. 0: not; whoever runs it is restarted with
        /// the one before.
        ImageJudge = 48,
    }
}

numbered! {
    /// Why a hypercall failed; the name says who erred.
    pub enum Error: u64 {
        /// Caller: no such hypercall.
        BadNumber = 1,
        /// Caller: an argument out of its range.
        BadArgument = 2,
        /// Caller: an address range not wholly in memory that it owns.
        BadAddress = 3,
        /// Caller: lacks the capability.
        NotPermitted = 4,
        /// Caller: names a domain, generation, device, port or grant that is not there.
        NotFound = 5,
        /// Peer: its domain is not alive.
        PeerDead = 6,
        /// Peer: its grant entry is not valid for this use.
        PeerGrant = 7,
        /// Caller: a limit of its own is reached.
        Exhausted = 8,
        /// Nobody: in use; try again after the present use ends.
        Busy = 9,
        /// Hardware: the device or IOMMU did not do as told.
        Hardware = 10,
        /// Caller: the domain is in a state that forbids this (held, running).
        BadState = 11,
    }
}

/// `GrantMap`: map writable.
pub const MAP_WRITE: u64 = 1;
/// `GrantMap`: reachable by the caller's devices too, at the same address.
pub const MAP_DMA: u64 = 2;
/// Most pages that one `GrantMap`, `GrantUnmap` or `GrantRevoke` takes.
pub const MAX_GRANT_BATCH: u64 = 512;
/// Most operations of one `GrantCopy`.
pub const MAX_COPY_BATCH: u64 = 32;
/// Least ns between two complaints of one connection.
pub const COMPLAINT_NS: u64 = 100_000_000;
/// `LogRead`: no selection.
pub const EVERY_DOMAIN: u64 = u64::MAX;
/// [`DomainInfo::spare_of`] and [`DomainInfo::complainant`]: nobody.
pub const NOBODY: DomainId = DomainId::MAX;
/// Most bytes of one `ImageWrite`.
pub const MAX_IMAGE_WRITE: u64 = 2048;
/// Most bytes of one `ConsoleWrite`.
pub const MAX_CONSOLE_WRITE: u64 = 1024;

/// One operation of [`Nr::GrantCopy`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GrantCopyOp {
    /// The other domain.
    pub peer: u16,
    /// 0: from the grant to own memory; 1: from own memory to the grant.
    pub to_grant: u16,
    /// The peer's grant.
    pub gref: u32,
    /// Byte offset within the granted page.
    pub offset: u32,
    /// Bytes; `offset + len ≤ 4096`.
    pub len: u32,
    /// Own guest-physical address.
    pub local: u64,
}

numbered! {
    /// Life-cycle state of a domain.
    pub enum DomainState: u32 {
        /// Never started, exited or stopped.
        Stopped = 0,
        /// Running or waiting.
        Running = 1,
        /// Died; waiting for a decision.
        Dead = 2,
        /// Held: not to be started until released.
        Held = 3,
    }
}

numbered! {
    /// Where a domain's new image is on trial. A trial ends with
    /// [`Nr::ImageJudge`], or with the generation that runs it: then the next one
    /// has the image before.
    pub enum Trial: u32 {
        /// There is none.
        None = 0,
        /// Nobody runs it yet; the next generation of the domain's spare will, or
        /// that of the domain if it has no spare.
        Due = 1,
        /// Here: this domain runs it or is being built of it.
        Here = 2,
        /// The spare does, or for a spare, its principal.
        Elsewhere = 3,
    }
}

/// What the supervisor sees of a domain.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DomainInfo {
    /// Domain number.
    pub id: u16,
    /// Core on which it runs.
    pub core: u16,
    /// [`DomainState`].
    pub state: u32,
    /// Present generation, or the coming one while the domain does not run. From 1.
    pub generation: u32,
    /// Deaths since the node's boot.
    pub deaths: u32,
    /// [`crate::crash::Reason`] of the last death.
    pub last_reason: u32,
    /// How far this generation is: 0, or what it last said in
    /// [`crate::event::EventPage::ready`].
    pub ready: u32,
    /// Memory in bytes, all of it (image, heap, tables, DMA pool).
    pub memory: u64,
    /// When this generation was started, ns on the node's clock.
    pub started_ns: u64,
    /// When the last death was seen, ns on the node's clock; 0 = never.
    pub died_ns: u64,
    /// CPU time, ns, all generations.
    pub cpu_ns: u64,
    /// Exits to the hypervisor, all generations.
    pub exits: u64,
    /// Hypercalls among them.
    pub hypercalls: u64,
    /// `notify` calls among them.
    pub notifies: u64,
    /// Device interrupts delivered.
    pub interrupts: u64,
    /// Restart policy from the manifest, see [`crate::bundle::Restart`].
    pub restart_floor_ms: u32,
    /// Likewise.
    pub restart_backoff_percent: u32,
    /// Likewise.
    pub restart_budget: u32,
    /// Likewise.
    pub restart_window_s: u32,
    /// Likewise; 1 = automatic.
    pub restart_automatic: u16,
    /// Likewise.
    pub word_s: u16,
    /// Complaints about this domain, all generations.
    pub complaints: u32,
    /// When the last one came, ns on the node's clock.
    pub complained_ns: u64,
    /// When it was last released from a hold, ns on the node's clock; 0 = never.
    pub released_ns: u64,
    /// From whom it came; [`NOBODY`]: there was none.
    pub complainant: u16,
    /// It is the warm spare of this domain; [`NOBODY`]: it is no spare.
    pub spare_of: u16,
    /// Number of the last check that was ordered, all generations; 0 = none. With
    /// [`crate::event::DRAIN`] if this generation is to finish its work.
    pub check: u32,
    /// What [`crate::event::EventPage::health`] says now.
    pub health: u32,
    /// Pages of its grant window that are in use.
    pub mapped: u32,
    /// Its grants that others have mapped.
    pub granted: u32,
    /// [`crate::crash::Reset`] with which its last life began.
    pub reset: u16,
    /// Resets of its devices by the hypervisor, of function or bus.
    pub resets: u16,
    /// [`Trial`] of an image for this domain, or its principal.
    pub trial: u32,
    /// [`crate::bundle::Image::crc`] of what it runs, or ran last.
    pub image_crc: u32,
    /// The same of what it is to run, but for a trial.
    pub good_crc: u32,
    /// Devices that it owns.
    pub devices: u16,
    /// Restart policy from the manifest, see [`crate::bundle::Restart`].
    pub check_ms: u16,
    /// [`crate::bundle::Domain::update_space`].
    pub update_space: u64,
    /// Name from the manifest, NUL-padded.
    pub name: [u8; 24],
}

/// What the supervisor sees of a connection.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConnectionInfo {
    /// Connection number: its place in the manifest.
    pub id: u16,
    /// [`crate::conn::Protocol`].
    pub protocol: u16,
    /// Frontend's domain.
    pub frontend: u16,
    /// Backend's domain.
    pub backend: u16,
    /// [`crate::conn::State`] that the frontend's page shows.
    pub frontend_state: u32,
    /// [`crate::conn::State`] that the backend's page shows.
    pub backend_state: u32,
}

/// What the supervisor sees of the node.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NodeInfo {
    /// Cores in use.
    pub cores: u32,
    /// Domains in the manifest.
    pub domains: u32,
    /// RAM that the firmware reported usable, bytes.
    pub memory: u64,
    /// RAM not given to anybody, bytes.
    pub free: u64,
    /// ns since the hypervisor's entry.
    pub now_ns: u64,
    /// Sequence number that the next crash record will get.
    pub next_crash: u64,
    /// TLB shootdowns (a running domain was interrupted for one).
    pub shootdowns: u64,
    /// Entries to a domain that flushed its cached translations.
    pub tlb_flushes: u64,
    /// IOTLB invalidations.
    pub iotlb_flushes: u64,
}

/// Precedes each piece of text that [`Nr::LogRead`] returns.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LogHeader {
    /// Domain that wrote it; [`HYPERVISOR`] for the hypervisor.
    pub domain: DomainId,
    /// Bytes of text that follow.
    pub len: u16,
    /// The writer's generation.
    pub generation: Generation,
    /// Node clock, ns.
    pub time_ns: u64,
}

/// Stands for the hypervisor where a domain number is expected.
pub const HYPERVISOR: DomainId = 0xffff;
