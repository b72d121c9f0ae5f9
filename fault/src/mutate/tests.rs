//! Every form of small pieces of code, as each class makes them.

use std::collections::BTreeSet;

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};

use super::*;

const BASE: u64 = 0x20_0000;

fn assemble(instructions: &[Instruction]) -> Vec<u8> {
    let mut code = Vec::new();
    for instruction in instructions {
        let mut encoder = Encoder::new(64);
        encoder.encode(instruction, BASE + code.len() as u64).unwrap();
        code.extend(encoder.take_buffer());
    }
    code
}

/// A program of one function `driver::f`.
fn program(code: &[u8]) -> Program {
    let functions = vec![("driver::f".to_owned(), BASE, code.len() as u64)];
    let symbols = vec![("driver::f".to_owned(), BASE)];
    let text = vec![Text { address: BASE, bytes: code.to_vec() }];
    Program::of_parts(BASE, text, functions, symbols).unwrap()
}

/// All mutations of `class` that are ever chosen.
fn every(class: Class, program: &Program) -> Vec<TextMutation> {
    let mut found: Vec<TextMutation> = Vec::new();
    for seed in 0..2_000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let Some(mutation) = plan_text(class, program, &mut rng, &|_| true) else { break };
        if !found.contains(&mutation) {
            found.push(mutation);
        }
    }
    found
}

/// What the one instruction of a program becomes.
fn forms(class: Class, instruction: Instruction) -> BTreeSet<String> {
    let made = every(class, &program(&assemble(&[instruction])));
    made.iter().map(|mutation| mutation.text.split_once(" -> ").unwrap().1.to_owned()).collect()
}

