//! Mutations of a real program, which is this test itself: some hundred thousand
//! instructions, written by a compiler and by hand.

use std::collections::HashSet;
use std::sync::OnceLock;

use fault::class::Class;
use fault::mutate::{Program, TextMutation, plan, plan_text};
use fault::plan::Fault;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};

const SEEDS: u64 = 2_000;

fn own() -> &'static Program {
    static OWN: OnceLock<Program> = OnceLock::new();
    OWN.get_or_init(|| {
        let path = std::env::current_exe().expect("this program has a file");
        Program::read(&std::fs::read(path).expect("it can be read")).expect("it has symbols")
    })
}

/// A mutation and what it made of the instruction.
struct Made {
    mutation: TextMutation,
    old: Instruction,
    /// The first, and what follows it in the place of the old one.
    new: Vec<Instruction>,
}

/// Mutations of `class`, one for each seed; each has been applied to the text, and keeps
/// the instructions before and behind it.
fn made(class: Class) -> Vec<Made> {
    let program = own();
    let mut found = Vec::new();
    for seed in 0..SEEDS {
        let plan = |seed| {
            let mut rng = fastrand::Rng::with_seed(seed);
            plan_text(class, program, &mut rng, &|_| true)
        };
        let Some(mutation) = plan(seed) else { continue };
        if seed % 64 == 0 {
            assert_eq!(plan(seed).as_ref(), Some(&mutation), "{class}, seed {seed}");
        }
        let TextMutation { address, at, before, after, function, .. } = &mutation;
        let old = *program.instruction_at(*address).expect("it is an instruction of the program");
        assert_eq!(program.function_at(*address).map(|f| &f.name), Some(function));
        assert_eq!(before.len(), after.len(), "{mutation:?}");
        assert_ne!(before.first(), after.first(), "{mutation:?}");
        assert_ne!(before.last(), after.last(), "{mutation:?}");
        let mut code = program.bytes(*address, old.len() as u64).expect("it is text").to_vec();
        let place = (at - address) as usize..(at - address) as usize + before.len();
        assert_eq!(code.get(place.clone()), Some(before.as_slice()), "{mutation:?}");
        code[place].copy_from_slice(after);
        let new = Decoder::with_ip(64, &code, *address, DecoderOptions::NONE).into_iter().collect();
        found.push(Made { mutation, old, new });
    }
    assert!(found.len() as u64 > SEEDS * 9 / 10, "{class}: {} of {SEEDS}", found.len());
    let places: HashSet<u64> = found.iter().map(|made| made.mutation.address).collect();
    assert!(places.len() > found.len() / 4, "{class}: {} places", places.len());
    found
}

/// Mutations of `class` into one instruction that has another form, with nothing behind it but
/// no-operations.
fn reformed(class: Class) -> impl Iterator<Item = (Instruction, Instruction, TextMutation)> {
    made(class).into_iter().map(|Made { mutation, old, new }| {
        let (first, rest) = new.split_first().expect("there is an instruction");
        assert!(rest.iter().all(|i| i.mnemonic() == Mnemonic::Nop), "{}", mutation.text);
        assert_ne!(*first, old, "{}", mutation.text);
        assert_eq!(first.mnemonic() == old.mnemonic(), !first.is_jcc_short_or_near());
        (old, *first, mutation)
    })
}

/// The one operand in which two forms of an instruction differ, which is a register,
/// and how it is used.
fn other_operand(old: &Instruction, new: &Instruction) -> (Register, Register, OpAccess) {
    assert_eq!(old.code(), new.code());
    let differs = |operand: &u32| old.op_register(*operand) != new.op_register(*operand);
    let operands: Vec<u32> = (0..old.op_count()).filter(differs).collect();
    let [operand] = operands[..] else { panic!("{old} -> {new}: operands {operands:?}") };
    let access = InstructionInfoFactory::new().info(old).op_access(operand);
    let (from, to) = (old.op_register(operand), new.op_register(operand));
    let mut restored = *new;
    restored.set_op_register(operand, from);
    assert_eq!(restored, *old);
    (from, to, access)
}

