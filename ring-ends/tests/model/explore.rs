//! The state space: what can happen in a state, and what must hold in it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::sync::Mutex;
use std::time::Instant;

use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};
use ring_proto::conn;
use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};

use crate::ends::{At, Back, Domain, Front};
use crate::machine::{BACK, FRONT, Grain, Life, Machine, World};

/// What is explored.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub grain: Grain,
    /// Crashes of each end, in any state.
    pub crashes: [u8; 2],
    /// Times that each end finds its connected peer misbehaving.
    pub complaints: [u8; 2],
    /// Events without a cause, for either end.
    pub spurious: u8,
}

/// A state of the node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub world: World,
    pub front: Option<Domain<Front>>,
    pub back: Option<Domain<Back>>,
    /// What is left of the bounds.
    crashes: [u8; 2],
    complaints: [u8; 2],
    spurious: u8,
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A domain wakes up over an event or its deadline.
    Wake(usize),
    /// A running domain goes one step.
    Step(usize),
    /// The hypervisor goes one step in ending a generation.
    End(usize),
    /// The supervisor has a dead domain begun anew.
    Start(usize),
    /// The device finishes its work.
    Device,
    /// Time passes until the next deadline.
    Tick,
    /// A domain dies.
    Crash(usize),
    /// A connected end finds that its peer misbehaved.
    Complain(usize),
    /// A sleeping domain has an event that means nothing.
    Spurious(usize),
}

/// More offers of one frontend generation than this are a live-lock.
const OFFERS: u32 = 16;
/// Least time between two generations of a domain, ns.
const RESTORE_NS: u64 = 1_000;

thread_local! {
    static MACHINE: Machine = {
        let machine = Machine::new();
        ring_proto::stepped::install(std::rc::Rc::new(machine.clone()));
        machine
    };
}

impl State {
    fn at(&self, end: usize) -> Option<At> {
        match end {
            FRONT => self.front.as_ref().map(|front| front.at),
            _ => self.back.as_ref().map(|back| back.at),
        }
    }

    /// At the beginning of a call.
    fn between_calls(&self, end: usize) -> bool {
        match end {
            FRONT => self.front.as_ref().is_some_and(|front| front.seen.is_empty()),
            _ => self.back.as_ref().is_some_and(|back| back.seen.is_empty()),
        }
    }

    fn set_at(&mut self, end: usize, at: At) {
        match end {
            FRONT => self.front.iter_mut().for_each(|front| front.at = at),
            _ => self.back.iter_mut().for_each(|back| back.at = at),
        }
    }

    /// The next deadline of a sleeping domain.
    fn deadline(&self) -> Option<u64> {
        let deadlines = [FRONT, BACK].into_iter().filter_map(|end| match self.at(end) {
            Some(At::Asleep(deadline)) => deadline.filter(|&at| at > self.world.clock),
            _ => None,
        });
        deadlines.min()
    }

    /// What happens by itself: no fault, and nothing that need not be.
    fn due(&self, actions: &mut Vec<Action>) {
        for end in [FRONT, BACK] {
            match self.world.lives[end] {
                Life::Running => match self.at(end) {
                    Some(At::Asleep(deadline)) => {
                        let late = deadline.is_some_and(|at| at <= self.world.clock);
                        let woken = self.world.events[end] || late;
                        actions.extend(woken.then_some(Action::Wake(end)));
                    }
                    Some(_) => actions.push(Action::Step(end)),
                    None => {}
                },
                Life::Ending(_) => actions.push(Action::End(end)),
                Life::Dead if !self.world.is_locked() => actions.push(Action::Start(end)),
                Life::Dead => {}
            }
        }
        if self.world.dma {
            actions.push(Action::Device);
        }
        if self.deadline().is_some() {
            actions.push(Action::Tick);
        }
    }

    fn faults(&self, actions: &mut Vec<Action>) {
        for end in [FRONT, BACK] {
            let running = self.world.lives[end] == Life::Running;
            if running && self.crashes[end] > 0 && !self.world.is_locked() {
                actions.push(Action::Crash(end));
            }
            if self.complaints[end] > 0 && self.at(end) == Some(At::Look) && self.between_calls(end)
            {
                actions.push(Action::Complain(end));
            }
            if running
                && self.spurious > 0
                && matches!(self.at(end), Some(At::Asleep(_)))
                && !self.world.events[end]
            {
                actions.push(Action::Spurious(end));
            }
        }
    }