fn set(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn each(registers: &[&str], form: &str) -> BTreeSet<String> {
    registers.iter().map(|register| form.replace('_', register)).collect()
}

const NEW64: [&str; 8] = ["r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
const NOT_RAX: [&str; 7] = ["rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"];
const NOT_EAX: [&str; 7] = ["ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"];

fn base(register: Register, displacement: i64) -> MemoryOperand {
    let size = if displacement == 0 { 0 } else { 1 };
    MemoryOperand::with_base_displ_size(register, displacement, size)
}

fn load(register: Register, displacement: i64) -> Instruction {
    Instruction::with2(Code::Mov_r64_rm64, Register::RAX, base(register, displacement)).unwrap()
}

fn store(register: Register, displacement: i64) -> Instruction {
    Instruction::with2(Code::Mov_rm64_r64, base(register, displacement), Register::RAX).unwrap()
}

fn two(code: Code, first: Register, second: Register) -> Instruction {
    Instruction::with2(code, first, second).unwrap()
}

fn branch(code: Code, target: u64) -> Instruction {
    Instruction::with_branch(code, target).unwrap()
}

#[test]
fn destination_is_any_register_of_the_same_size() {
    let all: Vec<&str> = NOT_RAX.into_iter().chain(NEW64).collect();
    assert_eq!(forms(Class::Destination, load(Register::RBX, 8)), each(&all, "mov _,[rbx+8]"));
    // Without a prefix there is no way to `r8d`.
    let short = two(Code::Mov_r32_rm32, Register::EAX, Register::ECX);
    assert_eq!(forms(Class::Destination, short), each(&NOT_EAX, "mov _,ecx").into_iter().collect());
    // ... and with one none to `ah`.
    let byte = two(Code::Mov_r8_rm8, Register::AL, Register::CL);
    let low = ["cl", "dl", "bl", "ah", "ch", "dh", "bh"];
    assert_eq!(forms(Class::Destination, byte), each(&low, "mov _,cl"));
    let vector = two(Code::Movaps_xmm_xmmm128, Register::XMM0, Register::XMM1);
    let others = ["xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7"];
    assert_eq!(forms(Class::Destination, vector), each(&others, "movaps _,xmm1"));
    // Read and written.
    let add = two(Code::Add_rm32_r32, Register::EAX, Register::ECX);
    assert_eq!(forms(Class::Destination, add), each(&NOT_EAX, "add _,ecx"));
}

#[test]
fn source_is_only_read() {
    let all: Vec<&str> = NOT_RAX.into_iter().chain(NEW64).collect();
    assert_eq!(forms(Class::Source, store(Register::RBX, 8)), each(&all, "mov [rbx+8],_"));
    assert_eq!(forms(Class::Source, load(Register::RBX, 8)), set(&[]));
    let compare = two(Code::Cmp_rm32_r32, Register::EAX, Register::EAX);
    let mut either = each(&NOT_EAX, "cmp eax,_");
    either.extend(each(&NOT_EAX, "cmp _,eax"));
    assert_eq!(forms(Class::Source, compare), either);
    let add = two(Code::Add_rm32_r32, Register::ECX, Register::EAX);
    assert_eq!(forms(Class::Source, add), each(&NOT_EAX, "add ecx,_"));
}

#[test]
fn registers_that_an_opcode_implies_stay() {
    let push = Instruction::with1(Code::Push_r64, Register::RAX).unwrap();
    assert_eq!(forms(Class::Destination, push), set(&[]));
    assert_eq!(forms(Class::Source, push), each(&NOT_RAX, "push _"));
    let multiply = Instruction::with1(Code::Mul_rm32, Register::EAX).unwrap();
    assert_eq!(forms(Class::Destination, multiply), set(&[]));
    assert_eq!(forms(Class::Source, multiply), each(&NOT_EAX, "mul _"));
    let shift = two(Code::Shl_rm32_CL, Register::EAX, Register::CL);
    assert_eq!(forms(Class::Source, shift), set(&[]));
    assert_eq!(forms(Class::Destination, shift), each(&NOT_EAX, "shl _,cl"));
    let short = Instruction::with2(Code::Add_EAX_imm32, Register::EAX, 7).unwrap();
    assert_eq!(forms(Class::Destination, short), set(&[]));
    let copy = Instruction::with_rep_movsq(64).unwrap();
    for class in [Class::Destination, Class::Source, Class::Pointer] {
        assert_eq!(forms(class, copy), set(&[]));
    }
}

#[test]
fn pointer_is_base_or_one_bit_of_the_displacement() {
    let bases = ["rax", "rcx", "rdx", "rbp", "rsi", "rdi"];
    let bases: Vec<&str> =
        bases.into_iter().chain(NEW64).filter(|register| *register != "r12").collect();
    let mut expected = each(&bases, "mov rax,[_+8]");
    let bits = ["+9", "+10", "+12", "", "+24", "+40", "+72", "-120"];
    expected.extend(each(&bits, "mov rax,[rbx_]").into_iter().map(|text| hexadecimal(&text)));
    assert_eq!(forms(Class::Pointer, load(Register::RBX, 8)), expected);
    // Without a displacement there is none to change, and none for rbp and r13, which need one.
    let bases: Vec<&str> = bases.into_iter().filter(|r| !["rbp", "r13"].contains(r)).collect();
    assert_eq!(forms(Class::Pointer, load(Register::RBX, 0)), each(&bases, "mov rax,[_]"));
    // A base that needs no SIB byte leaves room.
    let from_stack = forms(Class::Pointer, load(Register::RSP, 8));
    assert!(from_stack.contains("mov rax,[rbx+8]; nop"), "{from_stack:?}");
    assert!(from_stack.contains("mov rax,[r12+8]"), "{from_stack:?}");
    // What only looks like a memory operand.
    let nop = [0x0f, 0x1f, 0x44, 0x00, 0x00];
    assert_eq!(every(Class::Pointer, &program(&nop)), []);
}

/// The formatter writes numbers above 9 in hexadecimal.
fn hexadecimal(text: &str) -> String {
    let (before, rest) = text.split_at(text.find(['+', '-']).unwrap_or(text.len()));
    let digits: String = rest.chars().filter(char::is_ascii_digit).collect();
    match digits.parse::<u32>() {
        Ok(number) if number > 9 => {
            before.to_owned() + &rest.replace(&digits, &format!("{number:#x}"))
        }
        _ => text.to_owned(),
    }
}

#[test]
fn pointer_relative_to_the_instruction_changes_by_one_bit() {
    let target = BASE + 0x1_0000;
    let memory = MemoryOperand::with_base_displ(Register::RIP, target as i64);
    let address = Instruction::with2(Code::Lea_r64_m, Register::RAX, memory).unwrap();
    let program = program(&assemble(&[address]));
    let made = every(Class::Pointer, &program);
    assert_eq!(made.len(), 32);
    for TextMutation { at, before, after, .. } in made {
        assert!(at >= BASE + 3, "{at:#x} is opcode");
        assert_eq!((before.len(), (before[0] ^ after[0]).count_ones()), (1, 1));
    }
}

#[test]
fn branch_is_inverted_and_nothing_else() {
    for condition in 0..16u8 {
        for code in [vec![0x70 | condition, 0x10], vec![0x0f, 0x80 | condition, 0, 1, 0, 0]] {
            let made = every(Class::Branch, &program(&code));
            let [TextMutation { address: BASE, at, before, after, .. }] = &made[..] else {
                panic!("{made:?}");
            };
            assert_eq!(*at, BASE + code.len() as u64 / 4);
            assert_eq!((before.len(), before[0] ^ 1), (1, after[0]));
        }
    }
    // Jumps, and the loops that count by themselves, have no opposite.
    for code in [vec![0xeb, 0x10], vec![0xe3, 0x10], vec![0xe2, 0x10], vec![0xe1, 0x10]] {
        assert_eq!(every(Class::Branch, &program(&code)), []);
    }
}

/// Mutations of the ends of loops in `<body>; <branch to target>`.
fn ends_of(body: &[Instruction], code: Code, target: u64) -> BTreeSet<String> {
    let made =
        every(Class::LoopBound, &program(&assemble(&[body, &[branch(code, target)]].concat())));
    made.into_iter().map(|mutation| mutation.text).collect()
}

/// The same with the body `add rax,1; <test>`.
fn loop_ends(test: Instruction, code: Code, target: u64) -> BTreeSet<String> {
    ends_of(&[add_one(), test], code, target)
}

fn add_one() -> Instruction {
    Instruction::with2(Code::Add_rm64_imm8, Register::RAX, 1).unwrap()
}

#[test]
fn loop_bound_is_off_by_one() {
    let registers = two(Code::Cmp_rm64_r64, Register::RAX, Register::RCX);
    let pairs = [
        (Code::Jb_rel8_64, "jb", "jbe"),
        (Code::Jae_rel8_64, "jae", "ja"),
        (Code::Jl_rel8_64, "jl", "jle"),
        (Code::Jge_rel8_64, "jge", "jg"),
    ];
    let with = |from, to| set(&[&format!("{from} short 0x200000 -> {to} short 0x200000")]);
    for (strict, name, other) in pairs {
        assert_eq!(loop_ends(registers, strict, BASE), with(name, other));
        let code = flow::off_by_one(&branch(strict, BASE))[0].code();
        assert_eq!(loop_ends(registers, code, BASE), with(other, name));
    }
    // Forwards it ends no loop; and `not equal` has no neighbour.
    assert_eq!(loop_ends(registers, Code::Jb_rel8_64, BASE + 0x20), set(&[]));
    assert_eq!(loop_ends(registers, Code::Jne_rel8_64, BASE), set(&[]));

    let constant = |value| Instruction::with2(Code::Cmp_rm64_imm8, Register::RAX, value).unwrap();
    let around = ["cmp rax,8 -> cmp rax,7", "cmp rax,8 -> cmp rax,9"];
    assert_eq!(loop_ends(constant(8), Code::Jne_rel8_64, BASE), set(&around));
    assert_eq!(loop_ends(constant(8), Code::Jne_rel8_64, BASE + 0x20), set(&[]));
    let edge = set(&["cmp rax,0x7f -> cmp rax,0x7e"]);
    assert_eq!(loop_ends(constant(127), Code::Jne_rel8_64, BASE), edge);
    // What leaves the flags alone may stand between, and nothing else.
    let between = |other| ends_of(&[constant(8), other], Code::Jne_rel8_64, BASE);
    assert_eq!(between(load(Register::RBX, 8)), set(&around));
    assert_eq!(between(add_one()), set(&[]));
    assert_eq!(between(branch(Code::Call_rel32_64, BASE + 0x100)), set(&[]));
}

const NONE: [u64; 0] = [];

/// Addresses of the initial values in a function, from its begin, that can be left out.
fn initial_values(code: &[Instruction]) -> Vec<u64> {
    let made = every(Class::Uninitialised, &program(&assemble(code)));
    for mutation in &made {
        assert!(mutation.text.ends_with("-> nop"), "{}", mutation.text);
    }
    let addresses: BTreeSet<u64> = made.iter().map(|mutation| mutation.address - BASE).collect();
    addresses.into_iter().collect()
}

#[test]
fn initial_values_are_left_out_in_the_frame_only() {
    let frame = two(Code::Mov_r64_rm64, Register::RBP, Register::RSP);
    let constant = |memory| Instruction::with2(Code::Mov_rm32_imm32, memory, 5).unwrap();
    let (below, above) = (base(Register::RBP, -8), base(Register::RBP, 8));
    assert_eq!(initial_values(&[frame, constant(below)]), [3]);
    assert_eq!(initial_values(&[frame, constant(above)]), NONE);
    // `rbp` is any register before it is set.
    assert_eq!(initial_values(&[constant(below), frame]), NONE);
    assert_eq!(initial_values(&[store(Register::RSP, 8)]), [0]);
    assert_eq!(initial_values(&[store(Register::RBX, 8)]), NONE);
    // Not a store alone.
    let add = Instruction::with2(Code::Add_rm64_r64, base(Register::RSP, 8), Register::RAX);
    assert_eq!(initial_values(&[add.unwrap()]), NONE);
    // The zeroing goes, or the store, but not one of a register that is not stored as it is.
    let zero = two(Code::Xor_rm32_r32, Register::EAX, Register::EAX);
    assert_eq!(initial_values(&[zero, store(Register::RSP, 8)]), [0, 2]);
    let one = add_one();
    assert_eq!(initial_values(&[zero, one, store(Register::RSP, 8)]), [6]);
    assert_eq!(initial_values(&[zero, store(Register::RBX, 8)]), NONE);
    let vector = two(Code::Xorps_xmm_xmmm128, Register::XMM0, Register::XMM0);
    let spill =
        Instruction::with2(Code::Movaps_xmmm128_xmm, base(Register::RSP, 16), Register::XMM0);
    assert_eq!(initial_values(&[vector, spill.unwrap()]), [0, 3]);
    // Only the function's first instructions.
    let mut code = vec![one; frame::FIRST - 1];
    code.push(store(Register::RSP, 8));
    assert_eq!(initial_values(&code).len(), 1);
    code.insert(0, one);
    assert_eq!(initial_values(&code), NONE);
}

#[test]
fn no_operations_have_every_length() {
    for len in 1..=15 {
        let code = encode::no_operations(len);
        assert_eq!((code.len(), encode::show(BASE, &code, len).as_str()), (len, "nop"));
    }
    let ret = [0xc3];
    assert_eq!(every(Class::Nop, &program(&ret))[0].text, "ret -> nop");
    // Nothing in place of nothing is no fault, whatever its form: `cs nop word ptr [rax+rax]`, `endbr64`.
    for idle in [&[0x2e, 0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00][..], &[0xf3, 0x0f, 0x1e, 0xfa]] {
        assert_eq!(every(Class::Nop, &program(idle)), []);
    }
}

#[test]
fn every_bit_of_text_is_met_and_described() {
    let code =
        assemble(&[load(Register::RBX, 8), two(Code::Add_rm32_r32, Register::EAX, Register::ECX)]);
    let made = every(Class::TextBit, &program(&code));
    assert_eq!(made.len(), 8 * code.len());
    for mutation in &made {
        let [before, after] = [&mutation.before, &mutation.after].map(|bytes| bytes[0]);
        assert_eq!((mutation.before.len(), (before ^ after).count_ones()), (1, 1));
        assert_eq!(code[(mutation.at - BASE) as usize], before);
        assert!((mutation.address..mutation.address + 4).contains(&mutation.at));
    }
    // 48 8b 43 08 -> 40 8b 43 08, and 01 c8 -> 01 48, which takes what follows.
    let has = |text: &str| made.iter().any(|mutation| mutation.text == text);
    assert!(has("mov rax,[rbx+8] -> mov eax,[rbx+8]"));
    assert!(has("add eax,ecx -> (bad)"), "{made:?}");
    // 8b 43 08 -> 0b 43 08
    assert!(has("mov rax,[rbx+8] -> or rax,[rbx+8]"));
}

#[test]
fn sites_are_equally_likely_whatever_their_number_of_forms() {
    // 15 forms, 7 forms, and one that looks like a site and has none.
    let code = assemble(&[
        load(Register::RBX, 8),
        two(Code::Mov_r32_rm32, Register::EAX, Register::ECX),
        Instruction::with2(Code::Add_EAX_imm32, Register::EAX, 7).unwrap(),
    ]);
    let program = program(&code);
    let mut chosen = [0; 2];
    for seed in 0..4_000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let made = plan_text(Class::Destination, &program, &mut rng, &|_| true).unwrap();
        chosen[usize::from(made.address != BASE)] += 1;
    }
    // Four standard deviations are 126.
    assert!(chosen.iter().all(|count| (1_874..=2_126).contains(count)), "{chosen:?}");
    let only = |allowed: u64| {
        let mut rng = fastrand::Rng::with_seed(1);
        let made = plan_text(Class::Destination, &program, &mut rng, &|at| at == BASE + allowed);
        made.map(|made| made.address - BASE)
    };
    assert_eq!([0, 4, 6].map(only), [Some(0), Some(4), None]);
}

#[test]
fn classes_that_change_no_text_have_no_text_mutations() {
    let program = program(&assemble(&[load(Register::RBX, 8)]));
    for class in Class::ALL {
        let made = plan_text(*class, &program, &mut fastrand::Rng::with_seed(1), &|_| true);
        let is_made =
            matches!(class, Class::TextBit | Class::Nop | Class::Destination | Class::Pointer);
        assert_eq!(made.is_some(), is_made, "{class}");
    }
}

/// Address from the function's begin and register of every fault of `class`.
fn struck(class: Class, program: &Program) -> BTreeSet<(u64, usize, String)> {
    let mut found = BTreeSet::new();
    for seed in 0..500 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let Planned { fault, function, text } = plan(class, program, &mut rng, &|_| true).unwrap();
        let (Fault::Register { address, register, value }
        | Fault::Store { address, register, value }) = fault
        else {
            panic!("{fault:?}");
        };
        assert_eq!(function.as_deref(), Some("driver::f"));
        let (name, rest) = text.split_once(" = ").unwrap();
        assert!(rest.starts_with(&format!("{value:#x} ")), "{text}");
        found.insert((address - BASE, register, name.to_owned()));
    }
    found
}

