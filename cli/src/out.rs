//! Where a command writes: standard output, coloured only for a person at a terminal.
//!
//! Nothing here panics when the reader goes away; writing then fails with a [`Failure`] that ends the
//! command quietly.

use std::io::{self, IsTerminal, Write};

use crate::failure::Failure;

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// In a pipe too.
    Always,
    /// Never.
    Never,
}

/// How a piece of text is to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    /// As it is.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// On its way.
    Busy,
    /// Wrong.
    Bad,
    /// Past, or of little weight.
    Faint,
    /// A heading.
    Bold,
    /// One of several that are told apart by their colours.
    Told(u8),
}

impl Style {
    /// The text with the terminal's codes around it.
    pub fn paint(self, text: &str) -> String {
        let code = match self {
            Style::Plain => return text.to_owned(),
            Style::Good => "32",
            Style::Busy => "33",
            Style::Bad => "31",
            Style::Faint => "2",
            Style::Bold => "1",
            Style::Told(number) => ["36", "35", "34", "33", "32", "96", "95", "94"][usize::from(number % 8)],
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Whether `NO_COLOR` forbids colours.
pub(crate) fn is_plain() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Standard output, or what stands in for it.
pub struct Out {
    to: Box<dyn Write + Send>,
    color: bool,
    terminal: bool,
    /// Length of the line that the next one replaces.
    transient: usize,
}

impl Out {
    /// The process's standard output.
    pub fn stdout(color: Color) -> Self {
        let terminal = io::stdout().is_terminal();
        let color = match color {
            Color::Auto => terminal && !is_plain(),
            Color::Always => true,
            Color::Never => false,
        };
        Out { to: Box::new(io::stdout()), color, terminal, transient: 0 }
    }

    /// Anything else; neither colour nor lines that move.
    pub fn to(to: Box<dyn Write + Send>) -> Self {
        Out { to, color: false, terminal: false, transient: 0 }
    }

    /// Whether a person looks at it.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether to colour.
    pub fn is_colored(&self) -> bool {
        self.color
    }

    /// Text in a style, where there is colour.
    pub fn styled(&self, style: Style, text: &str) -> String {
        if self.color { style.paint(text) } else { text.to_owned() }
    }

    /// Writes text as it is.
    pub fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.bytes(text.as_bytes())
    }

    /// Writes bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.settle()?;
        self.to.write_all(bytes)?;
        self.to.flush()?;
        Ok(())
    }

    /// Writes a line.
    pub fn line(&mut self, line: &str) -> Result<(), Failure> {
        self.text(&format!("{line}\n"))
    }

    /// Shows where something has got to: on a terminal the next line replaces it, in a pipe it stays.
    pub fn progress(&mut self, line: &str) -> Result<(), Failure> {
        if !self.terminal {
            return self.line(line);
        }
        let cut: String = line.chars().take(columns().saturating_sub(1)).collect();
        let blank = " ".repeat(self.transient.saturating_sub(cut.chars().count()));
        write!(self.to, "\r{cut}{blank}")?;
        self.to.flush()?;
        self.transient = cut.chars().count();
        Ok(())
    }

    /// Lets a line stand that was to be replaced: what comes next begins below it.
    pub fn rest(&mut self) {
        if std::mem::take(&mut self.transient) > 0 {
            // A reader that is gone needs no line end.
            let _ = writeln!(self.to).and_then(|()| self.to.flush());
        }
    }

    /// Takes a line away that was to be replaced.
    fn settle(&mut self) -> Result<(), Failure> {
        if self.transient > 0 {
            let blank = " ".repeat(std::mem::take(&mut self.transient));
            write!(self.to, "\r{blank}\r")?;
        }
        Ok(())
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        self.rest();
    }
}

/// Width of the terminal as far as the environment says it.
fn columns() -> usize {
    std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).filter(|c| *c > 20).unwrap_or(100)
}

/// Says something beside the command's output, on standard error.
pub fn note(text: &str) {
    // Standard error that is closed is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{text}");
}
