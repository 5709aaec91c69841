use std::{fs, path::Path};

use crate::{
    Result,
    cli::Options,
    machine,
    report::{docs, json, markdown},
    suites::{Results, Suite},
};

/// Writes the files, and prints the report.
pub(crate) async fn write(suite: &Suite, results: &Results, options: &Options) -> Result<()> {
    let name = suite.name;
    let directory = &options.output;
    fs::create_dir_all(directory)?;
    let report = markdown::report(
        suite,
        results,
        &machine::describe(&suite.store.version().await?),
    );
    fs::write(
        directory.join(format!("{name}.json")),
        json::rows(&results.rows)?,
    )?;
    if !results.held.is_empty() {
        fs::write(
            directory.join(format!("{name}-held.json")),
            serde_json::to_string_pretty(&results.held)? + "\n",
        )?;
    }
    if let Some(passed) = &results.passed {
        fs::write(
            directory.join(format!("{name}-passed.json")),
            serde_json::to_string_pretty(passed)? + "\n",
        )?;
    }
    fs::write(directory.join(format!("{name}.md")), &report)?;
    plots(suite, results, directory)?;
    println!("{report}\nwritten to {}", directory.display());
    if let Some(page) = &options.docs {
        show_in(page, suite, results, &report)?;
        println!("shown in {}", page.display());
    }
    Ok(())
}

/// Draws the plots that have anything to show; returns the files' names.
fn plots(
    suite: &Suite,
    results: &Results,
    directory: &Path,
) -> Result<Vec<(&'static str, String)>> {
    let mut drawn = Vec::new();
    for chart in &suite.charts {
        if chart.draw(&results.rows, directory)? {
            drawn.push((chart.title, format!("{}.svg", chart.file)));
        }
    }
    Ok(drawn)
}

fn show_in(page: &Path, suite: &Suite, results: &Results, report: &str) -> Result<()> {
    let directory = page.with_extension("");
    fs::create_dir_all(&directory)?;
    let below = directory.file_name().unwrap_or_default().to_string_lossy();
    let images = plots(suite, results, &directory)?;
    let images: Vec<_> = images
        .iter()
        .map(|(title, file)| format!("![{title}]({below}/{file})"))
        .collect();
    docs::update(
        page,
        suite.name,
        &format!("{report}\n{}", images.join("\n\n")),
    )
}
