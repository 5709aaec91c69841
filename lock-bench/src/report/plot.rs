use std::{collections::BTreeSet, path::Path};

use plotters::{
    coord::{
        Shift,
        combinators::LogCoord,
        ranged1d::{Ranged, ValueFormatter},
        types::RangedCoordf64,
    },
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    Result,
    measure::{Figures, Row},
    plan::{Key, Subject},
};

/// A chart with bars side by side for each subject.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chart {
    /// The file's name without `.svg`.
    pub(crate) file: &'static str,
    pub(crate) title: &'static str,
    pub(crate) axis: Axis,
    pub(crate) measure: Measure,
    pub(crate) shows: fn(&Key) -> bool,
}

/// Quantity that differs from one cluster of bars to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Axis {
    Tasks,
    Processes,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Measure {
    /// Cycles per second.
    Throughput,
    /// Milliseconds, on a logarithmic scale.
    P99,
}

struct Bar {
    cluster: usize,
    subject: Subject,
    value: f64,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const SIZE: (u32, u32) = (720, 400);
/// Share of a cluster's room that its bars fill.
const CLUSTER_WIDTH: f64 = 0.8;
/// Room for the legend to the right of the bars, as a factor.
const WITH_LEGEND: f64 = 1.25;

impl Chart {
    /// Draws the chart, unless there is nothing to show; returns whether there was.
    pub(crate) fn draw(&self, rows: &[Row], directory: &Path) -> Result<bool> {
        let rows: Vec<&Row> = rows.iter().filter(|row| (self.shows)(&row.key)).collect();
        if rows.is_empty() {
            return Ok(false);
        }
        let sizes: BTreeSet<usize> = rows.iter().map(|row| self.axis.of(&row.key)).collect();
        let subjects: BTreeSet<Subject> = rows.iter().map(|row| row.key.subject).collect();
        let bar = |row: &&Row| Bar {
            cluster: sizes.range(..self.axis.of(&row.key)).count(),
            subject: row.key.subject,
            value: self.measure.of(&row.figures),
        };
        let bars: Vec<Bar> = rows.iter().map(bar).collect();
        let file = directory.join(format!("{}.svg", self.file));
        let area = SVGBackend::new(&file, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let sizes = sizes.into_iter().collect();
        let highest = bars
            .iter()
            .map(|bar| bar.value)
            .fold(f64::MIN_POSITIVE, f64::max);
        let picture = Picture {
            title: self.title,
            axis: self.axis,
            sizes,
            subjects,
            bars,
        };
        match self.measure {
            Measure::Throughput => {
                picture.draw(&area, RangedCoordf64::from(0.0..highest * 1.15), 0.0)?;
            }
            Measure::P99 => {
                let lowest = picture
                    .bars
                    .iter()
                    .map(|bar| bar.value)
                    .fold(highest, f64::min)
                    .max(1e-6)
                    / 3.0;
                picture.draw(
                    &area,
                    LogCoord::from((lowest..highest * 3.0).log_scale()),
                    lowest,
                )?;
            }
        }
        area.present()?;
        Ok(true)
    }
}

struct Picture {
    title: &'static str,
    axis: Axis,
    sizes: Vec<usize>,
    subjects: BTreeSet<Subject>,
    bars: Vec<Bar>,
}

impl Picture {
    /// Draws bars that stand on `floor`.
    fn draw<Y>(&self, area: &Area<'_>, y: Y, floor: f64) -> Result<()>
    where
        Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let mut builder = ChartBuilder::on(area);
        builder
            .caption(self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64);
        let mut chart =
            builder.build_cartesian_2d(0.0..self.sizes.len() as f64 * WITH_LEGEND, y)?;
        let mut mesh = chart.configure_mesh();
        mesh.disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.15))
            .x_desc(self.axis.name());
        mesh.x_labels(4 * self.sizes.len())
            .x_label_formatter(&|x| self.label(*x))
            .y_label_formatter(&|y| number(*y))
            .draw()?;
        for (place, subject) in self.subjects.iter().enumerate() {
            let color = Palette99::pick(place).to_rgba();
            let bars = self.bars.iter().filter(|bar| bar.subject == *subject);
            let rectangles = bars.clone().map(|bar| {
                Rectangle::new(
                    [(self.left(bar), floor), (self.right(bar), bar.value)],
                    color.filled(),
                )
            });
            let series = chart.draw_series(rectangles)?.label(subject.to_string());
            series.legend(move |(x, y)| {
                Rectangle::new([(x, y - 5), (x + 12, y + 5)], color.filled())
            });
            let style =
                TextStyle::from(("sans-serif", 12)).pos(Pos::new(HPos::Center, VPos::Bottom));
            let middle = |bar: &Bar| f64::midpoint(self.left(bar), self.right(bar));
            chart.draw_series(bars.map(|bar| {
                Text::new(number(bar.value), (middle(bar), bar.value), style.clone())
            }))?;
        }
        let mut legend = chart.configure_series_labels();
        legend
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        Ok(())
    }

    /// The cluster's size at its middle, and nothing at its edges.
    fn label(&self, x: f64) -> String {
        let is_middle = (x.fract() - 0.5).abs() < 1e-6;
        self.sizes
            .get(x.floor() as usize)
            .filter(|_| is_middle)
            .map(ToString::to_string)
            .unwrap_or_default()
    }

    fn left(&self, bar: &Bar) -> f64 {
        let place = self.subjects.range(..bar.subject).count() as f64;
        bar.cluster as f64 + (1.0 - CLUSTER_WIDTH) / 2.0 + place * self.bar_width()
    }

    fn right(&self, bar: &Bar) -> f64 {
        self.left(bar) + self.bar_width() * 0.92
    }

    fn bar_width(&self) -> f64 {
        CLUSTER_WIDTH / self.subjects.len() as f64
    }
}

impl Axis {
    fn of(self, key: &Key) -> usize {
        match self {
            Self::Tasks => key.tasks,
            Self::Processes => key.processes,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tasks => "tasks",
            Self::Processes => "processes",
        }
    }
}

impl Measure {
    fn of(self, figures: &Figures) -> f64 {
        match self {
            Self::Throughput => figures.cycles_per_s,
            Self::P99 => figures.p99_ms,
        }
    }
}

fn number(value: f64) -> String {
    match value {
        value if value >= 10.0 || value == 0.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::row;

    fn chart(measure: Measure) -> Chart {
        Chart {
            file: "test",
            title: "A title",
            axis: Axis::Tasks,
            measure,
            shows: |key| key.processes == 1,
        }
    }

    #[test]
    fn every_bar_and_every_label_is_drawn() {
        let directory = tempfile::tempdir().unwrap();
        let rows: Vec<Row> = [1, 16, 64]
            .into_iter()
            .flat_map(|n| [Subject::Ours, Subject::Raw].map(|s| row(Key::uncontended(s, n))))
            .collect();
        for measure in [Measure::Throughput, Measure::P99] {
            assert!(chart(measure).draw(&rows, directory.path()).unwrap());
            let svg = std::fs::read_to_string(directory.path().join("test.svg")).unwrap();
            for text in [
                "A title", "tasks", "ours", "raw", "\n1\n", "\n16\n", "\n64\n",
            ] {
                assert!(svg.contains(text), "{text:?} is missing in {svg}");
            }
        }
    }

    #[test]
    fn nothing_to_show_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let rows = [row(Key::processes(Subject::Ours, 8))];
        assert!(
            !chart(Measure::Throughput)
                .draw(&rows, directory.path())
                .unwrap()
        );
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
