use super::*;

struct Deaf;

impl Listener for Deaf {
    fn changed(&self, _: &[u8]) {}

    fn missed(&self, _: &dyn Fn(&str) -> bool) {}
}

fn kept_by(host: &str) -> SlotMap {
    let mut map = SlotMap::new();
    for slot in 0..crate::transport::slots::SLOTS {
        map.moved(slot, Address::new(host, 1));
    }
    map
}

/// Which of two keys it was told of.
#[derive(Default)]
struct Told(Mutex<Vec<&'static str>>);

impl Listener for Told {
    fn changed(&self, _: &[u8]) {}

    fn missed(&self, concerned: &dyn Fn(&str) -> bool) {
        locked(&self.0).extend(["a", "b"].iter().filter(|key| concerned(key)));
    }
}

#[tokio::test]
async fn a_slot_that_moves_concerns_its_own_keys_only() {
    let second = Duration::from_secs(1);
    let told = Arc::new(Told::default());
    let timeouts = Timeouts {
        connect: second,
        response: second,
    };
    let info = redis::Client::open("redis://127.0.0.2:1")
        .unwrap()
        .get_connection_info()
        .clone();
    let cluster = Cluster::new(
        vec![Address::new("127.0.0.2", 1)],
        info,
        timeouts,
        Tasks::current(),
        Arc::clone(&told) as _,
    );
    let invalidations = || std::mem::take(&mut *locked(&told.0));
    cluster.replace(kept_by("127.0.0.2"));
    assert_eq!(invalidations(), ["a", "b"], "the first map");
    cluster
        .redirect(
            Redirection {
                slot: slot("a"),
                address: "127.0.0.3:1",
                once: false,
            },
            "127.0.0.2",
        )
        .unwrap();
    assert_eq!(invalidations(), ["a"]);
    locked(&cluster.named).take();
    let mut moved = kept_by("127.0.0.2");
    moved.moved(slot("a"), Address::new("127.0.0.3", 1));
    moved.moved(slot("b"), Address::new("127.0.0.3", 1));
    cluster.replace(moved);
    assert_eq!(invalidations(), ["b"]);
}

#[tokio::test]
async fn a_map_from_before_a_correction_does_not_revert_it() {
    let second = Duration::from_secs(1);
    let timeouts = Timeouts {
        connect: second,
        response: second,
    };
    let seeds = vec![Address::new("127.0.0.2", 1)];
    let info = redis::Client::open("redis://127.0.0.2:1")
        .unwrap()
        .get_connection_info()
        .clone();
    let cluster = Cluster::new(seeds, info, timeouts, Tasks::current(), Arc::new(Deaf));
    let master = |slot| cluster.master(slot).unwrap().address.clone().unwrap().host;
    cluster.replace(kept_by("127.0.0.2"));
    cluster
        .redirect(
            Redirection {
                slot: 7,
                address: "127.0.0.3:1",
                once: false,
            },
            "127.0.0.2",
        )
        .unwrap();
    // Nothing runs in the background until this test waits.
    cluster.replace(kept_by("127.0.0.2"));
    assert_eq!(
        (master(7), master(8)),
        ("127.0.0.3".to_owned(), "127.0.0.2".to_owned())
    );
    let named = locked(&cluster.named).take();
    assert_eq!(cluster.links_to_ask(named.as_ref())[0].0.host, "127.0.0.3");
    cluster.replace(kept_by("127.0.0.4"));
    assert_eq!(master(7), "127.0.0.4");
}
