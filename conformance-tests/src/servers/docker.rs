use std::{
    env,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock, mpsc},
    time::Duration,
};

use testcontainers::{
    ContainerAsync, ContainerRequest, GenericImage, ImageExt,
    bollard::query_parameters::KillContainerOptions,
    core::{AccessMode, ContainerPort, Mount, client::docker_client_instance},
    runners::AsyncRunner,
};
use tokio::runtime::{Builder, Runtime};

use super::{
    poll::poll,
    ports::Ports,
    process::{START_LIMIT, new_name, tail},
    resolve::resolve,
    service::{Service, Site},
};

/// The image that `scripts/test-image.sh` builds.
const LOCAL_IMAGE: &str = "lock-test-servers:local";

/// A server that runs in a Docker container.
#[derive(Debug)]
pub(super) struct Container {
    service: Box<dyn Service>,
    name: String,
    ports: Ports,
    host: String,
    /// `None` only while it is dropped.
    container: Option<Arc<ContainerAsync<GenericImage>>>,
    leash: Option<Child>,
}

/// Returns the image that the variable names, or the local one; an error if no container of it can
/// be had.
pub(super) fn image(variable: &str) -> Result<String, String> {
    let named = env::var(variable).ok().filter(|name| !name.is_empty());
    let image = named.clone().unwrap_or_else(|| LOCAL_IMAGE.to_owned());
    let wanted = image.clone();
    let found = wait_for(async move {
        let docker = docker_client_instance()
            .await
            .map_err(|error| format!("Docker cannot be used ({error})"))?;
        docker
            .ping()
            .await
            .map_err(|error| format!("Docker does not answer ({error})"))?;
        Ok::<_, String>(docker.inspect_image(&wanted).await.is_ok())
    })?;
    // An image that was asked for by name may be pulled; the local one is in no registry.
    if found || named.is_some() {
        Ok(image)
    } else {
        Err(format!(
            "Docker has no image {image} (scripts/test-image.sh builds it)"
        ))
    }
}

impl Container {
    /// Starts a server and returns when it serves requests.
    pub(super) fn start_new(service: Box<dyn Service>, image: &str) -> io::Result<Self> {
        let ports = Ports::reserve()?;
        let name = new_name(service.about().name);
        let request = request(&*service, &ports, image, &name);
        let leash = leash(&name);
        let (container, host) = wait_for(async move {
            let container = request.start().await.map_err(io::Error::other)?;
            let host = container.get_host().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((container, host.to_string()))
        })?;
        let server = Self {
            service,
            name,
            ports,
            host,
            container: Some(Arc::new(container)),
            leash,
        };
        server.wait_until_ready()?;
        server.service.set_up(server.plain_address()?)?;
        Ok(server)
    }

