//! QEMU's messages at a failed start, as one line that names the cause.

use super::NodeConfig;
use crate::{disk, size};

/// QEMU's messages say that the host's port was taken.
pub fn is_port(messages: &str) -> bool {
    messages.contains("Could not set up host forwarding rule")
}

/// The host's port can't be used.
pub fn port(port: u16, why: &str) -> String {
    let why = match why {
        why if why.contains("in use") => "is in use",
        why if why.contains("denied") => "is not for ordinary users",
        other => return format!("port {port} on 127.0.0.1 can't be used: {other}"),
    };
    format!(
        "port {port} on 127.0.0.1 {why}; choose another with --http PORT, or 0 for any free one"
    )
}

/// What went wrong when QEMU ended right at its start.
pub fn start(messages: &str, config: &NodeConfig, http_port: u16) -> String {
    if is_port(messages) {
        return port(http_port, "in use");
    }
    if messages.contains("lock") && messages.contains("Is another process using the image") {
        return disk::in_use(&config.disk);
    }
    if messages.contains("cannot set up guest memory")
        || messages.contains("Cannot allocate memory")
    {
        let memory = size::show(config.memory);
        return format!(
            "this host has too little memory for a node of {memory}; give it less with --memory"
        );
    }
    if messages.contains("unable to find CPU model") {
        return format!(
            "QEMU knows no CPU model `{}`; `qemu-system-x86_64 -cpu help` lists them",
            config.cpu
        );
    }
    let mut lines = messages.lines().filter(|line| !line.trim().is_empty());
    // Warnings come first, the reason last.
    let reason = lines.clone().find(|line| !line.contains("warning:")).or_else(|| lines.next());
    match reason {
        Some(line) => {
            let line = line.trim();
            let line = line.strip_prefix("qemu-system-x86_64: ").unwrap_or(line);
            format!("QEMU did not start: {line}")
        }
        None => "QEMU did not start and did not say why".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_become_one_line() {
        let config = NodeConfig::new("node.toml", "dir");
        let line = |messages| start(messages, &config, 8080);
        assert_eq!(
            line(
                "qemu-system-x86_64: -netdev user: Could not set up host forwarding rule 'tcp:127.0.0.1:8080-:80'\n"
            ),
            "port 8080 on 127.0.0.1 is in use; choose another with --http PORT, or 0 for any free one"
        );
        assert_eq!(
            line("qemu-system-x86_64: warning: something\nqemu-system-x86_64: bad luck\n"),
            "QEMU did not start: bad luck"
        );
        assert_eq!(line(""), "QEMU did not start and did not say why");
        assert_eq!(
            line(
                "qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory\n"
            ),
            "this host has too little memory for a node of 512MiB; give it less with --memory"
        );
    }
}