fn struck_are(expected: &[(u64, usize, &str)]) -> BTreeSet<(u64, usize, String)> {
    expected.iter().map(|(at, number, name)| (*at, *number, (*name).to_owned())).collect()
}

#[test]
fn a_register_is_struck_where_it_is_read() {
    let memory = MemoryOperand::with_base_index(Register::RBX, Register::RCX);
    let code = assemble(&[
        Instruction::with2(Code::Add_rm32_r32, memory, Register::R9D).unwrap(),
        two(Code::Mov_r32_rm32, Register::EAX, Register::EDX),
        Instruction::with(Code::Retnq),
    ]);
    let expected = [(0, 1, "rbx"), (0, 2, "rcx"), (0, 9, "r9"), (4, 3, "rdx")];
    assert_eq!(struck(Class::RandomWord, &program(&code)), struck_are(&expected));
}

#[test]
fn a_store_goes_astray_by_its_base_alone() {
    let code = assemble(&[
        store(Register::R15, 8),
        load(Register::RBX, 8),
        // Stores the base, and would store another value.
        store(Register::RAX, 8),
        // Changes it besides.
        Instruction::with2(Code::Xadd_rm64_r64, base(Register::RBX, 0), Register::RBX).unwrap(),
        Instruction::with1(Code::Push_r64, Register::RDI).unwrap(),
        Instruction::with2(Code::Add_rm64_imm8, base(Register::RSP, 8), 1).unwrap(),
    ]);
    let expected = [(0, 15, "r15"), (17, 7, "rsp")];
    assert_eq!(struck(Class::WildWrite, &program(&code)), struck_are(&expected));
}