#[test]
fn registers_are_exchanged_for_others_of_their_size() {
    use OpAccess::{CondRead, CondWrite, Read, ReadCondWrite, ReadWrite, Write};
    for (class, uses) in [
        (Class::Destination, &[Write, CondWrite, ReadWrite, ReadCondWrite][..]),
        (Class::Source, &[Read, CondRead]),
    ] {
        for (old, new, TextMutation { text, .. }) in reformed(class) {
            let (from, to, access) = other_operand(&old, &new);
            assert_eq!(from.size(), to.size(), "{text}");
            assert_eq!(from.is_gpr(), to.is_gpr(), "{text}");
            assert!(uses.contains(&access), "{class}: {text}");
        }
    }
}

#[test]
fn pointers_differ_in_base_or_displacement() {
    let mut bases = 0;
    for (old, new, TextMutation { text, .. }) in reformed(Class::Pointer) {
        let mut restored = new;
        restored.set_memory_base(old.memory_base());
        restored.set_memory_displacement64(old.memory_displacement64());
        assert_eq!(restored, old, "{text}");
        if old.memory_base() != new.memory_base() {
            bases += 1;
            assert_eq!(old.memory_displacement64(), new.memory_displacement64(), "{text}");
            assert_eq!(old.memory_base().size(), new.memory_base().size(), "{text}");
        }
    }
    assert!((SEEDS / 4..SEEDS * 3 / 4).contains(&bases), "{bases}");
}

#[test]
fn branches_go_to_the_same_place_on_the_opposite_condition() {
    for (old, new, TextMutation { text, .. }) in reformed(Class::Branch) {
        assert_eq!(old.near_branch_target(), new.near_branch_target(), "{text}");
        assert_ne!(old.condition_code(), new.condition_code(), "{text}");
        let mut restored = new;
        restored.negate_condition_code();
        assert_eq!(restored, old, "{text}");
    }
}

#[test]
fn loops_end_one_sooner_or_later() {
    let mut branches = 0;
    for (old, new, TextMutation { text, .. }) in reformed(Class::LoopBound) {
        if old.is_jcc_short_or_near() {
            branches += 1;
            assert!(old.near_branch_target() <= old.ip(), "{text}");
            assert_eq!(old.near_branch_target(), new.near_branch_target(), "{text}");
            // b and be, ae and a differ by 4 in the low nibble of the opcode, l and le, ge and g by 2.
            let nibble = |i: &Instruction| match i.condition_code() as u32 {
                0 => panic!("{text}: no condition"),
                condition => condition - 1,
            };
            assert!([2, 4].contains(&(nibble(&old) ^ nibble(&new))), "{text}");
        } else {
            assert_eq!(old.mnemonic(), Mnemonic::Cmp, "{text}");
            let difference = new.immediate(1).wrapping_sub(old.immediate(1)).cast_signed();
            assert!([-1, 1].contains(&difference), "{text}");
        }
    }
    assert!((SEEDS / 10..SEEDS).contains(&branches), "{branches}");
}

#[test]
fn what_is_left_out_becomes_no_operations() {
    for class in [Class::Nop, Class::Uninitialised] {
        for Made { mutation, new, .. } in made(class) {
            assert!(new.iter().all(|i| i.mnemonic() == Mnemonic::Nop), "{}", mutation.text);
            assert!(mutation.text.ends_with("-> nop"), "{}", mutation.text);
        }
    }
}

#[test]
fn initial_values_are_stored_in_the_frame_or_zero() {
    for Made { mutation, old, .. } in made(Class::Uninitialised) {
        let function = own().function_at(mutation.address).expect("it lies in a function");
        let first =
            &own().instructions_of(function)[..16.min(own().instructions_of(function).len())];
        assert!(first.contains(&old), "{}", mutation.text);
        match old.op0_kind() {
            OpKind::Memory => {
                assert!(matches!(old.memory_base(), Register::RSP | Register::RBP), "{old}");
            }
            _ => assert_eq!(old.op0_register(), old.op1_register(), "{old}"),
        }
    }
}

