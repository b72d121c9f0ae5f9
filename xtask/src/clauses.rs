//! Every clause of the boundary's specification names what holds it.
//!
//! A clause of `ring-proto/SPEC.md` ends with `Held by:` and names: of a test
//! function, of a model as `loom::NAME` or `model::NAME`, of a system
//! test as `system::NAME`, of a fuzz target as `fuzz::NAME`. Each must be in the tree.
//! Rust files are cut into tokens, so a name in a comment or a string is none,
//! and tests within macros such as `proptest!` are.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::{fuzz, workspace};

const SPEC: &str = "ring-proto/SPEC.md";
const HELD_BY: &str = "Held by:";
/// Folders without tests of ours.
const SKIPPED: [&str; 3] = ["target", ".git", "run"];

/// A clause, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
struct Clause {
    /// Such as `RING-4`.
    name: String,
    line: usize,
    holders: Vec<String>,
}

/// What there is to hold a clause, each under the name that a clause gives it.
#[derive(Debug, Default)]
struct Holders(BTreeSet<String>);

/// Checks the specification.
///
/// # Errors
///
/// A clause without a holder, or one that is not in the tree.
pub fn clauses() -> Result<()> {
    let root = workspace::root();
    let text = fs::read_to_string(root.join(SPEC)).with_context(|| format!("can't read {SPEC}"))?;
    let mut holders = Holders::default();
    holders.collect(root)?;
    holders.0.extend(fuzz::targets()?.into_iter().map(|name| format!("fuzz::{name}")));
    let clauses = parse(&text)?;
    let wrong = complaints(&clauses, &holders.0);
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    let named: BTreeSet<&String> = clauses.iter().flat_map(|clause| &clause.holders).collect();
    eprintln!("{} clauses are held by {} tests, models and targets", clauses.len(), named.len());
    Ok(())
}

/// The clauses of a specification.
fn parse(text: &str) -> Result<Vec<Clause>> {
    let mut clauses: Vec<Clause> = Vec::new();
    // Within the list of a clause's holders.
    let mut listing = false;
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(name) = line.strip_prefix("- **").and_then(|rest| rest.split_once("**")) {
            let name = name.0.to_owned();
            ensure!(clauses.iter().all(|c| c.name != name), "{SPEC}:{number}: {name} again");
            clauses.push(Clause { name, line: number, holders: Vec::new() });
            listing = false;
        }
        let rest = match line.split_once(HELD_BY) {
            Some((_, rest)) => {
                listing = true;
                rest
            }
            None if listing && line.starts_with("  ") => line,
            None => {
                listing = false;
                continue;
            }
        };
        let clause = clauses
            .last_mut()
            .ok_or_else(|| anyhow!("{SPEC}:{number}: `{HELD_BY}` outside of a clause"))?;
        // Names stand between backticks: every second piece.
        clause.holders.extend(rest.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    ensure!(!clauses.is_empty(), "{SPEC} has no clause");
    Ok(clauses)
}

/// What is wrong, a line each.
fn complaints(clauses: &[Clause], there: &BTreeSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for Clause { name, line, holders } in clauses {
        if holders.is_empty() {
            wrong.push(format!("{SPEC}:{line}: {name} names no test, model or fuzz target"));
        }
        for holder in holders.iter().filter(|holder| !there.contains(*holder)) {
            wrong.push(format!("{SPEC}:{line}: {name} is held by `{holder}`, which is not there"));
        }
    }
    wrong
}

impl Holders {
    /// Takes the tests of all Rust files below `dir`.
    fn collect(&mut self, dir: &Path) -> Result<()> {
        let entries = fs::read_dir(dir).with_context(|| format!("can't read {}", dir.display()))?;
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            let name = entry.file_name();
            if entry.file_type()?.is_dir() {
                if !SKIPPED.iter().any(|skipped| name == *skipped) {
                    self.collect(&path)?;
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("can't read {}", path.display()))?;
                let tokens = TokenStream::from_str(&text)
                    .map_err(|e| anyhow!("can't read {}: {e}", path.display()))?;
                let models = [("tests/loom.rs", "loom::"), ("tests/model/main.rs", "model::")];
                let found = models.iter().find(|(file, _)| path.ends_with(file));
                let prefix = found.map_or("", |(_, prefix)| prefix);
                self.tests(tokens, prefix);
            }
        }
        Ok(())
    }

    /// Takes `#[test] fn NAME`, at any depth, and the `module::name`s of the
    /// list `tests![…]` by which system tests are registered.
    fn tests(&mut self, tokens: TokenStream, prefix: &str) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut test = false;
        for (at, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Group(group) => {
                    let attribute = at > 0 && is_punct(&tokens[at - 1], '#');
                    if attribute && group.delimiter() == Delimiter::Bracket {
                        test |= group.stream().to_string() == "test";
                        continue;
                    }
                    let list = at > 1
                        && is_punct(&tokens[at - 1], '!')
                        && tokens[at - 2].to_string() == "tests";
                    if list {
                        self.registered(group.stream());
                    }
                    self.tests(group.stream(), prefix);
                    test = false;
                }
                TokenTree::Ident(word) if word == "fn" => {
                    if let (true, Some(TokenTree::Ident(name))) = (test, tokens.get(at + 1)) {
                        self.0.insert(format!("{prefix}{name}"));
                    }
                    test = false;
                }
                _ => {}
            }
        }
    }

    /// `module::name, …`: the words before a comma or the end.
    fn registered(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        for (at, token) in tokens.iter().enumerate() {
            let last = tokens.get(at + 1).is_none_or(|next| is_punct(next, ','));
            if let (true, TokenTree::Ident(name)) = (last, token) {
                self.0.insert(format!("system::{name}"));
            }
        }
    }
}

