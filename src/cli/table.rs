//! Tables for people.
//!
//! Invariant: columns are as wide as their widest cell; the last column is never padded.

use std::fmt::Write;

/// How a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// To the left.
    Left,
    /// To the right, as numbers are.
    Right,
}

/// Rows of cells, the headings first, as lines that start with `indent`.
pub fn table<const N: usize>(indent: &str, columns: [(&str, Align); N], rows: &[[String; N]]) -> String {
    let headings = columns.map(|(name, _)| name.to_string());
    let width = |n: usize| {
        let cells = rows.iter().chain([&headings]).filter_map(|row| row.get(n));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in [&headings].into_iter().chain(rows) {
        let mut line = indent.to_string();
        for (n, (cell, ((_, align), width))) in row.iter().zip(columns.iter().zip(widths)).enumerate() {
            line.push_str(if n == 0 { "" } else { "  " });
            // Writing to a string cannot fail.
            let _ = match align {
                Align::Left => write!(line, "{cell:width$}"),
                Align::Right => write!(line, "{cell:>width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a".to_string(), "1".into()], ["bcd".into(), "20".into()]];
        let text = table("  ", [("x", Align::Left), ("n", Align::Right)], &rows);
        assert_eq!(text, "  x     n\n  a     1\n  bcd  20\n");
    }
}
