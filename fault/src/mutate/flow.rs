//! Branches and the ends of loops.

use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind};

use super::program::Program;

/// `instruction`, a conditional branch, with the opposite condition.
pub(super) fn inverted(instruction: &Instruction) -> Instruction {
    let mut changed = *instruction;
    changed.negate_condition_code();
    changed
}

/// What ends loops: the conditional branches backwards that tell less from less or
/// equal, and the comparisons with a constant that decide a branch backwards.
///
/// Indices into [`Program::instructions`], ascending.
pub(super) fn loop_ends(program: &Program) -> Vec<u32> {
    let mut found = Vec::new();
    for function in program.functions() {
        let instructions = program.instructions_of(function);
        for (at, branch) in instructions.iter().enumerate() {
            let target = branch.near_branch_target();
            let is_backwards = target <= branch.ip() && target >= function.address;
            if !branch.is_jcc_short_or_near() || !is_backwards {
                continue;
            }
            if has_bound(branch) {
                found.push(branch.ip());
            }
            found.extend(comparison(&instructions[..at]).map(Instruction::ip));
        }
    }
    found.sort_unstable();
    found.dedup();
    program.indices(&found)
}

/// The comparison with a constant that sets the flags after `before`, if that is what does.
fn comparison(before: &[Instruction]) -> Option<&Instruction> {
    for instruction in before.iter().rev() {
        if instruction.flow_control() != FlowControl::Next {
            return None;
        }
        if instruction.rflags_modified() != 0 {
            let is_constant = instruction.op_count() == 2 && is_immediate(instruction.op_kind(1));
            return (instruction.mnemonic() == Mnemonic::Cmp && is_constant).then_some(instruction);
        }
    }
    None
}

fn is_immediate(kind: OpKind) -> bool {
    use OpKind::{
        Immediate8, Immediate8to16, Immediate8to32, Immediate8to64, Immediate16, Immediate32,
        Immediate32to64,
    };
    matches!(
        kind,
        Immediate8
            | Immediate8to16
            | Immediate8to32
            | Immediate8to64
            | Immediate16
            | Immediate32
            | Immediate32to64
    )
}

/// `instruction`, one of [`loop_ends`], off by one.
pub(super) fn off_by_one(instruction: &Instruction) -> Vec<Instruction> {
    if let Some(code) = other_bound(instruction.code()) {
        let mut changed = *instruction;
        changed.set_code(code);
        return vec![changed];
    }
    if instruction.op_count() != 2 || !is_immediate(instruction.op_kind(1)) {
        return Vec::new();
    }
    let old = instruction.immediate(1);
    let around = [old.wrapping_sub(1), old.wrapping_add(1)];
    let changed = around.map(|value| {
        let mut changed = *instruction;
        changed.set_immediate_u64(1, value);
        (changed, value)
    });
    // One that does not fit its field has wrapped round.
    let fitting = changed.into_iter().filter(|(changed, value)| changed.immediate(1) == *value);
    fitting.map(|(changed, _)| changed).collect()
}

/// Whether `branch` tells less from less or equal, or greater from greater or equal.
fn has_bound(branch: &Instruction) -> bool {
    other_bound(branch.code()).is_some()
}

/// The branch that goes the other way if both sides are equal, and the same way otherwise.
fn other_bound(code: Code) -> Option<Code> {
    Some(match code {
        Code::Jb_rel8_64 => Code::Jbe_rel8_64,
        Code::Jbe_rel8_64 => Code::Jb_rel8_64,
        Code::Ja_rel8_64 => Code::Jae_rel8_64,
        Code::Jae_rel8_64 => Code::Ja_rel8_64,
        Code::Jl_rel8_64 => Code::Jle_rel8_64,
        Code::Jle_rel8_64 => Code::Jl_rel8_64,
        Code::Jg_rel8_64 => Code::Jge_rel8_64,
        Code::Jge_rel8_64 => Code::Jg_rel8_64,
        Code::Jb_rel32_64 => Code::Jbe_rel32_64,
        Code::Jbe_rel32_64 => Code::Jb_rel32_64,
        Code::Ja_rel32_64 => Code::Jae_rel32_64,
        Code::Jae_rel32_64 => Code::Ja_rel32_64,
        Code::Jl_rel32_64 => Code::Jle_rel32_64,
        Code::Jle_rel32_64 => Code::Jl_rel32_64,
        Code::Jg_rel32_64 => Code::Jge_rel32_64,
        Code::Jge_rel32_64 => Code::Jg_rel32_64,
        _ => return None,
    })
}
