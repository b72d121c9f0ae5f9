//! The switch between the connections of this domain and the wire.
//!
//! One loop moves frames: from the NIC to guests, from guests to the NIC and to
//! each other. Each source of frames gets a bounded turn, in proportion to its
//! connection's weight.

use alloc::{boxed::Box, vec::Vec};

use domain_rt::{
    conn::{self, Connection},
    env::{self, DomainEnv},
    events, set_ready,
    time::{MS, NEVER, now_ns},
};
use net_switch::{FloodLimit, Port, Switch, Targets, Verdict};
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
    device::{Checksum, MAX_HEAD, Piece, VirtioNet},
};

/// Frames that the wire may bring in one turn.
const RX_TURN: usize = 64;
/// Frames that a connection of weight 256 may send in one turn.
const TX_TURN: u32 = 32;
/// Bytes that are copied of a long frame: all headers that a rule may look at
/// (Ethernet, VLAN, IPv4 with options or IPv6, TCP), so that the guest cannot
/// change them after the check.
const HEAD: usize = 128;
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
/// Pages for the rings of one connection.
const RING_PAGES: u32 = 16;
/// Most pages of a connection's pool.
const POOL_PAGES: u32 = 2048;
/// Largest payload of a frame.
const MTU: u16 = 1500;

const VIF_FLOODS: FloodLimit = FloodLimit { per_second: 1000, burst: 500 };
const WIRE_FLOODS: FloodLimit = FloodLimit { per_second: 5000, burst: 1000 };

/// A connection.
struct Client {
    connection: Connection,
    backend: Backend,
    /// Frames that a turn may send.
    turn: u32,
    /// Its ring may hold frames.
    backlog: bool,
    /// Was connected at the last look; for the log.
    connected: bool,
}

/// Serves the domain's first device for ever.
pub fn run(boot: &'static BootInfo) -> ! {
    let nic = match VirtioNet::open(0) {
        Ok(nic) => nic,
        // The supervisor restarts this domain, and holds it if that does not
        // help.
        Err(error) => panic!("no NIC: {error}"),
    };
    Service::new(boot, nic).run()
}

struct Service {
    nic: VirtioNet,
    switch: Switch,
    clients: Vec<Client>,
    /// By cookie: whose frame the NIC is sending.
    sent: Box<[Option<(usize, Tag)>]>,
    free_cookies: Vec<u32>,
    next: usize,
    last_sent: u64,
    frame: Box<[u8; MAX_FRAME as usize]>,
    env: DomainEnv,
}

