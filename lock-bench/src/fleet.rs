use std::{path::PathBuf, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{
    Result,
    protocol::{Event, Tally},
};

/// A program that serves as a worker, without the arguments of the job.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
}

/// The worker processes of one measurement. They end with this value.
#[derive(Debug)]
pub(crate) struct Fleet(Vec<Worker>);

#[derive(Debug)]
struct Worker {
    child: Child,
    commands: ChildStdin,
    events: Lines<BufReader<ChildStdout>>,
}

/// Limit for anything that a worker is asked: a hundred of them connect at the same time, and
/// polling locks are slow to leave.
const PATIENCE: Duration = Duration::from_secs(90);
const FAREWELL: Duration = Duration::from_secs(10);

impl Fleet {
    /// Starts a worker for each job, and returns when all of them are connected.
    pub(crate) async fn start(
        program: &Program,
        jobs: impl IntoIterator<Item = Vec<String>>,
    ) -> Result<Self> {
        let workers: Result<Vec<_>> = jobs
            .into_iter()
            .map(|job| Worker::start(program, &job))
            .collect();
        let mut fleet = Self(workers?);
        for worker in &mut fleet.0 {
            match worker.event().await? {
                Event::Ready => {}
                other => return Err(unexpected(&other)),
            }
        }
        Ok(fleet)
    }

    pub(crate) async fn say(&mut self, command: &str) -> Result<()> {
        for worker in &mut self.0 {
            worker
                .commands
                .write_all(format!("{command}\n").as_bytes())
                .await?;
        }
        Ok(())
    }

    /// Waits for the next event of the only worker.
    pub(crate) async fn event(&mut self) -> Result<Event> {
        match self.0.as_mut_slice() {
            [worker] => worker.event().await,
            workers => {
                Err(format!("one worker was to be asked, there are {}", workers.len()).into())
            }
        }
    }

    /// Returns the counts of each worker, after `stop`.
    pub(crate) async fn tallies(&mut self) -> Result<Vec<Tally>> {
        let mut tallies = Vec::with_capacity(self.0.len());
        for worker in &mut self.0 {
            match worker.event().await? {
                Event::Done(tally) => tallies.push(tally),
                other => return Err(unexpected(&other)),
            }
        }
        Ok(tallies)
    }

    /// Lets the workers tidy up, and waits for them to end.
    pub(crate) async fn dismiss(self) {
        let (commands, children): (Vec<_>, Vec<_>) = self
            .0
            .into_iter()
            .map(|worker| (worker.commands, worker.child))
            .unzip();
        drop(commands);
        for mut child in children {
            // A worker that does not go is killed when it is dropped here.
            let _ = timeout(FAREWELL, child.wait()).await;
        }
    }
}

fn unexpected(event: &Event) -> crate::Error {
    match event {
        Event::Failed { message } => format!("a worker failed: {message}").into(),
        other => format!("a worker said {other:?} at the wrong time").into(),
    }
}

impl Worker {
    fn start(program: &Program, job: &[String]) -> Result<Self> {
        let mut command = Command::new(&program.path);
        command
            .args(&program.arguments)
            .args(job)
            .envs(program.environment.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.path.display()))?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(commands), Some(output)) => Ok(Self {
                child,
                commands,
                events: BufReader::new(output).lines(),
            }),
            _ => Err("a worker has no pipes".into()),
        }
    }

    async fn event(&mut self) -> Result<Event> {
        let line = timeout(PATIENCE, self.events.next_line())
            .await
            .map_err(|_| format!("a worker said nothing for {PATIENCE:?}"))??;
        let line = line.ok_or("a worker ended early; its last words are above")?;
        serde_json::from_str(&line)
            .map_err(|error| format!("a worker said `{line:.200}`: {error}").into())
    }
}
