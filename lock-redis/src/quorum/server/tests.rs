use super::*;

fn common(servers: usize, values: &[&str]) -> Option<Option<String>> {
    let values: Vec<_> = values
        .iter()
        .map(|value| (!value.is_empty()).then(|| value.as_bytes().to_vec()))
        .collect();
    let found = common_value(Majority::of(servers), &values);
    found.map(|value| value.map(|value| String::from_utf8(value).unwrap()))
}

#[test]
fn an_owner_is_ruled_out_by_as_many_as_prevent_its_majority() {
    let held = Some(Some("a".to_owned()));
    assert_eq!(common(3, &["a", "a", "a"]), held);
    assert_eq!(common(3, &["a", "a"]), held, "one is silent");
    assert_eq!(common(3, &["a", ""]), held, "the silent one may have it");
    assert_eq!(common(3, &["a", "", ""]), Some(None));
    assert_eq!(common(3, &["a", "b", "c"]), Some(None));
    assert_eq!(common(3, &["b", "b", "a"]), Some(Some("b".to_owned())));
    assert_eq!(common(3, &["a"]), None, "too few to tell");
    assert_eq!(
        common(5, &["a", "a", "b"]),
        None,
        "either may have a majority"
    );
    assert_eq!(
        common(4, &["a", "a", "", ""]),
        Some(None),
        "two of four are none"
    );
}

/// Every sequence of answers and failures: what is settled does not change, and a majority
/// settles it.
#[test]
fn what_is_settled_is_final() {
    for servers in 3..=5_usize {
        let majority = Majority::of(servers);
        for history in 0..4_usize.pow(servers as u32) {
            let mut values = Vec::new();
            let mut settled = None;
            for at in 0..servers {
                match history / 4_usize.pow(at as u32) % 4 {
                    0 => {}
                    1 => values.push(None),
                    owner => values.push(Some(vec![owner as u8])),
                }
                let found = common_value(majority, &values);
                let agree = values
                    .iter()
                    .flatten()
                    .any(|value| values.len() - others(&values, value) >= majority.needed());
                let is_settled = is_settled(majority, &values, servers - at - 1);
                assert!(
                    settled
                        .as_ref()
                        .is_none_or(|settled| *settled == found && is_settled),
                    "{history}: {settled:?}, then {found:?}"
                );
                assert!(
                    is_settled || (at + 1 < servers && !agree),
                    "{history}: {values:?}"
                );
                settled = is_settled.then_some(found);
            }
        }
    }
}
