//! A pool of workers over a queue: each job is done by one of them, in whatever process.

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use polylock::{AcquireOptions, DistributedLock, DistributedLockExt, LockError};
use tokio::task::JoinSet;

/// Does the jobs of a directory: every file is one, and is gone when it is done.
#[derive(Debug, Parser)]
struct Options {
    /// Directory of the jobs
    jobs: PathBuf,
    /// Workers of this process
    #[arg(long, default_value_t = 4)]
    workers: usize,
    /// Time that a job takes
    #[arg(long, default_value = "50ms", value_parser = humantime::parse_duration)]
    takes: Duration,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Arc::new(Options::parse());
    let locks = lock_examples::locks().await?;
    let mut workers = JoinSet::new();
    for _ in 0..options.workers {
        workers.spawn(work(Arc::clone(&locks), Arc::clone(&options)));
    }
    let mut done = 0;
    while let Some(worker) = workers.join_next().await {
        done += worker??;
    }
    println!("{done} jobs done");
    locks.shutdown().await?;
    Ok(())
}

/// Takes jobs until none is left, and returns the number of those it has done.
async fn work(locks: Arc<dyn DistributedLock>, options: Arc<Options>) -> io::Result<u32> {
    let mut done = 0;
    loop {
        let jobs = jobs(&options.jobs)?;
        if jobs.is_empty() {
            return Ok(done);
        }
        let before = done;
        for job in &jobs {
            match claim(&*locks, job, &options).await {
                Ok(Some(is_done)) => done += u32::from(is_done?),
                // Another worker does it.
                Ok(None) => {}
                Err(error) => eprintln!("{}: {error}", job.display()),
            }
        }
        if done == before {
            // All that is left is in work.
            tokio::time::sleep(options.takes).await;
        }
    }
}

fn jobs(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let jobs = fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
    let mut jobs = jobs.collect::<io::Result<Vec<_>>>()?;
    jobs.sort();
    Ok(jobs)
}

/// Does a job unless somebody else is at it.
async fn claim(
    locks: &dyn DistributedLock,
    job: &Path,
    options: &Options,
) -> Result<Option<io::Result<bool>>, LockError> {
    let name = format!("jobs/{}", job.file_name().unwrap_or_default().display());
    let takes = options.takes;
    let work = |_| async move {
        // Somebody may have done it between the look at the directory and the lock.
        if !fs::exists(job)? {
            return Ok(false);
        }
        tokio::time::sleep(takes).await;
        fs::remove_file(job)?;
        Ok(true)
    };
    locks.try_with_lock(name, AcquireOptions::new(), work).await
}
