//! Software faults: which instruction of a program is changed, and into what.
//!
//! Everything here is pure. A [`Program`] is read from a driver's ELF file; with
//! a random generator [`plan`] chooses one fault, and the same
//! generator chooses the same. `cargo xtask fault` carries it out in the
//! memory and registers of a running domain.
//!
//! A text mutation keeps the length of the instruction that it changes, so the
//! ones around it stay what they are. A site is an instruction that the class
//! applies to and that has another form of the same length; all sites are
//! equally likely, and so are the forms of one.

mod data;
mod encode;
mod flow;
mod frame;
mod operands;
mod program;
mod sites;
#[cfg(test)]
mod tests;

pub use iced_x86::FlowControl;
use iced_x86::{Instruction, InstructionInfoFactory};
pub use program::{Function, Program, Text, Unusable};

use crate::class::Class;
use crate::plan::Fault;

/// One fault, with all random choices made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What is done.
    pub fault: Fault,
    /// The function that it is done in, if it is in one.
    pub function: Option<String>,
    /// For people.
    pub text: String,
}

impl From<TextMutation> for Planned {
    fn from(mutation: TextMutation) -> Self {
        let TextMutation { address, at, before, after, text, function } = mutation;
        let [before, after] = [before, after].map(|bytes| hex(&bytes));
        let fault = Fault::Text { address, at, before, after };
        Self { fault, function: Some(function), text }
    }
}

/// Chooses a fault, uniformly over the sites whose address `allowed` lets through.
///
/// `None`: there are no such sites, or the class is not one of a program's
/// instructions, registers, stack and heap.
pub fn plan(
    class: Class,
    program: &Program,
    rng: &mut fastrand::Rng,
    allowed: &dyn Fn(u64) -> bool,
) -> Option<Planned> {
    match class {
        Class::RandomWord => data::plan_register(program, rng, allowed),
        Class::WildWrite => data::plan_store(program, rng, allowed),
        Class::Stack => data::plan_stack(program, rng, allowed),
        Class::Heap => Some(data::plan_heap(rng)),
        _ => plan_text(class, program, rng, allowed).map(Planned::from),
    }
}

/// Another instruction in the place of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextMutation {
    /// Of the instruction: the fault is activated when this is executed.
    pub address: u64,
    /// Of the first byte that changes.
    pub at: u64,
    /// What is there, up to the last byte that changes.
    pub before: Vec<u8>,
    /// What takes its place; as long as `before`.
    pub after: Vec<u8>,
    /// For people: `mov rax,[rbx+8] -> mov rcx,[rbx+8]`.
    pub text: String,
    /// The function that it lies in.
    pub function: String,
}

impl TextMutation {
    /// `after`, the new bytes, in the place of `old`.
    fn new(program: &Program, old: &Instruction, mut after: Vec<u8>) -> Option<Self> {
        let address = old.ip();
        let code = program.rest(address)?;
        let mut before = code.get(..old.len())?.to_vec();
        // Half of what comes behind may have become part of the new instruction.
        let changed = [after.as_slice(), code.get(old.len()..)?].concat();
        let text = format!(
            "{} -> {}",
            encode::show(address, code, old.len()),
            encode::show(address, &changed, old.len())
        );
        let differs = |at: &usize| before[*at] != after[*at];
        let first = (0..old.len()).find(differs)?;
        let last = (0..old.len()).rfind(differs)?;
        before = before[first..=last].to_vec();
        after = after[first..=last].to_vec();
        let function = program.name_at(address);
        Some(Self { address, at: address + first as u64, before, after, text, function })
    }
}

/// Chooses a fault of a class that changes text, as [`plan`] does.
///
/// `None`: there are no such sites, or it is another kind of class.
pub fn plan_text(
    class: Class,
    program: &Program,
    rng: &mut fastrand::Rng,
    allowed: &dyn Fn(u64) -> bool,
) -> Option<TextMutation> {
    pick(class, program, rng, allowed, |instruction, rng| {
        TextMutation::new(program, instruction, changed(class, program, instruction, rng)?)
    })
}

/// Makes a fault at a random one of the sites of `class` where `make` can.
fn pick<T>(
    class: Class,
    program: &Program,
    rng: &mut fastrand::Rng,
    allowed: &dyn Fn(u64) -> bool,
    mut make: impl FnMut(&Instruction, &mut fastrand::Rng) -> Option<T>,
) -> Option<T> {
    let mut sites = program.sites(class).to_vec();
    while !sites.is_empty() {
        let site = sites.swap_remove(rng.usize(..sites.len()));
        let instruction = &program.instructions()[site as usize];
        if !allowed(instruction.ip()) {
            continue;
        }
        if let Some(made) = make(instruction, rng) {
            return Some(made);
        }
    }
    None
}

/// The bytes that take the place of `instruction`, a site of `class`, and are as many.
fn changed(
    class: Class,
    program: &Program,
    instruction: &Instruction,
    rng: &mut fastrand::Rng,
) -> Option<Vec<u8>> {
    let mut factory = InstructionInfoFactory::new();
    let forms = match class {
        Class::TextBit => {
            let mut bytes = program.bytes(instruction.ip(), instruction.len() as u64)?.to_vec();
            let bit = rng.usize(..8 * bytes.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
            return Some(bytes);
        }
        Class::Nop | Class::Uninitialised => return Some(encode::no_operations(instruction.len())),
        Class::Destination => {
            let written = operands::destinations(instruction, &mut factory);
            operands::with_other_register(instruction, &written)
        }
        Class::Source => {
            let read = operands::sources(instruction, &mut factory);
            operands::with_other_register(instruction, &read)
        }
        Class::Branch => vec![flow::inverted(instruction)],
        Class::LoopBound => flow::off_by_one(instruction),
        Class::Pointer => {
            // One or the other first: else the many bits of a displacement would crowd the bases out.
            let bases = operands::with_other_base(instruction);
            let displacements = operands::with_other_displacement(instruction);
            let (first, second) =
                if rng.bool() { (bases, displacements) } else { (displacements, bases) };
            return one_of(first, instruction, rng).or_else(|| one_of(second, instruction, rng));
        }
        _ => return None,
    };
    one_of(forms, instruction, rng)
}

/// A random one of `forms`, of those that fit in the place of `old`.
fn one_of(
    mut forms: Vec<Instruction>,
    old: &Instruction,
    rng: &mut fastrand::Rng,
) -> Option<Vec<u8>> {
    while !forms.is_empty() {
        let form = forms.swap_remove(rng.usize(..forms.len()));
        if let Some(bytes) = encode::in_place_of(old, &form) {
            return Some(bytes);
        }
    }
    None
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
