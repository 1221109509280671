//! The report as one HTML page: the table, latency and rate over time, and the percentile curves,
//! as SVG inside.

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::report;
use crate::run::Measured;
use crate::series::Point;
use crate::summary::Summary;

const SIZE: (u32, u32) = (960, 360);
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
];
/// The rightmost place of the percentile curve, 1 / (1 - percentile): p99.9999.
const NINES_MAX: f64 = 1e6;
/// The lowest place of latencies in milliseconds: a logarithm has no zero.
const MILLIS_MIN: f64 = 0.001;

/// A curve and its name.
struct Curve {
    name: String,
    places: Vec<(f64, f64)>,
}

/// What stands beside the axes of a chart.
struct Frame<'f> {
    title: &'f str,
    x: &'f str,
    y: &'f str,
    x_label: &'f dyn Fn(&f64) -> String,
}

pub fn html(summary: &Summary, work: &Measured) -> Result<String, String> {
    let over_time = latency_over_time(&work.points)?;
    let rate = rate_over_time(&work.points)?;
    let percentiles = percentile_curves(work)?;
    let table = escape(&report::text(summary));
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>quoit-bench: {workload}</title>\n\
         <style>body{{font:15px sans-serif;margin:2em auto;max-width:1000px}}pre{{overflow-x:auto;background:#f4f4f4;padding:1em}}\
         svg{{max-width:100%;height:auto}}</style></head>\n<body><h1>{workload}</h1>\n<pre>{command}\n{table}</pre>\n\
         {over_time}\n{percentiles}\n{rate}\n</body></html>\n",
        workload = escape(&summary.workload),
        command = escape(&summary.command),
    ))
}

fn latency_over_time(points: &[Point]) -> Result<String, String> {
    let curve = |name: &str, of: fn(&Point) -> f64| Curve {
        name: name.to_owned(),
        places: points
            .iter()
            .map(|point| (point.from_seconds, of(point).max(MILLIS_MIN)))
            .collect(),
    };
    let curves = [
        curve("p50", |point| point.p50_ms),
        curve("p99", |point| point.p99_ms),
        curve("p99.9", |point| point.p999_ms),
        curve("max", |point| point.max_ms),
    ];
    let frame = Frame {
        title: "Latency over time",
        x: "seconds",
        y: "ms",
        x_label: &|seconds| format!("{}", (seconds * 10.0).round() / 10.0),
    };
    let (low, high) = decades(&curves);
    chart(&frame, &curves, 0.0..end(points), (low..high).log_scale())
}

fn rate_over_time(points: &[Point]) -> Result<String, String> {
    let curve = |name: &str, of: fn(&Point) -> f64| Curve {
        name: name.to_owned(),
        places: points
            .iter()
            .map(|point| (point.from_seconds, of(point)))
            .collect(),
    };
    let curves = [
        curve("answers", Point::rate),
        curve("failures", |point| {
            point.failures as f64 / point.seconds.max(1e-9)
        }),
    ];
    let frame = Frame {
        title: "Requests a second",
        x: "seconds",
        y: "/s",
        x_label: &|seconds| format!("{}", (seconds * 10.0).round() / 10.0),
    };
    chart(
        &frame,
        &curves,
        0.0..end(points),
        0.0..highest(&curves) * 1.05,
    )
}

fn percentile_curves(work: &Measured) -> Result<String, String> {
    let used = work.tally.kinds().filter(|(_, of)| !of.latency.is_empty());
    let curves: Vec<Curve> = used
        .map(|(kind, of)| {
            let steps = of.latency.iter_quantiles(5);
            let places = steps.map(|step| {
                let nines = 1.0 / (1.0 - step.quantile_iterated_to()).max(1.0 / NINES_MAX);
                (
                    nines,
                    (step.value_iterated_to() as f64 / 1e6).max(MILLIS_MIN),
                )
            });
            Curve {
                name: kind.name().to_owned(),
                places: places.collect(),
            }
        })
        .collect();
    let frame = Frame {
        title: "Latency by percentile",
        x: "percentile",
        y: "ms",
        x_label: &|nines| format!("{}%", (100.0 - 100.0 / nines) as f32),
    };
    let (low, high) = decades(&curves);
    chart(
        &frame,
        &curves,
        (1.0..NINES_MAX).log_scale(),
        (low..high).log_scale(),
    )
}

