//! One line of the table as a picture.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{Area, FONT, colour, text};
use crate::contender::Contender;
use crate::report::{Line, Report, digits};

/// Pixels around the bars: for the texts above and below, the scale on the left, and nothing.
const ABOVE: u32 = 52;
const BELOW: u32 = 40;
const LEFT: u32 = 56;
const RIGHT: u32 = 12;
/// Of the room that a bar has, it takes so much.
const WIDTH: f64 = 0.66;

/// Draws a bar for each contender but the veth, which would make all others small, and a point for each round.
pub(super) fn draw(area: &Area<'_>, report: &Report, line: &Line) -> Result<()> {
    let drawn: Vec<Contender> = (report.contenders().iter().copied())
        .filter(|contender| *contender != Contender::Veth)
        .collect();
    let values = |contender: &Contender| {
        let values = report.values(*contender, line.of).into_iter();
        values.filter(|value| value.is_finite()).collect::<Vec<_>>()
    };
    let most = drawn.iter().flat_map(values).fold(0.0, f64::max);
    let top = if most > 0.0 { most * 1.08 } else { 1.0 };
    draw_texts(area, report, line, &drawn)?;

    let bars = area.margin(ABOVE, BELOW, 0, RIGHT);
    let mut chart = ChartBuilder::on(&bars)
        .y_label_area_size(LEFT)
        .build_cartesian_2d(0.0..drawn.len().max(1) as f64, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_labels(5)
        .y_max_light_lines(1)
        .y_label_formatter(&|value| digits(Some(*value)))
        .label_style((FONT, 12))
        .draw()?;
    for (n, contender) in drawn.iter().enumerate() {
        let middle = n as f64 + 0.5;
        if let Some(median) = report.median(*contender, line.of) {
            let sides = [(middle - WIDTH / 2.0, 0.0), (middle + WIDTH / 2.0, median)];
            let bar = Rectangle::new(sides, colour(*contender).mix(0.7).filled());
            chart.draw_series([bar])?;
        }
        // Beside each other in the order of the rounds.
        let values = values(contender);
        let step = WIDTH / (values.len() + 1) as f64;
        let points = values.into_iter().enumerate().map(|(round, value)| {
            let x = middle - WIDTH / 2.0 + step * (round + 1) as f64;
            Circle::new((x, value), 3, BLACK.mix(0.75).filled())
        });
        chart.draw_series(points)?;
    }
    Ok(())
}

fn draw_texts(area: &Area<'_>, report: &Report, line: &Line, drawn: &[Contender]) -> Result<()> {
    let (width, height) = area.dim_in_pixel();
    let (left, right) = (LEFT as i32, (width - RIGHT) as i32);
    text(area, line.name, (left, 18), 15, HPos::Left)?;
    let better = if line.more_is_better { "more" } else { "less" };
    let mut below = format!(
        "{better} is better; aim x {}, least x {}",
        line.aim, line.least
    );
    let veth = report.median(Contender::Veth, line.of);
    if let Some(veth) = veth.filter(|veth| *veth > 0.0) {
        below += &format!("; veth {}", digits(Some(veth)));
    }
    text(area, &below, (left, 38), 12, HPos::Left)?;
    for (n, contender) in drawn.iter().enumerate() {
        let x = left + (right - left) * (2 * n as i32 + 1) / (2 * drawn.len() as i32);
        let median = digits(report.median(*contender, line.of));
        let y = (height - BELOW) as i32;
        text(area, &median, (x, y + 12), 13, HPos::Center)?;
        if let Some(ratio) = report.ratio(*contender, line) {
            let ratio = format!("x {}", digits(Some(ratio)));
            text(area, &ratio, (x, y + 28), 12, HPos::Center)?;
        }
    }
    Ok(())
}
