//! `junit.xml`: the campaign as CI systems and dashboards read it.
//!
//! A test suite a class. In it, one passing case for each target counts the clean trials (as
//! properties), so that 100,000 trials are a small file; each trial that was not clean is a
//! case of its own, with its story:
//!
//! - *failure*: `undetected`, `data-lost`, `neighbour-harmed`, `hypervisor-failed`;
//! - *error*: `unexplained`, for nobody knows whether it failed;
//! - *skipped*: `corrupted`, `machine-failed`. The one is what the class stands for, and nothing
//!   promises to prevent it; the other is the end of an emulator. Neither must turn a build red,
//!   nor be hidden among what passed.
//!
//! A suite whose class had no trial has one case, skipped: that nothing ran is no success.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use quick_junit::{NonSuccessKind, Property, Report, TestCase, TestCaseStatus, TestSuite};

use super::log::Results;
use super::story;
use crate::class::Class;
use crate::record::Trial;
use crate::verdict::Verdict;

/// The document.
///
/// # Errors
///
/// It can't be built.
pub fn render(results: &Results, dir: &Path) -> Result<String> {
    let mut report = Report::new("fault campaign");
    for class in &results.campaign.classes {
        let own = results.trials.iter().filter(|trial| trial.class == *class);
        report.add_test_suite(suite(*class, &own.collect::<Vec<_>>(), dir));
    }
    Ok(report.to_string()?)
}

fn suite(class: Class, trials: &[&Trial], dir: &Path) -> TestSuite {
    let mut suite = TestSuite::new(format!("fault.{class}"));
    suite.add_property(Property::new("group", class.group().name()));
    suite.add_property(Property::new("definition", class.definition()));
    if trials.is_empty() {
        let mut status = TestCaseStatus::skipped();
        status.set_message("no trial of this class was run");
        suite.add_test_case(case(class, "no trials".to_owned(), status));
    }
    for (target, counts) in clean(trials) {
        let name = format!("{target}: clean trials");
        let mut case = case(class, name, TestCaseStatus::success());
        case.set_assertions(counts.values().sum::<usize>());
        for (verdict, count) in counts {
            case.add_property(Property::new(verdict.name(), count.to_string()));
        }
        suite.add_test_case(case);
    }
    for trial in trials.iter().filter(|trial| !trial.verdict.is_clean()) {
        let name = format!("{}: trial {}", trial.target, trial.trial);
        suite.add_test_case(case(class, name, status(trial, dir)));
    }
    suite
}

/// Counts of clean trials by target and verdict.
fn clean<'a>(trials: &[&'a Trial]) -> BTreeMap<&'a str, BTreeMap<Verdict, usize>> {
    let mut targets: BTreeMap<&str, BTreeMap<Verdict, usize>> = BTreeMap::new();
    for trial in trials.iter().filter(|trial| trial.verdict.is_clean()) {
        *targets.entry(&trial.target).or_default().entry(trial.verdict).or_default() += 1;
    }
    targets
}

fn case(class: Class, name: String, status: TestCaseStatus) -> TestCase {
    let mut case = TestCase::new(name, status);
    case.set_classname(format!("fault.{}.{class}", class.group()));
    case
}

