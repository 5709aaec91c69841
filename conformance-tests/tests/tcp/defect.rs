/// A defect of the small backend, and the environment variable that chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    /// Nothing is wrong.
    None,
    /// Nobody asks the server: the lock excludes the tasks of one process.
    LocksInsideTheProcess,
    /// The entry is written first and gets its TTL by a second request.
    TtlInASecondStep,
    /// The server frees the locks of a connection that ends.
    ConnectionOwnsTheLock,
    /// The server renews an entry whoever asks.
    RenewsAnybody,
}

/// Each defect, the case that must find it, and what the case must say.
pub(crate) const TABLE: [(Defect, &str, &str); 5] = [
    (
        Defect::LocksInsideTheProcess,
        "processes::contending_processes_are_never_two_inside",
        "processes held the lock at once",
    ),
    (
        Defect::TtlInASecondStep,
        "partition::client_gone_after_any_request_leaves_the_name_free",
        "the entry has no TTL of its own",
    ),
    (
        Defect::TtlInASecondStep,
        "processes::processes_killed_at_any_moment_leave_their_names_free",
        "names are locked",
    ),
    (
        Defect::ConnectionOwnsTheLock,
        "partition::cut_connection_frees_nothing",
        "after the holder's connection was cut",
    ),
    (
        Defect::RenewsAnybody,
        "partition::replaced_holder_extends_nobody",
        "the renewal does not check the owner",
    ),
];

impl Defect {
    pub(crate) const VARIABLE: &str = "TCP_BACKEND_DEFECT";

    pub(crate) fn from_environment() -> Self {
        let name = std::env::var(Self::VARIABLE).unwrap_or_default();
        let defects = TABLE.iter().map(|(defect, ..)| *defect);
        defects
            .into_iter()
            .find(|defect| format!("{defect:?}") == name)
            .unwrap_or(Self::None)
    }
}
