//! Files of a report.

use std::{fs, path::Path};

use serde::Deserialize;
use serde_json::Value;

use crate::{junit, page, report::Report};

/// The page among them.
pub(crate) const PAGE: &str = "index.html";

/// Writes the report in every form.
pub(crate) fn all(json: &Value, directory: &Path) -> Result<(), String> {
    let report = Report::deserialize(json).map_err(|error| format!("the report: {error}"))?;
    let xml = junit::render(&report).map_err(|error| format!("the report as XML: {error}"))?;
    fs::create_dir_all(directory).map_err(|error| cannot("make", directory, &error))?;
    write(directory, "report.json", &format!("{json:#}\n"))?;
    write(directory, "junit.xml", &xml)?;
    write(directory, PAGE, &page::render(&report))
}

/// Reads a report as JSON and writes it in every form.
pub(crate) fn render(report: &Path, directory: &Path) -> Result<(), String> {
    let text = fs::read_to_string(report).map_err(|error| cannot("read", report, &error))?;
    let json = serde_json::from_str(&text)
        .map_err(|error| format!("{} is no report of the suite: {error}", report.display()))?;
    all(&json, directory)
}

fn write(directory: &Path, name: &str, text: &str) -> Result<(), String> {
    let path = directory.join(name);
    fs::write(&path, text).map_err(|error| cannot("write", &path, &error))
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> String {
    format!("cannot {what} {}: {error}", path.display())
}
