//! What the person in front of the training sees: a bar on a terminal, a line an epoch elsewhere.

use std::io::{self, IsTerminal, Write, stdout};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

/// How much of the training is shown while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Display {
    /// A bar on a terminal, else lines.
    Auto,
    /// A bar, even where the output does not look like a terminal: a launcher hides the one it writes to.
    Bar,
    Lines,
    None,
}

impl Display {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "bar" => Ok(Self::Bar),
            "lines" => Ok(Self::Lines),
            "none" => Ok(Self::None),
            _ => Err(format!("--progress takes bar, lines, none or auto, not {text:?}")),
        }
    }

    /// A launcher may give ranks a terminal of its own as output and write that to a file; errors then still go to a pipe.
    fn is_bar(self) -> bool {
        self == Self::Bar || (self == Self::Auto && stdout().is_terminal() && io::stderr().is_terminal())
    }
}

/// Shows how the training goes; on ranks other than 0, nothing.
pub(crate) struct Progress {
    bar: ProgressBar,
    lines: bool,
    epochs: usize,
    began: Instant,
}

/// What an epoch achieved.
pub(crate) struct Epoch {
    pub(crate) number: usize,
    pub(crate) loss: f64,
    pub(crate) accuracy: f64,
    pub(crate) samples_per_second: f64,
}

impl Progress {
    pub(crate) fn new(display: Display, is_first: bool, epochs: usize, steps: usize) -> Self {
        let bar = ProgressBar::with_draw_target(Some((epochs * steps) as u64), ProgressDrawTarget::hidden());
        let visible = is_first && display != Display::None;
        if visible && display.is_bar() {
            bar.set_draw_target(ProgressDrawTarget::term_like_with_hz(Box::new(Screen), 15));
            let template = "  {bar:36.green/dim} {percent:>3} %  {msg}";
            bar.set_style(ProgressStyle::with_template(template).expect("a good template").progress_chars("━╸━"));
        }
        Self { lines: visible && bar.is_hidden(), bar, epochs, began: Instant::now() }
    }

    /// A step of this rank is done. `loss` is this rank's mean; `samples` were seen by all ranks so far.
    pub(crate) fn step(&self, epoch: usize, loss: f64, samples: usize) {
        if !self.bar.is_hidden() {
            let rate = samples as f64 / self.began.elapsed().as_secs_f64();
            self.bar.set_message(format!("epoch {epoch}/{}  loss {loss:.4}  {} samples/s", self.epochs, grouped(rate)));
            self.bar.inc(1);
        }
    }

    pub(crate) fn epoch(&self, epoch: &Epoch) {
        let Epoch { number, loss, accuracy, samples_per_second } = epoch;
        let line = format!(
            "  epoch {number:>width$}/{}   loss {loss:.4}   accuracy {:>6.2} %   {:>8} samples/s",
            self.epochs,
            100.0 * accuracy,
            grouped(*samples_per_second),
            width = self.epochs.to_string().len(),
        );
        if self.lines {
            println!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A number with a comma between thousands.
pub(crate) fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A terminal that is reached through a launcher's pipe: moves the cursor by ANSI sequences.
#[derive(Debug)]
struct Screen;

impl Screen {
    fn sequence(&self, count: usize, code: char) -> io::Result<()> {
        if count > 0 { self.write_str(&format!("\x1b[{count}{code}")) } else { Ok(()) }
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        80
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.sequence(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.sequence(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.sequence(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.sequence(n, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(&format!("{text}\n"))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        stdout().write_all(text.as_bytes())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.write_str("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        stdout().flush()
    }
}