    pub(super) fn endpoint(&self) -> String {
        format!("{}:{}", self.host, self.ports.client.number())
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn service(&self) -> &dyn Service {
        &*self.service
    }

    pub(super) fn start(&self) -> io::Result<()> {
        self.kill()?;
        let container = self.container()?;
        wait_for(async move { container.start().await }).map_err(io::Error::other)?;
        self.wait_until_ready()
    }

    /// Sends SIGKILL to the container's first process; does nothing if it does not run.
    pub(super) fn kill(&self) -> io::Result<()> {
        let container = self.container()?;
        if !self.is_running()? {
            return Ok(());
        }
        wait_for(async move {
            let docker = docker_client_instance().await.map_err(io::Error::other)?;
            let signal = KillContainerOptions {
                signal: "SIGKILL".to_owned(),
            };
            docker
                .kill_container(container.id(), Some(signal))
                .await
                .map_err(io::Error::other)
        })?;
        let gone = poll(START_LIMIT, || {
            (!self.is_running().unwrap_or(true)).then_some(())
        });
        gone.ok_or_else(|| io::Error::other("the container still runs after SIGKILL"))
    }

    /// Pauses the container; its connections stay open.
    pub(super) fn freeze(&self) -> io::Result<()> {
        let container = self.container()?;
        wait_for(async move { container.pause().await }).map_err(io::Error::other)
    }

    pub(super) fn thaw(&self) -> io::Result<()> {
        let container = self.container()?;
        wait_for(async move { container.unpause().await }).map_err(io::Error::other)
    }

    fn container(&self) -> io::Result<Arc<ContainerAsync<GenericImage>>> {
        self.container
            .clone()
            .ok_or_else(|| io::Error::other("the container was removed"))
    }

    fn wait_until_ready(&self) -> io::Result<()> {
        let address = self.plain_address()?;
        let has_ended = || !self.is_running().unwrap_or(true);
        match poll(START_LIMIT, || {
            if has_ended() {
                Some(false)
            } else {
                self.service.is_ready(address).then_some(true)
            }
        }) {
            Some(true) => Ok(()),
            Some(false) => Err(self.failure("ended instead of serving")),
            None => Err(self.failure("did not get ready in time")),
        }
    }

    fn is_running(&self) -> io::Result<bool> {
        let container = self.container()?;
        wait_for(async move { container.is_running().await }).map_err(io::Error::other)
    }

    fn plain_address(&self) -> io::Result<SocketAddr> {
        let port = if self.service.certificates().is_some() {
            &self.ports.plain
        } else {
            &self.ports.client
        };
        resolve(&format!("{}:{}", self.host, port.number()))
    }

    fn failure(&self, what: &str) -> io::Error {
        let log = self.container().map(|container| {
            wait_for(async move {
                let out = container.stdout_to_vec().await;
                let err = container.stderr_to_vec().await;
                [out.unwrap_or_default(), err.unwrap_or_default()].concat()
            })
        });
        let log = tail(&log.unwrap_or_default());
        io::Error::other(format!(
            "the {} container {what}; the end of its log:\n{log}",
            self.service.about().name
        ))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let container = self.container.take().and_then(Arc::into_inner);
        let removed = container
            .is_some_and(|container| wait_for(async move { container.rm().await.is_ok() }));
        if let Some(mut leash) = self.leash.take().filter(|_| removed) {
            // Killed while its input is open, so that it does not look for a container that is
            // gone.
            let _ = leash.kill();
            let _ = leash.wait();
        }
    }
}

fn request(
    service: &dyn Service,
    ports: &Ports,
    image: &str,
    name: &str,
) -> ContainerRequest<GenericImage> {
    let site = Site {
        listen: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        ports,
        data: Path::new("/tmp"),
    };
    let command =
        std::iter::once(service.about().program.to_owned()).chain(service.arguments(&site));
    let (image, tag) = split_tag(image);
    let mut request = GenericImage::new(image, tag)
        .with_cmd(command)
        .with_container_name(name);
    // The same port number inside and outside, so that it survives a restart and the command line
    // is the usual one.
    for port in [&ports.client, &ports.plain] {
        request = request.with_mapped_port(port.number(), ContainerPort::Tcp(port.number()));
    }
    if let Some(certificates) = service
        .certificates()
        .map(|path| path.display().to_string())
    {
        let mount = Mount::bind_mount(certificates.clone(), certificates)
            .with_access_mode(AccessMode::ReadOnly);
        request = request.with_mount(mount);
    }
    request.with_startup_timeout(Duration::from_secs(300))
}

fn split_tag(image: &str) -> (&str, &str) {
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (image, "latest"),
    }
}

/// Removes the container, by the `docker` program if there is one, when this process ends without
/// having done so. Tries more than once: the daemon may still be creating the container.
fn leash(name: &str) -> Option<Child> {
    let script = "trap '' HUP INT TERM; read -r _; for _ in 1 2 3 4 5 6 7 8; do docker rm --force --volumes \"$1\"; sleep 1; done";
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script, "lock-test-leash", name]);
    shell
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    std::os::unix::process::CommandExt::process_group(&mut shell, 0)
        .spawn()
        .ok()
}

/// Runs a future from any thread, even one that belongs to a runtime.
fn wait_for<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let (sender, receiver) = mpsc::sync_channel(1);
    runtime().spawn(async move {
        let _ = sender.send(future.await);
    });
    #[expect(clippy::expect_used, reason = "the task sends unless it panics")]
    receiver.recv().expect("a Docker request panicked")
}

/// One runtime for the whole process: the client of the Docker daemon is shared and keeps its
/// connections in it.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    #[expect(
        clippy::expect_used,
        reason = "fails only where no thread can be made, and then no test can run"
    )]
    RUNTIME.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("cannot make a thread")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_names_of_images() {
        for (image, parts) in [
            ("redis", ("redis", "latest")),
            ("redis:7.2", ("redis", "7.2")),
            ("localhost:5000/etcd", ("localhost:5000/etcd", "latest")),
            (
                "quay.io/coreos/etcd:v3.5.1",
                ("quay.io/coreos/etcd", "v3.5.1"),
            ),
        ] {
            assert_eq!(split_tag(image), parts);
        }
    }
}
