use super::*;

#[test]
fn a_request_that_was_let_through_before_the_freeze_is_not_served_after_it() {
    let store = MemStore::new();
    let key = store.key(&"n".parse().unwrap());
    store.freeze();
    assert!(store.ask_unless_frozen(&key, |_, _, _| ()).is_none());
    store.thaw();
    assert!(store.ask_unless_frozen(&key, |_, _, _| ()).is_some());
}

#[test]
fn an_idle_table_gives_its_memory_back() {
    let mut names = Names::default();
    names.reserve(KEEP_CAPACITY * 100);
    shrink(&mut names);
    assert!(names.capacity() <= KEEP_CAPACITY, "{}", names.capacity());
}
