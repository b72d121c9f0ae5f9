//! `nodectl`: operate a running node.

use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand, ValueEnum};
use nodectl::{Client, Error, control::How, crashes, image::ImageFile, report};
use ring_proto::hypercall::Trial;
use serde_json::{Value, json};

/// Pause between two looks at the log of a node that has nothing new.
const FOLLOW_PAUSE: Duration = Duration::from_millis(200);

/// Operate a running Bulkhead node.
///
/// Exit codes: 0 = done; 1 = the node said no, an update was taken back, or the
/// audit found violations; 2 = wrong usage, or a file that cannot be used; 3 =
/// the node can't be reached or does not answer.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The node's control socket.
    #[arg(long, value_name = "SOCKET", default_value = "run/control.sock", global = true)]
    control: PathBuf,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Seconds that the node may take to answer at all.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, global = true)]
    patience: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show domains and connections.
    List,
    /// End a domain's generation and wait until the next one serves.
    Restart {
        /// Name of the domain.
        domain: String,
        /// Let it finish its work first, for at most so many seconds (5).
        #[arg(
            long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "5",
            require_equals = true
        )]
        drain: Option<u64>,
        #[command(flatten)]
        limit: Limit,
    },
    /// Have a domain misbehave and wait until its next generation serves.
    Crash {
        /// Name of the domain.
        domain: String,
        /// In which way.
        #[arg(long, value_enum)]
        how: Way,
        #[command(flatten)]
        limit: Limit,
    },
    /// End a domain and keep it down until it is released.
    Hold {
        /// Name of the domain.
        domain: String,
    },
    /// Undo a hold and wait until the domain serves.
    Release {
        /// Name of the domain.
        domain: String,
        #[command(flatten)]
        limit: Limit,
    },
    /// Show what hypervisor and domains wrote.
    Log {
        /// Go on as more is written.
        #[arg(long, short)]
        follow: bool,
        /// Only this domain (`hv` is the hypervisor).
        #[arg(long)]
        domain: Option<String>,
    },
    /// Check all nested and IOMMU tables against the hypervisor's books.
    Audit,
    /// Show the node's figures.
    Info,
    /// Show the records of deaths.
    #[command(args_conflicts_with_subcommands = true)]
    Crashes {
        /// First sequence number.
        #[arg(long, default_value_t = 0)]
        from: u64,
        #[command(subcommand)]
        one: Option<Crashes>,
    },
    /// Replace a driver's program while the node runs.
    ///
    /// The new program is on trial until it was ready for a second. If it does
    /// not come up, or dies before, the old one is back by itself, and the exit
    /// code is 1. The manifest must give the domain `update_space`. A spare is
    /// updated with its principal.
    Update {
        /// Name of the domain.
        domain: String,
        /// The new program: an ELF file, as `cargo xtask build` leaves in `target/node`.
        #[arg(long, value_name = "FILE")]
        image: PathBuf,
    },
    /// Power the node off in good order.
    Shutdown,
}

#[derive(Subcommand)]
enum Crashes {
    /// Show all that is known of one death.
    Show {
        /// Its number in the list.
        number: u64,
        /// Folder with the images and their symbols, or the file that a domain was updated with.
        #[arg(long, value_name = "PATH", default_value = "target/node")]
        images: PathBuf,
        /// Log lines of the dead generation to show.
        #[arg(long, value_name = "COUNT", default_value_t = 20)]
        lines: usize,
    },
}

#[derive(clap::Args)]
struct Limit {
    /// Seconds that it may take until the domain serves.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
}

