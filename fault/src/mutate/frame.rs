//! Initial values of a function's local variables.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use super::program::Program;

/// How many instructions of a function count as its first.
pub(super) const FIRST: usize = 16;

/// Stores of a constant or a register into the stack frame, and zeroing of a
/// register that such a store then stores, among the [`FIRST`] instructions of
/// each function.
///
/// Indices into [`Program::instructions`], ascending.
pub(super) fn initial_values(program: &Program) -> Vec<u32> {
    let mut factory = InstructionInfoFactory::new();
    let mut found = Vec::new();
    for function in program.functions() {
        let instructions = program.instructions_of(function);
        let first = &instructions[..instructions.len().min(FIRST)];
        let framed = first.iter().position(sets_frame_pointer);
        let store = |at: usize, factory: &mut InstructionInfoFactory| {
            let has_frame_pointer = framed.is_some_and(|framed| framed < at);
            is_store(&first[at], has_frame_pointer, factory)
        };
        for (at, instruction) in first.iter().enumerate() {
            let is_initial = match zeroed(instruction) {
                None => store(at, &mut factory),
                // What a store uses beside the frame is what it stores.
                Some(register) => (at + 1..first.len())
                    .find(|later| uses(&first[*later], register, &mut factory))
                    .is_some_and(|user| store(user, &mut factory)),
            };
            if is_initial {
                found.push(instruction.ip());
            }
        }
    }
    program.indices(&found)
}

/// Whether from here on `rbp` points into the stack.
fn sets_frame_pointer(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_register() == Register::RBP
        && instruction.op1_register() == Register::RSP
}

/// Whether `instruction` stores a constant or a register into the stack frame.
fn is_store(
    instruction: &Instruction,
    has_frame_pointer: bool,
    factory: &mut InstructionInfoFactory,
) -> bool {
    if instruction.op_count() != 2
        || instruction.op0_kind() != OpKind::Memory
        || instruction.op1_kind() == OpKind::Memory
        || instruction.memory_index() != Register::None
        || instruction.has_segment_prefix()
    {
        return false;
    }
    let is_local = match instruction.memory_base() {
        Register::RSP => true,
        // Above it are the return address and the caller's.
        Register::RBP => has_frame_pointer && instruction.memory_displacement64().cast_signed() < 0,
        _ => false,
    };
    is_local && factory.info(instruction).op_access(0) == OpAccess::Write
}

/// The register that `instruction` sets to zero by combining it with itself.
fn zeroed(instruction: &Instruction) -> Option<Register> {
    use Mnemonic::{Pxor, Xor, Xorpd, Xorps};
    let register = instruction.op0_register();
    let is_zero = matches!(instruction.mnemonic(), Xor | Xorps | Xorpd | Pxor)
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register
        && register == instruction.op1_register();
    is_zero.then(|| register.full_register())
}

/// Whether `instruction` reads or writes `register` or a part of it.
fn uses(
    instruction: &Instruction,
    register: Register,
    factory: &mut InstructionInfoFactory,
) -> bool {
    let used = factory.info(instruction).used_registers();
    used.iter().any(|used| used.register().full_register() == register)
}
