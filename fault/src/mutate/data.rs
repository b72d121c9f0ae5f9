//! Faults in registers and data, which are made while a program runs, when it is
//! about to execute a certain instruction.

use iced_x86::{Instruction, InstructionInfoFactory, OpAccess, OpKind, Register};

use super::program::Program;
use super::{Planned, encode, pick};
use crate::class::Class;
use crate::plan::Fault;

/// A random word. Its length in bits is as random as they are, so that a small
/// number, a plausible pointer and a wild one are all met.
fn random_word(rng: &mut fastrand::Rng) -> u64 {
    rng.u64(..) >> rng.u32(..u64::BITS)
}

/// Number of a general-purpose register of 64 bits in GDB's order.
fn gdb_number(register: Register) -> Option<usize> {
    use Register::{R8, R9, R10, R11, R12, R13, R14, R15, RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP};
    let order = [RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8, R9, R10, R11, R12, R13, R14, R15];
    order.iter().position(|known| *known == register)
}

/// The general-purpose registers that `instruction` names and reads, as values or for
/// an address, by their 64-bit names and each once.
///
/// The stack pointer of a `push` is not named: the stack has a class of its own.
pub(super) fn read_by(
    instruction: &Instruction,
    factory: &mut InstructionInfoFactory,
) -> Vec<Register> {
    use OpAccess::{CondRead, Read, ReadCondWrite, ReadWrite};
    let info = factory.info(instruction);
    let mut found = Vec::new();
    for operand in 0..instruction.op_count() {
        let access = info.op_access(operand);
        match instruction.op_kind(operand) {
            OpKind::Register if matches!(access, Read | CondRead | ReadWrite | ReadCondWrite) => {
                found.push(instruction.op_register(operand));
            }
            OpKind::Memory => {
                found.extend([instruction.memory_base(), instruction.memory_index()]);
            }
            _ => {}
        }
    }
    found.retain(|register| register.is_gpr());
    found.iter_mut().for_each(|register| *register = register.full_register());
    found.sort_unstable();
    found.dedup();
    found
}

/// The register that `instruction` finds the place of a store by, if it uses it for nothing else.
pub(super) fn stores_by(
    instruction: &Instruction,
    factory: &mut InstructionInfoFactory,
) -> Option<Register> {
    use OpAccess::{CondWrite, ReadCondWrite, ReadWrite, Write};
    let base = instruction.memory_base();
    let info = factory.info(instruction);
    let is_store = (0..instruction.op_count()).any(|operand| {
        instruction.op_kind(operand) == OpKind::Memory
            && matches!(info.op_access(operand), Write | CondWrite | ReadWrite | ReadCondWrite)
    });
    let is_elsewhere = |operand| {
        instruction.op_kind(operand) == OpKind::Register
            && instruction.op_register(operand).full_register() == base
    };
    let is_shared = instruction.memory_index() == base
        || (0..instruction.op_count()).any(is_elsewhere)
        || info.used_registers().iter().any(|used| {
            let is_read = matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
            used.register().full_register() == base && !is_read
        });
    (is_store && !is_shared && base.is_gpr64()).then_some(base)
}

/// [`Class::RandomWord`]: uniform over the instructions that read a register, and then
/// over the registers that one reads.
pub(super) fn plan_register(
    program: &Program,
    rng: &mut fastrand::Rng,
    allowed: &dyn Fn(u64) -> bool,
) -> Option<Planned> {
    let mut factory = InstructionInfoFactory::new();
    pick(Class::RandomWord, program, rng, allowed, |instruction, rng| {
        let read = read_by(instruction, &mut factory);
        let register = *read.get(rng.usize(..read.len().max(1)))?;
        let value = random_word(rng);
        let (address, number) = (instruction.ip(), gdb_number(register)?);
        let fault = Fault::Register { address, register: number, value };
        let what = format!("{} = {value:#x} before", name(register));
        Some(planned(program, instruction, fault, &what))
    })
}

/// [`Class::WildWrite`]: uniform over the instructions that store by a register.
pub(super) fn plan_store(
    program: &Program,
    rng: &mut fastrand::Rng,
    allowed: &dyn Fn(u64) -> bool,
) -> Option<Planned> {
    let mut factory = InstructionInfoFactory::new();
    pick(Class::WildWrite, program, rng, allowed, |instruction, rng| {
        let register = stores_by(instruction, &mut factory)?;
        let value = random_word(rng);
        let (address, number) = (instruction.ip(), gdb_number(register)?);
        let fault = Fault::Store { address, register: number, value };
        let what = format!("{} = {value:#x} for", name(register));
        Some(planned(program, instruction, fault, &what))
    })
}

/// [`Class::Stack`]: uniform over the instructions.
pub(super) fn plan_stack(
    program: &Program,
    rng: &mut fastrand::Rng,
    allowed: &dyn Fn(u64) -> bool,
) -> Option<Planned> {
    pick(Class::Stack, program, rng, allowed, |instruction, rng| {
        let (address, fraction, value) = (instruction.ip(), rng.u16(..), random_word(rng));
        let percent = u32::from(fraction) * 100 / (1 << 16);
        let fault = Fault::Stack { address, fraction, value };
        let what = format!("word at {percent} % of the stack = {value:#x} before");
        Some(planned(program, instruction, fault, &what))
    })
}

/// [`Class::Heap`].
pub(super) fn plan_heap(rng: &mut fastrand::Rng) -> Planned {
    let (fraction, value) = (rng.u32(..), random_word(rng));
    let percent = (u64::from(fraction) * 100) >> 32;
    Planned {
        fault: Fault::Heap { fraction, value },
        function: None,
        text: format!("word at {percent} % of the heap = {value:#x}"),
    }
}

fn name(register: Register) -> String {
    format!("{register:?}").to_lowercase()
}

/// A fault that is made in front of `instruction`.
fn planned(program: &Program, instruction: &Instruction, fault: Fault, what: &str) -> Planned {
    let address = instruction.ip();
    let code = program.rest(address).unwrap_or_default();
    let code = encode::show(address, code, instruction.len());
    Planned {
        fault,
        function: program.function_at(address).map(|function| function.name.clone()),
        text: format!("{what} {code}"),
    }
}
