//! Pictures of a report, as SVG. The same report gives the same bytes.

mod memory;
mod panel;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::contender::Contender;
use crate::report::{LINES, Report};

/// What is drawn on.
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const FONT: &str = "sans-serif";
/// The panels of the lines: so many beside each other, each so large, below a heading.
const COLUMNS: usize = 3;
const PANEL: (u32, u32) = (400, 270);
const HEADING: u32 = 84;
/// The picture of the memory.
const MEMORY: (u32, u32) = (720, 440);

/// Draws a report into a directory, and tells the files: `tunnel.svg`, and `memory.svg` if memory
/// was measured.
///
/// # Errors
/// When the directory or a file cannot be written.
pub(crate) fn write(report: &Report, directory: &Path) -> Result<Vec<PathBuf>> {
    let mut pictures = vec![("tunnel.svg", tunnel(report)?)];
    if !report.memory.is_empty() {
        pictures.push(("memory.svg", memory::draw(&report.memory, MEMORY)?));
    }
    let make = || std::fs::create_dir_all(directory);
    make().with_context(|| format!("make {}", directory.display()))?;
    let write = |(name, svg): (&str, String)| {
        let path = directory.join(name);
        std::fs::write(&path, svg).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    };
    pictures.into_iter().map(write).collect()
}

/// A panel for each line: bars of the medians, a point for each round.
fn tunnel(report: &Report) -> Result<String> {
    let rows = LINES.len().div_ceil(COLUMNS);
    let size = (PANEL.0 * COLUMNS as u32, PANEL.1 * rows as u32 + HEADING);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        let (heading, panels) = area.split_vertically(HEADING);
        draw_heading(&heading, report)?;
        for (panel, line) in panels.split_evenly((rows, COLUMNS)).iter().zip(&LINES) {
            panel::draw(panel, report, line)?;
        }
        area.present()?;
    }
    Ok(svg)
}

fn draw_heading(area: &Area<'_>, report: &Report) -> Result<()> {
    let (calm, all) = (report.calm().len(), report.rounds().len());
    text(area, "Pod to pod", (16, 22), 20, HPos::Left)?;
    let explained = format!(
        "Bars: medians of {calm} rounds, {} more discarded. Points: the rounds. Below: the median, and that of the \
         rounds' ratios to wireguard-go.",
        all - calm
    );
    text(area, &explained, (16, 44), 13, HPos::Left)?;
    let drawn = report
        .contenders()
        .iter()
        .filter(|c| **c != Contender::Veth);
    for (n, contender) in drawn.enumerate() {
        legend(area, *contender, (16 + 150 * n as i32, 66))?;
    }
    Ok(())
}

/// A coloured square and a name.
fn legend(area: &Area<'_>, contender: Contender, (x, y): (i32, i32)) -> Result<()> {
    let square = [(x, y - 6), (x + 12, y + 6)];
    area.draw(&Rectangle::new(square, colour(contender).filled()))?;
    text(area, &contender.to_string(), (x + 18, y), 13, HPos::Left)
}

/// Writes a text that is centred vertically about the place.
fn text(area: &Area<'_>, text: &str, place: (i32, i32), size: u32, anchor: HPos) -> Result<()> {
    let style = TextStyle::from((FONT, size)).pos(Pos::new(anchor, VPos::Center));
    Ok(area.draw_text(text, &style, place)?)
}

/// Colours that are told apart also without red and green.
fn colour(contender: Contender) -> RGBColor {
    match contender {
        Contender::Warren => RGBColor(0, 114, 178),
        Contender::Spinning => RGBColor(86, 180, 233),
        Contender::WireguardGo => RGBColor(230, 159, 0),
        Contender::Boringtun => RGBColor(150, 150, 150),
        Contender::Veth => RGBColor(60, 60, 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::report::tests::report;

    fn sample() -> Report {
        let mut report = report(&[[2.0, 1.0, 40.0], [9.0, 1.0, 20.0], [2.2, 1.1, 41.0]]);
        report.memory = vec![Memory {
            contender: Contender::Warren,
            resident_kib: vec![(0, 5_000.0), (1_000, 24_000.0), (5_000, 101_800.0)],
            idle_percent: 0.1,
        }];
        report
    }

    fn count(svg: &roxmltree::Document<'_>, tag: &str) -> usize {
        svg.descendants()
            .filter(|node| node.has_tag_name(tag))
            .count()
    }

    #[test]
    fn a_picture_is_an_svg_with_a_point_for_each_round_that_counts() {
        let svg = tunnel(&sample()).unwrap();
        let svg = roxmltree::Document::parse(&svg).unwrap();
        assert_eq!(svg.root_element().tag_name().name(), "svg");
        // Two rounds, warren-tunnel and wireguard-go.
        assert_eq!(count(&svg, "circle"), LINES.len() * 2 * 2);
        let texts: Vec<_> = svg.descendants().filter_map(|node| node.text()).collect();
        let has = |what: &str| texts.iter().any(|text| text.contains(what));
        for line in &LINES {
            assert!(has(line.name), "{}", line.name);
        }
        // 2.0 and 2.2 beside 1.0 and 1.1, and the veth.
        assert!(
            has("2.10") && has("x 2.00") && has("veth 40.5"),
            "{texts:?}"
        );
        assert!(has("2 rounds, 1 more discarded"), "{texts:?}");
    }

    #[test]
    fn the_memory_is_drawn_where_it_was_measured_with_its_slope() {
        let directory = tempfile::tempdir().unwrap();
        let names = |report: &Report| -> Vec<String> {
            let written = write(report, directory.path()).unwrap();
            let names = written.iter().filter_map(|path| path.file_name());
            names
                .map(|name| name.to_string_lossy().into_owned())
                .collect()
        };
        let mut report = sample();
        assert_eq!(names(&report), ["tunnel.svg", "memory.svg"]);
        let svg = std::fs::read_to_string(directory.path().join("memory.svg")).unwrap();
        let svg = roxmltree::Document::parse(&svg).unwrap();
        assert_eq!(count(&svg, "circle"), 3);
        let texts: Vec<_> = svg.descendants().filter_map(|node| node.text()).collect();
        assert!(
            texts.iter().any(|text| text.contains("19.4 KiB a peer")),
            "{texts:?}"
        );
        report.memory.clear();
        assert_eq!(names(&report), ["tunnel.svg"]);
    }

    #[test]
    fn the_same_report_gives_the_same_bytes() {
        let (one, other) = (sample(), sample());
        assert_eq!(tunnel(&one).unwrap(), tunnel(&other).unwrap());
        let draw = |report: &Report| memory::draw(&report.memory, MEMORY).unwrap();
        assert_eq!(draw(&one), draw(&other));
    }

    #[test]
    fn a_report_of_one_contender_alone_is_drawn_too() {
        let mut alone = Report::new(vec![Contender::Boringtun]);
        alone.add(0, Contender::Boringtun, crate::report::tests::figures(0.0));
        let svg = tunnel(&alone).unwrap();
        assert!(roxmltree::Document::parse(&svg).is_ok());
    }
}