fn is_punct(token: &TokenTree, c: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == c)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
# Title

- **RING-1** Slots are
  many. Held by: `one`, `loom::two`,
  `fuzz::three`.
- **RING-2** Another `word`.
  Held by: `one`.

Text.
";

    fn there(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_clause_names_its_holders() {
        let clauses = parse(GOOD).unwrap();
        assert_eq!(clauses.len(), 2);
        assert_eq!(clauses[0].name, "RING-1");
        assert_eq!(clauses[0].holders, ["one", "loom::two", "fuzz::three"]);
        assert_eq!(clauses[1].holders, ["one"]);
        assert!(complaints(&clauses, &there(&["one", "loom::two", "fuzz::three"])).is_empty());
    }

    #[test]
    fn a_clause_without_a_holder_and_a_holder_that_is_gone_are_named() {
        let text = GOOD.replace("  Held by: `one`.\n", "");
        let wrong = complaints(&parse(&text).unwrap(), &there(&["one", "fuzz::three"]));
        assert_eq!(
            wrong,
            [
                "ring-proto/SPEC.md:3: RING-1 is held by `loom::two`, which is not there",
                "ring-proto/SPEC.md:6: RING-2 names no test, model or fuzz target",
            ]
        );
        assert!(parse("- **A-1** x\n- **A-1** y\n").is_err());
        assert!(parse("Held by: `x`\n").is_err());
    }

    #[test]
    fn tests_are_found_in_macros_too_and_nothing_else_is() {
        let text = r##"
            #[test]
            fn plain() {}
            #[test]
            #[should_panic(expected = "x")]
            fn second() {}
            proptest! {
                #![proptest_config(x)]
                /// Words.
                #[test]
                fn inside(a in 0..3) { fn helper() {} }
            }
            #[cfg(test)]
            mod tests { #[test] fn nested() {} fn no_test() {} }
            // #[test] fn comment() {}
            const TEXT: &str = "#[test] fn string() {}";
            fn main() { let mut tests = tests![serving::boots, a::b::dies,]; }
        "##;
        let mut holders = Holders::default();
        holders.tests(TokenStream::from_str(text).unwrap(), "");
        let expected = ["inside", "nested", "plain", "second", "system::boots", "system::dies"];
        assert_eq!(holders.0, there(&expected));
    }
}
