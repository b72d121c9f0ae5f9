//! Where a program has instructions that a class of faults can change.

use std::sync::OnceLock;

use iced_x86::{InstructionInfoFactory, Mnemonic};

use super::program::Program;
use super::{data, flow, frame, operands};
use crate::class::Class;

/// The sites of each class: indices into [`Program::instructions`], ascending.
/// Made when they are first asked for.
#[derive(Debug, Default)]
pub(super) struct Sites([OnceLock<Vec<u32>>; CLASSES.len()]);

/// Classes that have sites.
const CLASSES: [Class; 11] = [
    Class::TextBit,
    Class::Nop,
    Class::Destination,
    Class::Source,
    Class::Branch,
    Class::Pointer,
    Class::LoopBound,
    Class::Uninitialised,
    Class::Stack,
    Class::RandomWord,
    Class::WildWrite,
];

impl Program {
    /// The instructions that `class` may change, or change something at. Some of
    /// them may turn out to have no other form of the same length.
    pub(super) fn sites(&self, class: Class) -> &[u32] {
        let Some(slot) = CLASSES.iter().position(|known| *known == class) else { return &[] };
        self.sites.0[slot].get_or_init(|| find(self, class))
    }

    /// The indices of the instructions at `addresses`.
    pub(super) fn indices(&self, addresses: &[u64]) -> Vec<u32> {
        let all = self.instructions();
        let index = |address| all.binary_search_by_key(&address, |i| i.ip()).ok();
        addresses.iter().filter_map(|address| index(*address)?.try_into().ok()).collect()
    }
}

fn find(program: &Program, class: Class) -> Vec<u32> {
    let mut factory = InstructionInfoFactory::new();
    match class {
        Class::LoopBound => return flow::loop_ends(program),
        Class::Uninitialised => return frame::initial_values(program),
        _ => {}
    }
    let mut found = Vec::new();
    for (index, instruction) in (0..).zip(program.instructions()) {
        let is_idle = matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Endbr64);
        let is_site = match class {
            Class::TextBit | Class::Stack => true,
            Class::Nop => !is_idle,
            Class::Destination => !operands::destinations(instruction, &mut factory).is_empty(),
            Class::Source => !is_idle && !operands::sources(instruction, &mut factory).is_empty(),
            Class::Branch => instruction.is_jcc_short_or_near(),
            Class::Pointer => !is_idle && operands::has_pointer(instruction),
            Class::RandomWord => !is_idle && !data::read_by(instruction, &mut factory).is_empty(),
            Class::WildWrite => data::stores_by(instruction, &mut factory).is_some(),
            _ => false,
        };
        if is_site {
            found.push(index);
        }
    }
    found
}
