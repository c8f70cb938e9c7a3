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
        "{:<21} {:>4} {:>8} {:>8} {:>8} {:>8} {:>10} {:>10} {:>6}",
        "change", "n", "API p50", "p50", "p99", "max", "kernel p50", "kernel p99", "nodes",
    );
    for row in rows {
        let at = |share| ms(Row::percentile(&row.latencies, share));
        let kernel = |share| ms(Row::percentile(&row.in_kernel, share));
        let missed = Row::percentile(&row.latencies, 99) > AIM;
        let _never = writeln!(
            text,
            "{:<21} {:>4} {:>5.1} ms {:>5.0} ms {:>5.0} ms {:>5.0} ms {:>7.0} ms {:>7.0} ms {:>6.0}{}",
            row.name,
            row.latencies.len(),
            ms(Row::percentile(&row.written, 50)),
            at(50),
            at(99),
            at(100),
            kernel(50),
            kernel(99),
            row.nodes_each(),
            if missed { "  MISSED" } else { "" },
        );
    }
    let _never = writeln!(
        text,
        "\n{:<21} {:>13} {:>11} {:>13} {:>8} {:>10} {:>9} {:>10}",
        "per change", "controller", "agents", "kernel agents", "API", "resources", "KiB", "map writes"
    );
    for row in rows {
        let cpu = |time: Duration| row.each(ms(time));
        let _never = writeln!(
            text,
            "{:<21} {:>10.1} ms {:>8.1} ms {:>10.1} ms {:>5.1} ms {:>10.0} {:>9.1} {:>10.0}",
            row.name,
            cpu(row.controller),
            cpu(row.agents),
            cpu(row.kernel_agents),
            cpu(row.api),
            row.each(row.resources),
            row.each(row.bytes) / 1024.0,
            row.map_writes_each(),
        );
    }
    let _never = writeln!(
        text,
        "\nFrom the API's write to the last acknowledgement of the nodes that need it, and of those with maps in this kernel; aim: p99 of {} ms.\n\
         CPU time, resources, bytes and map writes (of maps in memory) are per change, over all nodes. `API` is the API server.",
        AIM.as_millis()
    );
    text
}

/// One object per line.
pub(crate) fn json(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let at = |share| ms(Row::percentile(&row.latencies, share));
        let kernel = |share| ms(Row::percentile(&row.in_kernel, share));
        let line = json!({
            "name": row.name, "n": row.latencies.len(), "unit": "ms", "p50": at(50), "p99": at(99), "max": at(100),
            "api_write_p50": ms(Row::percentile(&row.written, 50)), "nodes": row.nodes_each(),
            "kernel_n": row.in_kernel.len(), "kernel_p50": kernel(50), "kernel_p99": kernel(99),
            "kernel_agents_cpu_ms": row.each(ms(row.kernel_agents)),
            "controller_cpu_ms": row.each(ms(row.controller)), "agents_cpu_ms": row.each(ms(row.agents)),
            "api_server_cpu_ms": row.each(ms(row.api)), "resources": row.each(row.resources), "bytes": row.each(row.bytes),
            "map_writes": row.map_writes_each(), "aim_ms": ms(AIM), "missed": Row::percentile(&row.latencies, 99) > AIM,
        });
        let _never = writeln!(text, "{line}");
    }
    text
}
