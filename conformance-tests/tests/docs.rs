//! The code in `docs/backend-author.md` is the code that is tested.

const PAGE: &str = include_str!("../../docs/backend-author.md");
const SOURCES: [&str; 5] = [
    include_str!("tcp/main.rs"),
    include_str!("dir/main.rs"),
    include_str!("dir/backend.rs"),
    include_str!("dir/table.rs"),
    include_str!("dir/harness.rs"),
];

#[test]
fn every_block_of_code_is_taken_from_the_small_backend() {
    let blocks: Vec<_> = PAGE
        .split("```rust\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(
        blocks.len() >= 5,
        "the page shows only {} blocks",
        blocks.len()
    );
    for block in blocks {
        assert!(
            SOURCES.iter().any(|source| source.contains(block)),
            "not in tests/dir or tests/tcp:\n{block}"
        );
    }
}
