//! A lock server in this process: one line per request, one line per answer.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::defect::Defect;

#[derive(Debug, Default)]
struct Entry {
    token: u64,
    holder: Option<Holder>,
}

#[derive(Debug)]
struct Holder {
    owner: String,
    expires: Option<Instant>,
    connection: SocketAddr,
}

type Locks = Arc<Mutex<BTreeMap<String, Entry>>>;

/// Serves on a free port for as long as the process lives.
pub(crate) fn start(defect: Defect) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let locks = Locks::default();
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let locks = Arc::clone(&locks);
            thread::spawn(move || serve(&connection, &locks, defect));
        }
    });
    Ok(address)
}

fn serve(connection: &TcpStream, locks: &Locks, defect: Defect) -> io::Result<()> {
    let peer = connection.peer_addr()?;
    connection.set_nodelay(true)?;
    for line in BufReader::new(connection).lines() {
        let Ok(line) = line else { break };
        let answer = answer(locks, &line, peer, defect).unwrap_or_else(|| "bad request".into());
        let mut to = connection;
        to.write_all(format!("{answer}\n").as_bytes())?;
    }
    if defect == Defect::ConnectionOwnsTheLock {
        let mut locks = locks.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in locks.values_mut() {
            entry.holder.take_if(|holder| holder.connection == peer);
        }
    }
    Ok(())
}

fn answer(locks: &Locks, line: &str, peer: SocketAddr, defect: Defect) -> Option<String> {
    let mut words = line.split(' ');
    let verb = words.next()?;
    let name = words.next()?;
    let owner = words.next().unwrap_or_default();
    let ttl = words.next().and_then(|ttl| ttl.parse().ok());
    let expires = ttl.map(|ttl| Instant::now() + Duration::from_millis(ttl));
    let mut locks = locks.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = locks.entry(name.to_owned()).or_default();
    let is_over = |holder: &mut Holder| holder.expires.is_some_and(|end| end <= Instant::now());
    entry.holder.take_if(is_over);
    let mine = |holder: &&mut Holder| {
        holder.owner == owner || (verb == "renew" && defect == Defect::RenewsAnybody)
    };
    Some(match verb {
        "take" => match &entry.holder {
            Some(holder) => format!("held {}", holder.owner),
            None => {
                entry.token += 1;
                entry.holder = Some(Holder {
                    owner: owner.to_owned(),
                    expires,
                    connection: peer,
                });
                format!("taken {}", entry.token)
            }
        },
        "renew" => match entry.holder.as_mut().filter(mine) {
            Some(holder) => {
                holder.expires = expires;
                "yes".into()
            }
            None => "no".into(),
        },
        "release" => {
            let released = entry.holder.take_if(|holder| holder.owner == owner);
            if released.is_some() { "yes" } else { "no" }.into()
        }
        "remove" => {
            entry.holder = None;
            "yes".into()
        }
        "holder" => match &entry.holder {
            Some(holder) => format!("held {}", holder.owner),
            None => "free".into(),
        },
        _ => return None,
    })
}