/// From when the last point ends.
fn end(points: &[Point]) -> f64 {
    points
        .last()
        .map_or(1.0, |point| (point.from_seconds + point.seconds).max(1.0))
}

/// The highest place of all curves, and never none.
fn highest(curves: &[Curve]) -> f64 {
    let all = curves.iter().flat_map(|curve| curve.places.iter());
    all.fold(MILLIS_MIN, |high, (_, y)| high.max(*y))
}

/// The powers of ten around all places of all curves.
fn decades(curves: &[Curve]) -> (f64, f64) {
    let all = curves.iter().flat_map(|curve| curve.places.iter());
    let low = all.fold(highest(curves), |low, (_, y)| low.min(*y));
    let low = 10_f64.powf(low.max(MILLIS_MIN).log10().floor());
    let high = 10_f64.powf(highest(curves).log10().ceil());
    (low, high.max(low * 10.0))
}

fn chart<X, Y>(frame: &Frame, curves: &[Curve], x: X, y: Y) -> Result<String, String>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut svg = String::new();
    draw(&mut svg, frame, curves, (x, y)).map_err(|why| format!("{}: {why}", frame.title))?;
    Ok(svg)
}

fn draw<X, Y>(
    svg: &mut String,
    frame: &Frame,
    curves: &[Curve],
    axes: (X, Y),
) -> Result<(), Box<dyn std::error::Error>>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(|why| why.to_string())?;
    let mut chart = ChartBuilder::on(&area)
        .caption(frame.title, ("sans-serif", 18))
        .margin(10)
        .margin_right(40)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(axes.0, axes.1)
        .map_err(|why| why.to_string())?;
    chart
        .configure_mesh()
        .x_desc(frame.x)
        .y_desc(frame.y)
        .x_label_formatter(frame.x_label)
        .draw()
        .map_err(|why| why.to_string())?;
    for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let line = LineSeries::new(curve.places.iter().copied(), colour.stroke_width(2));
        let drawn = chart.draw_series(line).map_err(|why| why.to_string())?;
        let colour = *colour;
        drawn
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(|why| why.to_string())?;
    area.present().map_err(|why| why.to_string())?;
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Phase;
    use crate::summary::Facts;
    use crate::tally::Tally;
    use crate::workload::Kind;

    fn page(latencies: &[u64], points: Vec<Point>) -> String {
        let mut tally = Tally::new([Kind::Get].into_iter());
        latencies
            .iter()
            .for_each(|nanos| tally.answered(Kind::Get, *nanos));
        let work = Measured {
            phase: Phase::Work,
            tally,
            seconds: 1.0,
            points,
            busy: vec![0.5],
            history: Vec::new(),
        };
        let facts = Facts {
            command: "quoit-bench <get> & \"more\"".into(),
            workload: "get".into(),
            offered_rate: Some(1.0),
            targets: Vec::new(),
            is_verified: false,
            has_gaps: false,
            is_linear: false,
            is_interrupted: false,
        };
        let measured = [work];
        let summary = Summary::new(facts, &measured);
        html(&summary, &measured[0]).expect("it can be drawn")
    }

    /// A run without answers, or with the fastest and slowest there are, has a report as well.
    #[test]
    fn a_page_is_whole_whatever_was_measured() {
        let point = Point {
            seconds: 1.0,
            answers: 3,
            max_ms: 3_600_000.0,
            ..Point::default()
        };
        for (latencies, points) in [
            (vec![], vec![]),
            (vec![0], vec![point]),
            (vec![1, 1_000, u64::MAX], vec![point; 3]),
        ] {
            let page = page(&latencies, points);
            assert_eq!(page.matches("<svg").count(), 3);
            assert!(
                !page.contains("NaN") && !page.contains("inf"),
                "{latencies:?}"
            );
        }
    }

    /// The command line stands in the page: it must not become a part of it.
    #[test]
    fn what_stands_in_the_page_is_text() {
        let page = page(&[1], Vec::new());
        assert!(page.contains("&lt;get&gt; &amp; &quot;more&quot;") && !page.contains("<get>"));
    }
}
