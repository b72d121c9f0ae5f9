//! The switch between the connections of this domain and the wire.
//!
//! One loop moves frames: from the NIC to guests, from guests to the NIC and to
//! each other. Each source of frames gets a bounded turn, in proportion to its
//! connection's weight and within its limits: what a guest sends waits for them,
//! what goes to it is lost, as on a wire that is too slow.

use alloc::{boxed::Box, vec::Vec};

use domain_rt::{
    conn::{self, Connection},
    env::{self, DomainEnv},
    events,
    panic::{give_up, stalled},
    random,
    refuse::{Refusal, Why, why},
    set_in_flight, set_ready, set_served, stand_by,
    time::{MS, NEVER, now_ns},
};
use io_limits::{Bucket, Limiter, Turns};
use net_switch::{Drop, FloodLimit, Port, Switch, Targets, Verdict, inspect};
use ring_ends::{
    Window,
    net::{Backend, BackendConfig, Tag, TxFrame, Vif},
};
use ring_proto::{
    boot::BootInfo,
    conn::{Protocol, Role},
    net::{FEATURE_TX_CSUM, MAX_FRAME, MAX_SEGMENTS, Status},
};

use crate::{
    checksum,
    device::{Buffers, Checksum, MAX_HEAD, Piece, VirtioNet},
};

/// Frames that the wire may bring in one turn.
const RX_TURN: usize = 64;
/// What a frame costs beside its bytes: a small one is not free.
const FRAME_COST: u64 = 512;
/// Work that a connection of weight 256 may do in one turn: 32 full frames.
const QUANTUM: u64 = 32 * (MAX_FRAME as u64 + FRAME_COST);
/// Bytes that are copied of a long frame: all headers that a rule may look at
/// (Ethernet, VLAN, IPv4 with options or IPv6, TCP), so that the guest cannot
/// change them after the check. [`inspect`] refuses what would lie beyond.
const HEAD: usize = 128;
/// Frames that the NIC sends at a time.
const COOKIES: u32 = 128;
/// Busy turns between two looks at the handshakes.
const POLL_TURNS: u32 = 32;
/// A NIC that finished nothing for so long is asked whether it gave up.
const POLL_NS: u64 = 100 * MS;
/// Sent frames that are worth an interrupt: who sent one rarely waits for its
/// buffer.
const SENT_BATCH: u16 = 16;
/// Fewer are taken back after this time, if nothing else happens before.
const SENT_NS: u64 = MS / 2;
/// A NIC that finished nothing for so long is given up.
const STUCK_NS: u64 = 30_000 * MS;
/// A NIC that sent nothing for so long, with frames to send, does not work, if a
/// guest has complained.
const IDLE_NS: u64 = 1000 * MS;
/// Pages for the rings of one connection.
const RING_PAGES: u32 = 16;
/// Most pages of a connection's pool.
const POOL_PAGES: u32 = 2048;
/// Largest payload of a frame.
const MTU: u16 = 1500;

/// At most half of a neighbour's buffers at once, and far more than what a
/// station that means no harm asks for.
const VIF_FLOODS: FloodLimit = FloodLimit { per_second: 500, burst: 64 };
const WIRE_FLOODS: FloodLimit = FloodLimit { per_second: 5000, burst: 1000 };

/// A connection.
struct Client {
    connection: Connection,
    backend: Backend,
    /// Of what goes to the guest.
    rx_limits: Limiter,
    /// Frames that were lost over `rx_limits`.
    rx_lost: u64,
    /// How often the log may name it.
    complaints: Bucket,
    /// Was connected at the last look; for the log.
    connected: bool,
    /// How often the log may say so: a guest can come and go without end.
    comings: Bucket,
}

/// Serves the domain's first device for ever.
pub fn run(boot: &'static BootInfo) -> ! {
    // A spare stands by with all that takes neither the NIC nor a guest.
    let buffers = Buffers::new();
    let plan = Box::new(Plan::new(boot));
    stand_by();
    let nic = match buffers.and_then(|buffers| VirtioNet::open(0, buffers)) {
        Ok(nic) => nic,
        // The next life begins with a harder reset; the supervisor holds this
        // domain if that does not help.
        Err(error) => stalled(format_args!("no NIC: {error}")),
    };
    Service::new(nic, plan).run()
}

