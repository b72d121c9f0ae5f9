//! Where unsafe code is, against the table in the book's chapter on soundness.
//!
//! Every Rust file of the repository is cut into tokens, so comments and strings do not count, and
//! code that no build on this machine compiles does, as do bodies of macros. The lints
//! `unsafe_code` and `undocumented_unsafe_blocks` see only what is compiled and can be switched
//! off file by file; this check cannot.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use toml::Value;

use crate::workspace::{self, Metadata};

const CHAPTER: &str = "docs/src/soundness.md";
/// Programs that attack.
const HOSTILE: &str = "tests/domains/attacks/";
const BEGIN: &str = "<!-- unsafe code: begin (`cargo xtask check --write` writes this table) -->";
const END: &str = "<!-- unsafe code: end -->";

/// What counts of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// `unsafe { … }`.
    blocks: u32,
    /// `unsafe fn`, in traits and `extern` blocks too.
    functions: u32,
    /// `unsafe impl` and `unsafe trait`.
    impls: u32,
    /// `#[unsafe(…)]`.
    attributes: u32,
    /// `asm!`, `naked_asm!` and `global_asm!`.
    assembly: u32,
    /// All other uses of the word: `unsafe extern` blocks, types of function pointers.
    others: u32,
}

impl Counts {
    fn cells(self) -> [u32; 6] {
        let Self { blocks, functions, impls, attributes, assembly, others } = self;
        [blocks, functions, impls, attributes, assembly, others]
    }

    fn add(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.functions += other.functions;
        self.impls += other.impls;
        self.attributes += other.attributes;
        self.assembly += other.assembly;
        self.others += other.others;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cells().iter().try_for_each(|cell| match cell {
            0 => write!(f, "  |"),
            _ => write!(f, " {cell} |"),
        })
    }
}

/// What is in one file.
#[derive(Debug, Default)]
struct Found {
    counts: Counts,
    /// It switches the lint `unsafe_code` off.
    allows: bool,
    /// What is wrong whatever the book says, with the line.
    problems: Vec<(usize, String)>,
}

impl Found {
    /// # Errors
    ///
    /// The text is not Rust.
    fn read(text: &str) -> Result<Self> {
        // rustc takes a first line `#!…` that is no attribute for the shell's.
        let tokens = TokenStream::from_str(text).map_err(|error| anyhow!("no Rust: {error}"))?;
        let mut found = Self::default();
        let lines: Vec<&str> = text.lines().collect();
        found.walk(tokens, &lines, false);
        Ok(found)
    }

