//! How long the host let the machine under test wait.
//!
//! While a machine is idle its clock goes on as the host's, so a host that does not
//! run it for a while makes it look as if its disk were slow. What is seen in such a
//! trial is the host's doing as well.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// Time for which threads of the machine, and of this process, were ready to run and did not, all
/// in all. `None`: this host does not tell.
pub fn waited(machine: u32) -> Option<Duration> {
    let machine = format!("/proc/{machine}/task");
    let tasks = [machine.as_str(), "/proc/self/task"].map(|tasks| of_tasks(Path::new(tasks)));
    tasks.into_iter().sum::<Option<u64>>().map(Duration::from_nanos)
}

fn of_tasks(folder: &Path) -> Option<u64> {
    // A thread may end meanwhile: that is none that waits.
    let tasks = fs::read_dir(folder).ok()?.flatten();
    let waits = tasks.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    waits.map(|text| delay(&text)).sum()
}

/// The second of three numbers (Linux, `Documentation/scheduler/sched-stats.rst`), ns.
fn delay(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_number_is_the_wait() {
        assert_eq!(delay("123 456 7\n"), Some(456));
        assert_eq!(delay(""), None);
        assert_eq!(delay("1 x 2"), None);
    }

    #[test]
    fn who_is_not_there_tells_nothing() {
        assert!(waited(std::process::id()).is_some());
        assert_eq!(waited(0), None);
        assert_eq!(of_tasks(Path::new("/proc/0/task")), None);
    }
}