    fn next(&self, action: Action, grain: Grain) -> Option<Self> {
        let mut next = self.clone();
        match action {
            Action::Wake(end) => {
                next.world.events[end] = false;
                return next.stepped(end, grain);
            }
            Action::Step(end) => return next.stepped(end, grain),
            Action::End(end) => {
                let Life::Ending(done) = self.world.lives[end] else { return None };
                next.world.end_step(end, done);
            }
            Action::Start(end) => {
                next.world.clock += RESTORE_NS;
                next.world.lives[end] = Life::Running;
                next.world.events[end] = false;
                let generation = next.world.generations[end];
                if end == FRONT {
                    next.world.offers = 0;
                    next.front = Some(Domain::new(Front::new(generation)));
                } else {
                    next.back = Some(Domain::new(Back::new(generation)));
                }
            }
            Action::Device => next.world.device_step(),
            Action::Tick => next.world.clock = self.deadline()?,
            Action::Crash(end) => {
                next.crashes[end] -= 1;
                next.world.lives[end] = Life::Ending(0);
                if end == FRONT { next.front = None } else { next.back = None }
            }
            Action::Complain(end) => {
                next.complaints[end] -= 1;
                next.set_at(end, At::Complain);
            }
            Action::Spurious(end) => {
                next.spurious -= 1;
                next.world.events[end] = true;
            }
        }
        Some(next)
    }

    fn stepped(mut self, end: usize, grain: Grain) -> Option<Self> {
        MACHINE.with(|machine| {
            let world = self.world;
            if end == FRONT {
                let (front, world) = self.front?.step(machine, world, grain)?;
                self.front = Some(front);
                self.world = world;
            } else {
                let (back, world) = self.back?.step(machine, world, grain)?;
                self.back = Some(back);
                self.world = world;
            }
            Some(self)
        })
    }

    /// Both ends are up with each other's present hellos.
    fn joined(&self) -> bool {
        let (Some(front), Some(back)) = (&self.front, &self.back) else { return false };
        match (front.program.joined(), back.program.joined()) {
            (Some((own, answer)), Some((answer_, own_))) => own == own_ && answer == answer_,
            _ => false,
        }
    }

    /// Both are up, and not with each other. (That the backend died since it
    /// answered, and its successor answered the same hello, the frontend sees
    /// at its next look.)
    fn at_odds(&self) -> bool {
        let (Some(front), Some(back)) = (&self.front, &self.back) else { return false };
        match (front.program.joined(), back.program.joined()) {
            (Some((own, answer)), Some((by, of))) => {
                own != of || answer != by && answer.generation >= by.generation
            }
            _ => false,
        }
    }

    /// Every mapping leads to junk or to what the living frontend grants now.
    fn mappings_are_granted(&self) -> bool {
        if matches!(self.world.lives[FRONT], Life::Ending(_)) {
            return true;
        }
        let mut pairs = self.world.window.iter().zip(&self.world.grants);
        pairs.all(|(mapping, grant)| match mapping {
            Some(mapping) if !mapping.revoked => *grant == Some(mapping.granted),
            _ => true,
        })
    }

    fn strikes(&self) -> u32 {
        self.back.as_ref().map_or(0, |back| back.program.link.strikes())
    }

    fn barred(&self) -> bool {
        self.back.as_ref().is_some_and(|back| back.program.link.barred().is_some())
    }

    /// What is visible, on a line.
    fn line(&self) -> String {
        let world = &self.world;
        let end = |end: usize| {
            let [state, generation, epoch, peer_generation, peer_epoch, _] = world.pages[end].words;
            let state = conn::State::from_raw(state).expect("no end writes another");
            let answers = if end == BACK {
                format!(" to {peer_generation}.{peer_epoch}")
            } else {
                String::new()
            };
            let event = if world.events[end] { "!" } else { "" };
            let at = self.at(end).map_or(format!("{:?}", world.lives[end]), |at| format!("{at:?}"));
            format!("{event}{generation}.{epoch} {state:?}{answers}, {at}")
        };
        format!(
            "{} us | {} | {} | ring {:x?} grants {:?} window {:?}{}{}{}",
            world.clock / 1000,
            end(FRONT),
            end(BACK),
            world.ring,
            world.grants,
            world.window.map(|m| m.map(|m| (m.granted, if m.revoked { "revoked" } else { "" }))),
            if world.dma { " DMA" } else { "" },
            if self.strikes() > 0 { format!(" strikes {}", self.strikes()) } else { String::new() },
            world.wrong.map_or(String::new(), |wrong| format!(" WRONG: {wrong}")),
        )
    }

    /// Nothing happens any more unless something breaks.
    fn is_quiet(&self) -> bool {
        let mut actions = Vec::new();
        self.due(&mut actions);
        actions.is_empty()
    }

    /// Nothing happens before the frontend's pause is over (CONN-9).
    fn front_waits(&self) -> bool {
        let mut actions = Vec::new();
        self.due(&mut actions);
        actions == [Action::Tick] && matches!(self.at(FRONT), Some(At::Asleep(Some(_))))
    }

    fn served(&self) -> bool {
        self.joined() && self.front.as_ref().is_some_and(|front| front.program.served)
    }
}

/// The model: bounds, and the edges that were found.
struct Connection {
    bounds: Bounds,
    edges: Mutex<Vec<(u64, u64)>>,
}