impl Service {
    fn new(boot: &BootInfo, nic: VirtioNet) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = boot.seed;
        let seed = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let mut this = Self {
            nic,
            switch: Switch::new(VIF_FLOODS, WIRE_FLOODS, seed),
            clients: Vec::new(),
            sent: (0..128).map(|_| None).collect(),
            free_cookies: (0..128).collect(),
            next: 0,
            last_sent: now_ns(),
            frame: Box::new([0; MAX_FRAME as usize]),
            env: DomainEnv,
        };
        let connections: Vec<Connection> = conn::all(Protocol::Net, Role::Backend).collect();
        let share = boot.grant_window_pages / connections.len().max(1) as u32;
        let pool_pages = POOL_PAGES.min(share.saturating_sub(RING_PAGES));
        for connection in connections {
            this.add(connection, pool_pages);
        }
        this
    }

    /// Adds a connection. Its number as a client is its vif's number.
    fn add(&mut self, connection: Connection, pool_pages: u32) {
        let name = connection.peer_name();
        let window = (env::alloc_window(RING_PAGES), env::alloc_window(pool_pages));
        let (Some(ring_page), Some(pool_page)) = window else {
            log::error!("{name} is not served: the grant window is too small");
            return;
        };
        let mac = connection.boot.mac;
        match self.switch.add_vif(mac) {
            Ok(vif) if vif == self.clients.len() => {}
            other => {
                log::error!("{name} is not served: its address {mac:02x?} does not do: {other:?}");
                return;
            }
        }
        let features = if self.nic.fills_checksums() { FEATURE_TX_CSUM } else { 0 };
        let backend = Backend::new(
            BackendConfig {
                pages: connection.pages(),
                port: connection.port(),
                peer: connection.boot.peer,
                window: Window { ring_page, ring_pages: RING_PAGES, pool_page, pool_pages },
            },
            Vif { mac, mtu: MTU, features },
        );
        log::info!("vif {mac:02x?} for {name}");
        let weight = connection.boot.weight.clamp(1, 1 << 16);
        self.clients.push(Client {
            connection,
            backend,
            turn: (TX_TURN * weight / 256).max(1),
            backlog: true,
            connected: false,
        });
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
            }
            // A poll asks for notifications, which cost the guests an exit
            // each, so while there is work anyway it comes seldom.
            if busy && !turns.is_multiple_of(POLL_TURNS) {
                events::breathe();
                continue;
            }
            let (again, deadline) = self.poll(now);
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
        for client in &mut self.clients {
            let progress = client.backend.poll(&mut self.env);
            client.backlog |= progress.again;
            client.tell();
            again |= progress.again;
            deadline = deadline.min(progress.deadline.unwrap_or(NEVER));
        }
        if self.nic.in_flight() == 0 {
            self.last_sent = now;
        } else {
            let idle = now.saturating_sub(self.last_sent);
            // Its status is looked at only then, for that is slow.
            if idle > STUCK_NS || (idle > POLL_NS && self.nic.needs_reset()) {
                panic!("the NIC does not answer");
            }
            // An interrupt that was lost is noticed then, too.
            deadline = deadline.min(now.saturating_add(SENT_NS));
        }
        // Frames that wait for room go on after a completion, which wakes us.
        (again && self.has_room(), deadline)
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
                Err(_) => panic!("the NIC broke the rules of its tx queue"),
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
            client.backend.complete_tx(tag, Status::Ok);
        }
    }

    /// Brings frames from the wire to the guests.
    fn receive_frames(&mut self, now: u64) -> bool {
        for done in 0..RX_TURN {
            let len = match self.nic.receive(&mut self.frame[..]) {
                Ok(Some(len)) => len,
                Ok(None) => return done > 0,
                Err(_) => panic!("the NIC broke the rules of its rx queue"),
            };
            let Some(frame) = self.frame.get(..len) else { continue };
            if let Verdict::To(targets) = self.switch.forward(Port::Wire, frame, len, now) {
                deliver(&mut self.clients, targets, frame);
            }
        }
        true
    }

    /// Takes frames of the guests, turn by turn.
    fn serve_guests(&mut self, now: u64) -> bool {
        let mut any = false;
        let count = self.clients.len();
        for i in 0..count {
            let index = (self.next + i) % count;
            any |= self.take_turn(index, now);
        }
        self.next = (self.next + 1) % count.max(1);
        any
    }

    fn take_turn(&mut self, index: usize, now: u64) -> bool {
        let turn = match self.clients.get(index) {
            Some(client) if client.backlog => client.turn,
            _ => return false,
        };
        for done in 0..turn {
            // A frame that is taken must go somewhere, and the wire is the
            // only place that can be full.
            if !self.has_room() {
                return done > 0;
            }
            let Some(client) = self.clients.get_mut(index) else { return done > 0 };
            let Some(frame) = client.backend.next_tx() else {
                client.backlog = false;
                return done > 0;
            };
            if let Some(status) = self.forward(index, &frame, now)
                && let Some(client) = self.clients.get_mut(index)
            {
                client.backend.complete_tx(frame.tag, status);
            }
        }
        true
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
        let Verdict::To(targets) = self.switch.forward(Port::Vif(index), head, len, now) else {
            return Some(Status::Dropped);
        };
        let checksum = frame.checksum.map(|c| Checksum { start: c.start, offset: c.offset });
        if targets.wire {
            let sent = self.send_to_wire(index, frame, head_len, checksum);
            if targets.any_vif() {
                self.copy_to_vifs(index, frame, head_len, targets, checksum);
            }
            return if sent { None } else { Some(Status::Dropped) };
        }
        self.copy_to_vifs(index, frame, head_len, targets, checksum);
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
        let mut skip = head_len as u32;
        for segment in &frame.segments {
            let skipped = skip.min(segment.len);
            skip -= skipped;
            let len = segment.len - skipped;
            if len > 0 {
                // As many as the frame has segments.
                let _ = rest.push(Piece { address: segment.address + u64::from(skipped), len });
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
        checksum: Option<Checksum>,
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
        if let Some(c) = checksum
            && !checksum::fill(whole, c.start, c.offset)
        {
            return;
        }
        deliver(&mut self.clients, targets, whole);
    }
}

/// Copies a frame into the buffers of guests. Who has none loses it, as on any
/// wire.
fn deliver(clients: &mut [Client], targets: Targets, frame: &[u8]) {
    for vif in targets.vifs() {
        if let Some(client) = clients.get_mut(vif) {
            let _ = client.backend.deliver(frame, false);
        }
    }
}

impl Client {
    /// Logs when the connection comes or goes, and what the guest does wrong.
    fn tell(&mut self) {
        if let Some(complaint) = self.backend.complaint() {
            log::warn!("{} {complaint}", self.connection.peer_name());
        }
        let connected = self.backend.is_connected();
        if connected != self.connected {
            self.connected = connected;
            let what = if connected { "connected" } else { "disconnected" };
            log::info!("{} {what}", self.connection.peer_name());
        }
    }
}
