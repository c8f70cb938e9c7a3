//! Tables for people, lines of JSON for programs.

use std::{fmt::Write as _, time::Duration};

use serde_json::json;

use crate::measure::Row;

/// What is aimed at, from the API's write to the last acknowledgement.
pub(crate) const AIM: Duration = Duration::from_millis(250);

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// A table of all kinds of change.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let _never = writeln!(
        text,
        "{:<21} {:>4} {:>9} {:>8} {:>8} {:>8} {:>6} {:>13} {:>11} {:>8} {:>10} {:>9} {:>10}",
        "change",
        "n",
        "API p50",
        "p50",
        "p99",
        "max",
        "nodes",
        "controller",
        "agents",
        "API",
        "resources",
        "KiB",
        "map writes"
    );
    for row in rows {
        let at = |share| ms(Row::percentile(&row.latencies, share));
        let cpu = |time: Duration| row.each(ms(time));
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let (nodes, writes) = (row.each(row.nodes as f64), row.each(row.map_writes as f64));
        let _never = writeln!(
            text,
            "{:<21} {:>4} {:>6.1} ms {:>5.0} ms {:>5.0} ms {:>5.0} ms {:>6.0} {:>9.1} ms {:>8.1} ms {:>5.1} ms {:>10.0} {:>9.1} {:>10.0}{}",
            row.name,
            row.latencies.len(),
            ms(Row::percentile(&row.written, 50)),
            at(50),
            at(99),
            at(100),
            nodes,
            cpu(row.controller),
            cpu(row.agents),
            cpu(row.api),
            row.each(row.resources),
            row.each(row.bytes) / 1024.0,
            writes,
            if Row::percentile(&row.latencies, 99) > AIM {
                "  MISSED"
            } else {
                ""
            },
        );
    }
    let _never = writeln!(
        text,
        "\nFrom the API's write to the last acknowledgement of the nodes that need it; aim: p99 of {} ms. CPU time, resources, bytes and map\n\
         writes are per change, over all nodes. `API` is the API server.",
        AIM.as_millis()
    );
    text
}

/// One object per line.
pub(crate) fn json(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let at = |share| ms(Row::percentile(&row.latencies, share));
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let (nodes, writes) = (row.each(row.nodes as f64), row.each(row.map_writes as f64));
        let line = json!({
            "name": row.name, "n": row.latencies.len(), "unit": "ms", "p50": at(50), "p99": at(99), "max": at(100),
            "api_write_p50": ms(Row::percentile(&row.written, 50)), "nodes": nodes,
            "controller_cpu_ms": row.each(ms(row.controller)), "agents_cpu_ms": row.each(ms(row.agents)),
            "api_server_cpu_ms": row.each(ms(row.api)), "resources": row.each(row.resources), "bytes": row.each(row.bytes),
            "map_writes": writes, "aim_ms": ms(AIM), "missed": Row::percentile(&row.latencies, 99) > AIM,
        });
        let _never = writeln!(text, "{line}");
    }
    text
}