impl Limit {
    fn duration(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Way {
    /// A Rust panic.
    Panic,
    /// A write through a null pointer.
    NullWrite,
    /// An endless loop, which the watchdog ends.
    Loop,
    /// An undefined instruction.
    Exception,
    /// Calls without end, until the stack meets its guard page.
    StackOverflow,
    /// An exception without a handler, which shuts the CPU down.
    TripleFault,
    /// Allocations until one fails.
    OutOfMemory,
    /// No work any more, of which a guest must complain.
    Stall,
}

impl From<Way> for How {
    fn from(way: Way) -> Self {
        match way {
            Way::Panic => Self::Panic,
            Way::NullWrite => Self::NullWrite,
            Way::Loop => Self::Loop,
            Way::Exception => Self::Exception,
            Way::StackOverflow => Self::StackOverflow,
            Way::TripleFault => Self::TripleFault,
            Way::OutOfMemory => Self::OutOfMemory,
            Way::Stall => Self::Stall,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => ExitCode::from(code),
        // Whoever read our output has seen enough.
        Err(Error::Output(why)) if why.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(why) => {
            if arguments.json {
                eprintln!("{}", json!({ "error": why.to_string() }));
            } else {
                eprintln!("nodectl: {why}");
            }
            ExitCode::from(why.exit_code())
        }
    }
}

fn run(arguments: &Arguments) -> Result<u8, Error> {
    // What is wrong with a file needs no node to be told.
    let file = match &arguments.command {
        Command::Update { domain, image } => Some(read_image(domain, image)?),
        _ => None,
    };
    let patience = Duration::from_secs(arguments.patience.max(1));
    let mut client = Client::connect(&arguments.control, patience)?;
    let show = |text: String, json: Value| {
        if arguments.json { print(&format!("{json}\n")) } else { print(&text) }
    };
    match &arguments.command {
        Command::List => {
            let (domains, connections) = (client.domains()?, client.connections()?);
            show(report::list(&domains, &connections), report::list_json(&domains, &connections))?;
        }
        Command::Restart { domain, drain, limit } => {
            let drain = Duration::from_secs(drain.unwrap_or(0));
            let recovery = client.drain(domain, drain, limit.duration())?;
            show(report::recovery(&recovery), report::recovery_json(&recovery))?;
        }
        Command::Crash { domain, how, limit } => {
            let recovery = client.crash(domain, (*how).into(), limit.duration())?;
            show(report::recovery(&recovery), report::recovery_json(&recovery))?;
        }
        Command::Hold { domain } => {
            client.hold(domain)?;
            show(format!("{domain} is held\n"), json!({ "domain": domain, "held": true }))?;
        }
        Command::Release { domain, limit } => {
            let recovery = client.release(domain, limit.duration())?;
            show(report::recovery(&recovery), report::recovery_json(&recovery))?;
        }
        Command::Log { follow, domain } => {
            log(&mut client, *follow, domain.as_deref(), arguments.json)?;
        }
        Command::Audit => {
            let all = client.audit()?;
            show(report::audit(&all), report::audit_json(&all))?;
            return Ok(if report::is_clean(&all) { 0 } else { 1 });
        }
        Command::Info => {
            let info = client.info()?;
            show(report::info(&info), report::info_json(&info))?;
        }
        Command::Crashes { one: Some(Crashes::Show { number, images, lines }), .. } => {
            let story = client.story(*number, images, *lines)?;
            show(crashes::show(&story), crashes::show_json(&story))?;
        }
        Command::Crashes { from, one: None } => {
            let all = client.crashes(*from)?;
            show(crashes::list(&all), crashes::list_json(&all))?;
        }
        Command::Update { domain, .. } => {
            if let Some(file) = file {
                return update(&mut client, domain, &file, arguments.json);
            }
        }
        Command::Shutdown => {
            client.shutdown()?;
            show("the node shuts down\n".to_owned(), json!({ "shutdown": true }))?;
        }
    }
    Ok(0)
}

/// The image of the program in an ELF file.
fn read_image(domain: &str, path: &Path) -> Result<ImageFile, Error> {
    let bad = |why: String| Error::NoImage(path.to_owned(), why);
    let elf = std::fs::read(path).map_err(|why| bad(why.to_string()))?;
    nodectl::image::of_elf(domain, &elf).map_err(|why| bad(format!("{why:#}")))
}

/// Replaces a domain's image; prints how far it is, and what came of it.
fn update(client: &mut Client, domain: &str, file: &ImageFile, json: bool) -> Result<u8, Error> {
    let outcome = match client.domain(domain)? {
        Some(status)
            if status.update_space > 0
                && status.spare_of.is_none()
                && status.trial == Trial::None as u32
                && status.good_crc == file.crc =>
        {
            report::Outcome::none_needed(status.name, file.crc)
        }
        _ => try_update(client, domain, file, !json && io::stderr().is_terminal())?,
    };
    print(&if json { format!("{}\n", outcome.json()) } else { outcome.show() })?;
    Ok(u8::from(!outcome.updated.kept))
}

fn try_update(
    client: &mut Client,
    domain: &str,
    file: &ImageFile,
    show: bool,
) -> Result<report::Outcome, Error> {
    let first = client.info()?.next_crash;
    let total = file.bytes.len();
    let mut progress = |done: usize| {
        if show {
            eprint!("\r{done} of {total} bytes");
            if done == total {
                eprintln!("; now on trial");
            }
        }
    };
    let (old, updated) = client.update(domain, file, &mut progress)?;
    // From the last moment in which the old generation could serve to the new one's first.
    let record = updated.record.and_then(|sequence| client.crash_record(sequence).ok());
    Ok(report::Outcome {
        old,
        new: file.crc,
        pause: record.map(|r| r.times.ready.saturating_sub(r.times.detected)),
        // What it died of, itself or its spare.
        death: match updated.kept {
            true => None,
            false => {
                // Without it the outcome is still to be told.
                let records = client.crashes(first).unwrap_or_default();
                records.into_iter().rfind(|r| r.image_crc == file.crc)
            }
        },
        updated,
    })
}

/// Prints the log; with `follow` until the node ends or we are interrupted.
fn log(client: &mut Client, follow: bool, domain: Option<&str>, json: bool) -> Result<(), Error> {
    let names = client.names()?;
    if let Some(domain) = domain
        && domain != "hv"
        && !names.iter().any(|(_, name)| name == domain)
    {
        return Err(Error::NoDomain(domain.to_owned()));
    }
    let mut cursor = 0;
    loop {
        let page = client.log_page(cursor)?;
        for entry in report::log_entries(&page, &names) {
            if domain.is_none_or(|domain| domain == entry.domain) {
                print(&if json { format!("{}\n", entry.json()) } else { entry.show() })?;
            }
        }
        if page.next == cursor {
            if !follow {
                return Ok(());
            }
            std::thread::sleep(FOLLOW_PAUSE);
        }
        cursor = page.next;
    }
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::Output)
}