/// Who is to be served: as the manifest has it, before anybody is there.
struct Plan {
    switch: Switch,
    turns: Turns,
    /// By number, as in `switch` and `turns`.
    vifs: Vec<(Connection, Window)>,
    refused: Vec<(Connection, Why)>,
}

impl Plan {
    fn new(boot: &BootInfo) -> Self {
        let mut this = Self {
            switch: Switch::new(VIF_FLOODS, WIRE_FLOODS, random::seed()),
            // What waits is bounded by the NIC's queue, and all frames are short.
            turns: Turns::new(QUANTUM, u64::MAX),
            vifs: Vec::new(),
            refused: Vec::new(),
        };
        let connections: Vec<Connection> = conn::all(Protocol::Net, Role::Backend).collect();
        let served = u32::try_from(connections.len()).unwrap_or(u32::MAX).max(1);
        let share = boot.grant_window_pages.checked_div(served).unwrap_or(0);
        let pool_pages = POOL_PAGES.min(share.saturating_sub(RING_PAGES));
        for connection in connections {
            if let Err(why) = this.add(connection, pool_pages) {
                this.refused.push((connection, why));
            }
        }
        this
    }

    /// Adds a connection.
    fn add(&mut self, connection: Connection, pool_pages: u32) -> Result<(), Why> {
        let window = (env::alloc_window(RING_PAGES), env::alloc_window(pool_pages));
        let (Some(ring_page), Some(pool_page), 1..) = (window.0, window.1, pool_pages) else {
            return Err(why(format_args!("the grant window is too small")));
        };
        let boot = connection.boot;
        let mac = boot.mac;
        let vif = self
            .switch
            .add_vif(mac, &boot.addresses)
            .map_err(|error| why(format_args!("its address {mac:02x?} does not do: {error:?}")))?;
        // As many as the switch has vifs, and in the same order.
        let turn = self.turns.add(boot.weight, Limiter::new(&boot.limits));
        if turn != Some(vif) || vif != self.vifs.len() {
            return Err(why(format_args!("there are too many connections")));
        }
        log::info!("vif {mac:02x?} for {}", connection.peer_name());
        let window = Window { ring_page, ring_pages: RING_PAGES, pool_page, pool_pages };
        self.vifs.push((connection, window));
        Ok(())
    }
}

struct Service {
    nic: VirtioNet,
    switch: Switch,
    /// By number, as in `switch` and `turns`.
    clients: Vec<Client>,
    turns: Turns,
    refused: Vec<Refusal>,
    /// By cookie: whose frame the NIC is sending.
    sent: Box<[Option<(usize, Tag)>]>,
    free_cookies: Vec<u32>,
    last_sent: u64,
    /// A guest got an answer or a frame.
    served: bool,
    frame: Box<[u8; MAX_FRAME as usize]>,
    env: DomainEnv,
}

impl Service {
    fn new(nic: VirtioNet, plan: Box<Plan>) -> Self {
        let features = if nic.fills_checksums() { FEATURE_TX_CSUM } else { 0 };
        let client = |(connection, window)| Client::new(connection, window, features);
        let refusal = |(connection, why)| Refusal::new(connection, why);
        Self {
            nic,
            clients: plan.vifs.into_iter().map(client).collect(),
            refused: plan.refused.into_iter().map(refusal).collect(),
            switch: plan.switch,
            turns: plan.turns,
            sent: (0..COOKIES).map(|_| None).collect(),
            free_cookies: (0..COOKIES).collect(),
            last_sent: now_ns(),
            served: false,
            frame: Box::new([0; MAX_FRAME as usize]),
            env: DomainEnv,
        }
    }

