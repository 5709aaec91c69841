/// State of a process, as the operating system reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProcessState {
    /// Runs or sleeps.
    Alive,
    /// Stopped by a signal.
    Stopped,
    /// Gone, or a zombie that its parent has not collected yet.
    Ended,
}

/// Asks the operating system for the state of a process.
pub(super) fn process_state(pid: u32) -> ProcessState {
    match state_letter(pid) {
        None | Some('Z' | 'X') => ProcessState::Ended,
        Some('T' | 't') => ProcessState::Stopped,
        Some(_) => ProcessState::Alive,
    }
}

#[cfg(target_os = "linux")]
fn state_letter(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets, and may itself contain brackets and
    // blanks.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

#[cfg(not(target_os = "linux"))]
fn state_letter(pid: u32) -> Option<char> {
    let output = std::process::Command::new("ps")
        .args(["-o", "state=", "-p", &pid.to_string()])
        .output()
        .ok()?;
    String::from_utf8_lossy(&output.stdout)
        .trim_start()
        .chars()
        .next()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio, id};

    use super::*;

    #[test]
    fn tells_alive_from_ended() {
        assert_eq!(process_state(id()), ProcessState::Alive);
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert_eq!(process_state(child.id()), ProcessState::Alive);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(process_state(child.id()), ProcessState::Ended);
    }
}