#[test]
fn places_and_words_are_of_every_size() {
    let program = program(&assemble(&[load(Register::RBX, 8)]));
    let (mut sizes, mut eighths) = ([BTreeSet::new(), BTreeSet::new()], [0u8; 2]);
    for seed in 0..2_000 {
        let plan = |class| {
            let mut rng = fastrand::Rng::with_seed(seed);
            plan(class, &program, &mut rng, &|_| true).unwrap().fault
        };
        let (
            Fault::Stack { address: BASE, fraction: stack, value: first },
            Fault::Heap { fraction: heap, value: second },
        ) = (plan(Class::Stack), plan(Class::Heap))
        else {
            panic!("{:?}, {:?}", plan(Class::Stack), plan(Class::Heap));
        };
        eighths[0] |= 1 << (stack >> 13);
        eighths[1] |= 1 << (heap >> 29);
        sizes[0].insert(first.leading_zeros());
        sizes[1].insert(second.leading_zeros());
    }
    assert_eq!(eighths, [0xff; 2]);
    assert!(sizes.iter().all(|sizes| (0..64).all(|size| sizes.contains(&size))), "{sizes:?}");
}

#[test]
fn what_is_no_instruction_is_not_swept_over() {
    // `ret`; padding; `ret` and a byte that begins no instruction; a function within another.
    let code = [0xc3, 0xcc, 0xc3, 0x06, 0x90, 0xc3];
    let text = vec![Text { address: BASE, bytes: code.to_vec() }];
    let functions =
        [("a", 0, 1), ("b", 2, 2), ("g", 4, 1), ("c", 4, 2), ("d", 5, 1), ("e", 6, 1), ("f", 5, 8)];
    let functions = functions.map(|(name, at, len)| (name.to_owned(), BASE + at, len)).to_vec();
    let program = Program::of_parts(BASE, text, functions, Vec::new()).unwrap();
    let names: Vec<&str> = program.functions().iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let addresses: Vec<u64> = program.instructions().iter().map(|i| i.ip() - BASE).collect();
    assert_eq!(addresses, [0, 4, 5]);
    let at = |at| program.function_at(BASE + at).map(|function| function.name.as_str());
    assert_eq!([0, 1, 3, 5, 6].map(at), [Some("a"), None, Some("b"), Some("c"), None]);
    assert_eq!(program.function_at(0), None);
    assert!(program.instructions_of(&program.functions()[1]).is_empty());
    assert_eq!(program.instructions_of(&program.functions()[2]).len(), 2);
}

