//! Resident memory over the number of peers.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{FONT, colour, text};
use crate::memory::Memory;
use crate::report::digits;

/// Pixels of the heading, of each contender's line in it, and of the scales.
const HEADING: u32 = 44;
const LINE: u32 = 20;
const SCALE: u32 = 56;

/// Draws a line for each contender, with a point for each number of peers.
pub(super) fn draw(memory: &[Memory], size: (u32, u32)) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        let title = "Resident memory by peers with a session, at rest";
        text(&area, title, (16, 22), 18, HPos::Left)?;
        for (n, of) in memory.iter().enumerate() {
            let place = (16, (HEADING + LINE * n as u32) as i32 + 8);
            let slope = digits(of.kib_a_peer());
            let idle = digits(Some(of.idle_percent));
            let explained = format!(
                "{}: {slope} KiB a peer from 1,000 on, {idle} % of a core at rest",
                of.contender
            );
            let square = [(place.0, place.1 - 6), (place.0 + 12, place.1 + 6)];
            area.draw(&Rectangle::new(square, colour(of.contender).filled()))?;
            text(&area, &explained, (place.0 + 18, place.1), 13, HPos::Left)?;
        }
        let heading = HEADING + LINE * memory.len() as u32 + 8;
        let points = || memory.iter().flat_map(|of| &of.resident_kib);
        let peers = points().map(|(peers, _)| *peers).max().unwrap_or_default();
        let most = points().map(|(_, kib)| mib(*kib)).fold(1.0, f64::max);
        let mut chart = ChartBuilder::on(&area.margin(heading, 8, 8, 24))
            .x_label_area_size(SCALE)
            .y_label_area_size(SCALE)
            .build_cartesian_2d(0..peers.max(1), 0.0..most * 1.05)?;
        chart
            .configure_mesh()
            .x_labels(6)
            .y_labels(6)
            .max_light_lines(1)
            .y_label_formatter(&|value| format!("{value:.0}"))
            .x_desc("peers")
            .y_desc("MiB")
            .label_style((FONT, 12))
            .draw()?;
        for of in memory {
            let line = of
                .resident_kib
                .iter()
                .map(|(peers, kib)| (*peers, mib(*kib)));
            let style = colour(of.contender).stroke_width(2);
            chart.draw_series(LineSeries::new(line.clone(), style))?;
            let style = colour(of.contender).filled();
            chart.draw_series(line.map(|place| Circle::new(place, 4, style)))?;
        }
        area.present()?;
    }
    Ok(svg)
}

fn mib(kib: f64) -> f64 {
    kib / 1024.0
}