fn fingerprint(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

impl Model for Connection {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut world = World::new();
        world.lives = [Life::Running; 2];
        vec![State {
            world,
            front: Some(Domain::new(Front::new(1))),
            back: Some(Domain::new(Back::new(1))),
            crashes: self.bounds.crashes,
            complaints: self.bounds.complaints,
            spurious: self.bounds.spurious,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // What comes after is no news.
        if state.world.wrong.is_none() && state.world.offers <= OFFERS {
            state.due(actions);
            state.faults(actions);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let next = state.next(action, self.bounds.grain)?;
        let edge = (fingerprint(state), fingerprint(&next));
        self.edges.lock().expect("nobody panics with it").push(edge);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing forbidden happens", |_, s: &State| s.world.wrong.is_none()),
            Property::always("ends that are up are up with each other", |_, s: &State| {
                !s.at_odds()
            }),
            Property::always("no grant of a dead generation is in use", |_, s: &State| {
                s.mappings_are_granted()
            }),
            Property::always("a crash is no strike", |m: &Self, s: &State| {
                let complaints = u32::from(m.bounds.complaints.iter().sum::<u8>());
                // The one that leaves after its backend died and was succeeded.
                let left = u32::from(s.world.generations[BACK] > 1);
                s.strikes() <= complaints + left && !s.barred()
            }),
            Property::always("offers come to an end", |_, s: &State| s.world.offers <= OFFERS),
            Property::always("rest is connected and served", |_, s: &State| {
                !s.is_quiet() || s.served()
            }),
            Property::always("after a crash no frontend waits for time", |m: &Self, s: &State| {
                m.bounds.complaints != [0; 2] || !s.front_waits()
            }),
            // Not one of the above holds because nothing happens.
            Property::sometimes("all that may break has, and it rests", |_, s: &State| {
                s.is_quiet() && s.crashes == [0; 2] && s.complaints == [0; 2] && s.spurious == 0
            }),
        ]
    }
}

/// Explores all states within `bounds` and says how many there are. Fails
/// with the shortest way to a state in which something does not hold, and if
/// a run need not come to rest.
pub fn explore(name: &str, bounds: Bounds) {
    let begin = Instant::now();
    let model = Connection { bounds, edges: Mutex::default() };
    // The shortest way to one mistake is enough.
    let search = model.checker().finish_when(HasDiscoveries::AnyFailures);
    let checker = search.spawn_bfs().join();
    // Telling how a state was come by goes the same ways again, which do not count.
    let edges = std::mem::take(&mut *checker.model().edges.lock().expect("nobody panics with it"));
    for property in checker.model().properties() {
        match (property.expectation, checker.discovery(property.name)) {
            (Expectation::Sometimes, None) => panic!("{name}: never so: {}", property.name),
            (Expectation::Sometimes, Some(_)) | (_, None) => {}
            (_, Some(run)) => {
                tell(run.into_vec());
                panic!("{name}: not so: {}", property.name);
            }
        }
    }
    let longest = longest_run(&edges).expect("a run without end: its states repeat");
    let seconds = begin.elapsed().as_secs_f64();
    // Not `println!`: tests keep to themselves what they print.
    let _ = writeln!(
        std::io::stderr(),
        "model: {name}: {} states, {} transitions, depth {}, longest run {longest} ({seconds:.1} s)",
        checker.unique_state_count(),
        edges.len(),
        checker.max_depth(),
    );
}

/// Prints a run: what happens, and what came of it.
fn tell(run: Vec<(State, Option<Action>)>) {
    let mut before = String::new();
    let mut steps: Vec<Action> = Vec::new();
    for (number, (state, action)) in run.into_iter().enumerate() {
        let now = state.line();
        // What only one end saw shows in what it does later.
        if now != before {
            println!("{number:4} {} -> {now}", Action::list(&steps));
            (before, steps) = (now, Vec::new());
        }
        steps.extend(action);
    }
}

impl Action {
    /// `Step(0) ×3, Wake(1)`.
    fn list(actions: &[Self]) -> String {
        let runs = actions.chunk_by(|a, b| a == b);
        let texts = runs.map(|run| match run {
            [one] => format!("{one:?}"),
            run => format!("{:?} ×{}", run[0], run.len()),
        });
        texts.collect::<Vec<_>>().join(", ")
    }
}

/// Steps of the longest run. `None` if there is one without end.
fn longest_run(edges: &[(u64, u64)]) -> Option<u64> {
    let mut numbers: HashMap<u64, NodeIndex> = HashMap::new();
    let mut graph = DiGraph::<(), ()>::with_capacity(edges.len() / 2, edges.len());
    for &(from, to) in edges {
        let mut number = |state| *numbers.entry(state).or_insert_with(|| graph.add_node(()));
        let (from, to) = (number(from), number(to));
        graph.add_edge(from, to, ());
    }
    let order = toposort(&graph, None).ok()?;
    let mut steps = vec![0u64; graph.node_count()];
    for node in order.into_iter().rev() {
        let after = graph.neighbors(node).map(|next| steps[next.index()] + 1);
        steps[node.index()] = after.max().unwrap_or(0);
    }
    steps.into_iter().max()
}