#[test]
fn text_is_in_one_place() {
    let read = |second: u64| {
        let text = |address| Text { address, bytes: vec![0xc3; 4] };
        let functions = vec![("f".to_owned(), BASE, 4)];
        let text = vec![text(second), text(BASE)];
        Program::of_parts(BASE, text, functions, Vec::new()).map(|program| program.text().len())
    };
    assert_eq!([BASE - 4, BASE + 4].map(read), [Ok(2), Ok(2)]);
    let overlapping = [BASE - 3, BASE, BASE + 3, u64::MAX - 2];
    assert_eq!(overlapping.map(read), [const { Err(Unusable::Layout) }; 4]);
}

#[test]
fn a_hypercall_tells_its_number() {
    let number = |front: &[Instruction]| {
        let call = Instruction::with(Code::Vmmcall);
        let code = assemble(&[front, &[call]].concat());
        program(&code).vmmcall_number(BASE + code.len() as u64 - 3)
    };
    let set = Instruction::with2(Code::Mov_r32_imm32, Register::EAX, 7).unwrap();
    let other = two(Code::Mov_r64_rm64, Register::RCX, Register::RAX);
    assert_eq!(number(&[set, other]), Some(7));
    assert_eq!(number(&[two(Code::Xor_r32_rm32, Register::EAX, Register::EAX)]), Some(0));
    assert_eq!(number(&[other]), None, "nothing sets it");
    assert_eq!(number(&[set, load(Register::RCX, 8)]), None, "something else sets it");
    assert_eq!(number(&[set, Instruction::with(Code::Vmmcall)]), None, "it is an answer by then");
    assert_eq!(number(&[set, branch(Code::Je_rel8_64, BASE)]), None, "another way may lead here");
}