    fn run(&mut self) -> ! {
        self.nic.interrupts_off();
        set_ready();
        let mut turns = 0u32;
        loop {
            turns = turns.wrapping_add(1);
            // The interrupt and notifications only end the sleep: every turn
            // looks at everything.
            let _ = events::take_all();
            let now = now_ns();
            let mut busy = self.completions(now);
            busy |= self.receive_frames(now);
            busy |= self.serve_guests(now);
            if busy {
                self.nic.kick();
                for client in &mut self.clients {
                    client.backend.push_responses(&mut self.env);
                }
                if self.served {
                    set_served();
                }
            }
            set_in_flight(self.sent.len().saturating_sub(self.free_cookies.len()));
            // A poll asks for notifications, which cost the guests an exit
            // each, so while there is work anyway it comes seldom.
            if busy && !turns.is_multiple_of(POLL_TURNS) {
                events::breathe();
                continue;
            }
            let (again, deadline) = self.poll(now);
            let again = self.attend(now) || again;
            if busy || again {
                events::breathe();
            } else if !self.nic.interrupts_on(self.sent_to_wait_for()) {
                events::wait(deadline);
                self.nic.interrupts_off();
            }
        }
    }

    /// Looks after handshakes. Returns whether to go on without a sleep, and
    /// when to look again at the latest.
    fn poll(&mut self, now: u64) -> (bool, u64) {
        let mut again = false;
        let mut deadline = NEVER;
        for (index, client) in self.clients.iter_mut().enumerate() {
            let was_up = client.backend.is_connected();
            let progress = client.backend.poll(&mut self.env);
            client.tell();
            deadline = deadline.min(progress.deadline.unwrap_or(NEVER));
            if progress.again {
                self.turns.wake(index);
                // Frames that wait for the guest's limits are no reason to go on.
                again |= !(was_up && client.backend.is_connected());
            }
        }
        for refused in &mut self.refused {
            refused.poll(&mut self.env);
        }
        again |= self.turns.wants_round();
        deadline = deadline.min(self.turns.deadline().unwrap_or(NEVER));
        if self.nic.in_flight() == 0 {
            self.last_sent = now;
        } else {
            let idle = now.saturating_sub(self.last_sent);
            // Its status is looked at only then, for that is slow.
            if idle > STUCK_NS || (idle > POLL_NS && self.nic.needs_reset()) {
                stalled(format_args!("the NIC does not answer"));
            }
            // An interrupt that was lost is noticed then, too.
            deadline = deadline.min(now.saturating_add(SENT_NS));
        }
        // Frames that wait for room go on after a completion, which wakes us.
        (again && self.has_room(), deadline)
    }

    /// Answers the supervisor, if it wants to know something. The turn that
    /// ends here looked at every ring and at the device. Returns whether to go
    /// on without a sleep.
    fn attend(&mut self, now: u64) -> bool {
        let Some(check) = events::check() else { return false };
        if check.drain {
            let mut again = false;
            for client in &mut self.clients {
                again |= client.backend.leave();
            }
            if self.clients.iter().all(|client| client.backend.has_left()) {
                events::answer(check, true);
            }
            return again;
        }
        let sends = self.nic.in_flight() == 0 || now.saturating_sub(self.last_sent) < IDLE_NS;
        events::answer(check, sends && !self.nic.needs_reset());
        false
    }

    /// How many frames the NIC should have sent before it interrupts a sleep:
    /// a batch, unless guests wait for room.
    fn sent_to_wait_for(&self) -> u16 {
        let in_flight = self.nic.in_flight();
        match in_flight {
            0 => 0,
            _ if self.has_room() => in_flight.max(SENT_BATCH),
            _ => in_flight.div_ceil(2),
        }
    }

    fn has_room(&self) -> bool {
        self.nic.has_room() && !self.free_cookies.is_empty()
    }

    /// Takes back what the NIC has sent.
    fn completions(&mut self, now: u64) -> bool {
        let mut any = false;
        loop {
            match self.nic.next_sent() {
                Ok(Some(cookie)) => self.finish(cookie),
                Ok(None) => break,
                // The device is reset by the next generation.
                Err(_) => give_up(format_args!("the NIC broke the rules of its tx queue")),
            }
            any = true;
        }
        if any {
            self.last_sent = now;
        }
        any
    }