    /// `promised`: inside of an `unsafe impl`, where the trait says what functions require.
    fn walk(&mut self, tokens: TokenStream, lines: &[&str], promised: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut promised_body = false;
        for (index, token) in tokens.iter().enumerate() {
            let rest = tokens.get(index + 1..).unwrap_or_default();
            match token {
                TokenTree::Group(group) => {
                    let body = promised_body && group.delimiter() == Delimiter::Brace;
                    self.walk(group.stream(), lines, promised || body);
                    promised_body &= !body;
                }
                TokenTree::Ident(ident) => {
                    let line = ident.span().start().line;
                    let called =
                        matches!(rest.first(), Some(TokenTree::Punct(p)) if p.as_char() == '!');
                    match ident.to_string().as_str() {
                        "unsafe" => promised_body |= self.keyword(line, rest, lines, promised),
                        "asm" | "naked_asm" | "global_asm" if called => self.counts.assembly += 1,
                        "include" if called && !includes_rust(rest) => self.problem(
                            line,
                            "includes code that this check can't see; name a file `*.rs`",
                        ),
                        level @ ("allow" | "expect" | "warn") => self.level(line, level, rest),
                        _ => {}
                    }
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }

    /// The word `unsafe`, followed by `rest`. Says whether it begins an `unsafe impl`.
    fn keyword(&mut self, line: usize, rest: &[TokenTree], lines: &[&str], promised: bool) -> bool {
        let is_word =
            |at: usize, word| matches!(rest.get(at), Some(TokenTree::Ident(i)) if i == word);
        let function = rest.iter().position(|token| {
            // Between the two only `extern "C"`.
            !matches!(token, TokenTree::Literal(_))
                && !matches!(token, TokenTree::Ident(i) if i == "extern")
        });
        match (rest.first(), function) {
            (Some(TokenTree::Group(group)), _) if group.delimiter() == Delimiter::Brace => {
                self.counts.blocks += 1;
                self.require(line, lines, "unsafe block", &["SAFETY:"]);
            }
            (Some(TokenTree::Group(group)), _) if group.delimiter() == Delimiter::Parenthesis => {
                self.counts.attributes += 1;
            }
            _ if is_word(0, "impl") => {
                self.counts.impls += 1;
                self.require(line, lines, "unsafe impl", &["SAFETY:"]);
                return true;
            }
            _ if is_word(0, "trait") => {
                self.counts.impls += 1;
                self.require(line, lines, "unsafe trait", &["# Safety"]);
            }
            (_, Some(at))
                if is_word(at, "fn") && matches!(rest.get(at + 1), Some(TokenTree::Ident(_))) =>
            {
                self.counts.functions += 1;
                if !promised {
                    self.require(line, lines, "unsafe function", &["# Safety", "SAFETY:"]);
                }
            }
            _ => self.counts.others += 1,
        }
        false
    }

    /// `allow(…)`, `expect(…)` or `warn(…)`: all of them let pass what is denied for the workspace.
    fn level(&mut self, line: usize, level: &str, rest: &[TokenTree]) {
        let Some(TokenTree::Group(group)) = rest.first() else { return };
        for token in group.stream() {
            let TokenTree::Ident(lint) = token else { continue };
            match lint.to_string().as_str() {
                "unsafe_code" => self.allows = true,
                lint @ ("undocumented_unsafe_blocks" | "unsafe_op_in_unsafe_fn") => {
                    self.problem(line, &format!("`{level}` of the lint `{lint}`"));
                }
                _ => {}
            }
        }
    }

    /// Looks for a comment with one of `words` before the statement or item around `line`.
    fn require(&mut self, line: usize, lines: &[&str], what: &str, words: &[&str]) {
        let above = lines.get(..line.saturating_sub(1)).unwrap_or_default();
        for text in above.iter().rev().map(|text| text.trim()) {
            let comment = text.starts_with("//");
            if comment && words.iter().any(|word| text.contains(word)) {
                return;
            }
            // What stands before the end of another statement or block is about that.
            if text.is_empty() || !comment && text.ends_with([';', '{', '}']) {
                break;
            }
        }
        self.problem(line, &format!("{what} without a comment `{}`", words.join("` or `")));
    }

    fn problem(&mut self, line: usize, what: &str) {
        self.problems.push((line, what.to_owned()));
    }
}

/// `!("….rs")` follows, and so the file is read like all others.
fn includes_rust(rest: &[TokenTree]) -> bool {
    let Some(TokenTree::Group(group)) = rest.get(1) else { return false };
    let mut tokens = group.stream().into_iter();
    matches!(
        (tokens.next(), tokens.next()),
        (Some(TokenTree::Literal(path)), None) if path.to_string().ends_with(".rs\"")
    )
}

/// Compares the code with the chapter.
///
/// # Errors
///
/// They differ, or code breaks a rule.
pub fn unsafe_code() -> Result<()> {
    let (found, mut problems) = survey(workspace::root())?;
    let chapter = read(&workspace::root().join(CHAPTER))?;
    problems.extend(judge(&found, &chapter)?);
    problems.extend(lints()?);
    problems.iter().for_each(|problem| eprintln!("{problem}"));
    if !problems.is_empty() {
        bail!("{} problems; what must be argued is in {CHAPTER}", problems.len());
    }
    let mut total = Counts::default();
    found.values().for_each(|counts| total.add(*counts));
    eprintln!("{} modules with {} blocks, as in {CHAPTER}", found.len(), total.blocks);
    Ok(())
}

/// Writes the table into the chapter. Arguments for new modules remain to be written by hand.
///
/// # Errors
///
/// The chapter has no place for it, or files can't be read or written.
pub fn write() -> Result<()> {
    let (found, _) = survey(workspace::root())?;
    let path = workspace::root().join(CHAPTER);
    let chapter = read(&path)?;
    let (before, _, after) = split(&chapter)?;
    let text = format!("{before}{BEGIN}\n\n{}\n{END}{after}", table(&found));
    std::fs::write(&path, text).with_context(|| format!("can't write {CHAPTER}"))?;
    eprintln!("{CHAPTER}: {} modules", found.len());
    Ok(())
}

/// All files below `root` with unsafe code, and what is wrong with them whatever the book says.
fn survey(root: &Path) -> Result<(BTreeMap<String, Counts>, Vec<String>)> {
    let mut files = Vec::new();
    rust_files(root, &mut files)?;
    files.sort();
    ensure!(!files.is_empty(), "no Rust files below {}", root.display());
    let mut all = BTreeMap::new();
    let mut problems = Vec::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        let found = Found::read(&read(&file)?).with_context(|| name.clone())?;
        problems.extend(found.problems.iter().map(|(line, what)| format!("{name}:{line}: {what}")));
        let is_unsafe = found.counts != Counts::default();
        if found.allows && !is_unsafe {
            problems.push(format!("{name}: lets unsafe code in and has none"));
        }
        if is_unsafe {
            all.insert(name, found.counts);
        }
    }
    Ok((all, problems))
}

/// Collects `*.rs` below `dir`, but for build output, what running nodes leave, and hidden folders.
fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let unreadable = || format!("can't read {}", dir.display());
    for entry in std::fs::read_dir(dir).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let path = entry.path();
        let name = entry.file_name();
        if entry.file_type().with_context(unreadable)?.is_dir() {
            let skipped = name == "target" || name.as_encoded_bytes().starts_with(b".");
            if !skipped && path != workspace::run_dir() {
                rust_files(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// How the code differs from the chapter.
fn judge(found: &BTreeMap<String, Counts>, chapter: &str) -> Result<Vec<String>> {
    let (before, listed, after) = split(chapter)?;
    let wanted = table(found);
    let mut problems = Vec::new();
    let argued = |what: &str| before.contains(what) || after.contains(what);
    for file in found.keys() {
        let quoted = format!("`{file}`");
        // Of hostile programs it is the folder that is argued for: they are to break rules.
        let hostile = file.starts_with(HOSTILE) && argued(&format!("`{HOSTILE}`"));
        if !listed.contains(&quoted) {
            problems.push(format!("{file}: has unsafe code and is not in the list"));
        } else if !hostile && !argued(&quoted) {
            problems.push(format!("{file}: nothing in the chapter argues for it"));
        }
    }
    if listed.trim() != wanted.trim() {
        for line in listed.lines().filter(|line| !wanted.contains(*line)) {
            problems.push(format!("the book says:  {line}"));
        }
        for line in wanted.lines().filter(|line| !listed.contains(*line)) {
            problems.push(format!("the code says:  {line}"));
        }
        problems.push("`cargo xtask check --write` brings the table up to date".to_owned());
    }
    Ok(problems)
}

/// The chapter before, in and after the table.
fn split(chapter: &str) -> Result<(&str, &str, &str)> {
    let (before, rest) =
        chapter.split_once(BEGIN).with_context(|| format!("{CHAPTER} lacks the line {BEGIN}"))?;
    let (listed, after) =
        rest.split_once(END).with_context(|| format!("{CHAPTER} lacks the line {END}"))?;
    Ok((before, listed, after))
}

fn table(found: &BTreeMap<String, Counts>) -> String {
    let mut text = "| module | blocks | fns | impls | attributes | assembly | others |\n\
                    |---|---|---|---|---|---|---|\n"
        .to_owned();
    let mut total = Counts::default();
    for (file, counts) in found {
        text += &format!("| `{file}` |{counts}\n");
        total.add(*counts);
    }
    text + &format!("| all {} |{total}\n", found.len())
}

/// The lints of the workspace are what this check relies on, and every package takes them.
fn lints() -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let value = |path: &Path| -> Result<Value> {
        toml::from_str(&read(path)?).with_context(|| format!("can't read {}", path.display()))
    };
    let workspace = value(&workspace::root().join("Cargo.toml"))?;
    for (tool, lint) in [
        ("rust", "unsafe_code"),
        ("rust", "unsafe_op_in_unsafe_fn"),
        ("clippy", "undocumented_unsafe_blocks"),
    ] {
        let path = ["workspace", "lints", tool, lint];
        let level = path.iter().try_fold(&workspace, |value, key| value.get(key));
        if level.and_then(Value::as_str) != Some("deny") {
            problems.push(format!("Cargo.toml: `{lint}` is not denied"));
        }
    }
    for package in Metadata::load(None)?.packages {
        let package = value(&package.manifest_path)
            .map(|value| (value.get("lints").and_then(|l| l.get("workspace")).cloned(), package))?;
        if let (None | Some(Value::Boolean(false)), package) = package {
            problems.push(format!("{}: does not take the workspace's lints", package.name));
        }
    }
    Ok(problems)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(text: &str) -> [u32; 6] {
        Found::read(text).unwrap().counts.cells()
    }

    fn problems(text: &str) -> Vec<(usize, String)> {
        Found::read(text).unwrap().problems
    }

    #[test]
    fn every_kind_of_unsafe_counts_and_words_in_texts_do_not() {
        let text = r##"
            // unsafe { }
            /// unsafe fn
            const A: &str = "unsafe { asm!() }";
            const B: &str = r#"unsafe"#;
            // SAFETY: a reason.
            const C: u8 = unsafe { f() };
            /// # Safety
            /// Do not.
            pub unsafe extern "C" fn g() { naked_asm!("ret") }
            // SAFETY: a reason.
            unsafe impl Send for X {}
            #[unsafe(no_mangle)]
            fn h() {}
            unsafe extern "C" { fn i(); }
            type J = unsafe extern "C" fn(u8);
            global_asm!("nop");
        "##;
        assert_eq!(counts(text), [1, 1, 1, 1, 2, 2]);
        assert_eq!(problems(text), []);
    }

    #[test]
    fn code_that_is_not_compiled_here_and_bodies_of_macros_count() {
        let text = "
            #[cfg(not(unix))]
            fn f() {
                // SAFETY: a reason.
                unsafe { g() }
            }
            macro_rules! m {
                () => {
                    unsafe { g() }
                };
            }
        ";
        assert_eq!(counts(text), [2, 0, 0, 0, 0, 0]);
        assert_eq!(problems(text), [(9, "unsafe block without a comment `SAFETY:`".to_owned())]);
    }

    #[test]
    fn a_reason_belongs_to_one_statement() {
        let text = "
            fn f() {
                // SAFETY: a reason, of
                // several lines.
                let a =
                    unsafe { g() };
                unsafe { g() };

                // SAFETY: of nothing.

                unsafe { g() };
            }
            unsafe fn h() {}
            unsafe impl Send for X {}
            // SAFETY: a reason.
            unsafe impl GlobalAlloc for X {
                unsafe fn alloc() {}
            }
            impl X {
                unsafe fn alloc() {}
            }
        ";
        let lines: Vec<usize> = problems(text).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [7, 11, 13, 14, 20]);
    }

    #[test]
    fn lints_cannot_be_switched_off_and_code_not_hidden() {
        assert!(Found::read("#![allow(dead_code, unsafe_code)]").unwrap().allows);
        assert!(Found::read("#[cfg_attr(test, expect(unsafe_code))] fn f() {}").unwrap().allows);
        assert!(!Found::read("#![forbid(unsafe_code)]").unwrap().allows);
        assert_eq!(problems("#![allow(clippy::undocumented_unsafe_blocks)]").len(), 1);
        assert_eq!(problems("include!(\"../x.rs\");"), []);
        assert_eq!(problems("include!(concat!(env!(\"OUT_DIR\"), \"/x.rs\"));").len(), 1);
        assert!(Found::read("fn f( {").is_err());
    }

    #[test]
    fn the_chapter_must_list_and_argue_what_there_is() {
        let one = Counts { blocks: 1, ..Counts::default() };
        let found = BTreeMap::from([("a.rs".to_owned(), one)]);
        let good = format!("`a.rs`\n{BEGIN}\n\n{}\n{END}\n", table(&found));
        assert_eq!(judge(&found, &good).unwrap(), Vec::<String>::new());

        let argued_nowhere = good.strip_prefix("`a.rs`").unwrap();
        assert_eq!(judge(&found, argued_nowhere).unwrap().len(), 1);

        let two = BTreeMap::from([("a.rs".to_owned(), Counts { blocks: 2, ..one })]);
        let all = judge(&two, &good).unwrap().join("\n");
        assert!(all.contains("the book says:  | `a.rs` | 1 |"), "{all}");
        assert!(all.contains("the code says:  | `a.rs` | 2 |"), "{all}");

        let more = BTreeMap::from([("a.rs".to_owned(), one), ("b.rs".to_owned(), one)]);
        let all = judge(&more, &good).unwrap().join("\n");
        assert!(all.contains("b.rs: has unsafe code and is not in the list"), "{all}");

        let none = judge(&BTreeMap::new(), &good).unwrap().join("\n");
        assert!(none.contains("the book says:  | `a.rs` | 1 |"), "{none}");
        assert!(judge(&found, "no table").is_err());
    }
}
