//! `cargo xtask sizes`: images, memory and lines against their budgets.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::figures::{self, Figure};
use crate::manifest::{self, Manifest};
use crate::size::{KIB, MIB};
use crate::{build, elf, workspace};

/// Most lines of Rust in the hypervisor, comments included. What lies in folders named `tests` runs
/// on the host only and is no part of it.
const LINES_BUDGET: u64 = 10_000;
/// Most memory of a driver domain.
const DRIVER_MEMORY_BUDGET: u64 = 4 * MIB;

/// Options.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Node manifest whose images count
    #[arg(long, value_name = "FILE", default_value_os_t = manifest::default_path())]
    pub manifest: PathBuf,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// A line of the table.
struct Row {
    figure: Figure,
    budget: Option<Budget>,
}

enum Budget {
    Below(u64),
    AtMost(u64),
}

impl Row {
    fn new(name: &str, metric: &str, value: u64, unit: &str, budget: Option<Budget>) -> Self {
        let name = format!("size.{name}");
        Self { figure: Figure::timeless(&name, metric, value, unit), budget }
    }

    fn verdict(&self) -> (String, bool) {
        let value = self.figure.value as u64;
        match self.budget {
            None => (String::new(), true),
            Some(Budget::Below(budget)) => (format!("< {}", self.show(budget)), value < budget),
            Some(Budget::AtMost(budget)) => (format!("≤ {}", self.show(budget)), value <= budget),
        }
    }

    fn show(&self, value: u64) -> String {
        match self.figure.unit.as_str() {
            "bytes" => format!("{:.1} KiB", value as f64 / KIB as f64),
            unit => format!("{value} {unit}"),
        }
    }
}

/// Builds, prints the table and writes the figures.
///
/// # Errors
///
/// The build fails or a budget is exceeded.
pub fn sizes(options: &Options) -> Result<()> {
    let manifest = Manifest::load(&options.manifest)?;
    let built = build::build(&manifest)?;
    let hv = std::fs::read(&built.hv).context("can't read the hypervisor")?;
    let (file, memory) = elf::loadable(&hv)?;
    let lines = rust_lines(&workspace::root().join("hv"))?;
    let mut rows = vec![
        Row::new("hv", "lines", lines, "lines", Some(Budget::Below(LINES_BUDGET))),
        Row::new("hv", "file", file, "bytes", Some(Budget::Below(build::IMAGE_BUDGET))),
        Row::new("hv", "memory", memory, "bytes", None),
    ];
    for domain in &manifest.domains {
        let name = domain.spec.name.as_str();
        let Some(image) = built.images.iter().find(|image| image.name == domain.image) else {
            continue;
        };
        let driver = !domain.spec.devices.is_empty();
        let file_budget = driver.then_some(Budget::Below(build::IMAGE_BUDGET));
        let memory_budget = driver.then_some(Budget::AtMost(DRIVER_MEMORY_BUDGET));
        rows.push(Row::new(name, "file", image.flat.file_len(), "bytes", file_budget));
        rows.push(Row::new(name, "image", image.flat.memory_len(), "bytes", None));
        rows.push(Row::new(name, "memory", domain.spec.memory, "bytes", memory_budget));
    }
    let bundle = built.bundle.metadata().context("can't read the bundle")?.len();
    rows.push(Row::new("bundle", "file", bundle, "bytes", None));

    println!("{:<24} {:<8} {:>12}  {:>12}", "what", "metric", "value", "budget");
    let mut over = Vec::new();
    for row in &rows {
        let (budget, good) = row.verdict();
        let mark = match (good, budget.is_empty()) {
            (_, true) => "",
            (true, false) => "ok",
            (false, false) => "OVER",
        };
        let value = row.show(row.figure.value as u64);
        let Figure { name, metric, .. } = &row.figure;
        println!(
            "{}",
            format!("{name:<24} {metric:<8} {value:>12}  {budget:>12}  {mark}").trim_end()
        );
        if !good {
            over.push(format!("{name} {metric} is {value}, budget {budget}"));
        }
    }
    println!(
        "file: bytes in the bundle; image: of that in memory with zeroed parts; memory: all of the domain"
    );
    if let Some(path) = &options.json {
        let figures: Vec<Figure> = rows.into_iter().map(|row| row.figure).collect();
        figures::write(path, &figures)?;
    }
    if !over.is_empty() {
        bail!("over budget: {}", over.join("; "));
    }
    Ok(())
}

/// Lines of all `*.rs` files below `dir`.
fn rust_lines(dir: &Path) -> Result<u64> {
    let unreadable = || format!("can't read {}", dir.display());
    let mut lines = 0;
    for entry in std::fs::read_dir(dir).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        if path.is_dir() && !path.ends_with("tests") {
            lines += rust_lines(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            lines +=
                std::fs::read_to_string(&path).with_context(unreadable)?.lines().count() as u64;
        }
    }
    Ok(lines)
}