    fn finish(&mut self, cookie: u32) {
        let Some((client, tag)) = self.sent.get_mut(cookie as usize).and_then(Option::take) else {
            return;
        };
        self.free_cookies.push(cookie);
        if let Some(client) = self.clients.get_mut(client) {
            self.served = true;
            client.backend.complete_tx(tag, Status::Ok);
        }
    }

    /// Brings frames from the wire to the guests.
    fn receive_frames(&mut self, now: u64) -> bool {
        for done in 0..RX_TURN {
            let len = match self.nic.receive(&mut self.frame[..]) {
                Ok(Some(len)) => len,
                Ok(None) => return done > 0,
                Err(_) => give_up(format_args!("the NIC broke the rules of its rx queue")),
            };
            let Some(frame) = self.frame.get(..len) else { continue };
            if let Verdict::To(targets) = self.switch.forward(Port::Wire, frame, len, None, now) {
                self.served |= deliver(&mut self.clients, targets, frame, now);
            }
        }
        true
    }

    /// Takes frames of the guests, turn by turn.
    fn serve_guests(&mut self, now: u64) -> bool {
        let mut any = false;
        self.turns.begin_round();
        // A frame that is taken must go somewhere, and the wire is the only
        // place that can be full.
        while self.has_room()
            && let Some(index) = self.turns.pick(now)
        {
            let Some(frame) = self.clients.get_mut(index).and_then(|c| c.backend.next_tx()) else {
                self.turns.empty(index);
                continue;
            };
            any = true;
            let len = u64::from(frame.len);
            self.turns.charge(index, len.saturating_add(FRAME_COST), 1, len);
            if let Some(status) = self.forward(index, &frame, now)
                && let Some(client) = self.clients.get_mut(index)
            {
                self.served = true;
                client.backend.complete_tx(frame.tag, status);
            }
        }
        any
    }

    /// Sends a guest's frame where it belongs. `None`: the NIC has it, and it
    /// is completed later.
    fn forward(&mut self, index: usize, frame: &TxFrame, now: u64) -> Option<Status> {
        let len = frame.len as usize;
        let Some(client) = self.clients.get(index) else { return Some(Status::Invalid) };
        // The copy decides, and the copy is sent: the guest can change what
        // lies in its memory meanwhile.
        let head_len = if len <= MAX_HEAD { len } else { HEAD };
        let Some(head) = self.frame.get_mut(..head_len) else { return Some(Status::Invalid) };
        if client.backend.copy_head(frame, head) != head_len {
            return Some(Status::Dropped);
        }
        let sum = frame.checksum.map(|c| inspect::Checksum { start: c.start, offset: c.offset });
        let targets = match self.switch.forward(Port::Vif(index), head, len, sum, now) {
            Verdict::To(targets) => targets,
            Verdict::Drop(reason) => {
                self.complain(index, reason, now);
                return Some(Status::Dropped);
            }
        };
        let checksum = frame.checksum.map(|c| Checksum { start: c.start, offset: c.offset });
        if targets.wire {
            let sent = self.send_to_wire(index, frame, head_len, checksum);
            if targets.any_vif() {
                self.copy_to_vifs(index, frame, head_len, targets, now);
            }
            return if sent { None } else { Some(Status::Dropped) };
        }
        self.copy_to_vifs(index, frame, head_len, targets, now);
        Some(Status::Ok)
    }

    /// Hands a frame to the NIC; its head was copied to `self.frame`.
    fn send_to_wire(
        &mut self,
        index: usize,
        frame: &TxFrame,
        head_len: usize,
        checksum: Option<Checksum>,
    ) -> bool {
        let mut rest = heapless::Vec::<Piece, MAX_SEGMENTS>::new();
        let mut skip = u32::try_from(head_len).unwrap_or(u32::MAX);
        for segment in &frame.segments {
            let skipped = skip.min(segment.len);
            skip = skip.saturating_sub(skipped);
            let len = segment.len.saturating_sub(skipped);
            if len > 0 {
                let address = segment.address.saturating_add(skipped.into());
                // As many as the frame has segments.
                let _ = rest.push(Piece { address, len });
            }
        }
        let Some(head) = self.frame.get(..head_len) else { return false };
        let Some(cookie) = self.free_cookies.pop() else { return false };
        if self.nic.send(head, &rest, checksum, cookie).is_err() {
            self.free_cookies.push(cookie);
            return false;
        }
        if let Some(sent) = self.sent.get_mut(cookie as usize) {
            *sent = Some((index, frame.tag));
        }
        true
    }

