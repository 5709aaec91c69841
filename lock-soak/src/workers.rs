use std::{net::SocketAddr, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin, Command},
    time::timeout,
};

use crate::{BoxError, Options, event::Kind, home::Home, worker::STOP};

/// The processes that run the clients.
#[derive(Debug)]
pub(crate) struct Workers {
    slots: Vec<Option<Worker>>,
    plan: Plan,
    home: Home,
    last_process: u32,
}

#[derive(Debug)]
struct Worker {
    number: u32,
    child: Child,
    /// The end of this stream tells the worker that this process is gone.
    orders: ChildStdin,
}

#[derive(Debug)]
struct Plan {
    /// One for each worker.
    urls: Vec<String>,
    address: SocketAddr,
    options: Options,
}

impl Workers {
    /// Starts all workers.
    pub(crate) fn start_all(
        urls: Vec<String>,
        address: SocketAddr,
        options: &Options,
        home: Home,
    ) -> Result<Self, BoxError> {
        let slots = urls.iter().map(|_| None).collect();
        let mut workers = Self {
            slots,
            plan: Plan {
                urls,
                address,
                options: options.clone(),
            },
            home,
            last_process: 0,
        };
        (0..workers.slots.len()).try_for_each(|slot| workers.start(slot))?;
        Ok(workers)
    }

    pub(crate) fn start(&mut self, slot: usize) -> Result<(), BoxError> {
        self.last_process += 1;
        let number = self.last_process;
        let Plan {
            urls,
            address,
            options,
        } = &self.plan;
        let processes = urls.len() as u32;
        // As evenly as possible: the first ones have one more.
        let clients =
            options.clients / processes + u32::from((slot as u32) < options.clients % processes);
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("worker")
            .args(["--url", &urls[slot], "--home", &address.to_string()]);
        for (name, value) in [
            ("--process", number),
            ("--clients", clients),
            ("--registers", options.registers),
        ] {
            command.arg(name).arg(value.to_string());
        }
        command.args([
            "--seed",
            &options.seed.to_string(),
            "--ttl",
            &options.ttl.to_string(),
        ]);
        if options.no_faults {
            command.arg("--brief");
        }
        command.stdin(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let orders = child.stdin.take().ok_or("a worker has no input")?;
        self.slots[slot] = Some(Worker {
            number,
            child,
            orders,
        });
        Ok(())
    }

    /// Sends SIGKILL; the process is gone afterwards.
    pub(crate) async fn kill(&mut self, slot: usize) -> Result<(), BoxError> {
        if let Some(mut worker) = self.slots[slot].take() {
            worker.child.kill().await?;
            self.home.record(Kind::Killed {
                process: worker.number,
            });
        }
        Ok(())
    }

    /// Sends SIGSTOP.
    pub(crate) fn pause(&mut self, slot: usize) -> Result<(), BoxError> {
        let number = self.signal(slot, Signal::STOP)?;
        self.home.record(Kind::Paused { process: number });
        Ok(())
    }

    /// Sends SIGCONT.
    pub(crate) fn resume(&mut self, slot: usize) -> Result<(), BoxError> {
        let number = self.signal(slot, Signal::CONT)?;
        self.home.record(Kind::Resumed { process: number });
        Ok(())
    }

    /// The process that runs a worker now.
    pub(crate) fn number(&self, slot: usize) -> Result<u32, BoxError> {
        Ok(self.worker(slot)?.number)
    }

    fn worker(&self, slot: usize) -> Result<&Worker, BoxError> {
        Ok(self.slots[slot].as_ref().ok_or("the worker is not there")?)
    }

    fn signal(&self, slot: usize, signal: Signal) -> Result<u32, BoxError> {
        let worker = self.worker(slot)?;
        let pid = worker
            .child
            .id()
            .and_then(|id| Pid::from_raw(id.cast_signed()))
            .ok_or("the worker has ended")?;
        kill_process(pid, signal)?;
        Ok(worker.number)
    }

    /// Finds a worker that has ended by itself, which none should before it is told to.
    pub(crate) fn dead(&mut self) -> Option<String> {
        self.slots
            .iter_mut()
            .flatten()
            .find_map(|worker| match worker.child.try_wait() {
                Ok(None) => None,
                Ok(Some(status)) => Some(format!(
                    "worker process {} ended by itself: {status}",
                    worker.number
                )),
                Err(error) => Some(format!(
                    "worker process {} cannot be asked: {error}",
                    worker.number
                )),
            })
    }

    /// Tells all workers to finish, and records which of them did not do so in time or cleanly;
    /// those are gone afterwards, too.
    pub(crate) async fn stop_all(&mut self, limit: Duration) {
        for worker in self.slots.iter_mut().flatten() {
            let _ = worker
                .orders
                .write_all(format!("{STOP}\n").as_bytes())
                .await;
        }
        for mut worker in self.slots.iter_mut().filter_map(Option::take) {
            let how = match timeout(limit, worker.child.wait()).await {
                Ok(Ok(status)) if status.success() => continue,
                Ok(outcome) => format!("{outcome:?}"),
                Err(_) => format!("not within {limit:?}"),
            };
            self.home.record(Kind::EndedBadly {
                process: worker.number,
                how,
            });
            let _ = worker.child.kill().await;
        }
    }
}