#[test]
fn one_bit_of_text_is_inverted() {
    let mut bits = 0u32;
    for Made { mutation, .. } in made(Class::TextBit) {
        let [before, after] = [mutation.before[0], mutation.after[0]];
        assert_eq!((mutation.before.len(), (before ^ after).count_ones()), (1, 1), "{mutation:?}");
        bits |= 1 << (before ^ after).trailing_zeros();
    }
    assert_eq!(bits, 0xff);
}

#[test]
fn a_campaign_may_be_kept_to_a_function() {
    let function = own().functions_named("fault::mutate::program::Program::read");
    let [function] = function[..] else { panic!("{function:?}") };
    for class in [Class::TextBit, Class::Nop, Class::Destination, Class::Source, Class::Pointer] {
        for seed in 0..50 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let within = |address| function.range().contains(&address);
            let made = plan_text(class, own(), &mut rng, &within).expect("it has such sites");
            assert!(within(made.address) && within(made.at), "{made:?}");
            assert!(made.function.ends_with("Program::read"), "{made:?}");
        }
        let none = plan_text(class, own(), &mut fastrand::Rng::with_seed(1), &|_| false);
        assert_eq!(none, None);
    }
}

#[test]
fn registers_are_struck_at_instructions_that_use_them() {
    const NAMES: [&str; 16] = [
        "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    let mut seen = HashSet::new();
    for seed in 0..SEEDS {
        for class in [Class::RandomWord, Class::WildWrite] {
            let made = || plan(class, own(), &mut fastrand::Rng::with_seed(seed), &|_| true);
            let planned = made().expect("there are sites");
            assert_eq!(made().as_ref(), Some(&planned));
            let (Fault::Register { address, register, .. }
            | Fault::Store { address, register, .. }) = planned.fault
            else {
                panic!("{planned:?}");
            };
            seen.insert(register);
            let instruction = own().instruction_at(address).expect("it is an instruction");
            let mut factory = InstructionInfoFactory::new();
            let info = factory.info(instruction);
            let is_it = |other: Register| {
                format!("{:?}", other.full_register()).to_lowercase() == NAMES[register]
            };
            let is_read = info.used_registers().iter().any(|used| {
                let is_written = matches!(used.access(), OpAccess::Write | OpAccess::CondWrite);
                is_it(used.register()) && !is_written
            });
            // What never reads memory has an address all the same.
            assert!(
                is_read || is_it(instruction.memory_base()) || is_it(instruction.memory_index())
            );
            if class == Class::WildWrite {
                assert!(is_it(instruction.memory_base()), "{planned:?}");
                let is_write = |access| !matches!(access, OpAccess::Read | OpAccess::CondRead);
                let writes = info.used_memory().iter().any(|memory| is_write(memory.access()));
                assert!(writes, "{planned:?}");
            }
        }
    }
    assert_eq!(seen.len(), NAMES.len());
}

#[test]
fn calls_return_behind_themselves() {
    let mut calls = 0;
    for call in own().calls() {
        calls += 1;
        assert!(matches!(call.flow_control(), FlowControl::Call | FlowControl::IndirectCall));
        assert_eq!(call.next_ip(), call.ip() + call.len() as u64);
    }
    assert!(calls > 1_000, "{calls}");
}

#[test]
fn nearly_all_functions_are_instructions_to_their_ends() {
    let program = own();
    let mut decoded = 0;
    for function in program.functions() {
        let Some((last, rest)) = program.instructions_of(function).split_last() else { continue };
        decoded += 1;
        assert_eq!(rest.first().unwrap_or(last).ip(), function.address);
        assert_eq!(last.next_ip(), function.range().end);
    }
    let all = program.functions().len();
    assert!(all > 1_000 && decoded * 100 > all * 99, "{decoded} of {all}");
}
