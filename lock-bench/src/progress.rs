use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// Shows the current measurement: as a bar on a terminal, as lines elsewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    lines: bool,
}

impl Progress {
    pub(crate) fn new(steps: usize) -> Self {
        let bar = ProgressBar::new(steps as u64);
        let style = ProgressStyle::with_template(
            "{elapsed_precise} [{bar:32}] {pos}/{len}, {eta} left  {wide_msg}",
        );
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("=> "));
        }
        Self {
            bar,
            lines: !std::io::stderr().is_terminal(),
        }
    }

    pub(crate) fn begin(&self, what: &str) {
        self.bar.set_message(what.to_owned());
        if !self.lines {
            self.bar.tick();
        }
    }

    pub(crate) fn end(&self, outcome: &str) {
        let what = self.bar.message();
        self.bar.inc(1);
        let line = format!(
            "[{}/{}] {what}: {outcome}",
            self.bar.position(),
            self.bar.length().unwrap_or_default()
        );
        if self.lines {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
