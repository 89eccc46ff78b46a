//! Tables as `kubectl` prints them: upper-case heads, two blanks between columns, no lines.

use crate::out::Style;

/// One field of a table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cell {
    /// What it says.
    pub text: String,
    /// How it looks.
    pub style: Style,
}

impl Cell {
    /// A coloured one.
    pub fn styled(text: impl Into<String>, style: Style) -> Self {
        Cell { text: text.into(), style }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell { text: text.into(), style: Style::Plain }
    }
}

/// A table whose columns keep their width for rows that come later.
#[derive(Debug, Clone)]
pub struct Table {
    heads: Vec<&'static str>,
    widths: Vec<usize>,
    rows: Vec<Vec<Cell>>,
    color: bool,
}

impl Table {
    /// An empty table.
    pub fn new(heads: &[&'static str], color: bool) -> Self {
        let widths = heads.iter().map(|head| head.len()).collect();
        Table { heads: heads.to_vec(), widths, rows: Vec::new(), color }
    }

    /// Adds a row; an empty field shows as `-`.
    pub fn push(&mut self, row: Vec<Cell>) {
        let row: Vec<Cell> = row.into_iter().map(tidy).collect();
        for (width, cell) in self.widths.iter_mut().zip(&row) {
            *width = (*width).max(cell.text.chars().count());
        }
        self.rows.push(row);
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Heads and rows.
    pub fn render(&self) -> String {
        self.render_indented("")
    }

    /// The same, each line after `indent`.
    pub fn render_indented(&self, indent: &str) -> String {
        let heads: Vec<Cell> = self.heads.iter().map(|head| Cell::styled(*head, Style::Bold)).collect();
        let mut text = format!("{indent}{}\n", self.layout(&heads));
        for row in &self.rows {
            text.push_str(indent);
            text.push_str(&self.layout(row));
            text.push('\n');
        }
        text
    }

    /// One row more, as wide as those before it.
    pub fn row(&self, row: Vec<Cell>) -> String {
        let row: Vec<Cell> = row.into_iter().map(tidy).collect();
        self.layout(&row)
    }

    fn layout(&self, row: &[Cell]) -> String {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            let shown = if self.color { cell.style.paint(&cell.text) } else { cell.text.clone() };
            line.push_str(&shown);
            if i + 1 < row.len() {
                let width = self.widths.get(i).copied().unwrap_or_default();
                let gap = width.saturating_sub(cell.text.chars().count()) + 2;
                line.push_str(&" ".repeat(gap));
            }
        }
        line
    }
}

/// One line of text, and never none: what is absent must not shift what a script reads.
fn tidy(mut cell: Cell) -> Cell {
    let text = if cell.text.is_empty() { "-".to_owned() } else { cell.text.replace(['\n', '\r', '\t'], " ") };
    cell.text = text;
    cell
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_field_and_two_blanks_apart() {
        let mut table = Table::new(&["NAME", "STATUS", "AGE"], false);
        table.push(vec!["hello-world".into(), "ACTIVE".into(), "5s".into()]);
        table.push(vec!["a".into(), "".into(), "10m".into()]);
        assert_eq!(table.render(), "NAME         STATUS  AGE\nhello-world  ACTIVE  5s\na            -       10m\n");
        assert_eq!(table.row(vec!["b".into(), "ACTIVE".into(), "1s".into()]), "b            ACTIVE  1s");
    }

    #[test]
    fn colour_does_not_count_as_width_and_line_ends_stay_out() {
        let mut table = Table::new(&["A", "B"], true);
        table.push(vec![Cell::styled("x", Style::Good), "y\nz".into()]);
        assert_eq!(table.render(), "\x1b[1mA\x1b[0m  \x1b[1mB\x1b[0m\n\x1b[32mx\x1b[0m  y z\n");
    }

    #[test]
    fn an_indented_table_stays_aligned() {
        let mut table = Table::new(&["A", "B"], false);
        table.push(vec!["xx".into(), "y".into()]);
        assert_eq!(table.render_indented("  "), "  A   B\n  xx  y\n");
    }
}
