//! What a person sees: headings, paths, verdicts. Colours and a pace on a terminal, plain lines otherwise.

use std::{
    io::{IsTerminal, Write},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::process;

const PACE: Duration = Duration::from_millis(120);

/// A colour, as an SGR code.
#[derive(Clone, Copy)]
pub(super) enum Colour {
    Red,
    Green,
    Yellow,
    Blue,
    Bold,
    Dim,
}

/// Standard output.
pub(super) struct Screen {
    terminal: bool,
    colours: bool,
    started: Instant,
}

impl Screen {
    pub(super) fn new() -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self {
            terminal,
            colours: terminal && std::env::var_os("NO_COLOR").is_none(),
            started: Instant::now(),
        }
    }

    pub(super) fn paint(&self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Red => "31",
            Colour::Green => "32",
            Colour::Yellow => "33",
            Colour::Blue => "36",
            Colour::Bold => "1",
            Colour::Dim => "2",
        };
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A line, with a breath after it for the eye.
    pub(super) fn text(&self, line: &str) {
        // A closed pipe ends nothing here: the show cleans up in its own order.
        drop(writeln!(std::io::stdout().lock(), "{line}"));
        if self.terminal {
            thread::sleep(PACE);
        }
    }

    pub(super) fn blank(&self) {
        self.text("");
    }

    pub(super) fn dim(&self, line: &str) {
        self.text(&self.paint(Colour::Dim, line));
    }

    /// The heading of an act.
    pub(super) fn act(&self, number: u32, title: &str) {
        self.blank();
        let seconds = self.started.elapsed().as_secs();
        let line = format!(" {number}  {title} ");
        let filler = "─".repeat(78_usize.saturating_sub(line.chars().count() + 8));
        let stamp = self.paint(Colour::Dim, &format!("{filler} {seconds:>3} s"));
        self.text(&format!("{}{stamp}", self.paint(Colour::Bold, &line)));
    }

    /// One path and what became of it: `client → web  TCP 8080  ✓ allowed  rule`.
    pub(super) fn verdict(&self, row: &Row) {
        let (mark, colour) = if row.passed {
            ("✓ allowed", Colour::Green)
        } else {
            ("✗ denied ", Colour::Red)
        };
        let path = format!("{:>8} → {:<8} {:<10}", row.from, row.to, row.what);
        self.text(&format!(
            "  {path} {}  {}",
            self.paint(colour, mark),
            self.paint(Colour::Dim, &row.why)
        ));
    }

    /// A number worth looking at.
    pub(super) fn fact(&self, good: bool, line: &str) {
        let (mark, colour) = if good {
            ("✓", Colour::Green)
        } else {
            ("✗", Colour::Red)
        };
        self.text(&format!("  {} {line}", self.paint(colour, mark)));
    }

    /// A file, indented, comments left out.
    pub(super) fn file(&self, name: &str, text: &str) {
        self.text(&format!("  {}", self.paint(Colour::Blue, name)));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            self.dim(&format!("    │ {line}"));
        }
    }

    /// Lets time pass, with dots on a terminal.
    ///
    /// # Errors
    /// When a signal ended the show.
    pub(super) fn wait(&self, what: &str, time: Duration) -> Result<()> {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            if process::stopped() {
                bail!("interrupted");
            }
            if self.terminal {
                let left = deadline.saturating_duration_since(Instant::now()).as_secs_f32();
                print!("\r  {} {left:.1} s ", self.paint(Colour::Yellow, what));
                drop(std::io::stdout().flush());
            }
            thread::sleep(Duration::from_millis(50));
        }
        if self.terminal {
            print!("\r\x1b[K");
        }
        Ok(())
    }

    /// Time since the show began.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A line of [`Screen::verdict`].
pub(super) struct Row {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) what: String,
    pub(super) passed: bool,
    pub(super) why: String,
}
