//! The code in `docs/backend-author.md` is the code that is tested, and the table of the cases is true.

use std::{env, fmt::Write, fs};

use lock_conformance::{Claim, Suite};

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

/// `LOCK_WRITE_DOCS=1` writes the page anew.
#[test]
fn table_of_the_cases_is_true() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/conformance-cases.md");
    let page = page_of_cases();
    if env::var("LOCK_WRITE_DOCS").is_ok_and(|value| value == "1") {
        fs::write(path, &page).expect("the page can be written");
    }
    let written = fs::read_to_string(path).expect("the page is there");
    assert!(
        written == page,
        "{path} is not up to date: run this test with LOCK_WRITE_DOCS=1"
    );
}

fn page_of_cases() -> String {
    let mut page = String::from(
        "# The cases of the conformance suite\n\n\
         Written by `LOCK_WRITE_DOCS=1 cargo test -p lock-conformance --test docs`. A case is proven on the defects beside it: \
         the suite's own tests run it on a backend that has the defect, and it must fail there. A defect that is quoted must be named \
         in the failure in these words.\n\n\
         | case | level | badge | needs | defects that it must find |\n\
         | --- | --- | --- | --- | --- |\n",
    );
    for case in Suite::cases() {
        let name = case.full_name();
        let needs: Vec<_> = case.needs.iter().map(|need| format!("{need:?}")).collect();
        let badge = case.badge().map(|badge| Claim::from(badge).to_string());
        let defects: Vec<_> = case
            .known_defects()
            .map(|defect| match defect.says {
                "" => defect.text.to_owned(),
                says => format!("{} (\"{says}\")", defect.text),
            })
            .collect();
        // Writing to a string does not fail.
        let _ = writeln!(
            page,
            "| `{name}` | {} | {} | {} | {} |",
            Claim::from(case.level()),
            badge.unwrap_or_default(),
            needs.join(", "),
            defects.join("<br>")
        );
    }
    page
}
