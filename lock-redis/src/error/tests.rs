use super::*;

fn server(code: &str, detail: &str) -> Failure {
    Failure::sent(redis::make_extension_error(
        code.into(),
        Some(detail.into()),
    ))
}

#[test]
fn kinds_follow_from_what_the_server_says() {
    for (code, kind) in [
        ("NOAUTH", ErrorKind::PermissionDenied),
        ("WRONGPASS", ErrorKind::PermissionDenied),
        ("NOPERM", ErrorKind::PermissionDenied),
        ("OOM", ErrorKind::Exhausted),
        ("MISCONF", ErrorKind::Unavailable),
        ("BUSY", ErrorKind::Unavailable),
        ("WRONGTYPE", ErrorKind::Protocol),
        ("NOTALOCK", ErrorKind::Protocol),
        ("NOTOKENS", ErrorKind::Exhausted),
    ] {
        assert_eq!(server(code, "x").kind(), kind, "{code}");
    }
}

#[test]
fn an_error_that_ended_a_script_of_an_older_server_is_unwrapped() {
    let wrapped = |cause: &str| {
        server(
            "ERR",
            &format!(
                "Error running script (call to f_12ab): @user_script:2: @user_script: 2: {cause}"
            ),
        )
    };
    let demoted = wrapped("-READONLY You can't write against a read only replica.");
    assert!(demoted.kind() == ErrorKind::Unavailable && demoted.ends_connection());
    assert_eq!(
        wrapped("-OOM command not allowed when used memory > 'maxmemory'.").kind(),
        ErrorKind::Exhausted
    );
    assert_eq!(
        wrapped("WRONGTYPE Operation against a key").kind(),
        ErrorKind::Protocol
    );
    let refused = wrapped("The user executing the script can't run this command or subcommand");
    assert!(refused.kind() == ErrorKind::PermissionDenied && !refused.had_no_effect());
}

#[test]
fn a_timeout_after_the_send_is_indeterminate() {
    let timeout = || io::Error::from(io::ErrorKind::TimedOut);
    assert!(LockError::from(Failure::sent(timeout())).is_indeterminate());
    assert!(!LockError::from(Failure::unsent(timeout())).is_indeterminate());
    assert!(
        !Failure::sent(timeout()).ends_connection(),
        "the silence of a connection is judged by its age"
    );
    for (code, detail, sure) in [
        (
            "NOPERM",
            "User app has no permissions to run the 'evalsha' command",
            true,
        ),
        (
            "NOPERM",
            "ACL failure in script: User app has no permissions to run the 'hincrby' command",
            false,
        ),
        (
            "READONLY",
            "You can't write against a read only replica.",
            true,
        ),
        ("NOTALOCK", "the key holds a hash", true),
        ("NOTOKENS", "the counter is at its end", true),
        ("WRONGTYPE", "x", false),
    ] {
        assert_eq!(
            server(code, detail).had_no_effect(),
            sure,
            "{code} {detail}"
        );
    }
    assert!(!LockError::from(server("READONLY", "x")).is_indeterminate());
    assert!(!LockError::from(server("NOPERM", "x")).is_indeterminate());
}

#[test]
fn what_a_server_repeats_of_the_credentials_is_not_shown() {
    let failure = server(
        "ERR",
        "unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'app' 's3cret' ",
    );
    assert!(!format!("{failure:?}").contains("s3cret"));
    assert_eq!(failure.kind(), ErrorKind::Protocol);
    let error = LockError::from(failure);
    assert!(
        !format!("{error} {error:?}").contains("s3cret") && format!("{error:?}").contains("HELLO"),
        "{error:?}"
    );
}

#[test]
fn a_redirection_says_where_to() {
    let says = |kind, detail: &str| {
        Failure::sent((
            redis::ErrorKind::Server(kind),
            "a redirection",
            detail.to_owned(),
        ))
    };
    let moved = says(ServerErrorKind::Moved, "3999 127.0.0.1:6381");
    assert_eq!(
        moved.redirection(),
        Some(Redirection {
            slot: 3999,
            address: "127.0.0.1:6381",
            once: false
        })
    );
    assert!(moved.had_no_effect() && moved.is_doubtful() && moved.kind() == ErrorKind::Unsupported);
    assert!(
        LockError::from(moved.clone())
            .to_string()
            .contains("redis+cluster://")
    );
    assert_eq!(moved.gone_astray().kind(), ErrorKind::Unavailable);
    let ask = says(ServerErrorKind::Ask, "7 :1");
    assert_eq!(
        ask.redirection(),
        Some(Redirection {
            slot: 7,
            address: ":1",
            once: true
        })
    );
    for other in [
        says(ServerErrorKind::Ask, "what"),
        server("TRYAGAIN", "x"),
        server("ERR", "1 h:2"),
    ] {
        assert_eq!(other.redirection(), None);
    }
}

#[test]
fn a_demoted_server_ends_the_connection() {
    assert!(server("READONLY", "You can't write against a read only replica.").ends_connection());
    assert!(!server("OOM", "x").ends_connection());
    assert!(Failure::sent(io::Error::from(io::ErrorKind::BrokenPipe)).ends_connection());
}
