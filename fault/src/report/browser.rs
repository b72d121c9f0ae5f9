//! Looks at the page in a real browser. Opt-in, for it needs Chromium:
//! `cargo test -p fault -- --ignored browser`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::log::Results;
use super::summary::Summary;
use super::{html, samples};
use crate::class::Class;
use crate::record::{Data, Manifestation, Trial};
use crate::verdict::judge;

/// Widths in pixels, and whether people are to look, too: a small phone, both sides of the width
/// at which tables become tables, a laptop.
const WIDTHS: [(u32, bool); 4] = [(360, true), (1180, false), (1181, false), (1280, true)];

/// A campaign in which everything happens that can.
fn eventful() -> Results {
    let mut results = samples::results(20_000);
    let count = results.trials.len();
    type Change<'a> = &'a dyn Fn(&mut Trial);
    let bad: [(usize, Change<'_>); 4] = [
        (count / 5, &|trial| {
            trial.hypervisor = Some(
                "audit: frame 0x1f4c2 is mapped in domain 3 (kv) and owned by domain 1 (blk)"
                    .to_owned(),
            );
        }),
        (count / 4, &|trial| trial.neighbours = Some("peer: no datagram for 2.1 s".to_owned())),
        (count / 3, &|trial| trial.data = Data::Unknown),
        (count / 2, &|trial| {
            trial.class = Class::Panic;
            trial.group = trial.class.group();
            trial.data = Data::Lost;
        }),
    ];
    for (index, change) in bad {
        let trial = &mut results.trials[index];
        change(trial);
        trial.verdict = judge(trial);
    }
    for (trial, sign) in results.trials.iter_mut().zip(Manifestation::ALL) {
        trial.manifestation = *sign;
        trial.verdict = judge(trial);
    }
    results.campaign.trials = Some(25_000);
    results
}

fn browser(dir: &Path, arguments: &[String]) -> String {
    let program = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".to_owned());
    let output = Command::new(&program)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
        // The probe looks into the page beside it.
        .args(["--allow-file-access-from-files", "--virtual-time-budget=10000"])
        .arg(format!("--user-data-dir={}", dir.join("profile").display()))
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("can't run {program}: {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A page that shows ours in a frame of a given width, and writes down how it came out.
fn probe(dir: &Path, width: u32, height: u32) -> String {
    let script = r#"
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const tooWide = [...page.body.querySelectorAll("*")].filter(element => {
    const box = element.getBoundingClientRect();
    const outer = element.closest("section") ?? page.body;
    return box.width > 0 && box.left >= 0 && box.right > outer.getBoundingClientRect().right + 1;
  });
  const small = [...page.querySelectorAll("p, td, th, li, dd, dt, code, summary, text")]
    .filter(element => parseFloat(frame.contentWindow.getComputedStyle(element).fontSize) < 12);
  document.title = JSON.stringify({
    overflow: root.scrollWidth - root.clientWidth,
    wide: tooWide.slice(0, 5).map(element => element.outerHTML.slice(0, 200)),
    small: small.slice(0, 5).map(element => element.outerHTML.slice(0, 200)),
    height: root.scrollHeight,
    loaded: frame.contentWindow.performance.getEntriesByType("resource").length,
  });
};
frame.src = "report.html";
"#;
    let text = format!(
        "<!DOCTYPE html><meta charset=utf-8><title>none</title><style>body {{ margin: 0 }} \
         iframe {{ border: 0; width: {width}px; height: {height}px; display: block }}</style>\
         <iframe></iframe><script>{script}</script>"
    );
    let path = dir.join(format!("probe-{width}.html"));
    fs::write(&path, text).unwrap();
    format!("file://{}", path.display())
}

#[test]
#[ignore = "needs Chromium"]
fn browser_shows_the_page_on_phone_and_laptop() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/fault-page");
    fs::create_dir_all(&dir).unwrap();
    let dir = dir.canonicalize().unwrap();
    let results = eventful();
    let page = html::render(&results, &Summary::new(&results), Path::new("out/full")).unwrap();
    fs::write(dir.join("report.html"), page).unwrap();

    for (width, is_shown) in WIDTHS {
        let url = probe(&dir, width, 900);
        let dump = browser(&dir, &["--dump-dom".to_owned(), url]);
        let title = dump.split("<title>").nth(1).unwrap().split("</title>").next().unwrap();
        let title = title.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
        let found: serde_json::Value = serde_json::from_str(&title).unwrap();
        assert_eq!(found["overflow"], 0, "at {width} px: {found:#}");
        assert_eq!(found["wide"], serde_json::json!([]), "at {width} px");
        assert_eq!(found["small"], serde_json::json!([]), "text too small at {width} px");
        assert_eq!(found["loaded"], 0, "the page asked for something");

        if !is_shown {
            continue;
        }
        let height = found["height"].as_u64().unwrap().min(14_000) as u32;
        let url = probe(&dir, width, height);
        for (name, scheme) in [("light", 1), ("dark", 0)] {
            let picture = dir.join(format!("{width}-{name}.png"));
            browser(
                &dir,
                &[
                    format!("--blink-settings=preferredColorScheme={scheme}"),
                    format!("--window-size={},{height}", width.max(500)),
                    format!("--screenshot={}", picture.display()),
                    url.clone(),
                ],
            );
            assert!(fs::metadata(&picture).unwrap().len() > 10_000);
            println!("{}", picture.display());
        }
    }
}
