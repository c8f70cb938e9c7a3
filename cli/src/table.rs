//! Text for people: lines, and tables with columns as wide as their widest cell.

use std::io::{self, Write};

/// Appends a line to a text.
pub(crate) fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.push_str(&std::fmt::format(line));
    text.push('\n');
}

/// Writes rows under a heading. The last column is not padded, so long texts wrap at the right edge only.
///
/// # Errors
/// Those of the writer.
pub fn write<const N: usize>(out: &mut impl Write, heading: [&str; N], rows: &[[String; N]]) -> io::Result<()> {
    let mut widths = heading.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut line = |cells: [&str; N]| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count()) + 2));
        }
        writeln!(out, "{}", text.trim_end())
    };
    line(heading)?;
    rows.iter().try_for_each(|row| line(row.each_ref().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up() {
        let mut out = Vec::new();
        let rows = [["a".to_owned(), "bcdef".to_owned()], ["ghi".to_owned(), String::new()]];
        super::write(&mut out, ["X", "Y"], &rows).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "X    Y\na    bcdef\nghi\n");
    }
}
