use super::*;

#[test]
fn the_innermost_context_wins() {
    let inner: LockName = "inner".parse().unwrap();
    let outer: LockName = "outer".parse().unwrap();
    let error = LockError::new(ErrorKind::Lost, "gone")
        .of(&inner)
        .during(Operation::Renew)
        .of(&outer)
        .during(Operation::Acquire);
    assert_eq!(
        (error.name(), error.operation()),
        (Some(&inner), Some(Operation::Renew))
    );
}

#[test]
fn display_is_one_line_with_the_cause_which_is_the_source_too() {
    let error = LockError::new(ErrorKind::Unavailable, "cannot reach 127.0.0.1:1")
        .on("etcd")
        .caused_by("connection\n refused");
    assert_eq!(
        error.to_string(),
        "on etcd: unavailable: cannot reach 127.0.0.1:1: connection refused"
    );
    assert_eq!(error.source().unwrap().to_string(), "connection\n refused");
    let error = LockError::new(ErrorKind::UnknownScheme, "use mem://").during(Operation::Connect);
    assert_eq!(error.to_string(), "connect: unknown scheme: use mem://");
}

#[test]
fn no_cause_is_shown_twice() {
    let refused = LockError::new(ErrorKind::Unavailable, "no connection")
        .on("etcd")
        .caused_by("refused");
    let error = LockError::new(ErrorKind::Unavailable, "no answer within 2s").caused_by(refused);
    assert_eq!(
        error.to_string(),
        "unavailable: no answer within 2s: no connection: refused"
    );
    let full = LockError::new(ErrorKind::Exhausted, "no space").caused_by("quota");
    let error = LockError::new(ErrorKind::Unavailable, "no answer: quota").caused_by(full);
    assert_eq!(
        error.to_string(),
        "unavailable: no answer: quota: resource exhausted: no space"
    );
}

#[test]
fn a_layer_renames_the_causes_too() {
    let inner: LockName = "prod/a".parse().unwrap();
    let outer: LockName = "a".parse().unwrap();
    let failure = || LockError::new(ErrorKind::Unavailable, "no answer").of(&inner);
    let error = failure().caused_by(failure().caused_by("refused"));
    let renamed = error.renamed(&inner, &outer);
    assert_eq!(renamed.name(), Some(&outer));
    let cause = renamed.source().unwrap().to_string();
    assert_eq!(cause, "`a`: unavailable: no answer: refused");
    assert_eq!(failure().renamed(&outer, &inner).name(), Some(&inner));
}
