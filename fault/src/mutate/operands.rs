//! Instructions with another operand.
//!
//! Only what the encoding of an instruction names is exchanged: the `rsp` of a
//! `push` or the `rax` of a `mul` is not there to be mistaken.

use iced_x86::{Instruction, InstructionInfoFactory, OpAccess, OpKind, Register};

/// Registers that may take the place of `register`: those of the same kind and size, without itself.
///
/// None for those that are not for data, such as segments.
fn alike(register: Register) -> impl Iterator<Item = Register> {
    let is_alike: fn(Register) -> bool = match register {
        r if r.is_gpr64() => Register::is_gpr64,
        r if r.is_gpr32() => Register::is_gpr32,
        r if r.is_gpr16() => Register::is_gpr16,
        r if r.is_gpr8() => Register::is_gpr8,
        r if r.is_xmm() => Register::is_xmm,
        r if r.is_ymm() => Register::is_ymm,
        _ => |_| false,
    };
    Register::values().filter(move |other| is_alike(*other) && *other != register)
}

/// The operands of `instruction` that are registers and are used so.
fn registers(
    instruction: &Instruction,
    is_used: fn(OpAccess) -> bool,
    factory: &mut InstructionInfoFactory,
) -> Vec<u32> {
    let info = factory.info(instruction);
    let mut found = Vec::new();
    for operand in 0..instruction.op_count() {
        if instruction.op_kind(operand) == OpKind::Register
            && is_used(info.op_access(operand))
            && alike(instruction.op_register(operand)).next().is_some()
        {
            found.push(operand);
        }
    }
    found
}

/// Operands that are registers and are written.
pub(super) fn destinations(
    instruction: &Instruction,
    factory: &mut InstructionInfoFactory,
) -> Vec<u32> {
    let is_written = |access| {
        use OpAccess::{CondWrite, ReadCondWrite, ReadWrite, Write};
        matches!(access, Write | CondWrite | ReadWrite | ReadCondWrite)
    };
    registers(instruction, is_written, factory)
}

/// Operands that are registers and are only read.
pub(super) fn sources(instruction: &Instruction, factory: &mut InstructionInfoFactory) -> Vec<u32> {
    let is_read = |access| matches!(access, OpAccess::Read | OpAccess::CondRead);
    registers(instruction, is_read, factory)
}

/// `instruction` with another register for one of `operands`.
pub(super) fn with_other_register(instruction: &Instruction, operands: &[u32]) -> Vec<Instruction> {
    let mut found = Vec::new();
    for operand in operands {
        for other in alike(instruction.op_register(*operand)) {
            let mut changed = *instruction;
            changed.set_op_register(*operand, other);
            found.push(changed);
        }
    }
    found
}

/// Whether `instruction` makes an address of a register or a displacement.
pub(super) fn has_pointer(instruction: &Instruction) -> bool {
    let has_memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
    let is_made = instruction.memory_base() != Register::None || displacement_bits(instruction) > 0;
    has_memory && is_made
}

/// `instruction` with another base register.
pub(super) fn with_other_base(instruction: &Instruction) -> Vec<Instruction> {
    let bases = alike(instruction.memory_base());
    bases
        .map(|base| {
            let mut changed = *instruction;
            changed.set_memory_base(base);
            changed
        })
        .collect()
}

/// `instruction` with one bit of its displacement inverted.
pub(super) fn with_other_displacement(instruction: &Instruction) -> Vec<Instruction> {
    let old = instruction.memory_displacement64();
    let bits = displacement_bits(instruction);
    (0..bits)
        .map(|bit| {
            let mut changed = *instruction;
            changed.set_memory_displacement64(match instruction.is_ip_rel_memory_operand() {
                true => {
                    let offset = old.wrapping_sub(instruction.next_ip());
                    instruction.next_ip().wrapping_add(flipped(offset, bit, bits))
                }
                false => flipped(old, bit, bits),
            });
            changed
        })
        .collect()
}

/// Bits of the displacement in the encoding.
fn displacement_bits(instruction: &Instruction) -> u32 {
    match instruction.memory_displ_size() {
        0 => 0,
        1 => 8,
        // Of the word that an address of 64 bits is computed from, 32 are encoded.
        _ => 32,
    }
}

/// `value`, a sign-extended number of `bits`, with bit `bit` inverted.
fn flipped(value: u64, bit: u32, bits: u32) -> u64 {
    let unused = u64::BITS - bits;
    (((value ^ (1 << bit)) << unused).cast_signed() >> unused).cast_unsigned()
}