    /// Copies a frame to other guests; its head was copied to `self.frame`.
    fn copy_to_vifs(
        &mut self,
        index: usize,
        frame: &TxFrame,
        head_len: usize,
        targets: Targets,
        now: u64,
    ) {
        let Some(client) = self.clients.get(index) else { return };
        let Some(whole) = self.frame.get_mut(..frame.len as usize) else { return };
        // The head stays as it was when it was judged.
        let mut judged = [0; MAX_HEAD];
        let (Some(head), Some(judged)) = (whole.get(..head_len), judged.get_mut(..head_len)) else {
            return;
        };
        judged.copy_from_slice(head);
        if client.backend.copy_head(frame, whole) != whole.len() {
            return;
        }
        if let Some(head) = whole.get_mut(..head_len) {
            head.copy_from_slice(judged);
        }
        if let Some(c) = frame.checksum
            && !checksum::fill(whole, c.start, c.offset)
        {
            return;
        }
        self.served |= deliver(&mut self.clients, targets, whole, now);
    }

    /// Names a guest whose frame was dropped for a reason that is its own doing,
    /// now and then.
    fn complain(&mut self, index: usize, reason: Drop, now: u64) {
        if !reason.is_hostile() && reason != Drop::Flood {
            return;
        }
        let Some(client) = self.clients.get_mut(index) else { return };
        if client.complaints.take(now, 1) {
            let counters = self.switch.counters(Port::Vif(index));
            let count = counters.dropped.get(reason as usize).copied().unwrap_or(0);
            let name = client.connection.peer_name();
            log::warn!("{name}: frame dropped ({}), {count} so far", reason.name());
        }
    }
}

/// Copies a frame into the buffers of guests. Who has none loses it, as on any
/// wire. Returns whether anybody got it.
fn deliver(clients: &mut [Client], targets: Targets, frame: &[u8], now: u64) -> bool {
    let mut any = false;
    for vif in targets.vifs() {
        let Some(client) = clients.get_mut(vif) else { continue };
        if client.rx_limits.take(now, frame.len() as u64) {
            any |= client.backend.deliver(frame, false).is_ok();
        } else {
            client.rx_lost = client.rx_lost.saturating_add(1);
        }
    }
    any
}

impl Client {
    fn new(connection: Connection, window: Window, features: u32) -> Self {
        let boot = connection.boot;
        let config = BackendConfig {
            pages: connection.pages(),
            port: connection.port(),
            peer: boot.peer,
            window,
        };
        Self {
            connection,
            backend: Backend::new(config, Vif { mac: boot.mac, mtu: MTU, features }),
            rx_limits: Limiter::new(&boot.limits),
            rx_lost: 0,
            complaints: Bucket::new(1, 4, 0),
            connected: false,
            comings: Bucket::new(1, 16, 0),
        }
    }

    /// Logs when the connection comes or goes, and what the guest does wrong.
    fn tell(&mut self) {
        if let Some(complaint) = self.backend.complaint() {
            log::warn!("{} {complaint}", self.connection.peer_name());
        }
        let connected = self.backend.is_connected();
        if connected == self.connected {
            return;
        }
        self.connected = connected;
        if self.comings.take(now_ns(), 1) {
            let what = if connected { "connected" } else { "disconnected" };
            let name = self.connection.peer_name();
            log::info!("{name} {what}");
            if !connected && self.rx_lost > 0 {
                log::info!("{name}: {} frames to it were beyond its limits", self.rx_lost);
            }
        }
    }
}
