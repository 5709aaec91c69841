//! The defects that the suite is proven on, and the cases that must find each of them. The tests of
//! the suite include this file, too.

/// Defines the defects of one backend and their table.
macro_rules! defects {
    ($($(#[doc = $doc:literal])+
       $name:ident => $([$($case:literal),+] $(says $text:literal)?),+;)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Defect {
            /// Nothing is wrong.
            None,
            $($(#[doc = $doc])+ $name,)+
        }

        impl Defect {
            /// Says what is wrong.
            pub(crate) fn text(self) -> &'static str {
                match self {
                    Self::None => "",
                    $(Self::$name => concat!($($doc),+).trim_ascii()),+
                }
            }
        }

        /// Each defect, with every case that must find it and a part of what the case must say.
        pub(crate) const TABLE: &[(Defect, &[&str], &str)] =
            &[$($((Defect::$name, &[$($case),+], concat!($($text)?))),+),+];
    };
}

/// Defects of a backend that is simulated in the suite's own tests.
pub(crate) mod simulated {
    defects! {
        // Exclusion.
        /// Two acquisitions through one session both succeed.
        SessionIsReentrant => ["exclusion::two_acquisitions_of_one_client_exclude_each_other"];
        /// The owner id belongs to the client and not to the acquisition.
        OwnerPerClient => [
            "release::stale_guard_releases_nothing_of_its_own_client",
            "exclusion::two_acquisitions_of_one_client_exclude_each_other"
        ];
        /// A failed attempt on the holder's own client points its renewal elsewhere.
        FailedTryStopsTheHeartbeat => ["exclusion::failed_tries_leave_the_holder_renewed"];
        /// The store forgets the locks when it restarts.
        RestartForgetsLocks => ["exclusion::restart_of_the_store_makes_no_second_holder"];

        // Release.
        /// Whoever releases removes the present holder.
        ReleaseWithoutOwnerCheck => [
            "release::stale_guard_releases_nothing_of_another_client",
            "release::stale_guard_dropped_releases_nothing"
        ];
        /// A release always reports that the lock was held.
        ReleaseAlwaysSaysHeld => ["release::release_of_a_removed_entry_says_lost"];
        /// A dropped guard keeps its entry for the whole TTL.
        DroppedGuardKeepsItsEntry => ["release::dropped_guard_releases_promptly", "release::guard_dropped_outside_a_runtime_releases_promptly"];
        /// Shutting down closes the client, but releases nothing.
        ShutdownReleasesNothing => ["shutdown::shutdown_releases_what_is_held", "shutdown::shutdown_loses_the_guards"];
        /// A dropped shutdown leaves undone what it has not done yet.
        DroppedShutdownStops => ["cancellation::dropped_shutdown_still_releases"];
        /// A client that was shut down goes on working.
        ShutdownIsNotFinal => ["shutdown::shutdown_is_idempotent_and_final"];
        /// Waiters do not learn of the shutdown.
        WaitersSurviveShutdown => ["shutdown::shutdown_fails_the_waiters"];

        // Waiting.
        /// A waiting acquire fails at once on a held lock.
        WaitFailsAtOnce => ["waiting::waiter_gets_the_lock_after_the_release", "exclusion::second_client_waits_and_then_holds"];
        /// The timeout has no effect.
        TimeoutIsIgnored => ["waiting::bounded_wait_times_out_in_time"];
        /// A wait that timed out leaves the name locked inside the client.
        FailedWaitLeavesALocalLock => ["waiting::client_can_acquire_after_a_timeout"];
        /// The store's wake-up never reaches the waiter, and nothing replaces it.
        WakeUpsAreLost => ["waiting::waiter_gets_the_lock_after_the_release"];
        /// Waiters poll slowly although wake-ups are declared.
        WakeUpsArePolled => ["waiting::release_wakes_the_waiter_at_once"];
        /// The stream of wake-ups ends with the server, and nobody opens another.
        RestartStrandsWaiters => ["waiting::waiters_survive_a_restart"];
        /// A waiter's own entry expires while it waits.
        WaiterIsNotRenewed => ["order::waiters_keep_their_place_past_the_ttl"];
        /// A waiter whose own entry had expired is granted.
        EvictedWaiterIsGranted => ["waiting::evicted_waiter_is_never_a_second_holder"];
        /// A waiter whose own entry had expired waits forever.
        EvictedWaiterWaitsOn => ["waiting::eviction_of_a_waiter_is_noticed"];
        /// A waiter keeps its place, and is granted the lock there, although its caller does not poll.
        WaiterNeedNotLook => ["waiting::waiter_that_is_not_polled_blocks_nobody"];
        /// The lease of a waiter begins when it joins the queue.
        GrantedWithAnOldLease => ["waiting::waiter_outlasts_many_ttls"];

        // Outages.
        /// A wait whose time is up reports that the lock was not free, whatever the store did.
        OutageLooksLikeContention => ["outage::bounded_wait_on_a_silent_store_is_unavailable", "outage::store_that_is_down_is_unavailable"];
        /// The first request without an answer makes an acquire fail.
        OutageEndsTheWait => ["outage::wait_begun_in_a_short_outage_goes_on"];
        /// The client waits for a store that does not come back.
        OutageIsWaitedOutForEver => ["outage::wait_without_a_bound_ends_after_the_ttl"];
        /// A time-out does not say who holds the lock.
        HolderIsNotNamed => ["outage::contention_names_the_holder"];

        // Runtimes.
        /// Nothing checks whether there is a runtime.
        RuntimeIsTakenForGranted => ["runtimes::without_a_runtime_every_operation_says_so"];
        /// A release that fails for want of a runtime is not made good later.
        FailedReleaseIsForgotten => ["runtimes::without_a_runtime_guards_are_let_go"];
        /// The end of the client's runtime looks like an outage.
        EndOfTheRuntimeIsNotTold => ["runtimes::a_client_whose_runtime_has_ended_says_so"];
        /// An inspection waits forever for a client that nothing runs.
        StandstillIsWaitedOut => ["runtimes::a_client_whose_runtime_stands_still_says_so"];
        /// Locks that are held when the client's runtime ends are left to their TTL, unless the client
        /// is shut down.
        EndOfTheRuntimeReleasesNothing => ["runtimes::guards_are_let_go_after_their_runtime_has_ended"];

        // Cancellation.
        /// A dropped or timed-out waiter's entry is left to its TTL.
        DroppedWaiterIsLeft => [
            "cancellation::dropped_waiter_leaves_no_entry",
            "cancellation::dropped_waiter_lets_the_next_proceed",
            "cancellation::acquire_dropped_at_random_points_leaves_nothing",
            "waiting::timed_out_wait_leaves_nothing_behind"
        ];
        /// An acquire that is dropped before the first reply is not cleaned up.
        CleanUpBeginsTooLate => [
            "cancellation::acquire_dropped_after_its_first_step_leaves_nothing",
            "cancellation::try_dropped_at_random_points_leaves_nothing"
        ];
        /// A request without a reply is taken for one without effect.
        UnknownOutcomeIsForgotten => ["errors::frozen_store_is_an_error_and_nothing_is_held"];

        // Renewal.
        /// Leases are not renewed.
        NoRenewal => ["renewal::holder_outlives_many_ttls"];
        /// A renewal extends whatever entry the name has.
        RenewalWithoutOwnerCheck => ["partition::replaced_holder_extends_nobody"]
            says "the renewal does not check the owner";
        /// Leases are renewed although renewal is off.
        WithoutRenewalIsIgnored => ["renewal::without_renewal_the_lock_ends_on_time"];
        /// A stuck holder keeps the lock forever.
        MaxHoldIsIgnored => ["renewal::maximum_hold_ends_renewal", "renewal::name_is_free_after_the_maximum_hold"];
        /// The guard is lost at its maximum hold time, but the store keeps the lock for its TTL.
        MaxHoldKeepsTheEntry => ["renewal::name_is_free_after_a_maximum_hold_far_below_the_ttl"];
        /// The TTL that was asked for has no effect.
        TtlIsIgnored => ["renewal::deadline_is_within_the_ttl_and_moves_out"];
        /// The lease begins when the reply arrives.
        LeaseBeginsAtTheReply => ["renewal::deadline_counts_from_the_request_not_from_the_reply"];
        /// The guard's deadline is later than the store's.
        DeadlineIsTooLate => ["renewal::expired_lock_goes_to_the_waiter_not_too_early", "renewal::deadline_is_within_the_ttl_and_moves_out"];
        /// The store keeps the entries of dead holders.
        StoreNeverExpires => ["renewal::expired_lock_is_free_for_a_try", "leaks::expired_locks_leave_nothing"];
        /// A renewal without a reply loses the lock at once.
        FailedRenewalIsALoss => ["renewal::short_freeze_is_survived"];

        // Loss.
        /// A renewal without a reply counts as done: the guard of a frozen store stays valid.
        FailedRenewalIsSilent => ["loss::frozen_store_does_not_delay_the_loss", "loss::frozen_store_loses_all_guards_of_a_client"];
        /// A contender makes the holder's guard lost.
        LossOnContention => ["loss::contention_and_other_names_cause_no_loss"];
        /// The store reports no loss, although that is declared.
        LossIsNotPushed => ["loss::removed_entry_is_noticed", "loss::forced_release_is_noticed"];
        /// A renewal of an entry that is gone creates a new one.
        RenewalRecreatesTheEntry => ["loss::removed_entry_is_noticed", "loss::forced_release_is_noticed"];
        /// A definite "not yours" is retried like a transient error.
        NotHeldIsRetried => ["loss::removed_entry_is_noticed"];

        // Order.
        /// The last to arrive is the first to be granted.
        LastInFirstOut => ["order::waiters_of_one_client_are_granted_in_order", "order::waiters_of_many_clients_are_granted_in_order"];
        /// A try takes the lock before the waiter that it was handed to hears of it.
        TryJumpsTheQueue => ["order::try_does_not_jump_the_queue"];
        /// A waiter that sees its predecessor go away takes the lock for free.
        PredecessorIsProof => ["order::giving_up_in_mid_queue_grants_nobody"];

        // Fencing.
        /// A release deletes the record that carries the token.
        ReleaseDeletesTheToken => ["fencing::tokens_grow_with_each_acquisition"];
        /// Each client counts for itself.
        TokenPerClient => ["fencing::tokens_grow_across_clients", "fencing::tokens_grow_across_a_shutdown"];
        /// The store forgets the tokens when it restarts.
        RestartForgetsTokens => ["fencing::tokens_grow_across_a_restart"];
        /// Guards have no token although fencing is declared.
        TokenIsMissing => ["fencing::tokens_grow_with_each_acquisition"];

        // Names.
        /// A lock waits for nested ones.
        PrefixInterferes => ["names::name_and_nested_name_do_not_interfere", "names::waiting_on_nested_names_does_not_interfere"];
        /// Names are compared without case.
        CaseIsIgnored => ["names::case_counts"];
        /// Long names are truncated.
        NamesAreTruncated => ["names::longest_names_differ_in_their_last_byte", "names::name_of_a_thousand_characters_works"];
        /// The part in braces is taken for the name.
        BracesAreTheName => ["names::braces_count"];
        /// Spaces around a name are dropped.
        SpacesAreTrimmed => ["names::spaces_and_punctuation_count"];
        /// Slashes around a name are dropped.
        SlashesAreTrimmed => ["names::slashes_count"];

        // Inspect.
        /// The last in the queue is reported as the holder.
        InspectTellsTheLast => ["inspect::new_holder_is_told_after_a_hand_over"];
        /// The reported token is not the guard's.
        InspectTellsAnotherToken => ["fencing::token_is_what_inspect_tells"];
        /// Metadata is accepted and dropped.
        MetadataIsDropped => ["inspect::metadata_is_told"];
        /// The holder is counted as a waiter.
        QueueLengthCountsTheHolder => ["inspect::waiters_are_counted"];
        /// Forcing a release has no effect.
        ForceDoesNothing => ["inspect::force_release_takes_the_lock_away", "release::forced_out_guard_releases_nothing"];
        /// Forcing a release always reports a holder.
        ForceAlwaysSaysYes => ["inspect::force_release_says_whether_there_was_a_holder"];
        /// Forcing a release removes the nested locks as well.
        ForceTakesNestedNames => ["names::forced_release_takes_one_name_only"];
        /// Forcing a release throws the waiters out without notice.
        ForceClearsTheQueue => ["inspect::force_release_hands_over_to_the_queue"];
        /// Forcing a release of one owner's lock releases it whoever holds it.
        ForceTakesAnybody => ["inspect::force_release_spares_another_owner"];
        /// Forcing a release names somebody who did not hold the lock.
        ForceNamesAnother => ["inspect::force_release_says_whom_it_removed"];
        /// A watch reports the holder when it begins, and nothing after that.
        WatchTellsOnce => ["inspect::watch_tells_every_new_holder"];
        /// A watch does not notice that a lease has ended.
        WatchTrustsTheLease => ["inspect::watch_notices_a_lease_that_ends"];
        /// A watch goes on after the shutdown of its client.
        WatchOutlivesItsClient => ["inspect::watch_ends_with_its_client"];
        /// The list contains all names.
        ListIgnoresThePrefix => ["inspect::list_tells_what_is_held_below_a_prefix"];
        /// The list has one page.
        ListIsCutShort => ["inspect::list_of_many_names_is_complete"];
        /// A raised token belongs to the holder alone.
        RaiseIsForgotten => ["fencing::a_raised_token_is_continued", "fencing::a_token_is_raised_above_those_who_wait"];

        // Errors.
        /// Options out of range are replaced by the defaults.
        InvalidOptionsAreReplaced => ["errors::ttl_out_of_range_is_refused", "errors::zero_and_endless_bounds_are_refused"];
        /// Errors do not say where they arose.
        ErrorsLackContext => ["errors::time_out_has_its_context", "errors::invalid_options_have_their_context"];
        /// The password is in the client's `Debug` output.
        DebugShowsThePassword => ["errors::debug_shows_what_is_held_and_no_secrets"];

        // Unsupported.
        /// Metadata is not supported, and dropped silently.
        UnsupportedMetadataIsIgnored => ["unsupported::metadata_is_refused"];
        /// Shared mode is not supported, and granted exclusively.
        SharedModeIsIgnored => ["unsupported::shared_mode_is_refused"];
        /// Guards have tokens although fencing is not declared.
        TokenWithoutFencing => ["unsupported::guards_have_no_token"];
        /// Inspecting works although it is not declared.
        InspectUndeclared => ["unsupported::inspect_is_refused"];
        /// The queue length is reported although it is not declared.
        QueueLengthUndeclared => ["unsupported::queue_length_is_not_told"];
        /// Forcing a release works although it is not declared.
        ForceUndeclared => ["unsupported::force_release_is_refused"];
        /// A watch works although it is not declared.
        WatchUndeclared => ["unsupported::watch_is_refused"];
        /// A list works although it is not declared.
        ListUndeclared => ["unsupported::list_is_refused"];
        /// Tokens can be raised although it is not declared.
        RaiseUndeclared => ["unsupported::raising_a_token_is_refused"];

        // Leaks.
        /// Every failed try leaves an entry.
        TryLeavesAnEntry => ["leaks::twenty_failed_tries_leave_nothing"];
        /// Every acquisition leaves a renewal running.
        RenewalIsLeaked => ["leaks::cycles_leave_no_residue"];
        /// Every acquisition leaves a task running.
        TaskIsLeaked => ["leaks::runtime_tasks_return_to_the_baseline"];
        /// The client's data of a guard stays for as long as somebody keeps a view of it.
        ViewKeepsItsGuard => ["leaks::kept_views_leave_no_residue"];
        /// Every waiter leaves a subscription.
        WaiterIsLeaked => ["leaks::dropped_waits_leave_no_residue", "leaks::timed_out_waits_leave_no_residue"];
    }
}

/// Defects of a small lock server, its clients in several processes.
pub(crate) mod networked {
    defects! {
        /// Nobody asks the server: the lock excludes the tasks of one process.
        LocksInsideTheProcess => ["processes::contending_processes_are_never_two_inside"]
            says "processes held the lock at once";
        /// The entry is written first and gets its TTL by a second request.
        TtlInASecondStep => ["partition::client_gone_after_any_request_leaves_the_name_free"]
            says "the entry has no TTL of its own",
            ["processes::processes_killed_at_any_moment_leave_their_names_free"]
            says "names are locked";
        /// The server frees the locks of a connection that ends.
        ConnectionOwnsTheLock => ["partition::cut_connection_frees_nothing"]
            says "after the holder's connection was cut";
        /// The server renews an entry whoever asks.
        RenewsAnybody => ["partition::replaced_holder_extends_nobody"]
            says "the renewal does not check the owner";
    }
}
