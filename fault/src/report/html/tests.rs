use std::collections::BTreeSet;

use roxmltree::{Document, Node, ParsingOptions};

use super::super::samples;
use super::*;
use crate::class::Class;

fn page(results: &Results) -> String {
    render(results, &Summary::new(results), Path::new("out")).unwrap()
}

fn parse(page: &str) -> Document<'_> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    Document::parse_with_options(page, options).unwrap()
}

fn all<'a>(document: &'a Document<'_>, tag: &'a str) -> impl Iterator<Item = Node<'a, 'a>> {
    document.descendants().filter(move |node| node.has_tag_name(tag))
}

fn text(node: Node<'_, '_>) -> String {
    node.descendants().filter_map(|node| node.text().filter(|_| node.is_text())).collect()
}

#[test]
fn the_page_is_sound_and_asks_for_nothing() {
    for results in [samples::results(3_000), samples::results(1), samples::results(0)] {
        let page = page(&results);
        let document = parse(&page);
        let ids: Vec<&str> =
            document.descendants().filter_map(|node| node.attribute("id")).collect();
        let unique: BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(ids.len(), unique.len(), "ids are unique");
        for node in document.descendants() {
            for name in ["href", "aria-labelledby"] {
                let Some(to) = node.attribute(name) else { continue };
                let to = if name == "href" { to.strip_prefix('#') } else { Some(to) };
                if to.is_none() {
                    assert_eq!(node.attribute("href"), Some("data:,"));
                }
                assert!(to.is_none_or(|to| unique.contains(to)), "{to:?}");
            }
            let asks = ["src", "srcset", "action", "data", "poster", "style", "onload"];
            assert!(asks.iter().all(|name| !node.has_attribute(*name)), "{node:?}");
        }
        for tag in ["script", "img", "iframe", "object", "form", "base"] {
            assert_eq!(all(&document, tag).count(), 0, "{tag}");
        }
        let style = text(all(&document, "style").next().unwrap());
        assert!(!style.contains("url(") && !style.contains("@import"));
        assert!(!page.contains("://"));
    }
}

#[test]
fn tables_have_headings_and_rows_of_one_length() {
    let results = samples::results(3_000);
    let page = page(&results);
    let document = parse(&page);
    assert!(all(&document, "table").count() >= 8);
    for table in all(&document, "table") {
        let caption = table.first_element_child().unwrap();
        assert!(caption.has_tag_name("caption") && !text(caption).is_empty());
        let mut widths = BTreeSet::new();
        for row in table.descendants().filter(|node| node.has_tag_name("tr")) {
            let cells: Vec<Node<'_, '_>> = row.children().filter(Node::is_element).collect();
            assert!(cells[0].has_tag_name("th") && cells[0].has_attribute("scope"));
            let width = |cell: &Node<'_, '_>| {
                cell.attribute("colspan").map_or(1, |span| span.parse::<usize>().unwrap())
            };
            widths.insert(cells.iter().map(width).sum::<usize>());
        }
        assert_eq!(widths.len(), 1, "{}", text(caption));
    }
    let images = document.descendants().filter(|node| node.has_tag_name("svg"));
    for image in images {
        let is_named = image.attribute("role") == Some("img") && image.has_attribute("aria-label");
        assert!(is_named || image.attribute("aria-hidden") == Some("true"), "{image:?}");
    }
}

#[test]
fn foreign_text_stays_text() {
    let name = "<a::B<'_, \"x\"> as C>::d && e</code><script>alert(1)</script>";
    let mut trial = samples::quiet(Class::Nop)(0);
    trial.verdict = Verdict::Undetected;
    trial.injected = true;
    trial.plan.function = Some(name.to_owned());
    trial.plan.text = format!("mov {name}");
    trial.note = Some(name.to_owned());
    trial.neighbours = Some(name.to_owned());
    let mut results = samples::results(0);
    results.campaign.program = name.to_owned();
    trial.target = name.to_owned();
    results.campaign.targets = vec![name.to_owned()];
    results.trials.push(trial);
    let page = render(&results, &Summary::new(&results), Path::new(name)).unwrap();
    let document = parse(&page);
    assert_eq!(all(&document, "script").count(), 0);
    let whole = document.descendants().filter(|node| node.is_text() && node.text() == Some(name));
    // Program, function in its table and at the trial, targets.
    assert!(whole.count() >= 4);
    assert!(!page.contains("<script"));
}

#[test]
fn every_trial_that_was_not_clean_is_listed_with_its_command() {
    let results = samples::results(3_000);
    let page = page(&results);
    let document = parse(&page);
    let wanted: BTreeSet<String> = results
        .trials
        .iter()
        .filter(|trial| !trial.verdict.is_clean())
        .map(|trial| format!("cargo xtask fault replay out {}", trial.trial))
        .collect();
    assert!(wanted.len() > 20);
    let commands = all(&document, "code").filter(|node| node.attribute("class") == Some("run"));
    let commands: Vec<String> = commands.map(text).collect();
    assert_eq!(commands.iter().cloned().collect::<BTreeSet<_>>(), wanted);
    assert_eq!(commands.len(), wanted.len());
}

#[test]
fn the_matrix_holds_every_trial_once() {
    let results = samples::results(3_000);
    let page = page(&results);
    let document = parse(&page);
    let section = document.descendants().find(|node| node.attribute("id") == Some("verdicts"));
    let rows = section.unwrap().descendants().filter(|node| {
        node.has_tag_name("tr") && node.children().any(|cell| cell.has_tag_name("td"))
    });
    let number = |node: Node<'_, '_>| -> u64 {
        let digits: String = text(node).chars().filter(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    let mut sum = vec![0; Verdict::ALL.len() + 1];
    let mut last = Vec::new();
    for row in rows {
        last = row.children().filter(|node| node.has_tag_name("td")).map(number).collect();
        assert_eq!(last[0], last[1..].iter().sum::<u64>());
        sum.iter_mut().zip(&last).for_each(|(sum, cell)| *sum += cell);
    }
    assert_eq!(last[0], 3_000);
    // The last row is the sum of the others.
    assert!(sum.iter().zip(&last).all(|(sum, last)| *sum == 2 * last));
}
