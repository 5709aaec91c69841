use super::*;
use crate::{
    transport::reconnect::{Link, Timeouts},
    transport::upstream::Upstream,
};

#[tokio::test]
async fn links_that_are_gone_are_not_remembered() {
    let limit = Duration::from_secs(1);
    let tasks = Tasks::current();
    let info = Client::open("redis://127.0.0.2:1")
        .unwrap()
        .get_connection_info()
        .clone();
    let sentinels = Sentinels::new("s".to_owned(), vec![info.clone()], info, limit);
    let timeouts = Timeouts {
        connect: limit,
        response: limit,
    };
    let link = || {
        Link::new(
            Upstream::Master(Arc::clone(&sentinels)),
            timeouts,
            tasks.clone(),
            None,
            Arc::default(),
        )
    };
    let lasting = link();
    for _ in 0..100 {
        drop(link());
    }
    let links = locked(&sentinels.links);
    assert_eq!(
        (links.len(), links[0].upgrade().is_some()),
        (2, true),
        "the one that lasts, and the last: {lasting:?}"
    );
}

#[test]
fn what_a_sentinel_says_is_read() {
    let said = |pairs: &[(&str, &str)]| {
        parse(
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        )
    };
    let whole = said(&[
        ("name", "s"),
        ("ip", "10.0.0.1"),
        ("port", "6379"),
        ("config-epoch", "7"),
    ]);
    assert_eq!(
        whole.unwrap(),
        SentinelReport {
            epoch: 7,
            master: Address::new("10.0.0.1", 6379)
        }
    );
    let pairs = [
        ("flags", "master,o_down,failover_in_progress"),
        ("ip", "10.0.0.1"),
        ("port", "6379"),
        ("config-epoch", "7"),
    ];
    assert_eq!(said(&pairs).unwrap().epoch, 6, "the old master's");
    assert!(said(&[("ip", "10.0.0.1"), ("config-epoch", "7")]).is_err());
    assert!(
        names("prod 10.0.0.1 1 10.0.0.2 1", "prod")
            && !names("prod2 10.0.0.1 1 10.0.0.2 1", "prod")
    );
}
