use std::{
    ffi::OsString,
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// A shell that is the parent of one server. However this process ends, the shell outlives it by
/// just long enough to clean up.
///
/// The shell notices the end of this process as the end of its own input, which needs neither a
/// signal handler nor a `Drop` that runs. It kills the server with SIGKILL, which also ends a
/// stopped one.
#[derive(Debug)]
pub(super) struct Supervisor {
    shell: Child,
    words: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    directory: PathBuf,
}

impl Supervisor {
    /// Makes the directory and waits for orders; the server is not started yet.
    pub(super) fn spawn(directory: &Path, command: &[OsString]) -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", include_str!("supervisor.sh"), "lock-test-supervisor"])
            .arg(directory)
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C goes to the process group of the test process, and a test runner kills that
            // group at a time limit.
            .process_group(0)
            .spawn()?;
        let words = shell.stdin.take();
        let answers = shell
            .stdout
            .take()
            .ok_or_else(|| io::Error::other("the supervisor has no output"))?;
        let mut supervisor = Self {
            shell,
            words,
            answers: BufReader::new(answers),
            directory: directory.to_owned(),
        };
        match supervisor.answer()?.as_str() {
            "ready" => Ok(supervisor),
            other => Err(io::Error::other(format!(
                "cannot make {}: {other}",
                directory.display()
            ))),
        }
    }

    /// Starts the server, after killing the one that runs, and returns its process id. For this
    /// start only it has the arguments `more`, which must not contain blanks.
    pub(super) fn start(&mut self, more: &[&str]) -> io::Result<u32> {
        let answer = self.ask(&[&["start"], more].concat().join(" "))?;
        answer.parse().map_err(|_| {
            io::Error::other(format!(
                "the supervisor answered `{answer}` instead of a process id"
            ))
        })
    }

    /// Sends SIGKILL, and returns when the process is gone.
    pub(super) fn kill(&mut self) -> io::Result<()> {
        self.ask("kill").map(drop)
    }

    /// Sends a signal, named without its `SIG`.
    pub(super) fn signal(&mut self, name: &str) -> io::Result<()> {
        match self.ask(name)?.as_str() {
            "sent" => Ok(()),
            _ => Err(io::Error::other(format!(
                "cannot send SIG{name}: the server does not run"
            ))),
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn ask(&mut self, word: &str) -> io::Result<String> {
        let words = self
            .words
            .as_mut()
            .ok_or_else(|| io::Error::other("the supervisor has ended"))?;
        writeln!(words, "{word}")?;
        words.flush()?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(io::Error::other("the supervisor has ended"));
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.words.take());
        // The server and its directory are gone when this returns.
        let _ = self.shell.wait();
    }
}
