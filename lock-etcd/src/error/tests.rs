use super::*;
use lock_core::RetryAdvice;

#[test]
fn statuses_map_to_what_callers_can_do() {
    for (code, message, kind, transient) in [
        (UNKNOWN, "h2 protocol error", ErrorKind::Unavailable, true),
        (
            UNAVAILABLE,
            "etcdserver: no leader",
            ErrorKind::Unavailable,
            true,
        ),
        (CANCELLED, "Timeout expired", ErrorKind::Unavailable, true),
        (
            INVALID_ARGUMENT,
            "etcdserver: authentication failed, invalid user ID or password",
            ErrorKind::PermissionDenied,
            false,
        ),
        (
            INVALID_ARGUMENT,
            "etcdserver: revision of auth store is old",
            ErrorKind::Unavailable,
            true,
        ),
        (
            UNAUTHENTICATED,
            "etcdserver: invalid auth token",
            ErrorKind::Unavailable,
            true,
        ),
        (
            UNAUTHENTICATED,
            "a proxy wants credentials",
            ErrorKind::PermissionDenied,
            false,
        ),
        (
            PERMISSION_DENIED,
            "etcdserver: permission denied",
            ErrorKind::PermissionDenied,
            false,
        ),
        (
            RESOURCE_EXHAUSTED,
            "etcdserver: mvcc: database space exceeded",
            ErrorKind::Exhausted,
            false,
        ),
        (
            RESOURCE_EXHAUSTED,
            "etcdserver: too many requests",
            ErrorKind::Exhausted,
            true,
        ),
        (UNIMPLEMENTED, "unknown service", ErrorKind::Protocol, false),
    ] {
        let failure = from_status(code, message, "h:1");
        assert_eq!(
            (failure.error.kind(), failure.transient),
            (kind, transient),
            "{code} {message}"
        );
        assert_eq!(
            failure.error.to_string().contains("h:1"),
            transient,
            "{code} {message}"
        );
    }
    assert!(from_status(NOT_FOUND, "etcdserver: requested lease not found", "").lease_gone);
    let unsent = Failure::unavailable("cannot connect".to_owned()).error;
    assert!(!unsent.is_indeterminate());
    assert_eq!(unsent.retry(), RetryAdvice::Later);
}

#[test]
fn only_what_is_known_not_to_be_done_counts_so() {
    for (code, message, unknown) in [
        (
            RESOURCE_EXHAUSTED,
            "etcdserver: mvcc: database space exceeded",
            true,
        ),
        (10, "aborted by a proxy", true),
        (15, "data loss", true),
        (99, "a code of the future", true),
        (
            OUT_OF_RANGE,
            "etcdserver: mvcc: required revision has been compacted",
            false,
        ),
        (UNIMPLEMENTED, "unknown service", false),
        (PERMISSION_DENIED, "etcdserver: permission denied", false),
    ] {
        assert_eq!(
            from_status(code, message, "").error.is_indeterminate(),
            unknown,
            "{code} {message}"
        );
    }
}

#[test]
fn what_another_member_would_answer_too_does_not_move_on() {
    for (code, message, in_place) in [
        (
            INVALID_ARGUMENT,
            "etcdserver: revision of auth store is old",
            true,
        ),
        (UNAUTHENTICATED, "etcdserver: invalid auth token", true),
        (RESOURCE_EXHAUSTED, "etcdserver: too many requests", true),
        (UNKNOWN, "raft proposal dropped", true),
        (UNAVAILABLE, "etcdserver: leader changed", true),
        (UNAVAILABLE, "etcdserver: no leader", false),
        (UNKNOWN, "h2 protocol error", false),
    ] {
        let failure = from_status(code, message, "");
        assert!(failure.transient);
        assert_eq!(failure.in_place, in_place, "{code} {message}");
    }
}

#[test]
fn server_text_stays_on_one_short_line() {
    let text = shorten(&"x\n".repeat(500));
    assert!(!text.contains('\n') && text.len() <= 200);
}
