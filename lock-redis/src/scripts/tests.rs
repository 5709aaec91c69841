use super::*;

fn name() -> LockName {
    "n".parse().unwrap()
}

fn bulk(text: &str) -> Value {
    Value::BulkString(text.into())
}

fn holder(value: &[u8], pttl: i64) -> Value {
    let last = [
        bulk("me"),
        bulk("1795212345678901"),
        bulk("1795212345678900"),
        bulk("=note"),
    ];
    Value::Array(
        [Value::BulkString(value.to_vec()), Value::Int(pttl)]
            .into_iter()
            .chain(last)
            .collect(),
    )
}

#[test]
fn acquired_or_busy() {
    let granted = Value::Array(vec![Value::Int(1), bulk("1795212345678901")]);
    assert_eq!(parse_acquired(&granted).unwrap(), Ok(1_795_212_345_678_901));
    let busy = |pttl| Value::Array(vec![Value::Int(0), Value::Int(pttl), bulk("me")]);
    assert_eq!(
        parse_acquired(&busy(1500)).unwrap(),
        Err(Some(Duration::from_millis(1500)))
    );
    assert_eq!(parse_acquired(&busy(-1)).unwrap(), Err(None), "no TTL");
    let holder = |answer| {
        parse_holder(&answer).map(|holder| (holder.owner.as_str().to_owned(), holder.value))
    };
    assert_eq!(
        (holder(busy(1)), holder(granted)),
        (Some(("me".to_owned(), None)), None)
    );
    let stranger = (
        "a key without a TTL, which no lock wrote".to_owned(),
        Some("me".to_owned()),
    );
    assert_eq!(holder(busy(-1)), Some(stranger));
    let owner = OwnerId::random();
    assert_eq!(
        Holder::of(owner.as_str().as_bytes(), true),
        Holder { owner, value: None }
    );
    for garbage in [
        Value::Nil,
        Value::Okay,
        bulk("x"),
        Value::Array(vec![]),
        Value::Array(vec![Value::Int(1), bulk("x")]),
    ] {
        assert!(parse_acquired(&garbage).is_err(), "{garbage:?}");
    }
}

#[test]
fn the_last_holders_note_is_not_a_strangers() {
    let info = parse_info(&name(), &holder(b"me", 900))
        .unwrap()
        .unwrap()
        .holders
        .remove(0);
    assert_eq!(
        (info.token, info.metadata.as_deref()),
        (Some(FencingToken::new(1_795_212_345_678_901)), Some("note"))
    );
    assert_eq!(
        info.since,
        Some(UNIX_EPOCH + Duration::from_micros(1_795_212_345_678_900))
    );
    let info = parse_info(&name(), &holder(b"stranger", -1))
        .unwrap()
        .unwrap()
        .holders
        .remove(0);
    assert_eq!(
        (
            info.owner.as_str(),
            info.token,
            info.metadata,
            info.expires_in
        ),
        ("stranger", None, None, None)
    );
}

#[test]
fn an_owner_that_is_not_text_is_shown_in_hexadecimal() {
    assert_eq!(
        parse_info(&name(), &holder(&[0xff, 0x00, 0x10], 1))
            .unwrap()
            .unwrap()
            .holder()
            .owner
            .as_str(),
        "ff0010"
    );
    assert_eq!(parse_info(&name(), &Value::Nil).unwrap(), None);
    assert!(parse_info(&name(), &Value::Int(1)).is_err());
}

#[test]
fn what_is_shown_in_hexadecimal_is_found_again() {
    assert_eq!(
        unreadable(&readable(&[0xff, 0x00, 0x10])),
        Some(vec![0xff, 0x00, 0x10])
    );
    for text in ["", "ff001", "FF00", "fg", "6d65", "me"] {
        assert_eq!(unreadable(text), None, "{text}");
    }
}