fn status(trial: &Trial, dir: &Path) -> TestCaseStatus {
    let mut status = match trial.verdict {
        Verdict::Corrupted | Verdict::MachineFailed => TestCaseStatus::skipped(),
        Verdict::Unexplained => TestCaseStatus::non_success(NonSuccessKind::Error),
        _ => TestCaseStatus::non_success(NonSuccessKind::Failure),
    };
    status.set_type(trial.verdict.name());
    status.set_message(story::outcome(trial));
    status.set_description(story::full(trial, dir));
    status
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use roxmltree::{Document, Node};

    use super::super::samples;
    use super::*;

    fn number(node: Node<'_, '_>, name: &str) -> u64 {
        node.attribute(name).unwrap().parse().unwrap()
    }

    #[test]
    fn every_trial_is_counted_once() {
        let results = samples::results(5_000);
        let xml = render(&results, Path::new("out")).unwrap();
        let document = Document::parse(&xml).unwrap();
        let root = document.root_element();
        let suites: Vec<_> =
            root.children().filter(|node| node.has_tag_name("testsuite")).collect();
        assert_eq!(suites.len(), Class::ALL.len());

        let of = |verdict: Verdict| {
            results.trials.iter().filter(|trial| trial.verdict == verdict).count() as u64
        };
        let clean: u64 = document
            .descendants()
            .filter(|node| node.has_tag_name("testcase") && node.has_attribute("assertions"))
            .map(|node| number(node, "assertions"))
            .sum();
        let properties: u64 = document
            .descendants()
            .filter(|node| node.has_tag_name("testcase"))
            .flat_map(|node| node.descendants().filter(|node| node.has_tag_name("property")))
            .map(|node| number(node, "value"))
            .sum();
        let is_clean = results.trials.iter().filter(|trial| trial.verdict.is_clean()).count();
        assert_eq!((clean, properties), (is_clean as u64, is_clean as u64));
        let count = |name: &str| suites.iter().map(|suite| number(*suite, name)).sum::<u64>();
        let failed = of(Verdict::Undetected);
        assert!(failed > 0 && of(Verdict::Corrupted) > 0);
        assert_eq!(count("failures"), failed);
        assert_eq!(number(root, "failures"), failed);
        assert_eq!(count("errors"), of(Verdict::Unexplained));
        assert_eq!(count("skipped"), of(Verdict::Corrupted));
        let names: Vec<&str> = document
            .descendants()
            .filter(|node| node.has_tag_name("testcase"))
            .filter_map(|node| node.attribute("name"))
            .filter(|name| name.contains("trial "))
            .collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert_eq!(names.len() as u64, 5_000 - clean);
    }

    #[test]
    fn verdicts_are_told_apart() {
        let mut results = samples::results(0);
        results.campaign.classes = vec![Class::Nop, Class::Panic];
        let wanted = [
            (Verdict::Harmless, None),
            (Verdict::Corrupted, Some("skipped")),
            (Verdict::MachineFailed, Some("skipped")),
            (Verdict::Undetected, Some("failure")),
            (Verdict::DataLost, Some("failure")),
            (Verdict::NeighbourHarmed, Some("failure")),
            (Verdict::HypervisorFailed, Some("failure")),
            (Verdict::Unexplained, Some("error")),
        ];
        for (number, (verdict, _)) in wanted.iter().enumerate() {
            let quiet = samples::quiet(Class::Nop)(number as u64);
            let trial = Trial { verdict: *verdict, target: "blk".to_owned(), ..quiet };
            results.trials.push(trial);
        }
        let xml = render(&results, Path::new("out")).unwrap();
        let document = Document::parse(&xml).unwrap();
        for (number, (verdict, element)) in wanted.iter().enumerate() {
            let name = format!("blk: trial {number}");
            let case = document.descendants().find(|node| node.attribute("name") == Some(&name));
            assert_eq!(case.is_some(), element.is_some(), "{verdict}");
            let Some((case, element)) = case.zip(*element) else { continue };
            let inner = case.first_element_child().unwrap();
            assert!(inner.has_tag_name(element), "{verdict}: {}", inner.tag_name().name());
            assert_eq!(inner.attribute("type"), Some(verdict.name()));
            let story = inner.text().unwrap();
            assert!(story.contains(&format!("cargo xtask fault replay out {number}")), "{story}");
        }
        // The class that never ran.
        let case = document
            .descendants()
            .find(|node| node.attribute("classname") == Some("fault.control.panic"))
            .unwrap();
        assert!(case.first_element_child().unwrap().has_tag_name("skipped"));
    }

    #[test]
    fn whatever_a_function_is_called_the_document_is_sound() {
        let name = "<a::B<'_> as C>::d & ]]> \u{1b}[31m\u{0} \"q\"";
        let mut results = samples::results(0);
        let mut trial = samples::quiet(Class::Nop)(0);
        trial.verdict = Verdict::Undetected;
        trial.note = Some(name.to_owned());
        trial.plan.function = Some(name.to_owned());
        results.trials.push(trial);
        let xml = render(&results, Path::new("out")).unwrap();
        let document = Document::parse(&xml).unwrap();
        let failure = document.descendants().find(|node| node.has_tag_name("failure")).unwrap();
        assert!(failure.text().unwrap().contains("in <a::B<'_> as C>::d & ]]> "));
    }

    #[test]
    fn a_hundred_thousand_clean_trials_are_a_small_file() {
        let mut results = samples::results(0);
        for number in 0..100_000 {
            let class = Class::ALL[number as usize % Class::ALL.len()];
            results.trials.push(Trial { trial: number, class, ..samples::quiet(class)(0) });
        }
        let xml = render(&results, Path::new("out")).unwrap();
        assert!(xml.len() < 100_000, "{} bytes", xml.len());
    }
}
